"""Shapes in signatures are executed: every jaxtyping annotation of the package is checked while the tests run."""

from jaxtyping import install_import_hook

install_import_hook("hybrid_tokenizer", "beartype.beartype")

import pytest  # noqa: E402
import torch  # noqa: E402


@pytest.fixture(autouse=True)
def fixed_seed():
    torch.manual_seed(0)
