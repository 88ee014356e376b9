"""One of two processes. First each kills its share of the commands of a JSON file at their third row; then both together run
all of them, and measure sets of few images: two_ranks.py KILLED SHARED OUTPUT.

OUTPUT is what they measured, and how the killed runs ended (wait statuses).
"""

import json
import os
import signal
import sys
from importlib import import_module
from pathlib import Path

import torch
from helpers.commands import run_command
from helpers.small_models import small_hybrid
from PIL import Image

from hybrid_tokenizer.data import UnreadableImage
from hybrid_tokenizer.devices import choose_device, gather_over_ranks, rank_and_world_size
from hybrid_tokenizer.evaluation import loop
from hybrid_tokenizer.evaluation.controls import HybridRow
from hybrid_tokenizer.evaluation.images import EvalImages
from hybrid_tokenizer.evaluation.measures import metrics_named
from hybrid_tokenizer.metrics.weighted import Frechet, InceptionFeatures

OF_THE_LAUNCHER = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
evaluate = loop.evaluate
started = []


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


def shared_images():
    """A set of 40 small images, of which one is damaged and 36 are taken, and the names that this process read for it."""
    names, read = [f"{number:02d}" for number in range(40)], []

    def open_image(name):
        read.append(name)
        if name == "07":
            raise UnreadableImage(Path(name), "damaged")
        return Image.new("RGB", (40, 32), (int(name), 0, 0))

    images = EvalImages(names, open_image, 32, max_images=36, progress=False, say=lambda line: None)
    levels = [int(images[i][0, 0, 0] * 127.5 + 127.6) for i in range(36)]
    return [images.names, images.skipped, images.pixels_hash, levels], read


def deadly(tokenizer, *others, **options):
    if len(started) == 2:
        os.kill(os.getpid(), signal.SIGKILL)
    started.append(tokenizer.name)
    return evaluate(tokenizer, *others, **options)


def killed(name, arguments):
    """Run a command alone, in a child of this process that ends by SIGKILL when its third row starts; its wait status."""
    import_module(f"hybrid_tokenizer.commands.{name}")  # once, and not in every child
    child = os.fork()
    if not child:
        for variable in OF_THE_LAUNCHER:
            del os.environ[variable]
        loop.evaluate = deadly
        raise SystemExit(run_command(name, *arguments))
    return os.waitpid(child, 0)[1]


if __name__ == "__main__":
    _, to_kill, to_share, output = sys.argv
    torch.set_num_threads(1)
    rank = int(os.environ["RANK"])
    statuses = [killed(name, arguments) for name, *arguments in json.loads(Path(to_kill).read_text())[rank::2]]
    choose_device(None)  # joins the processes
    for name, *arguments in json.loads(Path(to_share).read_text()):
        if error := run_command(name, *arguments):
            raise SystemExit(error)
    few = list(rows_of_few_images())
    assert gather_over_ranks(few) == [few] * 2
    images, read = shared_images()
    facts = {"few": few, "images": gather_over_ranks(images), "read": gather_over_ranks(read)}
    facts["statuses"] = sum(gather_over_ranks(statuses), [])  # noqa: RUF017  two short lists
    if rank_and_world_size()[0] == 0:
        Path(output).write_text(json.dumps(facts))
