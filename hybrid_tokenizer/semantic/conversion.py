"""Convert published BLIP-2 and SEED checkpoints to a saved SemanticTokenizer. The key maps are in
`hybrid_tokenizer.checkpoints`."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from hybrid_tokenizer.checkpoints.files import fill, load_strict
from hybrid_tokenizer.checkpoints.keys import blip2, seed
from hybrid_tokenizer.checkpoints.rename import Table, count_layers, dropped_keys
from hybrid_tokenizer.errors import HybridTokenizerError, shorten
from hybrid_tokenizer.quantizers import QuantizerConfig
from hybrid_tokenizer.semantic.config import SemanticConfig
from hybrid_tokenizer.semantic.contrastive import HEADS_FOLDER, ContrastiveConfig, ContrastiveHeads
from hybrid_tokenizer.semantic.tokenizer import SemanticTokenizer

State = dict[str, Tensor]


@dataclass(frozen=True)
class HeadCounts:
    """Numbers of attention heads, the only size that weights do not determine. The defaults are the published models'."""

    vision: int = 16
    qformer: int = 12
    decoder: int = 12


PUBLISHED = HeadCounts()


def encoder_config(state: State, base: SemanticConfig, heads: HeadCounts) -> SemanticConfig:
    """`base` with the sizes of `vision.*` and `causal_qformer.*` replaced by those of the weights."""
    patches = "vision.body.embeddings."
    layer = "causal_qformer.body.encoder.layer."
    needed = (
        f"{patches}patch_embedding.weight",
        "causal_qformer.query_embeds",
        f"{layer}0.intermediate_query.dense.weight",
    )
    for key, what in zip(needed, ("vision encoder", "query tokens", "Q-Former"), strict=True):
        if key not in state:
            raise HybridTokenizerError(
                f"no {what} among the files; give all of them: eva_vit_g.pth for the vision encoder, and "
                "blip2_pretrained.pth, causal_qformer.pth or seed_quantizer.pt for the Q-Former"
            )
    _, num_queries, width = state["causal_qformer.query_embeds"].shape
    vision_width, _, patch_size, _ = state[f"{patches}patch_embedding.weight"].shape
    side = math.isqrt(state[f"{patches}position_embedding"].shape[1] - 1)
    layers = count_layers(state, layer)
    crossing = [i for i in range(layers) if f"{layer}{i}.crossattention.attention.key.weight" in state]
    return replace(
        base,
        image_size=side * patch_size,
        patch_size=patch_size,
        vision_width=vision_width,
        vision_layers=count_layers(state, "vision.body.encoder.layers."),
        vision_heads=heads.vision,
        vision_mlp_width=len(state["vision.body.encoder.layers.0.mlp.fc1.weight"]),
        width=width,
        num_queries=num_queries,
        qformer_layers=layers,
        qformer_heads=heads.qformer,
        qformer_mlp_width=len(state[f"{layer}0.intermediate_query.dense.weight"]),
        cross_attention_every=crossing[1] - crossing[0] if len(crossing) > 1 else max(layers, 1),
        decoder_heads=heads.decoder,
    )


def seed_config(state: State, variant: str, reverse_layers: int, heads: HeadCounts) -> SemanticConfig:
    """Configuration of a converted SEED state dict. All sizes except the head counts are read from the weights."""
    codes, blocks = "quantizer.embedding.weight", "generation.stack.body.layers."
    for key in (codes, f"{blocks}0.mlp.fc1.weight", "generation.projection.weight"):
        if key not in state:
            raise HybridTokenizerError(
                f"no {key} after conversion; add seed_tokenizer.pth (v1) or seed_quantizer.pt (SEED-2), or download it again"
            )
    codebook_size, codebook_dim = state[codes].shape
    down = [len(state[key]) for key in sorted(state) if key.startswith("generation.down.")]
    queries = state.get("generation.reverse.query_embeds")
    base = SemanticConfig(
        variant=variant,
        quantizer=QuantizerConfig(kind="vq", codebook_size=codebook_size, codebook_dim=codebook_dim),
        decoder_layers=count_layers(state, blocks),
        decoder_mlp_width=len(state[f"{blocks}0.mlp.fc1.weight"]),
        cosine_stack="cosine.position_embeds" in state,
        reverse_layers=reverse_layers,
        num_generation_embeds=1 if queries is None else queries.shape[1],
        generation_width=len(state["generation.projection.weight"]),
        mlp_widths=down,
    )
    return encoder_config(state, base, heads)


def dropped_lines(state: State, table: Table) -> list[str]:
    """One line that says what the key map dropped."""
    dropped = dropped_keys(state, table)
    return [f"dropped {len(dropped)} keys on purpose: {shorten(dropped)}"] if dropped else []


def convert_seed_files(states: Sequence[State], folder: Path, wanted: str, heads: HeadCounts = PUBLISHED) -> list[str]:
    """Convert SEED v1 (`wanted` "seed1") or SEED-2 ("seed2") to a tokenizer folder. Returns lines that describe what
    was written."""
    joined = blip2.join_files(list(states))
    variant = seed.check_variant(joined, wanted)
    merged = blip2.merge_qkv_bias(joined)
    state = seed.convert_seed(joined, variant)
    config = seed_config(state, variant, seed.reverse_layers(joined, variant), heads)
    tokenizer = fill(lambda: SemanticTokenizer(config), state, f"{wanted} checkpoint")
    tokenizer.save_pretrained(folder)
    return [f"{variant}: {len(state)} tensors to {folder}", *dropped_lines(merged, seed.seed_table(merged, variant))]


def convert_seed1(states: Sequence[State], folder: Path, heads: HeadCounts = PUBLISHED) -> list[str]:
    """SEED v1: eva_vit_g.pth, causal_qformer.pth and seed_tokenizer.pth."""
    return convert_seed_files(states, folder, "seed1", heads)


def convert_seed2(states: Sequence[State], folder: Path, heads: HeadCounts = PUBLISHED) -> list[str]:
    """SEED-2: seed_quantizer.pt, and eva_vit_g.pth where that file has no vision encoder."""
    return convert_seed_files(states, folder, "seed2", heads)


def save_encoder(state: State, folder: Path, heads: HeadCounts) -> list[str]:
    """Save a tokenizer for training, with BLIP-2's encoder and randomly initialised remaining parts, and the stage-1
    heads beside it."""
    config = encoder_config(state, SemanticConfig(), heads)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)  # every conversion initialises the remaining parts equally
        tokenizer = SemanticTokenizer(config)
    encoder = {key: value for key, value in state.items() if not key.startswith("heads.")}
    fresh = [key for key in tokenizer.state_dict() if not key.startswith(("vision.", "causal_qformer."))]
    load_strict(tokenizer, encoder, "BLIP-2 checkpoint", ignore=fresh)
    tokenizer.save_pretrained(folder)
    lines = [f"encoder: {len(encoder)} tensors to {folder}; {len(fresh)} tensors behind it are untrained"]

    stage1 = {key.removeprefix("heads."): value for key, value in state.items() if key.startswith("heads.")}
    needed = ("text.word_embeds.weight", "text.position_embeds.weight", "vision_projection.weight")
    if not all(key in stage1 for key in needed):
        return [*lines, "no text path in this checkpoint: stage 1 would start its heads afresh"]
    text = ContrastiveConfig.matching(config, len(stage1[needed[0]]), len(stage1[needed[1]]), len(stage1[needed[2]]))
    module = ContrastiveHeads(text)
    load_strict(module, stage1, "BLIP-2 checkpoint, stage-1 heads", ignore=["temperature"])  # transformers has none
    module.save_pretrained(folder / HEADS_FOLDER)
    return [*lines, f"stage-1 heads: {len(stage1)} tensors to {folder / HEADS_FOLDER}"]


def convert_blip2_lavis(states: Sequence[State], folder: Path, heads: HeadCounts = PUBLISHED) -> list[str]:
    """Convert BLIP-2 of LAVIS: eva_vit_g.pth and blip2_pretrained.pth."""
    merged = blip2.merge_qkv_bias(blip2.join_files(list(states)))
    return save_encoder(blip2.convert_lavis(merged), folder, heads) + dropped_lines(merged, blip2.lavis_table(merged))


def convert_blip2_transformers(states: Sequence[State], folder: Path, heads: HeadCounts = PUBLISHED) -> list[str]:
    """Convert BLIP-2 of transformers (e.g. blip2-itm-vit-g) from its file, all its shards, or the folder that holds them."""
    joined = {key: value for state in states for key, value in state.items()}
    converted = blip2.convert_transformers(joined)
    return save_encoder(converted, folder, heads) + dropped_lines(joined, blip2.transformers_table(joined))
