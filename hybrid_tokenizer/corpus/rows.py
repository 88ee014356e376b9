"""Rows of the corpus as Arrow tables: pixels on their way to a tokenizer, and tokens as they are stored."""

import io
import json
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
from jaxtyping import UInt8
from PIL import Image

from hybrid_tokenizer.corpus.config import ViewConfig
from hybrid_tokenizer.corpus.sources import Fetched
from hybrid_tokenizer.corpus.views import cut_views, row_id
from hybrid_tokenizer.data.open import UnreadableImage, open_rgb
from hybrid_tokenizer.errors import printable
from hybrid_tokenizer.tokens import NUM_SEMANTIC_TOKENS, HybridTokens

SKIPPED_KEY = b"hybrid_tokenizer.skipped"
"""Of a table's metadata: the images that gave no row, as JSON."""

FACTS = pa.schema(
    {
        "id": pa.string(),
        "captions": pa.list_(pa.string()),
        "width": pa.int32(),
        "height": pa.int32(),
        "crop": pa.list_(pa.float64(), 4),
        "flipped": pa.bool_(),
        "source": pa.string(),
    }
)
"""What is known of a row before it is encoded."""


class Skipped(NamedTuple):
    """An image that gave no row."""

    key: str
    reason: str


def cut_rows(fetched: Iterable[Fetched], config: ViewConfig) -> tuple[pa.Table, UInt8[np.ndarray, "rows side side 3"]]:
    """The views of every image: what is known of them, and their pixels. Images that give no row are in the metadata."""
    facts: dict[str, list] = {name: [] for name in FACTS.names}
    pixels, skipped = [], []
    for entry, data, captions in fetched:
        try:
            if isinstance(data, UnreadableImage):
                raise data
            image = open_rgb(
                Path(entry.key), data=data, draft_side=2 * config.image_size if config.jpeg_draft else None
            )
            size = _whole_size(data, image) if config.jpeg_draft else image.size
            if min(size) < config.least_side:
                reason = (
                    f"{size[0]}x{size[1]} px: its shorter side is under {config.least_side}; see data.smallest_side"
                )
                raise UnreadableImage(Path(entry.key), reason)
        except UnreadableImage as error:
            skipped.append(Skipped(entry.key, error.reason))
            continue
        source = printable(Path(entry.file).name) if entry.kind != "file" else ""
        for view in cut_views(image, entry.key, config, size):
            pixels.append(np.asarray(view.image))
            row = (row_id(entry.key, view.number), captions, *size, view.box, view.flipped, source)
            for name, value in zip(facts, row, strict=True):
                facts[name].append(value)
    table = with_skipped(pa.Table.from_pydict(facts, FACTS), skipped)
    side = config.image_size
    return table, np.stack(pixels) if pixels else np.empty((0, side, side, 3), np.uint8)


def _whole_size(data: bytes, image: Image.Image) -> tuple[int, int]:
    """Of the upright image in a file that was decoded at a reduced size."""
    with Image.open(io.BytesIO(data)) as header:
        width, height = header.size
    turned = (width - height) * (image.width - image.height) < 0
    return (height, width) if turned else (width, height)


def with_skipped(table: pa.Table, skipped: Sequence[Skipped]) -> pa.Table:
    """The table with the images that gave no row in its metadata."""
    return table.replace_schema_metadata({SKIPPED_KEY: json.dumps(skipped).encode()})


def skipped_of(schema: pa.Schema) -> list[Skipped]:
    """What `with_skipped` put there."""
    return [Skipped(*one) for one in json.loads((schema.metadata or {}).get(SKIPPED_KEY, b"[]"))]


def code_type(codebook_size: int) -> pa.DataType:
    """The smallest unsigned type that holds every position of a codebook, at least 16 bits."""
    return pa.uint16() if codebook_size <= 2**16 else pa.uint32()


def token_schema(codebook_sizes: tuple[int, int], num_guide_tokens: int) -> pa.Schema:
    """Columns of the shards. `codebook_sizes` are those of the semantic and the guide codes."""
    return pa.schema(
        [
            FACTS.field("id"),
            pa.field("semantic", pa.list_(code_type(codebook_sizes[0]), NUM_SEMANTIC_TOKENS)),
            pa.field("guide", pa.list_(code_type(codebook_sizes[1]), num_guide_tokens)),
            pa.field("grid_shapes", pa.list_(pa.list_(pa.int32(), 2))),
            pa.field("image_size", pa.list_(pa.int32(), 2)),
            *(FACTS.field(name) for name in FACTS.names[1:]),
        ]
    )


def token_rows(
    facts: pa.Table,
    tokens: Sequence[HybridTokens],
    grid_shapes: Sequence[Sequence[int]],
    schema: pa.Schema,
    side: int,
) -> pa.Table:
    """A part as it is stored: the table of `cut_rows` and the tokens of its batches."""
    rows = facts.num_rows
    count = sum(math.prod(shape) for shape in grid_shapes)
    semantic = [batch.semantic_indices.numpy(force=True).reshape(-1) for batch in tokens]
    guide = [
        np.concatenate(
            [grid.numpy(force=True).reshape(len(batch), -1) for grid in batch.guide_indices], axis=1
        ).reshape(-1)
        for batch in tokens
    ]

    def codes(pieces: list[np.ndarray], name: str, width: int) -> pa.Array:
        flat = np.concatenate(pieces) if pieces else np.empty(0, np.int64)
        kind = schema.field(name).type.value_type
        return pa.FixedSizeListArray.from_arrays(pa.array(flat.astype(kind.to_pandas_dtype())), width)

    columns = {
        "semantic": codes(semantic, "semantic", NUM_SEMANTIC_TOKENS),
        "guide": codes(guide, "guide", count),
        "grid_shapes": pa.array([grid_shapes] * rows, schema.field("grid_shapes").type),
        "image_size": pa.array([(side, side)] * rows, schema.field("image_size").type),
    }
    arrays = [columns[name] if name in columns else facts.column(name) for name in schema.names]
    return pa.table(arrays, schema.with_metadata(facts.schema.metadata))
