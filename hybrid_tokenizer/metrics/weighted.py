"""Measures whose weights the user brings: LPIPS, CLIP-I, DINO, rFID, KID.

LPIPS has torchvision's backbone files as they are published and torchmetrics' linear layers, rFID and KID the Inception
of torch-fidelity (`pt_inception-2015-12-05-6726825d.pth`), CLIP-I and DINO folders in transformers' form.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Float64
from safetensors import SafetensorError
from torch import Tensor, nn

from hybrid_tokenizer.checkpoints.files import load_strict, read_foreign
from hybrid_tokenizer.errors import HybridTokenizerError
from hybrid_tokenizer.images import normalize_clip, resize_bicubic, to_uint8, to_unit

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
KID_SUBSET = 1000

Measure = Callable[[Float[Tensor, "b 3 h w"], Float[Tensor, "b 3 h w"]], Float64[Tensor, "b"]]


def lpips(net: str, file: Path) -> nn.Module:
    """LPIPS v0.1 (Zhang et al. 2018) of `net`, "alex" or "vgg", on torchvision's ImageNet weights of that network."""
    try:
        from torchmetrics.functional.image.lpips import _LPIPS
    except ImportError:
        raise needs("torchmetrics") from None
    module = _LPIPS(net=net, pretrained=True, pnet_rand=True)  # the linear layers come with torchmetrics
    state = read_foreign(file)
    slices = {key.split(".", 1)[1]: key for key in module.net.state_dict() if key.startswith("slice")}
    wanted = {f"features.{key}": slices[key] for key in slices}
    missing = sorted(set(wanted) - set(state))
    if missing:
        raise HybridTokenizerError(
            f"{file} lacks {', '.join(missing[:3])}: it is not torchvision's {net}; give alexnet-owt-7be5be79.pth or "
            "vgg16-397923af.pth"
        )
    load_strict(module.net, {name: state[key] for key, name in wanted.items()}, str(file))
    return module.eval().requires_grad_(False)


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
                f"{folder} can not be loaded ({str(error).splitlines()[0]}); give a folder in transformers' form"
            ) from None
        if report["missing_keys"]:
            raise HybridTokenizerError(
                f"{folder} lacks {len(report['missing_keys'])} weights, e.g. {sorted(report['missing_keys'])[0]}; give a "
                f"{'CLIP' if clip else 'DINO'} model"
            )
        self.clip = clip
        self.eval().requires_grad_(False)

    def embeds(self, images: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b d"]:
        """Of the square resized to the model's own size."""
        side = self.body.config.image_size
        resized = resize_bicubic(images.float(), (side, side)).clamp(-1, 1)
        if self.clip:
            return self.body(pixel_values=normalize_clip(resized)).image_embeds
        mean, std = (resized.new_tensor(values).view(3, 1, 1) for values in (IMAGENET_MEAN, IMAGENET_STD))
        return self.body(pixel_values=(to_unit(resized) - mean) / std).last_hidden_state[:, 0]

    def forward(self, images: Float[Tensor, "b 3 h w"], references: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b"]:
        """1 where both say the same."""
        return F.cosine_similarity(self.embeds(images), self.embeds(references), dim=-1)


def per_image(weights: Mapping[str, str], device: torch.device | str) -> dict[str, Measure]:
    """Those of `weights` (name -> file or folder) that give a value an image; others are left to `of_a_set`."""
    measures: dict[str, Measure] = {}
    for name in ("lpips_alex", "lpips_vgg"):
        if name in weights:
            net = lpips(name.removeprefix("lpips_"), Path(weights[name])).to(device)
            measures[name] = lambda x, y, net=net: net(x.clamp(-1, 1), y).flatten().double()
    if "clip_i" in weights:
        clip = Similarity(Path(weights["clip_i"]), clip=True).to(device)
        measures["clip_i"] = lambda x, y: clip(x, y).double()
    if "dino_distance" in weights:
        dino = Similarity(Path(weights["dino_distance"]), clip=False).to(device)
        measures["dino_distance"] = lambda x, y: 1 - dino(x, y).double()
    return measures


class Frechet:
    """rFID and KID of a whole set: reconstructions against references, streamed."""

    def __init__(self, network: nn.Module, names: list[str], device: torch.device | str):
        try:
            from torchmetrics.image.fid import FrechetInceptionDistance
            from torchmetrics.image.kid import KernelInceptionDistance
        except ImportError:
            raise needs("torchmetrics") from None
        self.device, self.count = device, 0
        self.metrics: dict[str, Any] = {}
        if "rfid" in names:
            self.metrics["rfid"] = FrechetInceptionDistance(feature=network).set_dtype(torch.float64).to(device)
        if "kid" in names:
            self.metrics["kid"] = KernelInceptionDistance(feature=network, subset_size=KID_SUBSET).to(device)

    def update(self, images: Float[Tensor, "b 3 h w"], references: Float[Tensor, "b 3 h w"]) -> None:
        """Add a batch."""
        self.count += len(images)
        for metric in self.metrics.values():
            metric.update(to_uint8(references).to(self.device), real=True)
            metric.update(to_uint8(images).to(self.device), real=False)

    def compute(self) -> dict[str, float]:
        """rFID needs two images; KID is the mean over subsets of at most 1,000."""
        values: dict[str, float] = {}
        if "rfid" in self.metrics:
            values["rfid"] = self.metrics["rfid"].compute().item()
        if "kid" in self.metrics:
            self.metrics["kid"].subset_size = min(KID_SUBSET, self.count)
            values["kid"] = self.metrics["kid"].compute()[0].item()
        return values


def of_a_set(weights: Mapping[str, str], device: torch.device | str) -> Callable[[], Frechet] | None:
    """What makes a fresh accumulator of those of `weights` that belong to whole sets; None where there are none."""
    names = [name for name in ("rfid", "kid") if name in weights]
    if not names:
        return None
    files = {weights[name] for name in names}
    if len(files) > 1:
        raise HybridTokenizerError(
            f"rfid and kid have different files ({', '.join(sorted(files))}); give the same to both"
        )
    network = inception(Path(files.pop())).to(device)
    return lambda: Frechet(network, names, device)


def inception(file: Path) -> nn.Module:
    """torch-fidelity's Inception with the weights of `file`: uint8 images to 2,048 features."""
    try:
        from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3
        from torchmetrics.image.fid import NoTrainInceptionV3
    except ImportError:
        raise needs("torch-fidelity") from None
    if not file.is_file():
        raise HybridTokenizerError(f"{file} does not exist; give torch-fidelity's pt_inception-2015-12-05-6726825d.pth")
    try:
        FeatureExtractorInceptionV3(
            "inception", ["2048"], feature_extractor_weights_path=str(file)
        )  # its errors are clear
        network = NoTrainInceptionV3("inception-v3-compat", ["2048"], feature_extractor_weights_path=str(file))
    except (RuntimeError, KeyError, ValueError, OSError, EOFError) as error:
        raise HybridTokenizerError(
            f"{file} is not torch-fidelity's Inception ({str(error).splitlines()[0]}); download it again"
        ) from None
    network.num_features = 2048
    return network


def needs(package: str) -> HybridTokenizerError:
    """The error of a measure whose package is not there."""
    return HybridTokenizerError(f"this measure needs {package}; pip install 'hybrid_tokenizer[metrics]'")
