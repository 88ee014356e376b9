"""eval_lm on a small model: every part gives its figures, and a second start goes on."""

import json

import pytest
from helpers.commands import run_command
from PIL import Image

from hybrid_tokenizer.corpus.dataset import TokenDataset
from hybrid_tokenizer.hybrid import HybridTokenizer
from hybrid_tokenizer.language.documents import JoinedRows, tokens_of_rows
from hybrid_tokenizer.language.drawn import code_vectors_of_rows, equal_codes, nearest, others
from hybrid_tokenizer.language.model import load_language_model

PARTS = ["unigrams", "semantic_then_lm", "text_to_image", "captions", "valid", "search", "budgets"]


@pytest.fixture(scope="module")
def options(corpus, run):
    return (
        f"model_name={corpus.tokenizer}", f"language_model={run / 'final'}", f"train_tokens={corpus.tokens}",
        f"data.root={corpus.pictures}", "data.image_size=32", "data.max_images=4", "row_length=128", "pictures=4",
        "search_steps=0",
    )  # fmt: skip


def evaluate(options, *more):
    error = run_command("eval_lm", *options, *more)
    assert error is None, error


@pytest.fixture(scope="module")
def evaluated(options, tmp_path_factory):
    folder = tmp_path_factory.mktemp("eval") / "lm"
    evaluate(options, f"output_dir={folder}", "parts=[unigrams,valid]")
    first = json.loads((folder / "eval_lm.json").read_text())
    evaluate(options, f"output_dir={folder}")
    return folder, first, json.loads((folder / "eval_lm.json").read_text())


def test_a_second_start_keeps_what_is_done(evaluated, options):
    folder, first, last = evaluated
    assert list(first["parts"]) == ["unigrams", "valid"] and set(last["parts"]) == set(PARTS)
    assert {name: last["parts"][name] for name in first["parts"]} == first["parts"]
    assert len(last["facts"]["language_model_sha256"]) == 64 and last["provenance"]["versions"]["transformers"]
    error = run_command("eval_lm", *options, f"output_dir={folder}", "seed=1")
    assert "is of other models, data or options; give another output_dir" in error


def test_pictures_from_semantic_tokens_are_compared_image_by_image(evaluated):
    part = evaluated[2]["parts"]["semantic_then_lm"]
    assert set(part["rows"]) == {"hybrid", "semantic_only", "semantic_only_wrong_semantics", "semantic_then_lm"}
    for name, compared in part["semantic_then_lm_minus"].items():
        for measure in ("own_caption", "own_minus_other", "effnet_lite2_distance", "psnr"):
            ours, theirs = (part["rows"][row][measure]["mean"] for row in ("semantic_then_lm", name))
            assert compared[measure]["mean"] == pytest.approx(ours - theirs, abs=1e-6)
            low, high = compared[measure]["interval"]
            assert low <= compared[measure]["mean"] <= high and compared[measure]["n"] == 4
    own_minus_other = part["rows"]["hybrid"]["own_minus_other"]["mean"]
    assert own_minus_other == pytest.approx(
        part["rows"]["hybrid"]["own_caption"]["mean"] - part["rows"]["hybrid"]["other_caption"]["mean"], abs=1e-6
    )


def test_drawn_pictures_captions_budgets_and_search_have_their_figures(evaluated):
    folder, _, result = evaluated
    parts = result["parts"]
    drawn = parts["text_to_image"]
    assert drawn["own_minus_other"]["n"] == 4 and len(drawn["nearest"]) == 4
    # the held-out photographs of this test are those of the training
    assert drawn["the_same_of_held_out_photographs"]["mean"] == pytest.approx(0, abs=1e-3)
    assert drawn["distance_to_nearest_training_image"]["mean"] > 0.001
    captions = parts["captions"]
    assert len(captions["written"]) == 4 and 1 <= captions["median_rank"] <= 4
    assert 0 <= captions["recall_at_1"] <= captions["recall_at_10"] == 1
    assert parts["valid"]["constrained"] == 1 and parts["valid"]["unconstrained"] < 1
    assert [row["budget"] for row in parts["budgets"]["rows"]] == [33, 37, 53]
    assert parts["search"]["semantic"]["difference"]["mean"] == 0
    table = (folder / "eval_lm.md").read_text()
    assert "| semantic " in table and "semantic_then_lm minus" in table and "valid: " in table
    for name, columns in (("semantic_then_lm", 5), ("text_to_image", 2)):
        with Image.open(folder / f"{name}.png") as grid:
            assert grid.width > columns * 192 and grid.height > 4 * 192


def test_what_cannot_be_measured_is_one_line(options, corpus, tmp_path):
    output = f"output_dir={tmp_path}"
    assert "parts=['fid'] are unknown; use some of unigrams" in run_command("eval_lm", *options, output, "parts=[fid]")
    assert "search_steps=2 needs a decoder that draws no noise" in run_command(
        "eval_lm", *options, output, "search_steps=2"
    )
    assert "compares each with another's" in run_command("eval_lm", *options, output, "data.max_images=1")


def test_a_copy_of_a_training_image_is_found(corpus, run):
    hybrid = HybridTokenizer.from_pretrained(corpus.tokenizer)
    lm = load_language_model(str(run / "final"))
    rows = JoinedRows([TokenDataset(corpus.tokens)])
    known = code_vectors_of_rows(hybrid, lm, rows)
    tokens = tokens_of_rows([rows[index] for index in range(10)], lm.vocabulary)
    found = nearest(hybrid, lm, tokens[3:6], rows, known)
    assert found.indices.tolist() == [3, 4, 5] and found.distances.max() < 1e-3
    assert equal_codes(tokens[3:6], tokens[3:6]).tolist() == [1, 1, 1]
    assert (equal_codes(tokens[:3], tokens[3:6]) < 1).all()
    without = JoinedRows(rows.parts, rows.chosen[1:])
    assert nearest(hybrid, lm, tokens[:1], without, known[1:]).distances[0] > 0.001
    assert others(["a", "b", "c"]) == ["b", "c", "a"]
