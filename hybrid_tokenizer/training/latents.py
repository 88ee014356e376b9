"""Caches what does not change while the U-Net trains: latents, guides and semantic tokens of the training crops."""

import hashlib
import json
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor
from torch.utils.data import Dataset
from tqdm import tqdm

from hybrid_tokenizer.checkpoints.files import load_tensors, read_json, save_tensors, state_hash, write_json
from hybrid_tokenizer.data import UnreadableImage
from hybrid_tokenizer.data.config import Verify
from hybrid_tokenizer.data.items import Item, item_captions, item_stamp, open_item
from hybrid_tokenizer.data.training import CropConfig, random_crop
from hybrid_tokenizer.diffusion import DiffusionDecoder
from hybrid_tokenizer.errors import HybridTokenizerError
from hybrid_tokenizer.guide import GuideTokenizer
from hybrid_tokenizer.images import from_pil, full_resolution_chunk, resize_bicubic, to_uint8
from hybrid_tokenizer.semantic import SemanticTokenizer
from hybrid_tokenizer.training.facts import items_hash
from hybrid_tokenizer.training.state import writing


class LatentStream(Dataset):
    """Endless shuffled epochs over cached crops, addressed by draw number like `TrainingStream`."""

    def __init__(
        self,
        latents: Float[Tensor, "n c h w"],
        semantic_indices: Int[Tensor, "n q"],
        captions: Sequence[tuple[str, ...]],
        seed: int,
        guide_latents: Float[Tensor, "n s c h w"] | None = None,
        pixels: UInt8[Tensor, "n 3 H W"] | None = None,
        data_hash: str | None = None,
    ):
        """data_hash: of the images that the latents come from, for a resumed run to compare."""
        self.latents, self.semantic_indices, self.captions, self.seed = latents, semantic_indices, list(captions), seed
        self.guide_latents, self.pixels, self.data_hash = guide_latents, pixels, data_hash

    @property
    def epoch_length(self) -> int:
        """Crops of one epoch."""
        return len(self.latents)

    def guide_residual(self) -> Float[Tensor, "c"]:
        """Mean square of latents minus the whole guide's latents, per channel."""
        return (self.latents.float() - self.guide_latents[:, -1].float()).square().mean((0, 2, 3))

    def __getitem__(self, draw: int) -> dict[str, Any]:
        epoch, position = divmod(draw, len(self.latents))
        order = np.random.default_rng((self.seed, 0, epoch)).permutation(len(self.latents))
        row = order[position]
        captions = self.captions[row]
        sample = {
            "latents": self.latents[row].float(),
            "semantic_indices": self.semantic_indices[row].long(),
            "captions": captions[np.random.default_rng((self.seed, 1, draw)).integers(len(captions))],
            "skipped": [],
        }
        if self.guide_latents is not None:
            sample["guide_latents"] = self.guide_latents[row].float()
        if self.pixels is not None:
            sample["pixels"] = self.pixels[row]
        return sample


def cache_latents(
    folder: Path,
    items: Sequence[Item],
    crop: CropConfig,
    views: int,
    seed: int,
    decoder: DiffusionDecoder,
    semantic: SemanticTokenizer | None,
    guide: GuideTokenizer | None = None,
    bf16: bool = False,
    pixels: bool = False,
    verify: Verify = "full",
) -> LatentStream:
    """Encode `views` random crops of each item to latents (fp16), semantic tokens and latents of the guide.

    `folder` keeps each of these in a file for the next start, which is computed again for other images, crops or weights.
    Without a semantic tokenizer the indices are empty. Unreadable images are reported and left out.

    Args:
        bf16: encode images and guides under autocast, several times faster. Semantic tokens are computed in fp32 all the same.
        pixels: also keep the crops themselves, in 8 bits.
        verify: how thoroughly every image is checked for damage.
    """
    crops = [[item_stamp(item) for item in items], [crop.size, *crop.scale, crop.flip, views, seed]]
    encode = partial(encode_views, items, crop, views, seed, verify)
    normalised = [decoder.config.latent_shift, decoder.config.latent_scale]
    # without the VAE's decoder, which may train and does not change what is encoded
    vae = [[state_hash(part) for name, part in decoder.vae.named_children() if name != "decoder"], normalised, bf16]
    autocast = torch.autocast(decoder.device.type, torch.bfloat16, enabled=bf16)
    latents, kept = cached(
        folder / "latents.safetensors",
        [crops, *vae],
        lambda: encode(
            "latents",
            autocast(lambda images: decoder.encode_latents(images.to(decoder.device)).half()),
        ),
    )
    if semantic is None:
        indices = torch.zeros(len(latents), 0, dtype=torch.int32)
    else:
        device = next(semantic.parameters()).device
        indices, kept_too = cached(
            folder / "semantic.safetensors",
            [crops, state_hash(semantic)],
            lambda: encode("semantic tokens", lambda images: semantic.encode(images.to(device)).int()),
        )
        check_same(kept, kept_too, folder)
    guide_latents = None
    if guide is not None:
        encode_guide = guide_encoder(decoder, guide, seed)
        guide_latents, kept_too = cached(
            folder / "guides.safetensors",
            [crops, *vae, state_hash(guide), "one shorter prefix a batch"],
            lambda: encode(
                "guides",
                autocast(lambda images: encode_guide(images).half()),
            ),
        )
        check_same(kept, kept_too, folder)
    crop_pixels = None
    if pixels:
        crop_pixels, kept_too = cached(
            folder / "pixels.safetensors",
            [crops],
            lambda: encode("pixels", to_uint8),
        )
        check_same(kept, kept_too, folder)
    captions = [item_captions(items[index]) for index in kept.tolist() for _ in range(views)]
    return LatentStream(latents, indices, captions, seed, guide_latents, crop_pixels, items_hash(items))


def check_same(kept: Int[Tensor, "k"], kept_too: Int[Tensor, "l"], folder: Path) -> None:
    """Raise when two files are of different images."""
    if not torch.equal(kept, kept_too):
        raise HybridTokenizerError(
            f"the files in {folder} are of different images, because some images could not be read for one of them; delete the "
            "folder and run again"
        )


@torch.no_grad()
def encode_guides(
    decoder: DiffusionDecoder, guide: GuideTokenizer, images: Float[Tensor, "b 3 H W"], scales: Sequence[int | None]
) -> Float[Tensor, "b s c h w"]:
    """Normalised latents of the guide images, as `DiffusionDecoder.decode` computes them.

    Args:
        scales: how many scales of a nested guide to decode, once for each entry; None stands for all.
    """
    device, size = decoder.device, (images.shape[-2], images.shape[-1])
    indices = guide.encode(images.to(device))
    latents = []
    for kept in scales:
        guide_images = guide.decode(indices[:kept], grid_size=guide.config.grid_size(size)).float().clamp(-1, 1)
        resized = resize_bicubic(guide_images, size).clamp(-1, 1)
        latents.append(decoder.encode_latents(resized, full_resolution_chunk(device)))
    return torch.stack(latents, dim=1)


def guide_encoder(
    decoder: DiffusionDecoder, guide: GuideTokenizer, seed: int
) -> Callable[[Float[Tensor, "b 3 H W"]], Float[Tensor, "b s c h w"]]:
    """Encodes a batch to latents of its whole guides, preceded for a nested guide by those of one random shorter prefix.

    All prefixes of all images would take longer to decode than the U-Net takes to train.
    """
    generator = torch.Generator().manual_seed(seed)
    count = len(guide.config.guide_scales or [0])

    def encode(images: Float[Tensor, "b 3 H W"]) -> Float[Tensor, "b s c h w"]:
        shorter = [int(torch.randint(1, count, (), generator=generator))] if count > 1 else []
        return encode_guides(decoder, guide, images, [*shorter, None])

    return encode


def cached(path: Path, facts: list[Any], make: Callable[[], tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """The result of `make`, read from `path` if that was written for the same `facts`."""
    key = hashlib.sha256(json.dumps(facts).encode()).hexdigest()
    listing = path.with_suffix(".json")
    if not (listing.exists() and path.exists() and read_json(listing)["key"] == key):
        values, kept = make()
        with writing(path.parent):
            listing.unlink(missing_ok=True)  # a kill before the next lines must not leave the old key beside new values
            save_tensors(path, {"values": values, "kept": kept})
            write_json(listing, {"key": key})
    stored = load_tensors(path)
    return stored["values"], stored["kept"]


@torch.no_grad()
def encode_views(
    items: Sequence[Item],
    crop: CropConfig,
    views: int,
    seed: int,
    verify: Verify,
    label: str,
    encode: Callable[[Float[Tensor, "b 3 s s"]], Tensor],
    batch_size: int = 16,
) -> tuple[Tensor, Int[Tensor, "k"]]:
    """The encoded crops of every readable item, those of an item together, and the positions of these items."""
    kept, crops, encoded = [], [], []
    for number, item in enumerate(tqdm(items, desc=label, unit="image")):
        try:
            image = open_item(item, verify)
            item_captions(item)  # raises where a shard has none for it
        except UnreadableImage as error:
            print(f"skipped {error.name}: {error.reason}", flush=True)
            continue
        kept.append(number)
        crops += [
            from_pil(random_crop(image, crop, np.random.default_rng((seed, 2, number, view)))) for view in range(views)
        ]
        while len(crops) >= batch_size:
            encoded.append(encode(torch.stack(crops[:batch_size])).cpu())
            crops = crops[batch_size:]
    if crops:
        encoded.append(encode(torch.stack(crops)).cpu())
    if not encoded:
        raise HybridTokenizerError("no training image can be read; give a data.root with images")
    return torch.cat(encoded), torch.tensor(kept)
