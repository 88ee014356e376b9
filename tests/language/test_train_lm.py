"""train_lm: validation, exact resume, two processes, FSDP2, adapters."""

import json
import signal

import pytest
import torch
from lm_runs import finish_ranks, kill_at, refused, start_ranks, train_lm
from PIL import Image
from safetensors.torch import load_file

from hybrid_tokenizer.hybrid import HybridTokenizer
from hybrid_tokenizer.language.model import load_language_model
from hybrid_tokenizer.language.vocabulary import budgets


def final_weights(folder):
    return (folder / "final" / "model.safetensors").read_bytes()


def logged(folder):
    """Without the time that a step waited."""
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in row.items() if name != "waited_for_data"} for row in rows]


def validations(folder):
    return {row["step"]: row for row in logged(folder) if "val_loss" in row}


def test_a_run_learns_and_says_so_by_kind_of_token(run, corpus):
    figures = validations(run)
    assert set(figures) == {0, 3, 6} and figures[6]["val_loss"] < figures[0]["val_loss"] - 0.02
    for name in ("text", "caption", "semantic", "guide_1x1", "guide_2x2", "guide_4x4"):
        assert figures[6][f"val_perplexity_{name}"] == pytest.approx(
            torch.tensor(figures[6][f"val_loss_{name}"]).exp().item(), rel=1e-5
        )
    assert figures[0]["val_perplexity_semantic"] == pytest.approx(20, rel=0.1), "untrained: as many as there are codes"
    assert 0 <= figures[6]["val_accuracy_first_semantic"] <= 1
    steps = [row for row in logged(run) if "total" in row]
    assert {"text", "caption", "semantic", "guide_1x1", "lr", "grad_norm"} <= set(steps[-1])
    with Image.open(run / "validation" / "step-00000006.png") as grid:
        assert grid.width > 2 * 32 and grid.height > 2 * 32

    lm = load_language_model(str(run / "final"), HybridTokenizer.from_pretrained(corpus.tokenizer).source)
    assert budgets(lm.vocabulary) == [33, 37, 53]
    assert json.loads((run / "final" / "training.json").read_text())["images_seen"] == 24


def test_a_killed_run_ends_as_one_that_was_never_stopped(run, corpus, tmp_path):
    options = [*corpus.options(tmp_path / "run", max_steps=6, save_every=2, validate_every=3), "pictures=2"]
    assert kill_at(5, *options) == -signal.SIGKILL
    assert not (tmp_path / "run" / "final").exists()
    assert train_lm(*options, "training.num_workers=1") == ["resumed from step 4", "finished at step 6"]
    assert final_weights(tmp_path / "run") == final_weights(run)
    assert logged(tmp_path / "run") == logged(run)


def test_two_processes_and_fsdp2_train_the_same_model(corpus, tmp_path):
    """Batches of 2 on two ranks are batches of 4 on one. FSDP2 resumes, and leaves a model that loads."""

    def job(name, steps, **changes):
        options = corpus.options(tmp_path / name, max_steps=steps, save_every=2, validate_every=2, batch_size=2)
        return {"options": options, "environment": changes}

    fsdp = {
        "ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2", "FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP",
        "FSDP_TRANSFORMER_CLS_TO_WRAP": "LlamaDecoderLayer",
    }  # fmt: skip
    ranks = start_ranks([job("ddp", 4), job("fsdp", 2, **fsdp), job("fsdp", 4, **fsdp)])
    train_lm(*corpus.options(tmp_path / "one", max_steps=4, save_every=2, validate_every=2))
    said, _ = finish_ranks(ranks)
    assert [line for line in said.splitlines() if "at step" in line or "from step" in line] == [
        "starting from step 0", "finished at step 4", "starting from step 0", "finished at step 2", "resumed from step 2",
        "finished at step 4",
    ]  # fmt: skip
    facts = json.loads((tmp_path / "ddp" / "final" / "training.json").read_text())
    assert len(facts["weights_sha256_by_rank"]) == 2 and len(set(facts["weights_sha256_by_rank"])) == 1
    assert facts["images_seen"] == 16

    whole, shared, sharded = (
        load_file(tmp_path / name / "final" / "model.safetensors") for name in ("one", "ddp", "fsdp")
    )
    start = load_language_model(str(tmp_path / "fsdp" / "final")).model  # loads
    assert sum(map(torch.numel, start.parameters())) == sum(map(torch.numel, whole.values()))
    assert set(whole) == set(shared) == set(sharded)
    for name, weight in shared.items():
        torch.testing.assert_close(sharded[name], weight, rtol=1e-4, atol=1e-5, msg=name)
    losses = [validations(tmp_path / name)[4]["val_loss"] for name in ("one", "ddp", "fsdp")]
    assert losses[1] == pytest.approx(losses[2], abs=1e-5) and losses[0] == pytest.approx(losses[1], abs=0.05)


def test_adapters_of_a_trained_model_resume_and_are_merged(run, corpus, tmp_path):
    base = run / "final"
    options = [f"lm.base={base}", "lm.lora_rank=2"]
    for steps in (2, 4):
        train_lm(*corpus.options(tmp_path / "parts", max_steps=steps, save_every=2), *options)
    train_lm(*corpus.options(tmp_path / "once", max_steps=4, save_every=2), *options)
    assert final_weights(tmp_path / "parts") == final_weights(tmp_path / "once")
    checkpoint = load_file(tmp_path / "once" / "checkpoints" / "step-00000004" / "model.safetensors")
    assert checkpoint and all("lora_" in name or "trainable_tokens" in name for name in checkpoint)
    before, after = (load_file(folder / "model.safetensors") for folder in (base, tmp_path / "once" / "final"))
    assert set(before) == set(after)
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert "model.layers.0.self_attn.q_proj.weight" in changed and "model.norm.weight" not in changed
    assert load_language_model(str(tmp_path / "once" / "final")).vocabulary == load_language_model(str(base)).vocabulary


def test_a_run_that_cannot_be_is_one_line(run, corpus, tmp_path):
    other = tmp_path / "other"
    from helpers.small_models import small_hybrid

    small_hybrid(seed=5, nested=True).save_pretrained(other)
    options = corpus.options(tmp_path / "run", max_steps=1)
    assert "made by tokenizer 'small'" in refused(*options, f"model_name={other}")
    assert "has no dataset.json" in refused(*options, f"data.tokens={tmp_path}")
    assert "tokens, a row holds 40; raise row_length" in refused(*options, "row_length=40")
    assert "data.val_share=0.0" in refused(*options, "data.val_share=0.0")
    assert not (tmp_path / "run" / "final").exists()
