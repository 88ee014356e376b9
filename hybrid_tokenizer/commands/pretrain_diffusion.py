"""Train parts of Branch III, or resume such a run: stage=vae, stage=unet or stage=finetune."""

from dataclasses import asdict
from pathlib import Path

import torch

from hybrid_tokenizer.commands.cli import run
from hybrid_tokenizer.commands.config import PretrainDiffusion, command, component_config
from hybrid_tokenizer.diffusion import DiffusionConfig
from hybrid_tokenizer.errors import HybridTokenizerError
from hybrid_tokenizer.guide import GuideTokenizer
from hybrid_tokenizer.semantic import SemanticTokenizer
from hybrid_tokenizer.text import MiniLMText
from hybrid_tokenizer.training.lock import locked
from hybrid_tokenizer.training.loop import train
from hybrid_tokenizer.training.setup import INDEX_FOLDER, build_data, say_training_size, start_diffusion
from hybrid_tokenizer.training.unet import UNetObjective
from hybrid_tokenizer.training.vae import VAEObjective

STAGES = ("vae", "unet", "finetune")


@command("pretrain_diffusion")
def main(config: PretrainDiffusion) -> None:
    check_stage(config)
    output_dir = Path(config.output_dir)
    with locked(output_dir):
        torch.manual_seed(config.training.seed)
        decoder = start_diffusion(component_config(config.diffusion, DiffusionConfig), config.diffusion.init)
        if config.stage == "vae":
            objective = VAEObjective(decoder, config.vae_loss)
            stream, val_batches = build_data(config.data, config.training, index_folder=output_dir / INDEX_FOLDER)
        else:
            semantic = (
                None if config.semantic_folder is None else SemanticTokenizer.from_pretrained(config.semantic_folder)
            )
            guide = None if config.guide_folder is None else GuideTokenizer.from_pretrained(config.guide_folder)
            if guide is not None:
                say_training_size(config.data.image_size, guide)
            text = MiniLMText() if config.stage == "unet" else None
            objective = UNetObjective(decoder, semantic, config.unet, guide, text)
            stream, val_batches = objective.build_data(config.data, config.training, output_dir)
        train(objective, stream, val_batches, config.training, output_dir, asdict(config))


def check_stage(config: PretrainDiffusion) -> None:
    """Raise where the stage is unknown or lacks what it starts from."""
    if config.stage not in STAGES:
        raise HybridTokenizerError(f"stage={config.stage!r} is unknown; use one of {', '.join(STAGES)}")
    if config.stage == "finetune":
        needed = {
            "diffusion.init": config.diffusion.init,
            "semantic_folder": config.semantic_folder,
            "guide_folder": config.guide_folder,
        }
        if missing := [name for name, value in needed.items() if value is None]:
            raise HybridTokenizerError(
                f"stage=finetune starts from a trained decoder and both trained branches; add "
                f"{' '.join(f'{name}=FOLDER' for name in missing)}"
            )


if __name__ == "__main__":  # accelerate launch -m hybrid_tokenizer.commands.pretrain_diffusion
    run("pretrain-diffusion")
