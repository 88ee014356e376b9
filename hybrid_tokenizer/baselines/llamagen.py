"""LlamaGen's VQ: features and codes on the unit sphere, in lookup and in decoding."""

import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from hybrid_tokenizer.baselines.skeleton import Skeleton, largest_product
from hybrid_tokenizer.checkpoints.files import load_strict
from hybrid_tokenizer.checkpoints.keys.llamagen import llamagen_to_skeleton
from hybrid_tokenizer.guide import GuideConfig


class UnitCodebook(nn.Module):
    """The code at the smallest angle; what is decoded has length 1."""

    def __init__(self, codebook_size: int, codebook_dim: int):
        super().__init__()
        self.embedding = nn.Embedding(codebook_size, codebook_dim)

    def codes(self, indices: Int[Tensor, "*grid"]) -> Float[Tensor, "*grid d"]:
        """Rows of the codebook, of length 1."""
        return F.normalize(F.embedding(indices, self.embedding.weight), dim=-1)

    def lookup(self, features: Float[Tensor, "*grid d"]) -> tuple[Float[Tensor, "*grid d"], Int[Tensor, "*grid"]]:
        """Codes and indices. The features' own length does not change which code is largest."""
        indices = largest_product(F.normalize(features, dim=-1), F.normalize(self.embedding.weight, dim=-1))
        return self.codes(indices), indices


def build_llamagen(state: dict[str, Tensor], source: str) -> Skeleton:
    """LlamaGen's VQ from its checkpoint."""
    converted, sizes = llamagen_to_skeleton(state, source)
    config = GuideConfig.from_dict(sizes)
    model = Skeleton(config, UnitCodebook(config.quantizer.codebook_size, config.quantizer.codebook_dim))
    load_strict(model, converted, source)
    return model.eval()
