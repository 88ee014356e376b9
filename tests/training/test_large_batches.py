"""Eq. 6 over batches larger than memory (GradCache), stage 2 from a published tokenizer, and the length of a run."""

import multiprocessing

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from helpers.small_models import noise_images, small_hybrid
from torch import nn

from hybrid_tokenizer.errors import HybridTokenizerError
from hybrid_tokenizer.text import MiniLMText
from hybrid_tokenizer.training.config import ContrastiveOptions, QuantizeOptions, TrainingConfig
from hybrid_tokenizer.training.semantic import ContrastiveObjective, QuantizeObjective
from hybrid_tokenizer.training.setup import with_length

BATCH, RANKS = 32, 2
CAPTIONS = [str(number) for number in range(BATCH)]


class Plain(ContrastiveObjective):
    """Stage 1 with a linear text encoder, and a loss beside eq. 6."""

    def __init__(self, chunk_size):
        super().__init__(small_hybrid().semantic.train(), ContrastiveOptions(distillation=0.5, chunk_size=chunk_size))
        torch.manual_seed(1)
        self.vision, self.text = nn.Linear(16, 8), nn.Linear(4, 8)
        self.temperature = nn.Parameter(torch.tensor(0.2))
        self.calls = 0

    def features_of_chunk(self, images, captions):
        self.calls += 1
        return super().features_of_chunk(images, captions)

    def image_features(self, causal_embeds):
        return F.normalize(self.vision(causal_embeds[:, -1]), dim=-1)

    def text_features(self, captions):
        numbers = torch.tensor([float(caption) for caption in captions])
        return F.normalize(self.text(torch.stack([(numbers * k).sin() for k in (1, 2, 3, 4)], 1)), dim=-1)

    def floored_temperature(self):
        return self.temperature

    def further_losses(self, batch, image_embeds):
        return {"distillation": image_embeds.square().mean()}


def gradients(chunk_size, rows=slice(None)):
    """Of the loss of these rows of the batch, by name, and how many chunks were run."""
    objective = Plain(chunk_size)
    batch = {"images": noise_images(BATCH, 32, 32)[rows], "captions": CAPTIONS[rows]}
    objective(batch, 0)["total"].backward()
    found = {name: p.grad for name, p in objective.named_parameters() if p.grad is not None}
    return found, objective.calls


def assert_equal(ours, theirs):
    assert ours.keys() == theirs.keys() and len(ours) > 10
    for name, gradient in ours.items():
        torch.testing.assert_close(gradient, theirs[name], rtol=0, atol=1e-5, msg=name)


def test_four_chunks_of_eight_have_the_gradient_of_one_batch_of_32():
    whole, calls = gradients(None)
    chunked, replays = gradients(8)
    assert (calls, replays) == (1, 2 * 4)  # each chunk again, for its gradient
    assert_equal(chunked, whole)
    alone, _ = gradients(None, slice(0, 8))
    assert any(not torch.allclose(alone[name], whole[name], atol=1e-5) for name in whole)


def one_of_two_ranks(rank, folder):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", f"file://{folder}/store", rank=rank, world_size=RANKS)
    share = BATCH // RANKS
    found, _ = gradients(share // 4, slice(rank * share, (rank + 1) * share))
    for gradient in found.values():
        dist.all_reduce(gradient)
        gradient /= RANKS  # as DistributedDataParallel does
    if rank == 0:
        torch.save(found, folder / "gradients.pt")
    dist.destroy_process_group()


def test_two_ranks_of_four_chunks_have_the_gradient_of_one_batch(tmp_path):
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=one_of_two_ranks, args=(rank, tmp_path)) for rank in range(RANKS)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(120)
        assert process.exitcode == 0
    assert_equal(torch.load(tmp_path / "gradients.pt", weights_only=True), gradients(None)[0])


class Text(MiniLMText):
    """Targets of eq. 8 without the sentence encoder."""

    length, width = 5, 12

    def __init__(self):
        nn.Module.__init__(self)

    def token_features(self, captions):
        return torch.ones(len(captions), self.length, self.width)


def test_stage_2_gives_a_published_tokenizer_the_cosine_stack_that_it_lacks(tmp_path, capsys):
    published = small_hybrid().semantic
    published.save_pretrained(tmp_path / "semantic")
    loaded = type(published).from_pretrained(tmp_path / "semantic").train()
    assert loaded.cosine is None
    objective = QuantizeObjective(loaded, QuantizeOptions(), Text())
    assert "the cosine stack of eq. 7 starts from random weights" in capsys.readouterr().out
    losses = objective({"images": noise_images(2, 32, 32), "captions": ["a", "b"]}, 0)
    losses["total"].backward()
    assert losses["cosine"] > 0 and any(p.grad.abs().sum() > 0 for p in objective.model.cosine.parameters())
    objective.export(tmp_path / "final", [])
    again = type(published).from_pretrained(tmp_path / "final")
    assert again.config == published.config
    assert all(
        torch.equal(a, b) for a, b in zip(again.state_dict().values(), published.state_dict().values(), strict=True)
    )


def test_epochs_are_steps_and_the_papers_sizes_need_a_length(monkeypatch):
    training = TrainingConfig(epochs=2.5, batch_size=4, accumulation=2)
    assert with_length(training, 100, "tiny", "").max_steps == 32  # 250 images, 8 a step
    monkeypatch.setenv("WORLD_SIZE", "4")
    assert with_length(training, 100, "sd15", "").max_steps == 8
    assert with_length(TrainingConfig(max_steps=7), 100, "sd15", "sd15_guide").max_steps == 7
    assert with_length(TrainingConfig(), 100, "tiny", "").max_steps == 24
    with pytest.raises(
        HybridTokenizerError, match=r"model=sd15 needs a length.* give recipe=sd15_guide, training\.epochs=N"
    ):
        with_length(TrainingConfig(), 100, "sd15", "sd15_guide")
    with pytest.raises(HybridTokenizerError, match=r"training\.epochs=0\.0 must be positive"):
        TrainingConfig(epochs=0.0)
    with pytest.raises(HybridTokenizerError, match=r"contrastive\.chunk_size=0 must be at least 1"):
        ContrastiveOptions(chunk_size=0)
