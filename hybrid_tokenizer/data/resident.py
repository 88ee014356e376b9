"""A training stream of photographs that are decoded once and kept on the device, where the crops are cut."""

import math
from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float, UInt8
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from hybrid_tokenizer.data.config import CropConfig, Verify
from hybrid_tokenizer.data.items import Item, item_path, open_item
from hybrid_tokenizer.data.open import UnreadableImage
from hybrid_tokenizer.data.training import TrainingStream, draw_crop, one_thread
from hybrid_tokenizer.images import from_uint8, resize_bicubic


class DoesNotFit(Exception):
    """The photographs need more memory than they may have."""

    def __init__(self, held: int, of: int):
        super().__init__(f"{held} of {of} photographs")


class ResidentStream(TrainingStream):
    """Draws of `TrainingStream`, cut on the device from photographs that are there as 8-bit pixels.

    A photograph is kept so large that the smallest crop still has `crop.size` px, or as large as it is. Boxes are whole pixels of
    it, so crops differ a little from those of `TrainingStream`; which image, box, flip and caption a draw takes is the same. It is
    read in the process that trains, without loader workers.

    Args:
        device: where the photographs are kept and the crops are made.
        megabytes: bound of their memory.
        num_workers: processes that decode.

    Raises:
        DoesNotFit: they need more than `megabytes`.
    """

    resident = True

    def __init__(
        self,
        items: Sequence[Item],
        crop: CropConfig,
        seed: int,
        verify: Verify,
        device: torch.device,
        megabytes: int,
        num_workers: int = 0,
        progress: bool = True,
    ):
        super().__init__(items, crop, seed, verify)
        self.photographs: dict[str, UInt8[Tensor, "3 h w"] | UnreadableImage] = {}
        unique = list({str(item_path(item)): item for item in self.items}.values())
        decoded = DataLoader(
            _Photographs(unique, math.ceil(crop.size / crop.scale[0]), verify),
            batch_size=None,
            num_workers=num_workers,
            worker_init_fn=one_thread,
        )
        used = 0
        for item, photograph in zip(unique, tqdm(decoded, "photographs", disable=not progress), strict=True):
            if isinstance(photograph, Tensor):
                used += photograph.numel()
                if used > megabytes * 10**6:
                    raise DoesNotFit(len(self.photographs), len(unique))
                photograph = photograph.to(device)
            self.photographs[str(item_path(item))] = photograph

    def open(self, item: Item) -> UInt8[Tensor, "3 h w"]:
        photograph = self.photographs[str(item_path(item))]
        if isinstance(photograph, UnreadableImage):
            raise photograph
        return photograph

    def cut(self, picture: UInt8[Tensor, "3 h w"], rng: np.random.Generator) -> Float[Tensor, "3 s s"]:
        height, width = picture.shape[1:]
        box, flipped = draw_crop((width, height), self.crop, rng)
        side = max(1, round(box[2] - box[0]))
        left, top = min(round(box[0]), width - side), min(round(box[1]), height - side)
        square = picture[None, :, top : top + side, left : left + side]
        crop = resize_bicubic(from_uint8(square), (self.crop.size, self.crop.size)).clamp(-1, 1)[0]
        return crop.flip(2) if flipped else crop


class _Photographs(Dataset):
    """Decoded photographs with a shorter side of at most `side`. An unreadable one is its error."""

    def __init__(self, items: list[Item], side: int, verify: Verify):
        self.items, self.side, self.verify = items, side, verify

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> UInt8[Tensor, "3 h w"] | UnreadableImage:
        try:
            image = open_item(self.items[index], self.verify)
        except UnreadableImage as error:
            return error
        shrink = self.side / min(image.size)
        if shrink < 1:
            size = tuple(max(self.side, round(side * shrink)) for side in image.size)
            image = image.resize(size, Image.Resampling.BICUBIC)
        return torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous()
