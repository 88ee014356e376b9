"""What the commands on language models share: both models, tokens of pictures, and the files of drawn pictures."""

from collections.abc import Sequence
from pathlib import Path

import torch

from hybrid_tokenizer.checkpoints.files import write_json
from hybrid_tokenizer.commands.picture_files import check_outputs
from hybrid_tokenizer.data import open_rgb
from hybrid_tokenizer.devices import choose_device
from hybrid_tokenizer.evaluation.pictures import picture_grid, write_png
from hybrid_tokenizer.hybrid import HybridTokenizer
from hybrid_tokenizer.images import fit_square, from_pil, to_pil, to_uint8
from hybrid_tokenizer.language.model import LanguageModel, load_language_model
from hybrid_tokenizer.tokens import HybridTokens


def load_models(model_name: str, language_model: str, device: str | None) -> tuple[HybridTokenizer, LanguageModel]:
    """The image tokenizer and the language model that was trained on its tokens."""
    chosen = choose_device(device)
    hybrid = HybridTokenizer.from_pretrained(model_name).to(chosen)
    lm = load_language_model(language_model, hybrid.source)
    lm.model.to(chosen)
    return hybrid, lm


def picture_tokens(
    hybrid: HybridTokenizer, lm: LanguageModel, paths: Sequence[Path], guide_scales: int | None = None
) -> HybridTokens:
    """The pictures' centres at the size that the language model knows, encoded."""
    side = min(lm.vocabulary.image_size)
    unique = list(dict.fromkeys(paths))
    images = torch.stack([from_pil(fit_square(open_rgb(path), side)) for path in unique])
    tokens = hybrid.encode(images, guide_scales=guide_scales).to("cpu")
    return tokens[[unique.index(path) for path in paths]]


def write_drawn(folder: Path, hybrid: HybridTokenizer, lm: LanguageModel, tokens: HybridTokens, label: str) -> str:
    """`grid.png`, each picture alone, `tokens.safetensors`, and `ids.json` with the language model's ids. Says where."""
    images = hybrid.decode(tokens).cpu()
    levels = to_uint8(images)
    columns = [(str(index), picture[None]) for index, picture in enumerate(levels)]
    pictures = [f"{index}.png" for index in range(len(images))]
    check_outputs(folder, ["grid.png", *pictures, "tokens.safetensors", "ids.json"])
    write_png(folder / "grid.png", picture_grid(columns, [label]))
    for name, picture in zip(pictures, images, strict=True):
        write_png(folder / name, to_pil(picture))
    tokens.save(folder / "tokens.safetensors")
    write_json(folder / "ids.json", {"label": label, "token_ids": tokens.to_token_ids(lm.vocabulary).tolist()})
    return f"{len(tokens)} pictures of {tokens.num_tokens} tokens; written to {folder}"
