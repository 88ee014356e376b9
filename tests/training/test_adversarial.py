"""Branch I against a discriminator, and the notice of a dead codebook."""

import pytest
import torch
from helpers.small_models import small_hybrid
from safetensors.torch import load_file
from test_loop import rows_of, run
from training_runs import final_weights

from hybrid_tokenizer.errors import HybridTokenizerError
from hybrid_tokenizer.training.config import GuideLossOptions
from hybrid_tokenizer.training.guide import CodebookWatch, GuideObjective

OPTIONS = GuideLossOptions(adversarial=0.5, adversarial_from=2, discriminator_layers=1)


def objective(options=OPTIONS):
    torch.manual_seed(0)
    return GuideObjective(small_hybrid().guide.train(), options)


def test_a_run_with_a_discriminator_resumes_exactly(pictures, tmp_path):
    stopped, whole = tmp_path / "stopped", tmp_path / "whole"
    for _ in range(4):
        run(objective(), pictures, stopped, max_minutes=1e-9)
    run(objective(), pictures, whole, log_every=1)
    assert final_weights(stopped) == final_weights(whole)
    losses = [row for row in rows_of(whole) if "total" in row]
    assert ["adversarial" in row for row in losses] == [False, False, True, True], "from step 2 on"
    assert not [key for key in load_file(whole / "final" / "model.safetensors") if "discriminator" in key]
    newest = sorted((whole / "checkpoints").iterdir())[-1]
    kept = load_file(newest / "model.safetensors")
    fresh = {f"discriminator.{key}": value for key, value in objective().discriminator.state_dict().items()}
    assert set(fresh) <= set(kept)
    assert any(not torch.equal(kept[key], value) for key, value in fresh.items() if key.endswith("weight"))


def test_each_player_moves_only_itself():
    """The tokenizer's term gives the discriminator no gradient, the discriminator's gives the tokenizer none."""
    player = objective(GuideLossOptions(adversarial=1.0, discriminator_layers=1))
    images = torch.rand(2, 3, 32, 32) * 2 - 1
    losses = player({"images": images}, 0)
    of_discriminator = list(player.discriminator.parameters())
    of_tokenizer = list(player.model.decoder.parameters())
    for loss, moved, still in (
        (losses["adversarial"], of_tokenizer, of_discriminator),
        (losses["discriminator"], of_discriminator, of_tokenizer),
    ):
        gradients = torch.autograd.grad(loss, [*moved, *still], retain_graph=True, allow_unused=True)
        assert any(g is not None and g.abs().sum() > 0 for g in gradients[: len(moved)])
        assert all(g is None for g in gradients[len(moved) :])
    expected = losses["recon"] + losses["vq"] + losses["adaptive_weight"] * losses["adversarial"]
    torch.testing.assert_close(losses["total"], expected + losses["discriminator"])
    with pytest.raises(HybridTokenizerError, match="16 px are too small for 5 discriminator layers"):
        objective(GuideLossOptions(adversarial=1.0, discriminator_layers=5))


def test_a_dead_codebook_is_named_once_a_window(capsys):
    watch = CodebookWatch(1000, window=5)
    for step in range(11):
        watch.update(step, (torch.arange(9).reshape(1, 3, 3),))
    said = capsys.readouterr().out.splitlines()
    assert len(said) == 2 and said[0].startswith("dead codebook: 0.90% of 1000 codes were used in steps 0 to 4; ")
    watch = CodebookWatch(1000, window=5)
    for step in range(11):
        watch.update(step, (torch.arange(step, step + 10).reshape(1, 2, 5),))
    assert not capsys.readouterr().out, "1.4 % are in use"
