"""Draw rows of token shards as a picture grid."""

from pathlib import Path

import torch

from hybrid_tokenizer.commands.config import command
from hybrid_tokenizer.commands.picture_files import check_new
from hybrid_tokenizer.corpus.config import DetokenizeConfig
from hybrid_tokenizer.corpus.dataset import TokenDataset
from hybrid_tokenizer.devices import choose_device
from hybrid_tokenizer.evaluation.pictures import picture_grid, write_png
from hybrid_tokenizer.hybrid import HybridTokenizer
from hybrid_tokenizer.images import resize_bicubic, to_uint8


@command("detokenize")
def main(config: DetokenizeConfig) -> None:
    check_new([Path(config.output)], "output=FILE")
    dataset = TokenDataset(config.input)
    rows = dataset.spread(config.count) if config.rows is None else config.rows
    tokenizer = HybridTokenizer.from_pretrained(config.model_name).to(choose_device(config.device))
    names: list[str] = []
    guides, images = [], []
    for batch in dataset.batches(rows, config.batch_size):
        tokens = dataset.to_hybrid_tokens(batch)
        images.append(to_uint8(tokenizer.decode(tokens)).cpu())
        guide = tokenizer.decode_guide(tokens.guide_indices, tokens.image_size)
        guides.append(to_uint8(resize_bicubic(guide, tokens.image_size)).cpu())
        names += [
            f"{name}: {captions[0]}" if captions else name
            for name, captions in zip(batch["id"], batch["captions"], strict=True)
        ]
    grid = picture_grid([("guide", torch.cat(guides)), ("decoded", torch.cat(images))], names)
    write_png(Path(config.output), grid)
    print(f"{len(rows)} of {len(dataset)} rows, drawn to {config.output}")
