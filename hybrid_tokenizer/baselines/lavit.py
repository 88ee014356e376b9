"""LaVIT's dynamic visual tokenizer (Jin et al. 2023) and its token decoders.

A selector keeps some of the patches, a merger moves information from the dropped patches into the kept ones, and the kept
ones are quantized. So the number of tokens varies per image. The selection is random, at inference too.
"""

import math
from dataclasses import dataclass, field
from pathlib import Path

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from hybrid_tokenizer.baselines.sampling import Condition, load_scheduler, same_generators, sample
from hybrid_tokenizer.checkpoints.files import check_finite, fill, is_plain, read_foreign, read_pickle
from hybrid_tokenizer.checkpoints.keys.lavit import decoder_to_model, encoder_to_model, join_files
from hybrid_tokenizer.checkpoints.libraries import load_diffusers_model
from hybrid_tokenizer.errors import HybridTokenizerError
from hybrid_tokenizer.images import check_range, normalize_clip, resize_bicubic
from hybrid_tokenizer.quantizers import nearest_codes
from hybrid_tokenizer.semantic import SemanticConfig
from hybrid_tokenizer.semantic.modules import VisionEncoder, task_layer

LLM_OFFSET = 32002
"""LaVIT's language model has 32000 text ids, then the image's start and end."""
NORM_EPS = 1e-5
POLICY_EPS = 1e-6
MASKED = -10000.0


@dataclass
class LavitConfig:
    """The tokenizer. Sizes default to the published ones."""

    image_size: int = 224
    patch_size: int = 14
    width: int = 1408
    vision_layers: int = 40
    vision_heads: int = 16
    vision_mlp_width: int = 6144
    merger_layers: int = 12
    merger_heads: int = 16
    merger_mlp_width: int = 6144
    codebook_size: int = 16384
    codebook_dim: int = 32

    def __post_init__(self) -> None:
        for name, heads in (("vision_heads", self.vision_heads), ("merger_heads", self.merger_heads)):
            if self.width % heads:
                raise HybridTokenizerError(f"{name}={heads} must divide the width {self.width}; choose a divisor")


@dataclass
class LavitDecoderConfig:
    """A token decoder: one projection to the U-Net's states (low resolution), or two and a pooled one (high)."""

    num_queries: int = 256
    width: int = 1408
    codebook_dim: int = 32
    layers: int = 12
    heads: int = 16
    mlp_width: int = 6144
    out_width: int = 1408
    condition_widths: list[int] = field(default_factory=lambda: [768])
    pooled_width: int | None = None

    def __post_init__(self) -> None:
        if self.width % self.heads or self.out_width % self.heads:
            raise HybridTokenizerError(f"heads={self.heads} must divide the widths {self.width} and {self.out_width}")


class Mlp(nn.Module):
    """Linear, GELU, linear."""

    def __init__(self, width: int, hidden: int):
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, x: Float[Tensor, "b n d"]) -> Float[Tensor, "b n d"]:
        return self.fc2(F.gelu(self.fc1(x)))


class Attention(nn.Module):
    """Attention from one sequence to another, under a policy or an additive mask."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(width, width)
        self.value = nn.Linear(width, width)
        self.proj = nn.Linear(width, width)

    def forward(
        self,
        x: Float[Tensor, "b q d"],
        source: Float[Tensor, "b k d"],
        policy: Float[Tensor, "b 1 _ k"] | None = None,
        mask: Float[Tensor, "b 1 1 k"] | None = None,
    ) -> Float[Tensor, "b q d"]:
        query, key, value = (
            rearrange(part, "b n (h d) -> b h n d", h=self.heads)
            for part in (self.query(x), self.key(source), self.value(source))
        )
        if policy is None:
            output = F.scaled_dot_product_attention(query, key, value, attn_mask=mask)
        else:
            scores = query @ rearrange(key, "b h k d -> b h d k") * query.shape[-1] ** -0.5
            output = softmax_with_policy(scores, policy) @ value
        return self.proj(rearrange(output, "b h n d -> b n (h d)"))


def softmax_with_policy(scores: Float[Tensor, "b h q k"], policy: Float[Tensor, "b 1 _ k"]) -> Float[Tensor, "b h q k"]:
    """DynamicViT's softmax over the keys whose `policy` is 1, as in the reference.

    The maximum is taken over all scores, and numerator and denominator have a small constant: if no key is let through,
    the result is the uniform mean.
    """
    weights = (scores - scores.amax(dim=-1, keepdim=True)).float().exp() * policy.float()
    weights = (weights + POLICY_EPS / scores.shape[-1]) / (weights.sum(dim=-1, keepdim=True) + POLICY_EPS)
    return weights.to(scores.dtype)


class Block(nn.Module):
    """Pre-norm self-attention, cross-attention and MLP, of the merger and of the token decoders."""

    def __init__(self, width: int, heads: int, mlp_width: int):
        super().__init__()
        self.norm0 = nn.LayerNorm(width, eps=NORM_EPS)
        self.self_attention = Attention(width, heads)
        self.norm1 = nn.LayerNorm(width, eps=NORM_EPS)
        self.cross_attention = Attention(width, heads)
        self.norm2 = nn.LayerNorm(width, eps=NORM_EPS)
        self.mlp = Mlp(width, mlp_width)

    def forward(
        self,
        x: Float[Tensor, "b q d"],
        source: Float[Tensor, "b k d"],
        self_policy: Float[Tensor, "b 1 q q"] | None = None,
        cross_policy: Float[Tensor, "b 1 1 k"] | None = None,
        cross_mask: Float[Tensor, "b 1 1 k"] | None = None,
    ) -> Float[Tensor, "b q d"]:
        normed = self.norm0(x)
        x = x + self.self_attention(normed, normed, self_policy)
        x = x + self.cross_attention(self.norm1(x), source, cross_policy, cross_mask)
        return x + self.mlp(self.norm2(x))


class Selector(nn.Module):
    """Log-probabilities of keeping (0) and dropping (1) each patch, from the patch and the mean over the image."""

    def __init__(self, width: int):
        super().__init__()
        self.local = nn.Sequential(nn.LayerNorm(width, eps=NORM_EPS), nn.Linear(width, width), nn.GELU())
        self.score = nn.Sequential(
            nn.Linear(width, width // 2), nn.GELU(),
            nn.Linear(width // 2, width // 4), nn.GELU(),
            nn.Linear(width // 4, 2), nn.LogSoftmax(dim=-1),
        )  # fmt: skip

    def forward(self, features: Float[Tensor, "b n d"]) -> Float[Tensor, "b n 2"]:
        x = self.local(features)
        half = x.shape[-1] // 2
        pooled = x[..., half:].mean(dim=1, keepdim=True).expand(-1, x.shape[1], -1)
        return self.score(torch.cat([x[..., :half], pooled], dim=-1))


class LavitTokenizer(nn.Module):
    """Images to a varying number of codes each."""

    def __init__(self, config: LavitConfig):
        super().__init__()
        self.config = config
        # Branch II's tower is the same EVA-CLIP; LaVIT reads all of its blocks, and its own norm takes `ln_vision`'s place
        self.vision = VisionEncoder(
            SemanticConfig(
                image_size=config.image_size,
                patch_size=config.patch_size,
                vision_width=config.width,
                vision_layers=config.vision_layers,
                vision_heads=config.vision_heads,
                vision_mlp_width=config.vision_mlp_width,
            )
        )
        self.selector = Selector(config.width)
        self.merger = nn.ModuleList(
            Block(config.width, config.merger_heads, config.merger_mlp_width) for _ in range(config.merger_layers)
        )
        self.merger_norm = nn.LayerNorm(config.width, eps=NORM_EPS)
        self.encode_task = task_layer(config.width, config.width, config.codebook_dim)
        self.quantizer = nn.ModuleDict({"embedding": nn.Embedding(config.codebook_size, config.codebook_dim)})

    @property
    def codebook(self) -> Float[Tensor, "k d"]:
        """The codes. They were unit vectors when training began and have not been normalised since."""
        return self.quantizer["embedding"].weight

    def features(self, images: Float[Tensor, "b 3 H W"]) -> Float[Tensor, "b n d"]:
        """The tower's patch features, without the class token. Images are resized without antialiasing, as in the reference."""
        size = (self.config.image_size, self.config.image_size)
        if tuple(images.shape[-2:]) != size:
            images = F.interpolate(images, size=size, mode="bicubic")
        return self.vision.raw(normalize_clip(images))[:, 1:]

    def merge(self, features: Float[Tensor, "b n d"], kept: Float[Tensor, "b n"]) -> Float[Tensor, "b n d"]:
        """All patches after the merger. Only the kept ones are used further.

        Each patch attends to itself and to the kept patches before it, then to the dropped patches.
        """
        source = self.vision.body.post_layernorm(features)
        positions = torch.arange(features.shape[1], device=features.device)
        causal = (positions[None] <= positions[:, None]).to(kept.dtype)
        itself = torch.eye(len(positions), device=kept.device, dtype=kept.dtype)
        visible = rearrange(kept, "b k -> b 1 1 k")
        self_policy = (visible + (1 - visible) * itself) * causal
        for block in self.merger:
            features = block(features, source, self_policy, 1 - visible)
        return self.merger_norm(features)

    def lookup(self, projected: Float[Tensor, "m d"]) -> Int[Tensor, "m"]:
        """The code nearest to the normalised features."""
        return nearest_codes(F.normalize(projected, dim=-1), self.codebook)

    @torch.no_grad()
    def encode(
        self, images: Float[Tensor, "b 3 H W"], generator: torch.Generator | None = None
    ) -> tuple[Int[Tensor, "_"], ...]:
        """One sequence of indices per image, of varying length. If no patch is kept, the most probable one is."""
        features = self.features(images)
        scores = self.selector(features.float())
        kept = draw_kept(scores, generator)
        merged = self.merge(features, kept.to(features.dtype))
        return tuple(self.lookup(self.encode_task(rows[mask])) for rows, mask in zip(merged, kept, strict=True))


def draw_kept(log_probs: Float[Tensor, "b n 2"], generator: torch.Generator | None = None) -> Bool[Tensor, "b n"]:
    """One Gumbel draw per patch. At least the most probable patch is kept, since an image needs a token to decode from."""
    generators = same_generators(len(log_probs), generator)
    uniform = torch.stack([torch.rand(log_probs.shape[1:], generator=one) for one in generators]).to(log_probs.device)
    noise = -torch.log(-torch.log(uniform.clamp(1e-20, 1 - 1e-7)))
    noisy = log_probs + noise
    kept = noisy[..., 0] > noisy[..., 1]
    likeliest = F.one_hot(log_probs[..., 0].argmax(dim=1), log_probs.shape[1]).bool()
    return torch.where(kept.any(dim=1, keepdim=True), kept, likeliest)


class AttentionPool(nn.Module):
    """CLIP's attention pooling: the mean of the tokens is the only query."""

    def __init__(self, num_tokens: int, width: int, heads: int, out_width: int):
        super().__init__()
        self.heads = heads
        self.position_embeds = nn.Parameter(torch.zeros(num_tokens + 1, width))
        self.q_proj = nn.Linear(width, width)
        self.k_proj = nn.Linear(width, width)
        self.v_proj = nn.Linear(width, width)
        self.c_proj = nn.Linear(width, out_width)

    def forward(self, x: Float[Tensor, "b n d"]) -> Float[Tensor, "b e"]:
        x = torch.cat([x.mean(dim=1, keepdim=True), x], dim=1) + self.position_embeds
        query, key, value = (
            rearrange(part, "b n (h d) -> b h n d", h=self.heads)
            for part in (self.q_proj(x[:, :1]), self.k_proj(x), self.v_proj(x))
        )
        pooled = F.scaled_dot_product_attention(query, key, value)
        return self.c_proj(rearrange(pooled, "b h 1 d -> b (h d)"))


class LavitTokenDecoder(nn.Module):
    """Codes to the condition of a U-Net."""

    def __init__(self, config: LavitDecoderConfig):
        super().__init__()
        self.config = config
        self.embed = nn.Linear(config.codebook_dim, config.width)
        self.position_embeds = nn.Parameter(torch.zeros(1, config.num_queries, config.width))
        self.query_embeds = nn.Parameter(torch.zeros(1, config.num_queries, config.width))
        self.blocks = nn.ModuleList(Block(config.width, config.heads, config.mlp_width) for _ in range(config.layers))
        self.norm = nn.LayerNorm(config.width, eps=NORM_EPS)
        self.decode_task = task_layer(config.width, config.width, config.out_width)
        self.projections = nn.ModuleList(nn.Linear(config.out_width, width) for width in config.condition_widths)
        self.pool = (
            AttentionPool(config.num_queries, config.out_width, config.heads, config.pooled_width)
            if config.pooled_width is not None
            else None
        )

    def forward(
        self, codes: tuple[Float[Tensor, "_ d"], ...]
    ) -> tuple[Float[Tensor, "b q e"], Float[Tensor, "b p"] | None]:
        """One sequence of codes per image to cross-attention states, and pooled states for the high-resolution decoder.

        A code's position is its rank among the kept patches, not the position of its patch.
        """
        lengths = torch.tensor([len(sequence) for sequence in codes], device=self.query_embeds.device)
        longest = int(lengths.max())
        if longest > self.config.num_queries or lengths.min() < 1:
            raise HybridTokenizerError(
                f"sequences of {lengths.tolist()} codes; this decoder takes 1 to {self.config.num_queries} per image"
            )
        padded = nn.utils.rnn.pad_sequence([self.embed(sequence) for sequence in codes], batch_first=True)
        padded = padded + self.position_embeds[:, :longest]
        present = torch.arange(longest, device=lengths.device)[None] < lengths[:, None]
        mask = rearrange((~present).to(padded.dtype) * MASKED, "b k -> b 1 1 k")
        hidden = self.query_embeds.expand(len(codes), -1, -1)
        for block in self.blocks:
            hidden = block(hidden, padded, cross_mask=mask)
        hidden = self.decode_task(self.norm(hidden))
        condition = torch.cat([projection(hidden) for projection in self.projections], dim=-1)
        return condition, None if self.pool is None else self.pool(hidden)


def build_tokenizer(
    state: dict[str, Tensor], source: str, vision_heads: int = 16, merger_heads: int = 16
) -> LavitTokenizer:
    """The tokenizer from the joined state dict of its two files. The weights do not show the number of heads."""
    converted, sizes = encoder_to_model(state, source)
    config = LavitConfig(**sizes, vision_heads=vision_heads, merger_heads=merger_heads)
    return fill(lambda: LavitTokenizer(config), converted, source)


def build_token_decoder(state: dict[str, Tensor], source: str, heads: int = 16) -> LavitTokenDecoder:
    """A token decoder from its file."""
    converted, sizes = decoder_to_model(state, source)
    return fill(lambda: LavitTokenDecoder(LavitDecoderConfig(**sizes, heads=heads)), converted, source)


@dataclass(frozen=True)
class LavitTokens:
    """One sequence of indices per image, of varying length."""

    indices: tuple[Int[Tensor, "_"], ...]


class LavitRow(nn.Module):
    """LaVIT as a row: the dynamic tokenizer, a token decoder, and its diffusion model sampled by DDIM from pure noise.

    null_states: the null condition of the low-resolution U-Net, zero-padded and masked. None means all zeros, as the
    high-resolution U-Net expects. The defaults are those of the authors' notebook.
    """

    def __init__(
        self, name: str, tokenizer: LavitTokenizer, decoder: LavitTokenDecoder, unet: nn.Module, vae: nn.Module,
        scheduler: object, null_states: Float[Tensor, "n d"] | None, num_inference_steps: int = 50,
        guidance_scale: float = 7.0,
    ):  # fmt: skip
        super().__init__()
        self.name = name
        self.native_size = tokenizer.config.image_size
        self.tokenizer, self.decoder, self.unet, self.vae = tokenizer, decoder, unet, vae
        self.scheduler = scheduler
        self.register_buffer("null_states", null_states)
        self.num_inference_steps = num_inference_steps
        self.guidance_scale = guidance_scale

    @property
    def render_size(self) -> int:
        """The diffusion model's own size."""
        return self.unet.config.sample_size * 2 ** (len(self.vae.config.block_out_channels) - 1)

    def encode(self, images: Float[Tensor, "b 3 h w"], generator: torch.Generator | None = None) -> LavitTokens:
        """The generator decides which patches are kept."""
        check_range(images)
        return LavitTokens(self.tokenizer.encode(images.to(self.decoder.query_embeds.device).float(), generator))

    @torch.no_grad()
    def decode(
        self, tokens: LavitTokens, size: tuple[int, int], generator: torch.Generator | None = None
    ) -> Float[Tensor, "b 3 H W"]:
        """At the diffusion model's own size, then bicubic to `size`."""
        states, pooled = self.decoder(tuple(self.tokenizer.codebook[indices] for indices in tokens.indices))
        side = self.unet.config.sample_size
        factor = 2 ** (len(self.vae.config.block_out_channels) - 1)
        condition = Condition(states, torch.ones(states.shape[:2], dtype=torch.bool, device=states.device), pooled)
        latents = sample(
            self.unet, self.scheduler, condition, self.null_condition(condition), (side, side),
            num_inference_steps=self.num_inference_steps, guidance_scale=self.guidance_scale,
            generators=same_generators(len(states), generator), image_size=(side * factor, side * factor),
        )  # fmt: skip
        decoded = self.vae.decode(latents / self.vae.config.scaling_factor).sample
        return resize_bicubic(decoded.float().clamp(-1, 1), size).clamp(-1, 1)

    def null_condition(self, condition: Condition) -> Condition:
        """The null condition in the shape of `condition`."""
        states = torch.zeros_like(condition.states)
        if self.null_states is None:
            return Condition(states, condition.mask, torch.zeros_like(condition.pooled))
        states[:, : len(self.null_states)] = self.null_states
        mask = torch.zeros_like(condition.mask)
        mask[:, : len(self.null_states)] = True
        return Condition(states, mask)

    def num_tokens(self, tokens: LavitTokens) -> Int[Tensor, "b"]:
        """The number of kept patches."""
        return torch.tensor([len(indices) for indices in tokens.indices])

    def bits(self, tokens: LavitTokens) -> Float[Tensor, "b"]:
        """log2 of the codebook's size for each token."""
        return self.num_tokens(tokens).float() * math.log2(self.tokenizer.config.codebook_size)


def load_lavit_row(name: str, folder: Path, heads: int = 16) -> LavitRow:
    """`lavit` (high resolution) or `lavit_lowres` from LaVIT's published folder."""
    from diffusers import AutoencoderKL, UNet2DConditionModel

    lowres = name.endswith("lowres")
    files, pixels = folder / "visual_tokenizer", folder / ("pixel_decoding" if lowres else "highres_pixel_decoding")

    encoder = read_foreign(files / "tokenizer_encoder.bin")
    if not any(key.startswith("encoder.") for key in encoder):
        encoder = join_files([read_foreign(files / "eva_vitg_psz14.bin"), encoder])
    tokenizer = build_tokenizer(encoder, str(files), heads, heads)
    file = "tokenizer_decoder.bin" if lowres else "highres_tokenizer_decoder.bin"
    decoder = build_token_decoder(read_foreign(files / file), str(files / file), heads)
    if (decoder.pool is None) != lowres:
        raise HybridTokenizerError(f"{files / file} is the other decoder of the two; download LaVIT's folder again")
    null_states = read_null_states(pixels / "uncond_embeddings.bin") if lowres else None
    unet = load_diffusers_model(pixels / "unet", UNet2DConditionModel)
    vae = load_diffusers_model(pixels / "vae", AutoencoderKL)
    scheduler = load_scheduler(pixels / "scheduler", "DDIMScheduler")
    return LavitRow(name, tokenizer, decoder, unet, vae, scheduler, null_states).eval()


def read_null_states(path: Path) -> Float[Tensor, "n d"]:
    """The stored null condition, one tensor."""
    if not path.is_file():
        raise HybridTokenizerError(f"{path} does not exist; download LaVIT's pixel_decoding folder")
    stored = read_pickle(path)
    if not (is_plain(stored) and stored.is_floating_point() and stored.ndim == 3 and stored.numel()):
        raise HybridTokenizerError(f"{path} is not a floating tensor of shape 1 x n x d; download it again")
    check_finite({"the tensor": stored}, str(path))
    return stored[0].float()
