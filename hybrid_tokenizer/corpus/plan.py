"""What a folder of tokens is being filled with: the tokenizer, the options that change tokens, and the list of images.

The plan is written once and read by every later run, so a run that was killed goes on with the same images in the same
parts. Part k is row group k of the list.
"""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from hybrid_tokenizer.corpus.config import ColumnConfig, TokenizeConfig, ViewConfig
from hybrid_tokenizer.corpus.rows import token_schema
from hybrid_tokenizer.corpus.sources import Entry, entries_from_table, entries_to_table, list_entries
from hybrid_tokenizer.corpus.storage import Folder
from hybrid_tokenizer.errors import HybridTokenizerError, printable

FORMAT = "hybrid_tokens_corpus"
VERSION = 1
DATASET_NAME = "dataset.json"
"""Written last: where it stands, the shards are complete."""
PLAN_NAME = "plan.json"
WORK, PARTS, DATA = "_work", "parts", "data"
PARTS_PER_LIST = 256
"""A list's footer is read with each part, so it stays small."""


@dataclass(frozen=True)
class Plan:
    """All that decides what the rows are."""

    tokenizer: dict[str, Any]
    """name, hash, codebook sizes, and the sha256 of its files."""
    options: dict[str, Any]
    """Those of the command that change rows."""
    grid_shapes: list[list[int]]
    num_images: int
    images_per_part: int

    @property
    def num_parts(self) -> int:
        return -(-self.num_images // self.images_per_part)

    @property
    def schema(self) -> pa.Schema:
        """Of the rows."""
        count = sum(height * width for height, width in self.grid_shapes)
        sizes = self.tokenizer["semantic_codebook_size"], self.tokenizer["guide_codebook_size"]
        return token_schema(sizes, count)

    @property
    def views(self) -> ViewConfig:
        return ViewConfig(**self.options["data"])

    @property
    def columns(self) -> ColumnConfig:
        return ColumnConfig(**self.options["columns"])


def options_of(config: TokenizeConfig) -> dict[str, Any]:
    """The options that change rows. How many workers there are, or how they are fed, does not."""
    return {
        "input": [printable(Path(one).absolute()) for one in config.inputs],
        "data": asdict(config.data),
        "columns": asdict(config.columns),
        "guide_scales": config.guide_scales,
        "search_steps": config.search_steps,
        "dtype": config.dtype,
    }


def open_plan(
    output: Folder, config: TokenizeConfig, tokenizer: dict[str, Any], grid_shapes: Sequence[tuple[int, int]]
) -> Plan:
    """The folder's plan, checked against the command; made where there is none. Raises when the folder holds other tokens.

    tokenizer: what the dataset says of it.
    grid_shapes: of the guide, coarse to fine.
    """
    options = options_of(config)
    stored = None
    if output.exists(DATASET_NAME):
        stored = output.read_json(DATASET_NAME)
    elif (output / WORK).exists(PLAN_NAME):
        stored = (output / WORK).read_json(PLAN_NAME)
    if stored is not None:
        _check(stored, tokenizer, options, output.path)
        return Plan(**{name: stored[name] for name in Plan.__dataclass_fields__})
    if output.files() or output.folders() - {WORK}:
        raise HybridTokenizerError(f"output={output.path} holds other files; give a new or empty folder")
    (output / WORK).remove()  # a list that was being written
    size = config.images_per_part
    count = _write_list(output / WORK, list_entries(config.inputs, config.columns), size)
    plan = Plan(tokenizer, options, [list(grid) for grid in grid_shapes], count, size)
    (output / WORK).write_json(PLAN_NAME, {"format": FORMAT, "version": VERSION, **asdict(plan)})
    return plan


def _check(stored: dict[str, Any], tokenizer: dict[str, Any], options: dict[str, Any], where: str) -> None:
    if stored.get("format") != FORMAT or stored.get("version") != VERSION:
        raise HybridTokenizerError(f"output={where} was written by another version; give a new folder")
    held = stored["tokenizer"]
    if held["hash"] != tokenizer["hash"]:
        raise HybridTokenizerError(
            f"output={where} holds tokens of {held['name']!r} ({held['hash'][:12]}), this command would add those of "
            f"{tokenizer['name']!r} ({tokenizer['hash'][:12]}); give another output"
        )
    old, new = _flat(stored["options"]), _flat(options)
    changed = [name for name in new if old.get(name) != new[name]]
    if changed:
        said = ", ".join(f"{name}={old.get(name)}, not {new[name]}" for name in changed)
        raise HybridTokenizerError(f"output={where} was begun with {said}; give the same options or another output")


def _flat(options: dict[str, Any]) -> dict[str, Any]:
    nested = {name: value for name, value in options.items() if isinstance(value, dict)}
    flat = {name: value for name, value in options.items() if name not in nested}
    return flat | {f"{group}.{name}": value for group, values in nested.items() for name, value in values.items()}


def _write_list(folder: Folder, entries: Iterator[Entry], size: int) -> int:
    """The list of images in files of PARTS_PER_LIST row groups. Returns how many images there are."""
    count, number = 0, 0
    while held := list(itertools.islice(entries, size * PARTS_PER_LIST)):
        folder.write_table(_list_name(number), entries_to_table(held), size)
        count, number = count + len(held), number + 1
    return count


def _list_name(number: int) -> str:
    return f"images-{number:06d}.parquet"


def read_part(work: Folder, part: int) -> list[Entry]:
    """The images of a part."""
    with work.open(_list_name(part // PARTS_PER_LIST)) as file:
        return entries_from_table(pq.ParquetFile(file).read_row_group(part % PARTS_PER_LIST))


def part_name(part: int) -> str:
    """The file of a part."""
    return f"{part:08d}.parquet"


def shard_name(shard: int, shards: int) -> str:
    """A finished file, named as Hugging Face names them."""
    return f"tokens-{shard:05d}-of-{shards:05d}.parquet"


def missing_parts(output: Folder, plan: Plan) -> list[int]:
    """Parts that no run has stored."""
    stored = (output / WORK / PARTS).files()
    return [part for part in range(plan.num_parts) if part_name(part) not in stored]
