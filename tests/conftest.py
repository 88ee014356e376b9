"""Shapes in signatures are executed: every jaxtyping annotation of the package is checked while the tests run."""

from jaxtyping import install_import_hook

install_import_hook("hybrid_tokenizer", "beartype.beartype")

import pytest  # noqa: E402
import torch  # noqa: E402

SLOW = (
    "corpus/test_ray.py",
    "evaluation/test_two_processes.py",
    "language/test_eval_lm.py",
    "language/test_train_lm.py::test_two_processes_and_fsdp2_train_the_same_model",
    "language/test_tutorial.py",
    "reproduce/",
    "test_notebooks.py::test_notebooks_run_on_one_photograph",
    "test_shown_commands.py",
    "tools/test_kill_storm.py",
    "training/test_two_ranks.py",
)
"""Tests that start several processes, or walk whole pages and notebooks. `make test-slow` runs them."""


def pytest_collection_modifyitems(items):
    for item in items:
        if item.nodeid.split("tests/", 1)[-1].startswith(SLOW):
            item.add_marker("slow")


@pytest.fixture(autouse=True)
def fixed_seed():
    torch.manual_seed(0)
