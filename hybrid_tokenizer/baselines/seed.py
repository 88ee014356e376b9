"""SEED (Ge et al. 2023) as published: v1 decodes by Stable Diffusion 1.4 with PLMS from pure noise, SEED-2 by unCLIP."""

import math
from pathlib import Path

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from hybrid_tokenizer.baselines.sampling import Condition, same_generators, sample
from hybrid_tokenizer.baselines.unclip import UnclipDecoder, load_unclip
from hybrid_tokenizer.checkpoints.files import CONFIG_NAME, fill, read_foreign
from hybrid_tokenizer.checkpoints.keys import blip2, seed
from hybrid_tokenizer.diffusion import DiffusionDecoder
from hybrid_tokenizer.errors import HybridTokenizerError
from hybrid_tokenizer.images import resize_bicubic
from hybrid_tokenizer.semantic import SemanticTokenizer
from hybrid_tokenizer.semantic.conversion import PUBLISHED, HeadCounts, seed_config

FILES = ("eva_vit_g.pth", "causal_qformer.pth", "seed_tokenizer.pth")
FILES2 = ("eva_vit_g.pth", "seed_quantizer.pt")
DIFFUSION_FOLDER, UNCLIP_FOLDER = "stable-diffusion-v1-4", "stable-diffusion-2-1-unclip"
SEMANTIC_FOLDER = "semantic"


class SemanticRow(nn.Module):
    """32 tokens per image."""

    native_size = None
    name: str
    semantic: SemanticTokenizer

    def encode(self, images: Float[Tensor, "b 3 h w"], generator: torch.Generator | None = None) -> Int[Tensor, "b n"]:
        """Semantic indices. Deterministic: the generator is not used."""
        return self.semantic.encode(images.to(next(self.semantic.parameters()).device))

    def num_tokens(self, tokens: Int[Tensor, "b n"]) -> Int[Tensor, "b"]:
        """32 for each image."""
        return torch.full((len(tokens),), tokens.shape[1])

    def bits(self, tokens: Int[Tensor, "b n"]) -> Float[Tensor, "b"]:
        """log2 of the codebook's size for each token."""
        return self.num_tokens(tokens).float() * math.log2(self.semantic.codebook_size)

    def codebook_indices(self, tokens: Int[Tensor, "b n"]) -> dict[str, tuple[Int[Tensor, "b n"], int]]:
        """The indices, and the codebook's size."""
        return {"semantic": (tokens, self.semantic.codebook_size)}


class SeedRow(SemanticRow):
    """SEED v1. Steps and guidance default to the authors' values."""

    def __init__(
        self, name: str, semantic: SemanticTokenizer, diffusion: DiffusionDecoder, num_inference_steps: int = 50,
        guidance_scale: float = 7.5,
    ):  # fmt: skip
        super().__init__()
        from diffusers import PNDMScheduler

        made, read = semantic.config.generation_width, diffusion.config.cross_attention_dim
        if made != read:
            raise HybridTokenizerError(
                f"the tokenizer makes embeddings of width {made}, the U-Net takes width {read}; give Stable Diffusion 1.4"
            )
        self.name = name
        self.semantic = semantic
        self.diffusion = diffusion
        self.num_inference_steps = num_inference_steps
        self.guidance_scale = guidance_scale
        config = diffusion.schedule.diffusers_config
        shared = ("num_train_timesteps", "beta_start", "beta_end", "beta_schedule", "set_alpha_to_one", "steps_offset",
                  "timestep_spacing", "prediction_type")  # fmt: skip
        # without the Runge-Kutta warm-up PNDM is PLMS
        self.scheduler = PNDMScheduler(skip_prk_steps=True, **{key: config[key] for key in shared})

    @property
    def render_size(self) -> int:
        """The diffusion model's own size."""
        return self.diffusion.config.trained_size or 512

    @torch.no_grad()
    def decode(
        self, tokens: Int[Tensor, "b n"], size: tuple[int, int], generator: torch.Generator | None = None
    ) -> Float[Tensor, "b 3 H W"]:
        """At the diffusion model's own size, then bicubic to `size`."""
        states = self.semantic.decode(tokens)
        null = self.diffusion.null_condition.expand(len(states), -1, -1)
        side = self.render_size // self.diffusion.config.vae_factor
        latents = sample(
            self.diffusion.unet, self.scheduler, Condition(states), Condition(null), (side, side),
            num_inference_steps=self.num_inference_steps, guidance_scale=self.guidance_scale,
            generators=same_generators(len(states), generator),
        )  # fmt: skip
        return resize_bicubic(self.diffusion.decode_latents(latents).clamp(-1, 1), size).clamp(-1, 1)


class Seed2Row(SemanticRow):
    """SEED-2: one embedding per image, decoded by stable unCLIP. Steps and guidance default to the authors' values."""

    def __init__(
        self, name: str, semantic: SemanticTokenizer, unclip: UnclipDecoder, num_inference_steps: int = 20,
        guidance_scale: float = 10.0,
    ):  # fmt: skip
        super().__init__()
        if semantic.config.generation_width != unclip.embedding_width:
            raise HybridTokenizerError(
                f"the tokenizer makes an embedding of width {semantic.config.generation_width}, the unCLIP model takes width "
                f"{unclip.embedding_width}; give stable-diffusion-2-1-unclip"
            )
        self.name, self.semantic, self.unclip = name, semantic, unclip
        self.num_inference_steps, self.guidance_scale = num_inference_steps, guidance_scale

    @torch.no_grad()
    def decode(
        self, tokens: Int[Tensor, "b n"], size: tuple[int, int], generator: torch.Generator | None = None
    ) -> Float[Tensor, "b 3 H W"]:
        """At the diffusion model's own size, then bicubic to `size`."""
        decoded = self.unclip.decode(
            self.semantic.decode(tokens)[:, 0].float(), same_generators(len(tokens), generator),
            num_inference_steps=self.num_inference_steps, guidance_scale=self.guidance_scale,
        )  # fmt: skip
        return resize_bicubic(decoded, size).clamp(-1, 1)


def load_seed_row(name: str, folder: Path, heads: HeadCounts = PUBLISHED) -> SeedRow:
    """From SEED's three files, or a converted `semantic/` folder, beside a folder of Stable Diffusion 1.4."""
    diffusion = DiffusionDecoder.from_pretrained(folder / DIFFUSION_FOLDER)
    return SeedRow(name, load_seed_tokenizer(folder, FILES, "seed1", heads), diffusion).eval()


def load_seed2_row(name: str, folder: Path, heads: HeadCounts = PUBLISHED) -> Seed2Row:
    """From SEED-2's two files, or a converted `semantic/` folder, beside a folder of stable unCLIP."""
    unclip = load_unclip(folder / UNCLIP_FOLDER)
    return Seed2Row(name, load_seed_tokenizer(folder, FILES2, "seed2", heads), unclip).eval()


def load_seed_tokenizer(folder: Path, files: tuple[str, ...], wanted: str, heads: HeadCounts) -> SemanticTokenizer:
    """A converted `semantic/` folder, or the published files."""
    if (folder / SEMANTIC_FOLDER / CONFIG_NAME).is_file():
        return SemanticTokenizer.from_pretrained(folder / SEMANTIC_FOLDER)
    return build_seed_tokenizer([read_foreign(folder / file) for file in files], str(folder), heads, wanted)


def build_seed_tokenizer(
    states: list[dict[str, Tensor]], source: str, heads: HeadCounts, wanted: str = "seed1"
) -> SemanticTokenizer:
    """The tokenizer of the family `wanted` from the state dicts of its files, in any order."""
    joined = blip2.join_files(states)
    variant = seed.check_variant(joined, wanted)
    state = seed.convert_seed(joined, variant)
    config = seed_config(state, variant, seed.reverse_layers(joined, variant), heads)
    return fill(lambda: SemanticTokenizer(config), state, source)
