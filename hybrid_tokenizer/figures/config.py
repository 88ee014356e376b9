"""What scripts/make_figures.py can be told. Apart, so that composing a configuration loads no model library."""

from dataclasses import dataclass, field

from hybrid_tokenizer.errors import HybridTokenizerError
from hybrid_tokenizer.evaluation import Components, EvalData, check_run_numbers

FIGURES = ("2", "3", "4", "5")


@dataclass
class FiguresConfig:
    """`figure` is one of the paper's, or `all`.

    rows: the columns of Figure 2; null is `baselines` but those of Figures 4 and 5, then semantic_only, guide_only, hybrid and codec.
    baselines: weights as for eval_recon. Figure 4 takes those called movq_..., Figure 5 super_resolution.
    guides: folders of further guide tokenizers, which are further columns of Figures 3 to 5.
    `data.max_images` photographs are shown, the first usable ones in sorted order.
    """

    figure: str = "all"
    model_name: str = "tiny"
    output_dir: str = "outputs/figures"
    data: EvalData = field(default_factory=lambda: EvalData(max_images=3))
    components: Components = field(default_factory=Components)
    rows: list[str] | None = None
    baselines: dict[str, str] = field(default_factory=dict)
    guides: list[str] = field(default_factory=list)
    seed: int = 0
    batch_size: int = 8
    device: str | None = None

    def __post_init__(self) -> None:
        check_run_numbers([self.seed], self.batch_size)
        if self.figure not in (*FIGURES, "all"):
            raise HybridTokenizerError(
                f"figure={self.figure!r} is none of the paper's; use {', '.join(FIGURES)} or all"
            )

    def chosen(self) -> tuple[str, ...]:
        """The figures to draw."""
        return FIGURES if self.figure == "all" else (self.figure,)
