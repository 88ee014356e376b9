"""TiTok to the names of `baselines.titok.TiTok`."""

from typing import Any

from torch import Tensor

from hybrid_tokenizer.checkpoints.keys.seed_voken import block_table
from hybrid_tokenizer.checkpoints.rename import Table, count_layers, rename_keys
from hybrid_tokenizer.errors import HybridTokenizerError

HEAD_WIDTH = 64
"""Of every published size (512 x 8, 768 x 12, 1024 x 16)."""
NEEDED = (
    "latent_tokens",
    "encoder.patch_embed.weight",
    "encoder.positional_embedding",
    "decoder.positional_embedding",
    "decoder.ffn.0.weight",
    "quantize.embedding.weight",
)


def titok_to_model(state: dict[str, Tensor], source: str = "TiTok") -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Converted weights, and the fields of `TiTokConfig` that they show. Heads are 64 wide, as in the published models."""
    absent = [key for key in NEEDED if key not in state]
    if absent:
        raise HybridTokenizerError(
            f"{source} has no {', '.join(absent)}; give a TiTok model.safetensors with its VQ head"
        )
    table: Table = {"latent_tokens": "encoder.queries", "quantize.embedding.": "quantizer.embedding."}
    for half in ("encoder", "decoder"):
        table |= {
            f"{half}.class_embedding": f"{half}.class_embed",
            f"{half}.positional_embedding": f"{half}.position_embeds",
            f"{half}.latent_token_positional_embedding": f"{half}.query_position_embeds",
            f"{half}.ln_pre.": f"{half}.norm_in.",
            f"{half}.ln_post.": f"{half}.norm_out.",
        }
        for layer in range(count_layers(state, f"{half}.transformer.")):
            old, new = f"{half}.transformer.{layer}.", f"{half}.layers.{layer}."
            table |= {
                old + "ln_1.": new + "norm1.",
                old + "attn.": new + "self_attn.",
                old + "ln_2.": new + "norm2.",
                old + "mlp.c_fc.": new + "linear1.",
                old + "mlp.c_proj.": new + "linear2.",
            }
    table |= {
        "encoder.patch_embed.": "encoder.patch_embed.",
        "encoder.conv_out.": "encoder.projection.",
        "decoder.decoder_embed.": "decoder.embed.",
        "decoder.mask_token": "decoder.mask_embed",
        "decoder.ffn.": "decoder.head.",
        "decoder.conv_out.": "decoder.conv_out.",
        "pixel_quantize.embedding.": "pixels.embedding.",
        "pixel_decoder.conv_in.": "pixels.conv_in.",
        "pixel_decoder.norm_out.": "pixels.norm_out.",
        "pixel_decoder.conv_out.": "pixels.conv_out.",
    }
    for layer in range(count_layers(state, "pixel_decoder.mid.")):
        table |= block_table(f"pixel_decoder.mid.{layer}.", f"pixels.middle.{layer}.")
    depth = count_layers(state, "pixel_decoder.up.")
    for level in range(depth):
        old, new = f"pixel_decoder.up.{level}.", f"pixels.levels.{level}."
        for layer in range(count_layers(state, old + "block.")):
            table |= block_table(f"{old}block.{layer}.", f"{new}blocks.{layer}.")
        table[old + "upsample_conv."] = new + "resample."
    legacy = "pixel_quantize.embedding.weight" in state
    codebook_size, codebook_dim = state["quantize.embedding.weight"].shape
    num_latents, width = state["latent_tokens"].shape
    decoder_width = state["decoder.positional_embedding"].shape[1]
    patch = state["encoder.patch_embed.weight"].shape[-1]
    sizes: dict[str, Any] = {
        "grid": round((len(state["encoder.positional_embedding"]) - 1) ** 0.5),
        "patch_size": patch,
        "num_latents": num_latents,
        "encoder_width": width,
        "encoder_layers": count_layers(state, "encoder.transformer."),
        "encoder_heads": max(1, width // HEAD_WIDTH),
        "decoder_width": decoder_width,
        "decoder_layers": count_layers(state, "decoder.transformer."),
        "decoder_heads": max(1, decoder_width // HEAD_WIDTH),
        "codebook_size": codebook_size,
        "codebook_dim": codebook_dim,
        "legacy": legacy,
        "unit_codes": legacy,  # the published legacy models normalise features and codes, the `_vq8k` models do not
    }
    if legacy:
        firsts = [f"pixel_decoder.up.{level}.block.0.conv1.weight" for level in range(depth)]
        absent = [key for key in firsts if key not in state]
        if absent or not depth:
            raise HybridTokenizerError(f"{source} has no {', '.join(absent) or 'pixel_decoder.up'}; it is incomplete")
        sizes |= {
            "pixel_codes": len(state["pixel_quantize.embedding.weight"]),
            "pixel_dim": state["pixel_quantize.embedding.weight"].shape[1],
            "pixel_channels": [state[key].shape[0] for key in firsts],
            "pixel_layers": count_layers(state, "pixel_decoder.up.0.block."),
        }
    return rename_keys(state, table, source), sizes
