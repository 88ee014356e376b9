"""Pairs from every kind of source, one caption an image."""

import json

import pytest
import torch
from helpers.caption_data import CAPTIONS, write_pairs, write_shard

from hybrid_tokenizer.errors import HybridTokenizerError
from hybrid_tokenizer.evaluation.config import PairData
from hybrid_tokenizer.evaluation.pairs import open_pairs, pick_caption

QUIET = {"progress": False}


def test_a_caption_is_picked_by_seed_and_name_alone():
    captions = [f"caption {i}" for i in range(5)]
    picks = [pick_caption(captions, f"image{i}", 0) for i in range(200)]
    assert picks == [pick_caption(captions, f"image{i}", 0) for i in range(200)]
    assert all(25 <= picks.count(caption) <= 60 for caption in captions)
    assert picks != [pick_caption(captions, f"image{i}", 1) for i in range(200)]
    # the published rule by hand: sha256 of "0:image0" begins with 71097d5e33dfbd00, which is 4 modulo 5
    assert picks[0] == "caption 4" and 0x71097D5E33DFBD00 % 5 == 4


def test_folders_shards_and_coco_give_the_same_images(tmp_path):
    root = write_pairs(tmp_path / "pairs")
    pairs = open_pairs(PairData(str(root), 48), **QUIET)
    assert pairs.images.names == [f"{name}.png" for name in CAPTIONS]
    assert all(caption in CAPTIONS[name] for name, caption in zip(CAPTIONS, pairs.captions, strict=True))
    assert open_pairs(PairData(str(root), 48, max_images=2), **QUIET).captions == pairs.captions[:2]
    said = []
    shard = write_shard(root, tmp_path / "shard.tar")
    sharded = open_pairs(PairData(str(shard), 48), say=said.append, **QUIET)
    assert len(sharded.images) == 3 and len(said) == 1 and "no caption" in said[0]
    assert torch.equal(sharded.images[1], pairs.images[1])
    content = {
        "images": [{"id": i, "file_name": f"{name}.png"} for i, name in enumerate(CAPTIONS)],
        "annotations": [{"image_id": i, "caption": c} for i, cs in enumerate(CAPTIONS.values()) for c in cs],
    }
    (tmp_path / "coco.json").write_text(json.dumps(content))
    coco = open_pairs(PairData(str(root), 48, annotations=str(tmp_path / "coco.json")), **QUIET)
    assert coco.captions == pairs.captions and coco.captions_hash == pairs.captions_hash


def test_no_source_and_double_rows_are_refused(tmp_path):
    with pytest.raises(HybridTokenizerError, match=r"data.root has no value"):
        open_pairs(PairData(), **QUIET)
    root = write_pairs(tmp_path / "pairs")
    listing = root / "captions.jsonl"
    listing.write_text(listing.read_text() * 2)
    with pytest.raises(HybridTokenizerError, match="lists 3 image"):
        open_pairs(PairData(str(root), 48), **QUIET)
