"""The rows at the paper's sizes, beside the limit that their operation count sets on the device."""

from collections.abc import Callable
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from hybrid_tokenizer.verification.speed.alternatives import PlainPipeline
from hybrid_tokenizer.verification.speed.bench import Bench, random_tokenizer, sd15_configs
from hybrid_tokenizer.verification.speed.coding import decode_contest, encode_contest

ATTAINABLE_FLOPS = {"H100": 800e12, "H200": 800e12}
"""Dense bf16, as far as matrix products reach it; by a part of the device's name."""
IMAGES = {"sd15_encode": 32, "sd15_decode": 8, "sd15_decode_latency": 1}
SIZE = 512


def sd15_row(bench: Bench, name: str) -> dict[str, Any]:
    """Random weights in bf16.

    `BenchmarkConfig.reduced` has narrow layers, at most two small images, and fp32, in which both sides must agree.
    """
    reduced, device = bench.config.reduced, bench.device
    dtype = torch.float32 if reduced else torch.bfloat16
    with torch.device(device):
        tokenizer = random_tokenizer(*sd15_configs(reduced), name="sd15 reduced" if reduced else "sd15")
    tokenizer.to(device, dtype)
    for branch in (tokenizer.guide, tokenizer.semantic, tokenizer.diffusion):
        branch.requires_grad_(False)  # torch's counter fails on a parameter with a gradient that is a module's input
    plain = PlainPipeline(tokenizer)
    count = min(IMAGES[name], 2) if reduced else IMAGES[name]
    images = bench.images[:1].expand(count, -1, -1, -1).contiguous()
    if name == "sd15_encode":
        contest = encode_contest(tokenizer, plain, images, name)
        flops = count_flops(lambda: tokenizer.encode(images[:1], search_steps=0))
    else:
        side = images.shape[-1] if reduced else SIZE
        contest = decode_contest(bench, tokenizer, plain, images, name, (side, side))
        flops = count_flops(decode_contest(bench, tokenizer, plain, images[:1], name, (side, side)).ours)
        if bench.config.compile:
            tokenizer.diffusion.compile_unet()
    cuda = device.type == "cuda"
    if cuda:
        torch.cuda.reset_peak_memory_stats(device)
    row = bench.measure(contest)
    row |= {
        "dtype": str(dtype).removeprefix("torch."),
        "compiled": bench.config.compile and name != "sd15_encode",
        "reduced": reduced,
        "tflop_per_image": flops / 1e12,
    }
    if cuda:
        row["peak_memory_bytes"] = torch.cuda.max_memory_allocated(device)
        row |= share_of_limit(row, torch.cuda.get_device_name(device), flops)
    return row


def share_of_limit(row: dict[str, Any], device_name: str, flops: int) -> dict[str, float]:
    """The images per second that the device could reach, and the share that ours does. Empty for an unknown device."""
    attainable = next((rate for part, rate in ATTAINABLE_FLOPS.items() if part in device_name), None)
    if attainable is None:
        return {}
    limit = attainable / flops
    rate = row["ours"] if row["unit"] == "images/s" else 1 / row["ours"]
    return {"limit_images_per_second": limit, "share_of_limit": rate / limit}


def count_flops(run: Callable[[], Any]) -> int:
    """Floating-point operations of one call."""
    with FlopCounterMode(display=False) as counter:
        run()
    return counter.get_total_flops()
