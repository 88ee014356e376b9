"""MoVQ: MoVQGAN's files and the `movq` folders of Kandinsky. It is Branch I without a stem."""

from pathlib import Path

from torch import Tensor

from hybrid_tokenizer.checkpoints.files import load_strict
from hybrid_tokenizer.checkpoints.keys.movqgan import movqgan_to_guide
from hybrid_tokenizer.errors import HybridTokenizerError
from hybrid_tokenizer.guide import GuideConfig, GuideTokenizer
from hybrid_tokenizer.guide.warm_start import read_base


def build_movq(state: dict[str, Tensor], source: str) -> GuideTokenizer:
    """MoVQ from MoVQGAN's checkpoint."""
    converted, sizes = movqgan_to_guide(state, source)
    if sizes["norm_type"] != "spatial":
        raise HybridTokenizerError(f"{source} has no spatial norms, so it is no MoVQ; load it as vqgan")
    model = GuideTokenizer(GuideConfig.from_dict(sizes))
    load_strict(model, converted, source)
    return model.eval()


def build_movq_folder(folder: Path) -> GuideTokenizer:
    """MoVQ from a diffusers folder (`config.json` and weights), such as Kandinsky's `movq`."""
    state, config = read_base(folder)
    if config.norm_type != "spatial" or config.stem != "none":
        raise HybridTokenizerError(f"{folder} has no spatial norms, or a stem: it is no MoVQ; give a folder named movq")
    model = GuideTokenizer(config)
    load_strict(model, state, str(folder))
    return model.eval()
