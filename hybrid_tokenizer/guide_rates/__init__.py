"""Rate and distortion of guide tokenizers."""
