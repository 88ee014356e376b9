"""The corpus through Ray Data: images are read and cut by CPU tasks, encoded by a pool of tokenizers, written by a sink.

One row of the Ray dataset is a part: some hundred images of the list, encoded in whole batches and stored as one file under
a name that says which part it is. Who writes a part, and how often, does not change what stands there.
"""

import logging
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import ray
import ray.data
from ray.data.block import BlockAccessor

from hybrid_tokenizer.corpus.config import EncoderConfig, RayConfig
from hybrid_tokenizer.corpus.plan import DATA, PARTS, WORK, Plan, part_name, read_part, shard_name
from hybrid_tokenizer.corpus.rows import cut_rows, skipped_of, token_rows, with_skipped
from hybrid_tokenizer.corpus.sources import fetch
from hybrid_tokenizer.corpus.storage import Folder
from hybrid_tokenizer.errors import HybridTokenizerError, first_line

MOST_TASKS = 10_000
"""Tasks that the driver keeps account of; beyond that many parts, one task cuts several, one after another."""


def cut_part(row: pa.Table, work: Folder, plan: Plan) -> pa.Table:
    """A part's number to its pixels and what is known of its rows."""
    started = time.perf_counter()
    part = row.column("part")[0].as_py()
    read = [0]
    facts, pixels = cut_rows(_counted(fetch(read_part(work, part), plan.columns), read), plan.views)
    return pa.table(
        {
            "part": [part],
            "facts": pa.array([_to_bytes(facts)], pa.large_binary()),
            "pixels": _one_value(pixels),
            "bytes_read": read,
            "cut_seconds": [time.perf_counter() - started],
        }
    )


class EncodePart:
    """Pixels to tokens. One of these lives in each actor of the pool."""

    def __init__(self, config: EncoderConfig, plan: Plan):
        from hybrid_tokenizer.corpus.encoder import Encoder  # the workers that cut and write load no model library

        self.encoder, self.plan, self.last = Encoder(config), plan, None

    def __call__(self, row: pa.Table) -> pa.Table:
        started = time.perf_counter()
        waited = 0.0 if self.last is None else started - self.last
        facts, side = _from_bytes(row.column("facts")[0].as_buffer()), self.plan.views.image_size
        pixels = np.frombuffer(row.column("pixels")[0].as_buffer(), np.uint8).reshape(-1, side, side, 3)
        tokens = self.encoder.encode(pixels)
        rows = token_rows(facts, tokens, self.plan.grid_shapes, self.plan.schema, side)
        self.last = time.perf_counter()
        kept = row.drop_columns(["facts", "pixels"])
        for name, value in (("wait_seconds", waited), ("encode_seconds", self.last - started)):
            kept = kept.append_column(name, pa.array([value]))
        return kept.append_column("rows", pa.array([_to_bytes(rows)], pa.large_binary()))


class PartSink(ray.data.Datasink):
    """Stores each part as a file. Ray's own Parquet writer is not used here: it writes in place, under a new name in each
    run, so that a killed write leaves a part of a file and a repeated one leaves two."""

    def __init__(self, folder: Folder):
        self.folder = folder
        self.written: list[dict[str, Any]] = []

    def write(self, blocks: Iterable[Any], ctx: Any) -> list[dict[str, Any]]:
        stored = []
        for block in blocks:
            for row in BlockAccessor.for_block(block).to_arrow().to_batches(max_chunksize=1):
                rows = _from_bytes(row.column("rows")[0].as_buffer())
                size = self.folder.write_table(part_name(row.column("part")[0].as_py()), rows)
                numbers = {name: row.column(name)[0].as_py() for name in row.schema.names if name != "rows"}
                stored.append(numbers | {"num_rows": rows.num_rows, "bytes_written": size})
        return stored

    def on_write_complete(self, write_result: Any) -> None:
        self.written = [numbers for returned in write_result.write_returns for numbers in returned]


def encode_parts(
    output: Folder, plan: Plan, parts: list[int], encoder: EncoderConfig, workers: tuple[int, int], gpus: float
) -> list[dict[str, Any]]:
    """Encode and store the parts. Returns each one's numbers of rows, bytes and seconds."""
    # Encoding on the CPU shares the cores with cutting, which needs a small part of the time.
    cutting, encoding = (1.0, 0.0) if gpus else (0.25, 0.75 * encoder.threads)
    sink = PartSink(output / WORK / PARTS)
    numbers = ray.data.from_items([{"part": part} for part in parts], override_num_blocks=min(len(parts), MOST_TASKS))
    cut = numbers.map_batches(
        cut_part, fn_args=(output / WORK, plan), batch_size=1, batch_format="pyarrow", num_cpus=cutting
    )
    encoded = cut.map_batches(
        EncodePart,
        fn_constructor_args=(encoder, plan),
        batch_size=1,
        batch_format="pyarrow",
        num_cpus=encoding,
        num_gpus=gpus or None,
        compute=ray.data.ActorPoolStrategy(min_size=workers[0], max_size=workers[1]),
    )
    # Storing asks for no core: beside the actors' cores Ray reserves one share for cutting, and where none is left for a third
    # step, that step begins only when all parts are cut.
    encoded.write_datasink(sink, ray_remote_args={"num_cpus": 0})
    return sink.written


def merge_parts(output: Folder, plan: Plan, shards: int, rows_per_group: int) -> None:
    """Write the parts, all of them stored, as `shards` files. Shard s of n always holds the same parts."""
    expected = {shard_name(shard, shards): shard for shard in range(shards)}
    data = output / DATA
    present = data.files()
    for name in present.keys() - expected.keys():  # of a killed run
        data.filesystem.delete_file(f"{data.path}/{name}")
    missing = [{"shard": shard} for name, shard in expected.items() if name not in present]
    if missing:
        merged = ray.data.from_items(missing, override_num_blocks=len(missing)).map_batches(
            merge_shard, fn_args=(output, plan, shards, rows_per_group), batch_size=1, batch_format="pyarrow"
        )
        merged.materialize()


def merge_shard(row: pa.Table, output: Folder, plan: Plan, shards: int, rows_per_group: int) -> pa.Table:
    """The parts of a shard, in their order, as one file."""
    shard = row.column("shard")[0].as_py()
    parts = output / WORK / PARTS
    tables, skipped = [], []
    for part in range(shard * plan.num_parts // shards, (shard + 1) * plan.num_parts // shards):
        with parts.open(part_name(part)) as file:
            tables.append(pq.read_table(file))
        skipped += skipped_of(tables[-1].schema)
    whole = pa.concat_tables([table.replace_schema_metadata(None) for table in tables])
    (output / DATA).write_table(shard_name(shard, shards), with_skipped(whole, skipped), rows_per_group)
    return row


@contextmanager
def ray_session(config: RayConfig) -> Iterator[None]:
    """A connection to the cluster of `config.address`, or a Ray on this machine that ends with the block.

    An error of this package that was raised in a worker is raised here as it is.
    """
    started = not ray.is_initialized()
    if started:
        _start(config)
    logging.getLogger("ray.data").setLevel(logging.WARNING)
    ray.data.DataContext.get_current().enable_progress_bars = sys.stderr.isatty()
    try:
        yield
    except ray.exceptions.RayError as error:
        cause: BaseException | None = error
        # Ray raises an error that is of both kinds, whose text is a traceback; the plain one is its cause.
        while isinstance(cause, ray.exceptions.RayError) or not isinstance(cause, HybridTokenizerError | None):
            cause = getattr(cause, "cause", None) or cause.__cause__
        if cause is None:
            raise
        raise HybridTokenizerError(str(cause)) from None
    finally:
        if started:
            ray.shutdown()


def _start(config: RayConfig) -> None:
    local: dict[str, Any] = {}
    if config.address is None:
        store = config.object_store_mb
        local = {
            "num_cpus": config.num_cpus,
            "object_store_memory": None if store is None else store * 2**20,
            "include_dashboard": False,
        }
    try:
        # "local", since without an address ray.init joins any Ray that runs on this machine
        ray.init(address=config.address or "local", log_to_driver=False, logging_level="error", **local)
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise HybridTokenizerError(
            f"ray.address={config.address!r} cannot be reached ({first_line(error)}); check that the cluster is up"
        ) from None


def _counted(fetched: Iterable[Any], read: list[int]) -> Iterator[Any]:
    for one in fetched:
        read[0] += len(one.data) if isinstance(one.data, bytes) else 0
        yield one


def _one_value(array: np.ndarray) -> pa.Array:
    """A column of one value that is the array's memory."""
    data = np.ascontiguousarray(array).reshape(-1)
    offsets = pa.py_buffer(np.array([0, data.nbytes], np.int64))
    return pa.LargeBinaryArray.from_buffers(pa.large_binary(), 1, [None, offsets, pa.py_buffer(data)])


def _to_bytes(table: pa.Table) -> bytes:
    stream = pa.BufferOutputStream()
    with pa.ipc.new_stream(stream, table.schema) as writer:
        writer.write_table(table)
    return stream.getvalue().to_pybytes()


def _from_bytes(data: pa.Buffer) -> pa.Table:
    return pa.ipc.open_stream(data).read_all()
