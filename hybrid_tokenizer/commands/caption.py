"""Say what a picture, or each picture of a folder, shows: caption input=PICTURE_OR_FOLDER."""

from pathlib import Path

from hybrid_tokenizer.commands.config import command
from hybrid_tokenizer.commands.language_files import load_models, picture_tokens
from hybrid_tokenizer.data import find_images
from hybrid_tokenizer.errors import printable
from hybrid_tokenizer.language.config import CaptionConfig
from hybrid_tokenizer.language.generate import describe
from hybrid_tokenizer.language.vocabulary import budget_of


@command("caption")
def main(config: CaptionConfig) -> None:
    hybrid, lm = load_models(config.model_name, config.language_model, config.device)
    scales = None if config.budget is None else budget_of(lm.vocabulary, config.budget)
    source = Path(config.input)
    pictures = [source] if source.is_file() else find_images(source)
    size = config.sampling.batch_size
    for start in range(0, len(pictures), size):
        part = pictures[start : start + size]
        tokens = picture_tokens(hybrid, lm, part, scales)
        for path, text in zip(part, describe(lm, tokens, config.sampling, config.seed), strict=True):
            print(f"{printable(path)}: {text}", flush=True)
