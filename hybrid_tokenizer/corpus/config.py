"""Options of the corpus commands. Importing them loads no model and no Ray."""

from dataclasses import dataclass, field
from typing import Any

from hybrid_tokenizer.data.config import CropConfig
from hybrid_tokenizer.errors import HybridTokenizerError

DTYPES = ("float32", "bfloat16", "float16")
PIXEL_BLOCK_BYTES = 96 * 2**20
"""Decoded pixels that travel together. Ray Data keeps a few such blocks in memory for each worker."""


@dataclass
class ViewConfig:
    """What is cut from each image."""

    image_size: int = 256
    """Side of the encoded square, in pixels. Smaller images are enlarged."""
    views: int = 0
    """0: the centre crop (shorter side to `image_size`). n: n random crops and flips per image, the same at every run."""
    crop_scale: list[float] = field(default_factory=lambda: [0.7, 1.0])
    """Side of a random crop, as a share of the shorter side: lowest and highest."""
    flip: bool = True
    """Mirror half of the random crops."""
    seed: int = 0
    """Of the random crops."""
    smallest_side: int | None = None
    """Images with a shorter side under this are skipped. null: a quarter of `image_size`."""
    jpeg_draft: bool = False
    """Decode a large JPEG at a half, a quarter or an eighth of its size, still at least twice `image_size`: faster, but the
    pixels, and so some tokens, differ from those of a full decode."""

    def __post_init__(self) -> None:
        if self.image_size < 8:
            raise HybridTokenizerError(f"data.image_size={self.image_size} must be at least 8, e.g. 256")
        if self.views < 0:
            raise HybridTokenizerError(
                f"data.views={self.views} must be 0 (the centre crop) or a number of random crops"
            )
        if self.smallest_side is not None and self.smallest_side < 1:
            raise HybridTokenizerError(f"data.smallest_side={self.smallest_side} must be at least 1, or null")
        if len(self.crop_scale) != 2:
            raise HybridTokenizerError(f"data.crop_scale={self.crop_scale} must be two numbers, e.g. [0.7, 1.0]")
        self.crop  # noqa: B018  its own check

    @property
    def crop(self) -> CropConfig:
        """The random crop, as in training."""
        return CropConfig(self.image_size, (self.crop_scale[0], self.crop_scale[1]), self.flip)

    @property
    def least_side(self) -> int:
        """The shorter side from which an image is used."""
        return self.image_size // 4 if self.smallest_side is None else self.smallest_side


@dataclass
class ColumnConfig:
    """Which columns of Parquet files and Hugging Face datasets are read."""

    image_column: str | None = None
    """Column with the images' bytes. null: the only one that holds some."""
    caption_column: str | None = None
    """Column with a caption or a list of captions. null: the first of captions, caption and text that is there."""


@dataclass
class RayConfig:
    """The engine."""

    address: str | None = None
    """Of a running cluster, e.g. auto or ray://HOST:10001. null starts Ray on this machine."""
    num_cpus: int | None = None
    """Cores that Ray uses when it is started here. null: all."""
    object_store_mb: int | None = None
    """Shared memory for blocks on their way, when Ray is started here. null: Ray's choice, 30 % of the memory."""


@dataclass
class TokenizeConfig:
    """From photographs to token shards."""

    input: Any = "???"
    """A folder of images, WebDataset shards (a .tar, a brace pattern, a folder of them), Parquet files with image bytes (a
    file, a pattern, a folder), a saved Hugging Face dataset, or a list of these. On a cluster every node must see it."""
    output: str = "???"
    """Folder of the token shards: a local path, or a URI that pyarrow or fsspec knows (s3://, gs://, ...)."""
    model_name: str = "tiny"
    """A preset, a folder or a hub id."""
    data: ViewConfig = field(default_factory=ViewConfig)
    columns: ColumnConfig = field(default_factory=ColumnConfig)
    guide_scales: int | None = None
    """Keep the first n grids of a nested guide. null: all."""
    search_steps: int = 0
    """Steps of the encoder's search per image. 0: one pass."""
    batch_size: int = 64
    """Images that a worker encodes at once."""
    dtype: str = "float32"
    """Of the weights: float32, bfloat16 or float16. Half precision changes some tokens."""
    device: str | None = None
    """cpu or cuda. null: cuda if `gpus_per_worker` is not 0 or a GPU is there, otherwise cpu."""
    workers: Any = None
    """Tokenizers at work: a number, or [least, most] between which Ray scales. null: one per GPU, or one per core."""
    gpus_per_worker: float | None = None
    """null: 1 on GPUs, 0 on CPUs. Fractions share a GPU."""
    threads_per_worker: int = 1
    """CPU threads of a worker that encodes on the CPU."""
    rows_per_part: int | None = None
    """Rows that are decoded, encoded and stored together; a kill costs at most the parts at work. null: as many whole batches
    as 96 MB of pixels hold."""
    shard_mb: float = 128.0
    """Size of a finished file, about."""
    rows_per_group: int = 1024
    """Rows of a Parquet row group, the unit that readers shuffle."""
    ray: RayConfig = field(default_factory=RayConfig)

    def __post_init__(self) -> None:
        for name in ("batch_size", "threads_per_worker", "rows_per_group", "rows_per_part"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise HybridTokenizerError(f"{name}={value} must be at least 1")
        if self.search_steps < 0:
            raise HybridTokenizerError(f"search_steps={self.search_steps} must be 0 (one pass) or more")
        if self.shard_mb <= 0:
            raise HybridTokenizerError(f"shard_mb={self.shard_mb} must be more than 0, e.g. 128")
        if self.dtype not in DTYPES:
            raise HybridTokenizerError(f"dtype={self.dtype!r} is unknown; use one of {', '.join(DTYPES)}")
        if self.gpus_per_worker is not None and self.gpus_per_worker < 0:
            raise HybridTokenizerError(f"gpus_per_worker={self.gpus_per_worker} must be 0 or more")
        self.inputs  # noqa: B018  its own check
        self.worker_range  # noqa: B018

    @property
    def inputs(self) -> list[str]:
        listed = [self.input] if isinstance(self.input, str) else self.input
        if not isinstance(listed, list) or not listed or not all(isinstance(one, str) for one in listed):
            raise HybridTokenizerError(f"input={self.input!r} must be a path or a list of paths")
        return listed

    @property
    def worker_range(self) -> tuple[int, int] | None:
        """(least, most), where they are given."""
        if self.workers is None:
            return None
        given = self.workers if isinstance(self.workers, list) else [self.workers, self.workers]
        if len(given) != 2 or not all(type(one) is int for one in given) or not 1 <= given[0] <= given[1]:
            raise HybridTokenizerError(
                f"workers={self.workers} must be a number, or [least, most] with 1 <= least <= most"
            )
        return given[0], given[1]

    @property
    def images_per_part(self) -> int:
        """Whole batches of rows, as the images that give them."""
        rows = self.rows_per_part
        if rows is None:
            held = PIXEL_BLOCK_BYTES // (3 * self.data.image_size**2)
            rows = max(1, held // self.batch_size) * self.batch_size
        return max(1, rows // max(1, self.data.views))


@dataclass
class DetokenizeConfig:
    """From rows of tokens to a grid of pictures."""

    input: str = "???"
    """A folder of token shards."""
    output: str = "outputs/tokens.png"
    """The picture grid."""
    model_name: str = "tiny"
    """The tokenizer that made the tokens: a preset, a folder or a hub id."""
    rows: list[int] | None = None
    """Numbers of the rows to draw. null: `count` rows at even distances."""
    count: int = 16
    """Rows to draw."""
    batch_size: int = 8
    """Images that are decoded at once."""
    device: str | None = None
    """cpu or cuda. null: the GPU where there is one."""

    def __post_init__(self) -> None:
        if self.count < 1 or self.batch_size < 1:
            raise HybridTokenizerError(f"count={self.count} and batch_size={self.batch_size} must be at least 1")


@dataclass
class InspectConfig:
    """Use, cost and robustness of stored tokens."""

    input: str = "???"
    """A folder of token shards."""
    output_dir: str = "outputs/inspect"
    """Where inspect.json, inspect.md and inspect.png go."""
    model_name: str = "tiny"
    """The tokenizer that made the tokens: a preset, a folder or a hub id."""
    max_rows: int | None = None
    """Count the codes of about this many rows. null: of all."""
    sample: int = 32
    """Rows that are decoded and encoded again. 0 loads no model."""
    seed: int = 0
    """Of the damaged ids."""
    batch_size: int = 8
    """Images that are decoded at once."""
    device: str | None = None
    """cpu or cuda. null: the GPU where there is one."""

    def __post_init__(self) -> None:
        if self.sample < 0 or self.batch_size < 1 or (self.max_rows is not None and self.max_rows < 1):
            raise HybridTokenizerError(
                f"sample={self.sample} must be at least 0, batch_size={self.batch_size} and max_rows={self.max_rows} at least 1"
            )


@dataclass(frozen=True)
class EncoderConfig:
    """What a worker needs to know."""

    model_name: str
    tokenizer_hash: str
    device: str
    dtype: str
    threads: int
    batch_size: int
    guide_scales: int | None
    search_steps: int
