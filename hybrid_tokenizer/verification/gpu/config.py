"""Options of the GPU check, and the sizes of its full and its reduced form."""

from dataclasses import dataclass
from pathlib import Path

from hybrid_tokenizer.errors import HybridTokenizerError


@dataclass(frozen=True)
class Sizes:
    """How much a section computes."""

    images: int
    """Images of the comparisons of tokens."""
    batch_sizes: tuple[int, ...]
    """Batch sizes whose tokens must be equal; the first is 1."""
    decoded: int
    """Images of the comparisons of decodes."""
    steps: int
    """Steps of the guide's training run that is killed and resumed."""
    stage_steps: int
    """Steps of each further training stage."""


FULL = Sizes(images=64, batch_sizes=(1, 7, 64), decoded=16, steps=20, stage_steps=10)
REDUCED = Sizes(images=8, batch_sizes=(1, 3, 8), decoded=2, steps=4, stage_steps=2)


@dataclass(frozen=True)
class GpuCheckConfig:
    """Options of the GPU check.

    Args:
        pictures: a folder of pictures. None takes the built-in photographs.
        output: folder of `gpu_check.json`, `gpu_check.md` and one log per section.
        device: what is compared with the CPU.
        reduced: small sizes and narrow layers, which a CPU runs in minutes. Its times say nothing.
        sections: names of the sections to run. Empty runs all of them.

    Raises:
        HybridTokenizerError: the folder of pictures does not exist.
    """

    pictures: str | None
    output: str
    device: str = "cuda"
    reduced: bool = False
    sections: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.pictures is not None and not Path(self.pictures).is_dir():
            raise HybridTokenizerError(f"--pictures {self.pictures} is no folder; give a folder of pictures")

    @property
    def sizes(self) -> Sizes:
        """The sizes of this form of the check."""
        return REDUCED if self.reduced else FULL
