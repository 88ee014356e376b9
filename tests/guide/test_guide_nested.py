import pytest
import torch
import torch.nn.functional as F
from guide_models import build, images, small_config

from hybrid_tokenizer.errors import HybridTokenizerError
from hybrid_tokenizer.guide.tokenizer import prefix_lengths
from hybrid_tokenizer.quantizers import QuantizerConfig, vq_loss


def nested(kind: str = "vq", **changes):
    quantizer = QuantizerConfig(kind=kind, codebook_size=64, codebook_dim=4)
    return build(small_config(guide_scales=[2, 4, 8, 16], quantizer=quantizer, **changes))


def slow_nested_codes(features, codebook, sizes):
    """VAR's loop, one image, one position and one code at a time; returns the indices and the running sums."""
    total, sums, grids = torch.zeros_like(features), [], []
    for size in sizes:
        residual = F.interpolate((features - total).permute(2, 0, 1)[None], size=size, mode="area")[0].permute(1, 2, 0)
        grid = torch.zeros(size, dtype=torch.long)
        for y in range(size[0]):
            for x in range(size[1]):
                grid[y, x] = (codebook - residual[y, x]).square().sum(1).argmin()
        codes = codebook[grid].permute(2, 0, 1)[None]
        up = F.interpolate(codes, size=features.shape[:2], mode="bicubic")[0].permute(1, 2, 0)
        total = total + up
        sums.append(total)
        grids.append(grid)
    return grids, sums


def test_matches_a_slow_loop():
    tokenizer = nested()
    batch = images(2, 64, 48)
    grids = tokenizer.encode(batch)
    assert [tuple(grid.shape) for grid in grids] == [(2, 2, 2), (2, 4, 3), (2, 8, 6), (2, 16, 12)]
    with torch.no_grad():
        features = tokenizer.features(batch)
        for image in range(2):
            slow, sums = slow_nested_codes(
                features[image], tokenizer.quantizer.embedding.weight, [g.shape[1:] for g in grids]
            )
            for mine, theirs in zip(grids, slow, strict=True):
                assert torch.equal(mine[image], theirs)
            for keep in (1, 2, 3, 4):
                prefix = tuple(grid[image : image + 1] for grid in grids[:keep])
                decoded = tokenizer.decode(prefix, grid_size=(16, 12))
                torch.testing.assert_close(decoded, tokenizer.decode_quantized(sums[keep - 1][None]), rtol=0, atol=2e-5)


def test_prefixes_are_prefixes_and_decode_at_the_full_size():
    tokenizer = nested()
    batch = images(1, 64, 64)
    full = tokenizer.encode(batch)
    assert tokenizer.num_tokens(full) == 340
    for keep in (1, 2, 3, 4):
        prefix = tokenizer.encode(batch, guide_scales=keep)
        assert len(prefix) == keep
        assert all(torch.equal(a, b) for a, b in zip(prefix, full[:keep], strict=True))
        assert tokenizer.decode(prefix).shape == (1, 3, 64, 64)


def test_forward_agrees_with_the_indices():
    tokenizer = nested()
    batch = images(2, 64, 48)
    with torch.no_grad():
        output = tokenizer(batch)
    grids = tokenizer.encode(batch)
    assert all(torch.equal(a, b) for a, b in zip(grids, output.indices, strict=True))
    torch.testing.assert_close(tokenizer.decode(grids), output.guide_images, rtol=0, atol=2e-5)


def test_more_scales_come_nearer_to_the_features():
    tokenizer = nested("ema").train()
    batch = images(4, 64, 64)
    with torch.no_grad():
        for _ in range(20):
            tokenizer(batch)
        tokenizer.eval()
        features = tokenizer.features(batch)
        total, errors = torch.zeros_like(features), []
        for scale, (_, indices) in enumerate(tokenizer._residual_scales(features)):
            total = total + tokenizer.to_full_grid(tokenizer.quantizer.codes(indices), (16, 16), scale)
            errors.append((features - total).square().mean().item())
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 0.25 * errors[0]


@pytest.mark.parametrize("cosine", [False, True])
def test_odd_grids_need_the_grid_size(cosine):
    tokenizer = nested(linear_path=True, scale_interpolation="cosine") if cosine else nested()
    batch = images(1, 52, 44)  # a 13 x 11 grid
    grids = tokenizer.encode(batch)
    assert tokenizer.decode(grids).shape == (1, 3, 52, 44)
    assert tokenizer.decode(grids[:2], grid_size=(13, 11)).shape == (1, 3, 52, 44)
    with pytest.raises(HybridTokenizerError, match="pass grid_size"):
        tokenizer.decode(grids[:1], grid_size=(40, 40))


def test_prefix_dropout_only_in_training_and_by_the_generator():
    tokenizer = nested(prefix_dropout=1.0)
    batch = images(2, 64, 64)
    with torch.no_grad():
        full = tokenizer(batch).guide_images
        tokenizer.train()
        first = tokenizer(batch, torch.Generator().manual_seed(5)).guide_images
        again = tokenizer(batch, torch.Generator().manual_seed(5)).guide_images
    assert torch.equal(first, again)
    assert not torch.allclose(first, full, atol=1e-3)


def test_prefix_lengths_cover_all_scales():
    generator = torch.Generator().manual_seed(0)
    lengths = prefix_lengths(4000, 4, 0.5, generator)
    assert (lengths == 4).double().mean().item() == pytest.approx(0.5, abs=0.03)
    for kept in (1, 2, 3):
        assert (lengths == kept).double().mean().item() == pytest.approx(1 / 6, abs=0.03)
    assert prefix_lengths(5, 4, 0.0, generator).tolist() == [4] * 5


@pytest.mark.parametrize("kind", ["vq", "ema", "simvq"])
def test_gradients_reach_the_encoder_straight_through(kind):
    tokenizer = nested(kind).train()
    output = tokenizer(images(2, 64, 48))
    assert output.quantized.indices.shape == (2, 16, 12)
    (output.guide_images.square().mean() + vq_loss(output.quantized, tokenizer.config.quantizer)).backward()
    assert tokenizer.encoder.conv_in.weight.grad.abs().sum() > 0
    if kind == "vq":
        assert tokenizer.quantizer.embedding.weight.grad.abs().sum() > 0
