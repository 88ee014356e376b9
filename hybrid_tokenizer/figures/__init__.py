"""The paper's Figures 2 to 5, drawn from whatever tokenizers are given."""
