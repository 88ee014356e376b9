"""Branch II: the semantic tokenizer, SEED v1 by default."""

from hybrid_tokenizer.semantic.config import SemanticConfig
from hybrid_tokenizer.semantic.tokenizer import SemanticOutput, SemanticTokenizer

__all__ = ["SemanticConfig", "SemanticOutput", "SemanticTokenizer"]
