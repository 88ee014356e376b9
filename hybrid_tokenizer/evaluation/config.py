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
    """The images of an evaluation."""

    root: str | None = None
    """A folder of images, nested or flat, or one image. null is the built-in photographs."""
    image_size: int = 256
    """Side of the references: the shorter side is resized to it, then the centre is cropped."""
    max_images: int | None = None
    """Takes the first usable images in sorted order. null takes all."""
    verify: str = "full"
    """How thoroughly every image is checked for damage that decoders pass over: full, cheap or off."""
    render_size: int | None = None
    """Side at which diffusion draws, before its images are resized to the references'. null is the side that the diffusion
    model was trained for."""
    num_workers: int = 0
    """Threads that read and check images ahead. 0 reads them one after the other."""

    def __post_init__(self) -> None:
        if self.image_size < SMALLEST_SIDE or self.image_size % 8:
            nearest = max(SMALLEST_SIDE, round(self.image_size / 8) * 8)
            raise HybridTokenizerError(
                f"data.image_size={self.image_size} must be a multiple of 8 and at least {SMALLEST_SIDE}; use {nearest}"
            )
        if self.max_images is not None and self.max_images < 1:
            raise HybridTokenizerError(f"data.max_images={self.max_images} must be at least 1, or null for all images")
        check_level(self.verify)
        check_render_size(self.render_size)
        if self.num_workers < 0:
            raise HybridTokenizerError(
                f"data.num_workers={self.num_workers} must be at least 0; 0 reads without threads"
            )


def check_render_size(render_size: int | None) -> None:
    """Raise on a side that no latents have."""
    if render_size is not None and (render_size < SMALLEST_SIDE or render_size % 64):
        nearest = max(64, round(render_size / 64) * 64)
        raise HybridTokenizerError(f"render_size={render_size} must be a multiple of 64; use {nearest}, or null")


DTYPES = ("float32", "bfloat16", "float16")


@dataclass
class Runtime:
    """How networks are run."""

    batch_size: int = 8
    device: str | None = None
    """cpu or cuda. null is the GPU if there is one."""
    dtype: str = "float32"
    """Of the hybrid's networks, and of those that score captions: float32, bfloat16 or float16."""
    compile: bool = False
    """Compile the hybrid's networks. The first batch then takes minutes."""

    def check_run(self, seeds: Sequence[int]) -> None:
        """Raise on invalid seeds, batch size or dtype."""
        check_run_numbers(seeds, self.batch_size)
        if self.dtype not in DTYPES:
            raise HybridTokenizerError(f"dtype={self.dtype!r} is unknown; use {', '.join(DTYPES[:-1])} or {DTYPES[-1]}")


@dataclass
class Components:
    """What replaces parts of the model."""

    guide: str | None = None
    """Folder of a trained guide tokenizer."""
    semantic: str | None = None
    """Folder of a trained semantic tokenizer."""
    diffusion: str | None = None
    """Folder of a trained diffusion decoder."""
    search_steps: int | None = None
    """Gradient steps of the encoder's search; 0 is the paper's one pass. null is the model's own value."""


@dataclass
class EvalReconConfig(Runtime):
    """The table of reconstructions."""

    model_name: str = "tiny"
    """A preset, a folder or a hub id."""
    output_dir: str = "outputs/eval_recon"
    data: EvalData = field(default_factory=EvalData)
    components: Components = field(default_factory=Components)
    tokenizers: list[str] | None = None
    """The rows by name. null is the controls, the hybrid, for `tiny` also the paper's DDIM inversion
    (hybrid@ddim_inversion,generation), the codec and all of `baselines`."""
    extra_rows: list[str] = field(default_factory=list)
    """Further rows by name, such as hybrid@search8."""
    baselines: dict[str, str] = field(default_factory=dict)
    """Where the weights of other tokenizers are: name -> file, folder, hub id, or `hub`."""
    compare_to: str = "hybrid"
    """The row that paired differences are taken to."""
    seeds: list[int] = field(default_factory=lambda: [0])
    """Sampling seeds, whose mean is the value of an image."""
    pictures: int = 8
    """Images in the picture grid."""
    metric_weights: dict[str, str] = field(default_factory=dict)
    """Adds measures whose weights come with no package, name -> file or folder: lpips_alex, lpips_vgg (torchvision's
    files), clip_i, dino_distance (folders in transformers' form), rfid, kid (torch-fidelity's Inception)."""

    def __post_init__(self) -> None:
        self.check_run(self.seeds)


@dataclass
class ReconstructConfig(Runtime):
    """Pictures of reconstructions."""

    model_name: str = "tiny"
    input: str | None = None
    """An image or a folder of images. null is the built-in photographs."""
    output_dir: str = "outputs/reconstruct"
    image_size: int = 256
    render_size: int | None = None
    """Side at which diffusion draws, before its images are resized. null is the side that the diffusion model was trained for."""
    components: Components = field(default_factory=Components)
    seed: int = 0

    def __post_init__(self) -> None:
        EvalData(self.input, self.image_size, render_size=self.render_size)  # the same rules for the sizes
        self.check_run([self.seed])


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


@dataclass
class PairData(EvalData):
    """Images with captions.

    `root` is a folder with `captions.jsonl`; or WebDataset shards (a .tar, a brace pattern, a folder of them); or, with
    `annotations`, the folder of COCO's images.
    """

    annotations: str | None = None
    """COCO's captions JSON, or Karpathy's."""
    split: str = "test"
    """The split that is read of Karpathy's JSON."""
    caption_seed: int = 0
    """Picks one caption per image by a hash of the seed and the image's name."""


@dataclass
class EvalAlignmentConfig(Runtime):
    """The table of scores of decoded images against captions."""

    model_name: str = "tiny"
    output_dir: str = "outputs/eval_alignment"
    data: PairData = field(default_factory=PairData)
    components: Components = field(default_factory=Components)
    tokenizers: list[str] | None = None
    """Rows by name, as in eval_recon. null is the real image, the controls, the hybrid and all of `baselines`."""
    baselines: dict[str, str] = field(default_factory=dict)
    """Baselines by name and the folder or file of their weights."""
    score_weights: dict[str, str] = field(default_factory=dict)
    """Where the weights of scores are. pickscore, clip_score: a folder in transformers' form, a hub id, or `hub`. hps_v2,
    hps_v21, image_reward: a file, folder, hub id, or `hub`. probe_score: a folder that train_probe.py wrote; without it,
    the one in the package."""
    clip_tokenizer: str | None = None
    """A folder or hub id in transformers' form. null is open_clip's vocabulary."""
    rank_by: str | None = None
    """The score that `win_rate` compares. null is the first available one of `SCORES`."""
    share_among: list[str] | None = None
    """The rows whose shares add up to 1. null is all but the real image and `unrelated`."""
    compare_to: str = "hybrid"
    """The row that paired differences are taken to."""
    seeds: list[int] = field(default_factory=lambda: [0])
    pictures: int = 4
    """Images in the picture grid."""

    def __post_init__(self) -> None:
        self.check_run(self.seeds)
        if unknown := sorted(set(self.score_weights) - set(SCORES)):
            raise HybridTokenizerError(f"score_weights names {', '.join(unknown)}; use some of {', '.join(SCORES)}")
        if self.rank_by is not None and self.rank_by not in SCORES:
            raise HybridTokenizerError(f"rank_by={self.rank_by!r} is no score; use one of {', '.join(SCORES)}")

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
class CorrectionConfig(Runtime):
    """Damages to the guide, and the methods that decode each damaged guide. The undamaged guide is always measured too."""

    model_name: str = "tiny"
    output_dir: str = "outputs/correction"
    data: EvalData = field(default_factory=EvalData)
    components: Components = field(default_factory=Components)
    token_shares: list[float] = field(default_factory=lambda: [0.05, 0.1, 0.2])
    """Shares of the guide tokens that are replaced at random."""
    elastic: list[float] = field(default_factory=lambda: [0.05])
    """The longest displacement of an elastic deformation, as a share of the shorter side."""
    rotations: list[float] = field(default_factory=lambda: [4.0])
    """In degrees."""
    methods: list[str] | None = None
    """bicubic, super_resolution, hybrid, or a variant such as hybrid@s0.6. null is bicubic, super_resolution if `baselines`
    names its weights, and hybrid."""
    baselines: dict[str, str] = field(default_factory=dict)
    """Baselines by name and the folder or file of their weights."""
    pictures: int = 2
    """Photographs in the picture."""
    seed: int = 0

    def __post_init__(self) -> None:
        self.check_run([self.seed])
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
class DecodeSweepConfig(Runtime):
    """The grid of decode options, and how much PSNR the recommendation may give up."""

    model_name: str = "tiny"
    output_dir: str = "outputs/decode_sweep"
    data: EvalData = field(default_factory=EvalData)
    components: Components = field(default_factory=Components)
    starts: list[str] = field(default_factory=lambda: ["ddim_inversion", "add_noise"])
    """ddim_inversion, add_noise, and for decoders with a linear estimate, such as that of `tiny`, linear_estimate."""
    strengths: list[float] = field(default_factory=lambda: [0.2, 0.4, 0.6, 0.8])
    """Strengths to measure."""
    steps: list[int] = field(default_factory=lambda: [10, 20])
    """Steps of the whole schedule."""
    guidance_scales: list[float] = field(default_factory=lambda: [1.0, 2.0])
    """Guidance scales to measure."""
    inversion_conditions: list[str] = field(default_factory=lambda: ["generation"])
    """They apply to ddim_inversion only."""
    psnr_margin: float = 0.5
    """dB below the best setting's PSNR. Of the settings within it, the one with the smallest distance is recommended."""
    seed: int = 0

    def __post_init__(self) -> None:
        self.check_run([self.seed])
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
class FiguresConfig(Runtime):
    """The paper's Figures 2 to 5, drawn for the first usable `data.max_images` photographs in sorted order."""

    figure: str = "all"
    """One of `FIGURES`, or all."""
    model_name: str = "tiny"
    output_dir: str = "outputs/figures"
    data: EvalData = field(default_factory=lambda: EvalData(max_images=3))
    components: Components = field(default_factory=Components)
    rows: list[str] | None = None
    """The columns of Figure 2. null is the `baselines` that Figures 4 and 5 do not show, then semantic_only, guide_only,
    hybrid and codec."""
    baselines: dict[str, str] = field(default_factory=dict)
    """Weights as in eval_recon. Figure 4 shows those called movq_..., Figure 5 super_resolution."""
    guides: list[str] = field(default_factory=list)
    """Folders of further guide tokenizers, each a further column of Figures 3 to 5."""
    seed: int = 0

    def __post_init__(self) -> None:
        self.check_run([self.seed])
        if self.figure not in (*FIGURES, "all"):
            raise HybridTokenizerError(
                f"figure={self.figure!r} is none of the paper's; use {', '.join(FIGURES)} or all"
            )

    def chosen(self) -> tuple[str, ...]:
        """The figures to draw."""
        return FIGURES if self.figure == "all" else (self.figure,)


@dataclass
class GuideRatesConfig(Runtime):
    """Guides of several sizes against their bits."""

    model_name: str = "tiny"
    output_dir: str = "outputs/guide_rates"
    data: EvalData = field(default_factory=EvalData)
    components: Components = field(default_factory=Components)
    guides: dict[str, str] = field(default_factory=dict)
    """Trained guide tokenizers, name -> folder. Each prefix of a nested one is a row `name@tokens`. None: the model's."""
    movq: str | None = None
    """A MoVQGAN checkpoint, or the folder of a guide tokenizer without a stem. It encodes the area-resized image, so that
    it spends as many tokens as ours. null lists its rows as unavailable."""
    codec: bool = True
    """Whether codecs at equal bytes are rows."""
    train_root: list[str] = field(default_factory=list)
    """Folders of images that count the use of the codebooks."""
    max_train_images: int | None = 1000
    """Of each of these folders."""
    pictures: int = 6
    """Images in the picture grid."""

    def __post_init__(self) -> None:
        self.check_run([0])
        if any("@" in name for name in self.guides):
            raise HybridTokenizerError(
                f"guides={list(self.guides)}: a name must not contain '@', which marks a prefix; rename the guide"
            )
        if self.pictures < 1:
            raise HybridTokenizerError(f"pictures={self.pictures} must be at least 1")
