"""Branch II's kinds: BLIP-2's vision encoder and Q-Former, SEED's tokenizers, and the losses of both stages."""

from typing import Any

import torch
from torch import Tensor, nn

from hybrid_tokenizer.checkpoints.files import load_strict
from hybrid_tokenizer.checkpoints.keys import blip2, seed
from hybrid_tokenizer.checkpoints.rename import Table, rule_of
from hybrid_tokenizer.errors import HybridTokenizerError
from hybrid_tokenizer.quantizers import QuantizerConfig, vq_loss
from hybrid_tokenizer.semantic import ContrastiveConfig, ContrastiveHeads, SemanticConfig, SemanticTokenizer
from hybrid_tokenizer.semantic.config import QuantizeLossOptions
from hybrid_tokenizer.semantic.losses import (
    contrastive_logits,
    contrastive_loss,
    cosine_loss,
    generation_loss,
)
from hybrid_tokenizer.semantic.modules import GenerationHead, QFormer, VisionEncoder

State = dict[str, Tensor]
Sizes = dict[str, Any]


def below(state: State, prefix: str) -> State:
    """The entries of a state dict below `prefix`, without the prefix."""
    return {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}


def load_part(module: nn.Module, converted: State, prefix: str) -> None:
    """Load the entries below `prefix` strictly; evaluation mode."""
    load_strict(module, below(converted, prefix), f"fixture, {prefix}*")
    module.eval()


def encoder_config(sizes: Sizes, **others: Any) -> SemanticConfig:
    """`vit` and `bert` of a SEED fixture, with the reference's ratios."""
    vit, bert = sizes["vit"], sizes["bert"]
    return SemanticConfig(
        image_size=vit["img_size"],
        patch_size=vit["patch_size"],
        vision_width=vit["embed_dim"],
        vision_layers=vit["depth"],
        vision_heads=vit["num_heads"],
        vision_mlp_width=int(vit["embed_dim"] * sizes["vit_mlp_ratio"]),
        width=bert["hidden_size"],
        num_queries=sizes["num_query_token"],
        qformer_layers=bert["num_hidden_layers"],
        qformer_heads=bert["num_attention_heads"],
        qformer_mlp_width=bert["intermediate_size"],
        cross_attention_every=sizes["cross_attention_freq"],
        **{"decoder_heads": bert["num_attention_heads"], **others},
    )


def tokenizer_config(sizes: Sizes, state: State, head: str, variant: str, **others: Any) -> SemanticConfig:
    """A whole tokenizer. The depth of the reverse Q-Former and the MLP's widths come from the weights."""
    down = sorted(key for key in state if key.startswith("image_down."))
    return encoder_config(
        sizes,
        variant=variant,
        quantizer=QuantizerConfig(kind="vq", codebook_size=sizes["n_embed"], codebook_dim=sizes["codebook_embed_dim"]),
        decoder_layers=sizes["decode_depth"],
        decoder_heads=sizes["block_heads"],
        decoder_mlp_width=int(sizes["bert"]["hidden_size"] * sizes.get("block_mlp_ratio", 4.0)),
        cosine_stack="pos_embed" in state,
        reverse_layers=seed.reverse_layers(state, head),
        mlp_widths=[len(state[key]) for key in down],
        **others,
    )


def load_tokenizer(
    state: State, config: SemanticConfig, head: str, drop_heads: tuple[str, ...] = ()
) -> SemanticTokenizer:
    """A tokenizer with the fixture's weights, through the converter."""
    tokenizer = SemanticTokenizer(config)
    load_strict(tokenizer, seed.convert_seed(state, head, drop_heads), "fixture")
    return tokenizer.eval()


def eva_vit(state: State, inputs: State, sizes: Sizes) -> State:
    """The tower, its raw stream and the stream after the first block."""
    config = SemanticConfig(
        image_size=sizes["img_size"],
        patch_size=sizes["patch_size"],
        vision_width=sizes["embed_dim"],
        vision_layers=sizes["depth"],
        vision_heads=sizes["num_heads"],
        vision_mlp_width=sizes["mlp_hidden"],
    )
    vision = VisionEncoder(config)
    load_part(vision, blip2.convert_lavis(state), "vision.")
    streams: list[Tensor] = []
    handle = vision.body.encoder.layers[0].register_forward_hook(lambda _, __, output: streams.append(output))
    raw = vision.raw(inputs["image"])
    handle.remove()
    return {"vit": raw, "image_embeds": vision(inputs["image"]), "block0": streams[0]}


def qformer(state: State, inputs: State, sizes: Sizes) -> State:
    """LAVIS's and SEED's Q-Former alone: queries, partly masked features, text, both, and bidirectional queries."""
    config = SemanticConfig(
        width=sizes["hidden_size"],
        num_queries=sizes["query_length"],
        qformer_layers=sizes["num_hidden_layers"],
        qformer_heads=sizes["num_attention_heads"],
        qformer_mlp_width=sizes["intermediate_size"],
        cross_attention_every=sizes["cross_attention_freq"],
        decoder_heads=sizes["num_attention_heads"],
    )
    converted = blip2.convert_lavis(state)

    def build(causal: bool) -> QFormer:
        module = QFormer(config, sizes["encoder_width"], config.num_queries, config.qformer_layers, causal)
        load_part(module, converted, "causal_qformer.")
        return module

    module = build(sizes["causal_queries"])
    heads = ContrastiveHeads(ContrastiveConfig.matching(config, sizes["vocab_size"], sizes["max_position_embeddings"]))
    load_part(heads.text, converted, "heads.text.")
    features, words = inputs["encoder_hidden_states"], (inputs["input_ids"], inputs["text_mask"])
    produced = {
        "query_only": module(features),
        "query_only_masked_src": module(features, inputs["encoder_mask_partial"]),
        "text_only": heads.text(module, *words),
        "query_text": heads.text.joint(module, features, *words),
    }
    if "query5" in inputs:
        produced["noncausal_other_count"] = build(causal=False)(features, query_embeds=inputs["query5"])
    return produced


def seed1(state: State, inputs: State, sizes: Sizes) -> State:
    """SEED v1, image to 77 generation embeddings."""
    config = tokenizer_config(
        sizes,
        state,
        "seed1",
        "seed1",
        num_generation_embeds=sizes["num_reverse_token"],
        generation_width=sizes["text_features_dim"],
    )
    tokenizer = load_tokenizer(state, config, "seed1")
    image_embeds = tokenizer.vision(inputs["image"])
    causal_embeds = tokenizer.causal_qformer(image_embeds)
    indices = tokenizer.quantize(causal_embeds).indices
    decoded = tokenizer.decode_codes(tokenizer.quantizer.codes(indices))
    return {
        "image_embeds": image_embeds,
        "causal_embeds": causal_embeds,
        "z": tokenizer.encode_task(causal_embeds),
        "indices": indices,
        "decoded_up": decoded,
        "blocks_text": tokenizer.generation.stack(decoded),
        "generation": tokenizer.decode(indices),
    }


def seed2(state: State, inputs: State, sizes: Sizes) -> State:
    """SEED-2, image to one generation embedding. The keys show which variant it is."""
    variant = seed.detect_variant(state)
    config = tokenizer_config(
        sizes,
        state,
        variant,
        variant,
        num_generation_embeds=sizes["num_reverse_token"] or 1,
        generation_width=sizes["image_features_dim"],
    )
    tokenizer = load_tokenizer(state, config, variant)
    image_embeds = tokenizer.vision(inputs["image"])
    output = tokenizer.reconstruct(tokenizer.causal_qformer(image_embeds))
    return {
        "image_embeds": image_embeds,
        "causal_embeds": output.causal_embeds,
        "z": tokenizer.encode_task(output.causal_embeds),
        "indices": output.quantized.indices,
        "quant": output.quantized.quantized,
        "quant_loss_legacy_beta0p25": vq_loss(output.quantized, config.quantizer),
        "decoded_up": tokenizer.decode_codes(output.quantized.quantized),
        "recon_causal": output.cosine_embeds,
        "generation": tokenizer.decode(output.quantized.indices)[:, 0],
    }


def gradients(loss: Tensor, parameters: dict[str, nn.Parameter], keys: State, table: Table) -> State:
    """Gradients under the reference's names, for the keys that `table` maps to one of `parameters`."""
    grads = torch.autograd.grad(loss, list(parameters.values()), retain_graph=True, allow_unused=True)
    ours = {name: grad for name, grad in zip(parameters, grads, strict=True) if grad is not None}
    named = {}
    for key in keys:
        rule = rule_of(key, table)
        target = table[rule] if rule is not None else None
        if rule is not None and target is not None and (name := target + key.removeprefix(rule)) in ours:
            named[key] = ours[name]
    return named


def stage1(state: State, inputs: State, sizes: Sizes) -> State:
    """Eq. 6, its literal form, and its gradients with gathered features as constants and as variables."""
    config = encoder_config(sizes)
    heads = ContrastiveHeads(
        ContrastiveConfig.matching(
            config, sizes["bert"]["vocab_size"], sizes["bert"]["max_position_embeddings"], sizes["embed_dim"]
        )
    )
    parts = nn.ModuleDict(
        {
            "vision": VisionEncoder(config),
            "causal_qformer": QFormer(
                config, config.vision_width, config.num_queries, config.qformer_layers, config.causal
            ),
            "heads": heads,
        }
    )
    load_part(parts, blip2.convert_lavis(state), "")
    causal_embeds = parts["causal_qformer"](parts["vision"](inputs["image"]))
    image_features, text_features, temperature = heads(
        parts["causal_qformer"], causal_embeds, inputs["input_ids"], inputs["text_mask"]
    )
    features = (image_features, text_features, temperature)
    smoothing = sizes["label_smoothing"]
    loss = contrastive_loss(*features, label_smoothing=smoothing)
    reference = contrastive_loss(*features, label_smoothing=smoothing, reference_gather=True)
    parameters, table = dict(parts.named_parameters()), blip2.lavis_table(state)
    return {
        "loss": loss,
        "loss_itc": loss,
        "image_feat": image_features,
        "text_feat": text_features,
        "logits_i2t": contrastive_logits(*features)[0],
        "loss_one_direction_no_smoothing": contrastive_loss(*features, literal_eq6=True),
        **{f"grad.{key}": value for key, value in gradients(reference, parameters, state, table).items()},
        **{f"grad_full.{key}": value for key, value in gradients(loss, parameters, state, table).items()},
    }


def stage2(state: State, inputs: State, sizes: Sizes) -> State:
    """The weighted losses of stage 2 with both heads (77 text embeddings, one image embedding), and their gradients."""
    text_config = tokenizer_config(
        sizes,
        state,
        "training_text",
        "seed1",
        num_generation_embeds=sizes["num_reverse_token_text"],
        generation_width=sizes["text_features_dim"],
    )
    tokenizer = load_tokenizer(state, text_config, "training_text", drop_heads=("seed2_revq",))
    image_config = tokenizer_config(
        sizes,
        state,
        "seed2_revq",
        "seed2_revq",
        num_generation_embeds=sizes["num_reverse_token"],
        generation_width=sizes["image_features_dim"],
    )
    image_head = GenerationHead(image_config)
    load_part(image_head, seed.convert_seed(state, "seed2_revq", drop_heads=("training_text",)), "generation.")

    with torch.no_grad():  # the reference freezes everything up to here
        causal_embeds = tokenizer.causal_qformer(tokenizer.vision(inputs["image"]))
    output = tokenizer.reconstruct(causal_embeds)
    image_embeds = image_head(tokenizer.decode_codes(output.quantized.quantized))
    if output.cosine_embeds is None:
        raise HybridTokenizerError(
            "the fixture's weights have no cosine stack (pos_embed, blocks.*), which eq. 7 needs"
        )
    weights = QuantizeLossOptions()
    embed = weights.vq * vq_loss(output.quantized, text_config.quantizer)
    recon = weights.cosine * cosine_loss(output.cosine_embeds, causal_embeds)
    image = weights.generation * generation_loss(image_embeds, inputs["target_image_embeds"][:, None])
    text = weights.generation * generation_loss(output.generation_embeds, inputs["target_text_features"])
    loss = embed + recon + image + text

    parameters = dict(tokenizer.named_parameters())
    image_parameters = {f"generation.{name}": parameter for name, parameter in image_head.named_parameters()}
    grads = gradients(loss, parameters, state, seed.seed_table(state, "training_text", ("seed2_revq",)))
    grads |= gradients(loss, image_parameters, state, seed.head_table(state, seed.HEADS["seed2_revq"], "generation."))
    return {
        "loss": loss,
        "loss_embed_x5": embed,
        "loss_recon_s_x2": recon,
        "loss_distil_image_x0p5": image,
        "loss_distil_text_x0p5": text,
        "indices": output.quantized.indices,
        **{f"grad.{key}": value for key, value in grads.items()},
    }


KINDS = {
    "eva_vit": eva_vit,
    "lavis_qformer": qformer,
    "seed_causal_qformer": qformer,
    "seed1_quantizer": seed1,
    "seed2_quantizer_mlp": seed2,
    "seed2_quantizer_revq": seed2,
    "seed_stage1_loss": stage1,
    "seed_stage2_loss": stage2,
}
