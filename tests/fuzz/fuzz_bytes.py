"""Damage to the bytes of a file, by kind."""

import random
from collections.abc import Callable


def cut(data: bytes, draw: random.Random) -> bytes:
    """An interrupted download."""
    return data[: draw.randrange(len(data))]


def zero_tail(data: bytes, draw: random.Random) -> bytes:
    """An interrupted download into a file that had its length from the start."""
    kept = draw.randrange(len(data))
    kept -= draw.choice([0, kept % 512, kept % 4096])  # in blocks of the disk
    return data[:kept] + bytes(len(data) - kept)


def hole(data: bytes, draw: random.Random) -> bytes:
    """A part that never came."""
    width = max(1, int(len(data) * draw.uniform(0.02, 0.5)))
    start = draw.randrange(max(1, len(data) - width))
    return data[:start] + bytes(width) + data[start + width :]


def changed_bits(data: bytes, draw: random.Random) -> bytes:
    damaged = bytearray(data)
    for _ in range(draw.choice([1, 1, 2, 8, 64])):
        damaged[draw.randrange(len(damaged))] ^= 1 << draw.randrange(8)
    return bytes(damaged)


def changed_head(data: bytes, draw: random.Random) -> bytes:
    """Sizes, counts and offsets that lie."""
    damaged = bytearray(data)
    for _ in range(draw.choice([1, 2, 4])):
        place = draw.randrange(min(len(damaged), draw.choice([32, 128, 512])))
        damaged[place] = draw.choice([0, 1, 0x7F, 0x80, 0xFF, draw.randrange(256)])
    return bytes(damaged)


def spliced(data: bytes, draw: random.Random) -> bytes:
    """A part twice, or a part left out."""
    start, stop = sorted(draw.sample(range(len(data) + 1), 2))
    return data[:stop] + data[start:] if draw.random() < 0.5 else data[:start] + data[stop:]


def noise(data: bytes, draw: random.Random) -> bytes:
    """A part that belongs to another file."""
    start, stop = sorted(draw.sample(range(len(data) + 1), 2))
    return data[:start] + draw.randbytes(stop - start) + data[stop:]


DAMAGES: dict[str, Callable[[bytes, random.Random], bytes]] = {
    "cut": cut,
    "zero_tail": zero_tail,
    "hole": hole,
    "changed_bits": changed_bits,
    "changed_head": changed_head,
    "spliced": spliced,
    "noise": noise,
}
