"""The baselines' kinds. This package does not train baselines, so their training tensors are left out."""

from typing import Any

import torch
from einops import rearrange
from torch import Tensor

from hybrid_tokenizer.baselines.lavit import build_token_decoder, build_tokenizer
from hybrid_tokenizer.baselines.magvit2 import build_magvit2, indices_to_signs
from hybrid_tokenizer.baselines.titok import build_titok
from hybrid_tokenizer.baselines.var_vae import VarVae, build_var
from hybrid_tokenizer.baselines.vqgan import Backbone, build_gumbel, build_ibq, build_llamagen
from hybrid_tokenizer.images import to_unit

State = dict[str, Tensor]
FIXTURE = "fixture"


def channel_first(grid: Tensor) -> Tensor:
    """To the layout of the references."""
    return rearrange(grid, "b h w d -> b d h w")


def backbone_tensors(model: Backbone, inputs: State) -> State:
    """The tensors of a VQGAN backbone with any codebook."""
    features = model.features(inputs["image"])
    codes, indices = model.quantizer.lookup(features)
    return {
        "z": channel_first(features),
        "indices": indices,
        "zq": channel_first(codes),
        "rec": model.decode_codes(codes),
        "rec_from_indices": model.decode(model.encode(inputs["image"])),
    }


@torch.no_grad()
def produce_gumbel(state: State, inputs: State, config: dict[str, Any]) -> State:
    """`taming_gumbel`, noise-free."""
    model = build_gumbel(state, FIXTURE)
    produced = backbone_tensors(model, inputs)
    return produced | {"logits": channel_first(model.quantizer.projection(model.features(inputs["image"])))}


@torch.no_grad()
def produce_ibq(state: State, inputs: State, config: dict[str, Any]) -> State:
    """`ibq`."""
    return backbone_tensors(build_ibq(state, FIXTURE), inputs)


@torch.no_grad()
def produce_llamagen(state: State, inputs: State, config: dict[str, Any]) -> State:
    """`llamagen_vq`."""
    return backbone_tensors(build_llamagen(state, FIXTURE), inputs)


@torch.no_grad()
def produce_var(state: State, inputs: State, config: dict[str, Any]) -> State:
    """`var_vqvae`: all scales, the first scale alone, and VAR's own input."""
    scales = [(side, side) if isinstance(side, int) else tuple(side) for side in config["v_patch_nums"]]
    model = build_var(state, FIXTURE, scales, abs(config["quant_resi"]))
    features = model.features(inputs["image"])
    total, _ = model.quantize(features)
    grids = model.encode(inputs["image"])
    raw = model.decode_codes(total)
    first = model.sums(grids, scales[-1])[0]
    return {
        "f": channel_first(features),
        "f_hat": channel_first(total),
        "rec": model.decode(grids),
        "rec_raw": raw,
        "rec_scale0": model.decode_codes(first).clamp(-1, 1),
        "var_input": next_scale_inputs(model, grids),
        **{f"idx.{scale}": indices.flatten(1) for scale, indices in enumerate(grids)},
    }


def next_scale_inputs(model: VarVae, grids: tuple[Tensor, ...]) -> Tensor:
    """The input of VAR's transformer for each scale after the first: the partial sum, resized to that scale."""
    sizes = [tuple(indices.shape[1:]) for indices in grids]
    sums = model.sums(grids, sizes[-1])[:-1]
    resized = [
        torch.nn.functional.interpolate(channel_first(total), size=size, mode="area")
        for total, size in zip(sums, sizes[1:], strict=True)
    ]
    return torch.cat([rearrange(planes, "b d h w -> b (h w) d") for planes in resized], dim=1)


@torch.no_grad()
def produce_magvit2(state: State, inputs: State, config: dict[str, Any]) -> State:
    """`magvit2_lfq`."""
    model = build_magvit2(state, FIXTURE)
    grids = model.encode(inputs["image"])
    signs = indices_to_signs(grids[0], model.config.num_bits)
    return {
        "enc": model.encoder(inputs["image"]),
        "indices": grids[0],
        "zq": signs,
        "rec": model.decoder(signs),
        "rec_from_indices": model.decode(grids),
    }


@torch.no_grad()
def produce_titok(state: State, inputs: State, config: dict[str, Any]) -> State:
    """`titok_legacy` and `titok_rgb`; the reference's images are in [0, 1]."""
    heads = config["size_overrides"]["heads"]
    model = build_titok(state, FIXTURE, heads, config["model"]["vq_model"]["use_l2_norm"])
    images = inputs["image"] * 2 - 1
    features = model.features(images)
    codes, indices = model.quantizer.lookup(features)

    def as_planes(sequence: Tensor) -> Tensor:
        return rearrange(sequence, "b n d -> b d 1 n")

    return {
        "z": as_planes(features),
        "zq": as_planes(codes),
        "indices": rearrange(indices, "b n -> b 1 n"),
        "rec": to_unit(model.decode_codes(codes)),
        "rec_from_indices": to_unit(model.decode(model.encode(images))),
    }


@torch.no_grad()
def produce_lavit(state: State, inputs: State, config: dict[str, Any]) -> State:
    """`lavit_tokenizer`: everything after the fixture's selection of patches, and both token decoders."""

    def below(prefix: str) -> State:
        return {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}

    model = build_tokenizer(below("tokenizer."), FIXTURE, config["vit"]["num_heads"], config["heads"])
    lowres, highres = (
        build_token_decoder(below(f"decoder_{size}."), FIXTURE, config["heads"]) for size in ("lowres", "highres")
    )
    kept = inputs["keep_decision"]
    vit = model.vision.raw(inputs["image"])
    merged = model.merge(vit[:, 1:], kept)
    projected = model.encode_task(merged[kept.bool()])
    indices = model.lookup(projected)
    token_nums = kept.long().sum(dim=1)
    quantized = model.codebook[indices]
    sequences = quantized.split(token_nums.tolist())
    prompt_embeds, pooled = highres(sequences)
    return {
        "vit": vit,
        "keep_logprob": model.selector(vit[:, 1:]),
        "merged": merged,
        "z": projected,
        "quant": quantized,
        "token_nums": token_nums,
        "llm_ids": indices + config["llm_id_offset"],
        "lowres_cond": lowres(sequences)[0],
        "highres_prompt_embeds": prompt_embeds,
        "highres_pooled": pooled,
    }


KINDS = {
    "taming_gumbel": produce_gumbel,
    "var_vqvae": produce_var,
    "magvit2_lfq": produce_magvit2,
    "ibq": produce_ibq,
    "llamagen_vq": produce_llamagen,
    "titok_legacy": produce_titok,
    "titok_rgb": produce_titok,
    "lavit_tokenizer": produce_lavit,
}
