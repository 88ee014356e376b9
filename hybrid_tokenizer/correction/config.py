"""What scripts/eval_correction.py can be told. Apart, so that composing a configuration loads no model library."""

from dataclasses import dataclass, field
from typing import NamedTuple

from hybrid_tokenizer.errors import HybridTokenizerError
from hybrid_tokenizer.evaluation import Components, EvalData, check_run_numbers


class Damage(NamedTuple):
    """`kind` is tokens (a share of them replaced), elastic (share of the shorter side) or rotation (degrees)."""

    kind: str
    amount: float

    @property
    def label(self) -> str:
        """In words."""
        if not self.amount:
            return "none"
        text = f"{100 * self.amount:g} %"
        return {"tokens": f"{text} of tokens", "elastic": f"elastic {text}", "rotation": f"rotated {self.amount:g}°"}[
            self.kind
        ]


NO_DAMAGE = Damage("tokens", 0.0)


@dataclass
class EvalCorrectionConfig:
    """Damages to the guide, and the methods that each damaged guide goes through.

    token_shares: of guide tokens replaced at random. elastic: the longest displacement, as a share of the shorter side.
    rotations: in degrees. No damage is always there.
    methods: bicubic, super_resolution, hybrid, or a variant of it such as hybrid@s0.6; null is bicubic, super_resolution
    where `baselines` has weights for it, and hybrid.
    pictures: how many photographs the picture shows.
    """

    model_name: str = "tiny"
    output_dir: str = "outputs/eval_correction"
    data: EvalData = field(default_factory=EvalData)
    components: Components = field(default_factory=Components)
    token_shares: list[float] = field(default_factory=lambda: [0.05, 0.1, 0.2])
    elastic: list[float] = field(default_factory=lambda: [0.05])
    rotations: list[float] = field(default_factory=lambda: [4.0])
    methods: list[str] | None = None
    baselines: dict[str, str] = field(default_factory=dict)
    pictures: int = 2
    seed: int = 0
    batch_size: int = 8
    device: str | None = None

    def __post_init__(self) -> None:
        check_run_numbers([self.seed], self.batch_size)
        for name, most in (("token_shares", 1.0), ("elastic", 0.5), ("rotations", 180.0)):
            values = getattr(self, name)
            if any(not 0 < abs(value) <= most for value in values) or len(set(values)) < len(values):
                raise HybridTokenizerError(f"{name}={values} must be different numbers up to {most:g}, none of them 0")
        if any(value < 0 for value in (*self.token_shares, *self.elastic)):
            raise HybridTokenizerError(f"token_shares={self.token_shares} and elastic={self.elastic} must be above 0")

    def damages(self) -> list[Damage]:
        """In the order of the table."""
        kinds = {"tokens": self.token_shares, "elastic": self.elastic, "rotation": self.rotations}
        return [NO_DAMAGE, *(Damage(kind, amount) for kind, amounts in kinds.items() for amount in amounts)]
