"""Train Branch III of the embedded preset: stage=vae, then stage=unet. See --help; resumes from output_dir by itself."""

from dataclasses import asdict
from pathlib import Path

import torch

from hybrid_tokenizer.config import PretrainDiffusion, command, component_config
from hybrid_tokenizer.diffusion import DiffusionConfig
from hybrid_tokenizer.errors import HybridTokenizerError
from hybrid_tokenizer.guide import GuideTokenizer
from hybrid_tokenizer.semantic import SemanticTokenizer
from hybrid_tokenizer.text import MiniLMText
from hybrid_tokenizer.training.loop import train
from hybrid_tokenizer.training.setup import INDEX_FOLDER, build_data, start_diffusion
from hybrid_tokenizer.training.unet import UNetObjective
from hybrid_tokenizer.training.vae import VAEObjective


@command("pretrain_diffusion")
def run(config: PretrainDiffusion) -> None:
    torch.manual_seed(config.training.seed)
    decoder = start_diffusion(component_config(config.diffusion, DiffusionConfig), config.diffusion.init)
    output_dir = Path(config.output_dir)
    if config.stage == "vae":
        objective = VAEObjective(decoder, config.vae_loss)
        stream, val_batches = build_data(config.data, config.training, index_folder=output_dir / INDEX_FOLDER)
    elif config.stage == "unet":
        semantic = None if config.semantic_folder is None else SemanticTokenizer.from_pretrained(config.semantic_folder)
        guide = None if config.guide_folder is None else GuideTokenizer.from_pretrained(config.guide_folder)
        objective = UNetObjective(decoder, semantic, config.unet, guide, MiniLMText())
        stream, val_batches = objective.build_data(config.data, config.training, output_dir)
    else:
        raise HybridTokenizerError(f"stage={config.stage!r} is unknown; use vae or unet")
    train(objective, stream, val_batches, config.training, output_dir, asdict(config))


if __name__ == "__main__":
    run()
