"""Figure 1 shows what the configuration says, and Table 1 what the registry and the stored results say."""

import dataclasses
from xml.etree import ElementTree

from hybrid_tokenizer.baselines.registry import BASELINES
from hybrid_tokenizer.diffusion import DecodeOptions, DiffusionConfig
from hybrid_tokenizer.evaluation.architecture import architecture_svg
from hybrid_tokenizer.evaluation.studies.kinds import kinds_markdown, kinds_of, token_range
from hybrid_tokenizer.evaluation.studies.recon import compression_of
from hybrid_tokenizer.guide import GuideConfig
from hybrid_tokenizer.semantic import SemanticConfig


def texts(svg):
    return [element.text for element in ElementTree.fromstring(svg).iter("{http://www.w3.org/2000/svg}text")]


def test_figure_1_is_drawn_from_the_configuration():
    guide, semantic, diffusion = GuideConfig.sd15(), SemanticConfig.seed1(), DiffusionConfig.sd15()
    svg = architecture_svg("sd15", guide, semantic, diffusion)
    shown = texts(svg)
    assert {"32 of 8192 codes", "256 of 16384 codes", "77 x 768", "512 x 512", "DDIM inversion", "128 x 128"} <= set(
        shown
    )
    assert "39 layers, 256 patches" in shown and "320-640-1280-1280, 12 steps" in shown
    options = DecodeOptions(start="add_noise", strength=0.4, num_inference_steps=10)
    other = texts(architecture_svg("sd15", guide, semantic, dataclasses.replace(diffusion, decode_defaults=options)))
    assert {"Gaussian noise", "strength 0.4", "320-640-1280-1280, 4 steps"} == set(other) - set(shown)


def test_table_1_counts_the_registrys_tokens_and_shows_what_was_measured():
    assert token_range("network") == "32 to 5120" and token_range("diffusion") == "1 to 256"
    recon = [
        {"method": name, "psnr": psnr, "num_tokens": 372.0} for name, psnr in (("guide_only", 23.4), ("hybrid", 23.2))
    ]
    alignment = [{"method": "hybrid", "scores": {"probe_score": 0.22}}]
    correction = [{"method": "bicubic", "damage": "10 % of tokens", "change": {"psnr": {"mean": -3.0}}}]
    first, second, ours = kinds_of(recon, alignment, correction)
    assert (first["psnr"], first["loss"], first["score"]) == (23.4, 3.0, None)
    assert (second["psnr"], second["loss"]) == (None, None)
    assert (ours["tokens"], ours["psnr"], ours["score"]) == ("372", 23.2, 0.22)
    assert "`semantic_only` for diffusion" in kinds_markdown(recon, alignment, correction)


def test_compression_rates_are_those_of_the_papers_table_2():
    rates = {name: baseline.compression_rate for name, baseline in BASELINES.items()}
    assert (rates["movq_270m"], rates["var_vae"], rates["vqgan_f8"], rates["magvit2"]) == (
        "8*8",
        "16*16",
        "8*8",
        "16*16",
    )
    assert rates["seed"] == rates["titok_l32"] == "fixed # tokens" and rates["lavit"] == "1-256 tokens"
    assert compression_of("hybrid@84") == {"compression_rate": "fixed # tokens"}
    assert compression_of("identity") == compression_of("codec") == {}
