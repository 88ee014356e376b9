import pytest
from helpers.small_models import small_hybrid

from hybrid_tokenizer.diffusion import DecodeOptions
from hybrid_tokenizer.errors import HybridTokenizerError
from hybrid_tokenizer.evaluation.controls import GuideOfHybrid, GuideOnly, HybridRow
from hybrid_tokenizer.evaluation.rows import default_variants, hybrid_row, rows_by_name, variant_row

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
    assert [row.name for row in rows_by_name(nested, extra=["hybrid@search8"])] == [*CONTROLS, "hybrid@search8"]


def test_a_decoder_with_a_start_of_its_own_stands_beside_the_papers_inversion():
    hybrid = small_hybrid(start="linear_estimate")
    name = "hybrid@ddim_inversion,generation"
    rows = {row.name: row for row in rows_by_name(hybrid)}
    assert list(rows) == [*CONTROLS[:-1], name, CONTROLS[-1]]
    options = hybrid.diffusion.config.decode_defaults.override(**rows[name].options)
    assert options.start == "ddim_inversion" and options.inversion_condition == "generation"
    assert options.strength == 0.4 and options.deterministic and rows[name].deterministic


def test_stable_diffusion_stands_under_each_of_its_named_options():
    hybrid = small_hybrid(start="ddim_inversion")
    paper, balanced = (variant_row(hybrid, f"hybrid@{name}") for name in ("paper", "balanced"))
    assert (paper.options["strength"], paper.options["num_inference_steps"], paper.options["guidance_scale"]) == (
        1,
        50,
        7.5,
    )
    assert paper.options["start"] == "ddim_inversion" and paper.options["inversion_condition"] == "generation"
    assert balanced.options == vars(DecodeOptions())
    assert default_variants(hybrid) == []
    hybrid.diffusion.config.vae_class = "AutoencoderKL"
    assert default_variants(hybrid) == ["hybrid@paper", "hybrid@balanced"]
    hybrid.diffusion.config.decode_defaults = DecodeOptions()
    assert default_variants(hybrid) == ["hybrid@paper"]


@pytest.mark.parametrize(
    "options",
    [
        {"guide_scales": 2},
        {"strength": 0.4},
        {"num_inference_steps": 50, "guidance_scale": 3.0},
        {"start": "ddim_inversion", "strength": 1.0, "guide_scales": 1},
        {"start": "ddim_inversion", "eta": 0.5, "inversion_condition": "null", "num_fixed_point_iterations": 2},
        {"start": "add_noise", "sampler": "lcm", "num_inference_steps": 4, "search_steps": 8},
        {"start": "linear_estimate", "search_steps": 0},
    ],
    ids=str,
)
def test_a_variant_is_built_from_its_own_name(nested, options):
    row = hybrid_row(nested, **options)
    again = variant_row(nested, row.name)
    for attribute in ("name", "guide_scales", "search_steps", "options"):
        assert getattr(again, attribute) == getattr(row, attribute)
    reordered = "hybrid@" + ",".join(reversed(row.name.removeprefix("hybrid@").split(",")))
    assert variant_row(nested, reordered).name == row.name


@pytest.mark.parametrize(
    ("name", "kind", "search_steps"),
    [
        ("hybrid@search8", HybridRow, 8),
        ("guide_only@search8", GuideOnly, 8),
        ("guide_only@5", GuideOnly, 0),
        ("guide_of_hybrid@5,search8", GuideOfHybrid, 8),
    ],
)
def test_search_rows_by_name(nested, name, kind, search_steps):
    (row,) = rows_by_name(nested, [name])
    assert type(row) is kind and row.name == name and row.search_steps == search_steps
    assert row.guide_scales == (2 if "5" in name else None)


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
        (["hybrid@search"], "is no variant"),
        (["hybrid@fixed1.5"], "whole number of steps, as in fixed8"),
        (["hybrid@s0.4,s0.5"], "gives strength twice"),
        (["hybrid@lcm,linear_estimate"], "use start='add_noise'"),
        (["hybrid@s0.4,n50", "hybrid@n50,s0.4"], "different names"),
        (
            ["guide_only@s0.4,n50"],
            "guide_only does not decode through diffusion and has no num_inference_steps, strength",
        ),
        (["guide_of_hybrid"], "without a search guide_of_hybrid is guide_only.*guide_of_hybrid@search8"),
        (["guide_of_hybrid@search0"], "without a search"),
        (["semantic_only@g3"], "is unknown"),
        (["hybrid@eta2"], "eta is 2.0, expected a number from 0 to 1"),
    ],
)
def test_wrong_names_are_refused_with_what_there_is(nested, names, message):
    with pytest.raises(HybridTokenizerError, match=message):
        rows_by_name(nested, names)
