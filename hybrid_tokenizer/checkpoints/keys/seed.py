"""SEED checkpoints to Branch II's names: v1 (77 embeddings), SEED-2 by MLP or by reverse Q-Former (one embedding)."""

from dataclasses import dataclass

from torch import Tensor

from hybrid_tokenizer.checkpoints.keys.blip2 import block_table, merge_qkv_bias, qformer_table, vision_table
from hybrid_tokenizer.checkpoints.rename import Table, count_layers, rename_keys
from hybrid_tokenizer.errors import HybridTokenizerError


@dataclass(frozen=True)
class HeadNames:
    """What a SEED file calls the parts of one generation head; None where it has no such part."""

    positions: str
    blocks: str
    projection: str
    reverse: str | None = None
    queries: str | None = None
    down: str | None = None


HEADS = {
    "seed1": HeadNames("pos_embed_text", "blocks_text.", "distill_text_proj.", "Reverse_Qformer.", "reverse_tokens"),
    "seed2_revq": HeadNames(
        "pos_embed_image", "blocks_image.", "distill_image_proj.", "Reverse_Qformer.", "reverse_tokens"
    ),
    "seed2_mlp": HeadNames("pos_embed_image", "blocks_image.", "distill_image_proj.", down="image_down."),
    # the training code with `distill_text` on names the 77-query head apart from the image head beside it
    "training_text": HeadNames(
        "pos_embed_text", "blocks_text.", "distill_text_proj.", "Reverse_Qformer_text.", "reverse_tokens_text"
    ),
}


def detect_variant(state: dict[str, Tensor]) -> str:
    """`seed1`, `seed2_mlp` or `seed2_revq`, by the keys that only it has. Raises when it is none of them."""

    def has(prefix: str) -> bool:
        return any(key.startswith(prefix) for key in state)

    if has("distill_image_proj."):
        if has("image_down."):
            return "seed2_mlp"
        if has("Reverse_Qformer."):
            return "seed2_revq"
        raise HybridTokenizerError(
            "the SEED-2 files have distill_image_proj but neither image_down nor Reverse_Qformer; a file is missing or incomplete"
        )
    if has("distill_text_proj."):
        return "seed1"
    raise HybridTokenizerError(
        "no SEED de-tokenizer among the files (neither distill_text_proj nor distill_image_proj); "
        "add seed_tokenizer.pth (v1) or seed_quantizer.pt (SEED-2)"
    )


def check_variant(state: dict[str, Tensor], wanted: str) -> str:
    """The variant of `state`, which must be of the family `wanted` ("seed1" or "seed2")."""
    found = detect_variant(state)
    if not found.startswith(wanted):
        raise HybridTokenizerError(
            f"these are {found.split('_')[0]} weights ({found}), not {wanted}; convert them as kind {found.split('_')[0]}"
        )
    if not any(key.startswith("visual_encoder.") for key in state):
        raise HybridTokenizerError(
            f"no visual_encoder among the {wanted} files; add eva_vit_g.pth, which SEED reads its vision encoder from"
        )
    return found


def head_table(state: dict[str, Tensor], names: HeadNames, target: str | None) -> Table:
    """One generation head to `target`, or all of it dropped."""
    if target is None:
        dropped = (names.positions, names.blocks, names.projection, names.reverse, names.queries, names.down)
        return {name: None for name in dropped if name}
    table: Table = {
        names.positions: target + "stack.position_embeds",
        **block_table(names.blocks, target + "stack.body.layers.", count_layers(state, names.blocks)),
        names.projection: target + "projection.",
    }
    if names.reverse and names.queries:
        table[names.queries] = target + "reverse.query_embeds"
        table |= qformer_table(state, names.reverse + "bert.", target + "reverse.body.", text=None)
        table[names.reverse + "cls."] = None
    if names.down:
        table[names.down] = target + "down."
    return table


def seed_table(state: dict[str, Tensor], head: str, drop_heads: tuple[str, ...] = ()) -> Table:
    """The whole tokenizer with the head `head` of HEADS. Stage-1 leftovers and `drop_heads` are dropped."""
    table: Table = {}
    for name in drop_heads:
        table |= head_table(state, HEADS[name], None)
    return {
        **table,
        **vision_table(state),
        "query_tokens": "causal_qformer.query_embeds",
        **qformer_table(state, "Qformer.bert.", "causal_qformer.body.", text=None),
        "Qformer.cls.": None,
        "temp": None,
        "vision_proj.": None,
        "text_proj.": None,
        "itm_head.": None,
        "encode_task_layer.": "encode_task.",
        "quantize.embedding.": "quantizer.embedding.",
        "decode_task_layer.": "decode_task.",
        "pos_embed": "cosine.position_embeds",
        **block_table("blocks.", "cosine.body.layers.", count_layers(state, "blocks.")),
        **head_table(state, HEADS[head], "generation."),
    }


def convert_seed(state: dict[str, Tensor], head: str, drop_heads: tuple[str, ...] = ()) -> dict[str, Tensor]:
    """A joined SEED state dict (see `blip2.join_files`) to a SemanticTokenizer's, with the head `head` of HEADS."""
    state = merge_qkv_bias(state)
    return rename_keys(state, seed_table(state, head, drop_heads), f"SEED checkpoint ({head})")


def reverse_layers(state: dict[str, Tensor], head: str) -> int:
    """Depth of the reverse Q-Former as the keys have it: SEED's inference class builds 12 where its training saves 4."""
    names = HEADS[head]
    return count_layers(state, f"{names.reverse}bert.encoder.layer.") if names.reverse else 0
