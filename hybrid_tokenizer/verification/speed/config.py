"""The options of the benchmark."""

from dataclasses import dataclass

from hybrid_tokenizer.errors import HybridTokenizerError

ROWS = (
    "encode",
    "encode_search",
    "decode",
    "decode_latency",
    "decode_batch8_vs_1",
    "decode_bf16",
    "train_guide",
    "loader",
    "loader_resident",
    "cache",
    "latent_draw",
    "harness",
    "harness_references",
    "harness_ssim_psnr",
    "harness_memory",
    "import",
    "startup",
)
GPU_ROWS = ("sd15_encode", "sd15_decode", "sd15_decode_latency")


@dataclass
class BenchmarkConfig:
    """`rows: null` is all that the machine can run; `data_root: null` is the built-in photographs.

    `num_threads: null` leaves torch's own choice. `compile` runs our networks of the encode and decode rows (our
    U-Net of the sd15 rows) through torch.compile, whose time is not counted. `reduced` gives the sd15 rows narrow layers
    and small images, so that they also run on a CPU, and the rows of memory and caches few images: it checks that they
    work, and its times say nothing.
    """

    output: str = "benchmarks/results/benchmark.json"
    """JSON file that the results are written to."""
    model_name: str = "tiny"
    rows: list[str] | None = None
    """Rows to measure. null: all that the machine can run."""
    data_root: str | None = None
    """Folder of images. null: the built-in photographs."""
    image_size: int = 256
    batch_size: int = 8
    repeats: int = 3
    """Measurements of each row, of which the median counts."""
    train_steps: int = 5
    """Steps of the training rows."""
    num_inference_steps: int = 20
    """Denoising steps of the decode rows."""
    strength: float = 0.6
    """Strength of the decode rows."""
    num_threads: int | None = None
    """CPU threads. null: torch's own choice."""
    device: str | None = None
    compile: bool = False
    """Compile the networks of the encode and decode rows."""
    compile_mode: str = "default"
    """torch.compile's mode for `compile`. reduce-overhead replays CUDA graphs."""
    reduced: bool = False
    """Narrow layers and small images for the sd15 rows, to check that they run."""

    def __post_init__(self) -> None:
        known = (*ROWS, *GPU_ROWS)
        if unknown := [name for name in self.rows or [] if name not in known]:
            raise HybridTokenizerError(f"rows={unknown} are unknown; use some of {', '.join(known)}")
        least = {"batch_size": 1, "repeats": 1, "train_steps": 2, "num_threads": 1}
        for name, low in least.items():
            value = getattr(self, name)
            if value is not None and value < low:
                raise HybridTokenizerError(f"{name}={value} must be at least {low}")
