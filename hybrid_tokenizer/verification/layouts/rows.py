"""Load a full-size baseline from its files and measure a row: parameters, loading time, memory."""

import time
from pathlib import Path
from typing import Any

import torch

from hybrid_tokenizer.baselines.loading import load_baseline
from hybrid_tokenizer.evaluation.images import EvalImages
from hybrid_tokenizer.evaluation.loop import evaluate
from hybrid_tokenizer.evaluation.measures import default_metrics
from hybrid_tokenizer.provenance import peak_memory_bytes

NUM_INFERENCE_STEPS = 2


def fill_row(name: str, folder: Path, image_size: int) -> dict[str, Any]:
    """Load `name` from `folder` through the registry and evaluate it on two built-in photographs.

    Call it in a fresh process, because `peak_memory_bytes` counts the whole process.
    """
    images = EvalImages.from_samples(image_size, max_images=2, progress=False)
    metrics = [metric for metric in default_metrics() if metric.least_side <= image_size]
    start = time.perf_counter()
    tokenizer = load_baseline(name, folder)
    load_seconds = time.perf_counter() - start
    if hasattr(tokenizer, "num_inference_steps"):
        tokenizer.num_inference_steps = NUM_INFERENCE_STEPS
    row = evaluate(tokenizer, images, metrics, batch_size=1, progress=False).row
    assert isinstance(tokenizer, torch.nn.Module)
    return {
        "name": name,
        "ok": not any(key.endswith("_note") for key in row),  # a note says what is not finite
        "parameters": sum(parameter.numel() for parameter in tokenizer.parameters()),
        "bytes": sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()),
        "load_seconds": load_seconds,
        "seconds_per_image": row["seconds_per_image"],
        "num_tokens": row["num_tokens"],
        "bits": row["bits"],
        "n": row["n"],
        "image_size": image_size,
        "peak_memory_bytes": peak_memory_bytes(),
    }
