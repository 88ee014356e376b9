"""The files in configs/: each recipe composes into the run that its comment describes."""

import sys
from pathlib import Path

import hydra
import pytest
from omegaconf import OmegaConf

from hybrid_tokenizer.commands.config import CONFIG_DIR, command, register_schemas
from hybrid_tokenizer.verification.speed.config import BenchmarkConfig

IMAGENET, PAPERS_PAIRS, GPUS = 1_281_167, 5_000_000, 8
COMMANDS = {
    "guide": "train_guide", "contrastive": "train_semantic", "quantize": "train_semantic", "vae": "pretrain_diffusion",
    "unet": "pretrain_diffusion", "finetune": "pretrain_diffusion", "lm": "train_lm",
}  # fmt: skip
RECIPES = sorted(path.stem for path in (CONFIG_DIR / "recipe").glob("*.yaml"))


def compose(name, *options):
    """The configuration that `python scripts/NAME.py OPTIONS` runs with."""
    register_schemas()
    with hydra.initialize_config_dir(str(CONFIG_DIR), version_base="1.3"):
        data = "data.tokens=FOLDER" if name == "train_lm" else "data.root=FOLDER"
        return OmegaConf.to_object(hydra.compose(name, [data, "output_dir=DIR", *options]))


def composed(recipe, *options):
    stage = recipe.partition("_")[2]
    stage_option = [] if stage in ("guide", "lm") else [f"stage={stage}"]
    return compose(COMMANDS[stage], f"recipe={recipe}", *stage_option, *options)


@pytest.mark.parametrize("recipe", RECIPES)
def test_every_recipe_is_of_its_model_and_outlasts_its_warm_up(recipe):
    config = composed(recipe)
    assert config.model_name == recipe.partition("_")[0]
    assert config.training.warmup_steps < config.training.max_steps / 4
    assert config.training.min_learning_rate <= config.training.learning_rate


@pytest.mark.parametrize(
    ("recipe", "dataset", "epochs", "images_per_step"),
    [
        ("sd15_guide", IMAGENET, 5, 64),
        ("sd15_contrastive", PAPERS_PAIRS, 10, 4096),
        ("sd15_quantize", PAPERS_PAIRS, 500, 16384),
    ],
)
def test_the_papers_sizes_train_for_whole_epochs_on_8_gpus(recipe, dataset, epochs, images_per_step):
    training = composed(recipe).training
    assert training.batch_size * training.accumulation * GPUS == images_per_step
    assert training.max_steps == round(epochs * dataset / images_per_step)


def test_the_guide_is_movqs_published_run():
    config = composed("sd15_guide", "guide.init=movq")
    training = config.training
    assert (training.learning_rate, training.min_learning_rate, training.weight_decay) == (1e-4, 1e-4, 0.0)
    assert (training.betas, training.ema_decay, training.mixed_precision) == ([0.5, 0.9], 0.9999, "no")
    assert (config.guide.encoder_channels, config.guide.stem_factor) == ([256, 512, 512, 1024], 2)
    assert (config.loss.vq, config.loss.perceptual, config.loss.adversarial) == (1.0, 0.0, 0.0), "eq. 5 and the VQ loss"
    assert config.guide.init == "movq" and config.data.image_size == 256


def test_both_semantic_stages_are_seeds_published_runs():
    first, second = (composed(f"sd15_{stage}") for stage in ("contrastive", "quantize"))
    for config, peak in ((first, 3e-5), (second, 1e-4)):
        training = config.training
        assert training.learning_rate == peak and training.min_learning_rate == pytest.approx(peak / 10)
        assert (training.warmup_steps, training.weight_decay, training.betas) == (2000, 0.05, [0.9, 0.999])
        assert training.ema_decay == 0 and config.data.image_size == config.semantic.image_size == 224
    assert (first.contrastive.text, first.contrastive.train_vision) == ("qformer", False)
    assert (second.quantize.vq, second.quantize.cosine, second.quantize.generation) == (5.0, 2.0, 0.5)
    assert second.semantic.cosine_stack and second.quantize.text is None


def test_what_the_user_gives_wins_over_the_recipe():
    config = composed("sd15_guide", "training.max_steps=7", "model=tiny", "data.flip=true")
    assert (config.training.max_steps, config.model_name, config.data.flip) == (7, "tiny", True)
    assert compose("train_guide").training.max_steps == 24, "no recipe by default"


def test_a_command_writes_no_log_and_stays_in_its_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["benchmark", "output=FILE"])
    monkeypatch.setenv("HYDRA_FULL_ERROR", "0")
    seen = []
    command("benchmark")(lambda config: seen.append((config, Path.cwd())))()
    ((config, folder),) = seen
    assert isinstance(config, BenchmarkConfig) and config.output == "FILE" and folder == tmp_path
    assert list(tmp_path.iterdir()) == []
