"""Names and shapes of the weights in published checkpoint files, checked against the fixtures.

Sizes are arguments, so one function gives both a fixture's layout and the published one.
"""

Layout = dict[str, tuple[int, ...]]


def conv(name: str, out: int, inner: int, kernel: int = 3, bias: bool = True) -> Layout:
    return {f"{name}.weight": (out, inner, kernel, kernel)} | ({f"{name}.bias": (out,)} if bias else {})


def affine(name: str, width: int) -> Layout:
    return {f"{name}.weight": (width,), f"{name}.bias": (width,)}


def linear(name: str, out: int, inner: int) -> Layout:
    return {f"{name}.weight": (out, inner), f"{name}.bias": (out,)}


def norm(name: str, width: int, condition: int | None = None) -> Layout:
    """A group norm, or MoVQ's spatial norm with `condition` channels."""
    if condition is None:
        return affine(name, width)
    return affine(f"{name}.norm_layer", width) | {
        key: shape
        for part in ("conv_y", "conv_b")
        for key, shape in conv(f"{name}.{part}", width, condition, 1).items()
    }


def resnet(name: str, inner: int, out: int, condition: int | None = None, bias: bool = True) -> Layout:
    return {
        **norm(f"{name}.norm1", inner, condition),
        **conv(f"{name}.conv1", out, inner, bias=bias),
        **norm(f"{name}.norm2", out, condition),
        **conv(f"{name}.conv2", out, out, bias=bias),
        **(conv(f"{name}.nin_shortcut", out, inner, 1, bias=bias) if inner != out else {}),
    }


def attention(name: str, width: int, condition: int | None = None, fused: bool = False) -> Layout:
    parts = {"qkv": 3} if fused else {"q": 1, "k": 1, "v": 1}
    layout = norm(f"{name}.norm", width, condition)
    for part, times in parts.items():
        layout |= conv(f"{name}.{part}", times * width, width, 1)
    return layout | conv(f"{name}.proj_out", width, width, 1)


def backbone(
    widths: list[int], layers: int, z: int, dim: int, attention_levels: list[int], *, spatial: bool = False,
    fused: bool = False, kernel: int = 1, middle: tuple[str, ...] = ("block_1", "attn_1", "block_2"),
    level_names: tuple[str, str] = ("down", "up"), block: str = "block", low_first: bool = False,
) -> Layout:  # fmt: skip
    """taming's encoder, decoder and convolutions around the codebook. VAR and LlamaGen have other names for them."""
    count, condition = len(widths), dim if spatial else None
    layout: Layout = {}
    for half, levels, per_level, cond in (
        ("encoder", level_names[0], layers, None),
        ("decoder", level_names[1], layers + 1, condition),
    ):
        down = half == "encoder"
        layout |= conv(f"{half}.conv_in", widths[0] if down else widths[-1], 3 if down else z)
        layout |= resnet(f"{half}.mid.{middle[0]}", widths[-1], widths[-1], cond)
        layout |= attention(f"{half}.mid.{middle[1]}", widths[-1], cond, fused)
        layout |= resnet(f"{half}.mid.{middle[2]}", widths[-1], widths[-1], cond)
        for level, width in enumerate(widths):
            stored = count - 1 - level if low_first and not down else level
            inner = widths[max(level - 1, 0)] if down else widths[min(level + 1, count - 1)]
            for layer in range(per_level):
                layout |= resnet(f"{half}.{levels}.{stored}.{block}.{layer}", width if layer else inner, width, cond)
                if level in attention_levels:
                    layout |= attention(f"{half}.{levels}.{stored}.attn.{layer}", width, cond, fused)
            if down and level < count - 1:
                layout |= conv(f"{half}.{levels}.{stored}.downsample.conv", width, width)
            if not down and level > 0:
                layout |= conv(f"{half}.{levels}.{stored}.upsample.conv", width, width)
        layout |= norm(f"{half}.norm_out", widths[-1] if down else widths[0], cond)
        layout |= conv(f"{half}.conv_out", z if down else 3, widths[-1] if down else widths[0])
    return layout | conv("quant_conv", dim, z, kernel) | conv("post_quant_conv", z, dim, kernel)


def codebook(name: str, size: int, dim: int) -> Layout:
    return {f"{name}.weight": (size, dim)}


def taming(
    widths: list[int], layers: int, z: int, dim: int, size: int, attention_levels: list[int], spatial: bool = False
) -> Layout:
    return backbone(widths, layers, z, dim, attention_levels, spatial=spatial) | codebook(
        "quantize.embedding", size, dim
    )


def gumbel(widths: list[int], layers: int, dim: int, size: int, attention_levels: list[int]) -> Layout:
    return {
        **backbone(widths, layers, dim, dim, attention_levels),
        **codebook("quantize.embed", size, dim),
        **conv("quantize.proj", size, dim, 1),
    }


def var(widths: list[int], layers: int, dim: int, size: int, scales: int) -> Layout:
    return {
        **backbone(widths, layers, dim, dim, [len(widths) - 1], fused=True, kernel=3),
        **codebook("quantize.embedding", size, dim),
        **{k: s for i in range(4) for k, s in conv(f"quantize.quant_resi.qresi_ls.{i}", dim, dim).items()},
        "quantize.ema_vocab_hit_SV": (scales, size),
    }


def llamagen(widths: list[int], layers: int, z: int, dim: int, size: int) -> Layout:
    names = {
        "middle": ("0", "1", "2"),
        "level_names": ("conv_blocks", "conv_blocks"),
        "block": "res",
        "low_first": True,
    }
    return backbone(widths, layers, z, dim, [len(widths) - 1], **names) | codebook("quantize.embedding", size, dim)


def magvit2(widths: list[int], layers: int, bits: int) -> Layout:
    count = len(widths)
    layout = conv("encoder.conv_in", widths[0], 3, bias=False) | conv("encoder.conv_out", bits, widths[-1], 1)
    layout |= conv("decoder.conv_in", widths[-1], bits) | conv("decoder.conv_out", 3, widths[0])
    layout |= affine("encoder.norm_out", widths[-1]) | affine("decoder.norm_out", widths[0])
    for half, levels in (("encoder", "down"), ("decoder", "up")):
        for layer in range(layers):
            layout |= resnet(f"{half}.mid_block.{layer}", widths[-1], widths[-1], bias=False)
        for level, width in enumerate(widths):
            inner = widths[max(level - 1, 0)] if half == "encoder" else widths[min(level + 1, count - 1)]
            for layer in range(layers):
                layout |= resnet(f"{half}.{levels}.{level}.block.{layer}", width if layer else inner, width, bias=False)
            if half == "encoder" and level < count - 1:
                layout |= conv(f"encoder.down.{level}.downsample", width, width)
            if half == "decoder":
                for part in ("gamma", "beta"):
                    layout |= linear(f"decoder.adaptive.{level}.{part}", inner, bits)
                if level > 0:
                    layout |= conv(f"decoder.up.{level}.upsample.conv1", 4 * width, width)
    return layout


def titok(
    grid: int,
    patch: int,
    latents: int,
    encoder: tuple[int, int],
    decoder: tuple[int, int],
    size: int,
    dim: int,
    pixels: tuple[int, int, list[int], int] | None = None,
) -> Layout:
    """`encoder`, `decoder`: (width, layers). `pixels`: (codes, dim, widths, layers) of the legacy models."""
    layout = {"latent_tokens": (latents, encoder[0])} | codebook("quantize.embedding", size, dim)
    for half, (width, layers) in (("encoder", encoder), ("decoder", decoder)):
        layout |= {
            f"{half}.class_embedding": (1, width),
            f"{half}.positional_embedding": (grid**2 + 1, width),
            f"{half}.latent_token_positional_embedding": (latents, width),
            **affine(f"{half}.ln_pre", width),
            **affine(f"{half}.ln_post", width),
        }
        for i in range(layers):
            block = f"{half}.transformer.{i}"
            layout |= {
                f"{block}.attn.in_proj_weight": (3 * width, width),
                f"{block}.attn.in_proj_bias": (3 * width,),
                **linear(f"{block}.attn.out_proj", width, width),
                **affine(f"{block}.ln_1", width),
                **affine(f"{block}.ln_2", width),
                **linear(f"{block}.mlp.c_fc", 4 * width, width),
                **linear(f"{block}.mlp.c_proj", width, 4 * width),
            }
    width = decoder[0]
    layout |= conv("encoder.patch_embed", encoder[0], 3, patch) | conv("encoder.conv_out", dim, encoder[0], 1)
    layout |= linear("decoder.decoder_embed", width, dim) | {"decoder.mask_token": (1, 1, width)}
    if pixels is None:
        return layout | conv("decoder.ffn.0", 3 * patch**2, width, 1) | conv("decoder.conv_out", 3, 3)
    codes, pixel_dim, widths, layers = pixels
    layout |= conv("decoder.ffn.0", 2 * width, width, 1) | conv("decoder.ffn.2", codes, 2 * width, 1)
    layout |= codebook("pixel_quantize.embedding", codes, pixel_dim)
    layout |= conv("pixel_decoder.conv_in", widths[-1], pixel_dim) | conv("pixel_decoder.conv_out", 3, widths[0])
    layout |= affine("pixel_decoder.norm_out", widths[0])
    for layer in range(layers):
        layout |= resnet(f"pixel_decoder.mid.{layer}", widths[-1], widths[-1], bias=False)
    for level, wide in enumerate(widths):
        inner = widths[min(level + 1, len(widths) - 1)]
        for layer in range(layers):
            name = f"pixel_decoder.up.{level}.block.{layer}"
            layout |= resnet(name, wide if layer else inner, wide, bias=False)
            if f"{name}.nin_shortcut.weight" in layout:  # MaskGIT's shortcut is of the block's output
                layout[f"{name}.nin_shortcut.weight"] = (wide, wide, 1, 1)
        if level > 0:
            layout |= conv(f"pixel_decoder.up.{level}.upsample_conv", wide, wide)
    return layout


def with_averages(layout: Layout) -> Layout:
    """The layout as Lightning stores it with `LitEma` averages and a loss that has weights."""
    loss = {"loss.discriminator.main.0.weight": (64, 3, 4, 4)}
    both = layout | loss
    copies = {"model_ema." + key.replace(".", ""): shape for key, shape in both.items()}
    return both | copies | {"model_ema.decay": (), "model_ema.num_updates": ()}


def widths_of(ch: int, mult: tuple[int, ...] | list[int]) -> list[int]:
    return [ch * m for m in mult]


F8, F16 = (1, 2, 2, 4), (1, 1, 2, 2, 4)
MASKGIT = (1024, 256, [128, 128, 256, 256, 512], 2)

PUBLISHED: dict[str, Layout] = {
    "movq_67m": taming(widths_of(128, F8), 2, 4, 4, 16384, [3], spatial=True),
    "movq_102m": taming(widths_of(128, F8), 4, 4, 4, 16384, [3], spatial=True),
    "movq_270m": taming(widths_of(256, F8), 2, 4, 4, 16384, [3], spatial=True),
    "vqgan_f16_1024": taming(widths_of(128, F16), 2, 256, 256, 1024, [4]),
    "vqgan_f16_16384": taming(widths_of(128, F16), 2, 256, 256, 16384, [4]),
    "vqgan_f8": taming(widths_of(128, F8), 2, 4, 4, 16384, [3]),
    "vqgan_f8_256": taming(widths_of(128, F8), 2, 4, 4, 256, [3]),
    "vqgan_gumbel_f8": gumbel(widths_of(128, (1, 1, 2, 4)), 2, 256, 8192, [3]),
    "var_vae": var(widths_of(160, F16), 2, 32, 4096, 10),
    "magvit2": with_averages(magvit2(widths_of(128, F16), 4, 18)),
    "magvit2_128": with_averages(magvit2(widths_of(128, F8), 4, 18)),
    "magvit2_16384": with_averages(magvit2(widths_of(128, F16), 4, 14)),
    "magvit2_262144": with_averages(magvit2(widths_of(128, F16), 4, 18)),
    **{
        f"ibq_{size}": with_averages(taming(widths_of(128, F16), 4, 256, 256, size, [4]))
        for size in (1024, 8192, 16384, 262144)
    },
    "llamagen_ds16": llamagen(widths_of(128, F16), 2, 256, 8, 16384) | {"quantize.codebook_used": (65536,)},
    "llamagen_ds8": llamagen(widths_of(128, F8), 2, 256, 8, 16384) | {"quantize.codebook_used": (65536,)},
    "llamagen_t2i": llamagen(widths_of(128, F16), 2, 256, 8, 16384) | {"quantize.codebook_used": (65536,)},
    "titok_l32": titok(16, 16, 32, (1024, 24), (1024, 24), 4096, 12, MASKGIT),
    "titok_b64": titok(16, 16, 64, (768, 12), (768, 12), 4096, 12, MASKGIT),
    "titok_s128": titok(16, 16, 128, (512, 8), (512, 8), 4096, 12, MASKGIT),
    "titok_bl64": titok(16, 16, 64, (768, 12), (1024, 24), 8192, 64),
    "titok_bl128": titok(16, 16, 128, (768, 12), (1024, 24), 8192, 64),
    "titok_sl256": titok(16, 16, 256, (512, 8), (1024, 24), 8192, 64),
}
KANDINSKY = ("movq_kandinsky2", "movq_kandinsky3")
"""Their folders are in diffusers' form, and diffusers writes them."""
PARAMETERS = {"movq_67m": 67.8, "movq_102m": 101.6, "movq_270m": 270.7}
"""Millions of parameters in the published files."""
