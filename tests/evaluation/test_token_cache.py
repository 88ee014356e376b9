"""Tokens that several rows read are encoded once per image."""

import torch

from hybrid_tokenizer.evaluation.token_cache import TokenCache


def test_each_image_is_encoded_once_whatever_the_batch():
    seen = []

    def encode(images):
        seen.append(len(images))
        level = (images.mean((1, 2, 3)) * 100).round().long()
        return level[:, None], level[:, None, None].expand(-1, 2, 2)

    images = torch.linspace(-1, 1, 5)[:, None, None, None].expand(5, 3, 4, 4).contiguous()
    cache = TokenCache(encode)
    first = cache(images[:3])
    everything = cache(images)
    assert seen == [3, 2]
    for got, expected in zip(everything, encode(images), strict=True):
        assert torch.equal(got, expected) and got.dtype == torch.int64
    assert torch.equal(cache(images[[4, 0]])[1], everything[1][[4, 0]]) and torch.equal(first[0], everything[0][:3])
    assert seen == [3, 2, 5], "only the check itself encoded again"
