"""Rows to compare with, each an ImageTokenizer: controls of the hybrid, codecs, other tokenizers."""

from hybrid_tokenizer.baselines.codec import Codec
from hybrid_tokenizer.baselines.controls import HybridRow, control_rows, hybrid_row

__all__ = ["Codec", "HybridRow", "control_rows", "hybrid_row"]
