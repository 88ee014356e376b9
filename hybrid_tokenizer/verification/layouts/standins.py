"""Small files in the published layouts, and a data set of twelve pictures with captions, to walk docs/reproduce.md with.

The weights are random and the widths a tenth of the published ones. Names, nesting, codebook sizes, head counts and token
counts are the published ones.
"""

import json
import re
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from hybrid_tokenizer.baselines.registry import BASELINES
from hybrid_tokenizer.checkpoints.files import write_json
from hybrid_tokenizer.data.samples import sample_photographs
from hybrid_tokenizer.diffusion import DiffusionConfig
from hybrid_tokenizer.verification.layouts import layouts
from hybrid_tokenizer.verification.layouts.files import make_seed, make_stable_diffusion, random_state
from hybrid_tokenizer.verification.layouts.layouts import Layout

NARROW = {1408: 32, 4224: 96, 6144: 64, 768: 48, 2304: 144, 3072: 96}
"""A published width of SEED -> that of the stand-in. Head counts (16 and 12) divide both."""
DEEPEST = re.compile(r"(visual_encoder\.blocks|encoder\.layer|blocks_text)\.(\d+)\.")
LAYERS = 3
"""Of each stack: the first and the third Q-Former layer look at the image, which shows their spacing."""
CHANNELS = [32, 32, 32, 32]
SIDE = 72
NUM_PICTURES = 12


def narrow_seed(published: Layout) -> Layout:
    """SEED's names with small widths and few layers."""
    kept = {
        key: shape for key, shape in published.items() if not (found := DEEPEST.search(key)) or int(found[2]) < LAYERS
    }
    return {key: tuple(NARROW.get(size, size) for size in shape) for key, shape in kept.items()}


def narrow_diffusion() -> DiffusionConfig:
    """Stable Diffusion's classes for images of 128 px."""
    config = DiffusionConfig.sd15()
    config.unet |= {
        "sample_size": 16, "block_out_channels": [32, 32, 32, 32], "layers_per_block": 1, "attention_head_dim": 4,
        "cross_attention_dim": NARROW[768],
    }  # fmt: skip
    config.vae |= {"block_out_channels": CHANNELS, "layers_per_block": 1, "sample_size": 128}
    return config


def make_weights(folder: Path, seed_layout: Layout) -> None:
    """MoVQGAN, VQGAN, VAR, SEED v1, PickScore and Stable Diffusion 1.5 under their published names."""
    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    files: dict[str, tuple[Layout, str | None]] = {
        "movq_270m": (layouts.taming(CHANNELS, 1, 4, 4, 16384, [3], spatial=True), None),
        "vqgan_f8": (layouts.taming(CHANNELS, 1, 4, 4, 16384, [3]), "state_dict"),
        "var_vae": (layouts.var([*CHANNELS, 32], 1, 8, 4096, 10), None),
    }
    for name, (layout, wrapper) in files.items():
        state = random_state(layout)
        torch.save({wrapper: state} if wrapper else state, folder / BASELINES[name].sources[0].file)
    make_seed(folder, narrow_seed(seed_layout), {}, narrow_diffusion())
    make_stable_diffusion(folder / "stable-diffusion-v1-5", narrow_diffusion())
    make_pickscore(folder / "PickScore_v1")


def make_pickscore(folder: Path) -> None:
    """A CLIP model in transformers' form, with CLIP's vocabulary."""
    from transformers import CLIPConfig, CLIPModel

    shared = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    text, vision = shared | {"vocab_size": 49408}, shared | {"image_size": 28, "patch_size": 14}
    CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=8)).save_pretrained(folder)


def make_data(folder: Path) -> None:
    """`imagenet/train` and `imagenet/val` by class, and `coco` with captions, of the built-in photographs."""
    pictures = [crop for photograph in sample_photographs().values() for crop in crops(photograph)][:NUM_PICTURES]
    for number, picture in enumerate(pictures):
        for split in ("train", "val"):
            place = folder / "imagenet" / split / f"n{number % 3:08}" / f"{number}.png"
            place.parent.mkdir(parents=True, exist_ok=True)
            picture.save(place)
    coco = folder / "coco"
    (coco / "val2017").mkdir(parents=True)
    listed: dict[str, list[dict[str, Any]]] = {"images": [], "annotations": []}
    for number, picture in enumerate(pictures):
        name = f"{number:012}.png"
        picture.save(coco / "val2017" / name)
        listed["images"].append({"id": number, "file_name": name})
        listed["annotations"] += [
            {"id": 2 * number + i, "image_id": number, "caption": f"{text} {number}"}
            for i, text in enumerate(("a photograph, number", "picture"))
        ]
    write_json(coco / "captions_val2017.json", listed)


def crops(photograph: Image.Image) -> list[Image.Image]:
    """Its left and right half, small."""
    width, height = photograph.size
    halves = [(0, 0, width // 2, height), (width // 2, 0, width, height)]
    return [photograph.crop(half).resize((SIDE, SIDE)) for half in halves]


def make_standins(folder: Path, seed_layout: Layout) -> None:
    """Everything that the commands of docs/reproduce.md read, below `folder`."""
    make_weights(folder / "weights", seed_layout)
    make_data(folder)


def read_layout(path: Path) -> Layout:
    """Names and shapes from a list of keys in JSON."""
    return {key: tuple(shape) for key, shape in json.loads(path.read_text()).items()}
