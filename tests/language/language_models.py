"""Small causal models on a small image vocabulary."""

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from hybrid_tokenizer.tokens import HybridTokens, HybridVocabulary, TokenSource

SMALL = HybridVocabulary(
    20, 50, ((1, 2), (2, 3), (3, 4)), (24, 32), text_vocab_size=10, source=TokenSource("small", "b" * 64)
)
"""Ten text ids: 0 pads, 1 begins and 2 ends a document. Budgets 34, 40 and 52."""


def random_tokens(vocabulary, count, num_grids, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return HybridTokens(
        torch.randint(vocabulary.semantic_codebook_size, (count, 32), generator=generator),
        tuple(
            torch.randint(vocabulary.guide_codebook_size, (count, h, w), generator=generator)
            for h, w in vocabulary.grid_shapes[:num_grids]
        ),
        vocabulary.image_size,
        vocabulary.source,
    )


def random_llama(seed=0, spread=0.5, rows=128, layers=1, width=16):
    """Logits of several nats: every id is likely somewhere."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=rows, hidden_size=width, intermediate_size=2 * width, num_hidden_layers=layers, num_attention_heads=2,
        max_position_embeddings=256, initializer_range=spread, pad_token_id=0, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    return LlamaForCausalLM(config).eval()
