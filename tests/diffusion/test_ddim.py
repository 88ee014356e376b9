"""DDIM against diffusers' schedulers and against closed forms, in float64 (a round trip alone hides wrong settings)."""

import itertools
import math

import pytest
import torch
from diffusers import DDIMInverseScheduler, DDIMScheduler, UNet2DConditionModel

from hybrid_tokenizer.diffusion.config import VALID_NUM_INFERENCE_STEPS
from hybrid_tokenizer.diffusion.ddim import (
    ddim_denoise,
    ddim_invert,
    ddim_step,
    ddim_step_with_noise,
    leading_steps,
    linear_prediction,
    noise_levels,
    num_partial_steps,
    predict_noise,
    predict_original,
    q_sample,
    training_target,
)
from hybrid_tokenizer.diffusion.scheduler import PINNED, Schedule
from hybrid_tokenizer.errors import HybridTokenizerError

MEAN, STD = 0.3, 0.8  # the Gaussian world: its exact noise prediction is known in closed form


def diffusers_schedulers(prediction_type, num_inference_steps, dtype=torch.float64, **changes):
    """diffusers' pair from our dictionary, its fp32 levels cast like ours."""
    config = {**Schedule(prediction_type).diffusers_config, **changes}
    down = DDIMScheduler(**config)
    config.pop("thresholding")
    up = DDIMInverseScheduler(**config)
    for scheduler in (down, up):
        scheduler.alphas_cumprod = scheduler.alphas_cumprod.to(dtype)
        scheduler.set_timesteps(num_inference_steps)
    down.final_alpha_cumprod = down.alphas_cumprod[0]
    up.initial_alpha_cumprod = up.alphas_cumprod[0]
    return down, up


def relative(value, expected):
    return ((value - expected).norm() / expected.norm()).item()


def level(alpha):
    (only,) = noise_levels(torch.tensor([alpha], dtype=torch.float64))
    return only


def float64_steps(num_steps):
    return leading_steps(noise_levels(Schedule("epsilon").alphas_cumprod.double()), num_steps, PINNED["steps_offset"])


def gaussian_noise_pred(latents, level):
    return level.noise * (latents - level.signal * MEAN) / variance(level)


def variance(level):
    return level.alpha * STD**2 + 1 - level.alpha


def gaussian_predictor(prediction_type="epsilon"):
    """What a perfect model returns, converted back the way the decoder converts it."""

    def predict(latents, step):
        noise = gaussian_noise_pred(latents, step.noisier)
        if prediction_type == "epsilon":
            return predict_noise(noise, latents, step.noisier, prediction_type)
        return predict_noise(v_of(noise, latents, step.noisier), latents, step.noisier, prediction_type)

    return predict


def v_of(noise, latents, level):
    clean = (latents - level.noise * noise) / level.signal
    return level.signal * noise - level.noise * clean


@pytest.fixture
def gaussian_latents():
    generator = torch.Generator().manual_seed(0)
    return MEAN + STD * torch.randn(64, 4, 24, 16, dtype=torch.float64, generator=generator)


def there_and_back(latents, num_steps, strength=1.0, prediction_type="epsilon", num_fixed_point_iterations=0):
    steps = float64_steps(num_steps)[: num_partial_steps(num_steps, strength)]
    predict = gaussian_predictor(prediction_type)
    noisy = ddim_invert(latents, steps, predict, num_fixed_point_iterations)
    return noisy, ddim_denoise(noisy, reversed(steps), predict)


def tiny_unet(dtype=torch.float64):
    torch.manual_seed(0)
    return UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(8, 16),
        norm_num_groups=4,
        layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=12,
        attention_head_dim=2,
    ).to(dtype)


# T1: steps
@pytest.mark.parametrize("spacing", ["leading", "trailing"])
@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
@torch.no_grad()
def test_steps_equal_diffusers_in_both_directions(prediction_type, spacing):
    unet = tiny_unet()
    latents = torch.randn(2, 4, 8, 6, dtype=torch.float64)
    embeds = torch.randn(2, 5, 12, dtype=torch.float64)
    down, up = diffusers_schedulers(prediction_type, 50, timestep_spacing=spacing)
    levels = noise_levels(Schedule(prediction_type).alphas_cumprod.double())
    for timestep in up.timesteps.tolist():
        low, high = levels[max(timestep - 20, 0)], levels[timestep]
        output = unet(latents, timestep, encoder_hidden_states=embeds).sample

        expected = up.step(output, timestep, latents).prev_sample
        # diffusers converts v at the latents' own level; ours, tested below, at the level of the call
        noise = predict_noise(output, latents, low, prediction_type)
        assert relative(ddim_step(latents, noise, low, high), expected) < 1e-12

        expected = down.step(output, timestep, latents).prev_sample
        noise = predict_noise(output, latents, high, prediction_type)
        assert relative(ddim_step(latents, noise, high, low), expected) < 1e-12


def test_levels_are_diffusers_own_and_fp32_steps_agree():
    down, up = diffusers_schedulers("epsilon", 50, dtype=torch.float32)
    schedule = Schedule("epsilon")
    assert torch.equal(down.alphas_cumprod, schedule.alphas_cumprod)
    latents, noise = torch.randn(2, 4, 8, 6), torch.randn(2, 4, 8, 6)
    for step in schedule.steps(50):
        ours = ddim_step(latents, noise, step.cleaner, step.noisier)
        assert relative(ours, up.step(noise, step.timestep, latents).prev_sample) < 1e-6
        ours = ddim_step(latents, noise, step.noisier, step.cleaner)
        assert relative(ours, down.step(noise, step.timestep, latents).prev_sample) < 1e-6


@pytest.mark.parametrize("eta", [0.3, 1.0])
def test_eta_equals_diffusers(eta):
    down, _ = diffusers_schedulers("epsilon", 20)
    latents, noise, fresh = (torch.randn(2, 4, 8, 6, dtype=torch.float64) for _ in range(3))
    for step in float64_steps(20):
        expected = down.step(noise, step.timestep, latents, eta=eta, variance_noise=fresh).prev_sample
        ours = ddim_step_with_noise(latents, noise, step.noisier, step.cleaner, eta, fresh)
        assert relative(ours, expected) < 1e-9  # diffusers' own order of operations loses a few digits


def test_step_undoes_itself_when_noise_is_constant():
    latents, noise = torch.randn(2, 4, 8, 6), torch.randn(2, 4, 8, 6)
    torch.testing.assert_close(
        ddim_step(ddim_step(latents, noise, level(0.9), level(0.5)), noise, level(0.5), level(0.9)),
        latents,
        rtol=1e-4,
        atol=1e-5,
    )


# T2: timesteps
def test_timesteps_are_pinned():
    assert [step.timestep for step in Schedule("epsilon").steps(50)] == list(range(1, 1000, 20))


@pytest.mark.parametrize("num_steps", VALID_NUM_INFERENCE_STEPS)
def test_both_directions_visit_diffusers_timesteps_for_every_partial_inversion(num_steps):
    down, up = diffusers_schedulers("epsilon", num_steps)
    timesteps = torch.tensor([step.timestep for step in Schedule("epsilon").steps(num_steps)])
    for k in range(num_steps + 1):
        assert torch.equal(timesteps[:k], up.timesteps[:k])
        assert torch.equal(timesteps[:k].flip(0), down.timesteps[num_steps - k :])


@pytest.mark.parametrize("num_steps", [10, 20, 25, 40, 50, 100])
def test_every_strength_gives_its_own_number_of_steps(num_steps):
    assert [num_partial_steps(num_steps, k / num_steps) for k in range(num_steps + 1)] == list(range(num_steps + 1))
    assert num_partial_steps(50, 0.29 + 0.29) == 29 and num_partial_steps(50, 0.019) == 0


# T3: the Gaussian world
@pytest.mark.parametrize(
    ("num_steps", "arrival_error", "round_trip_error"),
    [(10, 0.106, 0.0827), (20, 0.060, 0.0422), (50, 0.0265, 0.0174), (100, 0.0138, 0.0088)],
)
@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
def test_inversion_reaches_the_closed_form(
    gaussian_latents, num_steps, arrival_error, round_trip_error, prediction_type
):
    noisy, back = there_and_back(gaussian_latents, num_steps, prediction_type=prediction_type)
    steps = float64_steps(num_steps)
    start, end = steps[0].cleaner, steps[-1].noisier
    stretch = math.sqrt(variance(end) / variance(start))
    exact = end.signal * MEAN + stretch * (gaussian_latents - start.signal * MEAN)
    assert (noisy - exact).square().mean().sqrt().item() == pytest.approx(arrival_error, rel=0.1)
    error = relative(back, gaussian_latents)
    assert error == pytest.approx(round_trip_error, rel=0.1)
    assert 0.80 <= error * num_steps <= 0.92  # first order
    if num_steps == 50:
        assert noisy.std().item() == pytest.approx(1.028, abs=0.01)


def test_the_wrong_prediction_type_hides_from_the_round_trip_but_not_from_the_arrival(gaussian_latents):
    steps = float64_steps(50)

    def v_read_as_noise(latents, step):
        return v_of(gaussian_noise_pred(latents, step.noisier), latents, step.noisier)

    noisy = ddim_invert(gaussian_latents, steps, v_read_as_noise)
    back = ddim_denoise(noisy, reversed(steps), v_read_as_noise)
    assert relative(back, gaussian_latents) < 0.03
    assert noisy.std().item() < 0.2


@pytest.mark.parametrize(("strength", "expected"), [(0.2, 0.0018), (0.4, 0.0053), (0.6, 0.0099), (0.8, 0.0142)])
def test_partial_round_trip(gaussian_latents, strength, expected):
    _, back = there_and_back(gaussian_latents, 50, strength)
    assert relative(back, gaussian_latents) == pytest.approx(expected, rel=0.1)


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
def test_partial_inversion_at_every_k(gaussian_latents, prediction_type):
    """Each k arrives at its own noise level's spread, and a longer way costs more."""
    errors = []
    steps = float64_steps(50)
    for k in range(1, 51):
        noisy, back = there_and_back(gaussian_latents[:8], 50, k / 50, prediction_type)
        expected = math.sqrt(variance(steps[k - 1].noisier) / variance(steps[0].cleaner))
        assert (noisy.std() / gaussian_latents[:8].std()).item() == pytest.approx(expected, rel=0.04)
        errors.append(relative(back, gaussian_latents[:8]))
    assert errors == sorted(errors) and errors[0] < 1e-3


# T4: fixed point
@pytest.mark.parametrize(("num_steps", "tolerance"), [(50, 1e-5), (100, 1e-6)])
def test_fixed_point_iterations_make_inversion_exact(gaussian_latents, num_steps, tolerance):
    _, back = there_and_back(gaussian_latents, num_steps, num_fixed_point_iterations=3)
    assert relative(back, gaussian_latents) < tolerance


@torch.no_grad()
def test_fixed_point_on_a_unet():
    unet = tiny_unet()
    embeds = torch.randn(2, 5, 12, dtype=torch.float64)
    latents = torch.randn(2, 4, 8, 6, dtype=torch.float64)

    def predict(latents, step):
        return unet(latents, step.timestep, encoder_hidden_states=embeds).sample

    steps = float64_steps(50)[:25]
    plain = ddim_denoise(ddim_invert(latents, steps, predict), reversed(steps), predict)
    refined = ddim_denoise(ddim_invert(latents, steps, predict, 10), reversed(steps), predict)
    assert relative(refined, latents) < 1e-6 < relative(plain, latents)


# T5: eq. 9 as printed, a labelled negative: nothing in the package uses it
def eq9_step(latents, noise_pred, alpha):
    """The paper's eq. 9, z_t = sqrt(alpha_t) z_{t-1} + sqrt(1 - alpha_t) eps: DDPM's forward step, whose noise has to be
    fresh. A predicted noise is coherent from step to step and overshoots."""
    return math.sqrt(alpha) * latents + math.sqrt(1 - alpha) * noise_pred


def noise_coefficient(step_function, num_steps):
    """How much of a constant noise has arrived at the end, from a clean start."""
    trailing = Schedule("epsilon").alphas_cumprod.double()[1000 // num_steps - 1 :: 1000 // num_steps]
    levels = [level(1.0), *noise_levels(trailing)]
    latents, noise = torch.zeros(1, 1, 1, 1, dtype=torch.float64), torch.ones(1, 1, 1, 1, dtype=torch.float64)
    for low, high in itertools.pairwise(levels):
        latents = step_function(latents, noise, low, high)
    return latents.item()


@pytest.mark.parametrize(
    ("num_steps", "eq9_expected"), [(1, 0.9977), (2, 1.1017), (10, 2.034), (50, 4.496), (1000, 20.09)]
)
def test_eq9_as_printed_overshoots_unless_it_is_one_step(num_steps, eq9_expected):
    eq9 = noise_coefficient(lambda z, n, low, high: eq9_step(z, n, high.alpha / low.alpha), num_steps)
    assert eq9 == pytest.approx(eq9_expected, abs=5e-4 if num_steps < 1000 else 5e-3)
    assert noise_coefficient(ddim_step, num_steps) == pytest.approx(0.9977, abs=1e-4)


# training
@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
def test_training_pair_equals_diffusers_and_converts_back(prediction_type):
    schedule = Schedule(prediction_type)
    scheduler = DDIMScheduler(**schedule.diffusers_config)
    latents, noise, timesteps = torch.randn(3, 4, 8, 6), torch.randn(3, 4, 8, 6), torch.tensor([0, 500, 999])
    alphas = schedule.alphas_cumprod[timesteps]
    noisy = q_sample(latents, noise, alphas)
    torch.testing.assert_close(noisy, scheduler.add_noise(latents, noise, timesteps))
    target = training_target(latents, noise, alphas, prediction_type)
    if prediction_type == "v_prediction":
        torch.testing.assert_close(target, scheduler.get_velocity(latents, noise, timesteps))
    for i, own_level in enumerate(noise_levels(alphas)):
        recovered = predict_noise(target[i : i + 1], noisy[i : i + 1], own_level, prediction_type)
        torch.testing.assert_close(recovered, noise[i : i + 1], atol=1e-5, rtol=1e-5)
    # fp32 loses what noise of 0.9953 of the power leaves of the image: 1e-7 / 0.0047 ** 0.5 and some operations
    torch.testing.assert_close(predict_original(target, noisy, alphas, prediction_type), latents, atol=1e-4, rtol=0)


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
def test_the_linear_estimate_is_the_best_one_where_latents_are_the_guide_plus_noise(prediction_type):
    """Where clean latents are the guide plus normal differences, no multiple of the observed difference does better."""
    generator = torch.Generator().manual_seed(0)
    guide = torch.randn(64, 2, 16, 16, generator=generator)
    variance = torch.tensor([0.3, 0.02]).view(1, 2, 1, 1)
    clean = guide + variance.sqrt() * torch.randn(guide.shape, generator=generator)
    alphas = torch.linspace(0.05, 0.99, 64)
    noisy = q_sample(clean, torch.randn(guide.shape, generator=generator), alphas)
    output = linear_prediction(noisy, guide, variance, alphas, prediction_type)
    estimate = predict_original(output, noisy, alphas, prediction_type)
    observed = noisy - alphas.sqrt().view(-1, 1, 1, 1) * guide
    error = (estimate - clean).square().mean((0, 2, 3))
    assert (error < variance.flatten()).all()  # the guide alone
    for step in (0.05, -0.05):
        assert (error < (estimate + step * observed - clean).square().mean((0, 2, 3))).all()
    nothing = linear_prediction(noisy, torch.zeros_like(guide), torch.ones_like(variance), alphas, "v_prediction")
    assert nothing.abs().max() < 1e-4


# refusals
@pytest.mark.parametrize("num_steps", [0, -4, 3, 30, 64, 1000, 2000])
def test_steps_that_do_not_divide_are_refused_with_the_nearest(num_steps):
    with pytest.raises(HybridTokenizerError, match=f"num_inference_steps is {num_steps}.*nearest is \\d+") as error:
        Schedule("epsilon").steps(num_steps)
    assert "\n" not in str(error.value)
    if num_steps == 30:
        assert "25 or 40" in str(error.value)


def test_unknown_prediction_type_is_refused():
    with pytest.raises(HybridTokenizerError, match=r"'sample'.*epsilon, v_prediction"):
        Schedule("sample")
