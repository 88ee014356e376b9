"""Train Branch II on image-text pairs, stage=contrastive and then stage=quantize, or resume such a run."""

from dataclasses import asdict
from pathlib import Path

import torch

from hybrid_tokenizer.commands.cli import run
from hybrid_tokenizer.commands.config import TrainSemantic, command, component_config
from hybrid_tokenizer.errors import HybridTokenizerError
from hybrid_tokenizer.semantic import SemanticConfig
from hybrid_tokenizer.text import build_text
from hybrid_tokenizer.training.lock import locked
from hybrid_tokenizer.training.loop import train
from hybrid_tokenizer.training.semantic import QuantizeObjective, build_contrastive
from hybrid_tokenizer.training.setup import INDEX_FOLDER, build_data, say_training_size, start_semantic, with_length


@command("train_semantic")
def main(config: TrainSemantic) -> None:
    output_dir = Path(config.output_dir)
    with locked(output_dir):
        torch.manual_seed(config.training.seed)
        model = start_semantic(component_config(config.semantic, SemanticConfig), config.semantic.init)
        say_training_size(config.data.image_size, model)
        stream, val_batches = build_data(
            config.data, config.training, captions=True, index_folder=output_dir / INDEX_FOLDER
        )
        if config.stage == "contrastive":
            objective = build_contrastive(model, config.contrastive, config.semantic.init)
        elif config.stage == "quantize":
            text = build_text(config.quantize.text, config.quantize.text_cache_mb)
            objective = QuantizeObjective(model, config.quantize, text)
        else:
            raise HybridTokenizerError(f"stage={config.stage!r} is unknown; use contrastive or quantize")
        training = with_length(config.training, stream.epoch_length, config.model_name, f"sd15_{config.stage}")
        train(objective, stream, val_batches, training, output_dir, asdict(config))


if __name__ == "__main__":  # accelerate launch -m hybrid_tokenizer.commands.train_semantic
    run("train-semantic")
