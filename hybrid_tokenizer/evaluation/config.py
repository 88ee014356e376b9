"""Options of the evaluation commands. Importing them loads no model."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from hybrid_tokenizer.data.config import check_level
from hybrid_tokenizer.diffusion.config import DecodeOptions
from hybrid_tokenizer.errors import HybridTokenizerError

SMALLEST_SIDE = 32


@dataclass
class EvalData:
    """`root: null` is the built-in photographs. `max_images` takes the first usable images in sorted order."""

    root: str | None = None
    image_size: int = 256
    max_images: int | None = None
    verify: str = "full"

    def __post_init__(self) -> None:
        if self.image_size < SMALLEST_SIDE or self.image_size % 8:
            nearest = max(SMALLEST_SIDE, round(self.image_size / 8) * 8)
            raise HybridTokenizerError(
                f"data.image_size={self.image_size} must be a multiple of 8 and at least {SMALLEST_SIDE}; use {nearest}"
            )
        if self.max_images is not None and self.max_images < 1:
            raise HybridTokenizerError(f"data.max_images={self.max_images} must be at least 1, or null for all images")
        check_level(self.verify)


@dataclass
class Components:
    """Folders of trained components that replace the model's, and the steps of its encoder's search (null: the model's)."""

    guide: str | None = None
    semantic: str | None = None
    diffusion: str | None = None
    search_steps: int | None = None


@dataclass
class EvalReconConfig:
    """The table of reconstructions.

    model_name: a preset, a folder or a hub id.
    tokenizers: the rows by name; null is the controls, the hybrid, the codec and all of `baselines`.
    extra_rows: further rows by name, such as hybrid@search8.
    baselines: where the weights of other tokenizers are, name -> file, folder, hub id, or `hub`.
    compare_to: the row that paired differences are taken to.
    metric_weights: adds measures whose weights come with no package, name -> file or folder: lpips_alex, lpips_vgg
        (torchvision's files), clip_i, dino_distance (folders in transformers' form), rfid, kid (torch-fidelity's Inception).
    pictures: how many images the picture grid shows.
    """

    model_name: str = "tiny"
    output_dir: str = "outputs/eval_recon"
    data: EvalData = field(default_factory=EvalData)
    components: Components = field(default_factory=Components)
    tokenizers: list[str] | None = None
    extra_rows: list[str] = field(default_factory=list)
    baselines: dict[str, str] = field(default_factory=dict)
    compare_to: str = "hybrid"
    seeds: list[int] = field(default_factory=lambda: [0])
    batch_size: int = 8
    device: str | None = None
    pictures: int = 8
    metric_weights: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_run_numbers(self.seeds, self.batch_size)


@dataclass
class ReconstructConfig:
    """`input` is an image or a folder of images; null is the built-in photographs."""

    model_name: str = "tiny"
    input: str | None = None
    output_dir: str = "outputs/reconstruct"
    image_size: int = 256
    components: Components = field(default_factory=Components)
    seed: int = 0
    batch_size: int = 8
    device: str | None = None

    def __post_init__(self) -> None:
        EvalData(self.input, self.image_size)  # the same rule for the size
        check_run_numbers([self.seed], self.batch_size)


def check_run_numbers(seeds: Sequence[int], batch_size: int) -> None:
    """Raise on invalid seeds or an invalid batch size."""
    if not seeds or len(set(seeds)) < len(seeds) or min(seeds) < 0:
        raise HybridTokenizerError(f"seeds={list(seeds)} must be different whole numbers from 0 up, e.g. [0, 1, 2]")
    if batch_size < 1:
        raise HybridTokenizerError(f"batch_size={batch_size} must be at least 1")


SCORES = ("pickscore", "image_reward", "hps_v2", "hps_v21", "clip_score", "probe_score")
"""Scores of an image and its caption, in order of preference: the first available one decides `win_rate`."""
REAL = "identity"
ALIGNMENT_ROWS = (REAL, "semantic_only", "guide_only", "hybrid", "hybrid_wrong_semantics", "unrelated")
DTYPES = ("float32", "bfloat16")


@dataclass
class PairData(EvalData):
    """Images with captions.

    root: a folder with `captions.jsonl`; or WebDataset shards (a .tar, a brace pattern, a folder of them); or, with
        `annotations`, the folder of COCO's images.
    annotations: COCO's captions JSON, or Karpathy's, of which `split` is read.
    caption_seed: picks one caption per image by a hash of the seed and the image's name.
    """

    annotations: str | None = None
    split: str = "test"
    caption_seed: int = 0


@dataclass
class EvalAlignmentConfig:
    """The table of scores of decoded images against captions.

    tokenizers: rows by name, as in eval_recon; null is the real image, the controls, the hybrid and all of `baselines`.
    score_weights: where the weights of scores are. pickscore, clip_score: a folder in transformers' form, a hub id, or
        `hub`. hps_v2, hps_v21, image_reward: a file, folder, hub id, or `hub`. probe_score: a folder that train_probe.py
        wrote; without it, the one in the package.
    clip_tokenizer: a folder or hub id in transformers' form; null is open_clip's vocabulary.
    rank_by: the score that `win_rate` compares; null is the first available one in the order of the list above.
    share_among: the rows whose shares add up to 1; null is all but the real image and `unrelated`.
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
            raise HybridTokenizerError(f"dtype={self.dtype!r} is unknown; use {' or '.join(DTYPES)}")

    def row_names(self) -> list[str]:
        """The rows of the table, the real image first."""
        names = [*ALIGNMENT_ROWS, *self.baselines] if self.tokenizers is None else self.tokenizers
        return [REAL, *(name for name in names if name != REAL)]


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
class CorrectionConfig:
    """Damages to the guide, and the methods that decode each damaged guide. The undamaged guide is always measured too.

    token_shares: shares of the guide tokens that are replaced at random.
    elastic: the longest displacement, as a share of the shorter side.
    rotations: in degrees.
    methods: bicubic, super_resolution, hybrid, or a variant such as hybrid@s0.6; null is bicubic, super_resolution
        if `baselines` names its weights, and hybrid.
    pictures: how many photographs the picture shows.
    """

    model_name: str = "tiny"
    output_dir: str = "outputs/correction"
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


@dataclass
class DecodeSweepConfig:
    """The grid of decode options, and how much PSNR the recommendation may give up.

    starts: of ddim_inversion, add_noise, and for decoders with a linear estimate, such as that of `tiny`, linear_estimate.
    inversion_conditions: apply to ddim_inversion only.
    psnr_margin: dB below the best setting's PSNR; of the settings within it the one with the smallest distance is
        recommended.
    """

    model_name: str = "tiny"
    output_dir: str = "outputs/decode_sweep"
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
                f"strengths={self.strengths} must be above 0; strength 0, which takes no step, is always measured"
            )
        self.settings()

    def settings(self) -> list[DecodeOptions]:
        """Every point of the grid. Raises on an option that is out of range."""
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


FIGURES = ("2", "3", "4", "5")


@dataclass
class FiguresConfig:
    """The paper's Figures 2 to 5, drawn for the first usable `data.max_images` photographs in sorted order.

    figure: one of them, or `all`.
    rows: the columns of Figure 2; null is the `baselines` that Figures 4 and 5 do not show, then semantic_only,
        guide_only, hybrid and codec.
    baselines: weights as in eval_recon. Figure 4 shows those called movq_..., Figure 5 super_resolution.
    guides: folders of further guide tokenizers, each a further column of Figures 3 to 5.
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


@dataclass
class GuideRatesConfig:
    """Guides of several sizes against their bits.

    guides: trained guide tokenizers, name -> folder; none: the guide of `model_name`. Each prefix of a nested guide is a
        row `name@tokens`.
    movq: a MoVQGAN checkpoint, or the folder of a guide tokenizer without a stem. It encodes the area-resized image, so
        that it spends as many tokens as ours. Null: its rows are listed as unavailable.
    codec: whether codecs at equal bytes are rows.
    train_root: folders whose images count the use of the codebooks, at most `max_train_images` of each.
    pictures: how many images the picture grid shows.
    """

    model_name: str = "tiny"
    output_dir: str = "outputs/guide_rates"
    data: EvalData = field(default_factory=EvalData)
    components: Components = field(default_factory=Components)
    guides: dict[str, str] = field(default_factory=dict)
    movq: str | None = None
    codec: bool = True
    train_root: list[str] = field(default_factory=list)
    max_train_images: int | None = 1000
    batch_size: int = 8
    pictures: int = 6
    device: str | None = None

    def __post_init__(self) -> None:
        check_run_numbers([0], self.batch_size)
        if any("@" in name for name in self.guides):
            raise HybridTokenizerError(
                f"guides={list(self.guides)}: a name must not contain '@', which marks a prefix; rename the guide"
            )
        if self.pictures < 1:
            raise HybridTokenizerError(f"pictures={self.pictures} must be at least 1")
