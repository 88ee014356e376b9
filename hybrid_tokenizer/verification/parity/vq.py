"""Branch I's kinds: MoVQGAN and taming's VQGAN, gradients of the training loss included."""

from typing import Any

import torch
from einops import rearrange
from torch import Tensor

from hybrid_tokenizer.checkpoints.files import load_strict
from hybrid_tokenizer.checkpoints.keys.movqgan import movqgan_to_guide
from hybrid_tokenizer.checkpoints.keys.taming import taming_to_guide
from hybrid_tokenizer.errors import HybridTokenizerError
from hybrid_tokenizer.guide import GuideConfig, GuideTokenizer
from hybrid_tokenizer.quantizers import vq_loss

State = dict[str, Tensor]


def load_tokenizer(state: State, converted: tuple[State, dict[str, Any]], config: dict[str, Any]) -> GuideTokenizer:
    """Branch I with the fixture's weights. Its sizes come from the weights and are compared with the fixture's config."""
    weights, sizes = converted
    body = config["ddconfig"]
    quantizer = dict(sizes["quantizer"])
    beta = config.get("beta", 0.25)
    # the reference's legacy form puts beta on the codebook term
    quantizer["codebook_weight"], quantizer["commitment_weight"] = (
        (beta, 1.0) if config.get("legacy", True) else (1.0, beta)
    )
    guide = GuideConfig.from_dict({**sizes, "quantizer": quantizer})
    channels = [body["ch"] * multiplier for multiplier in body["ch_mult"]]
    expected = (channels, body["num_res_blocks"], body["z_channels"], config["embed_dim"], config["n_embed"])
    found = (
        guide.encoder_channels, guide.encoder_layers, guide.z_channels,
        guide.quantizer.codebook_dim, guide.quantizer.codebook_size,
    )  # fmt: skip
    if expected != found:
        raise HybridTokenizerError(f"the fixture's config says {expected}, its weights say {found}; it is damaged")
    tokenizer = GuideTokenizer(guide)
    load_strict(tokenizer, weights, "fixture")
    return tokenizer.eval()


def produce(tokenizer: GuideTokenizer, inputs: State) -> State:
    """All tensors of both kinds. Their `z` and `zq` are channel first."""
    images = inputs["image"].clone().requires_grad_()
    with torch.enable_grad():
        output = tokenizer(images)
        loss = vq_loss(output.quantized, tokenizer.config.quantizer)
        total = (output.guide_images * inputs["weight"]).mean() + loss
        grad_image, grad_codebook = torch.autograd.grad(total, [images, tokenizer.quantizer.embedding.weight])
    with torch.no_grad():
        encoded = tokenizer.encoder(tokenizer.stem(inputs["image"]))
        features = tokenizer.features(inputs["image"])
        indices = tokenizer.encode(inputs["image"])
        return {
            "enc": encoded,
            "z": rearrange(features, "b h w d -> b d h w"),
            "indices": indices[0],
            "zq": rearrange(output.quantized.quantized, "b h w d -> b d h w"),
            "rec": output.guide_images,
            "rec_from_indices": tokenizer.decode(indices),
            "vq_loss": loss,
            "total": total,
            "grad_image": grad_image,
            "grad_codebook": grad_codebook,
        }


def produce_movq(state: State, inputs: State, config: dict[str, Any]) -> State:
    """`movq`: spatial norms, conditioned on the codes before post_quant_conv."""
    return produce(load_tokenizer(state, movqgan_to_guide(state, "fixture"), config), inputs)


def produce_taming_vqgan(state: State, inputs: State, config: dict[str, Any]) -> State:
    """`taming_vqgan`: group norms, and a codebook that may be narrower than the features."""
    return produce(load_tokenizer(state, taming_to_guide(state, "fixture"), config), inputs)


KINDS = {"movq": produce_movq, "taming_vqgan": produce_taming_vqgan}
