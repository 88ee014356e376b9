"""Branch III's U-Net, for the embedded preset only: trained on text features and on Branch II's generation embeddings."""

from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from hybrid_tokenizer.diffusion import DiffusionDecoder
from hybrid_tokenizer.diffusion.ddim import q_sample, training_target
from hybrid_tokenizer.semantic import SemanticTokenizer
from hybrid_tokenizer.training.objective import Judged, Objective
from hybrid_tokenizer.training.text import MiniLMText, text_of
from hybrid_tokenizer.training.weights import UNetLossWeights

JUDGED_TIMESTEPS = (100, 300, 500, 700, 900)
NUM_PICTURES = 4


class UNetObjective(Objective):
    """Denoising score matching on cached latents. The null condition is the text tower's answer to the empty caption."""

    def __init__(self, decoder: DiffusionDecoder, semantic: SemanticTokenizer | None, weights: UNetLossWeights):
        super().__init__()
        text = MiniLMText()
        decoder.set_null_condition(text.token_features([""]))
        self.decoder = (decoder,)  # a tuple: its U-Net is `model`, its VAE is frozen, neither must be registered twice
        self.model, self.weights = decoder.unet, weights
        helpers: dict[str, nn.Module] = {"vae": decoder.vae, "text": text}
        if semantic is not None:
            helpers["semantic"] = semantic
        self.freeze(**helpers)
        alphas = torch.as_tensor(decoder.schedule.alphas_cumprod, dtype=torch.float32)
        self.register_buffer("alphas_cumprod", alphas, persistent=False)

    def denoising_error(
        self, latents: Float[Tensor, "b c h w"], timesteps: Tensor, condition: Float[Tensor, "b n d"]
    ) -> Float[Tensor, "b"]:
        """Mean squared error of the prediction, an image."""
        noise = torch.randn(latents.shape).to(latents)
        levels = self.alphas_cumprod[timesteps]
        noisy = q_sample(latents, noise, levels)
        predicted = self.model(noisy, timesteps, encoder_hidden_states=condition).sample.float()
        target = training_target(latents, noise, levels, self.decoder[0].config.prediction_type)
        return (predicted - target).square().mean((1, 2, 3))

    def conditions(self, batch: dict[str, Any]) -> Float[Tensor, "b n d"]:
        """Text features, some replaced by generation embeddings, some by the null condition."""
        condition = self.frozen["text"].token_features(text_of(batch))
        count = len(condition)
        if "semantic" in self.frozen:
            condition = select(
                torch.rand(count) < self.weights.semantic_share,
                self.frozen["semantic"].decode(batch["semantic_indices"]).float(),
                condition,
            )
        null = self.decoder[0].null_condition.to(condition).expand_as(condition)
        return select(torch.rand(count) < self.weights.null_share, null, condition)

    def forward(self, batch: dict[str, Any], step: int) -> dict[str, Tensor]:
        latents = batch["latents"]
        timesteps = torch.randint(len(self.alphas_cumprod), (len(latents),)).to(latents.device)
        loss = self.denoising_error(latents, timesteps, self.conditions(batch)).mean()
        return {"denoising": loss, "total": loss}

    def judge(self, batches: list[dict[str, Any]]) -> Judged:
        """Denoising error under each kind of condition at fixed timesteps, and images re-rendered from half the noise."""
        decoder = self.decoder[0].to(self.alphas_cumprod.device)
        errors: dict[str, list[Tensor]] = {}
        rows = []
        for number, batch in enumerate(batches):
            images = batch["images"]
            latents = decoder.encode_latents(images)
            kinds = {"text": self.frozen["text"].token_features(text_of(batch))}
            if "semantic" in self.frozen:
                kinds["semantic"] = self.frozen["semantic"].decode(self.frozen["semantic"].encode(images)).float()
            kinds["null"] = decoder.null_condition.expand_as(kinds["text"])
            for name, condition in kinds.items():
                torch.manual_seed(number)  # the same noise for every kind and every validation
                for timestep in JUDGED_TIMESTEPS:
                    timesteps = torch.full((len(latents),), timestep, device=latents.device)
                    errors.setdefault(name, []).append(self.denoising_error(latents, timesteps, condition))
            if number == 0:
                condition = kinds.get("semantic", kinds["text"])[:NUM_PICTURES]
                options = {"start": "add_noise", "num_inference_steps": 20}
                generator = torch.Generator().manual_seed(0)
                shown = images[:NUM_PICTURES]
                rendered = [
                    decoder.decode(
                        shown, condition, tuple(images.shape[-2:]), strength=s, generator=generator, **options
                    )
                    for s in (0.25, 0.5, 1.0)
                ]
                rows.append(torch.stack([shown, *rendered], dim=1))
        return Judged({f"error_{name}": torch.cat(values).mean().item() for name, values in errors.items()}, rows[0])

    def export(self, folder: Path, val_batches: list[dict[str, Any]]) -> None:
        self.decoder[0].save_pretrained(folder)


def select(
    chosen: Bool[Tensor, "b"], yes: Float[Tensor, "b n d"], no: Float[Tensor, "b n d"]
) -> Float[Tensor, "b n d"]:
    """Row by row."""
    return torch.where(chosen.to(yes.device)[:, None, None], yes, no)
