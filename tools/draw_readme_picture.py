"""Draw the picture of README.md: original, guide and hybrid of four built-in photographs, with their bytes."""

import argparse
from pathlib import Path

import torch

from hybrid_tokenizer.checkpoints.files import write_atomic
from hybrid_tokenizer.data import sample_photographs
from hybrid_tokenizer.evaluation.pictures import Line, Picture, draw_panels, write_figure
from hybrid_tokenizer.hybrid import HybridTokenizer
from hybrid_tokenizer.images import fit_square, from_pil, resize_bicubic, to_uint8

ROOT = Path(__file__).resolve().parents[1]
PHOTOGRAPHS = ("cat", "coffee", "rocket", "flower")
BYTES_PER_PIXEL = 3


def draw(output: Path) -> None:
    """One line per photograph: the original, the guide image enlarged, and the decoded hybrid."""
    tokenizer = HybridTokenizer.from_pretrained("tiny")
    size = tokenizer.guide.config.image_size
    photographs = sample_photographs()
    images = torch.stack([from_pil(fit_square(photographs[name], size)) for name in PHOTOGRAPHS])
    tokens = tokenizer.encode(images)
    guide = resize_bicubic(tokenizer.decode_guide(tokens.guide_indices, tokens.image_size), (size, size)).clamp(-1, 1)
    hybrid = tokenizer.decode(tokens)
    guide_bytes = round(tokens.num_guide_tokens * torch.tensor(float(tokenizer.guide.codebook_size)).log2().item() / 8)
    hybrid_bytes = round(tokenizer.bits(tokens)[0].item() / 8)
    columns = [
        f"original\n{BYTES_PER_PIXEL * size * size:,} bytes",
        f"guide alone\n{tokens.num_guide_tokens} tokens, {guide_bytes} bytes",
        f"hybrid\n{tokens.num_tokens} tokens, {hybrid_bytes} bytes",
    ]
    lines = [
        Line("", [Picture(picture) for picture in to_uint8(torch.stack(triple))])
        for triple in zip(images, guide, hybrid, strict=True)
    ]
    png, pdf = write_figure(output.with_suffix(""), draw_panels(columns, lines))
    pdf.unlink()
    write_atomic(output, png.read_bytes())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, default=ROOT / "docs" / "recon.png", help="PNG file (%(default)s)")
    draw(parser.parse_args().output)


if __name__ == "__main__":
    main()
