"""Small runs of every command that resumes and that several processes can share, and the small models and pairs for them."""

from typing import NamedTuple

from helpers.caption_data import write_pairs, write_probe
from helpers.small_models import small_hybrid


class Run(NamedTuple):
    """A command, its arguments, and the pictures that it writes. Its output is the report's file."""

    command: str
    arguments: tuple[str, ...]
    pictures: tuple[str, ...] = ()


RUNS = {  # report -> run; three images in batches of two, so that the second process has one
    "recon.json": Run(
        "eval_recon", ("data.max_images=3", "tokenizers=[identity,unrelated,hybrid]", "pictures=3", "seeds=[0,1]"), ("recon.png",)
    ),
    "alignment.json": Run(
        "eval_alignment",
        ("tokenizers=[semantic_only,hybrid]", "data.root={pairs}", "+score_weights.probe_score={probe}", "pictures=3"),
        ("alignment.png",),
    ),
    "eval_decode.json": Run(
        "eval_study", ("study=decode_sweep", "data.max_images=3", "strengths=[0.2]", "steps=[10]", "guidance_scales=[1.0]")
    ),
    "guide.json": Run(
        "eval_study", ("study=guide_rates", "data.max_images=3", "codec=false", "train_root=[{pairs}]"),
        ("guide.png", "guide_pictures.png"),
    ),
    "correction.json": Run(
        "eval_study",
        ("study=correction", "data.max_images=1", "token_shares=[0.2]", "elastic=[]", "rotations=[]"), ("correction.png",),
    ),
}  # fmt: skip


def write_material(folder):
    """What the runs read."""
    small_hybrid(nested=True).save_pretrained(folder / "model")
    write_pairs(folder / "pairs")
    write_probe(folder / "probe")


def command_of(report, material, output):
    """The command and all its arguments. Each report has a folder of its own below `output`."""
    run = RUNS[report]
    filled = [argument.format(pairs=material / "pairs", probe=material / "probe") for argument in run.arguments]
    common = [f"model_name={material / 'model'}", "data.image_size=32", "batch_size=2", "device=cpu"]
    return [run.command, *common, f"output_dir={output / report}", *filled]
