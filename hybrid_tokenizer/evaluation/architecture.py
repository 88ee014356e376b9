"""The paper's Figure 1, the three branches and what passes between them, drawn as SVG from a model's configuration."""

from collections.abc import Sequence
from html import escape
from typing import NamedTuple

from hybrid_tokenizer.diffusion import DiffusionConfig
from hybrid_tokenizer.guide import GuideConfig
from hybrid_tokenizer.semantic import SemanticConfig

WIDTH, GAP, HEIGHT = 132, 26, 58
MARGIN, TOP, BETWEEN = 16, 56, 44
FILLS = {"network": "#dce8f7", "codes": "#fbe3c4", "data": "#f2f2f2"}
STARTS = {
    "ddim_inversion": "DDIM inversion",
    "add_noise": "Gaussian noise",
    "linear_estimate": "linear estimate",
}


class Box(NamedTuple):
    """A part of the figure: its name, one line on its size, and what it is."""

    name: str
    detail: str
    kind: str = "network"


class Branch(NamedTuple):
    """A row of the figure. Each box feeds the next."""

    title: str
    boxes: list[Box]


def branches(guide: GuideConfig, semantic: SemanticConfig, diffusion: DiffusionConfig) -> list[Branch]:
    """What the figure shows, from left to right and top to bottom."""
    grid = guide.image_size // guide.downsample_factor
    guide_tokens = sum(height * width for height, width in guide.scale_sizes((grid, grid)))
    scales = "" if guide.guide_scales is None else f" in {len(guide.guide_scales)} scales"
    patches = (semantic.image_size // semantic.patch_size) ** 2
    options, trained = diffusion.decode_defaults, diffusion.trained_size
    calls = round(options.strength * options.num_inference_steps)
    image = Box("image", f"{guide.image_size} x {guide.image_size}", "data")
    channels = diffusion.unet.get("block_out_channels", [])
    return [
        Branch(
            "Branch II: what is in the image",
            [
                image,
                Box("ViT", f"{semantic.vision_layers} layers, {patches} patches"),
                Box("causal Q-Former", f"{semantic.qformer_layers} layers, width {semantic.width}"),
                Box("semantic tokens", f"{semantic.num_queries} of {semantic.quantizer.codebook_size} codes", "codes"),
                Box("reverse Q-Former", f"{semantic.reverse_layers} layers"),
                Box("embeddings", f"{semantic.num_generation_embeds} x {semantic.generation_width}", "data"),
            ],
        ),
        Branch(
            "Branch I: where it is",
            [
                image,
                Box("encoder", f"side / {guide.downsample_factor}"),
                Box("guide tokens", f"{guide_tokens} of {guide.quantizer.codebook_size} codes{scales}", "codes"),
                Box("decoder", f"side x {guide.upsample_factor}"),
                Box("guide image", f"{guide.guide_size} x {guide.guide_size}", "data"),
            ],
        ),
        Branch(
            "Branch III: both become an image",
            [
                Box("guide, resized", f"{trained} x {trained}" if trained else "to the image's size", "data"),
                Box("VAE encoder", f"side / {diffusion.vae_factor}, {diffusion.latent_channels} channels"),
                Box(STARTS[options.start], f"strength {options.strength:g}", "data"),
                Box("U-Net", f"{'-'.join(map(str, channels))}, {calls} steps"),
                Box("VAE decoder", f"side x {diffusion.vae_factor}"),
                Box("image", "restored", "data"),
            ],
        ),
    ]


def architecture_svg(name: str, guide: GuideConfig, semantic: SemanticConfig, diffusion: DiffusionConfig) -> str:
    """The figure of the model called `name`. The embeddings of Branch II condition the U-Net, the guide starts it."""
    rows = branches(guide, semantic, diffusion)
    longest = max(len(row.boxes) for row in rows)
    width = 2 * MARGIN + longest * WIDTH + (longest - 1) * GAP
    height = TOP + len(rows) * (HEIGHT + BETWEEN)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" font-family="sans-serif">',
        "<defs><marker id='head' viewBox='0 0 8 8' refX='7' refY='4' markerWidth='7' markerHeight='7' orient='auto'>"
        "<path d='M0,0 L8,4 L0,8 z'/></marker></defs>",
        f"<rect width='{width}' height='{height}' fill='white'/>",
        _text(MARGIN, 22, f"{name}: the three branches", 15, "start", bold=True),
    ]
    for number, row in enumerate(rows):
        # the last title stands below its boxes, where no arrow passes
        parts.append(_text(MARGIN, _top(number) + (HEIGHT + 16 if number == 2 else -7), row.title, 12, "start"))
        parts += [part for place, box in enumerate(row.boxes) for part in _box(place, number, box)]
        parts += [_arrow(_right(place), _middle(number), _left(place + 1), _middle(number)) for place in range(len(row.boxes) - 1)]  # fmt: skip
    unet = next(place for place, box in enumerate(rows[2].boxes) if box.name == "U-Net")
    parts.append(_line([(_centre(5), _top(0) + HEIGHT), (_centre(5), _top(2) - 24), (_centre(unet), _top(2) - 24), (_centre(unet), _top(2))]))  # fmt: skip
    parts.append(_line([(_centre(4), _top(1) + HEIGHT), (_centre(4), _top(2) - 32), (_centre(0) + 40, _top(2) - 32), (_centre(0) + 40, _top(2))]))  # fmt: skip
    return "\n".join([*parts, "</svg>"]) + "\n"


def _left(place: int) -> int:
    return MARGIN + place * (WIDTH + GAP)


def _right(place: int) -> int:
    return _left(place) + WIDTH


def _centre(place: int) -> int:
    return _left(place) + WIDTH // 2


def _top(row: int) -> int:
    return TOP + row * (HEIGHT + BETWEEN)


def _middle(row: int) -> int:
    return _top(row) + HEIGHT // 2


def _box(place: int, row: int, box: Box) -> list[str]:
    x, y = _left(place), _top(row)
    return [
        f"<rect x='{x}' y='{y}' width='{WIDTH}' height='{HEIGHT}' rx='6' fill='{FILLS[box.kind]}' stroke='black'/>",
        _text(x + WIDTH // 2, y + 25, box.name, 13, "middle", bold=True),
        _text(x + WIDTH // 2, y + 43, box.detail, 10 if len(box.detail) < 24 else 8, "middle"),
    ]


def _arrow(x1: int, y1: int, x2: int, y2: int) -> str:
    return _line([(x1, y1), (x2, y2)])


def _line(points: Sequence[tuple[int, int]]) -> str:
    path = " ".join(f"{x},{y}" for x, y in points)
    return f"<polyline points='{path}' fill='none' stroke='black' marker-end='url(#head)'/>"


def _text(x: int, y: int, text: str, size: int, anchor: str, bold: bool = False) -> str:
    weight = " font-weight='bold'" if bold else ""
    return f"<text x='{x}' y='{y}' font-size='{size}' text-anchor='{anchor}'{weight}>{escape(text)}</text>"
