"""What scripts/eval_alignment.py and scripts/train_probe.py can be told. Apart, so that composing a configuration loads no
model library."""

from dataclasses import dataclass, field

from hybrid_tokenizer.errors import HybridTokenizerError
from hybrid_tokenizer.evaluation import Components, EvalData, check_run_numbers

SCORES = ("pickscore", "image_reward", "hps_v2", "hps_v21", "clip_score", "probe_score")
"""In the order in which the first one there is decides `win_rate`."""
REAL = "identity"
ROWS = (REAL, "semantic_only", "guide_only", "hybrid", "hybrid_wrong_semantics", "unrelated")
DTYPES = ("float32", "bfloat16")


@dataclass
class PairData(EvalData):
    """`root` is a folder with `captions.jsonl`, or WebDataset shards (a .tar, a brace pattern, a folder of them), or with
    `annotations` (COCO's captions JSON, or Karpathy's and its `split`) the folder of COCO's images.

    `caption_seed` picks one caption of each image by a hash of the seed and the image's name.
    """

    annotations: str | None = None
    split: str = "test"
    caption_seed: int = 0


@dataclass
class EvalAlignmentConfig:
    """`tokenizers` are rows by name as for eval_recon.py; null is the real image, the controls, the hybrid, and `baselines`.

    `score_weights` says where the weights of scores are: pickscore, clip_score -> folder in transformers' form, hub id, or
    `hub`; hps_v2, hps_v21, image_reward -> file, folder, hub id, or `hub`; probe_score -> a folder of train_probe.py's
    (null: the repository's). `clip_tokenizer` is a folder or hub id in transformers' form; null is open_clip's vocabulary.
    `rank_by` is the score that `win_rate` compares; null is the first there is of the list above. `share_among` are the
    rows whose shares add up to 1; null is all but the real image and `unrelated`.
    """

    model_name: str = "tiny"
    output_dir: str = "outputs/eval_alignment"
    data: PairData = field(default_factory=PairData)
    components: Components = field(default_factory=Components)
    tokenizers: list[str] | None = None
    baselines: dict[str, str] = field(default_factory=dict)
    score_weights: dict[str, str] = field(default_factory=dict)
    clip_tokenizer: str | None = None
    rank_by: str | None = None
    share_among: list[str] | None = None
    compare_to: str = "hybrid"
    seeds: list[int] = field(default_factory=lambda: [0])
    batch_size: int = 8
    device: str | None = None
    dtype: str = "float32"
    pictures: int = 4

    def __post_init__(self) -> None:
        check_run_numbers(self.seeds, self.batch_size)
        if unknown := sorted(set(self.score_weights) - set(SCORES)):
            raise HybridTokenizerError(f"score_weights names {', '.join(unknown)}; use some of {', '.join(SCORES)}")
        if self.rank_by is not None and self.rank_by not in SCORES:
            raise HybridTokenizerError(f"rank_by={self.rank_by!r} is no score; use one of {', '.join(SCORES)}")
        if self.dtype not in DTYPES:
            raise HybridTokenizerError(f"dtype={self.dtype!r} is not known here; use {' or '.join(DTYPES)}")

    def row_names(self) -> list[str]:
        """The rows of the table, the real image first."""
        names = [*ROWS, *self.baselines] if self.tokenizers is None else self.tokenizers
        return [REAL, *(name for name in names if name != REAL)]


@dataclass
class TrainProbeConfig:
    """`roots` and `val_root` are folders with `captions.jsonl`."""

    roots: list[str] = "???"  # type: ignore[assignment]  # what OmegaConf takes for a missing value
    val_root: str = "???"
    output_dir: str = "outputs/probe"
    cache_dir: str = "outputs/probe_features"
    hidden_width: int = 512
    steps: int = 500
    batch_size: int = 256
    learning_rate: float = 3e-3
    weight_decay: float = 0.05
    dropout: float = 0.5
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("hidden_width", "steps", "batch_size"):
            if getattr(self, name) < 1:
                raise HybridTokenizerError(f"{name}={getattr(self, name)} must be at least 1")
        if not 0 <= self.dropout < 1:
            raise HybridTokenizerError(f"dropout={self.dropout} must lie in [0, 1)")
