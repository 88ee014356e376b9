"""The comparison of two checkouts' outputs notices every kind of difference."""

import importlib.util
import subprocess
import sys
from pathlib import Path

import torch

TOOL = Path(__file__).resolve().parents[2] / "tools" / "compare_outputs.py"


def load_tool():
    spec = importlib.util.spec_from_file_location("compare_outputs", TOOL)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_one_bit_a_shape_and_a_missing_tensor_are_differences():
    compare = load_tool().compare
    image = torch.rand(2, 3, 4, 4)
    ours = {"same": image, "bit": image, "shape": image, "ours": image}
    theirs = {"same": image.clone(), "bit": image.nextafter(image + 1), "shape": image[:1], "theirs": image}
    assert compare(ours, ours) == []
    assert compare(ours, theirs) == ["bit", "ours", "shape", "theirs"]


def test_a_folder_that_is_no_checkout_is_refused(tmp_path):
    run = subprocess.run([sys.executable, TOOL, str(tmp_path)], capture_output=True, text=True, check=False)
    assert run.returncode == 1
    assert run.stderr.strip() == f"error: {tmp_path} holds no hybrid_tokenizer/; give the folder of a checkout"
