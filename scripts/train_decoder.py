"""Teach a trained diffusion decoder to restore guides, beyond the paper. See --help; resumes from output_dir by itself."""

from dataclasses import asdict
from pathlib import Path

import torch

from hybrid_tokenizer.config import TrainDecoder, command
from hybrid_tokenizer.diffusion import DiffusionDecoder
from hybrid_tokenizer.guide import GuideTokenizer
from hybrid_tokenizer.semantic import SemanticTokenizer
from hybrid_tokenizer.training.loop import train
from hybrid_tokenizer.training.unet import UNetObjective


@command("train_decoder")
def run(config: TrainDecoder) -> None:
    torch.manual_seed(config.training.seed)
    decoder = DiffusionDecoder.from_pretrained(config.decoder)
    semantic = SemanticTokenizer.from_pretrained(config.semantic_folder)
    guide = GuideTokenizer.from_pretrained(config.guide_folder)
    objective = UNetObjective(decoder, semantic, config.unet, guide)
    output_dir = Path(config.output_dir)
    stream, val_batches = objective.build_data(config.data, config.training, output_dir)
    train(objective, stream, val_batches, config.training, output_dir, asdict(config))


if __name__ == "__main__":
    run()
