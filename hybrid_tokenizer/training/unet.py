"""Stages `unet` and `finetune`: train the embedded preset's U-Net, or teach a published one to read the guide."""

from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Float, UInt8
from torch import Tensor, nn

from hybrid_tokenizer.data.config import DataConfig
from hybrid_tokenizer.diffusion import DiffusionDecoder
from hybrid_tokenizer.diffusion.ddim import predict_original, q_sample, training_target
from hybrid_tokenizer.errors import HybridTokenizerError
from hybrid_tokenizer.guide import GuideTokenizer
from hybrid_tokenizer.images import from_uint8
from hybrid_tokenizer.metrics.pixel import psnr
from hybrid_tokenizer.perceptual import EfficientNetDistance, feature_distance
from hybrid_tokenizer.semantic import SemanticTokenizer
from hybrid_tokenizer.text import MiniLMText, text_of
from hybrid_tokenizer.training.config import TrainingConfig, UNetOptions
from hybrid_tokenizer.training.crop_cache import CropSource
from hybrid_tokenizer.training.latents import LatentStream, cache_latents, encode_guides
from hybrid_tokenizer.training.loop import choose_precision
from hybrid_tokenizer.training.objective import Objective, Validated
from hybrid_tokenizer.training.setup import INDEX_FOLDER, split_items, training_device, validation_batches

VALIDATION_TIMESTEPS = (100, 300, 500, 700, 900)
TEACHER = "lite0"
VALIDATOR = "lite1"  # not the teacher, whose own distance goes on falling when no other network's does
NUM_PICTURES = 4
RESTORING_STRENGTH = 0.4


class UNetObjective(Objective):
    """Denoising on cached latents, and with `unet.perceptual` or `unet.pixel` losses on the decoded prediction."""

    decoder: DiffusionDecoder
    next_command = "hybrid-tokenizer eval components.diffusion={final}"

    def __init__(
        self,
        decoder: DiffusionDecoder,
        semantic: SemanticTokenizer | None,
        options: UNetOptions,
        guide: GuideTokenizer | None = None,
        text: MiniLMText | None = None,
    ):
        """Conditions are text features where `text` is given and generation embeddings where `semantic` is; one must be.

        Args:
            guide: the U-Net then also reads the latents of the decoded guide. A decoder that does not read them yet gets the
                inputs for it, and computes the same as before (`DiffusionDecoder.add_guide_conditioning`).
            text: the null condition then becomes the features of the empty caption. Without it the decoder keeps its own.
        """
        super().__init__()
        if semantic is None and text is None:
            raise HybridTokenizerError(
                "the U-Net has neither text features nor generation embeddings to read; give semantic_folder"
            )
        if guide is not None and not decoder.config.guide_conditioning:
            decoder.add_guide_conditioning()
        if guide is None and decoder.config.guide_conditioning:
            raise HybridTokenizerError("the decoder reads guides, and no guide tokenizer is given; give guide_folder")
        if text is not None:
            decoder.set_null_condition(text.token_features([""]))
        self.refer_to(decoder=decoder)
        self.options = options
        vae = {f"vae_{name}": part for name, part in decoder.vae.named_children()}
        trained: dict[str, nn.Module] = {"unet": decoder.unet}
        if options.vae_decoder:
            trained["vae_decoder"] = vae.pop("vae_decoder")
        self.model: nn.Module = nn.ModuleDict(trained) if len(trained) > 1 else decoder.unet
        helpers = {**vae, "text": text, "semantic": semantic, "guide": guide}
        if options.perceptual or options.pixel:
            helpers[TEACHER] = EfficientNetDistance(TEACHER)
        if guide is not None:
            helpers[VALIDATOR] = EfficientNetDistance(VALIDATOR)
        self.freeze(**{name: module for name, module in helpers.items() if module is not None})
        alphas = torch.as_tensor(decoder.schedule.alphas_cumprod, dtype=torch.float32)
        self.register_buffer("alphas_cumprod", alphas, persistent=False)

    def build_data(
        self, data: DataConfig, training: TrainingConfig, output_dir: Path
    ) -> tuple[LatentStream, list[dict[str, Any]]]:
        """The stream, cached in `output_dir`, and the validation batches."""
        items, held = split_items(data, captions="text" in self.frozen, index_folder=output_dir / INDEX_FOLDER)
        frozen, decoder = dict(self.frozen.items()), self.decoder
        semantic, guide = frozen.get("semantic"), frozen.get("guide")
        starts_linear = self.options.linear_path and decoder.config.guide_residual is None
        device = training_device()  # the loop would move the models there only after the images are encoded
        decoder.to(device)
        self.frozen.to(device, memory_format=torch.channels_last)
        bf16 = choose_precision(training) == "bf16"
        pixels = bool(self.options.perceptual or self.options.pixel)
        source = CropSource(items, data.crop, self.options.views, training.seed, data.verify)
        cache = output_dir / "cache"
        stream = cache_latents(cache, source, decoder, semantic, guide, bf16, pixels, training.num_workers)
        if starts_linear:
            if guide is None:
                raise HybridTokenizerError("unet.linear_path=true starts from the guide; give guide_folder")
            decoder.set_guide_residual(stream.guide_residual().tolist())
        return stream, validation_batches(held, data.image_size, training, data.verify)

    def denoise(
        self,
        latents: Float[Tensor, "b c h w"],
        timesteps: Tensor,
        condition: Float[Tensor, "b n d"],
        guide_latents: Float[Tensor, "b c h w"] | None,
        restores: Bool[Tensor, "b"] | None = None,
    ) -> tuple[Float[Tensor, "b"], Float[Tensor, "b c h w"]]:
        """Mean squared error of the prediction, one value per image, and the clean latents that the prediction implies.

        restores: the images that show the guide in place of noised latents (`UNetOptions.restore_share`).
        """
        noise = torch.randn(latents.shape, device=latents.device).to(latents.dtype)
        levels = self.alphas_cumprod[timesteps]
        noisy = q_sample(latents, noise, levels)
        if restores is not None:
            noisy = select(restores, q_sample(guide_latents, torch.zeros_like(noise), levels), noisy)
        inputs = noisy if guide_latents is None else torch.cat([noisy, guide_latents], dim=1)
        predicted = self.decoder.unet(inputs, timesteps, encoder_hidden_states=condition).sample.float()
        predicted = predicted + self.decoder.linear_part(noisy, guide_latents, levels)
        prediction_type = self.decoder.config.prediction_type
        target = training_target(latents, noise, levels, prediction_type)
        error = (predicted - target).square().mean((1, 2, 3))
        original = predict_original(predicted, noisy, levels, prediction_type)
        if restores is not None:
            error = torch.where(restores.to(error.device), (original - latents).square().mean((1, 2, 3)), error)
        return error, original

    def decoded_losses(
        self,
        latents: Float[Tensor, "b c h w"],
        original: Float[Tensor, "b c h w"],
        pixels: UInt8[Tensor, "b 3 H W"],
    ) -> dict[str, Float[Tensor, ""]]:
        """Feature distance and squared error between decoded `original` and the photographs, on one window.

        Where the VAE's decoder trains, some images decode their true latents instead (`UNetOptions.vae_share`).
        """
        decoder = self.decoder
        window = random_window(latents.shape[-2:], self.options.perceptual_window)
        target = from_uint8(pixels[enlarged(window, decoder.config.vae_factor)])
        if self.options.vae_decoder:
            original = select(self.chance(len(latents)) < self.options.vae_share, latents, original)
        decoded = decoder.decode_latents(original[window])
        return {
            "perceptual": self.frozen[TEACHER](decoded, target).mean(),
            "pixel": (decoded - target).square().mean(),
        }

    def chance(self, count: int) -> Float[Tensor, "count"]:
        """Uniform draws on the device: from the CPU each would be copied while the device waits."""
        return torch.rand(count, device=self.alphas_cumprod.device)

    def conditions(self, batch: dict[str, Any]) -> Float[Tensor, "b n d"]:
        """Text features, some replaced by generation embeddings, some by the null condition."""
        count = len(batch["latents"])
        share = self.options.semantic_share if "text" in self.frozen else 1.0
        share = share if "semantic" in self.frozen else 0.0
        condition = self.frozen["text"].token_features(text_of(batch)) if share < 1 else None
        if share > 0:
            generated = self.frozen["semantic"].embeds_of(batch["semantic_indices"]).float()
            use_text = self.chance(count) >= share
            condition = generated if condition is None else select(use_text, condition, generated)
        null = self.decoder.null_condition.to(condition).expand_as(condition)
        return select(self.chance(count) < self.options.null_share, null, condition)

    def guide_latents(self, prefixes: Float[Tensor, "b s c h w"]) -> Float[Tensor, "b c h w"]:
        """For each image those of the whole guide, of a shorter prefix, or zeros for no guide."""
        count = len(prefixes)
        chosen = select(self.chance(count) < self.options.prefix_dropout, prefixes[:, 0], prefixes[:, -1])
        return select(self.chance(count) < self.options.guide_dropout, torch.zeros_like(chosen), chosen)

    def forward(self, batch: dict[str, Any], step: int) -> dict[str, Tensor]:
        latents, pixels = batch["latents"], batch.get("pixels")
        guide_latents = None
        if "guide" in self.frozen:
            guide_latents = self.guide_latents(batch["guide_latents"])
        if self.options.crop and happens(self.options.crop_share):
            window = random_window(latents.shape[-2:], self.options.crop)
            latents = latents[window]
            pixels = None if pixels is None else pixels[enlarged(window, self.decoder.config.vae_factor)]
            guide_latents = None if guide_latents is None else guide_latents[window]
        count = len(self.alphas_cumprod)
        draws = (count * self.chance(len(latents)) ** self.options.timestep_power).long()
        timesteps = draws.clamp(max=count - 1)
        restores = None
        if self.options.restore_share and guide_latents is not None:
            given = guide_latents.abs().amax((1, 2, 3)) > 0
            restores = given & (self.chance(len(latents)) < self.options.restore_share)
        errors, original = self.denoise(latents, timesteps, self.conditions(batch), guide_latents, restores)
        losses = {"denoising": errors.mean()}
        total = losses["denoising"]
        if self.options.perceptual or self.options.pixel:
            losses |= self.decoded_losses(latents, original, pixels)
            total = total + self.options.perceptual * losses["perceptual"] + self.options.pixel * losses["pixel"]
        return {**losses, "total": total}

    def validate(self, batches: list[dict[str, Any]]) -> Validated:
        """Denoising error at fixed timesteps for each kind of condition and guide. With a guide, also PSNR and feature
        distance of what decoding restores. The pictures are decoded at several strengths."""
        decoder = self.decoder.to(self.alphas_cumprod.device)
        values: dict[str, list[Tensor]] = {}
        rows = []
        for number, batch in enumerate(batches):
            images = batch["images"].to(decoder.device)
            latents = decoder.encode_latents(images)
            null = decoder.null_condition.expand(len(images), -1, -1)
            conditions = {"null": null}
            if "text" in self.frozen:
                conditions["text"] = self.frozen["text"].token_features(text_of(batch))
            if "semantic" in self.frozen:
                conditions["semantic"] = self.frozen["semantic"].decode(self.frozen["semantic"].encode(images)).float()
            best = conditions.get("semantic", conditions.get("text"))
            guide_latents = None
            if "guide" in self.frozen:
                guide_latents = encode_guides(decoder, self.frozen["guide"], images, [None])[:, 0]
            cases = {f"error_{name}": (condition, guide_latents) for name, condition in conditions.items()}
            if guide_latents is not None:
                cases["error_no_guide"] = (best, torch.zeros_like(guide_latents))
                cases["error_other_guide"] = (best, guide_latents.roll(1, 0))
            for name, case in cases.items():
                torch.manual_seed(number)  # the same noise for every case and every validation
                for timestep in VALIDATION_TIMESTEPS:
                    timesteps = torch.full((len(latents),), timestep, device=latents.device)
                    values.setdefault(name, []).append(self.denoise(latents, timesteps, *case)[0])
            if guide_latents is not None:
                start = decoder.decode_latents(guide_latents).clamp(-1, 1)
                restored = self.rendered(start, best, RESTORING_STRENGTH)
                round_trip = decoder.decode_latents(latents).clamp(-1, 1)
                for name, result in (("guide", start), ("restored", restored), ("vae", round_trip)):
                    values.setdefault(f"psnr_{name}", []).append(psnr(result, images))
                    distance = feature_distance(self.frozen[VALIDATOR], result, images)
                    values.setdefault(f"effnet_{VALIDATOR}_distance_{name}", []).append(distance)
            if number == 0:
                shown = images[:NUM_PICTURES]
                starts = shown if guide_latents is None else start[:NUM_PICTURES]
                pictures = [self.rendered(starts, best[:NUM_PICTURES], strength) for strength in (0.25, 0.5, 1.0)]
                rows.append(torch.stack([shown, starts, *pictures], dim=1))
        return Validated({name: torch.cat(parts).mean().item() for name, parts in values.items()}, rows[0])

    def rendered(
        self, starts: Float[Tensor, "b 3 h w"], condition: Float[Tensor, "b n d"], strength: float
    ) -> Float[Tensor, "b 3 h w"]:
        """Decoded from `starts` in the way that the run trains for; the noise is the same at every validation."""
        options = {"start": "add_noise", "num_inference_steps": 20}
        if self.options.restore_share:
            options = {"start": "linear_estimate", "num_inference_steps": 5}
        return self.decoder.decode(
            starts, condition, tuple(starts.shape[-2:]), strength=strength, generator=torch.Generator().manual_seed(0),
            **options,
        )  # fmt: skip

    def export(self, folder: Path, val_batches: list[dict[str, Any]]) -> None:
        self.decoder.save_pretrained(folder)


def happens(share: float) -> bool:
    """One draw for the whole batch, on the host."""
    return bool(torch.rand(()) < share)


def random_window(size: torch.Size, side: int) -> tuple[Any, ...]:
    """Index of a random square in planes of `size`. Its side is `side`, or that of the plane where it is smaller."""
    side = min(side, *size)
    top, left = (int(torch.randint(whole - side + 1, ())) for whole in size)
    return (..., slice(top, top + side), slice(left, left + side))


def enlarged(window: tuple[Any, ...], factor: int) -> tuple[Any, ...]:
    """The window of pixels that a window of latents covers."""
    return (..., *(slice(factor * part.start, factor * part.stop) for part in window[1:]))


def select(
    chosen: Bool[Tensor, "b"], yes: Float[Tensor, "b ..."], no: Float[Tensor, "b ..."]
) -> Float[Tensor, "b ..."]:
    """`yes` in the chosen rows, `no` in the others."""
    return torch.where(chosen.to(yes.device).view(-1, *[1] * (yes.ndim - 1)), yes, no)
