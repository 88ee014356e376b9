"""The alternatives: what a user of diffusers, transformers, PyTorch and scikit-image would write.

They use copies of the same weights in the libraries' own memory layout, so outputs can be compared.
"""

import copy
import time

import numpy as np
import piq
import pytorch_msssim
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from skimage.metrics import peak_signal_noise_ratio, structural_similarity
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from hybrid_tokenizer.data.training import collate
from hybrid_tokenizer.guide import GuideTokenizer
from hybrid_tokenizer.hybrid import HybridTokenizer
from hybrid_tokenizer.metrics.pixel import MS_SSIM_LEAST_SIDE
from hybrid_tokenizer.perceptual import EfficientNetDistance, SqueezeNetDistance


class PlainPipeline:
    """The three branches called one after another, with diffusers' schedulers stepped in a loop."""

    def __init__(self, tokenizer: HybridTokenizer):
        self.guide, self.semantic, self.diffusion = (
            copy.deepcopy(part).to(memory_format=torch.contiguous_format)
            for part in (tokenizer.guide, tokenizer.semantic, tokenizer.diffusion)
        )
        self.diffusion.vae.disable_slicing()

    @torch.no_grad()
    def encode_one(
        self, image: Float[Tensor, "1 3 h w"]
    ) -> tuple[Int[Tensor, "1 32"], tuple[Int[Tensor, "1 _ _"], ...]]:
        """SEED's tokenizer in plain transformers calls, and the guide's in plain diffusers calls and torch.cdist."""
        semantic, guide = self.semantic, self.guide
        side = semantic.config.image_size
        pixels = F.interpolate(image, (side, side), mode="bicubic", align_corners=False, antialias=True).clamp(-1, 1)
        mean = torch.tensor([0.48145466, 0.4578275, 0.40821073], device=image.device).view(3, 1, 1)
        std = torch.tensor([0.26862954, 0.26130258, 0.27577711], device=image.device).view(3, 1, 1)
        dtype = semantic.encode_task[0].weight.dtype
        features = semantic.vision.body(pixel_values=(((pixels + 1) / 2 - mean) / std).to(dtype)).last_hidden_state
        queries = semantic.causal_qformer.query_embeds
        allowed = torch.ones(queries.shape[1], queries.shape[1], device=image.device).tril()
        mask = ((1 - allowed) * torch.finfo(dtype).min).to(dtype)[None, None]
        outputs = semantic.causal_qformer.body(
            query_embeds=queries, attention_mask=mask, encoder_hidden_states=features
        ).last_hidden_state
        semantic_indices = nearest(semantic.encode_task(outputs), codebook(semantic))
        features, codes = guide.features(image).float(), codebook(guide)
        if guide.config.guide_scales is None:
            return semantic_indices, (nearest(features, codes),)
        size = (features.shape[1], features.shape[2])
        rest, grids = features, []
        for scale, scale_size in enumerate(guide.config.scale_sizes(size)):
            grids.append(nearest(guide.to_scale(rest, scale_size, scale), codes))
            rest = rest - guide.to_full_grid(codes[grids[-1]], size, scale)
        return semantic_indices, tuple(grids)

    @torch.no_grad()
    def decode(
        self,
        semantic_indices: Int[Tensor, "b 32"],
        guide_indices: tuple[Int[Tensor, "b _ _"], ...],
        size: tuple[int, int],
        num_inference_steps: int,
        strength: float,
    ) -> Float[Tensor, "b 3 H W"]:
        """DDIM inversion with DDIMInverseScheduler, denoising with DDIMScheduler, no guidance."""
        from diffusers import DDIMInverseScheduler, DDIMScheduler

        semantic, guide, diffusion = self.semantic, self.guide, self.diffusion
        dtype = diffusion.unet.dtype
        embeds = semantic.generation(semantic.decode_task(codebook(semantic)[semantic_indices].to(dtype)))
        guide_images = (
            guide.decode(guide_indices)
            if guide.config.guide_scales
            else guide.decode_quantized(codebook(guide)[guide_indices[0]])
        )
        resized = F.interpolate(
            guide_images.float().clamp(-1, 1), size, mode="bicubic", align_corners=False, antialias=True
        )
        encoded = diffusion.vae.encode(resized.clamp(-1, 1).to(dtype))
        latents = (encoded.latents if hasattr(encoded, "latents") else encoded.latent_dist.mode()).float()
        shift, scale = (
            torch.tensor(values, device=latents.device).view(1, -1, 1, 1)
            for values in (diffusion.config.latent_shift, diffusion.config.latent_scale)
        )
        latents = (latents - shift) * scale
        guide_latents = latents

        # diffusers' inverse scheduler reads v at the wrong end of the step, so v becomes noise by hand
        settings = {**diffusion.schedule.diffusers_config, "prediction_type": "epsilon"}
        up = DDIMInverseScheduler(**{key: value for key, value in settings.items() if key != "thresholding"})
        down = DDIMScheduler(**settings)
        up.set_timesteps(num_inference_steps)
        down.set_timesteps(num_inference_steps)
        count = int(num_inference_steps * strength + 1e-6)

        def noise_of(latents: Tensor, timestep: Tensor) -> Tensor:
            inputs = torch.cat([latents, guide_latents], dim=1) if diffusion.config.guide_conditioning else latents
            output = diffusion.unet(inputs.to(dtype), timestep, encoder_hidden_states=embeds).sample.float()
            alphas = down.alphas_cumprod[timestep].to(latents).expand(len(latents))
            output = output + diffusion.linear_part(latents, guide_latents, alphas)
            if diffusion.config.prediction_type == "epsilon":
                return output
            alpha = down.alphas_cumprod[timestep]
            return alpha.sqrt() * output + (1 - alpha).sqrt() * latents

        for timestep in up.timesteps[:count]:
            latents = up.step(noise_of(latents, timestep), timestep, latents).prev_sample
        for timestep in down.timesteps[num_inference_steps - count :]:
            latents = down.step(noise_of(latents, timestep), timestep, latents).prev_sample
        return diffusion.vae.decode((latents / scale + shift).to(dtype)).sample.float().clamp(-1, 1)


def codebook(branch: nn.Module) -> Float[Tensor, "k d"]:
    """All codes of a branch."""
    indices = torch.arange(branch.codebook_size, device=next(branch.parameters()).device)
    return branch.quantizer.codes(indices)


def nearest(features: Float[Tensor, "b ... d"], codes: Float[Tensor, "k d"]) -> Int[Tensor, "b ..."]:
    """Index of the nearest code."""
    flat = features.reshape(-1, features.shape[-1]).float()
    return torch.cdist(flat, codes.float()).argmin(-1).reshape(features.shape[:-1])


def train_guide_plainly(
    model: GuideTokenizer, stream: Dataset, steps: int, batch_size: int, learning_rate: float, bf16: bool
) -> tuple[float, float]:
    """A single-process PyTorch loop on eq. 5 and the VQ loss: (seconds from the first loss to the last, first loss)."""
    device = next(model.parameters()).device
    optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate)
    draws = range(steps * batch_size)
    loader = iter(DataLoader(stream, batch_size, sampler=draws, num_workers=1, collate_fn=collate))
    weight = model.config.quantizer
    times, losses = [], []
    model.train()
    for _ in range(steps):
        images = next(loader)["images"].to(device)
        times.append(time.perf_counter())
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=bf16):
            output = model(images)
        guides = output.guide_images.float()
        target = F.interpolate(images, guides.shape[-2:], mode="area")
        quantized = output.quantized
        loss = F.mse_loss(guides, target)
        loss = (
            loss
            + weight.codebook_weight * quantized.codebook_loss
            + weight.commitment_weight * quantized.commitment_loss
        )
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return times[-1] - times[0], losses[0]


def levels_of(image: Float[Tensor, "3 h w"]) -> Float[Tensor, "3 h w"]:
    """[-1, 1] to whole levels 0..255."""
    return ((image.clamp(-1, 1) + 1) * 127.5).round()


def scikit_image_measures(
    reference: Float[Tensor, "3 h w"], reconstruction: Float[Tensor, "3 h w"]
) -> dict[str, float]:
    """SSIM and PSNR of one pair with scikit-image."""
    ours, theirs = (levels_of(x).to(torch.uint8).permute(1, 2, 0).cpu().numpy() for x in (reference, reconstruction))
    return {
        "psnr": peak_signal_noise_ratio(ours, theirs, data_range=255),
        "ssim": structural_similarity(
            ours / 255, theirs / 255, channel_axis=2, data_range=1.0, gaussian_weights=True, sigma=1.5,
            use_sample_covariance=False,
        ),
    }  # fmt: skip


@torch.no_grad()
def all_measures(
    reference: Float[Tensor, "3 h w"],
    reconstruction: Float[Tensor, "3 h w"],
    lite2: EfficientNetDistance,
    lite0: EfficientNetDistance,
    squeezenet: SqueezeNetDistance | None = None,
) -> dict[str, float]:
    """The main table's measures of one pair, from scikit-image where it has them."""
    levels = [levels_of(x) for x in (reference, reconstruction)]
    unit = [x[None] / 255 for x in levels]
    signed = [x[None] / 127.5 - 1 for x in levels]
    pictures = [x.permute(1, 2, 0).cpu().numpy() for x in levels]
    height, width = pictures[0].shape[:2]
    window = np.outer(np.hanning(height), np.hanning(width))
    rows, columns = np.fft.fftfreq(height)[:, None], np.fft.fftfreq(width)[None]
    band = np.hypot(rows, columns) >= 0.25
    energies = []
    for picture in pictures:
        luma = (picture / 255) @ np.array([0.299, 0.587, 0.114])
        energies.append((np.abs(np.fft.fft2((luma - luma.mean()) * window)) ** 2)[band].sum())
    measures = scikit_image_measures(reference, reconstruction) | {
        "ssim_paper_compat": pytorch_msssim.ssim(levels[1][None], levels[0][None], data_range=1.0).item(),
        "effnet_lite2_distance": lite2(signed[1], signed[0]).item(),
        "haarpsi": piq.haarpsi(unit[1], unit[0]).item(),
        "mdsi": piq.mdsi(unit[1], unit[0]).item(),
        "high_frequency_energy": energies[1] / energies[0],
        "effnet_lite0_distance (trained on)": lite0(signed[1], signed[0]).item(),
    }
    if squeezenet is not None:
        measures["squeezenet_distance"] = squeezenet(signed[1], signed[0]).item()
    if min(height, width) >= MS_SSIM_LEAST_SIDE:
        measures["ms_ssim"] = pytorch_msssim.ms_ssim(unit[1], unit[0], data_range=1.0).item()
    return measures
