"""Train a language model on token shards, or resume such a run: train_lm data.tokens=FOLDER output_dir=DIR."""

from dataclasses import asdict
from pathlib import Path

from hybrid_tokenizer.commands.cli import run
from hybrid_tokenizer.commands.config import command
from hybrid_tokenizer.corpus.dataset import TokenDataset
from hybrid_tokenizer.devices import choose_device
from hybrid_tokenizer.hybrid import HybridTokenizer
from hybrid_tokenizer.language.config import TrainLMConfig
from hybrid_tokenizer.language.documents import DocumentStream, JoinedRows, hold_out_rows
from hybrid_tokenizer.language.objective import LanguageObjective
from hybrid_tokenizer.language.setup import start_language_model, validation_documents
from hybrid_tokenizer.training.lock import locked
from hybrid_tokenizer.training.loop import train


@command("train_lm")
def main(config: TrainLMConfig) -> None:
    output_dir, training = Path(config.output_dir), config.training
    with locked(output_dir):
        rows = JoinedRows([TokenDataset(folder) for folder in config.data.folders])
        if config.data.val_tokens is None:
            rows, held = hold_out_rows(rows, config.data.val_share)
        else:
            held = JoinedRows([TokenDataset(folder) for folder in config.data.val_folders])
        hybrid = HybridTokenizer.from_pretrained(config.model_name).to(choose_device(None))
        lm = start_language_model(config.lm, rows, hybrid, output_dir, training.seed)
        objective = LanguageObjective(
            lm,
            config.loss,
            config.row_length,
            hybrid.decode if config.pictures else None,
            config.pictures,
            config.sampling,
        )
        stream = DocumentStream(rows, lm.vocabulary, lm.tokenizer, config.documents, training.seed)
        val_batches = validation_documents(
            held, lm, training.max_val_images, training.batch_size, config.documents.max_caption_tokens
        )
        train(objective, stream, val_batches, training, output_dir, asdict(config))


if __name__ == "__main__":  # accelerate launch -m hybrid_tokenizer.commands.train_lm
    run("train-lm")
