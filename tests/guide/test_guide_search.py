import pytest
import torch
from guide_models import build, images, small_config

from hybrid_tokenizer.errors import HybridTokenizerError
from hybrid_tokenizer.guide.losses import recon_losses


@pytest.fixture(params=[None, [1, 2, 4, 8]], ids=["one size", "nested"])
def guide(request):
    return build(small_config(guide_scales=request.param))


def loss(guide, grids, photographs):
    return recon_losses(guide.decode(grids), photographs)


def test_search_lowers_the_loss_of_each_image_or_keeps_its_codes(guide):
    photographs = images(3, 32, 32)
    own, found = guide.encode(photographs), guide.encode(photographs, search_steps=6)
    assert [grid.shape for grid in found] == [grid.shape for grid in own]
    before, after = loss(guide, own, photographs), loss(guide, found, photographs)
    assert (after <= before + 1e-6).all() and after.mean() < 0.999 * before.mean()


def test_steps_that_lead_away_leave_the_encoders_own_codes(guide):
    photographs, calls = images(2, 32, 32), []

    def worse_every_time(guide_images):
        calls.append(guide_images)
        return guide_images.mean((1, 2, 3)) + 10 * len(calls)

    own, found = guide.encode(photographs), guide.search(photographs, lambda rows: worse_every_time, 2)
    assert all(torch.equal(left, right) for left, right in zip(own, found, strict=True))
    assert len(calls) == 2 * 3  # an image at a time on a CPU; the encoder's own codes, and two steps


def test_an_image_is_searched_for_by_itself(guide):
    photographs = images(3, 32, 32)
    together = guide.encode(photographs, search_steps=3)
    alone = [guide.encode(photograph, search_steps=3) for photograph in photographs.split(1)]
    for scale, grid in enumerate(together):
        assert torch.equal(grid, torch.cat([grids[scale] for grids in alone]))


def test_the_loss_may_be_another_and_sees_its_own_rows(guide):
    photographs = images(3, 32, 32)
    seen = []

    def darkness_for(rows):
        def darkness(guide_images):
            seen.append((len(guide_images), len(photographs[rows])))
            return guide_images.mean((1, 2, 3))

        return darkness

    dark = guide.decode(guide.search(photographs, darkness_for, 5))
    assert dark.mean() < guide.decode(guide.encode(photographs)).mean() - 1e-3
    assert len(seen) == 3 * 6 and all(count == of_rows for count, of_rows in seen)


def test_search_leaves_the_weights_alone_and_needs_no_gradient_mode(guide):
    photographs = images(2, 32, 32)
    expected = guide.encode(photographs, search_steps=2)
    before = {name: value.clone() for name, value in guide.state_dict().items()}
    with torch.inference_mode():
        found = guide.encode(photographs, search_steps=2)
    assert all(torch.equal(left, right) for left, right in zip(expected, found, strict=True))
    assert all(weight.grad is None for weight in guide.parameters())
    assert all(torch.equal(value, before[name]) for name, value in guide.state_dict().items())


def test_a_prefix_is_searched_for_as_what_it_decodes_to():
    guide = build(small_config(guide_scales=[1, 2, 4, 8]))
    photographs = images(2, 32, 32)
    found = guide.encode(photographs, guide_scales=2, search_steps=6)
    assert len(found) == 2
    own = guide.encode(photographs, guide_scales=2)
    assert (
        recon_losses(guide.decode(found, (8, 8)), photographs).mean()
        < recon_losses(guide.decode(own, (8, 8)), photographs).mean()
    )


def test_a_negative_number_of_steps_is_refused(guide):
    with pytest.raises(HybridTokenizerError, match="search_steps=-1 must not be negative"):
        guide.encode(images(1, 32, 32), search_steps=-1)
