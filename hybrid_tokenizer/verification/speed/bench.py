"""What the rows of the benchmark share: the tokenizer, the pictures, and the measuring of a contest."""

import copy
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from hybrid_tokenizer.data import sample_photographs
from hybrid_tokenizer.diffusion import DiffusionConfig, DiffusionDecoder
from hybrid_tokenizer.evaluation.images import EvalImages
from hybrid_tokenizer.guide import GuideConfig, GuideTokenizer
from hybrid_tokenizer.hybrid import HybridTokenizer
from hybrid_tokenizer.presets import list_presets
from hybrid_tokenizer.semantic import SemanticConfig, SemanticTokenizer
from hybrid_tokenizer.verification.speed.alternatives import PlainPipeline
from hybrid_tokenizer.verification.speed.config import BenchmarkConfig
from hybrid_tokenizer.verification.speed.timing import Contest, measure


@dataclass
class Bench:
    """The tokenizer and the pictures, made when the first row needs them."""

    config: BenchmarkConfig
    device: torch.device

    @cached_property
    def tokenizer(self) -> HybridTokenizer:
        """The preset, with random weights where its own are not installed: speed does not depend on them."""
        name = self.config.model_name
        if name == "tiny" and name not in list_presets():
            return random_tokenizer(GuideConfig.tiny(), SemanticConfig.tiny(), DiffusionConfig.tiny()).to(self.device)
        return HybridTokenizer.from_pretrained(name).to(self.device)

    @cached_property
    def plain(self) -> PlainPipeline:
        """The same weights in a user's own code."""
        return PlainPipeline(self.tokenizer)

    @cached_property
    def fast(self) -> HybridTokenizer:
        """The tokenizer as a user with many images would set it up."""
        if not self.config.compile:
            return self.tokenizer
        return copy.deepcopy(self.tokenizer).compile(self.config.compile_mode)

    @cached_property
    def eval_images(self) -> EvalImages:
        """The pictures as evaluation reads them."""
        size, count = self.config.image_size, self.config.batch_size
        return EvalImages.open(self.config.data_root, size, max_images=count, progress=False)

    def photographs_folder(self, scratch: Path) -> Path:
        """The folder of images, or one in `scratch` with the built-in photographs."""
        if self.config.data_root is not None:
            return Path(self.config.data_root)
        folder = scratch / "images"
        folder.mkdir()
        for name, photograph in sample_photographs().items():
            photograph.save(folder / f"{name}.png")
        return folder

    @cached_property
    def images(self) -> Float[Tensor, "b 3 r r"]:
        """One batch. Pictures are repeated, mirrored, where there are too few."""
        pictures = torch.stack([self.eval_images[i] for i in range(len(self.eval_images))])
        while len(pictures) < self.config.batch_size:
            pictures = torch.cat([pictures, pictures.flip(-1)])
        return pictures[: self.config.batch_size].to(self.device)

    def measure(self, contest: Contest) -> dict[str, Any]:
        """The row of a contest, after a warm-up where the first run is slower."""
        warm_up = 1 if self.config.compile or self.device.type == "cuda" else 0
        return measure(contest, self.config.repeats, self.device, warm_up)

    def measure_fast(self, contest: Contest) -> dict[str, Any]:
        """The row of a contest in which `fast` takes part."""
        return self.measure(contest) | {"compiled": self.config.compile}


def random_tokenizer(
    guide: GuideConfig, semantic: SemanticConfig, diffusion: DiffusionConfig, name: str = "tiny"
) -> HybridTokenizer:
    """A tokenizer of these sizes with random weights."""
    torch.manual_seed(0)
    decoder = DiffusionDecoder(diffusion)
    decoder.null_condition.normal_()
    return HybridTokenizer(GuideTokenizer(guide), SemanticTokenizer(semantic), decoder, name=f"{name} (random weights)")


def sd15_configs(reduced: bool) -> tuple[GuideConfig, SemanticConfig, DiffusionConfig]:
    """The paper's sizes, or the same structure with few narrow layers, which a CPU runs in seconds."""
    guide, semantic, diffusion = GuideConfig.sd15(), SemanticConfig.seed1(), DiffusionConfig.sd15()
    if not reduced:
        return guide, semantic, diffusion
    width = 32
    levels = {"block_out_channels": [width] * 4, "layers_per_block": 1}
    return (
        replace(guide, encoder_channels=[width] * 4, decoder_channels=[width] * 4, encoder_layers=1, decoder_layers=1),
        replace(
            semantic, image_size=28, vision_width=width, vision_layers=1, vision_heads=2, vision_mlp_width=width, width=width,
            qformer_layers=2, qformer_heads=2, qformer_mlp_width=width, decoder_layers=1, decoder_heads=2,
            decoder_mlp_width=width, reverse_layers=1, generation_width=width,
        ),
        replace(
            diffusion,
            unet={**diffusion.unet, **levels, "cross_attention_dim": width, "attention_head_dim": 2},
            vae={**diffusion.vae, **levels},
        ),
    )  # fmt: skip
