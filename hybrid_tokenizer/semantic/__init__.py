"""Branch II: the semantic tokenizer, SEED v1 by default."""

from hybrid_tokenizer.semantic.config import SemanticConfig
from hybrid_tokenizer.semantic.contrastive import ContrastiveConfig, ContrastiveHeads
from hybrid_tokenizer.semantic.tokenizer import SemanticOutput, SemanticTokenizer

__all__ = ["ContrastiveConfig", "ContrastiveHeads", "SemanticConfig", "SemanticOutput", "SemanticTokenizer"]
