"""Draw pictures from a caption, or from the semantic tokens of a picture: generate prompt="a dog on the grass"."""

from pathlib import Path

from hybrid_tokenizer.commands.config import command
from hybrid_tokenizer.commands.language_files import load_models, picture_tokens, write_drawn
from hybrid_tokenizer.language.config import GenerateConfig
from hybrid_tokenizer.language.generate import complete, draw
from hybrid_tokenizer.language.vocabulary import budgets


@command("generate")
def main(config: GenerateConfig) -> None:
    hybrid, lm = load_models(config.model_name, config.language_model, config.device)
    budget = config.budget or budgets(lm.vocabulary)[-1]
    prompts = [config.prompt] * config.samples
    if config.semantic_of is None:
        tokens = draw(lm, prompts, budget, config.sampling, config.seed)
    else:
        own = picture_tokens(hybrid, lm, [Path(config.semantic_of)] * config.samples)
        tokens = complete(lm, own, 0, budget, config.sampling, config.seed, prompts)
    label = config.prompt or f"semantic tokens of {Path(config.semantic_of or '').name}"
    print(write_drawn(Path(config.output_dir), hybrid, lm, tokens, label))
