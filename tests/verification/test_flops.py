"""Operations are counted as by hand, and set a limit on a device."""

import pytest
import torch
import torch.nn.functional as F
from helpers.small_models import noise_images, small_hybrid
from torch import nn

from hybrid_tokenizer.verification.speed.flops import count_flops, share_of_limit


def counted_by_hooks(run, module):
    """Two operations per multiplication of every convolution and linear layer that `run` calls."""
    total = 0

    def count(layer, inputs, output):
        nonlocal total
        if isinstance(layer, nn.Conv2d):
            height, width = layer.kernel_size
            total += 2 * output.numel() * layer.in_channels // layer.groups * height * width
        else:
            total += 2 * output.numel() * layer.in_features

    layers = [layer for layer in module.modules() if isinstance(layer, (nn.Conv2d, nn.Linear))]
    hooks = [layer.register_forward_hook(count) for layer in layers]
    run()
    for hook in hooks:
        hook.remove()
    return total


def test_a_product_a_convolution_and_an_attention_layer():
    weight = torch.ones(3, 5)
    assert count_flops(lambda: torch.ones(2, 3) @ weight) == 2 * 2 * 3 * 5
    convolution = nn.Conv2d(4, 6, 3, stride=2, padding=1)
    assert count_flops(lambda: convolution(torch.ones(2, 4, 8, 8)), convolution) == 2 * 2 * 6 * 4 * 4 * 4 * 9
    batch, heads, queries, keys, width = 2, 3, 5, 7, 8
    shapes = [(batch, heads, length, width) for length in (queries, keys, keys)]
    flops = count_flops(lambda: F.scaled_dot_product_attention(*(torch.ones(shape) for shape in shapes)))
    assert flops == 2 * 2 * batch * heads * queries * keys * width


def test_a_whole_guide_branch():
    """Its layers, one attention block over the grid at each side, and the products with the codebook."""
    guide, images = small_hybrid().guide.eval(), noise_images(2, 32, 32)
    tokens, width, codes, dims = 16, 8, 50, 4

    def run():
        return guide.decode(guide.encode(images))

    attention = 2 * 2 * 2 * 2 * tokens * tokens * width  # 2 sides, 2 products, 2 images
    distances = 2 * 2 * tokens * codes * dims
    assert count_flops(run, guide) == counted_by_hooks(run, guide) + attention + distances


def test_every_branch_is_counted_and_keeps_its_gradients():
    """The Q-Former's queries are a Parameter that is a module's input."""
    tokenizer, images = small_hybrid(), noise_images(1, 32, 32)
    trainable = [weight.requires_grad for weight in tokenizer.parameters()]
    tokens = tokenizer.encode(images)
    parts = {
        "guide": lambda: tokenizer.guide.encode(images),
        "semantic": lambda: tokenizer.semantic.encode(images),
        "diffusion": lambda: tokenizer.decode(tokens),
    }
    assert all(count_flops(run, tokenizer) > 1e4 for run in parts.values())
    assert [weight.requires_grad for weight in tokenizer.parameters()] == trainable
    with pytest.raises(AssertionError, match="gradient function"):
        count_flops(parts["semantic"])


def test_the_limit_of_a_device():
    rate = {"ours": 20.0, "unit": "images/s"}
    assert share_of_limit(rate, "NVIDIA H100 80GB HBM3", int(8e12)) == {
        "limit_images_per_second": 100.0, "share_of_limit": 0.2
    }  # fmt: skip
    assert share_of_limit({"ours": 0.05, "unit": "s"}, "NVIDIA H200", int(8e12))["share_of_limit"] == pytest.approx(0.2)
    assert share_of_limit(rate, "another device", 1) == {}
