"""Measures whose weights the user provides: LPIPS, CLIP-I, DINO, rFID and KID.

LPIPS reads torchvision's published backbone files and takes its linear layers from torchmetrics. rFID and KID read
torch-fidelity's Inception (`pt_inception-2015-12-05-6726825d.pth`), and CLIP-I and DINO read folders in transformers'
form.
"""

import hashlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Float64, UInt8
from safetensors import SafetensorError
from torch import Tensor, nn

from hybrid_tokenizer.checkpoints.files import load_strict, read_foreign
from hybrid_tokenizer.devices import gather_over_ranks
from hybrid_tokenizer.errors import HybridTokenizerError, first_line
from hybrid_tokenizer.images import normalize_clip, resize_bicubic, to_uint8, to_unit

ALEX_FILE, VGG_FILE = "torchvision's alexnet-owt-7be5be79.pth", "torchvision's vgg16-397923af.pth"
INCEPTION_FILE = "torch-fidelity's pt_inception-2015-12-05-6726825d.pth"
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
KID_SUBSET = 1000


class LPIPS(nn.Module):
    """LPIPS v0.1 (Zhang et al. 2018) of `net`, "alex" or "vgg", with torchvision's ImageNet weights of that network."""

    def __init__(self, net: str, file: Path):
        super().__init__()
        try:
            from torchmetrics.functional.image.lpips import _LPIPS
        except ImportError:
            raise needs("torchmetrics") from None
        self.lpips = _LPIPS(net=net, pretrained=True, pnet_rand=True)  # the linear layers come with torchmetrics
        backbone = self.lpips.net
        state = read_foreign(file)
        slices = {key.split(".", 1)[1]: key for key in backbone.state_dict() if key.startswith("slice")}
        wanted = {f"features.{key}": slices[key] for key in slices}
        missing = sorted(set(wanted) - set(state))
        if missing:
            raise HybridTokenizerError(
                f"{file} lacks {', '.join(missing[:3])}: it is not torchvision's {net}; give {ALEX_FILE} or {VGG_FILE}"
            )
        load_strict(backbone, {name: state[key] for key, name in wanted.items()}, str(file))
        self.eval().requires_grad_(False)

    def forward(self, images: Float[Tensor, "b 3 h w"], references: Float[Tensor, "b 3 h w"]) -> Float64[Tensor, "b"]:
        """0 for equal images."""
        return self.lpips(images.clamp(-1, 1), references).flatten().double()


class Similarity(nn.Module):
    """Cosine of the image embeddings of a CLIP or DINO folder."""

    def __init__(self, folder: Path, clip: bool):
        super().__init__()
        from transformers import AutoModel, CLIPVisionModelWithProjection
        from transformers.utils import logging

        logging.disable_progress_bar()
        kind = CLIPVisionModelWithProjection if clip else AutoModel
        try:
            self.body, report = kind.from_pretrained(folder, local_files_only=True, output_loading_info=True)
        except (OSError, ValueError, RuntimeError, SafetensorError) as error:
            raise HybridTokenizerError(
                f"{folder} cannot be loaded ({first_line(error)}); give a folder in transformers' form"
            ) from None
        if report["missing_keys"]:
            raise HybridTokenizerError(
                f"{folder} lacks {len(report['missing_keys'])} weights, e.g. {sorted(report['missing_keys'])[0]}; give a "
                f"{'CLIP' if clip else 'DINO'} model"
            )
        self.clip = clip
        self.eval().requires_grad_(False)

    def embeds(self, images: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b d"]:
        """Embeddings of the images, resized to the model's own size."""
        side = self.body.config.image_size
        resized = resize_bicubic(images.float(), (side, side)).clamp(-1, 1)
        if self.clip:
            return self.body(pixel_values=normalize_clip(resized)).image_embeds
        mean, std = (resized.new_tensor(values).view(3, 1, 1) for values in (IMAGENET_MEAN, IMAGENET_STD))
        return self.body(pixel_values=(to_unit(resized) - mean) / std).last_hidden_state[:, 0]

    def forward(self, images: Float[Tensor, "b 3 h w"], references: Float[Tensor, "b 3 h w"]) -> Float64[Tensor, "b"]:
        """1 for equal images."""
        return F.cosine_similarity(self.embeds(images), self.embeds(references), dim=-1).double()


def clip_similarity(folder: Path) -> nn.Module:
    """CLIP-I: the cosine of CLIP's image embeddings, 1 for equal images."""
    return Similarity(folder, clip=True)


class DinoDistance(nn.Module):
    """1 minus the cosine of DINO's class tokens, 0 for equal images."""

    def __init__(self, folder: Path):
        super().__init__()
        self.similarity = Similarity(folder, clip=False)

    def forward(self, images: Float[Tensor, "b 3 h w"], references: Float[Tensor, "b 3 h w"]) -> Float64[Tensor, "b"]:
        """One value per image."""
        return 1 - self.similarity(images, references)


class Frechet:
    """rFID and KID of a whole set: reconstructions against references, streamed.

    In a distributed run every process updates its own instance with its share of the batches, which may be empty. All
    processes call `compute` and get the same values.
    """

    def __init__(self, features: "InceptionFeatures", names: list[str], device: torch.device | str):
        try:
            from torchmetrics.image.fid import FrechetInceptionDistance
            from torchmetrics.image.kid import KernelInceptionDistance
        except ImportError:
            raise needs("torchmetrics") from None
        self.names, self.device = names, device
        self.features = features
        # the metrics get features in place of images
        given = nn.Identity()
        given.num_features = features.network.num_features
        self.firsts: list[int] = []
        self.metrics: dict[str, Any] = {}
        if "rfid" in names:
            self.metrics["rfid"] = FrechetInceptionDistance(feature=given).set_dtype(torch.float64).to(device)
            self.metrics[
                "rfid"
            ].orig_dtype = torch.float64  # torchmetrics sets it in `update`, which may never be called
        if "kid" in names:
            # torchmetrics gathers one tensor per batch, and deadlocks if another process had fewer batches
            self.metrics["kid"] = KernelInceptionDistance(
                feature=given, subset_size=KID_SUBSET, sync_on_compute=False
            ).to(device)

    def update(self, images: Float[Tensor, "b 3 h w"], references: Float[Tensor, "b 3 h w"], first: int) -> None:
        """Add a batch. `first` is the position of its first image in the set."""
        self.firsts.append(first)
        real = self.features.of_references(to_uint8(references).to(self.device))
        made = self.features(to_uint8(images).to(self.device))
        for metric in self.metrics.values():
            metric.update(real, real=True)
            metric.update(made, real=False)

    def compute(self, count: int) -> dict[str, float | None]:
        """The values over all `count` images of the set; None under two images. KID is the mean over seeded subsets."""
        values: dict[str, float | None] = dict.fromkeys(self.names)
        kid = self._merged_kid() if "kid" in self.metrics else None
        if count < 2:
            return values
        if "rfid" in self.metrics:
            values["rfid"] = self.metrics["rfid"].compute().item()
        if kid is not None:
            kid.subset_size = min(KID_SUBSET, count)
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(0)  # it draws its subsets from the global generator
                values["kid"] = kid.compute()[0].item()
        return values

    def _merged_kid(self) -> Any:
        """torchmetrics' KID with the features of all processes, in the order of the set."""
        kid = self.metrics["kid"]
        own = [
            (first, real.cpu(), fake.cpu())
            for first, real, fake in zip(self.firsts, kid.real_features, kid.fake_features, strict=True)
        ]
        everything = sorted((entry for rank in gather_over_ranks(own) for entry in rank), key=lambda entry: entry[0])
        kid.real_features = [real.to(self.device) for _, real, _ in everything]
        kid.fake_features = [fake.to(self.device) for _, _, fake in everything]
        self.firsts = [first for first, _, _ in everything]
        return kid


class InceptionFeatures:
    """Inception's features. Those of the references, 8 KB per image, are kept, since every row has the same references."""

    def __init__(self, network: nn.Module):
        self.network = network
        self._kept: dict[bytes, Tensor] = {}

    def __call__(self, images: UInt8[Tensor, "b 3 h w"]) -> Float[Tensor, "b f"]:
        """Computed."""
        return self.network(images)

    def of_references(self, images: UInt8[Tensor, "b 3 h w"]) -> Float[Tensor, "b f"]:
        """Computed for batches that were not met before."""
        pixels = images.cpu().contiguous()
        key = hashlib.sha256(repr(tuple(images.shape)).encode() + pixels.numpy().tobytes()).digest()
        if key not in self._kept:
            self._kept[key] = self.network(images).cpu()
        return self._kept[key].to(images.device)


def of_a_set(weights: Mapping[str, str], device: torch.device | str) -> Callable[[], Frechet] | None:
    """A function that creates a new accumulator for rFID and KID, whichever `weights` names. None if it names neither."""
    names = [name for name in ("rfid", "kid") if name in weights]
    if not names:
        return None
    files = {weights[name] for name in names}
    if len(files) > 1:
        raise HybridTokenizerError(
            f"rfid and kid have different files ({', '.join(sorted(files))}); give the same to both"
        )
    features = InceptionFeatures(inception(Path(files.pop())).to(device))
    return lambda: Frechet(features, names, device)


def inception(file: Path) -> nn.Module:
    """torch-fidelity's Inception with the weights of `file`. It maps uint8 images to 2,048 features."""
    try:
        from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3
        from torchmetrics.image.fid import NoTrainInceptionV3
    except ImportError:
        raise needs("torch-fidelity") from None
    if not file.is_file():
        raise HybridTokenizerError(f"{file} does not exist; give {INCEPTION_FILE}")
    try:
        FeatureExtractorInceptionV3(
            "inception", ["2048"], feature_extractor_weights_path=str(file)
        )  # its errors are clear
        network = NoTrainInceptionV3("inception-v3-compat", ["2048"], feature_extractor_weights_path=str(file))
    except (RuntimeError, KeyError, ValueError, OSError, EOFError) as error:
        raise HybridTokenizerError(
            f"{file} is not torch-fidelity's Inception ({first_line(error)}); download it again"
        ) from None
    network.num_features = 2048
    return network


def needs(package: str) -> HybridTokenizerError:
    """The error of a measure whose package is not installed."""
    return HybridTokenizerError(f"this measure needs {package}; pip install 'hybrid_tokenizer[metrics]'")
