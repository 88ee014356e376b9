"""From a baseline's name and the place of its weights to a row of a table.

Weights are downloaded only when a hub id or `hub` is given. A pickle is read with `weights_only=True`. Some old Lightning
files hold objects beside tensors and are refused; this package never unpickles them. Write the tensors of such a file out once
yourself. The first line lists the classes of its objects; allow those that you know, here Lightning's ModelCheckpoint:

    import torch; from safetensors.torch import save_file
    print(torch.serialization.get_unsafe_globals_in_checkpoint("last.ckpt"))
    with torch.serialization.safe_globals([ModelCheckpoint]):
        state = torch.load("last.ckpt", map_location="cpu", weights_only=True)["state_dict"]
    save_file({key: value.contiguous() for key, value in state.items()}, "last.safetensors")
"""

from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

from torch import nn

from hybrid_tokenizer.baselines.grid_row import GridRow
from hybrid_tokenizer.baselines.registry import BASELINES, Baseline
from hybrid_tokenizer.checkpoints import hub
from hybrid_tokenizer.checkpoints.configs import one_line
from hybrid_tokenizer.checkpoints.files import CONFIG_NAME, file_hash, read_config, read_foreign
from hybrid_tokenizer.errors import HybridTokenizerError
from hybrid_tokenizer.protocol import ImageTokenizer


def load_baseline(name: str, path: str | Path | None = None) -> ImageTokenizer:
    """Someone else's tokenizer with its published weights, behind the same calls as a HybridTokenizer.

    Args:
        name: one of `list_baselines()`.
        path: the file, a folder that holds it, a hub id `owner/name`, or "hub" for where it was published.

    Returns:
        A tokenizer with `encode`, `decode`, `num_tokens` and `bits`.

    Raises:
        HybridTokenizerError: the name is unknown, or the weights are missing, damaged, or another model's.

    Examples:
        >>> movq = hybrid_tokenizer.load_baseline("movq_270m", "movqgan_270M.ckpt")
        >>> movq.decode(movq.encode(images), (256, 256))
    """
    if name not in BASELINES:
        raise HybridTokenizerError(f"baseline {name!r} is unknown; use one of {', '.join(BASELINES)}")
    baseline = BASELINES[name]
    if path is None:
        raise HybridTokenizerError(f"{name} needs its weights; give load_baseline({name!r}, PATH): {remedy(baseline)}")
    if baseline.family.reads == "row":
        if not Path(path).is_dir():
            raise HybridTokenizerError(f"{path} is not a folder; give {baseline.family.layout}")
        with one_line(str(path)):
            return function_of(baseline.family.builder)(name, Path(path))
    builder = baseline.family.converted if (Path(path) / CONFIG_NAME).is_file() else None
    if builder is not None:
        found = Path(path)
    else:
        found = (find_folder if baseline.family.reads == "folder" else hub.find_file)(name, path, baseline.sources)
        if baseline.sha256 is not None and (digest := file_hash(found)) != baseline.sha256:
            raise HybridTokenizerError(f"{found} has sha256 {digest}, {name} has {baseline.sha256}; download it again")
    with one_line(str(found)):
        model = build(baseline, found) if builder is None else function_of(builder)(found)
    check_published(name, baseline, model, found)
    return GridRow(name, model, model.config.image_size if baseline.family.fixed_size else None)


def remedy(baseline: Baseline) -> str:
    """Where the weights of a baseline can come from."""
    first = baseline.sources[0]
    if baseline.family.reads == "row":
        return baseline.family.layout
    of_hub = f", or {hub.HUB!r} to download it" if any(source.on_hub for source in baseline.sources) else ""
    return f"{first.file} of {first.repository}, its folder, a hub id{of_hub}"


def find_folder(name: str, path: str | Path, sources: tuple[hub.Source, ...]) -> Path:
    """The folder of config.json and weights: `path` itself, the published one inside it, or one of the hub."""
    inner = sources[0].file
    if Path(path).is_file():
        raise HybridTokenizerError(f"{name} is a folder of config.json and weights, {path} is a file; give its folder")
    if (Path(path) / CONFIG_NAME).is_file():
        return Path(path)
    repository = hub.published_source(name, sources).repository if path == hub.HUB else path
    patterns = [CONFIG_NAME, "*.safetensors"]
    return hub.folder(repository, expected=f"the folder {inner}/ of {name}", subfolder=inner, patterns=patterns)


def function_of(name: str) -> Callable[..., Any]:
    """`module:function` of this package."""
    module, _, function = name.partition(":")
    return getattr(import_module(f"hybrid_tokenizer.baselines.{module}"), function)


def build(baseline: Baseline, path: Path) -> nn.Module:
    """The model of a file or a folder."""
    builder: Callable[..., nn.Module] = function_of(baseline.family.builder)
    if baseline.family.reads == "folder":
        return builder(path)
    return builder(read_foreign(path, baseline.family.wrappers), str(path), **settings_beside(baseline, path))


def settings_beside(baseline: Baseline, path: Path) -> dict[str, Any]:
    """The builder's options from a `config.json` beside the weights, where the family reads one."""
    config = path.with_name(CONFIG_NAME)
    if baseline.family.settings is None or not config.is_file():
        return {}
    return function_of(baseline.family.settings)(read_config(config), str(config))


def check_published(name: str, baseline: Baseline, model: nn.Module, path: Path) -> None:
    """Raise where codebook or grid are not the published ones."""
    found = (model.codebook_size, model.downsample_factor)
    if found != (baseline.codebook_size, baseline.factor):
        raise HybridTokenizerError(
            f"{path} has {found[0]} codes and factor {found[1]}, {name} has {baseline.codebook_size} and {baseline.factor}; "
            "it is another model: correct the name or the file"
        )
