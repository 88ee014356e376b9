"""VQGAN checkpoints of taming-transformers and latent-diffusion to Branch I's names; MoVQGAN has the same backbone.

Both name levels from the highest resolution down, in the decoder too, where diffusers counts from the lowest.
"""

from typing import Any

from torch import Tensor

from hybrid_tokenizer.checkpoints.rename import Table, count_layers, rename_keys
from hybrid_tokenizer.errors import HybridTokenizerError

DROPPED: Table = {"loss.": None, "model_ema.": None}
"""Weights of the discriminator and of LPIPS, and averaged weights, which the reference does not use by default."""

ATTENTION = {"q.": "to_q.", "k.": "to_k.", "v.": "to_v.", "proj_out.": "to_out.0."}


def attention_table(source: str, target: str, norm: str) -> Table:
    """One attention block; `norm` is diffusers' name for its norm."""
    return {**{source + a: target + b for a, b in ATTENTION.items()}, source + "norm.": f"{target}{norm}."}


def resnet_table(source: str, target: str) -> Table:
    """One residual block."""
    names = {part: part for part in ("norm1.", "conv1.", "norm2.", "conv2.")} | {"nin_shortcut.": "conv_shortcut."}
    return {source + a: target + b for a, b in names.items()}


def half_table(
    state: dict[str, Tensor], half: str, levels: str, blocks: str, resample: tuple[str, str], norm: str
) -> Table:
    """The rules of an encoder or a decoder with as many levels as `state` has."""
    depth = count_layers(state, f"{half}.{levels}.")
    table: Table = {
        f"{half}.conv_in.": f"{half}.conv_in.",
        f"{half}.norm_out.": f"{half}.conv_norm_out.",
        f"{half}.conv_out.": f"{half}.conv_out.",
        **resnet_table(f"{half}.mid.block_1.", f"{half}.mid_block.resnets.0."),
        **attention_table(f"{half}.mid.attn_1.", f"{half}.mid_block.attentions.0.", norm),
        **resnet_table(f"{half}.mid.block_2.", f"{half}.mid_block.resnets.1."),
    }
    for level in range(depth):
        source = f"{half}.{levels}.{level}."
        target = f"{half}.{blocks}.{level if half == 'encoder' else depth - 1 - level}."
        for layer in range(count_layers(state, source + "block.")):
            table |= resnet_table(f"{source}block.{layer}.", f"{target}resnets.{layer}.")
            table |= attention_table(f"{source}attn.{layer}.", f"{target}attentions.{layer}.", norm)
        table[f"{source}{resample[0]}.conv."] = f"{target}{resample[1]}.0.conv."
    return table


def backbone_table(state: dict[str, Tensor]) -> Table:
    """Encoder, decoder and the convolutions around the codebook: everything but the codebook and what is dropped."""
    return {
        **half_table(state, "encoder", "down", "down_blocks", ("downsample", "downsamplers"), "group_norm"),
        **half_table(
            state, "decoder", "up", "up_blocks", ("upsample", "upsamplers"),
            "spatial_norm" if is_spatial(state) else "group_norm",
        ),
        "quant_conv.": "quant_conv.",
        "post_quant_conv.": "post_quant_conv.",
    }  # fmt: skip


def backbone_to_guide(state: dict[str, Tensor], dropped: Table, source: str) -> dict[str, Tensor]:
    """Encoder, codebook and decoder under Branch I's names. An unknown key raises."""
    if "quantize.embedding.weight" not in state:
        raise HybridTokenizerError(
            f"{source} has no quantize.embedding.weight; a Gumbel VQGAN or a file of another model cannot start Branch I"
        )
    table: Table = {**backbone_table(state), "quantize.embedding.": "quantizer.embedding.", **dropped}
    return {key: squeeze_attention(key, value) for key, value in rename_keys(state, table, source).items()}


def squeeze_attention(key: str, value: Tensor) -> Tensor:
    """1x1 convolutions of the reference's attention are linear layers in diffusers."""
    return value[:, :, 0, 0] if ".to_" in key and value.ndim == 4 else value


def is_spatial(state: dict[str, Tensor]) -> bool:
    """Whether the decoder's norms are MoVQ's, conditioned on the codes."""
    return any(key.startswith("decoder.norm_out.conv_y.") for key in state)


def body_sizes(state: dict[str, Tensor]) -> dict[str, Any]:
    """`GuideConfig` fields of the encoder and the decoder."""
    sizes: dict[str, Any] = {"norm_type": "spatial" if is_spatial(state) else "group"}
    for half, levels, surplus in (("encoder", "down", 0), ("decoder", "up", 1)):
        prefixes = [f"{half}.{levels}.{level}." for level in range(count_layers(state, f"{half}.{levels}."))]
        firsts = [f"{prefix}block.0.conv1.weight" for prefix in prefixes]
        absent = [key for key in (*firsts, "quant_conv.weight") if key not in state]
        if absent or not prefixes:
            raise HybridTokenizerError(
                f"the checkpoint has no {', '.join(absent) or half + '.' + levels}; it is incomplete or of another model"
            )
        sizes[f"{half}_channels"] = [state[key].shape[0] for key in firsts]
        sizes[f"{half}_layers"] = count_layers(state, f"{prefixes[0]}block.") - surplus
        sizes[f"{half}_attention"] = [i for i, prefix in enumerate(prefixes) if count_layers(state, f"{prefix}attn.")]
    sizes["z_channels"] = state["quant_conv.weight"].shape[1]
    return sizes


def backbone_sizes(state: dict[str, Tensor]) -> dict[str, Any]:
    """`GuideConfig` fields of the checkpoint's own architecture, with the quantizer's as a nested dict."""
    codebook_size, codebook_dim = state["quantize.embedding.weight"].shape
    quantizer = {"kind": "vq", "codebook_size": codebook_size, "codebook_dim": codebook_dim}
    return {**body_sizes(state), "quantizer": quantizer}


def taming_to_guide(
    state: dict[str, Tensor], source: str = "taming VQGAN checkpoint"
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Weights under Branch I's names, and the `GuideConfig` fields that they fit. 1x1 quantizing convolutions only."""
    return backbone_to_guide(state, DROPPED, source), backbone_sizes(state)


def gumbel_to_backbone(
    state: dict[str, Tensor], source: str = "Gumbel VQGAN checkpoint"
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """A Gumbel VQGAN: its codebook is `quantize.embed`, and a 1x1 convolution `quantize.proj` gives one logit per code."""
    for key in ("quantize.embed.weight", "quantize.proj.weight"):
        if key not in state:
            raise HybridTokenizerError(f"{source} has no {key}; it is no Gumbel VQGAN: load it as vqgan")
    table: Table = {
        **backbone_table(state),
        "quantize.embed.": "quantizer.embedding.",
        "quantize.proj.": "quantizer.projection.",
        **DROPPED,
    }
    converted = {key: squeeze_attention(key, value) for key, value in rename_keys(state, table, source).items()}
    converted["quantizer.projection.weight"] = converted["quantizer.projection.weight"][:, :, 0, 0]
    codebook_size, codebook_dim = state["quantize.embed.weight"].shape
    quantizer = {"codebook_size": codebook_size, "codebook_dim": codebook_dim}
    return converted, {**body_sizes(state), "quantizer": quantizer}
