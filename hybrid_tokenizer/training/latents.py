"""Latents and semantic tokens of a training set, computed once: neither changes while the U-Net trains."""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.utils.data import Dataset
from tqdm import tqdm

from hybrid_tokenizer.checkpoints.files import load_tensors, read_json, save_tensors, state_hash, write_json
from hybrid_tokenizer.data import UnreadableImage
from hybrid_tokenizer.data.items import Item, item_captions, item_path, open_item
from hybrid_tokenizer.data.training import CropConfig, random_crop
from hybrid_tokenizer.diffusion import DiffusionDecoder
from hybrid_tokenizer.errors import HybridTokenizerError
from hybrid_tokenizer.images import from_pil
from hybrid_tokenizer.semantic import SemanticTokenizer


class LatentStream(Dataset):
    """Endless shuffled epochs over cached views, addressed by draw number like `TrainingStream`."""

    def __init__(
        self,
        latents: Float[Tensor, "n c h w"],
        semantic_indices: Int[Tensor, "n q"],
        captions: Sequence[tuple[str, ...]],
        seed: int,
    ):
        self.latents, self.semantic_indices, self.captions, self.seed = latents, semantic_indices, list(captions), seed

    def __getitem__(self, draw: int) -> dict[str, Any]:
        epoch, position = divmod(draw, len(self.latents))
        order = np.random.default_rng((self.seed, 0, epoch)).permutation(len(self.latents))
        row = order[position]
        captions = self.captions[row]
        return {
            "latents": self.latents[row].float(),
            "semantic_indices": self.semantic_indices[row].long(),
            "captions": captions[np.random.default_rng((self.seed, 1, draw)).integers(len(captions))],
            "skipped": [],
        }


@torch.no_grad()
def cache_latents(
    folder: Path,
    items: Sequence[Item],
    crop: CropConfig,
    views: int,
    seed: int,
    decoder: DiffusionDecoder,
    semantic: SemanticTokenizer | None,
    batch_size: int = 16,
) -> LatentStream:
    """`views` random crops of each item as latents (fp16) and semantic tokens, kept in `folder` for the next start.

    A cache of other images, crops or weights is made anew. Without a semantic tokenizer the indices are empty. Unreadable
    images are named and left out.
    """
    key = hashlib.sha256(
        json.dumps(
            [
                [str(item_path(item)) for item in items],
                [crop.size, *crop.scale, crop.flip, views, seed],
                state_hash(decoder.vae),
                decoder.config.latent_shift,
                decoder.config.latent_scale,
                state_hash(semantic) if semantic else None,
            ]
        ).encode()
    ).hexdigest()
    listing, tensors = folder / "latents.json", folder / "latents.safetensors"
    if not (listing.exists() and tensors.exists() and read_json(listing)["key"] == key):
        _fill_cache(listing, tensors, key, items, crop, views, seed, decoder, semantic, batch_size)
    kept, stored = read_json(listing)["kept"], load_tensors(tensors)
    captions = [item_captions(items[index]) for index in kept for _ in range(views)]
    return LatentStream(stored["latents"], stored["semantic_indices"], captions, seed)


def _fill_cache(
    listing: Path,
    tensors: Path,
    key: str,
    items: Sequence[Item],
    crop: CropConfig,
    views: int,
    seed: int,
    decoder: DiffusionDecoder,
    semantic: SemanticTokenizer | None,
    batch_size: int,
) -> None:
    kept, crops, latents, indices = [], [], [], []

    def encode() -> None:
        images = torch.stack(crops).to(decoder.device)
        crops.clear()
        latents.append(decoder.encode_latents(images).half().cpu())
        tokens = semantic.encode(images) if semantic else torch.zeros(len(images), 0, dtype=torch.long)
        indices.append(tokens.to(torch.int32).cpu())

    for number, item in enumerate(tqdm(items, desc="latents", unit="image")):
        try:
            image = open_item(item)
            item_captions(item)  # a sample without any is left out here
        except UnreadableImage as error:
            print(f"skipped {error.path}: {error.reason}", flush=True)
            continue
        kept.append(number)
        for view in range(views):
            crops.append(from_pil(random_crop(image, crop, np.random.default_rng((seed, 2, number, view)))))
            if len(crops) == batch_size:
                encode()
    if crops:
        encode()
    if not latents:
        raise HybridTokenizerError("no training image can be read; give a data.root with images")
    save_tensors(tensors, {"latents": torch.cat(latents), "semantic_indices": torch.cat(indices)})
    write_json(listing, {"key": key, "kept": kept})
