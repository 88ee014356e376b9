"""Token shards of whole corpora: written on Ray Data, read back by PyTorch. Needs the extra `scale`."""
