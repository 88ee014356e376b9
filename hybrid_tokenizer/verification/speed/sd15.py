"""The rows at the paper's sizes, beside the limit that their operation count sets on the device."""

from typing import Any

import torch

from hybrid_tokenizer.devices import INDUCTOR
from hybrid_tokenizer.verification.speed.alternatives import PlainPipeline
from hybrid_tokenizer.verification.speed.bench import Bench, random_tokenizer, sd15_configs
from hybrid_tokenizer.verification.speed.coding import decode_contest, encode_contest
from hybrid_tokenizer.verification.speed.flops import count_flops, share_of_limit

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
    plain = PlainPipeline(tokenizer)
    count = min(IMAGES[name], 2) if reduced else IMAGES[name]
    images = bench.images[:1].expand(count, -1, -1, -1).contiguous()
    if name == "sd15_encode":
        contest = encode_contest(tokenizer, plain, images, name)
        flops = count_flops(lambda: tokenizer.encode(images[:1], search_steps=0), tokenizer)
    else:
        side = images.shape[-1] if reduced else SIZE
        contest = decode_contest(bench, tokenizer, plain, images, name, (side, side))
        flops = count_flops(decode_contest(bench, tokenizer, plain, images[:1], name, (side, side)).ours, tokenizer)
        if bench.config.compile:
            # the reduced form traces the network; inductor would take a CPU two minutes
            tokenizer.diffusion.compile_unet(bench.config.compile_mode, "eager" if reduced else INDUCTOR)
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
