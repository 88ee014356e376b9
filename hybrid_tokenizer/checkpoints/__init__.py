"""Weights in and out: safetensors and JSON of our own (`files`), and key maps of foreign checkpoints."""
