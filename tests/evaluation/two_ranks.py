"""In this rank: run the commands of a JSON file, then measure a single image: two_ranks.py JOBS OUTPUT."""

import json
import sys
from pathlib import Path

import torch
from helpers.commands import run_command
from helpers.small_models import small_hybrid

from hybrid_tokenizer.devices import choose_device, gather_over_ranks, rank_and_world_size
from hybrid_tokenizer.evaluation.controls import HybridRow
from hybrid_tokenizer.evaluation.images import EvalImages
from hybrid_tokenizer.evaluation.loop import evaluate
from hybrid_tokenizer.evaluation.measures import metrics_named
from hybrid_tokenizer.metrics.weighted import Frechet, InceptionFeatures


class Pooled(torch.nn.Module):
    """Eight features per image in place of Inception's."""

    num_features = 8

    def forward(self, images):
        return torch.nn.functional.adaptive_avg_pool2d(images.double(), (2, 2)).flatten(1)[:, :8] / 255


def set_measures():
    return Frechet(InceptionFeatures(Pooled()), ["rfid", "kid"], "cpu")


def rows_of_few_images():
    """The hybrid on one image, where the second process has no batch, and on three, where the shares differ."""
    row = HybridRow(small_hybrid(nested=True))
    for count, batch_size in ((1, 2), (3, 1)):
        images = EvalImages.from_samples(32, max_images=count, progress=False)
        done = evaluate(
            row, images, metrics_named("psnr", "ssim"), batch_size=batch_size, pictures=2, progress=False,
            of_a_set=set_measures,
        )  # fmt: skip
        yield {"row": done.row | {"seconds_per_image": None}, "pictures": done.pictures.tolist()}


if __name__ == "__main__":
    _, jobs, output = sys.argv
    torch.set_num_threads(1)
    choose_device(None)  # joins the processes
    for name, arguments in json.loads(Path(jobs).read_text()):
        if error := run_command(name, *arguments):
            raise SystemExit(error)
    results = list(rows_of_few_images())
    assert gather_over_ranks(results) == [results] * 2
    if rank_and_world_size()[0] == 0:
        Path(output).write_text(json.dumps(results))
