"""The rows of encoding and decoding, each against the plain pipeline on the same weights."""

import copy
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from hybrid_tokenizer.hybrid import HybridTokenizer
from hybrid_tokenizer.tokens import HybridTokens
from hybrid_tokenizer.verification.speed.alternatives import PlainPipeline
from hybrid_tokenizer.verification.speed.bench import Bench
from hybrid_tokenizer.verification.speed.timing import Contest

SEARCH_STEPS = 8
PLAIN_START = {"start": "ddim_inversion", "inversion_condition": "generation", "guidance_scale": 1.0}
"""What both sides of the decoding rows do, whatever the preset's defaults are: every inversion step calls the U-Net."""


def encode(bench: Bench) -> dict[str, Any]:
    """A batch in one call."""
    return bench.measure_fast(encode_contest(bench.fast, bench.plain, bench.images, "encode"))


def encode_contest(
    tokenizer: HybridTokenizer, plain: PlainPipeline, images: Float[Tensor, "b 3 r r"], name: str
) -> Contest:
    """A batch in one call, against one image at a time. The outputs' difference is the share of tokens that differ."""
    _ = tokenizer.hash  # computed once per tokenizer

    def differing(ours: HybridTokens, theirs: list[Any]) -> float:
        pairs = [(ours.semantic_indices, torch.cat([semantic for semantic, _ in theirs]))]
        for scale, grid in enumerate(ours.guide_indices):
            pairs.append((grid, torch.cat([grids[scale] for _, grids in theirs])))
        return share_of_differing(pairs)

    return Contest(
        name=name,
        unit="images/s",
        ours=lambda: tokenizer.encode(images, search_steps=0),
        alternative=lambda: [plain.encode_one(image) for image in images.split(1)],
        amount=len(images),
        difference=differing,
        notes={
            "ours_is": f"HybridTokenizer.encode without search, batch {len(images)}",
            "alternative_is": "transformers' BLIP-2 classes, diffusers' Encoder and torch.cdist by hand, one image at a time",
            "difference_is": "share of tokens that differ",
            "batch_size": len(images),
            "model": tokenizer.name,
        },
    )


def encode_search(bench: Bench) -> dict[str, Any]:
    """The cost of the search for better guide codes."""
    tokenizer, images = bench.fast, bench.images
    contest = Contest(
        name="encode_search",
        unit="images/s",
        ours=lambda: tokenizer.encode(images, search_steps=SEARCH_STEPS),
        alternative=lambda: tokenizer.encode(images, search_steps=0),
        amount=len(images),
        difference=lambda ours, theirs: share_of_differing(
            list(zip(ours.guide_indices, theirs.guide_indices, strict=True))
        ),
        notes={
            "ours_is": f"HybridTokenizer.encode with {SEARCH_STEPS} steps of search, batch {len(images)}",
            "alternative_is": "the same without search",
            "difference_is": "share of guide tokens that differ",
            "search_steps": SEARCH_STEPS,
            "batch_size": len(images),
            "model": tokenizer.name,
        },
    )
    return bench.measure_fast(contest)


def share_of_differing(pairs: list[tuple[Tensor, Tensor]]) -> float:
    """The share of tokens that differ within pairs of grids."""
    wrong = sum((left.cpu() != right.cpu()).sum().item() for left, right in pairs)
    return wrong / sum(left.numel() for left, _ in pairs)


def decode(bench: Bench) -> dict[str, Any]:
    """A batch."""
    return bench.measure_fast(decode_contest(bench, bench.fast, bench.plain, bench.images, "decode"))


def decode_latency(bench: Bench) -> dict[str, Any]:
    """One image, in seconds."""
    return bench.measure_fast(decode_contest(bench, bench.fast, bench.plain, bench.images[:1], "decode_latency"))


def decode_bf16(bench: Bench) -> dict[str, Any]:
    """U-Net and VAE in bf16, latents and tokens in fp32, against the plain code in fp32. The images are not equal."""
    tokenizer = copy.deepcopy(bench.tokenizer)
    tokenizer.diffusion.to(dtype=torch.bfloat16)
    if bench.config.compile:
        tokenizer.compile(bench.config.compile_mode)
    contest = decode_contest(bench, tokenizer, bench.plain, bench.images, "decode_bf16")
    contest.notes["ours_is"] += ", U-Net and VAE in bf16"
    contest.notes["alternative_is"] += ", in fp32"
    return bench.measure_fast(contest)


def decode_contest(
    bench: Bench, tokenizer: HybridTokenizer, plain: PlainPipeline, images: Float[Tensor, "b 3 r r"], name: str,
    size: tuple[int, int] | None = None,
) -> Contest:  # fmt: skip
    """Tokens to images by DDIM inversion without guidance; one image alone is measured in seconds."""
    tokens = tokenizer.encode(images, search_steps=0)
    steps, strength = bench.config.num_inference_steps, bench.config.strength
    size = size or tokens.image_size
    single = len(images) == 1

    def ours() -> Tensor:
        return tokenizer.decode(tokens, size, strength=strength, num_inference_steps=steps, **PLAIN_START)

    def theirs() -> Tensor:
        return plain.decode(tokens.semantic_indices, tokens.guide_indices, size, steps, strength)

    return Contest(
        name=name,
        unit="s" if single else "images/s",
        ours=ours,
        alternative=theirs,
        amount=0 if single else len(images),
        difference=largest_difference,
        notes={
            "ours_is": f"HybridTokenizer.decode, batch {len(images)}",
            "alternative_is": "the branches and diffusers' DDIMInverseScheduler and DDIMScheduler driven by hand, same batch",
            "difference_is": "largest difference of a value in [-1, 1]",
            "batch_size": len(images),
            "size": list(size),
            "options": {"num_inference_steps": steps, "strength": strength, **PLAIN_START},
            "model": tokenizer.name,
        },
    )  # fmt: skip


def decode_batch8_vs_1(bench: Bench) -> dict[str, Any]:
    """A batch, against our own decoding of one image after the other."""
    tokenizer = bench.fast
    tokens = tokenizer.encode(bench.images, search_steps=0)
    alone = [tokenizer.encode(image, search_steps=0) for image in bench.images.split(1)]
    options = {
        "strength": bench.config.strength, "num_inference_steps": bench.config.num_inference_steps, **PLAIN_START
    }  # fmt: skip
    contest = Contest(
        name="decode_batch8_vs_1",
        unit="images/s",
        ours=lambda: tokenizer.decode(tokens, **options),
        alternative=lambda: torch.cat([tokenizer.decode(one, **options) for one in alone]),
        amount=len(bench.images),
        difference=largest_difference,
        notes={
            "ours_is": f"HybridTokenizer.decode, batch {len(bench.images)}",
            "alternative_is": "HybridTokenizer.decode, batch 1, the same images one after the other",
            "difference_is": "largest difference of a value in [-1, 1]",
            "batch_size": len(bench.images),
            "model": tokenizer.name,
        },
    )
    return bench.measure_fast(contest)


def largest_difference(ours: Tensor, theirs: Tensor) -> float:
    """Of any value."""
    return (ours - theirs).abs().max().item()
