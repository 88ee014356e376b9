"""Stage `vae`: trains the embedded preset's VAE. Stable Diffusion comes with its own."""

from pathlib import Path
from typing import Any

import torch
from einops import rearrange
from torch import Tensor

from hybrid_tokenizer.diffusion import DiffusionDecoder
from hybrid_tokenizer.images import resize_area
from hybrid_tokenizer.metrics.pixel import psnr
from hybrid_tokenizer.perceptual import EfficientNetDistance, feature_distance
from hybrid_tokenizer.training.config import VAELossOptions
from hybrid_tokenizer.training.objective import Objective, Validated


class VAEObjective(Objective):
    """Trains the VAE of a `DiffusionDecoder` and leaves the U-Net as it is. Export measures the latent normalisation."""

    decoder: DiffusionDecoder
    next_command = "hybrid-tokenizer pretrain-diffusion stage=unet diffusion.init={final}"

    def __init__(self, decoder: DiffusionDecoder, options: VAELossOptions):
        super().__init__()
        self.refer_to(decoder=decoder)
        self.model, self.options = decoder.vae, options
        self.freeze(**({"perceptual": EfficientNetDistance("lite0")} if options.perceptual else {}))

    def encode(self, images: Tensor) -> Tensor:
        """Latents before normalisation."""
        encoded = self.model.encode(images)
        return encoded.latents if hasattr(encoded, "latents") else encoded.latent_dist.mode()

    def forward(self, batch: dict[str, Any], step: int) -> dict[str, Tensor]:
        images = batch["images"]
        latents = self.encode(images)
        noise = torch.randn(latents.shape, device=latents.device).to(latents.dtype)
        decoded = self.model.decode(latents + self.options.latent_noise * noise).sample.float()
        latent_size = tuple(latents.shape[-2:])
        losses = {
            "recon": (decoded - images).abs().mean(),
            "colour": (resize_area(decoded, latent_size) - resize_area(images, latent_size)).square().mean(),
            "latent": latents.float().square().mean(),
        }
        total = losses["recon"] + self.options.colour * losses["colour"] + self.options.latent * losses["latent"]
        if self.options.perceptual:
            losses["perceptual"] = self.frozen["perceptual"](decoded, images).mean()
            total = total + self.options.perceptual * losses["perceptual"]
        return {**losses, "total": total}

    def validate(self, batches: list[dict[str, Any]]) -> Validated:
        """PSNR and feature distance of images that went through the VAE."""
        values, distances, rows = [], [], []
        for batch in batches:
            images = batch["images"]
            decoded = self.model.decode(self.encode(images)).sample.float().clamp(-1, 1)
            values.append(psnr(decoded, images))
            if self.options.perceptual:
                distances.append(feature_distance(self.frozen["perceptual"], decoded, images))
            rows.append(torch.stack([images, decoded], dim=1))
        figures = {"psnr": torch.cat(values).mean().item()}
        if distances:
            figures["effnet_lite0_distance"] = torch.cat(distances).mean().item()
        return Validated(figures, torch.cat(rows)[:8])

    def export(self, folder: Path, val_batches: list[dict[str, Any]]) -> None:
        """A whole DiffusionDecoder folder, whose latents have zero mean and unit deviation in each channel."""
        device = next(self.model.parameters()).device
        with torch.no_grad():
            latents = torch.cat([self.encode(batch["images"].to(device)).float().cpu() for batch in val_batches])
        by_channel = rearrange(latents, "b c h w -> c (b h w)").double()
        shift, deviation = by_channel.mean(1), by_channel.std(1)
        self.decoder.set_latent_scale(shift.tolist(), (1 / deviation).tolist())
        self.decoder.save_pretrained(folder)
