import pytest
import torch

from hybrid_tokenizer.errors import HybridTokenizerError
from hybrid_tokenizer.guide import DiscriminatorConfig, PatchDiscriminator
from hybrid_tokenizer.guide.losses import (
    adaptive_weight,
    adversarial_factor,
    adversarial_loss,
    discriminator_loss,
    guide_target,
    perceptual_loss,
    recon_loss,
)


def test_recon_loss_is_the_mean_over_the_guides_pixels():
    image = torch.rand(2, 3, 16, 24) * 2 - 1
    guide = torch.rand(2, 3, 4, 6) * 2 - 1
    blocks = image.reshape(2, 3, 4, 4, 6, 4).mean(dim=(3, 5))
    target = guide_target(image, (4, 6))
    torch.testing.assert_close(target, blocks)
    expected = ((guide - blocks) ** 2).sum() / (2 * 3 * 4 * 6)
    torch.testing.assert_close(recon_loss(guide, target), expected)
    assert recon_loss(target, target) == 0


def test_perceptual_loss_rests_on_small_guides():
    def distance(a, b):
        return (a - b).abs().mean(dim=(1, 2, 3))

    small, large = torch.rand(2, 3, 32, 48), torch.rand(2, 3, 64, 96)
    assert perceptual_loss(small, small + 1, distance) == 0
    torch.testing.assert_close(perceptual_loss(small, small + 1, distance, smallest_side=32), torch.tensor(1.0))
    torch.testing.assert_close(perceptual_loss(large, large + 1, distance), torch.tensor(1.0))


def test_hinge_losses():
    assert discriminator_loss(torch.tensor([1.0, 2.0]), torch.tensor([-1.0, -3.0])) == 0
    assert discriminator_loss(torch.zeros(3), torch.zeros(5)) == 1
    assert adversarial_loss(torch.tensor([1.0, 3.0])) == -2
    assert [adversarial_factor(step, 10) for step in (0, 9, 10, 11)] == [0, 0, 1, 1]


def test_adaptive_weight_balances_the_gradients():
    weight = torch.tensor([1.0, 2.0], requires_grad=True)
    rest, adversarial = (3 * weight).sum(), (0.5 * weight).sum()
    balance = adaptive_weight(rest, adversarial, weight)
    assert balance.item() == pytest.approx(6, rel=1e-3)
    assert not balance.requires_grad
    assert adaptive_weight((1e9 * weight).sum(), 0.0 * adversarial, weight) == 1e4
    (rest + adversarial).backward()  # the graph is still there


def test_discriminator_logits_and_smallest_side():
    config = DiscriminatorConfig(channels=8, layers=2)
    discriminator = PatchDiscriminator(config)
    assert discriminator(torch.randn(2, 3, 32, 48)).shape == (2, 1, 6, 10)
    assert discriminator(torch.randn(2, 3, config.smallest_side, 48)).numel() > 0
    with pytest.raises(HybridTokenizerError, match="8 px are too small for 2 discriminator layers, which need 12"):
        discriminator(torch.randn(2, 3, 8, 48))


def test_the_discriminator_learns_to_tell_apart():
    torch.manual_seed(0)
    discriminator = PatchDiscriminator(DiscriminatorConfig(channels=8, layers=2))
    optimizer = torch.optim.Adam(discriminator.parameters(), lr=2e-3)
    for _ in range(30):
        real, fake = torch.randn(8, 3, 16, 24), 0.3 * torch.randn(8, 3, 16, 24)
        loss = discriminator_loss(discriminator(real), discriminator(fake))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss < 0.5
