"""Train Branch III of the embedded preset: stage=vae, then stage=unet. See --help; resumes from output_dir by itself."""

from dataclasses import asdict
from pathlib import Path

import torch

from hybrid_tokenizer.config import PretrainDiffusion, component_config, main
from hybrid_tokenizer.diffusion import DiffusionConfig
from hybrid_tokenizer.training.loop import train
from hybrid_tokenizer.training.setup import build_data, start_diffusion
from hybrid_tokenizer.training.vae import VAEObjective


@main("pretrain_diffusion")
def run(config: PretrainDiffusion) -> None:
    torch.manual_seed(config.training.seed)
    decoder = start_diffusion(component_config(config.diffusion, DiffusionConfig), config.diffusion.init)
    stream, val_batches = build_data(config.data, config.training)
    objective = VAEObjective(decoder, config.vae_loss)
    train(objective, stream, val_batches, config.training, Path(config.output_dir), asdict(config))


if __name__ == "__main__":
    run()
