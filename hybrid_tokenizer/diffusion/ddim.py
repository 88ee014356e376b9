"""DDIM as pure functions: noise levels, steps in both directions, and training targets. No model, no library.

A noise level is its cumulative signal power, alpha-bar in DDPM and `alphas_cumprod` here: 1 is clean, 0 is noise. Steps
take levels as Python floats, so that a step on a GPU neither copies a constant nor waits for one.
"""

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor

from hybrid_tokenizer.diffusion.config import unknown_prediction_type


def scaled_linear_alphas_cumprod(
    num_train_timesteps: int, beta_start: float, beta_end: float
) -> Float[Tensor, "num_train_timesteps"]:
    """Stable Diffusion's noise levels: betas linear in their square root. In fp32, as the models were trained with."""
    betas = torch.linspace(beta_start**0.5, beta_end**0.5, num_train_timesteps, dtype=torch.float32) ** 2
    return torch.cumprod(1 - betas, dim=0)


class Level(NamedTuple):
    """Latents at a level are `signal` times clean ones plus `noise` times standard normal noise.

    signal = sqrt(alpha), noise = sqrt(1 - alpha).
    """

    alpha: float
    signal: float
    noise: float


def noise_levels(alphas_cumprod: Float[Tensor, "n"]) -> list[Level]:
    """The roots are taken in the tensor's precision, so that fp32 levels give diffusers' coefficients to the bit."""
    roots = (alphas_cumprod, alphas_cumprod.sqrt(), (1 - alphas_cumprod).sqrt())
    return [Level(*values) for values in zip(*(root.tolist() for root in roots), strict=True)]


@dataclass(frozen=True)
class Step:
    """One interval of the schedule. Inversion goes from `cleaner` to `noisier`, denoising goes back.

    Both call the model with `timestep`, that of the noisier end, which makes them each other's inverse.
    """

    index: int
    timestep: int
    cleaner: Level
    noisier: Level


def leading_steps(levels: list[Level], num_inference_steps: int, offset: int) -> tuple[Step, ...]:
    """All intervals, cleanest first: timesteps offset, offset + ratio, ... ("leading" spacing).

    The cleanest interval ends at levels[0], which the model saw in training, not at alpha 1 (`set_alpha_to_one=False`).
    """
    ratio = len(levels) // num_inference_steps
    timesteps = range(offset, offset + num_inference_steps * ratio, ratio)
    return tuple(Step(i, t, levels[max(t - ratio, 0)], levels[t]) for i, t in enumerate(timesteps))


def num_partial_steps(num_inference_steps: int, strength: float) -> int:
    """How many of the steps a strength covers. The small term keeps 50 * 0.58 at 29, where plain int() gives 28."""
    return int(num_inference_steps * strength + 1e-6)


def predict_noise(
    model_output: Float[Tensor, "b c h w"], latents: Float[Tensor, "b c h w"], level: Level, prediction_type: str
) -> Float[Tensor, "b c h w"]:
    """The predicted noise from what the model returned for `latents`.

    `level` belongs to the timestep that the model was called with. In inversion that is the noisier end although the latents
    are at the cleaner one; converting at the latents' own level has three times the error.
    """
    if prediction_type == "epsilon":
        return model_output
    if prediction_type == "v_prediction":  # v is level.signal * noise - level.noise * clean latents
        return level.signal * model_output + level.noise * latents
    raise unknown_prediction_type(prediction_type)


def ddim_step(
    latents: Float[Tensor, "b c h w"], noise_pred: Float[Tensor, "b c h w"], source: Level, target: Level
) -> Float[Tensor, "b c h w"]:
    """The deterministic DDIM step, in either direction (DDIM eq. 12 with sigma 0):

    z_t = sqrt(a_t / a_s) z_s + [ sqrt(1 - a_t) - sqrt(a_t / a_s) sqrt(1 - a_s) ] noise, for source s and target t.

    Computed as "clean latents, then noise again", in diffusers' order of operations, so that fp32 agrees to the bit.
    """
    clean = (latents - source.noise * noise_pred) / source.signal
    return target.signal * clean + target.noise * noise_pred


def ddim_step_with_noise(
    latents: Float[Tensor, "b c h w"],
    noise_pred: Float[Tensor, "b c h w"],
    source: Level,
    target: Level,
    eta: float,
    fresh_noise: Float[Tensor, "b c h w"],
) -> Float[Tensor, "b c h w"]:
    """The denoising step that replaces a share of the predicted noise by fresh noise (DDIM eqs. 12 and 16).

    eta 0 is `ddim_step`, eta 1 is DDPM's ancestral step. This is the paper's "residual noise" of eq. 10.
    """
    variance = (1 - target.alpha) / (1 - source.alpha) * (1 - source.alpha / target.alpha)
    sigma = eta * math.sqrt(variance)
    clean = (latents - source.noise * noise_pred) / source.signal
    direction = math.sqrt(max(1 - target.alpha - sigma**2, 0.0))
    return target.signal * clean + direction * noise_pred + sigma * fresh_noise


NoisePredictor = Callable[[Float[Tensor, "b c h w"], Step], Float[Tensor, "b c h w"]]
"""(latents, step) -> predicted noise, the model being called with step.timestep."""


def ddim_invert(
    latents: Float[Tensor, "b c h w"],
    steps: Iterable[Step],
    noise_predictor: NoisePredictor,
    num_fixed_point_iterations: int = 0,
) -> Float[Tensor, "b c h w"]:
    """Clean latents to the noisy end of the last of `steps` (cleanest first).

    The exact inverse of a denoising step needs the noise predicted at its result, which is not known yet; plain inversion
    predicts it at the step's start. Each fixed-point iteration predicts it again at the result so far, for one more model
    call per step.
    """
    for step in steps:
        arrival = latents
        for _ in range(1 + num_fixed_point_iterations):
            noise_pred = noise_predictor(arrival, step)
            arrival = ddim_step(latents, noise_pred, step.cleaner, step.noisier)
        latents = arrival
    return latents


def ddim_denoise(
    latents: Float[Tensor, "b c h w"],
    steps: Iterable[Step],
    noise_predictor: NoisePredictor,
    eta: float = 0.0,
    fresh_noise: Iterator[Float[Tensor, "b c h w"]] | None = None,
) -> Float[Tensor, "b c h w"]:
    """Noisy latents to clean ones through `steps` (noisiest first). `fresh_noise` yields one tensor per step, for eta > 0."""
    for step in steps:
        noise_pred = noise_predictor(latents, step)
        if fresh_noise is None:
            latents = ddim_step(latents, noise_pred, step.noisier, step.cleaner)
        else:
            latents = ddim_step_with_noise(latents, noise_pred, step.noisier, step.cleaner, eta, next(fresh_noise))
    return latents


def q_sample(
    latents: Float[Tensor, "b c h w"], noise: Float[Tensor, "b c h w"], alphas: Float[Tensor, "b"]
) -> Float[Tensor, "b c h w"]:
    """Clean latents with noise at one level per image: sqrt(a) z_0 + sqrt(1 - a) noise."""
    alphas = rearrange(alphas.to(latents), "b -> b 1 1 1")
    return alphas.sqrt() * latents + (1 - alphas).sqrt() * noise


def training_target(
    latents: Float[Tensor, "b c h w"],
    noise: Float[Tensor, "b c h w"],
    alphas: Float[Tensor, "b"],
    prediction_type: str,
) -> Float[Tensor, "b c h w"]:
    """What the U-Net should return for `q_sample(latents, noise, alphas)`: the noise, or v."""
    if prediction_type == "epsilon":
        return noise
    if prediction_type == "v_prediction":
        alphas = rearrange(alphas.to(latents), "b -> b 1 1 1")
        return alphas.sqrt() * noise - (1 - alphas).sqrt() * latents
    raise unknown_prediction_type(prediction_type)


def predict_original(
    model_output: Float[Tensor, "b c h w"],
    latents: Float[Tensor, "b c h w"],
    alphas: Float[Tensor, "b"],
    prediction_type: str,
) -> Float[Tensor, "b c h w"]:
    """The predicted clean latents, at one level per image: the inverse of `training_target`."""
    alphas = rearrange(alphas.to(latents), "b -> b 1 1 1")
    if prediction_type == "epsilon":
        return (latents - (1 - alphas).sqrt() * model_output) / alphas.sqrt()
    if prediction_type == "v_prediction":
        return alphas.sqrt() * latents - (1 - alphas).sqrt() * model_output
    raise unknown_prediction_type(prediction_type)


def linear_prediction(
    noisy: Float[Tensor, "b c h w"],
    guide_latents: Float[Tensor, "b c h w"],
    variance: Float[Tensor, "_ c 1 1"],
    alphas: Float[Tensor, "b"],
    prediction_type: str,
) -> Float[Tensor, "b c h w"]:
    """The model output of the best linear estimate of the clean latents, per channel.

    The estimate models clean latents as the guide's plus a normal difference of `variance`. It moves from the guide towards
    noisy / sqrt(a) by the expected share of signal in the observed difference. With a guide of zeros and variance 1 its v is
    0, so that without a guide the network's output alone counts.
    """
    alphas = rearrange(alphas.to(noisy), "b -> b 1 1 1")
    signal = alphas.sqrt()
    trust = signal * variance / (alphas * variance + 1 - alphas)
    clean = guide_latents + trust * (noisy - signal * guide_latents)
    noise = (noisy - signal * clean) / (1 - alphas).sqrt()
    if prediction_type == "epsilon":
        return noise
    if prediction_type == "v_prediction":
        return signal * noise - (1 - alphas).sqrt() * clean
    raise unknown_prediction_type(prediction_type)
