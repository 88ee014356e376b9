"""Inputs of a decoder at test size."""

import pytest
import torch
from tiny_diffusion import make_decoder

from hybrid_tokenizer.diffusion import DiffusionDecoder


@pytest.fixture
def decoder() -> DiffusionDecoder:
    return make_decoder()


@pytest.fixture
def guide_images():
    return torch.rand(2, 3, 16, 24) * 2 - 1


@pytest.fixture
def embeds():
    return torch.randn(2, 5, 12)
