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


def vqvae2(width: int, residuals: int, inner: int, dim: int, size: int) -> Layout:
    """The two-level model of the PyTorch port."""

    def stack(name: str, layers: list[tuple[int, tuple[int, ...], int]], first_residual: int | None = None) -> Layout:
        layout: Layout = {}
        for place, shape, outer in layers:
            layout |= {f"{name}.blocks.{place}.weight": shape, f"{name}.blocks.{place}.bias": (outer,)}
        for i in range(residuals if first_residual is not None else 0):
            block = f"{name}.blocks.{first_residual + i}.conv"
            layout |= conv(f"{block}.1", inner, width) | conv(f"{block}.3", width, inner, 1)
        return layout

    half, after = width // 2, residuals + 2
    layout = stack("enc_b", [(0, (half, 3, 4, 4), half), (2, (width, half, 4, 4), width), (4, (width, width, 3, 3), width)], 5)  # fmt: skip
    layout |= stack("enc_t", [(0, (half, width, 4, 4), half), (2, (width, half, 3, 3), width)], 3)
    layout |= stack("dec_t", [(0, (width, dim, 3, 3), width), (after, (width, dim, 4, 4), dim)], 1)
    layout |= stack("dec", [(0, (width, 2 * dim, 3, 3), width), (after, (width, half, 4, 4), half), (after + 2, (half, 3, 4, 4), 3)], 1)  # fmt: skip
    layout |= conv("quantize_conv_t", dim, width, 1) | conv("quantize_conv_b", dim, dim + width, 1)
    layout |= {"upsample_t.weight": (dim, dim, 4, 4), "upsample_t.bias": (dim,)}
    for book in ("quantize_t", "quantize_b"):
        layout |= {f"{book}.embed": (dim, size), f"{book}.embed_avg": (dim, size), f"{book}.cluster_size": (size,)}
    return layout


def dalle(channels: int, decoder_input: int, blocks: int, size: int) -> dict[str, Layout]:
    """Names and shapes of DALL-E's encoder and decoder."""

    def convolution(name: str, out: int, inner: int, kernel: int) -> Layout:
        return {f"{name}.w": (out, inner, kernel, kernel), f"{name}.b": (out,)}

    def half(entering: int, widths: list[int], kernels: tuple[int, ...]) -> Layout:
        layout: Layout = {}
        for i, width in enumerate(widths):
            for j in range(blocks):
                inner = (entering if i == 0 else widths[i - 1]) if j == 0 else width
                block = f"blocks.group_{i + 1}.block_{j + 1}"
                if inner != width:
                    layout |= convolution(f"{block}.id_path", width, inner, 1)
                hidden = (inner, *[width // 4] * 3, width)
                for k, kernel in enumerate(kernels):
                    layout |= convolution(f"{block}.res_path.conv_{k + 1}", hidden[k + 1], hidden[k], kernel)
        return layout

    rising = [channels * 2**i for i in range(4)]
    return {
        "encoder": {
            **convolution("blocks.input", channels, 3, 7),
            **half(channels, rising, (3, 3, 3, 1)),
            **convolution("blocks.output.conv", size, rising[-1], 1),
        },
        "decoder": {
            **convolution("blocks.input", decoder_input, size, 1),
            **half(decoder_input, rising[::-1], (1, 3, 3, 3)),
            **convolution("blocks.output.conv", 6, channels, 1),
        },
    }


def omnitokenizer(
    width: int, heads: int, head_width: int, encoder: str, decoder: str, temporal_layers: int, window: int, patch: int,
    frames: int, size: int, dim: int,
) -> Layout:  # fmt: skip
    """A model of images and videos with rotary positions, `frames` per temporal patch."""
    inner, hidden = heads * head_width, int(4 * (2 / 3) * width)
    norm_of = {"gamma": (width,), "beta": (width,)}

    def part(name: str, shapes: Layout) -> Layout:
        return {f"{name}.{key}": shape for key, shape in shapes.items()}

    def feed(name: str) -> Layout:
        return affine(f"{name}.3.0", width) | {
            f"{name}.3.1.weight": (2 * hidden, width),
            f"{name}.3.4.weight": (width, hidden),
        }

    def whole(name: str) -> Layout:
        return {
            f"{name}.0.dsconv.weight": (width, 1, 3, 3, 3),
            f"{name}.0.dsconv.bias": (width,),
            **part(f"{name}.1.norm", norm_of),
            **part(f"{name}.1.context_norm", norm_of),
            f"{name}.1.to_q.weight": (inner, width),
            f"{name}.1.to_kv.weight": (2 * inner, width),
            f"{name}.1.q_scale": (head_width,),
            f"{name}.1.k_scale": (head_width,),
            f"{name}.1.to_out.weight": (width, inner),
            **feed(name),
        }

    def windowed(name: str) -> Layout:
        return {
            **part(f"{name}.1.norm", norm_of),
            f"{name}.1.relative_position_bias_table": ((2 * window - 1) ** 2, heads),
            f"{name}.1.relative_position_index": (window**2, window**2),
            f"{name}.1.qkv.weight": (3 * width, width),
            **linear(f"{name}.1.proj", width, width),
            **feed(name),
        }

    layout: Layout = {}
    for half, short, kinds in (("encoder", "enc", encoder), ("decoder", "dec", decoder)):
        space, time = f"{half}.{short}_spatial_transformer", f"{half}.{short}_temporal_transformer"
        for i, kind in enumerate(kinds):
            layout |= (windowed if kind == "w" else whole)(f"{space}.layers.{i}")
        for i in range(temporal_layers):
            layout |= whole(f"{time}.layers.{i}")
            bias = f"{time}.layers.{i}.1.spatial_rel_pos_bias.net"  # built there too, and never read
            layout |= linear(f"{bias}.0.0", width, 2) | linear(f"{bias}.1.0", width, width) | linear(f"{bias}.2", heads, width)  # fmt: skip
        layout |= part(f"{space}.norm_out", norm_of) | part(f"{time}.norm_out", norm_of)
    pixels = 3 * patch**2
    for name, count in (("first_frame", pixels), ("", pixels * frames)):
        embed = "encoder.to_patch_emb" + (f"_{name}" if name else "")
        layout |= affine(f"{embed}.1", count) | linear(f"{embed}.2", width, count) | affine(f"{embed}.3", width)
        layout |= linear("decoder.to_pixels" + (f"_{name}" if name else "") + ".0", count, width)
    layout |= linear("pre_vq_conv.1", dim, width) | linear("post_vq_conv.1", width, dim)
    layout |= {"codebook.embeddings": (size, dim), "codebook.z_avg": (size, dim)}
    layout |= {"codebook.N": (size,), "codebook.codebook_usage": (size,)}
    return layout | {
        "image_discriminator.model0.0.weight": (64, 3, 4, 4),
        "perceptual_model.lin0.model.1.weight": (1, 64, 1, 1),
    }


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
    "vqvae2": vqvae2(128, 2, 32, 64, 512),
    "omnitokenizer": omnitokenizer(512, 8, 64, "ttww", "tttt", 4, 8, 8, 4, 8192, 8),
}
DALLE = dalle(256, 128, 2, 8192)
KANDINSKY = ("movq_kandinsky2", "movq_kandinsky3")
"""Their folders are in diffusers' form, and diffusers writes them."""
PARAMETERS = {"movq_67m": 67.8, "movq_102m": 101.6, "movq_270m": 270.7}
"""Millions of parameters in the published files."""
