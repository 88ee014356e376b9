import pytest
from helpers.small_models import small_hybrid

from hybrid_tokenizer.errors import HybridTokenizerError

from hybrid_tokenizer.evaluation.rows import hybrid_row, rows_by_name, variant_row

CONTROLS = [
    "identity", "unrelated", "lossless_guide", "guide_only", "semantic_only", "semantic_only_wrong_semantics",
    "guide_tokens_null_condition", "hybrid_wrong_semantics", "hybrid", "codec",
]  # fmt: skip


@pytest.fixture(scope="module")
def nested():
    return small_hybrid(nested=True)


def test_all_controls_without_names_and_the_asked_order_with(nested):
    assert [row.name for row in rows_by_name(nested)] == CONTROLS
    asked = ["hybrid@5", "codec", "hybrid@s0.4", "identity"]
    assert [row.name for row in rows_by_name(nested, asked)] == asked


@pytest.mark.parametrize(
    "options",
    [
        {"guide_scales": 2},
        {"strength": 0.4},
        {"num_inference_steps": 50, "guidance_scale": 3.0},
        {"start": "ddim_inversion", "strength": 1.0, "guide_scales": 1},
    ],
    ids=str,
)
def test_a_variant_is_built_from_its_own_name(nested, options):
    row = hybrid_row(nested, **options)
    again = variant_row(nested, row.name)
    for attribute in ("name", "guide_scales", "start", "strength", "num_inference_steps", "guidance_scale"):
        assert getattr(again, attribute) == getattr(row, attribute)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["nothing"], "hybrid_wrong_semantics"),
        (["hybrid", "hybrid"], "different names"),
        ([], "one or more"),
        (["hybrid@6"], "it has 1, 5, 21"),
        (["hybrid@x2"], "is no variant"),
        (["hybrid@n2.5"], "whole number"),
        (["hybrid@"], "is no variant"),
    ],
)
def test_wrong_names_are_refused_with_what_there_is(nested, names, message):
    with pytest.raises(HybridTokenizerError, match=message):
        rows_by_name(nested, names)
