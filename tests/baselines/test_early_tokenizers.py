"""VQ-VAE-2, DALL-E's VAE and OmniTokenizer against references that are written here from their papers' equations.

The references read the published names, share no code with the models and are differentiable, so that for every weight the
number with the largest effect can be changed by 1e-2: parity must then fail.
"""

import math

import pytest
import torch
import torch.nn.functional as F
from helpers.small_models import noise_images

from hybrid_tokenizer.baselines.dalle import build_dalle, load_dalle_row, read_modules
from hybrid_tokenizer.baselines.omnitokenizer import build_omnitokenizer
from hybrid_tokenizer.baselines.vqvae2 import build_vqvae2
from hybrid_tokenizer.errors import HybridTokenizerError
from hybrid_tokenizer.verification.layouts import files, layouts

TOLERANCE = {"rtol": 0, "atol": 1e-7}
DALLE = layouts.dalle(8, 8, 1, 512)


def random_weights(layout):
    """Every number matters: biases and gains are not zero or one."""
    generator = torch.Generator().manual_seed(0)
    state = {}
    for key, shape in layout.items():
        noise = torch.randn(shape, generator=generator, dtype=torch.float64)
        if key.endswith(("relative_position_index", "cluster_size")):
            state[key] = torch.zeros(shape)
        elif "embed" in key.split(".")[-1]:
            state[key] = noise
        elif len(shape) < 2:
            state[key] = 0.1 * noise + float(key.endswith(("gamma", "scale")) or ".norm" in key)
        else:
            state[key] = noise * math.sqrt(2 / math.prod(shape[1:]))
    return state


def conv(state, name, x, weight="weight", bias="bias", **options):
    return F.conv2d(x, state[f"{name}.{weight}"], state[f"{name}.{bias}"], **options)


# VQ-VAE-2, section 3.1 and Algorithm 1: the top code is made first and decoded, and conditions the bottom code


def vqvae2_block(state, name, x):
    hidden = conv(state, f"{name}.conv.1", x.relu(), padding=1)
    return x + conv(state, f"{name}.conv.3", hidden.relu())


def nearest(features, codes):
    """Indices of the codes (columns) at the smallest distance."""
    flat = features.movedim(1, -1)
    return (flat[..., None, :] - codes.T).square().sum(-1).argmin(-1)


def codes_at(codes, indices):
    return codes.T[indices].movedim(-1, 1)


def up(state, name, x):
    return F.conv_transpose2d(x, state[f"{name}.weight"], state[f"{name}.bias"], stride=2, padding=1)


def vqvae2_encode(state, images):
    x = conv(state, "enc_b.blocks.0", images, stride=2, padding=1).relu()
    x = conv(state, "enc_b.blocks.2", x, stride=2, padding=1).relu()
    x = vqvae2_block(state, "enc_b.blocks.5", conv(state, "enc_b.blocks.4", x, padding=1)).relu()
    t = conv(state, "enc_t.blocks.0", x, stride=2, padding=1).relu()
    t = vqvae2_block(state, "enc_t.blocks.3", conv(state, "enc_t.blocks.2", t, padding=1)).relu()
    top = conv(state, "quantize_conv_t", t)
    top_indices = nearest(top, state["quantize_t.embed"])
    known = conv(state, "dec_t.blocks.0", codes_at(state["quantize_t.embed"], top_indices), padding=1)
    known = up(state, "dec_t.blocks.3", vqvae2_block(state, "dec_t.blocks.1", known).relu())
    bottom = conv(state, "quantize_conv_b", torch.cat([known, x], 1))
    return [top, bottom], [top_indices, nearest(bottom, state["quantize_b.embed"])]


def vqvae2_decode(state, grids):
    top = up(state, "upsample_t", codes_at(state["quantize_t.embed"], grids[0]))
    x = torch.cat([top, codes_at(state["quantize_b.embed"], grids[1])], 1)
    x = vqvae2_block(state, "dec.blocks.1", conv(state, "dec.blocks.0", x, padding=1)).relu()
    return up(state, "dec.blocks.5", up(state, "dec.blocks.3", x).relu())


# DALL-E, appendix A.2 and eq. 2: blocks scaled by 1 / layers^2, pixels squeezed into [0.1, 0.9], the mean is a sigmoid


def dalle_half(state, x, half, resample):
    x = conv(state, f"{half}.blocks.input", x, "w", "b", padding=3 if half == "encoder" else 0)
    for group in range(1, 5):
        name = f"{half}.blocks.group_{group}.block_1"
        inner = x
        for i in range(1, 5):
            size = state[f"{name}.res_path.conv_{i}.w"].shape[-1]
            inner = conv(state, f"{name}.res_path.conv_{i}", inner.relu(), "w", "b", padding=(size - 1) // 2)
        shortcut = conv(state, f"{name}.id_path", x, "w", "b") if f"{name}.id_path.w" in state else x
        x = shortcut + inner / 4**2
        if group < 4:
            x = resample(x)
    return conv(state, f"{half}.blocks.output.conv", x.relu(), "w", "b")


def dalle_encode(state, images):
    logits = dalle_half(state, 0.8 * (images + 1) / 2 + 0.1, "encoder", lambda x: F.max_pool2d(x, 2))
    return [logits], [logits.argmax(1)]


def dalle_decode(state, grids):
    one_hot = F.one_hot(grids[0], 512).movedim(-1, 1).double()
    out = dalle_half(state, one_hot, "decoder", lambda x: F.interpolate(x, scale_factor=2))
    return (((out[:, :3].sigmoid() - 0.1) / 0.8).clamp(0, 1)) * 2 - 1


# OmniTokenizer, section 3.1: patches, window and causal attention, with a frame axis of length one kept throughout


def omni_norm(state, name, x):
    return F.layer_norm(x, x.shape[-1:], state[f"{name}.gamma"], state[f"{name}.beta"])


def omni_feed(state, name, x):
    hidden = F.layer_norm(x, x.shape[-1:], state[f"{name}.3.0.weight"], state[f"{name}.3.0.bias"])
    values, gate = (hidden @ state[f"{name}.3.1.weight"].T).chunk(2, -1)
    return x + (F.gelu(gate) * values) @ state[f"{name}.3.4.weight"].T


def omni_position(state, name, x):
    """x: b t h w d. Padding in time is before the frame only."""
    planes = F.pad(x.movedim(-1, 1), (1, 1, 1, 1, 2, 0))
    weight, bias = state[f"{name}.0.dsconv.weight"], state[f"{name}.0.dsconv.bias"]
    return x + F.conv3d(planes, weight, bias, groups=len(weight)).movedim(1, -1)


def turned(vectors, position):
    """Rotary embedding by hand: channel pair 2i is turned by the column, pair 2i + 1 by the row."""
    out, width = vectors.clone(), vectors.shape[-1]
    for pair in range(width // 2):
        rate = 10000 ** (-(4 * (pair // 2)) / width)
        angle = position[pair % 2] * rate
        a, b = vectors[..., 2 * pair], vectors[..., 2 * pair + 1]
        out[..., 2 * pair] = a * angle.cos() - b * angle.sin()
        out[..., 2 * pair + 1] = a * angle.sin() + b * angle.cos()
    return out


def omni_attention(state, name, x, heads, rotary):
    """x: b n d. Cosine similarities times 8."""
    q = omni_norm(state, f"{name}.1.norm", x) @ state[f"{name}.1.to_q.weight"].T
    k, v = (x @ state[f"{name}.1.to_kv.weight"].T).chunk(2, -1)
    side = math.isqrt(x.shape[1])
    place = torch.arange(x.shape[1], dtype=torch.float64)
    outs = []
    for qh, kh, vh in zip(q.chunk(heads, -1), k.chunk(heads, -1), v.chunk(heads, -1), strict=True):
        if rotary:
            qh, kh = (turned(part, (place % side, place // side)) for part in (qh, kh))
        qh = qh / qh.norm(dim=-1, keepdim=True) * state[f"{name}.1.q_scale"]
        kh = kh / kh.norm(dim=-1, keepdim=True) * state[f"{name}.1.k_scale"]
        outs.append((8 * qh @ kh.mT).softmax(-1) @ vh)
    return x + torch.cat(outs, -1) @ state[f"{name}.1.to_out.weight"].T


def omni_window(state, name, x, heads, window):
    """x: b h w d."""
    normed, out = omni_norm(state, f"{name}.1.norm", x), torch.zeros_like(x)
    table = state[f"{name}.1.relative_position_bias_table"]
    cells = [(i, j) for i in range(window) for j in range(window)]
    rows = [[(a - c + window - 1) * (2 * window - 1) + b - d + window - 1 for c, d in cells] for a, b in cells]
    for top in range(0, x.shape[1], window):
        for left in range(0, x.shape[2], window):
            part = normed[:, top : top + window, left : left + window].flatten(1, 2)
            q, k, v = (part @ state[f"{name}.1.qkv.weight"].T).chunk(3, -1)
            mixed = []
            for head, (qh, kh, vh) in enumerate(zip(*(p.chunk(heads, -1) for p in (q, k, v)), strict=True)):
                scores = qh @ kh.mT / math.sqrt(qh.shape[-1]) + table[torch.tensor(rows), head]
                mixed.append(scores.softmax(-1) @ vh)
            done = F.linear(torch.cat(mixed, -1), state[f"{name}.1.proj.weight"], state[f"{name}.1.proj.bias"])
            out[:, top : top + window, left : left + window] = done.unflatten(1, (window, window))
    return x + out


def omni_space(state, name, x, kinds):
    """x: b 1 h w d."""
    for i, kind in enumerate(kinds):
        layer = f"{name}.layers.{i}"
        if kind == "t":
            x = omni_position(state, layer, x)
            x = omni_attention(state, layer, x.flatten(1, 3), 2, True).view_as(x)
        else:
            x = omni_window(state, layer, x[:, 0], 2, 4)[:, None]
        x = omni_feed(state, layer, x)
    return omni_norm(state, f"{name}.norm_out", x)


def omni_time(state, name, x):
    """x: b 1 h w d. Every position attends over its frames, of which there is one."""
    x = omni_position(state, f"{name}.layers.0", x)
    tubes = x.movedim(1, 3).flatten(0, 2)
    tubes = omni_attention(state, f"{name}.layers.0", tubes, 2, False)
    x = tubes.unflatten(0, (x.shape[0], *x.shape[2:4])).movedim(3, 1)
    return omni_norm(state, f"{name}.norm_out", omni_feed(state, f"{name}.layers.0", x))


def omni_encode(state, images):
    patches = (images / 2).unfold(2, 8, 8).unfold(3, 8, 8)  # b c h w p q
    x = patches.permute(0, 2, 3, 1, 4, 5).flatten(3)[:, None]
    first = "encoder.to_patch_emb_first_frame"
    x = F.layer_norm(x, x.shape[-1:], state[f"{first}.1.weight"], state[f"{first}.1.bias"])
    x = F.linear(x, state[f"{first}.2.weight"], state[f"{first}.2.bias"])
    x = F.layer_norm(x, x.shape[-1:], state[f"{first}.3.weight"], state[f"{first}.3.bias"])
    x = omni_time(
        state, "encoder.enc_temporal_transformer", omni_space(state, "encoder.enc_spatial_transformer", x, "tw")
    )
    x = F.linear(x, state["pre_vq_conv.1.weight"], state["pre_vq_conv.1.bias"])
    x = x / x.norm(dim=-1, keepdim=True)
    indices = (x[:, 0, ..., None, :] - state["codebook.embeddings"]).square().sum(-1).argmin(-1)
    return [x.flatten(1, 3)], [indices]


def omni_decode(state, grids):
    codes = state["codebook.embeddings"][grids[0]][:, None]
    x = F.linear(codes, state["post_vq_conv.1.weight"], state["post_vq_conv.1.bias"])
    x = omni_space(
        state, "decoder.dec_spatial_transformer", omni_time(state, "decoder.dec_temporal_transformer", x), "t"
    )
    x = F.linear(x, state["decoder.to_pixels_first_frame.0.weight"], state["decoder.to_pixels_first_frame.0.bias"])
    b, _, h, w, _ = x.shape
    return 2 * x.view(b, h, w, 3, 8, 8).permute(0, 3, 1, 4, 2, 5).reshape(b, 3, 8 * h, 8 * w)


MODELS = {
    "vqvae2": (
        layouts.vqvae2(16, 1, 8, 4, 512), build_vqvae2, vqvae2_encode, vqvae2_decode, lambda m, x: m.features(x),
        (".cluster_size", ".embed_avg"),
    ),
    "dalle": (
        {f"{half}.{key}": shape for half, layout in DALLE.items() for key, shape in layout.items()}, build_dalle,
        dalle_encode, dalle_decode, lambda m, x: [m.logits(x)], (),
    ),
    "omnitokenizer": (
        layouts.omnitokenizer(32, 2, 8, "tw", "t", 1, 4, 8, 4, 512, 8),
        lambda state, source: build_omnitokenizer(state, source, image_size=64), omni_encode, omni_decode,
        lambda m, x: [m.features(x)],
        ("context_norm", "spatial_rel_pos_bias", "position_index", "to_patch_emb.", "to_pixels.", "codebook.N", "z_avg",
         "codebook_usage", "discriminator", "perceptual_model"),
    ),
}  # fmt: skip
UNREAD_BY_ONE_FRAME = ("temporal_transformer.layers.0.1.norm", ".to_q.", "q_scale", "k_scale")


def largest_difference(ours, theirs):
    """Over all tensors of two lists."""
    return max((mine - other).abs().max().item() for mine, other in zip(ours, theirs, strict=True))


@pytest.mark.parametrize("name", MODELS)
def test_parity_that_a_change_of_one_weight_breaks(name):
    layout, build, encode, decode, features_of, dropped = MODELS[name]
    state = random_weights(layout)
    images = noise_images(1, 64, 64).double()
    model = build({key: value.float() for key, value in state.items()}, name).double()
    state = {key: value.float().double().requires_grad_(value.dtype == torch.float64) for key, value in state.items()}

    features, grids = encode(state, images)
    assert [grid.tolist() for grid in model.encode(images)] == [grid.tolist() for grid in grids]
    assert all(len(grid.unique()) > 1 for grid in grids)
    decoded = decode(state, grids)
    with torch.no_grad():
        ours = [*features_of(model, images), model.decode(tuple(grids))]
    for mine, theirs in zip(ours, [*features, decoded], strict=True):
        torch.testing.assert_close(mine, theirs, **TOLERANCE)

    generator = torch.Generator().manual_seed(1)
    total = sum((part * torch.randn(part.shape, generator=generator)).sum() for part in (*features, decoded))
    read = {key: value for key, value in state.items() if not any(part in key for part in dropped)}
    gradients = dict(zip(read, torch.autograd.grad(total, list(read.values()), allow_unused=True), strict=True))
    unread = [key for key, gradient in gradients.items() if gradient is None or not gradient.any()]
    assert all("temporal" in key and any(part in key for part in UNREAD_BY_ONE_FRAME) for key in unread)
    state = {key: value.detach() for key, value in state.items()}
    for key in set(read) - set(unread):
        place = gradients[key].abs().argmax()
        kept = state[key].flatten()[place].item()
        state[key].view(-1)[place] += 1e-2
        with torch.no_grad():
            changed = [*encode(state, images)[0], decode(state, grids)]
        assert largest_difference(ours, changed) > 10 * TOLERANCE["atol"], key
        state[key].view(-1)[place] = kept


def test_dalles_pickles_are_read_without_running_their_code(tmp_path):
    states = {half: {k: v.float() for k, v in random_weights(layout).items()} for half, layout in DALLE.items()}
    for half, state in states.items():
        files.pickle_modules(state, f"dall_e.{half}", half.capitalize(), tmp_path / f"{half}.pkl")
    for half, state in states.items():
        read = read_modules(tmp_path / f"{half}.pkl")
        assert set(read) == set(state) and all(torch.equal(read[key], state[key]) for key in state)
    row = load_dalle_row("dalle", tmp_path)
    tokens = row.encode(noise_images(1, 40, 56))
    assert tokens.grids[0].shape == (1, 5, 7) and row.decode(tokens, (40, 56)).shape == (1, 3, 40, 56)
    assert row.bits(tokens).item() == 35 * 9


class Trap:
    def __reduce__(self):
        return print, ("code of the file ran",)


def test_a_pickle_that_names_anything_else_is_refused(tmp_path, capsys):
    torch.save({"w": torch.ones(1), "trap": Trap()}, tmp_path / "encoder.pkl")
    with pytest.raises(HybridTokenizerError, match="cannot be read safely"):
        read_modules(tmp_path / "encoder.pkl")
    assert capsys.readouterr().out == ""
    torch.save(torch.nn.Bilinear(1, 1, 1), tmp_path / "encoder.pkl")
    with pytest.raises(HybridTokenizerError, match=r"it names torch\.nn\.modules\.linear\.Bilinear"):
        read_modules(tmp_path / "encoder.pkl")
    with pytest.raises(HybridTokenizerError, match=r"decoder\.pkl does not exist; give the folder with encoder\.pkl"):
        read_modules(tmp_path / "decoder.pkl")


def test_another_kind_of_omnitokenizer_is_refused():
    state = random_weights(MODELS["omnitokenizer"][0])
    relative = state | {"encoder.enc_spatial_transformer.layers.0.1.spatial_rel_pos_bias.net.2.bias": torch.zeros(2)}
    with pytest.raises(HybridTokenizerError, match=r"relative positions in space; give .*imagenet_k600\.ckpt"):
        build_omnitokenizer(relative, "file")
    without = {key: value for key, value in state.items() if key != "codebook.embeddings"}
    with pytest.raises(
        HybridTokenizerError, match=r"has no codebook\.embeddings; give an OmniTokenizer with a codebook"
    ):
        build_omnitokenizer(without, "file")
    with pytest.raises(HybridTokenizerError, match="no whole windows of 4 patches of 8 pixels; use a multiple of 32"):
        build_omnitokenizer(state, "file", image_size=40)
