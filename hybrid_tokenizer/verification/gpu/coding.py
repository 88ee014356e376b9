"""Sections of the GPU check on tokens and decodes: CPU against device, batch against single, precisions, compiled."""

import copy
import time
from collections.abc import Iterator
from functools import cached_property

import torch
from jaxtyping import Float
from torch import Tensor

from hybrid_tokenizer.devices import compile_in_place, tf32
from hybrid_tokenizer.hybrid import HybridTokenizer
from hybrid_tokenizer.provenance import versions as package_versions
from hybrid_tokenizer.tokens import HybridTokens
from hybrid_tokenizer.verification.gpu.config import GpuCheckConfig
from hybrid_tokenizer.verification.gpu.rows import (
    Row,
    at_most,
    differing_codes,
    largest_difference,
    seconds_of,
    synchronize,
)
from hybrid_tokenizer.verification.speed.bench import Bench
from hybrid_tokenizer.verification.speed.config import BenchmarkConfig

DEVICE_CODES = 0.005
"""Share of the codes that may differ between a CPU and a GPU, whose sums round differently."""
DECODE_DIFFERENCE = 5e-3
"""Of values in [-1, 1], between devices or batch sizes."""
PRECISIONS = {
    "tf32": (torch.float32, True, 0.05),
    "bf16": (torch.bfloat16, False, 0.05),
    "fp16": (torch.float16, False, 0.05),
}
"""Name -> dtype of the weights, TF32, bound of the decode's difference from fp32."""


class Coding:
    """The tokenizer and the pictures that the sections share."""

    def __init__(self, config: GpuCheckConfig, images: int | None = None):
        self.config = config
        self.device = torch.device(config.device)
        self.bench = Bench(
            BenchmarkConfig(data_root=config.pictures, batch_size=images or config.sizes.images), self.device
        )

    @cached_property
    def tokenizer(self) -> HybridTokenizer:
        """`tiny` on the device; with random weights where its own are not installed."""
        return self.bench.tokenizer

    @cached_property
    def images(self) -> Float[Tensor, "b 3 h w"]:
        """On the device."""
        return self.bench.images

    @cached_property
    def tokens(self) -> HybridTokens:
        """Of all images in one batch, in fp32 without TF32."""
        return self.encode(self.tokenizer)

    def encode(self, tokenizer: HybridTokenizer, batch_size: int | None = None) -> HybridTokens:
        """One-pass tokens in batches."""
        with tf32(False):
            parts = self.images.split(batch_size or len(self.images))
            return HybridTokens.cat([tokenizer.encode(part, search_steps=0) for part in parts])

    def decode(self, tokenizer: HybridTokenizer, allow_tf32: bool = False) -> Float[Tensor, "b 3 h w"]:
        """The first images' tokens, decoded in one batch with the noise of seed 0."""
        with tf32(allow_tf32):
            return tokenizer.decode(self.tokens[: self.config.sizes.decoded], seed=0)


def versions(config: GpuCheckConfig) -> Iterator[Row]:
    """What runs: packages, device and its memory."""
    for name, version in package_versions().items():
        yield Row(name, version)
    device = torch.device(config.device)
    if device.type != "cuda":
        yield Row("device", str(device))
        return
    properties = torch.cuda.get_device_properties(device)
    yield Row("device", properties.name)
    yield Row("memory", properties.total_memory / 2**30, "GiB")
    yield Row("CUDA", torch.version.cuda)
    yield Row("cuDNN", torch.backends.cudnn.version())


def devices(config: GpuCheckConfig) -> Iterator[Row]:
    """Tokens and decodes of the CPU against those of the device."""
    coding = Coding(config)
    cpu = copy.deepcopy(coding.tokenizer).to("cpu")
    theirs = cpu.encode(coding.images.cpu(), search_steps=0)
    for name, share in differing_codes(coding.tokens, theirs).items():
        yield at_most(f"codes that differ, {name}", share, DEVICE_CODES, "share")
    decoded = cpu.decode(coding.tokens[: config.sizes.decoded].to("cpu"), seed=0)
    yield at_most("decode of equal tokens", largest_difference(coding.decode(coding.tokenizer), decoded), DECODE_DIFFERENCE, "of [-1, 1]")  # fmt: skip


def batches(config: GpuCheckConfig) -> Iterator[Row]:
    """Whether an image's tokens and decode depend on its batch."""
    coding = Coding(config)
    first, *others = config.sizes.batch_sizes
    single = coding.encode(coding.tokenizer, first)
    for batch_size in others:
        shares = differing_codes(single, coding.encode(coding.tokenizer, batch_size))
        yield at_most(f"codes that differ, batches of {batch_size} against {first}", max(shares.values()), 0, "share")
    with tf32(False):
        alone = torch.cat([coding.tokenizer.decode(coding.tokens[i], seed=0) for i in range(config.sizes.decoded)])
    yield at_most("decode in a batch against alone", largest_difference(coding.decode(coding.tokenizer), alone), DECODE_DIFFERENCE, "of [-1, 1]")  # fmt: skip


def precisions(config: GpuCheckConfig) -> Iterator[Row]:
    """What TF32, bf16 and fp16 change, and how fast each precision is."""
    coding = Coding(config)
    exact = coding.decode(coding.tokenizer)
    yield from _rates(coding, coding.tokenizer, "fp32", False)
    for name, (dtype, allow_tf32, bound) in PRECISIONS.items():
        tokenizer = copy.deepcopy(coding.tokenizer).to(coding.device, dtype)
        with tf32(allow_tf32):
            shares = differing_codes(coding.tokens, tokenizer.encode(coding.images, search_steps=0))
        yield from (Row(f"{name}: codes that differ, {part}", share, "share") for part, share in shares.items())
        yield at_most(f"{name}: decode against fp32", largest_difference(coding.decode(tokenizer, allow_tf32), exact), bound, "of [-1, 1]")  # fmt: skip
        yield from _rates(coding, tokenizer, name, allow_tf32)


def _rates(coding: Coding, tokenizer: HybridTokenizer, name: str, allow_tf32: bool) -> Iterator[Row]:
    with tf32(allow_tf32):
        seconds = seconds_of(lambda: tokenizer.encode(coding.images, search_steps=0), coding.device)
    yield Row(f"{name}: encode", len(coding.images) / seconds, "images/s")
    seconds = seconds_of(lambda: coding.decode(tokenizer, allow_tf32), coding.device)
    yield Row(f"{name}: decode", coding.config.sizes.decoded / seconds, "images/s")


def compiled(config: GpuCheckConfig) -> Iterator[Row]:
    """torch.compile against eager. The reduced form compiles the guide's decoder alone: the rest takes a CPU minutes."""
    coding = Coding(config, config.sizes.decoded)
    fast = copy.deepcopy(coding.tokenizer)
    if config.reduced:
        compile_in_place(fast.guide.decoder)
    else:
        fast.compile()
    start = time.perf_counter()
    shares = differing_codes(coding.tokens, coding.encode(fast))
    difference = largest_difference(coding.decode(fast), coding.decode(coding.tokenizer))
    synchronize(coding.device)
    yield Row("first encode and decode, with compiling", time.perf_counter() - start, "s")
    yield at_most("codes that differ from eager", max(shares.values()), DEVICE_CODES, "share")
    yield at_most("decode against eager", difference, DECODE_DIFFERENCE, "of [-1, 1]")
    for name, tokenizer in (("eager", coding.tokenizer), ("compiled", fast)):
        yield from _rates(coding, tokenizer, name, False)
