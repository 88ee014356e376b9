"""VQGAN (taming-transformers, latent-diffusion), with an ordinary and with a Gumbel codebook.

The ordinary one is Branch I without a stem and with group norms.
"""

import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from hybrid_tokenizer.baselines.skeleton import Skeleton
from hybrid_tokenizer.checkpoints.files import load_strict
from hybrid_tokenizer.checkpoints.keys.taming import gumbel_to_skeleton, taming_to_guide
from hybrid_tokenizer.errors import HybridTokenizerError
from hybrid_tokenizer.guide import GuideConfig, GuideTokenizer


class GumbelCodebook(nn.Module):
    """A linear layer gives one logit a code; the largest wins.

    The reference adds Gumbel noise to the logits even when it evaluates; this is its noise-free mode.
    """

    def __init__(self, codebook_size: int, codebook_dim: int):
        super().__init__()
        self.projection = nn.Linear(codebook_dim, codebook_size)
        self.embedding = nn.Embedding(codebook_size, codebook_dim)

    def codes(self, indices: Int[Tensor, "*grid"]) -> Float[Tensor, "*grid d"]:
        """Rows of the codebook."""
        return F.embedding(indices, self.embedding.weight)

    def lookup(self, features: Float[Tensor, "*grid d"]) -> tuple[Float[Tensor, "*grid d"], Int[Tensor, "*grid"]]:
        """Codes and indices."""
        indices = self.projection(features).argmax(dim=-1)
        return self.codes(indices), indices


def build_vqgan(state: dict[str, Tensor], source: str) -> GuideTokenizer:
    """VQGAN from its checkpoint."""
    converted, sizes = taming_to_guide(state, source)
    if sizes["norm_type"] != "group":
        raise HybridTokenizerError(f"{source} has MoVQ's spatial norms; load it as movq")
    model = GuideTokenizer(GuideConfig.from_dict(sizes))
    load_strict(model, converted, source)
    return model.eval()


def build_gumbel(state: dict[str, Tensor], source: str) -> Skeleton:
    """Gumbel VQGAN from its checkpoint."""
    converted, sizes = gumbel_to_skeleton(state, source)
    config = GuideConfig.from_dict(sizes)
    model = Skeleton(config, GumbelCodebook(config.quantizer.codebook_size, config.quantizer.codebook_dim))
    load_strict(model, converted, source)
    return model.eval()
