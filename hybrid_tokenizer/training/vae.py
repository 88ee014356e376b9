"""Branch III's VAE, for the embedded preset only: the paper's Stable Diffusion comes with one."""

from pathlib import Path
from typing import Any

import torch
from einops import rearrange
from torch import Tensor

from hybrid_tokenizer.diffusion import DiffusionDecoder
from hybrid_tokenizer.images import resize_area
from hybrid_tokenizer.metrics.pixel import psnr
from hybrid_tokenizer.perceptual import EfficientNetDistance, efficientnet_distance
from hybrid_tokenizer.training.objective import Objective, Validated
from hybrid_tokenizer.training.weights import VAELossWeights


class VAEObjective(Objective):
    """Trains the VAE of a `DiffusionDecoder`, which keeps its U-Net; the latent normalisation is measured on export."""

    def __init__(self, decoder: DiffusionDecoder, weights: VAELossWeights):
        super().__init__()
        self.decoder = (decoder,)  # a tuple hides the U-Net from this module: it must not be trained, moved or saved
        self.model, self.weights = decoder.vae, weights
        self.freeze(**({"perceptual": EfficientNetDistance("lite0")} if weights.perceptual else {}))

    def encode(self, images: Tensor) -> Tensor:
        """Latents before normalisation."""
        encoded = self.model.encode(images)
        return encoded.latents if hasattr(encoded, "latents") else encoded.latent_dist.mode()

    def forward(self, batch: dict[str, Any], step: int) -> dict[str, Tensor]:
        images = batch["images"]
        latents = self.encode(images)
        noise = torch.randn(latents.shape).to(latents)
        decoded = self.model.decode(latents + self.weights.latent_noise * noise).sample.float()
        latent_size = tuple(latents.shape[-2:])
        losses = {
            "recon": (decoded - images).abs().mean(),
            "colour": (resize_area(decoded, latent_size) - resize_area(images, latent_size)).square().mean(),
            "latent": latents.float().square().mean(),
        }
        total = losses["recon"] + self.weights.colour * losses["colour"] + self.weights.latent * losses["latent"]
        if self.weights.perceptual:
            losses["perceptual"] = self.frozen["perceptual"](decoded, images).mean()
            total = total + self.weights.perceptual * losses["perceptual"]
        return {**losses, "total": total}

    def validate(self, batches: list[dict[str, Any]]) -> Validated:
        """PSNR and feature distance of the round trip."""
        values, distances, rows = [], [], []
        for batch in batches:
            images = batch["images"]
            decoded = self.model.decode(self.encode(images)).sample.float().clamp(-1, 1)
            values.append(psnr(decoded, images))
            if self.weights.perceptual:
                distances.append(efficientnet_distance(self.frozen["perceptual"], decoded, images))
            rows.append(torch.stack([images, decoded], dim=1))
        figures = {"psnr": torch.cat(values).mean().item()}
        if distances:
            figures["effnet_lite0_distance"] = torch.cat(distances).mean().item()
        return Validated(figures, torch.cat(rows)[:8])

    def export(self, folder: Path, val_batches: list[dict[str, Any]]) -> None:
        """A whole DiffusionDecoder folder, latents normalised to zero mean and unit deviation a channel."""
        device = next(self.model.parameters()).device
        with torch.no_grad():
            latents = torch.cat([self.encode(batch["images"].to(device)).float().cpu() for batch in val_batches])
        by_channel = rearrange(latents, "b c h w -> c (b h w)").double()
        decoder = self.decoder[0]
        shift, deviation = by_channel.mean(1), by_channel.std(1)
        decoder.set_latent_scale(shift.tolist(), (1 / deviation).tolist())
        decoder.save_pretrained(folder)
