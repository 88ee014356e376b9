"""The table of baselines: what builds each, what it must turn out to be, and where its weights were published.

A new baseline takes two files: a module of this package with its model and a function that builds it from a state dict,
and a row here. A layout that another module reads as well has its key map in `checkpoints/keys`. `loading.py` reads rows.
"""

from dataclasses import dataclass

from hybrid_tokenizer.checkpoints.hub import Source


@dataclass(frozen=True)
class Family:
    """What the files of one publisher share.

    Args:
        builder: `module:function` of this package.
        licence: of the weights, as their repository states it.
        layout: how the files are nested, and which keys they hold beside the model's.
        reads: what the builder takes. "file": `function(state, source) -> model`; "folder": `function(folder) -> model`;
            "row": `function(name, folder) -> row of a table`, for several files and a diffusion model.
        wrappers: names that the state dict may be nested under, in their order.
        converted: `module:function` that builds a component folder written by `commands.convert`: `function(folder) -> model`.
        settings: `module:function` that reads a `config.json` beside the weights: `function(values) -> builder's options`.
        fixed_size: the model takes images of one size only.
        decodes_by: "network", one pass; or "diffusion", from pure noise.
    """

    builder: str
    licence: str
    layout: str
    reads: str = "file"
    wrappers: tuple[str, ...] = ("state_dict", "model")
    converted: str | None = None
    settings: str | None = None
    fixed_size: bool = False
    decodes_by: str = "network"


@dataclass(frozen=True)
class Baseline:
    """One row. A file with another `codebook_size` or `factor` than the published ones is another model and is refused.

    sources: of the weights; the first one on the hub is what `hub` downloads.
    sha256: of the first source's file. None: this file has not been verified.
    tokens: of an image of any size, for models without a grid; of 256 px, for those with several grids.
    varying: the fewest and the most tokens, for a model that decides by itself.
    """

    family: Family
    codebook_size: int
    factor: int
    sources: tuple[Source, ...]
    sha256: str | None = None
    tokens: int | None = None
    varying: tuple[int, int] | None = None

    def tokens_of(self, side: int) -> int:
        """Tokens of a square image."""
        if self.tokens is None:
            return (side // self.factor) ** 2
        return self.tokens

    @property
    def compression_rate(self) -> str:
        """As the paper's Table 2 writes it: the factor of both sides, or that the number of tokens is fixed, or varies."""
        if self.varying is not None:
            return f"{self.varying[0]}-{self.varying[1]} tokens"
        return FIXED if self.family in (TITOK, SEED, SEED2) else f"{self.factor}*{self.factor}"


FIXED = "fixed # tokens"
NO_LICENCE = "none stated by the repository: weights are for their users to fetch"
TAMING_LAYOUT = (
    "state_dict; encoder, decoder, quantize, quant convs; beside them loss.* and perhaps model_ema.*, dropped"
)
VOKEN_LAYOUT = "state_dict; raw weights, and model_ema.<name without dots>, which is preferred; loss.* dropped"
LAVIT_LICENCE = "LaVIT's own community licence"

# fmt: off
MOVQGAN = Family(
    "vqgan:build_movq", NO_LICENCE,
    "flat; encoder, decoder (norms with conv_y, conv_b), quantize, quant convs; loss.* and ema_* copies dropped",
    converted="vqgan:build_movq_folder",
)
KANDINSKY = Family(
    "vqgan:build_movq_folder", "Apache-2.0", "a folder movq/ in diffusers' form: config.json and weights of a VQModel",
    reads="folder",
)
TAMING = Family("vqgan:build_vqgan", "MIT", TAMING_LAYOUT)
GUMBEL = Family("vqgan:build_gumbel", "MIT", TAMING_LAYOUT)
IBQ = Family("vqgan:build_ibq", "Apache-2.0", VOKEN_LAYOUT)
MAGVIT2 = Family("magvit2:build_magvit2", "Apache-2.0", VOKEN_LAYOUT)
VAR = Family("var_vae:build_var", "MIT", "flat; fused qkv; quantize.quant_resi; quantize.ema_vocab_hit_SV dropped")
LLAMAGEN = Family(
    "vqgan:build_llamagen", "MIT", "ema, else model, else state_dict; quantize.codebook_used dropped",
    wrappers=("ema", "model", "state_dict"),
)
TITOK = Family(
    "titok:build_titok", "Apache-2.0",
    "flat; encoder, decoder, latent_tokens, quantize; legacy models also pixel_quantize and pixel_decoder",
    settings="titok:read_settings", fixed_size=True,
)
SEED = Family(
    "seed:load_seed_row", "Apache-2.0; Stable Diffusion 1.4 has its own",
    "a folder with eva_vit_g.pth, causal_qformer.pth, seed_tokenizer.pth, and stable-diffusion-v1-4/ in diffusers' form",
    reads="row", decodes_by="diffusion",
)
SEED2 = Family(
    "seed:load_seed2_row", "Apache-2.0; stable unCLIP has its own",
    "a folder with eva_vit_g.pth, seed_quantizer.pt (flat), and stable-diffusion-2-1-unclip/ in diffusers' form",
    reads="row", decodes_by="diffusion",
)
LAVIT = Family(
    "lavit:load_lavit_row", LAVIT_LICENCE, "a folder with visual_tokenizer/ and highres_pixel_decoding/", reads="row", decodes_by="diffusion",
)
LAVIT_LOWRES = Family(
    "lavit:load_lavit_row", LAVIT_LICENCE, "a folder with visual_tokenizer/ and pixel_decoding/", reads="row", decodes_by="diffusion",
)

VQVAE2 = Family(
    "vqvae2:build_vqvae2", "MIT", "flat, perhaps below module.; cluster_size and embed_avg of both codebooks dropped"
)
DALLE = Family(
    "dalle:load_dalle_row", "Modified MIT (OpenAI)",
    "a folder with encoder.pkl and decoder.pkl, pickled modules that are read without running their code", reads="row",
)
OMNI = Family(
    "omnitokenizer:build_omnitokenizer", "MIT",
    "a Lightning file that also holds its arguments, so that its state_dict has to be written out once as loading.py says; "
    "encoder, decoder, pre_vq_conv, post_vq_conv, codebook; losses and the weights of further frames dropped",
    fixed_size=True,
)

HEIBOX = "https://heibox.uni-heidelberg.de/d"
OMMER = "https://ommer-lab.com/files/latent-diffusion"


def at(*places: tuple[str, str]) -> tuple[Source, ...]:
    """Repositories of the hub, or addresses that have to be visited by hand, each with its file."""
    return tuple(Source(*place) for place in places)


def voken(repository: str, file: str) -> tuple[Source, ...]:
    """A file of SEED-Voken."""
    return at((f"TencentARC/{repository}", file))


def titok(name: str) -> tuple[Source, ...]:
    """A folder of TiTok."""
    return at((f"yucornetto/tokenizer_titok_{name}_imagenet", "model.safetensors"))


BASELINES: dict[str, Baseline] = {
    # name                      family       codes  factor  repository and file
    "movq_67m":        Baseline(MOVQGAN,     16384,  8, at(("ai-forever/MoVQGAN", "movqgan_67M.ckpt"))),
    "movq_102m":       Baseline(MOVQGAN,     16384,  8, at(("ai-forever/MoVQGAN", "movqgan_102M.ckpt"))),
    "movq_270m":       Baseline(MOVQGAN,     16384,  8, at(("ai-forever/MoVQGAN", "movqgan_270M.ckpt"))),
    "movq_kandinsky2": Baseline(KANDINSKY,   16384,  8, at(("kandinsky-community/kandinsky-2-2-decoder", "movq"))),
    "movq_kandinsky3": Baseline(KANDINSKY,   16384,  8, at(("kandinsky-community/kandinsky-3", "movq"))),
    "vqgan_f16_1024":  Baseline(TAMING,       1024, 16, at((f"{HEIBOX}/8088892a516d4e3baf92", "last.ckpt"),
                                                           ("thomwolf/vqgan_imagenet_f16_1024", "pytorch_model.bin"))),
    "vqgan_f16_16384": Baseline(TAMING,      16384, 16, at((f"{HEIBOX}/a7530b09fed84f80a887", "last.ckpt"))),
    "vqgan_f8":        Baseline(TAMING,      16384,  8, at((f"{OMMER}/vq-f8.zip", "model.ckpt"))),
    "vqgan_f8_256":    Baseline(TAMING,        256,  8, at((f"{OMMER}/vq-f8-n256.zip", "model.ckpt"))),
    "vqgan_gumbel_f8": Baseline(GUMBEL,       8192,  8, at((f"{HEIBOX}/2e5662443a6b4307b470", "last.ckpt"))),
    "var_vae":         Baseline(VAR,          4096, 16, at(("FoundationVision/var", "vae_ch160v4096z32.pth")), tokens=680),
    "magvit2":         Baseline(MAGVIT2,     2**18, 16, voken("Open-MAGVIT2-Tokenizer-256-resolution", "imagenet_256_L.ckpt")),
    "magvit2_128":     Baseline(MAGVIT2,     2**18,  8, voken("Open-MAGVIT2-Tokenizer-128-resolution", "imagenet_128_L.ckpt")),
    "magvit2_16384":   Baseline(MAGVIT2,     2**14, 16, voken("Open-MAGVIT2-Tokenizer-16384-Pretrain", "pretrain256_16384.ckpt")),
    "magvit2_262144":  Baseline(MAGVIT2,     2**18, 16, voken("Open-MAGVIT2-Tokenizer-262144-Pretrain", "pretrain256_262144.ckpt")),
    "ibq_1024":        Baseline(IBQ,          1024, 16, voken("IBQ-Tokenizer-1024", "imagenet256_1024.ckpt")),
    "ibq_8192":        Baseline(IBQ,          8192, 16, voken("IBQ-Tokenizer-8192", "imagenet256_8192.ckpt")),
    "ibq_16384":       Baseline(IBQ,         16384, 16, voken("IBQ-Tokenizer-16384", "imagenet256_16384.ckpt")),
    "ibq_262144":      Baseline(IBQ,        262144, 16, voken("IBQ-Tokenizer-262144", "imagenet256_262144.ckpt")),
    "llamagen_ds16":   Baseline(LLAMAGEN,    16384, 16, at(("FoundationVision/LlamaGen", "vq_ds16_c2i.pt"))),
    "llamagen_ds8":    Baseline(LLAMAGEN,    16384,  8, at(("FoundationVision/LlamaGen", "vq_ds8_c2i.pt"))),
    "llamagen_t2i":    Baseline(LLAMAGEN,    16384, 16, at(("peizesun/llamagen_t2i", "vq_ds16_t2i.pt"))),
    "titok_l32":       Baseline(TITOK,        4096, 16, titok("l32"), tokens=32),
    "titok_b64":       Baseline(TITOK,        4096, 16, titok("b64"), tokens=64),
    "titok_s128":      Baseline(TITOK,        4096, 16, titok("s128"), tokens=128),
    "titok_bl64":      Baseline(TITOK,        8192, 16, titok("bl64_vq8k"), tokens=64),
    "titok_bl128":     Baseline(TITOK,        8192, 16, titok("bl128_vq8k"), tokens=128),
    "titok_sl256":     Baseline(TITOK,        8192, 16, titok("sl256_vq8k"), tokens=256),
    "vqvae2":          Baseline(VQVAE2,        512,  8, at(("https://github.com/rosinality/vq-vae-2-pytorch", "vqvae_560.pt")), tokens=32**2 + 64**2),
    "dalle":           Baseline(DALLE,        8192,  8, at(("https://cdn.openai.com/dall-e", "encoder.pkl"))),
    "omnitokenizer":   Baseline(OMNI,         8192,  8, at(("Daniel0724/OmniTokenizer", "imagenet_k600.ckpt"))),
    "seed":            Baseline(SEED,         8192, 14, at(("https://github.com/AILab-CVC/SEED", "seed_tokenizer.pth")), tokens=32),
    "seed2":           Baseline(SEED2,        8192, 14, at(("AILab-CVC/seed-tokenizer-2", "seed_quantizer.pt")), tokens=32),
    "lavit":           Baseline(LAVIT,       16384, 14, at(("rain1011/LaVIT-7B-v2", "visual_tokenizer")), varying=(1, 256)),
    "lavit_lowres":    Baseline(LAVIT_LOWRES, 16384, 14, at(("rain1011/LaVIT-7B-v2", "visual_tokenizer")), varying=(1, 256)),
}
# fmt: on


def list_baselines() -> list[str]:
    """The names that `load_baseline` takes. `BASELINES` has each one's licence, codebook and published files.

    Examples:
        >>> hybrid_tokenizer.list_baselines()[:2]
        ['movq_67m', 'movq_102m']
    """
    return list(BASELINES)
