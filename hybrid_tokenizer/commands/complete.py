"""Keep the coarse tokens of a picture and let a language model draw the finer ones: complete PICTURE keep=20."""

from pathlib import Path

from hybrid_tokenizer.commands.config import command
from hybrid_tokenizer.commands.language_files import load_models, picture_tokens, write_drawn
from hybrid_tokenizer.language.config import CompleteConfig
from hybrid_tokenizer.language.generate import complete
from hybrid_tokenizer.language.vocabulary import budgets


@command("complete")
def main(config: CompleteConfig) -> None:
    hybrid, lm = load_models(config.model_name, config.language_model, config.device)
    own = picture_tokens(hybrid, lm, [Path(config.input)] * config.samples)
    prompts = [config.prompt] * config.samples
    tokens = complete(lm, own, config.keep, budgets(lm.vocabulary)[-1], config.sampling, config.seed, prompts)
    label = f"{Path(config.input).name}, {config.keep} guide tokens kept"
    print(write_drawn(Path(config.output_dir), hybrid, lm, tokens, label))
