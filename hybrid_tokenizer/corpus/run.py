"""The whole run: the plan, the parts that are missing, the shards, and last the file that says what they are."""

import math
import time
from dataclasses import asdict
from typing import Any

import pyarrow.parquet as pq
import ray

from hybrid_tokenizer.corpus.config import EncoderConfig, TokenizeConfig
from hybrid_tokenizer.corpus.encoder import describe_tokenizer
from hybrid_tokenizer.corpus.pipeline import encode_parts, merge_parts, ray_session
from hybrid_tokenizer.corpus.plan import (
    DATA,
    DATASET_NAME,
    FORMAT,
    PARTS,
    VERSION,
    WORK,
    Plan,
    missing_parts,
    open_plan,
)
from hybrid_tokenizer.corpus.rows import skipped_of
from hybrid_tokenizer.corpus.storage import Folder, open_folder
from hybrid_tokenizer.errors import HybridTokenizerError
from hybrid_tokenizer.provenance import git_revision, machine, versions

REPORT_NAME = "report.json"
WAITING = 0.1
"""A pool that waits for a larger share of its time is limited by what feeds it."""


def tokenize(config: TokenizeConfig) -> dict[str, Any]:
    """Fill `config.output` with token shards, or go on where a killed run stopped. Returns the content of dataset.json."""
    output = open_folder(config.output)
    described, grids = describe_tokenizer(config.model_name, config.data.image_size, config.guide_scales)
    plan = open_plan(output, config, described, grids)
    if not output.exists(DATASET_NAME):
        with ray_session(config.ray):
            report = _encode(output, plan, config)
            stored = (output / WORK / PARTS).files()
            shards = min(plan.num_parts, math.ceil(sum(stored.values()) / (config.shard_mb * 2**20)))
            merge_parts(output, plan, shards, config.rows_per_group)
        output.write_json(REPORT_NAME, report)
        output.write_json(DATASET_NAME, describe_dataset(output, plan))
    (output / WORK).remove()
    return output.read_json(DATASET_NAME)


def _encode(output: Folder, plan: Plan, config: TokenizeConfig) -> dict[str, Any]:
    """Every part that is missing. Returns the report on this run."""
    parts = missing_parts(output, plan)
    resources = ray.cluster_resources()
    gpus, device = _device(config, resources.get("GPU", 0.0))
    most = resources["GPU"] // gpus if gpus else resources["CPU"] // config.threads_per_worker
    workers = config.worker_range or (max(1, int(most)),) * 2
    encoder = EncoderConfig(
        config.model_name, plan.tokenizer["hash"], device, config.dtype, config.threads_per_worker, config.batch_size,
        config.guide_scales, config.search_steps,
    )  # fmt: skip
    started = time.perf_counter()
    written = encode_parts(output, plan, parts, encoder, workers, gpus) if parts else []
    seconds = time.perf_counter() - started
    total = {
        name: sum(one[name] for one in written)
        for name in ("num_rows", "bytes_read", "bytes_written", "cut_seconds", "wait_seconds", "encode_seconds")
    }
    busy = total["wait_seconds"] + total["encode_seconds"]
    waiting = total["wait_seconds"] / busy if busy else 0.0
    return {
        "parts": len(written),
        "parts_of_earlier_runs": plan.num_parts - len(written),
        "seconds": seconds,
        "rows_per_second": total["num_rows"] / seconds,
        "waiting_share": waiting,
        **total,
        "limited_by": "reading and cutting" if waiting > WAITING else "encoding",
        "workers": list(workers),
        "encoder": asdict(encoder),
        "machine": machine(),
        "revision": git_revision(),
    }


def _device(config: TokenizeConfig, gpus: float) -> tuple[float, str]:
    """GPUs of a worker, and its device."""
    device = config.device or ("cuda" if gpus and config.gpus_per_worker != 0 else "cpu")
    if device not in ("cpu", "cuda"):
        raise HybridTokenizerError(
            f"device={device!r} must be cpu or cuda; gpus_per_worker says how many GPUs a worker has"
        )
    if device == "cpu":
        if config.gpus_per_worker:
            raise HybridTokenizerError(
                f"gpus_per_worker={config.gpus_per_worker} with device='cpu'; give 0 or device=cuda"
            )
        return 0.0, device
    share = 1.0 if config.gpus_per_worker is None else config.gpus_per_worker
    if not 0 < share <= gpus:
        raise HybridTokenizerError(
            f"gpus_per_worker={share} with {gpus:g} GPUs in the cluster; give device=cpu or fewer"
        )
    return share, device


def describe_dataset(output: Folder, plan: Plan) -> dict[str, Any]:
    """dataset.json, from the shards as they stand."""
    files, skipped = [], []
    for name, size in sorted((output / DATA).files().items()):
        with (output / DATA).open(name) as file:
            stored = pq.ParquetFile(file)
            skipped += skipped_of(stored.schema_arrow)
            if rows := stored.metadata.num_rows:
                per_group = stored.metadata.row_group(0).num_rows
                files.append(
                    {"name": f"{DATA}/{name}", "num_rows": rows, "num_bytes": size, "rows_per_group": per_group}
                )
    if not files:
        first = skipped[0]
        raise HybridTokenizerError(
            f"none of {plan.num_images} images gives a row; the first, {first.key}: {first.reason}"
        )
    num_rows = sum(file["num_rows"] for file in files)
    expected = (plan.num_images - len(skipped)) * max(1, plan.views.views)
    if num_rows != expected:
        raise HybridTokenizerError(
            f"{output.path} holds {num_rows} rows, expected {expected}; remove it and tokenize again, and report this"
        )
    return {
        "format": FORMAT,
        "version": VERSION,
        **asdict(plan),
        "num_rows": num_rows,
        "num_skipped": len(skipped),
        "tokens_per_row": sum(plan.schema.field(name).type.list_size for name in ("semantic", "guide")),
        "files": files,
        "skipped": [one._asdict() for one in skipped],
        "versions": versions(),
    }
