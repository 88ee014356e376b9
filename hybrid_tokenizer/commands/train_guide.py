"""Train Branch I on a folder of images, or resume such a run: train_guide data.root=FOLDER output_dir=DIR."""

from dataclasses import asdict
from pathlib import Path

import torch

from hybrid_tokenizer.commands.cli import run
from hybrid_tokenizer.commands.config import TrainGuide, command, component_config
from hybrid_tokenizer.guide import GuideConfig
from hybrid_tokenizer.training.guide import GuideObjective
from hybrid_tokenizer.training.lock import locked
from hybrid_tokenizer.training.loop import train
from hybrid_tokenizer.training.setup import INDEX_FOLDER, build_data, say_training_size, start_guide, with_length


@command("train_guide")
def main(config: TrainGuide) -> None:
    output_dir = Path(config.output_dir)
    with locked(output_dir):
        torch.manual_seed(config.training.seed)
        model = start_guide(component_config(config.guide, GuideConfig), config.guide.init)
        say_training_size(config.data.image_size, model)
        stream, val_batches = build_data(config.data, config.training, index_folder=output_dir / INDEX_FOLDER)
        training = with_length(config.training, stream.epoch_length, config.model_name, "sd15_guide")
        objective = GuideObjective(model, config.loss)
        train(objective, stream, val_batches, training, output_dir, asdict(config))


if __name__ == "__main__":  # accelerate launch -m hybrid_tokenizer.commands.train_guide
    run("train-guide")
