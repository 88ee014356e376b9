import math
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
import torch.nn.functional as F

from hybrid_tokenizer.errors import HybridTokenizerError
from hybrid_tokenizer.semantic import ContrastiveConfig, ContrastiveHeads, SemanticConfig
from hybrid_tokenizer.semantic.config import QuantizeLossOptions
from hybrid_tokenizer.semantic.losses import (
    contrastive_loss,
    cosine_loss,
    gather_features,
    generation_loss,
)
from hybrid_tokenizer.semantic.modules import QFormer

ONE = torch.tensor(1.0)


def unit(rows: int, width: int, seed: int) -> torch.Tensor:
    return F.normalize(torch.randn(rows, width, generator=torch.Generator().manual_seed(seed)), dim=-1)


def test_contrastive_loss_of_orthogonal_pairs_has_a_closed_form():
    eye, temperature = torch.eye(4), torch.tensor(0.5)
    matched = -math.log(math.exp(2) / (math.exp(2) + 3))
    assert contrastive_loss(eye, eye, temperature, literal_eq6=True).item() == pytest.approx(matched, rel=1e-6)
    other = -math.log(1 / (math.exp(2) + 3))
    smoothed = 0.9 * matched + 0.1 * (matched + 3 * other) / 4
    assert contrastive_loss(eye, eye, temperature).item() == pytest.approx(smoothed, rel=1e-6)


def test_the_temperature_divides_and_learns():
    temperature = torch.tensor(0.07, requires_grad=True)
    images, text = unit(5, 8, 1), unit(5, 8, 2)
    loss = contrastive_loss(images, text, temperature)
    torch.testing.assert_close(loss, contrastive_loss(images / 0.07, text, ONE))
    loss.backward()
    assert temperature.grad.abs() > 0


def test_literal_eq6_is_image_to_text_only():
    images, text = unit(5, 8, 1), unit(5, 8, 2)
    logits = images @ text.T
    assert contrastive_loss(images, text, ONE, literal_eq6=True) == F.cross_entropy(logits, torch.arange(5))
    both = (F.cross_entropy(logits, torch.arange(5)) + F.cross_entropy(logits.T, torch.arange(5))) / 2
    torch.testing.assert_close(contrastive_loss(images, text, ONE, label_smoothing=0.0), both)


def test_reference_gather_gives_the_same_value_and_part_of_the_gradient():
    def gradient(reference: bool, literal: bool) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor]:
        images, text = unit(4, 6, 1).requires_grad_(), unit(4, 6, 2).requires_grad_()
        loss = contrastive_loss(images, text, ONE, literal_eq6=literal, reference_gather=reference)
        loss.backward()
        return images.grad, text.grad, loss.detach()

    full, constant = gradient(False, literal=False), gradient(True, literal=False)
    assert full[2] == constant[2]
    assert not torch.allclose(full[0], constant[0], rtol=1e-2)
    assert gradient(True, literal=True)[1] is None  # image to text then trains the image side alone
    assert gradient(False, literal=True)[1].abs().sum() > 0


def gather_worker(rank: int, folder: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    images, text = unit(4, 6, 1)[2 * rank : 2 * rank + 2], unit(4, 6, 2)[2 * rank : 2 * rank + 2]
    results = {}
    for reference in (False, True):
        mine, words = images.clone().requires_grad_(), text.clone().requires_grad_()
        loss = contrastive_loss(mine, words, torch.tensor(0.3), reference_gather=reference)
        loss.backward()
        results[str(reference)] = (loss.detach(), mine.grad, words.grad)
    torch.save(results, f"{folder}/{rank}.pt")
    dist.barrier()
    dist.destroy_process_group()


def test_two_processes_compute_the_loss_and_gradient_of_one(tmp_path: Path):
    mp.spawn(gather_worker, args=(str(tmp_path),), nprocs=2)
    ranks = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2)]
    for reference in (False, True):
        images, text = unit(4, 6, 1).requires_grad_(), unit(4, 6, 2).requires_grad_()
        loss = contrastive_loss(images, text, torch.tensor(0.3), reference_gather=reference)
        loss.backward()
        found = [rank[str(reference)] for rank in ranks]
        torch.testing.assert_close(sum(result[0] for result in found) / 2, loss.detach())
        # data-parallel training averages gradients over the processes
        torch.testing.assert_close(torch.cat([result[1] for result in found]) / 2, images.grad)
        torch.testing.assert_close(torch.cat([result[2] for result in found]) / 2, text.grad)


def test_gathering_in_one_process_returns_the_features():
    features = unit(3, 4, 1).requires_grad_()
    assert gather_features(features) is features
    assert not gather_features(features, with_gradient=False).requires_grad


def test_cosine_loss_is_zero_for_any_positive_scale_and_two_for_opposites():
    target = torch.randn(2, 3, 5)
    assert cosine_loss(4 * target, target).item() == pytest.approx(0, abs=1e-6)
    assert cosine_loss(-target, target).item() == pytest.approx(2, abs=1e-6)


def test_targets_take_no_gradient():
    ours, target = torch.randn(2, 3, 5, requires_grad=True), torch.randn(2, 3, 5, requires_grad=True)
    (cosine_loss(ours, target) + generation_loss(ours, target)).backward()
    assert target.grad is None
    assert ours.grad.abs().sum() > 0


def test_generation_loss_is_the_mean_over_all_elements():
    assert generation_loss(torch.zeros(2, 7, 11), torch.full((2, 7, 11), 3.0)) == 9.0


def test_stage_two_weights_are_seeds():
    weights = QuantizeLossOptions()
    assert (weights.vq, weights.cosine, weights.generation) == (5.0, 2.0, 0.5)


@pytest.fixture
def stage1() -> tuple[QFormer, ContrastiveHeads]:
    config = SemanticConfig(
        width=16, num_queries=6, qformer_layers=2, qformer_heads=2, qformer_mlp_width=24, decoder_heads=2
    )
    heads = ContrastiveHeads(ContrastiveConfig.matching(config, vocab_size=30, max_text_length=10, feature_width=8))
    return QFormer(config, 20, 6, 2, causal=True).eval(), heads.eval()


def test_features_are_unit_length_and_read_the_last_query_and_the_first_word(stage1):
    qformer, heads = stage1
    ids, mask = torch.randint(30, (3, 7)), torch.ones(3, 7, dtype=torch.long)
    causal_embeds = qformer(torch.randn(3, 5, 20))
    images, text, temperature = heads(qformer, causal_embeds, ids, mask)
    torch.testing.assert_close(images.norm(dim=-1), torch.ones(3))
    torch.testing.assert_close(text.norm(dim=-1), torch.ones(3))
    assert temperature.item() == pytest.approx(0.07)
    others = torch.cat([torch.randn(3, 5, 16), causal_embeds[:, -1:]], dim=1)
    assert torch.equal(heads.image_features(others), images)


def test_padding_does_not_change_text_features(stage1):
    qformer, heads = stage1
    ids = torch.randint(30, (2, 7))
    mask = torch.tensor([[1, 1, 1, 1, 0, 0, 0]] * 2)
    padded = ids.clone()
    padded[:, 4:] = 0
    torch.testing.assert_close(heads.text_features(qformer, ids, mask), heads.text_features(qformer, padded, mask))
    torch.testing.assert_close(
        heads.text_features(qformer, ids, mask), heads.text_features(qformer, ids[:, :4], mask[:, :4])
    )


def test_text_trains_the_shared_qformer_whose_weights_stay_out_of_the_heads(stage1):
    qformer, heads = stage1
    ids = torch.randint(30, (2, 7))
    heads.text_features(qformer, ids, torch.ones_like(ids)).sum().backward()
    layer = qformer.body.encoder.layer[0]
    assert layer.attention.attention.query.weight.grad.abs().sum() > 0
    assert layer.intermediate_query.dense.weight.grad is None
    shared = {id(parameter) for parameter in qformer.parameters()}
    assert not shared & {id(parameter) for parameter in heads.parameters()}


def test_temperature_stops_at_its_floor_and_can_rise_again(stage1):
    _, heads = stage1
    with torch.no_grad():
        heads.temperature.fill_(0.001)
    assert heads.floored_temperature().item() == pytest.approx(0.01)
    heads.floored_temperature().backward()
    assert heads.temperature.grad == 1


def test_heads_are_saved_and_loaded(stage1, tmp_path):
    qformer, heads = stage1
    heads.save_pretrained(tmp_path)
    loaded = ContrastiveHeads.from_pretrained(tmp_path)
    ids = torch.randint(30, (2, 7))
    assert torch.equal(
        loaded.text_features(qformer, ids, torch.ones_like(ids)),
        heads.text_features(qformer, ids, torch.ones_like(ids)),
    )
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(HybridTokenizerError, match=r"has no width, layers, .* another version of ContrastiveConfig"):
        ContrastiveHeads.from_pretrained(tmp_path)


def test_text_that_does_not_fit_is_one_clear_line(stage1):
    qformer, heads = stage1
    long = torch.zeros(1, 11, dtype=torch.long)
    with pytest.raises(HybridTokenizerError, match="text of 11 tokens, the text path takes 10"):
        heads.text(qformer, long, torch.ones_like(long))
    with pytest.raises(HybridTokenizerError, match="token ids span 0 to 30, the vocabulary has 0 to 29"):
        heads.text(qformer, torch.tensor([[0, 30]]), torch.ones(1, 2, dtype=torch.long))
    with pytest.raises(HybridTokenizerError, match="must lie above temperature_floor"):
        ContrastiveConfig(temperature=0.001)
