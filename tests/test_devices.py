import shutil

import pytest
import torch
import torch._inductor.config
from torch import nn

from hybrid_tokenizer.devices import compile_in_place


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
