"""Branch I: images to guide tokens, guide tokens to guide images."""

import math
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from diffusers.models.autoencoders.vae import Decoder, Encoder
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor, nn

from hybrid_tokenizer.checkpoints.files import CONFIG_NAME, load_component, read_config, save_component
from hybrid_tokenizer.dct import CosineScale, LinearPath
from hybrid_tokenizer.devices import codebook_precision, count_parameters, fixed_batch
from hybrid_tokenizer.errors import HybridTokenizerError
from hybrid_tokenizer.guide.config import GuideConfig
from hybrid_tokenizer.guide.losses import recon_losses
from hybrid_tokenizer.guide.refiner import Refiner
from hybrid_tokenizer.guide.search import CodeGrids, GuideLosses, search_codes
from hybrid_tokenizer.images import check_computed, full_resolution_chunk, in_chunks, in_fixed_chunks, resize_area
from hybrid_tokenizer.quantizers import Quantized, build_quantizer

SEARCHED_AT_ONCE = 16
"""Images per batch of the search on a GPU: the gradient keeps every layer of a decode in memory."""


class GuideOutput(NamedTuple):
    """Output of one training pass."""

    guide_images: Float[Tensor, "b 3 gh gw"]
    quantized: Quantized
    """Of the full grid. The losses are unweighted; for a nested guide they are means over its scales."""
    indices: tuple[Int[Tensor, "b h w"], ...]
    """Coarse to fine."""


class ResidualFront(nn.Module):
    """`resize_area(x) + g(x)`, where g's last convolution is initialised to zero: at step 0 the trunk sees the resized image.

    g has log2(factor) strided levels on the full-resolution image, so training can add what the resize discards.
    """

    def __init__(self, factor: int, channels: int):
        super().__init__()
        self.factor = factor
        levels = round(math.log2(factor)) + 1
        self.body = Encoder(
            in_channels=3, out_channels=3, double_z=False, mid_block_add_attention=False, layers_per_block=1,
            down_block_types=("DownEncoderBlock2D",) * levels, block_out_channels=(channels,) * levels,
        )  # fmt: skip
        nn.init.zeros_(self.body.conv_out.weight)
        nn.init.zeros_(self.body.conv_out.bias)

    def forward(self, images: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b 3 gh gw"]:
        resized = resize_area(images, (images.shape[-2] // self.factor, images.shape[-1] // self.factor))
        return resized + self.body(images)


class GuideTokenizer(nn.Module):
    """Branch I: MoVQ's encoder, codebook and decoder, with a deeper encoder. With `guide_scales` the code is nested.

    Tokens depend on rounding near decision boundaries: encode in fp32 where they must agree between machines.

    Args:
        config: every size. The weights are random; `from_pretrained` reads trained ones.

    Examples:
        >>> guide = GuideTokenizer.from_pretrained("outputs/guide/final")
        >>> grids = guide.encode(images)
        >>> guide.decode(grids).clamp(-1, 1)
    """

    def __init__(self, config: GuideConfig):
        super().__init__()
        self.config = config
        encoder_channels = list(config.encoder_channels)
        in_channels = 3
        self.stem: nn.Module = nn.Identity()
        if config.stem == "residual_front":
            self.stem = ResidualFront(config.stem_factor, config.stem_channels)
        elif config.stem == "unshuffle":
            self.stem = nn.PixelUnshuffle(config.stem_factor)
            in_channels = 3 * config.stem_factor**2
        elif config.stem == "appended":
            encoder_channels += encoder_channels[-1:] * round(math.log2(config.stem_factor))
        self.encoder = Encoder(
            in_channels=in_channels, out_channels=config.z_channels, double_z=False,
            down_block_types=block_types(len(encoder_channels), config.encoder_attention, "DownEncoderBlock2D"),
            block_out_channels=tuple(encoder_channels),
            layers_per_block=config.encoder_layers, norm_num_groups=config.norm_num_groups,
        )  # fmt: skip
        self.quant_conv = nn.Conv2d(config.z_channels, config.quantizer.codebook_dim, 1)
        self.quantizer = build_quantizer(config.quantizer)
        self.post_quant_conv = nn.Conv2d(config.quantizer.codebook_dim, config.z_channels, 1)
        self.decoder = Decoder(
            in_channels=config.z_channels, out_channels=3,
            up_block_types=block_types(len(config.decoder_channels), config.decoder_attention, "UpDecoderBlock2D")[::-1],
            block_out_channels=tuple(config.decoder_channels),
            layers_per_block=config.decoder_layers, norm_num_groups=config.norm_num_groups, norm_type=config.norm_type,
        )  # fmt: skip
        self.refiner = Refiner(config.refiner_blocks, config.refiner_channels) if config.refiner_blocks else None
        self.linear_path: LinearPath | None = None
        if config.linear_path:
            self.linear_path = LinearPath(config.quantizer.codebook_dim, config.upsample_factor)
            for last in (self.quant_conv, self.decoder.conv_out):  # at step 0 the networks add nothing
                nn.init.zeros_(last.weight)
                nn.init.zeros_(last.bias)
        self.cosine_scales: nn.ModuleList | None = None
        if config.scale_interpolation == "cosine":
            factors = [config.guide_scales[-1] // scale for scale in config.guide_scales]
            self.cosine_scales = nn.ModuleList(
                CosineScale(config.quantizer.codebook_dim, config.upsample_factor, factor) for factor in factors
            )

    def __repr__(self) -> str:
        config = self.config
        side = config.image_size
        grids = " + ".join(f"{height}x{width}" for height, width in self.guide_scale_sizes((side, side)))
        return (
            f"GuideTokenizer({side} px to {grids} tokens of {self.codebook_size} codes, to a guide of {config.guide_size} px; "
            f"{count_parameters(self)})"
        )

    @property
    def downsample_factor(self) -> int:
        """Image pixels per token along each side."""
        return self.config.downsample_factor

    @property
    def upsample_factor(self) -> int:
        """Guide pixels per token along each side."""
        return self.config.upsample_factor

    @property
    def codebook_size(self) -> int:
        """Number of codes. All scales share one codebook."""
        return self.config.quantizer.codebook_size

    @property
    def last_weight(self) -> Float[Tensor, "..."]:
        """Weight of the last trained convolution, where VQGAN's adaptive weight compares gradients."""
        return self.decoder.conv_out.weight if self.refiner is None else self.refiner.last.weight

    def decoding_modules(self) -> list[nn.Module]:
        """The modules that decode codes to guide images. Under fp16 they must stay fp32: the embedded preset's
        activations reach 130,000."""
        modules = [self.post_quant_conv, self.decoder, self.refiner, self.linear_path]
        return [module for module in modules if module is not None]

    def num_tokens(self, guide_indices: Sequence[Int[Tensor, "b _ _"]]) -> int:
        """Tokens per image."""
        return sum(grid.shape[1] * grid.shape[2] for grid in guide_indices)

    def guide_scale_sizes(self, image_size: tuple[int, int]) -> list[tuple[int, int]]:
        """The token grids (h, w), coarse to fine, of an image of (height, width)."""
        return self.config.scale_sizes(self.config.grid_size(image_size))

    def features(self, images: Float[Tensor, "b 3 H W"]) -> Float[Tensor, "b h w d"]:
        """The encoder's features, which the codebook quantizes."""
        grid_size = self.config.grid_size((images.shape[-2], images.shape[-1]))
        encoded = self.encoder(self.stem(images.to(self.quant_conv.weight.dtype)))
        features = rearrange(self.quant_conv(encoded), "b d h w -> b h w d")
        return features if self.linear_path is None else features + self.linear_path.features(images, grid_size)

    def decode_quantized(self, quantized: Float[Tensor, "b h w d"]) -> Float[Tensor, "b 3 gh gw"]:
        """Decode code vectors, or their sum over scales, to guide images. The result is not clamped."""
        codes = rearrange(quantized, "b h w d -> b d h w").to(self.post_quant_conv.weight.dtype)
        # MoVQ: the norms read the code vectors themselves; only the decoder's input passes post_quant_conv
        condition = codes if self.config.norm_type == "spatial" else None
        decoded = self.decoder(self.post_quant_conv(codes), condition)
        if self.linear_path is not None:
            decoded = decoded + self.linear_path.images(quantized)
        return decoded if self.refiner is None else self.refiner(decoded)

    def forward(self, images: Float[Tensor, "b 3 H W"], generator: torch.Generator | None = None) -> GuideOutput:
        """One training pass. `generator` draws the prefixes of a nested guide; None uses torch's global generator."""
        features = self.features(images)
        if self.config.guide_scales is None:
            quantized = self.quantizer(features)
            indices: tuple[Tensor, ...] = (quantized.indices,)
        else:
            quantized, indices = self._quantize_nested(features, generator)
        return GuideOutput(self.decode_quantized(quantized.quantized), quantized, indices)

    @torch.no_grad()
    def encode(
        self,
        images: Float[Tensor, "b 3 H W"],
        guide_scales: int | None = None,
        search_steps: int = 0,
    ) -> CodeGrids:
        """Images to grids of indices.

        Args:
            images: floats in [-1, 1], sides multiples of `downsample_factor`.
            guide_scales: how many grids of a nested guide to keep, starting at the coarsest. None keeps all.
            search_steps: gradient steps of `search` for codes with a lower loss of eq. 5. 0 is one encoder pass.

        Returns:
            Grids of codebook positions of shape (b, h, w), coarse to fine; one grid for a guide of one size.

        Raises:
            HybridTokenizerError: sides or numbers out of range, or features that are not finite.
        """
        if search_steps:
            return self.search(
                images, lambda rows: partial(recon_losses, images=images[rows]), search_steps, guide_scales
            )
        self.check_scales(guide_scales)

        def codes(some: Float[Tensor, "c 3 H W"]) -> CodeGrids:
            chunk = full_resolution_chunk(some.device, (some.shape[-2], some.shape[-1]))
            features = in_chunks(self.features, some, chunk).float()
            return self.nearest_codes(check_computed(features, "guide"), guide_scales)

        fixed = fixed_batch(images.device)
        with codebook_precision():
            return codes(images) if fixed is None else in_fixed_chunks(codes, images, fixed)

    @torch.no_grad()
    def search(
        self,
        images: Float[Tensor, "b 3 H W"],
        losses_for: Callable[[slice], GuideLosses],
        steps: int,
        guide_scales: int | None = None,
    ) -> CodeGrids:
        """`encode`, followed by `steps` of `search.search_codes`. `losses_for` returns the losses for a slice of `images`.

        On a CPU images are searched one at a time, so codes do not depend on the batch. Between two nearly equal codes
        rounding decides, so a few codes may differ between thread counts, machines, and batches on a GPU.
        """
        if steps < 0:
            raise HybridTokenizerError(f"search_steps={steps} must not be negative; 0 does not search")
        self.check_scales(guide_scales)
        chunk = full_resolution_chunk(images.device) or SEARCHED_AT_ONCE
        found = []
        for first in range(0, len(images), chunk):
            rows = slice(first, first + chunk)
            features = check_computed(self.features(images[rows]).float(), "guide")
            found.append(search_codes(self, features, losses_for(rows), steps, guide_scales))
        return tuple(torch.cat(grids) for grids in zip(*found, strict=True))

    def check_scales(self, guide_scales: int | None) -> None:
        """Raise when `guide_scales` is not between 1 and this guide's number of scales. None means all of them."""
        scales = len(self.config.guide_scales or [0])
        if guide_scales is not None and not 1 <= guide_scales <= scales:
            raise HybridTokenizerError(
                f"guide_scales={guide_scales} must lie in 1..{scales}, the scales of this guide tokenizer"
            )

    def nearest_codes(self, features: Float[Tensor, "b h w d"], guide_scales: int | None = None) -> CodeGrids:
        """Quantize what `features` returns to grids of indices, coarse to fine."""
        if self.config.guide_scales is None:
            return (self.quantizer.lookup(features)[1],)
        return tuple(indices for _, indices in self._residual_scales(features)[:guide_scales])

    def code_sum(self, grids: Sequence[Int[Tensor, "b _ _"]], grid_size: tuple[int, int]) -> Float[Tensor, "b h w d"]:
        """Sum of all grids' code vectors on the full grid."""
        if self.config.guide_scales is None:
            return self.quantizer.codes(grids[0])
        return sum(self.to_full_grid(self.quantizer.codes(grid), grid_size, i) for i, grid in enumerate(grids))

    @torch.no_grad()
    def decode(
        self, guide_indices: Sequence[Int[Tensor, "b _ _"]], grid_size: tuple[int, int] | None = None
    ) -> Float[Tensor, "b 3 gh gw"]:
        """Decode indices to guide images. Any prefix of a nested guide decodes at full size.

        Args:
            guide_indices: grids of shape (b, h, w), coarse to fine.
            grid_size: (h, w) of the full grid. A prefix does not always determine it: 3 coarse rows may belong to 12 or 13.

        Returns:
            Floats in about [-1, 1], not clamped, of `upsample_factor` times the full grid.

        Raises:
            HybridTokenizerError: grids that are not this guide's, or positions outside the codebook.
        """
        grids = list(guide_indices)
        scales = len(self.config.guide_scales or [0])
        if not 1 <= len(grids) <= scales:
            raise HybridTokenizerError(
                f"{len(grids)} guide grids were given; this guide tokenizer has 1..{scales}, coarse to fine"
            )
        for grid in grids:
            low, high = grid.aminmax()
            if low < 0 or high >= self.codebook_size:
                raise HybridTokenizerError(
                    f"guide indices span {low.item()} to {high.item()}; this codebook has 0..{self.codebook_size - 1}"
                )
        if self.config.guide_scales is None:
            return self._decode_in_chunks(self.code_sum(grids, grids[0].shape[-2:]))
        if grid_size is None:
            finest = grids[-1].shape[-2:]
            grid_size = tuple(
                side * self.config.guide_scales[-1] // self.config.guide_scales[len(grids) - 1] for side in finest
            )
        sizes = self.config.scale_sizes(grid_size)
        given = [tuple(grid.shape[-2:]) for grid in grids]
        if given != sizes[: len(grids)]:
            raise HybridTokenizerError(
                f"guide grids {given} are not the first scales {sizes} of a {grid_size[0]}x{grid_size[1]} grid; "
                "pass grid_size=(h, w) of the full grid"
            )
        return self._decode_in_chunks(self.code_sum(grids, grid_size))

    def _decode_in_chunks(self, quantized: Float[Tensor, "b h w d"]) -> Float[Tensor, "b 3 gh gw"]:
        return in_chunks(self.decode_quantized, quantized, full_resolution_chunk(quantized.device))

    def to_full_grid(
        self, codes: Float[Tensor, "b _ _ d"], size: tuple[int, int], scale: int
    ) -> Float[Tensor, "b h w d"]:
        """Upsample the code vectors of scale number `scale` to the full grid."""
        if tuple(codes.shape[1:3]) == tuple(size):
            return codes
        if self.cosine_scales is not None:
            return self.cosine_scales[scale].up(codes, size)
        planes = rearrange(codes, "b h w d -> b d h w")
        resized = F.interpolate(planes, size=size, mode=self.config.scale_interpolation, align_corners=False)
        return rearrange(resized, "b d h w -> b h w d")

    def to_scale(
        self, features: Float[Tensor, "b h w d"], size: tuple[int, int], scale: int
    ) -> Float[Tensor, "b _ _ d"]:
        """Downsample features of the full grid to what scale number `scale` quantizes. At full size they are unchanged."""
        if tuple(features.shape[1:3]) == size:
            return features
        if self.cosine_scales is not None:
            return self.cosine_scales[scale].down(features, size)
        planes = F.interpolate(rearrange(features, "b h w d -> b d h w"), size=size, mode="area")
        return rearrange(planes, "b d h w -> b h w d")

    def _residual_scales(
        self, features: Float[Tensor, "b h w d"]
    ) -> list[tuple[Float[Tensor, "b _ _ d"], Int[Tensor, "b _ _"]]]:
        """VAR's residual loop (Tian et al. 2024, algorithm 1, without its convolutions). Yields each scale's input and indices.

        The inputs carry the features' gradient; the codes that coarser scales subtract are constants.
        """
        size = (features.shape[1], features.shape[2])
        subtracted = torch.zeros_like(features)
        scales = []
        for scale, scale_size in enumerate(self.config.scale_sizes(size)):
            residual = self.to_scale(features - subtracted, scale_size, scale)
            codes, indices = self.quantizer.lookup(residual.detach())
            subtracted = subtracted + self.to_full_grid(codes.detach(), size, scale)
            scales.append((residual, indices))
        return scales

    def _quantize_nested(
        self, features: Float[Tensor, "b h w d"], generator: torch.Generator | None
    ) -> tuple[Quantized, tuple[Int[Tensor, "b _ _"], ...]]:
        """Quantize all scales in one call, so that a running-mean codebook moves once per step, by all of them."""
        batch, size = features.shape[0], (features.shape[1], features.shape[2])
        features = features.float()
        inputs = [residual for residual, _ in self._residual_scales(features)]
        lengths = [residual.shape[1] * residual.shape[2] for residual in inputs]
        flat = self.quantizer(torch.cat([rearrange(residual, "b h w d -> b (h w) d") for residual in inputs], dim=1))
        codes, indices = flat.quantized.detach().split(lengths, dim=1), flat.indices.split(lengths, dim=1)
        dropout = self.config.prefix_dropout if self.training else 0.0
        kept = prefix_lengths(batch, len(inputs), dropout, generator, features.device)
        total, carrier = torch.zeros_like(features), features
        grids = []
        for scale, residual in enumerate(inputs):
            height, width = residual.shape[1:3]
            up = self.to_full_grid(rearrange(codes[scale], "b (h w) d -> b h w d", h=height), size, scale)
            total = total + up * (kept > scale).to(up.dtype)[:, None, None, None]
            grids.append(indices[scale].reshape(batch, height, width))
            if scale + 1 < len(inputs):
                # only what a shortened code can represent; the gradient of the rest makes the features grow
                coarse = self.to_full_grid(self.to_scale(features, (height, width), scale), size, scale)
                carrier = torch.where((kept == scale + 1)[:, None, None, None], coarse, carrier)
        quantized = carrier + (total - carrier).detach()
        return flat._replace(quantized=quantized, indices=grids[-1]), tuple(grids)

    def save_pretrained(self, folder: str | Path, dtype: torch.dtype | None = None) -> None:
        """Write `config.json` and `model.safetensors`. Floating-point weights are cast to `dtype` if it is given."""
        save_component(Path(folder), self.config, self, dtype)

    @classmethod
    def from_pretrained(cls, folder: str | Path) -> "GuideTokenizer":
        """Read what `save_pretrained` wrote. The module is in evaluation mode."""
        folder = Path(folder)
        config = GuideConfig.from_dict(read_config(folder / CONFIG_NAME), str(folder / CONFIG_NAME))
        return load_component(folder, lambda: cls(config))


def block_types(levels: int, attention: Sequence[int], plain: str) -> tuple[str, ...]:
    """diffusers' block names, highest resolution first."""
    return tuple(f"Attn{plain}" if level in attention else plain for level in range(levels))


def prefix_lengths(
    batch: int,
    scales: int,
    dropout: float,
    generator: torch.Generator | None = None,
    device: torch.device | str = "cpu",
) -> Int[Tensor, "batch"]:
    """How many scales each image keeps: all of them, or with probability `dropout` a uniformly drawn smaller number.

    Drawn on `device`, or on the generator's.
    """
    place = device if generator is None else generator.device
    shortened = torch.rand(batch, generator=generator, device=place) < dropout
    lengths = torch.randint(1, max(scales, 2), (batch,), generator=generator, device=place)
    return torch.where(shortened, lengths, scales).to(device, non_blocking=True)
