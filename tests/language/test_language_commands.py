"""generate, complete and caption as a user runs them."""

import json

import pytest
import torch
from helpers.commands import run_command
from PIL import Image

from hybrid_tokenizer.hybrid import HybridTokenizer
from hybrid_tokenizer.images import from_pil
from hybrid_tokenizer.language.model import load_language_model
from hybrid_tokenizer.tokens import HybridTokens


@pytest.fixture
def models(corpus, run):
    return f"model_name={corpus.tokenizer}", f"language_model={run / 'final'}"


def test_generate_writes_a_grid_the_pictures_and_their_ids(corpus, run, models, tmp_path, capsys):
    options = (*models, 'prompt="picture 7"', "samples=3", "sampling.guidance=2", "seed=4")
    assert run_command("generate", *options, f"output_dir={tmp_path / 'a'}") is None
    assert "3 pictures of 53 tokens; written to" in capsys.readouterr().out
    tokens = HybridTokens.load(tmp_path / "a" / "tokens.safetensors")
    vocabulary = load_language_model(str(run / "final")).vocabulary
    written = json.loads((tmp_path / "a" / "ids.json").read_text())
    assert HybridTokens.from_token_ids(torch.tensor(written["token_ids"]), vocabulary) == tokens
    decoded = HybridTokenizer.from_pretrained(corpus.tokenizer).decode(tokens)
    for index in range(3):
        with Image.open(tmp_path / "a" / f"{index}.png") as picture:
            assert (from_pil(picture.convert("RGB")) - decoded[index].clamp(-1, 1)).abs().max() < 0.01
    assert (tmp_path / "a" / "grid.png").stat().st_size > 1000

    assert run_command("generate", *options, "budget=37", f"output_dir={tmp_path / 'b'}") is None
    assert HybridTokens.load(tmp_path / "b" / "tokens.safetensors").num_tokens == 37


def test_a_guide_is_drawn_for_the_semantic_tokens_of_a_picture(corpus, models, tmp_path):
    picture = corpus.pictures / "1" / "0001.png"
    outputs = f"output_dir={tmp_path}"
    assert run_command("generate", *models, f"semantic_of={picture}", "samples=2", outputs) is None
    own = HybridTokenizer.from_pretrained(corpus.tokenizer).encode(square(picture))
    drawn = HybridTokens.load(tmp_path / "tokens.safetensors")
    assert torch.equal(drawn.semantic_indices, own.semantic_indices.expand(2, -1)) and drawn.num_tokens == 53
    assert any(not torch.equal(grid[0], grid[1]) for grid in drawn.guide_indices)


def test_complete_keeps_the_coarse_guide(corpus, models, tmp_path):
    picture = corpus.pictures / "1" / "0001.png"
    outputs = f"output_dir={tmp_path}"
    assert run_command("complete", *models, f"input={picture}", "keep=5", "samples=2", outputs) is None
    own = HybridTokenizer.from_pretrained(corpus.tokenizer).encode(square(picture))
    drawn = HybridTokens.load(tmp_path / "tokens.safetensors")
    for index in (0, 1):
        assert torch.equal(drawn.guide_indices[index], own.guide_indices[index].expand_as(drawn.guide_indices[index]))
    assert not torch.equal(drawn.guide_indices[2][0], drawn.guide_indices[2][1])


def square(path):
    from hybrid_tokenizer.images import fit_square

    with Image.open(path) as picture:
        return from_pil(fit_square(picture.convert("RGB"), 32))[None]


def test_caption_says_a_line_per_picture(corpus, models, capsys):
    assert run_command("caption", *models, f"input={corpus.pictures / '0'}", "sampling.batch_size=4") is None
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 10 and all(line.split(": ")[1] for line in lines)
    assert lines[0].startswith(str(corpus.pictures / "0" / "0000.png"))
    picture = corpus.pictures / "2" / "0002.png"
    assert run_command("caption", *models, f"input={picture}", "budget=33") is None
    assert capsys.readouterr().out.startswith(f"{picture}: ")


def test_mistakes_are_one_line(corpus, models, tmp_path):
    assert "there is nothing to draw" in run_command("generate", *models)
    assert "use one of [33, 37, 53]" in run_command("generate", *models, "prompt=a", "budget=36")
    other = run_command("generate", "model_name=tiny", models[1], "prompt=a")
    assert "made by tokenizer" in other and "tiny" in other
    assert "hybrid_vocabulary.json does not exist" in run_command(
        "generate", models[0], f"language_model={tmp_path}", "prompt=a"
    )
    assert "no.png' is not a folder" in run_command("caption", *models, f"input={tmp_path / 'no.png'}")
    assert "keep one of [0, 1, 5]" in run_command(
        "complete", *models, f"input={corpus.pictures / '0' / '0000.png'}", "keep=2", f"output_dir={tmp_path}"
    )
