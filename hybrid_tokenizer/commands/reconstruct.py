"""Reconstruct an image or a folder of images. Writes each result, and original and result side by side."""

from pathlib import Path

import torch
from tqdm import tqdm

from hybrid_tokenizer.commands.config import command
from hybrid_tokenizer.commands.loading import load_tokenizer
from hybrid_tokenizer.commands.picture_files import check_exists, check_outputs, labels
from hybrid_tokenizer.devices import choose_device
from hybrid_tokenizer.evaluation.config import ReconstructConfig
from hybrid_tokenizer.evaluation.images import EvalBatch, EvalImages
from hybrid_tokenizer.evaluation.loop import reconstruct
from hybrid_tokenizer.evaluation.pictures import side_by_side, write_png
from hybrid_tokenizer.images import to_pil

ALONE, BESIDE = ".png", ".side_by_side.png"
"""What a result's file name adds to its image's: the result, and original and result side by side."""


@command("reconstruct")
def main(config: ReconstructConfig) -> None:
    check_exists("input=", config.input, "an image or a folder of images")
    device = choose_device(config.device)
    tokenizer = load_tokenizer(config, device)
    images = EvalImages.open(config.input, config.image_size)
    names = labels(images.names)
    outputs = [f"{name}{ending}" for name in names for ending in (ALONE, BESIDE)]
    check_outputs(config.output_dir, outputs, [Path(config.input or "", name) for name in images.sources])
    with tqdm(total=len(images), desc="reconstructing", unit="image") as bar:
        for positions, crops in images.stacks(config.batch_size):
            references = crops.to(device)
            generator = torch.Generator().manual_seed(config.seed)
            batch = EvalBatch(positions, references, next_images=references)  # which only controls read
            output, tokens, _ = reconstruct(tokenizer, batch, generator)
            for position, original, result in zip(positions, references, output, strict=True):
                target = Path(config.output_dir, names[position])
                write_png(target.with_name(target.name + ALONE), to_pil(result))
                write_png(target.with_name(target.name + BESIDE), side_by_side(original, result))
            bar.update(len(positions))
    count, bits = int(tokenizer.num_tokens(tokens)[0]), tokenizer.bits(tokens)[0].item()
    print(
        f"{len(images)} images of {count} tokens ({bits:.0f} bits) each, {len(images.skipped)} skipped; written to {config.output_dir}"
    )
