"""What scripts/eval_decode.py can be told. Apart, so that composing a configuration loads no model library."""

import itertools
from dataclasses import dataclass, field

from hybrid_tokenizer.diffusion.config import DecodeOptions
from hybrid_tokenizer.errors import HybridTokenizerError
from hybrid_tokenizer.evaluation import Components, EvalData, check_run_numbers


@dataclass
class EvalDecodeConfig:
    """The grid, and how much PSNR the choice may give up.

    `inversion_conditions` multiply the settings that start from inversion.
    `psnr_margin`: dB below the best setting's PSNR; among the settings within it the smallest distance is recommended.
    """

    model_name: str = "tiny"
    output_dir: str = "outputs/eval_decode"
    data: EvalData = field(default_factory=EvalData)
    components: Components = field(default_factory=Components)
    starts: list[str] = field(default_factory=lambda: ["ddim_inversion", "add_noise"])
    strengths: list[float] = field(default_factory=lambda: [0.2, 0.4, 0.6, 0.8])
    steps: list[int] = field(default_factory=lambda: [10, 20])
    guidance_scales: list[float] = field(default_factory=lambda: [1.0, 2.0])
    inversion_conditions: list[str] = field(default_factory=lambda: ["generation"])
    psnr_margin: float = 0.5
    seed: int = 0
    batch_size: int = 8
    device: str | None = None

    def __post_init__(self) -> None:
        check_run_numbers([self.seed], self.batch_size)
        if self.psnr_margin < 0:
            raise HybridTokenizerError(f"psnr_margin={self.psnr_margin} must be at least 0; 0 takes the best PSNR")
        for name in ("starts", "strengths", "steps", "guidance_scales", "inversion_conditions"):
            values = getattr(self, name)
            if not values or len(set(values)) < len(values):
                raise HybridTokenizerError(f"{name}={values} must be different values, at least one")
        if min(self.strengths) <= 0:
            raise HybridTokenizerError(
                f"strengths={self.strengths} must be above 0; the row of strength 0, which takes no step, is always there"
            )
        self.settings()

    def settings(self) -> list[DecodeOptions]:
        """Every point of the grid. Raises where an option is outside its range."""
        starts = [
            (start, condition)
            for start in self.starts
            for condition in (self.inversion_conditions if start == "ddim_inversion" else ["generation"])
        ]
        grid = itertools.product(starts, self.strengths, self.steps, self.guidance_scales)
        return [
            DecodeOptions(
                start=start,
                inversion_condition=condition,
                strength=strength,
                num_inference_steps=steps,
                guidance_scale=guidance,
            )
            for (start, condition), strength, steps, guidance in grid
        ]
