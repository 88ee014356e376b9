"""What does not change while the U-Net trains, cached: latents, guides and semantic tokens of the training crops."""

from collections.abc import Callable, Sequence
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from torch.utils.data import Dataset

from hybrid_tokenizer.checkpoints.files import state_hash
from hybrid_tokenizer.data.items import Item, item_captions
from hybrid_tokenizer.diffusion import DiffusionDecoder
from hybrid_tokenizer.guide import GuideTokenizer
from hybrid_tokenizer.images import full_resolution_chunk, resize_bicubic, to_uint8
from hybrid_tokenizer.semantic import SemanticTokenizer
from hybrid_tokenizer.training.crop_cache import CachedRows, CropSource, Kind, cached_rows
from hybrid_tokenizer.training.facts import items_hash

USED_AS = {torch.float16: torch.float32, torch.int32: torch.int64}
"""The dtype of a batch by that of the file."""
SHARDS_OF_ESTIMATE = 16


class LatentStream(Dataset):
    """Endless shuffled epochs over cached crops, addressed by draw number like `TrainingStream`."""

    def __init__(self, items: Sequence[Item], kept: np.ndarray, views: int, rows: dict[str, CachedRows], seed: int):
        """rows: by their names in a batch; `views` for each of the items whose numbers are in `kept`."""
        self.items, self.kept, self.views, self.rows, self.seed = items, kept, views, rows, seed
        self._permutation = lru_cache(maxsize=2)(self._permute)

    @property
    def epoch_length(self) -> int:
        """Crops of one epoch."""
        return self.views * len(self.kept)

    @cached_property
    def data_hash(self) -> str:
        """Of the images that the rows come from, for a resumed run to compare."""
        return items_hash(self.items)

    def guide_residual(self) -> Float[Tensor, "c"]:
        """Mean square of latents minus the whole guide's latents, per channel: of all rows, or of evenly spaced shards."""
        latents, guides = self.rows["latents"], self.rows["guide_latents"]
        filled = np.flatnonzero(np.diff(latents.ends, prepend=0)).tolist()
        chosen = filled[:: -(-len(filled) // SHARDS_OF_ESTIMATE)]
        squares = [(latents.shard(number).float() - guides.shard(number)[:, -1].float()).square() for number in chosen]
        return torch.cat([square.mean((2, 3)) for square in squares]).mean(0)

    def _permute(self, epoch: int) -> np.ndarray:
        return np.random.default_rng((self.seed, 0, epoch)).permutation(self.epoch_length)

    def __getstate__(self) -> dict[str, Any]:  # an lru_cache cannot be pickled to spawned workers
        return {name: getattr(self, name) for name in ("items", "kept", "views", "rows", "seed")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(**state)

    def __getitem__(self, draw: int) -> dict[str, Any]:
        epoch, position = divmod(draw, self.epoch_length)
        row = int(self._permutation(epoch)[position])
        captions = item_captions(self.items[self.kept[row // self.views]])
        sample = {
            "captions": captions[np.random.default_rng((self.seed, 1, draw)).integers(len(captions))],
            "skipped": [],
        }
        for name, rows in self.rows.items():
            values = rows[row]
            sample[name] = values.to(USED_AS.get(values.dtype, values.dtype))
        return sample


def cache_latents(
    folder: Path,
    source: CropSource,
    decoder: DiffusionDecoder,
    semantic: SemanticTokenizer | None,
    guide: GuideTokenizer | None = None,
    bf16: bool = False,
    pixels: bool = False,
    num_workers: int = 0,
) -> LatentStream:
    """Encode the crops of `source` to latents (fp16), semantic tokens and latents of the guide, with models on one device.

    `folder` keeps all of these for the next start; see `crop_cache.cached_rows`. Unreadable images are reported and left out.

    Args:
        bf16: encode images and guides under autocast, several times faster. Semantic tokens are computed in fp32 all the same.
        pixels: also keep the crops themselves, in 8 bits.
        num_workers: loader processes.
    """
    device = decoder.device
    normalised = [decoder.config.latent_shift, decoder.config.latent_scale]
    # without the VAE's decoder, which may train and does not change what is encoded
    vae = [[state_hash(part) for name, part in decoder.vae.named_children() if name != "decoder"], normalised, bf16]
    autocast = torch.autocast(device.type, torch.bfloat16, enabled=bf16)
    kinds = [Kind("latents", vae, autocast(lambda images, first: decoder.encode_latents(images).half()))]
    if semantic is not None:
        kinds.append(
            Kind(
                "semantic_indices",
                [state_hash(semantic)],
                lambda images, first: semantic.encode(images).int(),
            )
        )
    if guide is not None:
        encode_guide = autocast(guide_encoder(decoder, guide, source.seed))
        kinds.append(Kind("guide_latents", [*vae, state_hash(guide), "one shorter prefix a batch"], encode_guide))
    if pixels:
        kinds.append(Kind("pixels", [], lambda images, first: to_uint8(images)))
    kept, rows = cached_rows(folder, source, kinds, device, num_workers)
    return LatentStream(source.items, kept, source.views, rows, source.seed)


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
) -> Callable[[Float[Tensor, "b 3 H W"], int], Float[Tensor, "b s c h w"]]:
    """Encodes a batch to latents (fp16) of its whole guides, preceded for a nested guide by those of one shorter prefix, which
    is random but follows from the number of the batch's first item.

    All prefixes of all images would take longer to decode than the U-Net takes to train.
    """
    count = len(guide.config.guide_scales or [0])

    def encode(images: Float[Tensor, "b 3 H W"], first: int) -> Float[Tensor, "b s c h w"]:
        shorter = [int(np.random.default_rng((seed, 3, first)).integers(1, count))] if count > 1 else []
        return encode_guides(decoder, guide, images, [*shorter, None]).half()

    return encode
