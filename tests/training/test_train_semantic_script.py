"""train_semantic.py as a user runs it: from shards through both stages, and one line for each mistake."""

import io
import json

import pytest
import torch
import webdataset
from training_runs import picture, script

from hybrid_tokenizer.semantic import SemanticConfig, SemanticTokenizer

__all__ = ["script"]

SMALL = (
    "semantic.image_size=32", "semantic.patch_size=16", "semantic.vision_width=16", "semantic.vision_layers=1",
    "semantic.vision_heads=2", "semantic.vision_mlp_width=16", "semantic.width=16", "semantic.num_queries=4",
    "semantic.qformer_layers=1", "semantic.qformer_heads=2", "semantic.qformer_mlp_width=16",
    "semantic.decoder_layers=1", "semantic.decoder_heads=2", "semantic.decoder_mlp_width=16",
    "semantic.reverse_layers=1", "semantic.generation_width=384", "semantic.quantizer.codebook_size=16",
    "semantic.quantizer.codebook_dim=4", "data.image_size=32", "data.val_at_least=2", "training.batch_size=2",
    "training.max_steps=2", "training.num_workers=0", "training.num_threads=1", "training.tracker=none",
    "training.progress=false", "contrastive.feature_width=8",
)  # fmt: skip


def png(seed):
    buffer = io.BytesIO()
    picture(seed).save(buffer, "png")
    return buffer.getvalue()


@pytest.fixture
def shards(tmp_path):
    folder = tmp_path / "shards"
    folder.mkdir()
    for shard in range(2):
        with webdataset.TarWriter(str(folder / f"{shard:03d}.tar")) as writer:
            for number in range(4 * shard, 4 * shard + 4):
                caption = "many words " * 60 if number % 2 else f"picture {number}"
                writer.write({"__key__": f"{number:04d}", "png": png(number), "txt": caption})
    return folder


def test_both_stages_of_seed_from_shards(script, shards, tmp_path):
    first, second = tmp_path / "contrastive", tmp_path / "quantize"
    pattern = f'data.root="{shards}/{{000..001}}.tar"'
    error, stdout, stderr = script(
        "train_semantic.py", "stage=contrastive", "model=sd15", *SMALL, pattern, f"output_dir={first}"
    )
    assert error is None, stderr
    assert "stage-1 heads start from random weights" in stdout and "finished at step 2" in stdout
    assert "cut 1 caption(s) so far at 32 tokens, the latest: 'many words" in stdout
    assert len(list((first / "cache" / "shards").glob("*.json"))) == 2
    assert sorted(path.name for path in (first / "final").iterdir()) == [
        "config.json", "heads", "model.safetensors", "training.json",
    ]  # fmt: skip

    error, stdout, stderr = script(
        "train_semantic.py", "stage=quantize", "model=sd15", "quantize.text=minilm", *SMALL, f"data.root={shards}",
        f"semantic.init={first / 'final'}", f"output_dir={second}",
    )  # fmt: skip
    assert error is None and "finished at step 2" in stdout, stderr
    encoder = {
        k: v for k, v in SemanticTokenizer.from_pretrained(first / "final").state_dict().items() if "vision" in k
    }
    final = SemanticTokenizer.from_pretrained(second / "final").state_dict()
    assert all(torch.equal(final[key], value) for key, value in encoder.items()), "stage 2 leaves the encoder alone"


def test_mistakes_are_one_line_each(script, shards, tmp_path):
    pairs = tmp_path / "pairs"
    pairs.mkdir()
    picture(0).save(pairs / "a.png")

    def fails(words, *options, captions=None):
        if captions is not None:
            rows = [json.dumps({"file": file, "captions": texts}) for file, texts in captions.items()]
            (pairs / "captions.jsonl").write_text("\n".join(rows))
        folder = shards if captions is None else pairs
        run = ("stage=contrastive", *SMALL, f"data.root={folder}", f"output_dir={tmp_path / 'out'}", *options)
        error, _, stderr = script("train_semantic.py", *run)
        assert isinstance(error, str) and error.startswith("error: ") and "\n" not in error
        assert words in error, error
        assert "Traceback" not in stderr and not (tmp_path / "out" / "final").exists()

    fails("holds 1 image(s); at least 2 are needed", captions={"a.png": ["a"], "b.png": ["b"]})
    fails("line 1: no caption", captions={"a.png": ["", " "]})
    fails("quantize.text is not set", "stage=quantize", "model=sd15")
    (tmp_path / "seed_quantizer.pt").write_bytes(b"PK")
    fails("convert published checkpoint files", f"semantic.init={tmp_path / 'seed_quantizer.pt'}")
    seed2 = SemanticConfig(
        variant="seed2_mlp", num_generation_embeds=1, mlp_widths=[8, 4], image_size=32, patch_size=16, vision_width=16,
        vision_layers=1, vision_heads=2, vision_mlp_width=16, width=16, qformer_layers=1, qformer_heads=2,
        qformer_mlp_width=16, decoder_layers=1, decoder_heads=2, decoder_mlp_width=16,
    )  # fmt: skip
    SemanticTokenizer(seed2).save_pretrained(tmp_path / "seed2")
    init = f"semantic.init={tmp_path / 'seed2'}"
    fails("this tokenizer 1 x 768; give the Stable Diffusion", "stage=quantize", init)
    weights = tmp_path / "seed2" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    fails("is damaged or incomplete", init)
    shard = shards / "001.tar"
    shard.write_bytes(shard.read_bytes()[:3000])
    fails("001.tar is incomplete")
