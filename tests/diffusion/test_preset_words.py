"""What the pages say of how `tiny` decodes is what its configuration holds."""

from pathlib import Path

import pytest

from hybrid_tokenizer.checkpoints.files import read_json
from hybrid_tokenizer.diffusion import DecodeOptions

ROOT = Path(__file__).resolve().parents[2]
PRESET = ROOT / "hybrid_tokenizer" / "presets" / "tiny"
NUMBERS = ("no", "one", "two", "three", "four", "five")


def words(options: DecodeOptions) -> dict[Path, list[str]]:
    """Page -> the sentences on decoding that `options` make true."""
    calls = round(options.strength * options.num_inference_steps)
    start = f'start="{options.start}"'
    readme = [f"`tiny` decodes with `{start}`"]
    if options.start == "linear_estimate":
        readme.append("decodes from a linear estimate of the guide")
    card = [
        f"(`{start}`)",
        f"strength {options.strength:g} of {options.num_inference_steps} steps, that is {NUMBERS[calls]} U-Net calls",
    ]
    return {ROOT / "README.md": readme, PRESET / "README.md": card}


def missing(options: DecodeOptions) -> list[str]:
    """The sentences that the pages lack."""
    pages = {page: " ".join(page.read_text().split()) for page in words(options)}
    return [text for page, texts in words(options).items() for text in texts if text not in pages[page]]


def test_the_pages_say_what_the_configuration_holds():
    stored = read_json(PRESET / "diffusion" / "config.json")["decode_defaults"]
    assert missing(DecodeOptions.from_dict(stored)) == []


@pytest.mark.parametrize(
    "change", [{"start": "ddim_inversion"}, {"strength": 0.3}, {"num_inference_steps": 20}], ids=str
)
def test_another_configuration_contradicts_them(change):
    stored = read_json(PRESET / "diffusion" / "config.json")["decode_defaults"]
    assert missing(DecodeOptions.from_dict(stored | change))
