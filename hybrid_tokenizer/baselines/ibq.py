"""IBQ (index backpropagation quantization, SEED-Voken): the code with the largest dot product, not the nearest one."""

import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from hybrid_tokenizer.baselines.skeleton import Skeleton, largest_product
from hybrid_tokenizer.checkpoints.files import load_strict
from hybrid_tokenizer.checkpoints.keys.seed_voken import ibq_to_skeleton
from hybrid_tokenizer.guide import GuideConfig


class DotCodebook(nn.Module):
    """argmax of features . codes."""

    def __init__(self, codebook_size: int, codebook_dim: int):
        super().__init__()
        self.embedding = nn.Embedding(codebook_size, codebook_dim)

    def codes(self, indices: Int[Tensor, "*grid"]) -> Float[Tensor, "*grid d"]:
        """Rows of the codebook."""
        return F.embedding(indices, self.embedding.weight)

    def lookup(self, features: Float[Tensor, "*grid d"]) -> tuple[Float[Tensor, "*grid d"], Int[Tensor, "*grid"]]:
        """Codes and indices."""
        indices = largest_product(features, self.embedding.weight)
        return self.codes(indices), indices


def build_ibq(state: dict[str, Tensor], source: str) -> Skeleton:
    """IBQ from its checkpoint, with the averaged weights where the file has them."""
    converted, sizes = ibq_to_skeleton(state, source)
    config = GuideConfig.from_dict(sizes)
    model = Skeleton(config, DotCodebook(config.quantizer.codebook_size, config.quantizer.codebook_dim))
    load_strict(model, converted, source)
    return model.eval()
