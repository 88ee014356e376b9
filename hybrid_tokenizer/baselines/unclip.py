"""SEED-2's decoder: stable unCLIP, whose U-Net takes one image embedding beside the states of the empty prompt."""

from pathlib import Path
from typing import Any

import torch
from diffusers.models.embeddings import get_timestep_embedding
from jaxtyping import Float
from torch import Tensor, nn

from hybrid_tokenizer.baselines.sampling import Condition, load_scheduler, sample
from hybrid_tokenizer.checkpoints.libraries import load_diffusers_model
from hybrid_tokenizer.diffusion.pretrained import null_condition_of_text_encoder
from hybrid_tokenizer.errors import HybridTokenizerError


class UnclipDecoder(nn.Module):
    """What diffusers' `StableUnCLIPImg2ImgPipeline` computes from `image_embeds`, without its image encoder.

    null_states: of the empty prompt, for the condition and for guidance alike. Guidance sets the image embedding to zero.
    """

    def __init__(
        self, unet: nn.Module, vae: nn.Module, normalizer: nn.Module, noising_scheduler: Any, scheduler: Any,
        null_states: Float[Tensor, "1 n d"],
    ):  # fmt: skip
        super().__init__()
        self.unet, self.vae, self.normalizer = unet, vae, normalizer
        self.noising_scheduler, self.scheduler = noising_scheduler, scheduler
        self.register_buffer("null_states", null_states)

    @property
    def embedding_width(self) -> int:
        """Of the image embedding."""
        return self.normalizer.config.embedding_dim

    def class_labels(
        self, image_embeds: Float[Tensor, "b d"], noise_level: int, generators: list[torch.Generator]
    ) -> Float[Tensor, "b w"]:
        """The normalised embedding with noise of that level (not quite none at level 0), and the embedding of the level."""
        noise = torch.cat([torch.randn(1, self.embedding_width, generator=one) for one in generators]).to(image_embeds)
        levels = torch.full((len(image_embeds),), noise_level, device=image_embeds.device)
        noisy = self.noising_scheduler.add_noise(self.normalizer.scale(image_embeds), noise, levels)
        level_embeds = get_timestep_embedding(
            levels, self.embedding_width, flip_sin_to_cos=True, downscale_freq_shift=0
        )
        return torch.cat([self.normalizer.unscale(noisy), level_embeds.to(noisy)], dim=1)

    @torch.no_grad()
    def decode(
        self,
        image_embeds: Float[Tensor, "b d"],
        generators: list[torch.Generator],
        *,
        num_inference_steps: int = 20,
        guidance_scale: float = 10.0,
        noise_level: int = 0,
    ) -> Float[Tensor, "b 3 h w"]:
        """Images of the model's own size in [-1, 1]. One generator per image draws the embedding's noise, then the latents'."""
        if image_embeds.shape[1] != self.embedding_width:
            raise HybridTokenizerError(
                f"image_embeds are {image_embeds.shape[1]} wide, this unCLIP model takes {self.embedding_width}; use the model "
                "that the tokenizer was trained for (stable-diffusion-2-1-unclip for SEED-2)"
            )
        labels = self.class_labels(image_embeds, noise_level, generators)
        states = self.null_states.expand(len(labels), -1, -1)
        side = self.unet.config.sample_size
        latents = sample(
            self.unet, self.scheduler, Condition(states, labels=labels),
            Condition(states, labels=torch.zeros_like(labels)), (side, side),
            num_inference_steps=num_inference_steps, guidance_scale=guidance_scale, generators=generators,
        )  # fmt: skip
        return self.vae.decode(latents / self.vae.config.scaling_factor).sample.float().clamp(-1, 1)


def load_unclip(folder: Path) -> UnclipDecoder:
    """A folder of stable-diffusion-2-1-unclip in diffusers' form; its image encoder may be missing."""
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from diffusers.pipelines.stable_diffusion import StableUnCLIPImageNormalizer

    unet = load_diffusers_model(folder / "unet", UNet2DConditionModel)
    normalizer = load_diffusers_model(folder / "image_normalizer", StableUnCLIPImageNormalizer)
    read, width = unet.config.projection_class_embeddings_input_dim, normalizer.config.embedding_dim
    if unet.config.class_embed_type != "projection" or read != 2 * width:
        raise HybridTokenizerError(
            f"the U-Net in {folder} has class_embed_type={unet.config.class_embed_type!r} and takes {read} numbers, expected "
            f"'projection' and {2 * width}: it is no unCLIP model; use stable-diffusion-2-1-unclip"
        )
    return UnclipDecoder(
        unet,
        load_diffusers_model(folder / "vae", AutoencoderKL),
        normalizer,
        load_scheduler(folder / "image_noising_scheduler"),
        load_scheduler(folder / "scheduler"),
        null_condition_of_text_encoder(folder),
    ).eval()
