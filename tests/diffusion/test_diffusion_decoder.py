"""DiffusionDecoder against diffusers driven by hand, and the properties that its callers rely on."""

import copy

import pytest
import torch
from diffusers import DDIMInverseScheduler, DDIMScheduler, StableDiffusionPipeline
from tiny_diffusion import UNET, make_config, make_decoder
from torch.utils._python_dispatch import TorchDispatchMode

from hybrid_tokenizer.diffusion import DecodeOptions, DiffusionConfig, DiffusionDecoder
from hybrid_tokenizer.errors import HybridTokenizerError
from hybrid_tokenizer.images import resize_bicubic

SIZE = (40, 72)  # neither square nor a multiple of the U-Net's own factor


def seeded(*seeds):
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    return generators[0] if len(generators) == 1 else generators


def diffusers_by_hand(decoder, guide_images, embeds, start, strength, num_steps, guidance_scale, noise):
    """What a user of diffusers would write: VAE, inverse scheduler or add_noise, forward scheduler, VAE."""
    unet, vae = decoder.unet, decoder.vae
    down = DDIMScheduler(**decoder.schedule.diffusers_config)
    inverse_config = {k: v for k, v in decoder.schedule.diffusers_config.items() if k != "thresholding"}
    up = DDIMInverseScheduler(**inverse_config)
    down.set_timesteps(num_steps)
    up.set_timesteps(num_steps)
    k = round(num_steps * strength)
    guide = resize_bicubic(guide_images, SIZE).clamp(-1, 1)
    latents = vae.encode(guide).latent_dist.mode() * vae.config.scaling_factor
    timesteps = down.timesteps[num_steps - k :]
    if start == "add_noise":
        latents = down.add_noise(latents, noise, timesteps[:1].expand(len(latents)))
    else:
        for t in up.timesteps[:k]:
            latents = up.step(unet(latents, t, encoder_hidden_states=embeds).sample, t, latents).prev_sample
    null = decoder.null_condition.expand(len(embeds), -1, -1)
    for t in timesteps:
        if guidance_scale == 1:
            output = unet(latents, t, encoder_hidden_states=embeds).sample
        else:  # one call, as in diffusers' pipeline: another batch size rounds differently
            both = unet(torch.cat([latents] * 2), t, encoder_hidden_states=torch.cat([null, embeds])).sample
            uncond, output = both.chunk(2)
            output = uncond + guidance_scale * (output - uncond)
        latents = down.step(output, t, latents).prev_sample
    return vae.decode(latents / vae.config.scaling_factor).sample.clamp(-1, 1)


@pytest.mark.parametrize("guidance_scale", [1.0, 7.5])
@pytest.mark.parametrize("strength", [0.25, 0.6, 1.0])
@pytest.mark.parametrize("start", ["ddim_inversion", "add_noise"])
@torch.no_grad()
def test_equals_diffusers_driven_by_hand(decoder, guide_images, embeds, start, strength, guidance_scale):
    ours = decoder.decode(
        guide_images,
        embeds,
        SIZE,
        start=start,
        strength=strength,
        num_inference_steps=20,
        guidance_scale=guidance_scale,
        generator=seeded(3),
    )
    noise = torch.randn(2, 4, 5, 9, generator=seeded(3))
    theirs = diffusers_by_hand(decoder, guide_images, embeds, start, strength, 20, guidance_scale, noise)
    assert ours.std() > 0.01
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=0)


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
@torch.no_grad()
def test_v_prediction_denoises_as_diffusers_does(guide_images, embeds, prediction_type):
    decoder = make_decoder(prediction_type=prediction_type)
    options = {"start": "add_noise", "strength": 0.5, "num_inference_steps": 10, "guidance_scale": 3.0}
    ours = decoder.decode(guide_images, embeds, SIZE, generator=seeded(3), **options)
    noise = torch.randn(2, 4, 5, 9, generator=seeded(3))
    theirs = diffusers_by_hand(decoder, guide_images, embeds, "add_noise", 0.5, 10, 3.0, noise)
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=0)


@pytest.mark.parametrize("guidance_scale", [1.0, 7.5])
@pytest.mark.parametrize("eta", [0.0, 0.7])
def test_pure_noise_equals_the_stable_diffusion_pipeline(decoder, embeds, guidance_scale, eta):
    pipeline = StableDiffusionPipeline(
        vae=decoder.vae,
        unet=decoder.unet,
        scheduler=DDIMScheduler(**decoder.schedule.diffusers_config),
        text_encoder=None,
        tokenizer=None,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.set_progress_bar_config(disable=True)
    theirs = pipeline(
        prompt_embeds=embeds,
        negative_prompt_embeds=decoder.null_condition.expand(2, -1, -1),
        guidance_scale=guidance_scale,
        num_inference_steps=20,
        height=SIZE[0],
        width=SIZE[1],
        generator=seeded(1),
        eta=eta,
        output_type="pt",
    ).images
    ours = decoder.decode(
        None, embeds, SIZE, guidance_scale=guidance_scale, num_inference_steps=20, generator=seeded(1), eta=eta
    )
    torch.testing.assert_close(ours, theirs * 2 - 1, atol=1e-5, rtol=0)


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("k", range(6))
def test_partial_inversion_at_every_k_comes_back(guide_images, embeds, prediction_type, k):
    """The whole way through an untrained U-Net, refined until exact, ends at the VAE's own round trip."""
    decoder = make_decoder(prediction_type=prediction_type)
    decoder.unet.conv_out.weight.data *= 0.3  # a random U-Net at full strength amplifies rounding
    images = decoder.decode(
        guide_images, embeds, (32, 48), strength=k / 5, num_inference_steps=5, num_fixed_point_iterations=12
    )
    round_trip = decoder.decode(guide_images, embeds, (32, 48), strength=0)
    torch.testing.assert_close(images, round_trip, atol=1e-3, rtol=0)


def test_strength_0_is_the_vae_round_trip_and_calls_no_unet(decoder, guide_images, embeds):
    calls = count_calls(decoder)
    guide = resize_bicubic(guide_images, SIZE).clamp(-1, 1)
    for start in ("ddim_inversion", "add_noise"):
        images = decoder.decode(guide_images, embeds, SIZE, strength=0, start=start)
        expected = decoder.decode_latents(decoder.encode_latents(guide)).clamp(-1, 1)
        torch.testing.assert_close(images, expected)
    assert calls == []


def count_calls(decoder):
    """The batch size and timestep of each U-Net call from now on."""
    calls = []
    decoder.unet.register_forward_pre_hook(lambda module, args: calls.append((len(args[0]), args[1].item())))
    return calls


def test_guidance_is_batched_and_inversion_goes_without(decoder, guide_images, embeds):
    calls = count_calls(decoder)
    decoder.decode(guide_images, embeds, SIZE, strength=0.3, num_inference_steps=10, guidance_scale=4)
    assert calls == [(2, 1), (2, 101), (2, 201), (4, 201), (4, 101), (4, 1)]
    calls.clear()
    decoder.decode(
        guide_images, embeds, SIZE, strength=0.1, num_inference_steps=10, guidance_scale=1, num_fixed_point_iterations=2
    )
    assert calls == [(2, 1)] * 4
    calls.clear()
    decoder.decode(guide_images, None, SIZE, strength=0.1, num_inference_steps=10, guidance_scale=4)
    assert calls == [(2, 1)] * 2  # guidance against itself is no guidance


def test_inversion_condition_and_missing_embeds(decoder, guide_images, embeds):
    options = {"strength": 0.6, "num_inference_steps": 10}
    with_generation = decoder.decode(guide_images, embeds, SIZE, **options)
    with_null = decoder.decode(guide_images, embeds, SIZE, inversion_condition="null", **options)
    assert (with_generation - with_null).abs().max() > 1e-5
    stored = decoder.null_condition.expand(2, -1, -1)
    torch.testing.assert_close(
        decoder.decode(guide_images, None, SIZE, **options), decoder.decode(guide_images, stored, SIZE, **options)
    )


@pytest.mark.parametrize("options", [{"start": "add_noise"}, {"start": "ddim_inversion", "eta": 0.5}])
@pytest.mark.parametrize("guided", [True, False])
def test_an_image_does_not_depend_on_its_batch(decoder, options, guided):
    guide_images, embeds = torch.rand(3, 3, 16, 24) * 2 - 1, torch.randn(3, 5, 12)
    options = {**options, "num_inference_steps": 10, "guidance_scale": 2.0}
    guides = [guide_images[i : i + 1] if guided else None for i in range(3)]
    whole = decoder.decode(guide_images if guided else None, embeds, SIZE, generator=seeded(5, 6, 7), **options)
    for i in range(3):
        alone = decoder.decode(guides[i], embeds[i : i + 1], SIZE, generator=[seeded(5 + i)], **options)
        torch.testing.assert_close(
            alone, whole[i : i + 1], atol=1e-4, rtol=0
        )  # another noise would be 0.1 and more off
    again = decoder.decode(guide_images if guided else None, embeds, SIZE, generator=seeded(5, 6, 7), **options)
    assert torch.equal(again, whole)


@pytest.mark.parametrize("generator", [(5,), (5, 6, 7)])
def test_chunks_bound_memory_and_nothing_else(decoder, generator):
    guide_images, embeds = torch.rand(3, 3, 16, 24) * 2 - 1, torch.randn(3, 5, 12)
    options = {"start": "add_noise", "eta": 0.5, "num_inference_steps": 10, "guidance_scale": 2}
    whole = decoder.decode(guide_images, embeds, SIZE, generator=seeded(*generator), **options)
    calls = count_calls(decoder)
    chunked = decoder.decode(guide_images, embeds, SIZE, generator=seeded(*generator), decode_chunk_size=2, **options)
    torch.testing.assert_close(chunked, whole, atol=1e-5, rtol=0)
    assert {size for size, _ in calls} == {4, 2}


class RecordOperations(TorchDispatchMode):
    """Names of the operations that ran."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.append(func.overloadpacket.__name__)
        return func(*args, **(kwargs or {}))


def test_steps_neither_wait_for_the_device_nor_make_constants(decoder, guide_images, embeds):
    def operations(num_inference_steps):
        with RecordOperations() as record:
            decoder.decode(
                guide_images, embeds, SIZE, num_inference_steps=num_inference_steps, strength=1.0, guidance_scale=2
            )
        return record.names

    short, long = operations(10), operations(20)
    # `_local_scalar_dense` is .item(), float(), bool() of a tensor: each waits for a GPU; the check of the result does once
    for constant in ("_local_scalar_dense", "scalar_tensor", "lift_fresh", "full", "zeros"):
        assert short.count(constant) == long.count(constant), constant


def test_low_precision_weights_keep_fp32_latents(guide_images, embeds):
    decoder = make_decoder()
    decoder.vae.float()
    exact = decoder.decode(guide_images, embeds, SIZE, num_inference_steps=10)
    levels = decoder.schedule.alphas_cumprod.clone()
    decoder.to(torch.bfloat16)
    images = decoder.decode(guide_images, embeds, SIZE, num_inference_steps=10)
    assert images.dtype == torch.float32 and decoder.encode_latents(images).dtype == torch.float32
    assert torch.equal(decoder.schedule.alphas_cumprod, levels)
    assert (images - exact).abs().mean() < 0.05


def test_latents_are_normalised_as_set(guide_images):
    decoder = make_decoder(vae_class="AutoencoderTiny", vae={"encoder_block_out_channels": [8] * 4,
                           "decoder_block_out_channels": [8] * 4, "latent_channels": 4}, latent_scale=[1.0])  # fmt: skip
    images = torch.rand(4, 3, 32, 48) * 2 - 1
    raw = decoder.encode_latents(images)
    assert raw.shape == (4, 4, 4, 6)
    shift, scale = raw.mean((0, 2, 3)), 1 / raw.std((0, 2, 3))
    before = decoder.decode_latents(raw)
    decoder.set_latent_scale(shift.tolist(), scale.tolist())
    latents = decoder.encode_latents(images)
    torch.testing.assert_close(latents.mean((0, 2, 3)), torch.zeros(4), atol=1e-4, rtol=0)
    torch.testing.assert_close(latents.std((0, 2, 3)), torch.ones(4), atol=1e-4, rtol=0)
    torch.testing.assert_close(decoder.decode_latents(latents), before, atol=1e-4, rtol=0)


def test_gradients_reach_the_vae(decoder):
    images = torch.rand(1, 3, 32, 48) * 2 - 1
    decoder.decode_latents(decoder.encode_latents(images)).square().mean().backward()
    assert decoder.vae.encoder.conv_in.weight.grad.abs().sum() > 0


def test_a_differentiable_decode_is_the_same_and_has_the_guides_gradient(decoder, guide_images, embeds):
    options = {"start": "ddim_inversion", "strength": 0.4, "num_inference_steps": 5}
    size = (32, 32)
    plain = decoder.decode(guide_images, embeds, size, **options)
    assert not plain.requires_grad
    guide = guide_images.double().clone().requires_grad_(True)
    exact = copy.deepcopy(decoder).double()
    decoded = exact.decode(guide, embeds.double(), size, differentiable=True, **options)
    torch.testing.assert_close(decoded.float(), plain, rtol=1e-4, atol=1e-4)
    weights = torch.randn(decoded.shape, dtype=torch.float64)
    (gradient,) = torch.autograd.grad((weights * decoded).sum(), guide)
    way = torch.randn(guide.shape, dtype=torch.float64)
    step = 1e-3
    ahead, behind = (
        exact.decode(guide.detach() + sign * step * way, embeds.double(), size, **options) for sign in (1, -1)
    )
    slope = (weights * (ahead - behind)).sum() / (2 * step)
    torch.testing.assert_close((gradient * way).sum(), slope, rtol=0.02, atol=0.02 * slope.abs().item())


@torch.no_grad()
def test_tiling_above_1024_pixels(decoder):
    images = resize_bicubic(torch.rand(1, 3, 4, 66) * 2 - 1, (64, 1056))
    latents = decoder.encode_latents(images)
    assert decoder.vae.use_tiling and latents.shape == (1, 4, 8, 132)
    assert decoder.decode_latents(latents).shape == images.shape
    decoder.encode_latents(images[..., :1024])
    assert not decoder.vae.use_tiling


def test_progress_is_silent_unless_asked(decoder, guide_images, embeds, capsys):
    decoder.decode(guide_images, embeds, SIZE, num_inference_steps=4)
    assert capsys.readouterr() == ("", "")
    decoder.decode(guide_images, embeds, SIZE, num_inference_steps=10, strength=0.5, progress=True)
    assert "10/10" in capsys.readouterr().err


def test_guide_conditioning_starts_as_the_unconditioned_model(decoder, guide_images, embeds):
    options = {"num_inference_steps": 10, "guidance_scale": 2}
    before = decoder.decode(guide_images, embeds, SIZE, **options)
    decoder.add_guide_conditioning()
    torch.testing.assert_close(decoder.decode(guide_images, embeds, SIZE, **options), before, atol=1e-5, rtol=0)
    decoder.unet.conv_in.weight.data[:, 4:] = 0.1
    after = decoder.decode(guide_images, embeds, SIZE, **options)
    assert (after - before).abs().max() > 1e-4
    chunked = decoder.decode(guide_images, embeds, SIZE, decode_chunk_size=1, **options)
    torch.testing.assert_close(chunked, after, atol=1e-4, rtol=0)
    assert decoder.decode(None, embeds, SIZE, **options).shape == (2, 3, *SIZE)
    with pytest.raises(HybridTokenizerError, match="already"):
        decoder.add_guide_conditioning()


def test_an_untrained_unet_on_the_linear_path_moves_towards_the_guide(decoder, guide_images, embeds):
    """Its residual is zero: at a small variance what it decodes from noise is the guide, and without a guide it is not."""
    with pytest.raises(HybridTokenizerError, match=r"guide_residual=\[0.01.*guide_conditioning=False"):
        decoder.set_guide_residual([0.01] * 4)
    decoder.add_guide_conditioning()
    with pytest.raises(HybridTokenizerError, match="4 numbers above 0"):
        decoder.set_guide_residual([0.01, 0.0, 0.01, 0.01])
    with pytest.raises(HybridTokenizerError, match=r"start is 'linear_estimate', but .*use start='ddim_inversion'"):
        decoder.decode(guide_images, embeds, SIZE, start="linear_estimate")
    decoder.set_guide_residual([1e-6] * 4)
    options = {"start": "add_noise", "num_inference_steps": 10, "generator": seeded(0, 1)}
    kept = decoder.decode(guide_images, embeds, SIZE, strength=0.0, **options)
    restored = decoder.decode(guide_images, embeds, SIZE, strength=0.9, **options)
    free = decoder.decode(None, embeds, SIZE, **options)
    assert (restored - kept).abs().mean() < 0.1 * (free - kept).abs().mean()
    calls = []
    decoder.unet.register_forward_hook(lambda *call: calls.append(1))
    started = decoder.decode(guide_images, embeds, SIZE, start="linear_estimate", strength=0.5, num_inference_steps=10)
    assert len(calls) == 5  # on the way down alone
    torch.testing.assert_close(started, kept, atol=5e-3, rtol=0)  # up to the signal of the cleanest level, 0.9996


@pytest.fixture
def shallow_unet():
    return {
        **UNET,
        "block_out_channels": [8],
        "down_block_types": ["CrossAttnDownBlock2D"],
        "up_block_types": ["CrossAttnUpBlock2D"],
    }


@pytest.mark.parametrize(
    "prepare", [lambda d: d.compile_unet(backend="eager"), lambda d: d.enable_model_cpu_offload("cpu")]
)
def test_compiled_and_offloaded_decoders_give_the_same(shallow_unet, guide_images, embeds, prepare):
    decoder = make_decoder(unet=shallow_unet)
    options = {"num_inference_steps": 4}
    plain = decoder.decode(guide_images, embeds, SIZE, **options)
    prepare(decoder)
    torch.testing.assert_close(decoder.decode(guide_images, embeds, SIZE, **options), plain, atol=1e-5, rtol=0)


def test_a_pooled_condition_needs_no_cross_attention():
    """`addition_embed_type="text"`, the one kind of added embedding that wants nothing beyond the condition."""
    blocks = {"down_block_types": ["DownBlock2D"], "up_block_types": ["UpBlock2D"], "mid_block_type": None}
    pooled = {"addition_embed_type": "text", "addition_embed_type_num_heads": 2}
    for added, differs in ((pooled, True), ({}, False)):
        decoder = make_decoder(unet={**UNET, "block_out_channels": [8], **blocks, **added})
        first, second = (
            decoder.decode(None, condition, SIZE, num_inference_steps=2, generator=torch.Generator().manual_seed(0))
            for condition in torch.randn(2, 1, 5, 12)
        )
        assert torch.equal(first, second) != differs


# presets' sizes
def test_sd15_has_stable_diffusions_sizes():
    with torch.device("meta"):
        decoder = DiffusionDecoder(DiffusionConfig.sd15())
    assert sum(p.numel() for p in decoder.unet.parameters()) == 859_520_964
    assert sum(p.numel() for p in decoder.vae.parameters()) == 83_653_863
    assert decoder.null_condition.shape == (1, 77, 768)


def test_tiny_round_trips_shapes():
    decoder = DiffusionDecoder(DiffusionConfig.tiny()).eval()
    assert 9e6 < sum(p.numel() for p in decoder.unet.parameters()) < 9.5e6
    assert 1.4e6 < sum(p.numel() for p in decoder.vae.parameters()) < 1.6e6
    images = decoder.decode(torch.rand(1, 3, 8, 16) * 2 - 1, torch.randn(1, 77, 384), SIZE, num_inference_steps=4)
    assert images.shape == (1, 3, *SIZE) and images.abs().max() <= 1


# refusals: one line with value, rule and remedy
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"strength": 1.5}, r"strength is 1.5, expected a number from 0 to 1"),
        ({"strength": -0.1}, r"strength is -0.1, expected a number from 0 to 1"),
        ({"strength": float("nan")}, r"strength is nan"),
        ({"num_inference_steps": 30}, r"num_inference_steps is 30.*divisor of 1000.*25 or 40"),
        ({"num_inference_steps": 0}, r"num_inference_steps is 0.*nearest is 1"),
        ({"guidance_scale": -1}, r"guidance_scale is -1"),
        ({"eta": 2}, r"eta is 2"),
        ({"start": "q_sample"}, r"start is 'q_sample', expected one of ddim_inversion, add_noise, linear_estimate"),
        ({"inversion_condition": "both"}, r"inversion_condition is 'both', expected one of generation, null$"),
        ({"inversion_condition": "guide"}, r"inversion_condition is 'guide'.*is start='linear_estimate' now"),
        (
            {"inversion_conditon": "null", "seed": 1},
            r"unknown decode options inversion_conditon, seed; use some of start,",
        ),
        ({"num_fixed_point_iterations": -1}, r"num_fixed_point_iterations is -1"),
        ({"decode_chunk_size": 0}, r"decode_chunk_size is 0"),
        ({"generator": [torch.Generator()]}, r"1 generators for 2 images"),
    ],
)
def test_wrong_options_are_refused(decoder, guide_images, embeds, options, message):
    with pytest.raises(HybridTokenizerError, match=message) as error:
        decoder.decode(guide_images, embeds, SIZE, **options)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(("size", "nearest"), [((100, 64), "96x64 or 104x64"), ((64, 3), "64x8"), ((0, 64), "8x64")])
def test_sizes_between_latents_are_refused_with_the_nearest(decoder, guide_images, embeds, size, nearest):
    with pytest.raises(
        HybridTokenizerError, match=f"size is {size[0]}x{size[1]}.*multiples of 8.*nearest is {nearest}"
    ):
        decoder.decode(guide_images, embeds, size)


def test_embeddings_of_another_model_are_refused(decoder, guide_images):
    with pytest.raises(HybridTokenizerError, match=r"5 x 16.*reads 5 x 12"):
        decoder.decode(guide_images, torch.randn(2, 5, 16), SIZE)
    with pytest.raises(HybridTokenizerError, match=r"both None"):
        decoder.decode(None, None, SIZE)
    with pytest.raises(HybridTokenizerError, match=r"shape \(1, 4, 12\), expected \(1, 5, 12\)"):
        decoder.set_null_condition(torch.randn(1, 4, 12))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"vae_class": "VQModel"}, "vae_class is 'VQModel'"),
        ({"prediction_type": "flow"}, "prediction_type is 'flow'"),
        ({"num_condition_tokens": 0}, "num_condition_tokens is 0"),
        ({"unet": {"in_channels": 9}}, "9 input.*inpainting"),
        ({"unet": {"in_channels": 8}}, "8 input"),
        ({"unet": {"class_embed_type": "projection"}}, "class_embed_type='projection'"),
        ({"latent_shift": [0.0, 0.0]}, "latent_shift has 2 numbers, expected 1 or 4"),
        ({"latent_scale": [0.0]}, "latent_scale"),
    ],
)
def test_wrong_configurations_are_refused(changes, message):
    with pytest.raises(HybridTokenizerError, match=message):
        make_config(**changes)


def test_decode_defaults_are_used(guide_images, embeds):
    defaults = DecodeOptions(start="add_noise", strength=0.5, num_inference_steps=4, guidance_scale=2.0)
    decoder = make_decoder(decode_defaults=defaults)
    calls = count_calls(decoder)
    decoder.decode(guide_images, embeds, SIZE)
    assert calls == [(4, 251), (4, 1)]
