"""Damaged files of tokens and weights: token files, token shards, folders of a tokenizer, checkpoints of other projects."""

import copy
import io
import json
import pickle
import random
import shutil
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import torch
from fuzz_bytes import DAMAGES
from fuzz_driver import Attempt, Door
from fuzz_texts import ODD_VALUES, odd_json
from helpers.small_models import noise_images, small_hybrid
from safetensors.torch import load, load_file, save
from torch import Tensor

from hybrid_tokenizer.baselines.loading import load_baseline
from hybrid_tokenizer.commands.convert import KINDS, convert
from hybrid_tokenizer.corpus.dataset import TokenDataset
from hybrid_tokenizer.corpus.plan import DATASET_NAME, FORMAT, VERSION
from hybrid_tokenizer.corpus.storage import open_folder
from hybrid_tokenizer.errors import HybridTokenizerError
from hybrid_tokenizer.hybrid import HybridTokenizer
from hybrid_tokenizer.tokens import HybridTokens

GOLDEN = Path(__file__).resolve().parents[1] / "golden"
DECODE: dict[str, Any] = {"start": "add_noise", "strength": 0.1, "num_inference_steps": 10, "guidance_scale": 1.0}
DTYPES = (
    torch.float16,
    torch.bfloat16,
    torch.float64,
    torch.int32,
    torch.int8,
    torch.uint8,
    torch.bool,
    torch.complex64,
)
RAN: list[int] = []


class Runs:
    """Would run code when it is unpickled."""

    def __reduce__(self) -> Any:
        return RAN.append, (1,)


def one_line(error: HybridTokenizerError) -> None:
    """Fail where a refusal is not one line that a terminal takes."""
    assert "\n" not in str(error) and str(error).isprintable(), f"the refusal is not one line: {error!r}"
    assert len(str(error)) < 2000, f"the refusal has {len(str(error))} characters"


def odd_tensors(tensors: dict[str, Tensor], draw: random.Random) -> dict[str, Tensor]:
    """One or two tensors that are missing, renamed, of another dtype or shape, or with values that no weight has."""
    changed = dict(tensors)
    for _ in range(draw.choice([1, 1, 2])):
        key = draw.choice(sorted(changed))
        value = changed.pop(key)
        kind = draw.choice(["none", "name", "dtype", "cut", "flat", "turned", "empty", "nan", "inf", "large", "zeros", "prefix"])  # fmt: skip
        if kind == "name":
            changed[draw.choice(["", "x", key + ".", f"{key}.0", "\x1b[31m", "é", "x" * 3000, "1"])] = value
        elif kind == "dtype":
            changed[key] = value.to(draw.choice(DTYPES))
        elif kind in ("cut", "flat", "turned", "empty") and value.ndim:
            shapes = {"cut": value[:-1], "flat": value.flatten(), "turned": value.movedim(0, -1), "empty": value[:0]}
            changed[key] = shapes[kind].contiguous()
        elif kind in ("nan", "inf", "large") and value.numel():
            numbers = {"nan": float("nan"), "inf": float("-inf"), "large": 1e30}
            odd = value.double().flatten()
            odd[draw.randrange(len(odd))] = numbers[kind]
            changed[key] = odd.view(value.shape).to(value.dtype if value.is_floating_point() else torch.float32)
        elif kind == "zeros":
            changed[key] = torch.zeros_like(value)
        elif kind == "prefix":
            front = draw.choice(["module.", "_orig_mod.", "module._orig_mod.", "model."])
            changed = {front + name: tensor for name, tensor in {**changed, key: value}.items()}
        if not changed:
            return {"x": torch.zeros(1)}
    return changed


def odd_header(data: bytes, draw: random.Random) -> bytes:
    """A safetensors file whose header lies."""
    length = int.from_bytes(data[:8], "little")
    header = json.dumps(odd_json(json.loads(data[8 : 8 + length]), draw)).encode()
    return (len(header) + draw.choice([0, 0, 0, 1, -1, 2**40])).to_bytes(8, "little") + header + data[8 + length :]


def odd_safetensors(data: bytes, draw: random.Random) -> tuple[str, bytes]:
    """(kind of damage, safetensors file with it)."""
    kind = draw.choice(["odd_tensors", "odd_tensors", "odd_tensors", "odd_header", "odd_header", *DAMAGES])
    if kind == "odd_tensors":
        length = int.from_bytes(data[:8], "little")
        metadata = json.loads(data[8 : 8 + length]).get("__metadata__")
        return kind, save(odd_tensors(load(data), draw), metadata)
    return kind, odd_header(data, draw) if kind == "odd_header" else DAMAGES[kind](data, draw)


def odd_config(data: bytes, draw: random.Random) -> tuple[str, bytes]:
    """(kind of damage, JSON file with it): values of another type or size as a rule, since those get furthest."""
    kind = draw.choice(["odd_value"] * 6 + ["odd_number"] * 6 + ["deep", "cut", "changed_bits"])
    if kind == "deep":
        return kind, draw.choice([b"[" * 100_000, b'{"a":' * 100_000])
    if kind == "odd_value":
        return kind, json.dumps(odd_json(json.loads(data), draw)).encode()
    if kind == "odd_number":
        return kind, json.dumps(_other_number(json.loads(data), draw)).encode()
    return kind, DAMAGES[kind](data, draw)


def _other_number(value: Any, draw: random.Random) -> Any:
    """The value with one entry replaced by one of its own type."""
    if isinstance(value, (dict, list)) and value:
        changed: Any = copy.copy(value)
        key = draw.choice(list(changed) if isinstance(changed, dict) else range(len(changed)))
        changed[key] = _other_number(changed[key], draw)
        return changed
    if isinstance(value, bool):
        return not value
    if isinstance(value, (int, float)):
        return draw.choice([0, 1, 2, 3, 4, 7, 8, 16, -1, 1000, 1001, 2**20, 2**31, 10**9, 10**30, 0.5, 1e-30, 1e30, value + 1, value * 2])  # fmt: skip
    return draw.choice(["", "x", "gelu", "relu", "silu", "group", "__class__", "os.system", "../x", None, [1] * 1000])


class Whole(NamedTuple):
    """A small tokenizer, its folder, and what it makes of an image."""

    folder: Path
    images: Tensor
    tokens: HybridTokens
    decoded: Tensor
    hybrid: HybridTokenizer


def whole_tokenizer(folder: Path) -> Whole:
    hybrid = small_hybrid(nested=True)
    hybrid.save_pretrained(folder / "whole")
    images = noise_images(2, 32, 32)
    tokens = hybrid.encode(images)
    return Whole(folder / "whole", images, tokens, decoded(hybrid, tokens), hybrid)


def decoded(hybrid: HybridTokenizer, tokens: HybridTokens) -> Tensor:
    return hybrid.decode(tokens, generator=torch.Generator().manual_seed(0), **DECODE)


def token_files(whole: Whole, draw: random.Random, folder: Path) -> Attempt:
    """What can be read can be decoded, or is refused; a batch without images decodes to none."""
    path = folder / "tokens.safetensors"
    draw.choice([whole.tokens, whole.tokens[:1], whole.tokens[:0]]).save(path)
    data = path.read_bytes()
    kind, damaged = odd_safetensors(data, draw)
    if draw.random() < 0.3:
        kind, damaged = "odd_metadata", _odd_metadata(data, draw)
    path.write_bytes(damaged)
    try:
        tokens = HybridTokens.load(path)
        if draw.random() < 0.5:
            ids = tokens.to_token_ids(whole.hybrid.vocabulary(1000))
            assert HybridTokens.from_token_ids(ids, whole.hybrid.vocabulary(1000)) == tokens
        pixels = decoded(whole.hybrid, tokens)
        tokens.save(path)
        assert HybridTokens.load(path) == tokens
    except HybridTokenizerError as error:
        one_line(error)
        return Attempt(kind, True)
    assert pixels.shape == (len(tokens), 3, *tokens.image_size) and pixels.isfinite().all()
    same = damaged == data
    return Attempt(kind, False, float(same and tokens != whole.tokens[: len(tokens)]), 0.0 if same else 1.0)


def _odd_metadata(data: bytes, draw: random.Random) -> bytes:
    length = int.from_bytes(data[:8], "little")
    metadata = json.loads(data[8 : 8 + length])["__metadata__"]
    values = [
        "",
        "abc",
        "-1",
        "0",
        "1e9",
        "32.0",
        "99999999",
        "٣٢",
        "\x1b",
        "x" * 5000,
        "1",
        "2",
        "null",
        "v2:",
        " 32",
        "32\n",
    ]
    for _ in range(draw.choice([1, 1, 2])):
        key = draw.choice(sorted(metadata))
        if draw.random() < 0.2:
            del metadata[key]
            break
        metadata[key] = draw.choice(values)
    return save(load(data), metadata)


def tokenizer_folders(whole: Whole, draw: random.Random, folder: Path) -> Attempt:
    """One file of the folder is damaged. A tokenizer that can be built computes, and with an equal hash it computes the same."""
    files = sorted(path for path in whole.folder.rglob("*") if path.is_file())
    path = draw.choice(files)
    original = path.read_bytes()
    if draw.random() < 0.03:
        kind = "missing"
        path.unlink()
    else:
        kind, damaged = (odd_config if path.suffix == ".json" else odd_safetensors)(original, draw)
        path.write_bytes(damaged)
    label = f"{path.suffix.removeprefix('.')} {kind}"
    try:
        hybrid = HybridTokenizer.from_pretrained(whole.folder)
        tokens = hybrid.encode(whole.images)
        pixels = decoded(hybrid, tokens)
        hash_now = hybrid.hash
    except HybridTokenizerError as error:
        one_line(error)
        return Attempt(label, True)
    finally:
        path.write_bytes(original)
    assert pixels.isfinite().all() and pixels.shape == whole.images.shape
    if hash_now != whole.hybrid.hash:
        return Attempt(label, False)
    same = tokens == whole.tokens and torch.allclose(pixels, whole.decoded, atol=1e-3)  # the hash rounds to fp16
    return Attempt(label, False, float(not same), 0.0)


CHECKPOINTS = {
    "movq_a": "movq", "seed1_quantizer_a": "seed1", "eva_vit_a": "blip2", "taming_vqgan_a": "vqgan_f8_256",
}  # fmt: skip
"""Fixtures at reduced width, and the converter or baseline that reads their layout."""


def checkpoints_of(folder: Path) -> dict[str, dict[str, Tensor]]:
    """State dicts of other projects in their own layouts."""
    states = {}
    for name in CHECKPOINTS:
        tensors = load_file(GOLDEN / f"{name}.safetensors")
        states[name] = {key.removeprefix("state."): value for key, value in tensors.items() if key.startswith("state.")}
    return states


def checkpoint_files(states: dict[str, dict[str, Tensor]], draw: random.Random, folder: Path) -> Attempt:
    """Pickles and safetensors, damaged or of something else, given to the converters and baselines that read such files."""
    name = draw.choice(sorted(states))
    state = states[name]
    if draw.random() < 0.3:
        suffix, (kind, data) = ".safetensors", odd_safetensors(save(state), draw)
    else:
        suffix = draw.choice([".pt", ".pth", ".ckpt", ".bin"])
        kind, data = odd_pickle(state, draw)
    path = folder / f"model{suffix}"
    path.write_bytes(data)
    target = folder / "converted"
    shutil.rmtree(target, ignore_errors=True)
    try:
        reader = CHECKPOINTS[name] if draw.random() < 0.8 else draw.choice(sorted({*KINDS, *CHECKPOINTS.values()}))
        if reader in KINDS:
            convert(reader, [path], target)
        else:
            load_baseline(reader, path)
    except HybridTokenizerError as error:
        one_line(error)
        assert "weights_only" not in str(error), "torch's advice to switch the safety off"
        return Attempt(kind, True)
    finally:
        assert not RAN, "code in a pickle was run"
    return Attempt(kind, False)


def odd_pickle(state: dict[str, Tensor], draw: random.Random) -> tuple[str, bytes]:
    """(kind of damage, pickle with it)."""
    kind = draw.choice(["odd_tensors", "odd_tensors", "odd_object", "odd_object", "opcodes", *DAMAGES])
    if kind == "opcodes":
        return kind, _odd_opcodes(draw)
    value: Any = dict(state)
    if kind == "odd_tensors":
        value = odd_tensors(state, draw)
    elif kind == "odd_object":
        key, odd = draw.choice(sorted(state)), _odd_object(draw)
        value = draw.choice([odd, {**value, key: odd}, {**value, "more": odd}, {draw.choice([1, None, (), 1.5, b"a", True]): state[key], **value}])  # fmt: skip
    wrapper = draw.choice([None, None, "state_dict", "model", "ema", "module"])
    value = value if wrapper is None else {wrapper: value, "epoch": draw.choice([3, None, "x", Runs()])}
    buffer = io.BytesIO()
    torch.save(value, buffer, _use_new_zipfile_serialization=draw.random() < 0.7)
    return kind, DAMAGES[kind](buffer.getvalue(), draw) if kind in DAMAGES else buffer.getvalue()


def _odd_object(draw: random.Random) -> Any:
    tensor = torch.ones(2, 3)
    return draw.choice(
        [
            *ODD_VALUES, Runs(), Runs, torch.nn.Linear(1, 1), tensor.to_sparse(), tensor.to(torch.complex64), torch.ones(()),
            torch.empty(0), torch.nn.Parameter(tensor), torch.Size([1]), torch.float16, torch.device("cpu"), {1: tensor},
            [tensor], (tensor,), {"model": {"model": {}}}, tensor[:, ::2], torch.quantize_per_tensor(tensor, 0.1, 0, torch.qint8),
            tensor.expand(10, 2, 3), set(), b"bytes", 1 + 2j, range(3), torch.Generator, torch.ones(1, dtype=torch.bool),
        ]
    )  # fmt: skip


def _odd_opcodes(draw: random.Random) -> bytes:
    """Pickle opcodes in any order, or those of a small object with a few changed."""
    if draw.random() < 0.5:
        opcodes = bytes(getattr(pickle, name)[0] for name in dir(pickle) if name.isupper() and isinstance(getattr(pickle, name), bytes) and len(getattr(pickle, name)) == 1)  # fmt: skip
        return b"\x80\x02" + bytes(draw.choices(opcodes, k=draw.randrange(1, 60))) + b"."
    data = bytearray(pickle.dumps({"a": [1, Runs(), ("x", None)]}, protocol=draw.randrange(6)))
    for _ in range(draw.randrange(1, 5)):
        data[draw.randrange(len(data))] = draw.randrange(256)
    return bytes(data)


def token_shards(folder: Path) -> Path:
    """Two small files of a folder as `tokenize` writes it."""
    place = open_folder(folder / "shards")
    whole = small_hybrid(nested=True)
    tokens = whole.encode(noise_images(6, 32, 32))
    guide = torch.cat([grid.flatten(1) for grid in tokens.guide_indices], dim=1)
    files = []
    for number, rows in enumerate((range(4), range(4, 6))):
        columns = {
            "id": [f"{row}" for row in rows],
            "captions": [[f"caption {row}"] for row in rows],
            "semantic": pa.FixedSizeListArray.from_arrays(pa.array(tokens.semantic_indices[list(rows)].flatten().numpy(), pa.int16()), 32),
            "guide": pa.FixedSizeListArray.from_arrays(pa.array(guide[list(rows)].flatten().numpy(), pa.int16()), guide.shape[1]),
        }  # fmt: skip
        name = f"tokens-{number}.parquet"
        place.write_table(name, pa.table(columns), rows_per_group=2)
        files.append({"name": name, "num_rows": len(rows), "rows_per_group": 2})
    info = {
        "format": FORMAT, "version": VERSION, "num_rows": 6, "files": files, "grid_shapes": [list(shape) for shape in tokens.grid_shapes],
        "tokenizer": {"name": whole.name, "hash": whole.hash, "semantic_codebook_size": 20, "guide_codebook_size": 50},
        "options": {"data": {"image_size": 32}},
    }  # fmt: skip
    place.write_json(DATASET_NAME, info)
    return folder / "shards"


def read_shards(root: Path, draw: random.Random, folder: Path) -> Attempt:
    """Every row is read, or the folder is refused."""
    path = draw.choice(sorted(root.iterdir()))
    original = path.read_bytes()
    if path.suffix == ".json":
        kind, damaged = odd_config(original, draw)
    else:
        kind = draw.choice(sorted(DAMAGES))
        damaged = DAMAGES[kind](original, draw)
    path.write_bytes(damaged)
    label = f"{path.suffix.removeprefix('.')} {kind}"
    try:
        dataset = TokenDataset(root)
        for batch in dataset.batches(range(min(len(dataset), 6)), 2):
            dataset.to_token_ids(batch, dataset.vocabulary(100))
    except HybridTokenizerError as error:
        one_line(error)
        return Attempt(label, True)
    finally:
        path.write_bytes(original)
    return Attempt(label, False)


DOORS = [
    Door("token files", whole_tokenizer, token_files),
    Door("token shards", token_shards, read_shards, share=2.5),
    Door("tokenizer folders", whole_tokenizer, tokenizer_folders, share=0.15),
    Door("checkpoints", checkpoints_of, checkpoint_files, share=0.7),
]
