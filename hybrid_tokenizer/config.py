"""Hydra schemas of the commands, and the one decorator that runs them. The only library file that imports hydra.

`configs/NAME.yaml` needs only a defaults list (its schema, `model: tiny` where it has one, `_self_`) and what differs from
the dataclasses. Logging, run folders and the working directory are set once, in `quiet_hydra`, for every command.
A command is `@command("NAME") def main(config: Schema) -> None` in `hybrid_tokenizer/commands/`.
"""

import dataclasses
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import hydra
from hydra.conf import HydraConf, JobConf, RunDir
from hydra.core.config_store import ConfigStore
from hydra.errors import HydraException
from omegaconf import MISSING, OmegaConf
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException

from hybrid_tokenizer.data.config import DataConfig
from hybrid_tokenizer.diffusion.config import DiffusionConfig
from hybrid_tokenizer.errors import HybridTokenizerError
from hybrid_tokenizer.evaluation.config import (
    EvalAlignmentConfig,
    EvalCorrectionConfig,
    EvalDecodeConfig,
    EvalGuideConfig,
    EvalReconConfig,
    FiguresConfig,
    ReconstructConfig,
)
from hybrid_tokenizer.guide.config import GuideConfig
from hybrid_tokenizer.semantic.config import SemanticConfig
from hybrid_tokenizer.training.config import TrainingConfig
from hybrid_tokenizer.training.probe import TrainProbeConfig
from hybrid_tokenizer.training.weights import (
    ContrastiveWeights,
    GuideLossWeights,
    QuantizeStage,
    UNetLossWeights,
    VAELossWeights,
)
from hybrid_tokenizer.verification.speed.config import BenchmarkConfig

CONFIG_DIR = Path(__file__).resolve().parents[1] / "configs"


@dataclass
class GuideSection(GuideConfig):
    """`init` is a folder of weights to start from: a GuideTokenizer, or an f8 MoVQ for a warm start."""

    init: str | None = None


@dataclass
class SemanticSection(SemanticConfig):
    """`init` is a folder with a SemanticTokenizer to start from."""

    init: str | None = None


@dataclass
class DiffusionSection(DiffusionConfig):
    """`init` is a folder with a DiffusionDecoder, or a Stable Diffusion 1.x folder, to start from."""

    init: str | None = None


@dataclass
class TrainGuide:
    model_name: str = MISSING
    output_dir: str = MISSING
    data: DataConfig = field(default_factory=DataConfig)
    guide: GuideSection = field(default_factory=GuideSection)
    loss: GuideLossWeights = field(default_factory=GuideLossWeights)
    training: TrainingConfig = field(default_factory=TrainingConfig)


@dataclass
class TrainSemantic:
    """`stage: contrastive` is eq. 6, `stage: quantize` eqs. 7 and 8 on the tokenizer in `semantic.init`."""

    stage: str = MISSING
    model_name: str = MISSING
    output_dir: str = MISSING
    data: DataConfig = field(default_factory=DataConfig)
    semantic: SemanticSection = field(default_factory=SemanticSection)
    contrastive: ContrastiveWeights = field(default_factory=ContrastiveWeights)
    quantize: QuantizeStage = field(default_factory=QuantizeStage)
    training: TrainingConfig = field(default_factory=TrainingConfig)


@dataclass
class PretrainDiffusion:
    """`stage: vae` trains the VAE; `stage: unet` the U-Net, on the latents of the VAE in `diffusion.init`.

    With `guide_folder`, a trained guide tokenizer, the U-Net learns to read its guides.
    """

    stage: str = MISSING
    model_name: str = MISSING
    output_dir: str = MISSING
    data: DataConfig = field(default_factory=DataConfig)
    diffusion: DiffusionSection = field(default_factory=DiffusionSection)
    semantic_folder: str | None = None
    guide_folder: str | None = None
    vae_loss: VAELossWeights = field(default_factory=VAELossWeights)
    unet: UNetLossWeights = field(default_factory=UNetLossWeights)
    training: TrainingConfig = field(default_factory=TrainingConfig)


@dataclass
class TrainDecoder:
    """The U-Net of `decoder` (a DiffusionDecoder or Stable Diffusion 1.x folder, or a hub id) learns to read guides.

    `semantic_folder` and `guide_folder` hold the trained branches whose tokens it will decode. Captions are not read.
    """

    decoder: str = MISSING
    semantic_folder: str = MISSING
    guide_folder: str = MISSING
    output_dir: str = MISSING
    data: DataConfig = field(default_factory=DataConfig)
    unet: UNetLossWeights = field(default_factory=UNetLossWeights)
    training: TrainingConfig = field(default_factory=TrainingConfig)


def component_config(section: Any, kind: type) -> Any:
    """The component's own configuration out of a section that adds `init`."""
    return kind(**{f.name: getattr(section, f.name) for f in dataclasses.fields(kind)})


def section_of(config: Any, kind: type) -> Any:
    """The reverse: a section with the component's numbers and no `init`."""
    return kind(**{f.name: getattr(config, f.name) for f in dataclasses.fields(config)})


def register_schemas() -> None:
    """Names that the files of `configs/` refer to. The presets' numbers live with the components, not in YAML."""
    store = ConfigStore.instance()
    for name in ("tiny", "sd15"):
        store.store(group="guide", name=name, node=section_of(getattr(GuideConfig, name)(), GuideSection))
        semantic = SemanticConfig.tiny() if name == "tiny" else SemanticConfig.seed1(cosine_stack=True)
        store.store(group="semantic", name=name, node=section_of(semantic, SemanticSection))
        for group, stage in (("contrastive", ContrastiveWeights), ("quantize", QuantizeStage)):
            store.store(group=group, name=name, node=getattr(stage, name)())
        store.store(group="diffusion", name=name, node=section_of(getattr(DiffusionConfig, name)(), DiffusionSection))
    for name, node in SCHEMAS.items():
        store.store(name=name, node=node)


SCHEMAS: dict[str, Any] = {
    "train_guide_schema": TrainGuide,
    "pretrain_diffusion_schema": PretrainDiffusion,
    "train_decoder_schema": TrainDecoder,
    "train_semantic_schema": TrainSemantic,
    "eval_recon_schema": EvalReconConfig,
    "reconstruct_schema": ReconstructConfig,
    "eval_decode_schema": EvalDecodeConfig,
    "benchmark_schema": BenchmarkConfig,
    "make_figures_schema": FiguresConfig,
    "eval_correction_schema": EvalCorrectionConfig,
    "eval_guide_schema": EvalGuideConfig,
    "eval_alignment_schema": EvalAlignmentConfig,
    "train_probe_schema": TrainProbeConfig,
}


def quiet_hydra(name: str) -> HydraConf:
    """Hydra's own settings: no log files, no folder for each run, and the working directory stays as it is."""
    settings = HydraConf(run=RunDir("."), output_subdir=None, job=JobConf(name=name, chdir=False))
    quiet = {"job_logging": "none", "hydra_logging": "none"}
    settings.defaults = [
        {group: quiet.get(group, choice) for group, choice in entry.items()} for entry in settings.defaults
    ]
    return settings


def command(name: str) -> Callable[[Callable[[Any], None]], Callable[[], None]]:
    """Run a function of a finished dataclass as a Hydra command whose defaults are `configs/NAME.yaml`.

    Each user error is one line on stderr. Hydra's own `--help`, `--cfg job` and `-m` keep working.
    """

    def decorate(job: Callable[[Any], None]) -> Callable[[], None]:
        def task(composed: Any) -> None:
            try:
                job(OmegaConf.to_object(composed))
            except (HybridTokenizerError, OmegaConfBaseException) as error:
                raise SystemExit(f"error: {one_line(error)}") from None

        def run() -> None:
            os.environ["HYDRA_FULL_ERROR"] = "1"  # otherwise Hydra prints several lines and exits by itself
            register_schemas()
            ConfigStore.instance().store(group="hydra", name="config", node=quiet_hydra(name))
            try:
                hydra.main(version_base="1.3", config_path=str(CONFIG_DIR), config_name=name)(task)()
            except (HydraException, OmegaConfBaseException, HybridTokenizerError) as error:
                remedy = f"see python {sys.argv[0]} --help"
                raise SystemExit(f"error: {one_line(error)}; {remedy}") from None

        return run

    return decorate


def one_line(error: Exception) -> str:
    """An error's text without line breaks, OmegaConf's internal names, and the traceback that loader workers put before it."""
    if isinstance(error, MissingMandatoryValue) and error.full_key:
        return f"{error.full_key} has no value; give {error.full_key}=..."
    text = str(error).split("full_key:")[0]
    text = text.rpartition(f"{HybridTokenizerError.__module__}.{HybridTokenizerError.__name__}: ")[2]
    return " ".join(text.split())
