"""Weights in and out: our own files, published checkpoints, the hub, and key maps of other projects."""
