import shutil

import pytest
import torch
import torch._inductor.config
from helpers.small_models import noise_images, small_hybrid
from torch import nn
from torch.torch_version import TorchVersion

from hybrid_tokenizer import devices
from hybrid_tokenizer.devices import codebook_precision, compile_in_place
from hybrid_tokenizer.guide import tokenizer as guide_module
from hybrid_tokenizer.images import in_fixed_chunks
from hybrid_tokenizer.semantic import tokenizer as semantic_module
from hybrid_tokenizer.tokens import HybridTokens


@pytest.mark.skipif(shutil.which("g++") is None, reason="inductor needs a C++ compiler")
@torch.no_grad()
@torch._inductor.config.patch(freezing=False)  # and put back
def test_a_cpu_network_keeps_its_results_and_packs_its_weights():
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 8, 3), nn.SiLU(), nn.Conv2d(8, 3, 3)).eval()
    images = torch.randn(2, 3, 16, 16)
    plain = network(images)
    compile_in_place(network)
    torch.testing.assert_close(network(images), plain, rtol=1e-5, atol=1e-5)
    network[0].weight.zero_()
    if torch.__version__ >= TorchVersion("2.15"):  # 2.11 compiles a module in place without packing
        torch.testing.assert_close(network(images), plain, rtol=1e-5, atol=1e-5)  # packed before
    with torch.enable_grad():
        assert (network(images) - plain).abs().max() > 0.01  # gradients ask for the weights as they are


@torch._inductor.config.patch(freezing=False)
def test_other_backends_leave_inductor_alone():
    network = nn.Conv2d(3, 8, 3)
    images = torch.randn(1, 3, 8, 8)
    plain = network(images)
    torch.testing.assert_close(compile_in_place(network, backend="eager")(images), plain)
    assert not torch._inductor.config.freezing


@pytest.fixture
def as_on_a_gpu(monkeypatch):
    """Kernels that round by the size of their batch, in front of both codebooks. Returns the sizes that they saw."""
    hybrid, sizes = small_hybrid(nested=True), []

    def by_size(function):
        def features(images):
            sizes.append(len(images))
            values = function(images)
            noise = torch.cos(torch.arange(values[0].numel()) * len(images)).view_as(values[0])
            return values + 0.3 * noise

        return features

    monkeypatch.setattr(hybrid.guide, "features", by_size(hybrid.guide.features))
    monkeypatch.setattr(hybrid.semantic, "causal_embeds", by_size(hybrid.semantic.causal_embeds))
    monkeypatch.setattr(guide_module, "full_resolution_chunk", lambda *_: None)
    return hybrid, sizes


def in_batches(hybrid, images, size):
    return HybridTokens.cat([hybrid.encode(part) for part in images.split(size)])


def test_tokens_do_not_depend_on_their_batch_where_kernels_do(as_on_a_gpu, monkeypatch):
    hybrid, sizes = as_on_a_gpu
    images = noise_images(7)
    assert in_batches(hybrid, images, 7) != in_batches(hybrid, images, 1)  # without the fixed batch
    sizes.clear()
    for module in (guide_module, semantic_module):
        monkeypatch.setattr(module, "fixed_batch", lambda device: 4)
    whole = in_batches(hybrid, images, 7)
    assert all(in_batches(hybrid, images, size) == whole for size in (1, 3))
    assert set(sizes) == {4}


def test_a_gpu_always_encodes_as_many_images_at_once():
    assert devices.fixed_batch(torch.device("cpu")) is None
    assert devices.fixed_batch(torch.device("cuda")) == devices.ENCODED_AT_ONCE


def test_fixed_chunks_are_filled_up_with_zeros():
    seen = []

    def function(rows):
        seen.append(rows)
        return rows + 1, rows.sum(1)

    batch = torch.arange(10.0).view(5, 2)
    first, second = in_fixed_chunks(function, batch, 3)
    assert torch.equal(first, batch + 1) and torch.equal(second, batch.sum(1))
    assert [len(rows) for rows in seen] == [3, 3] and seen[1][2].tolist() == [0, 0]
    assert in_fixed_chunks(function, batch[:0], 3)[0].shape == (0, 2)


def test_codebooks_are_fed_without_tf32_and_the_flags_come_back():
    def flags():
        cudnn = torch.backends.cudnn
        return torch.backends.cuda.matmul.allow_tf32, cudnn.allow_tf32, cudnn.deterministic, cudnn.benchmark

    before = flags()
    with pytest.raises(ValueError, match="inside"), codebook_precision():
        assert flags() == (False, False, True, False)
        raise ValueError("inside")
    assert flags() == before
