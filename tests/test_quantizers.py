import socket
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F

from hybrid_tokenizer.metrics.codebook import CodebookUse
from hybrid_tokenizer.quantizers import (
    EmaQuantizer,
    QuantizerConfig,
    build_quantizer,
    codebooks,
    nearest_codes,
    vq_loss,
)


def ema(size: int = 16, dim: int = 4, kind: str = "ema", **changes) -> EmaQuantizer:
    return EmaQuantizer(QuantizerConfig(kind=kind, codebook_size=size, codebook_dim=dim, **changes))


def test_nearest_codes_do_not_depend_on_the_blocks(monkeypatch):
    features, codebook = torch.randn(50, 4), torch.randn(20, 4)
    expected = (features[:, None] - codebook).square().sum(-1).argmin(1)
    assert torch.equal(nearest_codes(features, codebook), expected)
    monkeypatch.setattr(codebooks, "DISTANCE_ENTRIES", 60)
    assert torch.equal(nearest_codes(features, codebook), expected)


def test_distances_are_fp32_under_autocast():
    codebook = torch.tensor([[1.0], [1.001]])
    with torch.autocast("cpu", torch.bfloat16):  # bf16 cannot tell these apart
        assert nearest_codes(torch.tensor([[1.0009]]), codebook).tolist() == [1]


def test_faithful_quantizer_is_diffusers_by_value_loss_and_gradient():
    from diffusers.models.autoencoders.vae import VectorQuantizer as Reference

    config = QuantizerConfig(codebook_size=12, codebook_dim=4)
    ours, reference = build_quantizer(config), Reference(12, 4, beta=0.25, legacy=True)
    with torch.no_grad():
        ours.embedding.weight.normal_()
        reference.embedding.weight.copy_(ours.embedding.weight)
    features = torch.randn(2, 3, 5, 4, requires_grad=True)
    mine = ours(features)
    theirs, loss, (_, _, indices) = reference(features.permute(0, 3, 1, 2))
    assert torch.equal(mine.indices.flatten(), indices)
    torch.testing.assert_close(mine.quantized, theirs.permute(0, 2, 3, 1))
    torch.testing.assert_close(vq_loss(mine, config), loss)
    mine_grads = torch.autograd.grad(vq_loss(mine, config), [features, ours.embedding.weight])
    their_grads = torch.autograd.grad(loss, [features, reference.embedding.weight])
    torch.testing.assert_close(mine_grads, their_grads)


@pytest.mark.parametrize("kind", ["ema", "cosine"])
def test_running_means_match_a_slow_reference(kind):
    quantizer = ema(4, 3, kind, ema_decay=0.9, restart_below=0.0).train()
    draws = [torch.randn(40, 3) for _ in range(4)]
    quantizer(draws[0])
    counts, sums, codes = (t.clone().double() for t in (quantizer.code_counts, quantizer.code_sums, quantizer.codebook))
    for features in draws[1:]:
        placed = (F.normalize(features, dim=-1) if kind == "cosine" else features).double()
        chosen = (placed[:, None] - codes).square().sum(-1).argmin(1)
        result = quantizer(features)
        assert torch.equal(result.indices, chosen)
        for k in range(4):
            hits = placed[chosen == k]
            counts[k] = 0.9 * counts[k] + 0.1 * len(hits)
            sums[k] = 0.9 * sums[k] + 0.1 * hits.sum(0)
        codes = sums / counts[:, None]
        if kind == "cosine":
            codes = F.normalize(codes, dim=-1)
        torch.testing.assert_close(quantizer.codebook.double(), codes, rtol=1e-5, atol=1e-6)


def test_k_means_start_finds_the_clusters():
    centres = torch.tensor([[10.0, 0.0], [0.0, 10.0], [-10.0, -10.0]])
    features = (centres[:, None] + 0.1 * torch.randn(3, 100, 2)).reshape(-1, 2)
    quantizer = ema(24, 2).train()
    quantizer.start(features)
    assert quantizer.started
    assert (quantizer.lookup(centres)[0] - centres).norm(dim=1).max() < 0.3
    before = quantizer.codebook.clone()
    quantizer.start(torch.zeros(30, 2))
    assert torch.equal(quantizer.codebook, before)


def test_dead_codes_restart_until_most_are_used():
    features = torch.randn(2000, 4)
    quantizer = ema(256, 4).train()
    quantizer.start(features[:40])  # far fewer features than codes: most of them start dead
    assert quantizer.lookup(features)[1].unique().numel() < 60
    for _ in range(5):
        quantizer(features)
    assert quantizer.lookup(features)[1].unique().numel() > 200


def test_restarts_follow_use_whatever_the_batch_size():
    """Four tokens an image and 256 codes: a code is hit every few steps, and that must not make it dead."""
    quantizer = ema(256, 4).train()
    quantizer.start(torch.randn(2000, 4))
    for _ in range(150):
        quantizer(torch.randn(64, 4))
    before = quantizer.codebook.clone()
    quantizer(torch.randn(64, 4))
    jumped = (quantizer.codebook - before).norm(dim=1) > 0.5
    assert jumped.double().mean() < 0.1


def test_evaluation_changes_nothing_and_encodes_alike():
    quantizer = ema().train()
    quantizer(torch.randn(100, 4))
    quantizer.eval()
    before = {key: value.clone() for key, value in quantizer.state_dict().items()}
    features = torch.randn(2, 3, 5, 4)
    result, (codes, indices) = quantizer(features), quantizer.lookup(features)
    assert torch.equal(result.indices, indices)
    torch.testing.assert_close(result.quantized, codes)
    assert torch.equal(quantizer.codes(indices), codes)
    assert all(torch.equal(value, before[key]) for key, value in quantizer.state_dict().items())


def test_gradients_of_a_running_mean_codebook():
    quantizer = ema().train()
    features = torch.randn(50, 4, requires_grad=True)
    result = quantizer(features)
    torch.testing.assert_close(
        torch.autograd.grad(result.quantized.sum(), features, retain_graph=True)[0], torch.ones(50, 4)
    )
    (pull,) = torch.autograd.grad(result.commitment_loss, features)
    codes = result.quantized.detach()
    torch.testing.assert_close(pull, 2 * (features - codes).detach() / features.numel(), rtol=1e-4, atol=1e-7)
    assert list(quantizer.parameters()) == []


@pytest.mark.parametrize("kind", ["ema", "cosine"])
@pytest.mark.parametrize("steps_before", [0, 3])
def test_resuming_is_exact(kind, steps_before):
    """State dict and torch's own random state are all there is: no draw comes from anywhere else."""
    batches = [torch.randn(30, 4) for _ in range(8)]
    through = ema(64, 4, kind).train()
    torch.manual_seed(1)
    for features in batches[:steps_before]:
        through(features)
    saved = {key: value.clone() for key, value in through.state_dict().items()}
    random_state = torch.get_rng_state()
    for features in batches[steps_before:]:
        through(features)
    torch.manual_seed(99)
    resumed = ema(64, 4, kind).train()
    resumed.load_state_dict(saved)
    torch.set_rng_state(random_state)
    for features in batches[steps_before:]:
        resumed(features)
    for key, value in through.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[key]), key


def run_rank(rank: int, port: int, folder: Path) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    torch.manual_seed(100 + rank)  # ranks see other data and draw other numbers
    states = {}
    use = CodebookUse(64)
    for kind in ("ema", "cosine"):
        quantizer = ema(64, 4, kind).train()
        for step in range(6):
            indices = quantizer(torch.randn(20 + 7 * rank + step, 4)).indices
        states |= {f"{kind}.{key}": value for key, value in quantizer.state_dict().items()}
        use.update(indices)
    use.merge_ranks()
    torch.save({"states": states, "use": use.compute()}, folder / f"rank{rank}.pt")
    dist.destroy_process_group()


def test_two_ranks_keep_one_codebook(tmp_path):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    torch.multiprocessing.spawn(run_rank, args=(port, tmp_path), nprocs=2)
    first, second = (torch.load(tmp_path / f"rank{rank}.pt", weights_only=True) for rank in (0, 1))
    for key, value in first["states"].items():
        assert torch.equal(value, second["states"][key]), key
    assert first["use"] == second["use"]
    assert first["use"]["codebook_usage"] > 0.3


def test_one_rank_with_both_batches_gives_the_same_means():
    """Sums over ranks are what a single process would have summed."""
    quantizer = ema(4, 2, restart_below=0.0).train()
    features = torch.randn(40, 2)
    quantizer.start(features)
    counts, sums = quantizer._assigned(features, quantizer.lookup(features)[1])
    halves = [quantizer._assigned(half, quantizer.lookup(half)[1]) for half in features.split(20)]
    torch.testing.assert_close(counts, halves[0][0] + halves[1][0])
    torch.testing.assert_close(sums, halves[0][1] + halves[1][1])
