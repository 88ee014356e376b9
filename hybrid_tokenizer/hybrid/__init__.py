"""HybridTokenizer: photographs to 32 semantic tokens and a guide grid, and back through diffusion."""

from hybrid_tokenizer.hybrid.noise import image_generators
from hybrid_tokenizer.hybrid.search import decoded_losses
from hybrid_tokenizer.hybrid.sizes import say_token_count
from hybrid_tokenizer.hybrid.tokenizer import HybridTokenizer

__all__ = ["HybridTokenizer", "decoded_losses", "image_generators", "say_token_count"]
