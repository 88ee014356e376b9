"""Hydra schemas of the commands, and the one decorator that runs them. The only library file that imports hydra.

`configs/NAME.yaml` needs only a defaults list (its schema, `model: tiny` where it has one, `_self_`) and what differs from
the dataclasses. Logging, run folders and the working directory are set once, in `quiet_hydra`, for every command.
A command is `@command("NAME") def main(config: Schema) -> None` in `hybrid_tokenizer/commands/`.
"""

import dataclasses
import functools
import io
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import hydra
from hydra.conf import HydraConf, JobConf, RunDir
from hydra.core.config_store import ConfigStore
from hydra.errors import HydraException, OverrideParseException
from omegaconf import MISSING, OmegaConf
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException

from hybrid_tokenizer.commands.overrides import (
    explain_unknown,
    explain_value,
    how_to_quote,
    literal_text,
    option_types,
    shorten_names,
    split,
    unknown_addition,
    with_home,
)
from hybrid_tokenizer.corpus.config import DetokenizeConfig, InspectConfig, TokenizeConfig
from hybrid_tokenizer.data.config import DataConfig
from hybrid_tokenizer.diffusion.config import DiffusionConfig
from hybrid_tokenizer.errors import HybridTokenizerError, first_line
from hybrid_tokenizer.evaluation.config import (
    CorrectionConfig,
    DecodeSweepConfig,
    EvalAlignmentConfig,
    EvalReconConfig,
    FiguresConfig,
    GuideRatesConfig,
    PairData,
    ReconstructConfig,
)
from hybrid_tokenizer.guide.config import GuideConfig
from hybrid_tokenizer.language.config import (
    CaptionConfig,
    CompleteConfig,
    GenerateConfig,
    SamplingConfig,
    TrainLMConfig,
    as_list,
)
from hybrid_tokenizer.semantic.config import SemanticConfig
from hybrid_tokenizer.training.config import (
    ContrastiveOptions,
    GuideLossOptions,
    QuantizeOptions,
    TrainingConfig,
    UNetOptions,
    VAELossOptions,
)
from hybrid_tokenizer.verification.speed.config import BenchmarkConfig

PROGRAM = "hybrid-tokenizer"
PACKAGED = Path(__file__).resolve().parents[1] / "configs"
CONFIG_DIR = PACKAGED if PACKAGED.is_dir() else PACKAGED.parents[1] / "configs"
"""In an installed package the files are inside it, in a checkout beside it."""


@dataclass
class GuideSection(GuideConfig):
    """Branch I's configuration."""

    init: str | None = None
    """Weights to start from: the folder of a guide tokenizer, or an f8 MoVQ for a warm start. null starts at random."""


@dataclass
class SemanticSection(SemanticConfig):
    """Branch II's configuration."""

    init: str | None = None
    """Folder of a semantic tokenizer to start from. Its sizes then replace those given here. null starts at random."""


@dataclass
class DiffusionSection(DiffusionConfig):
    """Branch III's configuration."""

    init: str | None = None
    """Weights to start from: a diffusion decoder's folder, or a Stable Diffusion 1.x folder or hub id. Its sizes then
    replace those given here. null starts at random."""


@dataclass
class TrainGuide:
    """Branch I."""

    model_name: str = MISSING
    output_dir: str = MISSING
    data: DataConfig = field(default_factory=DataConfig)
    guide: GuideSection = field(default_factory=GuideSection)
    loss: GuideLossOptions = field(default_factory=GuideLossOptions)
    training: TrainingConfig = field(default_factory=TrainingConfig)


@dataclass
class TrainSemantic:
    """Branch II."""

    stage: str = MISSING
    """"contrastive" is eq. 6. "quantize" is eqs. 7 and 8, on the tokenizer in `semantic.init`."""
    model_name: str = MISSING
    output_dir: str = MISSING
    data: DataConfig = field(default_factory=DataConfig)
    semantic: SemanticSection = field(default_factory=SemanticSection)
    contrastive: ContrastiveOptions = field(default_factory=ContrastiveOptions)
    quantize: QuantizeOptions = field(default_factory=QuantizeOptions)
    training: TrainingConfig = field(default_factory=TrainingConfig)


@dataclass
class PretrainDiffusion:
    """Branch III."""

    stage: str = MISSING
    """"vae" trains the embedded preset's VAE. "unet" trains its U-Net on the latents of the VAE in `diffusion.init`.
    "finetune" teaches the U-Net of the trained decoder in `diffusion.init` to read guides; it reads no captions."""
    model_name: str = MISSING
    output_dir: str = MISSING
    data: DataConfig = field(default_factory=DataConfig)
    diffusion: DiffusionSection = field(default_factory=DiffusionSection)
    semantic_folder: str | None = None
    """Folder of a trained semantic tokenizer, whose generation embeddings condition the U-Net."""
    guide_folder: str | None = None
    """Folder of a trained guide tokenizer, whose decoded guides the U-Net learns to read."""
    vae_loss: VAELossOptions = field(default_factory=VAELossOptions)
    unet: UNetOptions = field(default_factory=UNetOptions)
    training: TrainingConfig = field(default_factory=TrainingConfig)


LM_PARTS = ("unigrams", "semantic_then_lm", "text_to_image", "captions", "valid", "search", "budgets")


@dataclass
class EvalLM:
    """A language model on held-out photographs with captions."""

    model_name: str = "tiny"
    """The image tokenizer: a preset, a folder or a hub id."""
    language_model: str = "tiny_lm"
    """A preset, a folder that train_lm wrote, or a hub id."""
    output_dir: str = "outputs/eval_lm"
    data: PairData = field(default_factory=PairData)
    train_tokens: Any = MISSING
    """Token shards of the training: a folder or a list. Unigrams are counted on them, and copies are looked for in them."""
    parts: list[str] = field(default_factory=lambda: list(LM_PARTS))
    """What is measured."""
    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    """How pictures are drawn."""
    caption_sampling: SamplingConfig = field(default_factory=lambda: SamplingConfig(temperature=0.0))
    """How captions are written."""
    search_steps: int = 8
    """Steps of the searched tokens in the part `search`."""
    pictures: int = 16
    """Lines of the picture grids. 0: no grids."""
    row_length: int = 448
    """Tokens per packed row, at least those of the longest document."""
    batch_size: int = 8
    """Photographs that are encoded at once."""
    seed: int = 0
    device: str | None = None
    """cpu or cuda. null: cuda where there is one."""

    def __post_init__(self) -> None:
        unknown = sorted(set(self.parts) - set(LM_PARTS))
        if unknown:
            raise HybridTokenizerError(f"parts={unknown} are unknown; use some of {', '.join(LM_PARTS)}")

    @property
    def train_folders(self) -> list[str]:
        return as_list("train_tokens", self.train_tokens)


def component_config(section: Any, kind: type) -> Any:
    """The component's own configuration, from a section that adds `init`."""
    return kind(**{f.name: getattr(section, f.name) for f in dataclasses.fields(kind)})


def section_of(config: Any, kind: type) -> Any:
    """A section with the component's values and no `init`."""
    return kind(**{f.name: getattr(config, f.name) for f in dataclasses.fields(config)})


@functools.cache
def register_schemas() -> None:
    """Register the names that the files of `configs/` refer to. The presets' numbers live with the components, not in YAML."""
    store = ConfigStore.instance()
    for name in ("tiny", "sd15"):
        store.store(group="guide", name=name, node=section_of(getattr(GuideConfig, name)(), GuideSection))
        semantic = SemanticConfig.tiny() if name == "tiny" else SemanticConfig.seed1(cosine_stack=True)
        store.store(group="semantic", name=name, node=section_of(semantic, SemanticSection))
        for group, stage in (("contrastive", ContrastiveOptions), ("quantize", QuantizeOptions)):
            store.store(group=group, name=name, node=getattr(stage, name)())
        store.store(group="diffusion", name=name, node=section_of(getattr(DiffusionConfig, name)(), DiffusionSection))
    for name, node in SCHEMAS.items():
        store.store(name=name, node=node)


SCHEMAS: dict[str, Any] = {
    "train_guide_schema": TrainGuide,
    "pretrain_diffusion_schema": PretrainDiffusion,
    "train_semantic_schema": TrainSemantic,
    "eval_recon_schema": EvalReconConfig,
    "reconstruct_schema": ReconstructConfig,
    "tokenize_corpus_schema": TokenizeConfig,
    "detokenize_schema": DetokenizeConfig,
    "inspect_tokens_schema": InspectConfig,
    "benchmark_schema": BenchmarkConfig,
    "guide_rates_schema": GuideRatesConfig,
    "decode_sweep_schema": DecodeSweepConfig,
    "correction_schema": CorrectionConfig,
    "figures_schema": FiguresConfig,
    "eval_alignment_schema": EvalAlignmentConfig,
    "train_lm_schema": TrainLMConfig,
    "generate_schema": GenerateConfig,
    "complete_schema": CompleteConfig,
    "caption_schema": CaptionConfig,
    "eval_lm_schema": EvalLM,
}


def quiet_hydra(name: str) -> HydraConf:
    """Hydra's own settings: no log files, no folder for each run, and the working directory stays as it is."""
    settings = HydraConf(run=RunDir("."), output_subdir=None, job=JobConf(name=name, chdir=False))
    quiet = {"job_logging": "none", "hydra_logging": "none"}
    settings.defaults = [
        {group: quiet.get(group, choice) for group, choice in entry.items()} for entry in settings.defaults
    ]
    return settings


def prepare(name: str) -> None:
    """Register what `configs/NAME.yaml` refers to."""
    register_schemas()
    ConfigStore.instance().store(group="hydra", name="config", node=quiet_hydra(name))


def schema_of(name: str, arguments: Sequence[str]) -> type | None:
    """The dataclass of a command. Of the studies it is that of the chosen study, if one is chosen."""
    chosen = dict(map(split, arguments)).get("study", "") if name == "eval_study" else name
    return SCHEMAS.get(f"{chosen}_schema")


def group_choices(name: str) -> dict[str, list[str]]:
    """The groups that `configs/NAME.yaml` lists, such as `model`, and the values of each."""
    choices = {}
    for entry in OmegaConf.load(CONFIG_DIR / f"{name}.yaml").defaults:
        if OmegaConf.is_dict(entry):
            (group,) = entry
            stored = ConfigStore.instance().repo.get(group, {})
            files = {path.stem for path in (CONFIG_DIR / group).glob("*.yaml")}
            choices[str(group)] = sorted(files | {Path(one).stem for one in stored})
    return choices


def compose(name: str, overrides: Sequence[str]) -> Any:
    """The configuration of a command after overrides, without running it. Raises HybridTokenizerError on a mistake in them."""
    prepare(name)
    given = literal_text(overrides, option_types(schema_of(name, overrides)))
    try:
        with hydra.initialize_config_dir(config_dir=str(CONFIG_DIR), version_base="1.3"):
            return hydra.compose(name, overrides=given)
    except (HydraException, OmegaConfBaseException) as error:
        raise HybridTokenizerError(explain(error, name, overrides)) from None


def command(name: str) -> Callable[[Callable[[Any], None]], Callable[[], None]]:
    """Run a function of a finished dataclass as a Hydra command whose defaults are `configs/NAME.yaml`.

    Each user error is one line on stderr. Hydra's own `--hydra-help`, `--cfg job` and `-m` keep working.
    """

    def decorate(job: Callable[[Any], None]) -> Callable[[], None]:
        def task(composed: Any) -> None:
            try:
                typed = OmegaConf.to_container(composed)
                if (expanded := with_home(typed)) != typed:
                    composed.merge_with(expanded)
                config = OmegaConf.to_object(composed)
                mark_outputs(config)
                job(config)
            except (HybridTokenizerError, OmegaConfBaseException) as error:
                raise SystemExit(f"error: {one_line(error)}") from None

        def run() -> None:
            os.environ["HYDRA_FULL_ERROR"] = "1"  # otherwise Hydra prints several lines and exits by itself
            if isinstance(sys.stdout, io.TextIOWrapper):  # a path of the user's need not be UTF-8
                sys.stdout.reconfigure(errors="backslashreplace")
            prepare(name)
            typed = sys.argv[1:]
            sys.argv = [sys.argv[0], *literal_text(typed, option_types(schema_of(name, typed)))]
            try:
                check_added(typed, name)
                hydra.main(version_base="1.3", config_path=str(CONFIG_DIR), config_name=name)(task)()
            except (HydraException, OmegaConfBaseException, HybridTokenizerError) as error:
                program = sys.argv[0] if sys.argv[0].startswith(PROGRAM) else f"python {sys.argv[0]}"
                text = explain(error, name, typed)
                see = "" if text.endswith("?") else f"; see {program} --help"
                raise SystemExit(f"error: {text}{see}") from None

        return run

    return decorate


def mark_outputs(config: Any) -> None:
    """Make and mark the folder that a command writes to, so that its pictures do not become data of a later run.

    Raises where it cannot be written, or is the folder of the command's own images.
    """
    folder, data = getattr(config, "output_dir", None), getattr(config, "data", None)
    if folder is None:
        return
    from hybrid_tokenizer.data.folders import mark_output

    sources = [getattr(config, name, None) for name in ("input", "semantic_of")]
    sources += [getattr(data, name, None) for name in ("root", "val_root")]
    listed = [one for source in sources for one in (source if isinstance(source, list) else [source])]
    mark_output(folder, listed)


def check_added(arguments: Sequence[str], name: str) -> None:
    """Raise on `+key=value` whose key no part of the configuration takes, which would otherwise have no effect."""
    if unknown := unknown_addition(arguments, option_types(schema_of(name, arguments)), group_choices(name)):
        raise HybridTokenizerError(unknown)


def explain(error: Exception, name: str, arguments: Sequence[str]) -> str:
    """An error of composing a configuration in one line: which argument, why, and what was probably meant."""
    if isinstance(error, HybridTokenizerError):
        return one_line(error)
    types, groups = option_types(schema_of(name, arguments)), group_choices(name)
    if not types:  # the options are those of the study, which is not chosen, or misspelt
        chosen = [one for one in arguments if split(one)[0] == "study"]
        if not chosen:
            return f"study has no value; give study={'|'.join(groups['study'])}"
        arguments = chosen
    unknown = explain_unknown(arguments, types, groups)
    if unknown is not None:
        return unknown
    if isinstance(error, OverrideParseException):
        return shorten_names(
            f"{error.override} cannot be read ({error.message.splitlines()[0]}); put the value in quotes: "
            f"{how_to_quote(error.override)}"
        )
    cause = first_line(error.__cause__) if error.__cause__ is not None else one_line(error)
    return explain_value(str(error), cause, types) or one_line(error)


def one_line(error: Exception) -> str:
    """An error's text without line breaks, OmegaConf's internal names and the traceback that a loader worker puts before it."""
    if isinstance(error, MissingMandatoryValue) and error.full_key:
        return f"{error.full_key} has no value; give {error.full_key}=..."
    text = str(error).split("full_key:")[0]
    text = text.rpartition(f"{HybridTokenizerError.__module__}.{HybridTokenizerError.__name__}: ")[2]
    return shorten_names(" ".join(text.split()))
