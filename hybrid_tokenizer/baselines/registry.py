"""Baselines by name: where their weights are, under which licence, how they are laid out, and who builds them.

Weights are never fetched unless a hub id is given or asked for. A pickle is read with `weights_only=True`. Some old
Lightning files hold more than tensors and are refused. This package never unpickles them; whoever trusts a file can write
its tensors out once, by hand, in a place where nothing else is at stake, since loading it runs any code that it holds:

    import torch; from safetensors.torch import save_file
    state = torch.load("last.ckpt", map_location="cpu", weights_only=False)["state_dict"]
    save_file({key: value.contiguous() for key, value in state.items()}, "last.safetensors")
"""

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from torch import nn

from hybrid_tokenizer.baselines.grid_row import GridRow
from hybrid_tokenizer.checkpoints.files import CONFIG_NAME, file_hash, read_foreign, read_json
from hybrid_tokenizer.errors import HybridTokenizerError
from hybrid_tokenizer.protocol import ImageTokenizer

HUB = "hub"
"""Given in place of a path: the registry's own repositories, in their order."""


@dataclass(frozen=True)
class Source:
    """One file of a hub repository, or of a site that no client of ours fetches from (`repository` is then its address)."""

    repository: str
    file: str

    @property
    def on_hub(self) -> bool:
        return "://" not in self.repository


@dataclass(frozen=True)
class Baseline:
    """`builder` is `module:function` of this package, `function(state, source) -> model`.

    `sources` are tried in order. `layout` says how the file is nested and which keys come beside the model's. `sha256` is
    of the first source's file; None says that nobody here has seen the file. `codebook_size` and `factor` are the
    published ones: a file with others is another model and is refused. A builder named `..._row` makes the whole row from
    a local folder.
    """

    builder: str
    sources: tuple[Source, ...]
    licence: str
    layout: str
    codebook_size: int
    factor: int
    wrappers: tuple[str, ...] = ("state_dict", "model")
    fixed_size: bool = False
    sha256: str | None = None


TAMING = "state_dict; encoder, decoder, quantize, quant convs; beside them loss.* and perhaps model_ema.*, dropped"
MOVQGAN = "flat; encoder, decoder (norms with conv_y, conv_b), quantize, quant convs; loss.* and ema_* copies dropped"
VOKEN = "state_dict; raw weights, and model_ema.<name without dots>, which is preferred; loss.* dropped"
NO_LICENCE = "none stated by the repository: weights are for their users to fetch"
HEIBOX = "https://heibox.uni-heidelberg.de"


def movq(size: str) -> Baseline:
    """A file of MoVQGAN."""
    return Baseline(
        "movq:build_movq", (Source("ai-forever/MoVQGAN", f"movqgan_{size}.ckpt"),), NO_LICENCE, MOVQGAN, 16384, 8
    )


def kandinsky(repository: str) -> Baseline:
    """The `movq` folder of a Kandinsky model."""
    files = tuple(Source(repository, f"movq/{name}") for name in (CONFIG_NAME, "diffusion_pytorch_model.safetensors"))
    return Baseline(
        "movq:build_movq_folder", files, "Apache-2.0", "diffusers VQModel folder: config.json and weights", 16384, 8
    )


def voken(builder: str, repository: str, file: str, codebook_size: int, factor: int = 16) -> Baseline:
    """A file of SEED-Voken."""
    return Baseline(builder, (Source(f"TencentARC/{repository}", file),), "Apache-2.0", VOKEN, codebook_size, factor)


def llamagen(repository: str, file: str, factor: int) -> Baseline:
    """A file of LlamaGen."""
    layout = "ema, else model, else state_dict; quantize.codebook_used dropped"
    wrappers = ("ema", "model", "state_dict")
    return Baseline(
        "llamagen:build_llamagen", (Source(repository, file),), "MIT", layout, 16384, factor, wrappers=wrappers
    )


def titok(name: str, codebook_size: int) -> Baseline:
    """A folder of TiTok."""
    layout = "flat; encoder, decoder, latent_tokens, quantize; legacy models also pixel_quantize and pixel_decoder"
    return Baseline(
        "titok:build_titok", (Source(f"yucornetto/tokenizer_titok_{name}_imagenet", "model.safetensors"),),
        "Apache-2.0", layout, codebook_size, 16, fixed_size=True,
    )  # fmt: skip


BASELINES: dict[str, Baseline] = {
    "movq_67m": movq("67M"),
    "movq_102m": movq("102M"),
    "movq_270m": movq("270M"),
    "movq_kandinsky2": kandinsky("kandinsky-community/kandinsky-2-2-decoder"),
    "movq_kandinsky3": kandinsky("kandinsky-community/kandinsky-3"),
    "vqgan_f16_1024": Baseline(
        "vqgan:build_vqgan",
        (
            Source(f"{HEIBOX}/d/8088892a516d4e3baf92", "last.ckpt"),
            Source("thomwolf/vqgan_imagenet_f16_1024", "pytorch_model.bin"),
        ),
        "MIT", TAMING, 1024, 16,
    ),
    "vqgan_f16_16384": Baseline(
        "vqgan:build_vqgan", (Source(f"{HEIBOX}/d/a7530b09fed84f80a887", "last.ckpt"),), "MIT", TAMING, 16384, 16
    ),
    "vqgan_f8": Baseline(
        "vqgan:build_vqgan", (Source("https://ommer-lab.com/files/latent-diffusion/vq-f8.zip", "model.ckpt"),),
        "MIT", TAMING, 16384, 8,
    ),
    "vqgan_f8_256": Baseline(
        "vqgan:build_vqgan", (Source("https://ommer-lab.com/files/latent-diffusion/vq-f8-n256.zip", "model.ckpt"),),
        "MIT", TAMING, 256, 8,
    ),
    "vqgan_gumbel_f8": Baseline(
        "vqgan:build_gumbel", (Source(f"{HEIBOX}/d/2e5662443a6b4307b470", "last.ckpt"),), "MIT", TAMING, 8192, 8
    ),
    "var_vae": Baseline(
        "var_vae:build_var", (Source("FoundationVision/var", "vae_ch160v4096z32.pth"),), "MIT",
        "flat; fused qkv; quantize.quant_resi; quantize.ema_vocab_hit_SV dropped", 4096, 16,
    ),
    "magvit2": voken(
        "magvit2:build_magvit2", "Open-MAGVIT2-Tokenizer-256-resolution", "imagenet_256_L.ckpt", 2**18
    ),
    "magvit2_128": voken(
        "magvit2:build_magvit2", "Open-MAGVIT2-Tokenizer-128-resolution", "imagenet_128_L.ckpt", 2**18, factor=8
    ),
    "magvit2_16384": voken(
        "magvit2:build_magvit2", "Open-MAGVIT2-Tokenizer-16384-Pretrain", "pretrain256_16384.ckpt", 2**14
    ),
    "magvit2_262144": voken(
        "magvit2:build_magvit2", "Open-MAGVIT2-Tokenizer-262144-Pretrain", "pretrain256_262144.ckpt", 2**18
    ),
    **{
        f"ibq_{size}": voken("ibq:build_ibq", f"IBQ-Tokenizer-{size}", f"imagenet256_{size}.ckpt", size)
        for size in (1024, 8192, 16384, 262144)
    },
    "llamagen_ds16": llamagen("FoundationVision/LlamaGen", "vq_ds16_c2i.pt", 16),
    "llamagen_ds8": llamagen("FoundationVision/LlamaGen", "vq_ds8_c2i.pt", 8),
    "llamagen_t2i": llamagen("peizesun/llamagen_t2i", "vq_ds16_t2i.pt", 16),
    **{f"titok_{name}": titok(name, 4096) for name in ("l32", "b64", "s128")},
    **{f"titok_{name}": titok(f"{name}_vq8k", 8192) for name in ("bl64", "bl128", "sl256")},
    "seed": Baseline(
        "seed:load_seed_row", (Source("https://github.com/AILab-CVC/SEED", "seed_tokenizer.pth"),),
        "Apache-2.0; Stable Diffusion 1.4 has its own",
        "a folder with eva_vit_g.pth, causal_qformer.pth, seed_tokenizer.pth, and stable-diffusion-v1-4/ in diffusers' form",
        8192, 14,
    ),
    "seed2": Baseline(
        "seed:load_seed2_row", (Source("AILab-CVC/seed-tokenizer-2", "seed_quantizer.pt"),),
        "Apache-2.0; stable unCLIP has its own",
        "a folder with eva_vit_g.pth, seed_quantizer.pt (flat), and stable-diffusion-2-1-unclip/ in diffusers' form",
        8192, 14,
    ),
    **{
        name: Baseline(
            "lavit:load_lavit_row", (Source("rain1011/LaVIT-7B-v2", "visual_tokenizer"),),
            "LaVIT's own community licence", "a folder with visual_tokenizer/ and " + pixels, 16384, 14,
        )
        for name, pixels in (("lavit", "highres_pixel_decoding/"), ("lavit_lowres", "pixel_decoding/"))
    },
}  # fmt: skip


def load_baseline(name: str, path: str | Path) -> ImageTokenizer:
    """The row `name` from a file, a folder that holds it, a hub id `owner/name`, or `hub` for the registry's own source.

    Raises in one line where the name is unknown, the file is missing or refused, or the weights are another model's.
    """
    if name not in BASELINES:
        raise HybridTokenizerError(f"baseline {name!r} is unknown; use one of {', '.join(BASELINES)}")
    baseline = BASELINES[name]
    if baseline.builder.endswith("_row"):
        return load_row(name, baseline, Path(path))
    found = locate(name, baseline, path)
    if baseline.sha256 is not None and (digest := file_hash(found)) != baseline.sha256:
        raise HybridTokenizerError(f"{found} has sha256 {digest}, {name} has {baseline.sha256}; download it again")
    model = build(baseline, found)
    check_published(name, baseline, model, found)
    return GridRow(name, model, model.config.image_size if baseline.fixed_size else None)


def load_row(name: str, baseline: Baseline, folder: Path) -> ImageTokenizer:
    """A row of several files and a diffusion model, from one local folder."""
    if not folder.is_dir():
        raise HybridTokenizerError(
            f"{folder} is not a folder; {name} is {baseline.layout}: download it and give its path"
        )
    return function_of(baseline)(name, folder)


def function_of(baseline: Baseline) -> Callable[..., Any]:
    """The builder itself."""
    module, _, function = baseline.builder.partition(":")
    return getattr(import_module(f"hybrid_tokenizer.baselines.{module}"), function)


def build(baseline: Baseline, path: Path) -> nn.Module:
    """The model of a file, or of a folder where `builder` reads folders."""
    builder: Callable[..., nn.Module] = function_of(baseline)
    if path.is_dir():
        return builder(path)
    state = {
        key: value.float() if value.is_floating_point() else value
        for key, value in read_foreign(path, baseline.wrappers).items()
    }
    return builder(state, str(path), **stated_options(baseline, path))


def stated_options(baseline: Baseline, path: Path) -> dict[str, bool]:
    """What a `config.json` beside the weights tells and the weights do not."""
    config = path.with_name(CONFIG_NAME)
    if not baseline.builder.startswith("titok:") or not config.is_file():
        return {}
    values: dict[str, dict[str, dict[str, bool]]] = read_json(config)
    stated = values.get("model", {}).get("vq_model", {})
    return {"unit_codes": stated["use_l2_norm"]} if "use_l2_norm" in stated else {}


def check_published(name: str, baseline: Baseline, model: nn.Module, path: Path) -> None:
    """Raise where codebook or grid are not the published ones."""
    found = (model.codebook_size, model.downsample_factor)
    if found != (baseline.codebook_size, baseline.factor):
        raise HybridTokenizerError(
            f"{path} has {found[0]} codes and factor {found[1]}, {name} has {baseline.codebook_size} and {baseline.factor}; "
            "it is another model: correct the name or the file"
        )


def locate(name: str, baseline: Baseline, path: str | Path) -> Path:
    """The file, or the folder of a builder that reads folders."""
    wants_folder = baseline.builder.endswith("_folder")
    local = Path(path)
    if local.is_file():
        if wants_folder:
            raise HybridTokenizerError(
                f"{name} is a folder of config.json and weights, {path} is a file; give its folder"
            )
        return local
    if local.is_dir():
        if wants_folder:
            inside = local / "movq"
            return inside if (inside / CONFIG_NAME).is_file() else local
        wanted = list(dict.fromkeys(source.file for source in baseline.sources))
        candidates = [local / file for file in wanted] + [
            local / file.replace(".ckpt", ".safetensors") for file in wanted
        ]
        for candidate in candidates:
            if candidate.is_file():
                return candidate
        raise HybridTokenizerError(f"{path} has no {' or '.join(wanted)}; give the file of {name} itself")
    if str(path) != HUB and (isinstance(path, Path) or str(path).count("/") != 1 or str(path).startswith((".", "~"))):
        raise HybridTokenizerError(
            f"{path} does not exist; give the file of {name}, its folder, a hub id like owner/name, or {HUB}"
        )
    sources = [source for source in baseline.sources if source.on_hub]
    if str(path) != HUB:
        sources = [Source(str(path), source.file) for source in baseline.sources[: 2 if wants_folder else 1]]
    if not sources:
        raise HybridTokenizerError(
            f"{name} is on no hub; download {baseline.sources[0].file} from {baseline.sources[0].repository} and give its path"
        )
    return fetch(name, sources, wants_folder)


def fetch(name: str, sources: list[Source], together: bool) -> Path:
    """The first source that can be had; the folder of all of them where they belong `together`."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    failures, paths = [], []
    for source in sources:
        try:
            paths.append(Path(hf_hub_download(source.repository, source.file)))
        except GatedRepoError:
            failures.append(f"{source.repository} asks for its licence to be accepted on its page")
        except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
            failures.append(
                f"{source.repository}/{source.file}: {(str(error).splitlines() or [type(error).__name__])[0]}"
            )
        if paths and not together:
            return paths[0]
    if failures:
        raise HybridTokenizerError(
            f"{name} can not be fetched ({'; '.join(failures)}); give the path of a downloaded file instead"
        )
    return paths[0].parent
