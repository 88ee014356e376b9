"""What scripts/eval_guide.py can be told. Apart, so that composing a configuration loads no model library."""

from dataclasses import dataclass, field

from hybrid_tokenizer.errors import HybridTokenizerError
from hybrid_tokenizer.evaluation import EvalData, check_run_numbers


@dataclass
class EvalGuideConfig:
    """`guides` are trained guide tokenizers, name -> folder; each prefix of a nested one is a row `name@tokens`.

    `movq` is a MoVQGAN checkpoint, or a guide tokenizer's folder without a stem; it gets the area-resized image, so that it
    spends as many tokens as ours. Null: its rows say that they are unavailable. `train_root` is a folder, or several, whose
    images count the use of the codebooks, at most `max_train_images` of each. `pictures` is how many images the grid shows.
    """

    guides: dict[str, str] = field(default_factory=dict)
    movq: str | None = None
    output_dir: str = "outputs/eval_guide"
    data: EvalData = field(default_factory=EvalData)
    train_root: list[str] = field(default_factory=list)
    max_train_images: int | None = 1000
    codec: bool = True
    batch_size: int = 8
    pictures: int = 6
    device: str | None = None

    def __post_init__(self) -> None:
        check_run_numbers([0], self.batch_size)
        if not self.guides:
            raise HybridTokenizerError("guides={} names no guide tokenizer; give +guides.NAME=FOLDER, one or more")
        if any("@" in name for name in self.guides):
            raise HybridTokenizerError(f"guides={list(self.guides)}: a name must not hold '@', which marks a prefix")
        if self.pictures < 1:
            raise HybridTokenizerError(f"pictures={self.pictures} must be at least 1")
