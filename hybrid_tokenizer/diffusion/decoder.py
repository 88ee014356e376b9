"""DiffusionDecoder, Branch III: guide image and generation embeddings to an image."""

import dataclasses
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Unpack

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn
from tqdm import tqdm

from hybrid_tokenizer.checkpoints import hub
from hybrid_tokenizer.checkpoints.files import CONFIG_NAME, read_config, save_tensors, write_json
from hybrid_tokenizer.checkpoints.libraries import load_diffusers_model
from hybrid_tokenizer.devices import compile_in_place, count_parameters, on_device
from hybrid_tokenizer.diffusion.attention import decoding_attention
from hybrid_tokenizer.diffusion.config import DecodeOptions, DecodeOverrides, DiffusionConfig
from hybrid_tokenizer.diffusion.ddim import (
    NoisePredictor,
    Step,
    ddim_denoise,
    ddim_invert,
    linear_prediction,
    num_partial_steps,
    predict_noise,
    q_sample,
)
from hybrid_tokenizer.diffusion.few_step import fuse_lora, lcm_denoise, lcm_sampler
from hybrid_tokenizer.diffusion.pretrained import (
    HUB_PATTERNS,
    NULL_CONDITION_NAME,
    UNET_CLASS,
    check_computes,
    failure_explained,
    model_class,
    null_condition_of_text_encoder,
    plain_config,
    read_null_condition,
    save_model,
)
from hybrid_tokenizer.diffusion.sampling import batch_conditions, combine
from hybrid_tokenizer.diffusion.scheduler import Schedule, read_prediction_type, save_scheduler
from hybrid_tokenizer.errors import HybridTokenizerError
from hybrid_tokenizer.images import clamp_finite, in_chunks, resize_bicubic

TILE_ABOVE = 1024  # pixels per side; above it the VAE's activations outgrow a common GPU
Generators = torch.Generator | list[torch.Generator] | None


class DiffusionDecoder(nn.Module):
    """Branch III: a U-Net and a VAE in diffusers' form, the null condition, and the pinned schedule.

    Latents are fp32 whatever the dtype of the weights, so `.to(torch.bfloat16)` is safe: the schedule and the latent
    normalisation are Python numbers and are not cast.

    Args:
        config: sizes, latent normalisation, prediction type and the defaults of decoding.
        unet: None builds one from `config` with random weights.
        vae: None builds one from `config` with random weights.

    Examples:
        >>> diffusion = DiffusionDecoder.from_pretrained("stable-diffusion-v1-5/stable-diffusion-v1-5")
        >>> diffusion.decode(guide_images, generation_embeds, (256, 256), strength=0.6)
    """

    def __init__(self, config: DiffusionConfig, unet: nn.Module | None = None, vae: nn.Module | None = None):
        super().__init__()
        self.config = config
        self.unet = model_class(UNET_CLASS)(**config.unet) if unet is None else unet
        self.vae = model_class(config.vae_class)(**config.vae) if vae is None else vae
        self.schedule = Schedule(config.prediction_type)
        self.register_buffer("null_condition", torch.zeros(1, config.num_condition_tokens, config.cross_attention_dim))

    def __repr__(self) -> str:
        defaults = self.config.decode_defaults
        return (
            f"DiffusionDecoder({type(self.unet).__name__} and {type(self.vae).__name__}, {self.config.prediction_type}; "
            f"start={defaults.start!r}, strength={defaults.strength:g} of {defaults.num_inference_steps} steps; "
            f"{count_parameters(self)})"
        )

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.null_condition.device

    def set_null_condition(self, null_condition: Float[Tensor, "1 n d"]) -> None:
        """Set what the U-Net was trained to read as "no condition", for example CLIP's embedding of the empty prompt."""
        expected = (1, self.config.num_condition_tokens, self.config.cross_attention_dim)
        if tuple(null_condition.shape) != expected:
            raise HybridTokenizerError(
                f"the null condition has shape {tuple(null_condition.shape)}, expected {expected}; "
                "compute it with the text encoder that this U-Net was trained with"
            )
        self.null_condition.copy_(null_condition)

    def set_latent_scale(self, shift: list[float], scale: list[float]) -> None:
        """Normalise the VAE's output from now on: latents = (output - shift) * scale, one number or one per channel."""
        self.config = dataclasses.replace(self.config, latent_shift=list(shift), latent_scale=list(scale))

    def add_guide_conditioning(self) -> None:
        """Let the U-Net read the guide's latents too. The new input weights are zero, so at first nothing changes.

        In training, replace some guides by zeros: decoding without a guide feeds those.
        """
        if self.config.guide_conditioning:
            raise HybridTokenizerError("guide_conditioning is already True, expected False; add it once only")
        old = self.unet.conv_in
        new = nn.Conv2d(2 * old.in_channels, old.out_channels, old.kernel_size, old.stride, old.padding)
        new.to(old.weight.device, old.weight.dtype)
        with torch.no_grad():
            new.weight.zero_()
            new.weight[:, : old.in_channels].copy_(old.weight)
            new.bias.copy_(old.bias)
        self.unet.conv_in = new
        self.unet.register_to_config(in_channels=new.in_channels)
        unet = {**self.config.unet, "in_channels": new.in_channels}
        self.config = dataclasses.replace(self.config, unet=unet, guide_conditioning=True)

    def set_guide_residual(self, variance: list[float]) -> None:
        """From now on add the U-Net's output, zeroed at first, to the linear estimate. For an untrained U-Net."""
        self.config = dataclasses.replace(self.config, guide_residual=list(variance))
        nn.init.zeros_(self.unet.conv_out.weight)
        nn.init.zeros_(self.unet.conv_out.bias)

    def linear_part(
        self,
        noisy: Float[Tensor, "b c h w"],
        guide_latents: Float[Tensor, "b c h w"] | None,
        alphas: Float[Tensor, "b"],
    ) -> Float[Tensor, "b c h w"] | float:
        """What is added to the U-Net's output: 0 without `config.guide_residual`. All-zero latents mean no guide."""
        if self.config.guide_residual is None or guide_latents is None:
            return 0.0
        given = guide_latents.abs().amax((1, 2, 3), keepdim=True) > 0
        variance = on_device(self.config.guide_residual, torch.float32, noisy.device).view(1, -1, 1, 1)
        variance = torch.where(given, variance, torch.ones_like(variance))
        return linear_prediction(noisy, guide_latents, variance, alphas, self.config.prediction_type)

    def fuse_lora(self, path: str | Path, scale: float = 1.0) -> None:
        """Merge a LoRA into the U-Net, for example LCM-LoRA. Then decode with sampler="lcm" and about 4 steps."""
        fuse_lora(self.unet, path, scale)

    def enable_model_cpu_offload(self, device: torch.device | str = "cuda") -> None:
        """Keep U-Net and VAE in main memory and only the active one on `device`. Slower; for small GPUs."""
        from accelerate import cpu_offload_with_hook

        device = torch.device(device)
        self.to("cpu")
        self.null_condition = self.null_condition.to(device)
        _, vae_hook = cpu_offload_with_hook(self.vae, device)
        _, unet_hook = cpu_offload_with_hook(self.unet, device, prev_module_hook=vae_hook)
        vae_hook.hook.prev_module_hook = unet_hook

    def compile_unet(self, mode: str = "default", backend: str = "inductor") -> None:
        """`devices.compile_in_place` for the U-Net; `mode="max-autotune"` adds CUDA graphs."""
        compile_in_place(self.unet, mode, backend, fullgraph=True)

    def encode_latents(
        self, images: Float[Tensor, "b 3 H W"], chunk_size: int | None = None
    ) -> Float[Tensor, "b c h w"]:
        """Images in [-1, 1] to normalised latents in fp32: the mode of the VAE's distribution, nothing is sampled."""
        self._set_tiling(images.shape[-2:])
        dtype = next(self.vae.parameters()).dtype

        def encode(images: Tensor) -> Tensor:
            encoded = self.vae.encode(images.to(dtype))
            return (encoded.latents if hasattr(encoded, "latents") else encoded.latent_dist.mode()).float()

        latents = in_chunks(encode, images, chunk_size)
        shift, scale = self._latent_statistics(latents)
        return (latents - shift) * scale

    def decode_latents(
        self, latents: Float[Tensor, "b c h w"], chunk_size: int | None = None
    ) -> Float[Tensor, "b 3 H W"]:
        """Normalised latents to images in fp32. Not clamped."""
        factor = self.config.vae_factor
        self._set_tiling((latents.shape[-2] * factor, latents.shape[-1] * factor))
        dtype = next(self.vae.parameters()).dtype
        shift, scale = self._latent_statistics(latents)
        return in_chunks(lambda z: self.vae.decode(z.to(dtype)).sample.float(), latents / scale + shift, chunk_size)

    def decode(
        self,
        guide_images: Float[Tensor, "b 3 guide_h guide_w"] | None,
        generation_embeds: Float[Tensor, "_ n d"] | None,
        size: tuple[int, int],
        *,
        generator: torch.Generator | list[torch.Generator] | None = None,
        decode_chunk_size: int | None = None,
        progress: bool = False,
        differentiable: bool = False,
        **options: Unpack[DecodeOverrides],
    ) -> Float[Tensor, "b 3 H W"]:
        """Guide images and generation embeddings to images.

        Args:
            guide_images: any size, in [-1, 1]; resized (bicubic) to `size`. None starts from pure noise and takes all steps,
                whatever `start` and `strength` are.
            generation_embeds: shape (b, n, d) as the U-Net reads them. None stands for the null condition.
            size: (height, width) of the result, multiples of the VAE's factor.
            generator: one for the batch, or one per image. With one per image, results do not depend on the batch.
            decode_chunk_size: at most this many images go through U-Net and VAE at once. Bounds memory, not the result.
            progress: show a bar over the steps.
            differentiable: the result has a gradient; the activations of every step stay in memory for it.
            **options: replace `config.decode_defaults` for this call; see `DecodeOptions`.

        Returns:
            Images of `size` in fp32, clamped to [-1, 1]; NaN where the networks' output is not finite.

        Raises:
            HybridTokenizerError: an unknown option or a value outside its range, a size that is not a multiple of the VAE's
                factor, or embeddings of another shape than the U-Net reads.
        """
        chosen = self.config.decode_defaults.override(**options)
        batch_size = self._check_inputs(guide_images, generation_embeds, size, generator, decode_chunk_size)
        plan = self._plan(chosen, guide_images is not None, batch_size, size, generator, decode_chunk_size)
        condition, null = self._conditions(generation_embeds, batch_size)
        with (
            torch.set_grad_enabled(differentiable),
            tqdm(total=plan.num_unet_calls, disable=not progress, desc="decode", unit="step") as bar,
            decoding_attention(self.unet, fuse=next(self.unet.parameters()).device.type != "cpu"),
            failure_explained(self.unet, self.vae, self.config),
        ):
            guide_latents = None
            if guide_images is not None:
                guide = resize_bicubic(guide_images.to(self.device), size).clamp(-1, 1)
                guide_latents = self.encode_latents(guide, decode_chunk_size)
            predictor = partial(self._noise_predictor, plan, self._unet_guide(guide_latents, plan), bar)

            embeds = condition if chosen.inversion_condition == "generation" else null
            latents = self._start(plan, guide_latents, partial(predictor, embeds))
            # Without embeddings both halves of guidance would be the same call.
            guided = generation_embeds is not None and chosen.guidance_scale != 1
            latents = self._denoise(plan, latents, predictor(condition, null if guided else None))
            images = self.decode_latents(latents, decode_chunk_size)
            if tuple(images.shape[-2:]) != tuple(size):
                check_computes(self.unet, self.vae, self.config)
            return clamp_finite(images)

    def _plan(
        self,
        options: DecodeOptions,
        has_guide: bool,
        batch_size: int,
        size: tuple[int, int],
        generator: Generators,
        chunk_size: int | None,
    ) -> "_Plan":
        """Start, steps and sampler of one decode. Raises where this U-Net cannot start as asked."""
        start, strength = (options.start, options.strength) if has_guide else ("noise", 1.0)
        if start == "linear_estimate" and self.config.guide_residual is None:
            raise HybridTokenizerError(
                "start is 'linear_estimate', but this U-Net has no linear estimate of its guide (guide_residual is null); "
                "use start='ddim_inversion' or 'add_noise'"
            )
        lcm = None
        if options.sampler == "lcm" and strength > 0:
            lcm, steps = lcm_sampler(self.schedule, options.num_inference_steps, strength, self.device)
        else:
            steps = self.schedule.steps(options.num_inference_steps)
            steps = steps[: num_partial_steps(options.num_inference_steps, strength)]
        height, width = (side // self.config.vae_factor for side in size)
        shape = (batch_size, self.config.latent_channels, height, width)
        return _Plan(options, start, steps, lcm, shape, generator, self.device, chunk_size)

    def _conditions(self, generation_embeds: Tensor | None, batch_size: int) -> tuple[Tensor, Tensor]:
        """The condition of each image, and the null condition, as the U-Net reads them."""
        dtype = next(self.unet.parameters()).dtype
        null = self.null_condition.to(dtype).expand(batch_size, -1, -1)
        return (null if generation_embeds is None else generation_embeds.to(self.device, dtype)), null

    def _unet_guide(self, guide_latents: Tensor | None, plan: "_Plan") -> Tensor | None:
        """The guide's latents for a U-Net that reads them: zeros where there is no guide."""
        if not self.config.guide_conditioning:
            return None
        return torch.zeros(plan.shape, device=self.device) if guide_latents is None else guide_latents

    def _start(
        self, plan: "_Plan", guide_latents: Tensor | None, inversion_predictor: Callable[[], NoisePredictor]
    ) -> Tensor:
        """Latents at the noisiest level of the plan."""
        if guide_latents is None:
            return plan.draw_noise()
        if not plan.steps:
            return guide_latents
        noisiest = plan.steps[-1].noisier
        if plan.start == "linear_estimate":
            return guide_latents * noisiest.signal
        if plan.start == "add_noise":
            alphas = torch.full((len(guide_latents),), noisiest.alpha, device=self.device)
            return q_sample(guide_latents, plan.draw_noise(), alphas)
        return ddim_invert(guide_latents, plan.steps, inversion_predictor(), plan.options.num_fixed_point_iterations)

    def _denoise(self, plan: "_Plan", latents: Tensor, predictor: NoisePredictor) -> Tensor:
        """Clean latents from those of `_start`."""
        steps = reversed(plan.steps)
        if plan.lcm is not None:
            return lcm_denoise(plan.lcm, latents, steps, predictor, plan.generator)
        fresh_noise = None
        if plan.options.eta > 0:  # drawn ahead: a generator on the CPU would make every step wait for a copy
            fresh_noise = iter([plan.draw_noise() for _ in plan.steps])
        return ddim_denoise(latents, steps, predictor, plan.options.eta, fresh_noise)

    def _noise_predictor(
        self,
        plan: "_Plan",
        guide_latents: Tensor | None,
        bar: tqdm,
        condition: Tensor,
        uncond: Tensor | None = None,
    ) -> NoisePredictor:
        """(latents, step) -> noise, with guidance where `uncond` is given. What is constant over the steps is made once."""
        timesteps = on_device([step.timestep for step in plan.steps], torch.int64, self.device).unbind()
        size = plan.chunk_size or len(condition)
        chunks = [slice(first, first + size) for first in range(0, len(condition), size)]
        embeds = [condition[i] if uncond is None else batch_conditions(uncond[i], condition[i]) for i in chunks]

        def call_unet(latents: Tensor, chunk: slice, embeds: Tensor, step: Step) -> Tensor:
            inputs = latents[chunk]
            if guide_latents is not None:
                inputs = torch.cat([inputs, guide_latents[chunk]], dim=1)
            if uncond is not None:
                inputs = torch.cat([inputs, inputs])
            output = self.unet(
                inputs.to(embeds.dtype), timesteps[step.index], encoder_hidden_states=embeds, return_dict=False
            )[0]
            output = output.to(torch.float32, copy=True)  # a CUDA graph's next replay overwrites its output
            return output if uncond is None else combine(output, plan.options.guidance_scale)

        def predict(latents: Tensor, step: Step) -> Tensor:
            outputs = [call_unet(latents, *chunk, step) for chunk in zip(chunks, embeds, strict=True)]
            output = outputs[0] if len(outputs) == 1 else torch.cat(outputs)
            if self.config.guide_residual is not None:
                alphas = torch.full((len(latents),), step.noisier.alpha, device=self.device)
                output = output + self.linear_part(latents, guide_latents, alphas)
            bar.update()
            return predict_noise(output, latents, step.noisier, self.config.prediction_type)

        return predict

    def _check_inputs(
        self,
        guide_images: Tensor | None,
        generation_embeds: Tensor | None,
        size: tuple[int, int],
        generator: Generators,
        decode_chunk_size: int | None,
    ) -> int:
        """The batch size. Raises on the first input that does not fit."""
        factor = self.config.vae_factor
        if any(side < factor or side % factor for side in size):
            nearest = " or ".join(f"{h}x{w}" for h, w in dict.fromkeys(_nearest_sizes(size, factor)))
            raise HybridTokenizerError(
                f"size is {size[0]}x{size[1]} (height x width), expected multiples of {factor}; the nearest is {nearest}"
            )
        batch_sizes = {len(value) for value in (guide_images, generation_embeds) if value is not None}
        if not batch_sizes:
            raise HybridTokenizerError(
                "guide_images and generation_embeds are both None, expected at least one; the batch size comes from them"
            )
        if len(batch_sizes) > 1:
            raise HybridTokenizerError(
                f"there are {len(guide_images)} guide_images and {len(generation_embeds)} generation_embeds, "
                "expected equally many; decode them together as they were encoded"
            )
        if generation_embeds is not None:
            given = tuple(generation_embeds.shape[1:])
            expected = (self.config.num_condition_tokens, self.config.cross_attention_dim)
            if given != expected:
                raise HybridTokenizerError(
                    f"generation_embeds are {given[0]} x {given[1]}, but this U-Net reads {expected[0]} x {expected[1]}; "
                    "use the diffusion model that Branch II was trained for (Stable Diffusion 1.x reads 77 x 768, 2.x "
                    "77 x 1024)"
                )
        (batch_size,) = batch_sizes
        if isinstance(generator, list) and len(generator) != batch_size:
            raise HybridTokenizerError(
                f"there are {len(generator)} generators for {batch_size} images, expected one per image or a single one"
            )
        if decode_chunk_size is not None and decode_chunk_size < 1:
            raise HybridTokenizerError(
                f"decode_chunk_size is {decode_chunk_size}, expected at least 1; leave it out for the whole batch at once"
            )
        return batch_size

    def _set_tiling(self, size: tuple[int, int]) -> None:
        self.vae.use_tiling = max(size) > TILE_ABOVE

    def _latent_statistics(self, latents: Tensor) -> Iterator[Tensor]:
        for values in (self.config.latent_shift, self.config.latent_scale):
            yield rearrange(on_device(values, latents.dtype, latents.device), "c -> 1 c 1 1")

    def save_pretrained(
        self, folder: str | Path, dtype: torch.dtype | None = None, max_shard_size: int | str = "10GB"
    ) -> None:
        """Write unet/, vae/ and scheduler/ in diffusers' form, null_condition.safetensors and config.json.

        `dtype` stores the weights in another type. `config.json` is written last, so a folder that has it is complete.
        """
        folder = Path(folder)
        save_model(self.unet, folder / "unet", dtype, max_shard_size)
        save_model(self.vae, folder / "vae", dtype, max_shard_size)
        save_scheduler(folder / "scheduler", self.schedule)
        save_tensors(folder / NULL_CONDITION_NAME, {"null_condition": self.null_condition.to(dtype or torch.float32)})
        write_json(folder / CONFIG_NAME, dataclasses.asdict(self.config))

    @classmethod
    def from_pretrained(
        cls,
        folder: str | Path,
        *,
        subfolder: str | None = None,
        revision: str | None = None,
        token: str | None = None,
        prediction_type: str | None = None,
        decode_defaults: DecodeOptions | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> "DiffusionDecoder":
        """A folder of `save_pretrained`, or a Stable Diffusion 1.x or 2.x folder or hub id in diffusers' form.

        The null condition of a plain Stable Diffusion folder is its text encoder's embedding of the empty prompt.

        Args:
            folder: the folder, or a hub id like owner/name.
            subfolder: inside the folder or the repository.
            revision: branch, tag or commit of a hub repository.
            token: for private or gated repositories of the hub.
            prediction_type: checked against the folder's own; usually left out.
            decode_defaults: replaces the stored ones.
            dtype: of U-Net and VAE; latents stay fp32.

        Returns:
            The decoder, in evaluation mode.

        Raises:
            HybridTokenizerError: a file is missing or damaged, or the model was trained on another noise schedule.
        """
        folder = hub.folder(
            folder, expected="a folder in diffusers' form", subfolder=subfolder, revision=revision, token=token,
            patterns=HUB_PATTERNS,
        )  # fmt: skip
        declared = read_prediction_type(folder / "scheduler")
        unet = load_diffusers_model(folder / "unet", model_class(UNET_CLASS), dtype)
        stored = folder / CONFIG_NAME
        config = DiffusionConfig.from_dict(read_config(stored), str(stored)) if stored.is_file() else None
        vae_class = (
            config.vae_class
            if config
            else read_config(folder / "vae" / CONFIG_NAME).get("_class_name", "AutoencoderKL")
        )
        vae = load_diffusers_model(folder / "vae", model_class(vae_class), dtype)
        if (folder / NULL_CONDITION_NAME).is_file():
            null_condition = read_null_condition(folder / NULL_CONDITION_NAME)
        else:
            null_condition = null_condition_of_text_encoder(folder)
        if config is None:
            config = plain_config(unet, vae, declared, null_condition.shape[1], folder)
        for source, value in (("prediction_type=", prediction_type), (str(stored), config.prediction_type)):
            if value is not None and value != declared:
                raise HybridTokenizerError(
                    f"{source} says {value!r}, but {folder / 'scheduler'} says {declared!r}, expected the same: a "
                    "U-Net read as the other kind gives plausible noise and wrong images; correct the wrong one"
                )
        if decode_defaults is not None:
            config = dataclasses.replace(config, decode_defaults=decode_defaults)
        decoder = cls(config, unet, vae)
        decoder.set_null_condition(null_condition)
        return decoder.eval()


@dataclass(frozen=True)
class _Plan:
    """What one decode does, settled before its first U-Net call."""

    options: DecodeOptions
    start: str
    """`options.start`, or "noise" where there is no guide."""
    steps: tuple[Step, ...]
    """The steps to take, cleanest first."""
    lcm: Any | None
    """diffusers' LCMScheduler, for that sampler."""
    shape: tuple[int, ...]
    """Of the latents."""
    generator: Generators
    device: torch.device
    chunk_size: int | None

    @property
    def num_unet_calls(self) -> int:
        """Calls per chunk."""
        inversion = 1 + self.options.num_fixed_point_iterations if self.start == "ddim_inversion" else 0
        return len(self.steps) * (1 + inversion)

    def draw_noise(self) -> Tensor:
        """Standard normal latents, in fp32."""
        return _draw_noise(self.shape, self.generator, self.device)


def _draw_noise(shape: tuple[int, ...], generator: Generators, device: torch.device) -> Tensor:
    """Standard normal fp32 noise, drawn on the generator's device: a CPU generator gives the same noise for every device."""
    if isinstance(generator, list):
        return torch.cat([_draw_noise((1, *shape[1:]), one, device) for one in generator])
    source = device if generator is None else generator.device
    return torch.randn(shape, generator=generator, device=source).to(device)


def _nearest_sizes(size: tuple[int, int], factor: int) -> list[tuple[int, int]]:
    """Both sides rounded down, and both rounded up."""
    down = tuple(max(factor, side // factor * factor) for side in size)
    up = tuple(max(factor, -(-side // factor) * factor) for side in size)
    return [down, up]
