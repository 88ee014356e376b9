"""How long `tokenize` takes on clusters of 8 to 512 workers that fail, and how much of their time is lost.

    python tools/simulate_cluster.py --images 1e9 --rate 6900 --output simulation.json

A discrete-event simulation. Workers take parts from one list. A worker fails after an exponential time: the part that it
works on is lost and goes back to the list, and the worker takes parts again after `--recovery` seconds. When the driver fails,
every part at work is lost, and all workers go on after `--restart` seconds. Stored parts are never lost.
"""

import argparse
import heapq
import math
import random
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from hybrid_tokenizer.checkpoints.files import write_atomic, write_json
from hybrid_tokenizer.evaluation.tables import Column, to_markdown
from hybrid_tokenizer.provenance import git_revision

HOUR = 3600.0
WORKERS = (8, 16, 32, 64, 128, 256, 512)
COLUMNS = [
    Column("workers", "workers", "d"), Column("worker_mtbf_hours", "a worker fails every, h", ".0f"),
    Column("hours", "hours", ".2f"), Column("ideal_hours", "without failures, h", ".2f"),
    Column("worker_failures", "workers failed", "d"), Column("driver_failures", "driver failed", "d"),
    Column("lost", "work lost", ".3%"), Column("down", "down", ".2%"), Column("idle", "idle", ".2%"),
]  # fmt: skip


@dataclass(frozen=True)
class Cluster:
    """What is simulated. Times are in seconds."""

    workers: int
    images: int
    images_per_part: int
    rate: float
    """Images per second of one worker."""
    spread: float
    """Standard deviation of the logarithm of a part's time."""
    worker_mtbf: float
    """Mean time between failures of one worker."""
    recovery: float
    """From a worker's failure until it takes parts again."""
    driver_mtbf: float
    restart: float
    """From the driver's failure until all workers take parts again."""


def driver_failures(cluster: Cluster, rng: random.Random) -> Iterator[float]:
    """When the driver fails."""
    time = 0.0
    while True:
        time += rng.expovariate(1 / cluster.driver_mtbf)
        yield time
        time += cluster.restart


def simulate(cluster: Cluster, seed: int) -> dict[str, Any]:
    """One run. The shares are of the time of all workers from the start to the end, and sum to 1."""
    rng = random.Random(seed)
    parts = math.ceil(cluster.images / cluster.images_per_part)
    mean = cluster.images_per_part / cluster.rate
    ahead = driver_failures(cluster, random.Random(f"driver {seed}"))
    driver = next(ahead)
    # Failures have no memory, so whether a part will be lost, and when, is drawn as the part is begun.
    available = [0.0] * parts  # when each unfinished part can be taken
    free = [(0.0, worker) for worker in range(cluster.workers)]
    outages: list[tuple[float, float]] = []
    useful = lost = end = 0.0
    counted = {"worker_failures": 0, "driver_failures": 0}
    while available:
        ready, worker = heapq.heappop(free)
        begin = max(ready, heapq.heappop(available))
        while begin >= driver + cluster.restart:
            driver = next(ahead)
            counted["driver_failures"] += 1
        failure = begin + rng.expovariate(1 / cluster.worker_mtbf)
        finish = begin + mean * rng.lognormvariate(-(cluster.spread**2) / 2, cluster.spread)
        stop = max(begin, min(finish, failure, driver))
        if stop == finish:
            useful, end, back = useful + finish - begin, max(end, finish), finish
        else:
            lost += stop - begin
            heapq.heappush(available, stop)
            of_worker = stop == failure
            counted["worker_failures"] += of_worker
            back = stop + cluster.recovery if of_worker else driver + cluster.restart
            outages.append((stop, back))
        heapq.heappush(free, (back, worker))
    total = cluster.workers * end
    down = sum(max(0.0, min(last, end) - first) for first, last in outages)
    shares = {"useful": useful, "lost": lost, "down": down, "idle": total - useful - lost - down}
    return {
        "hours": end / HOUR,
        "ideal_hours": cluster.images / cluster.rate / cluster.workers / HOUR,
        **counted,
        **{name: value / total for name, value in shares.items()},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=float, default=1e9)
    parser.add_argument("--images-per-part", type=int, default=2048)
    parser.add_argument("--rate", type=float, required=True, help="images per second of one worker, as measured")
    parser.add_argument("--spread", type=float, default=0.2, help="of the logarithm of a part's time")
    parser.add_argument("--worker-mtbf", type=float, nargs="+", default=[24.0, 240.0], metavar="HOURS")
    parser.add_argument("--recovery", type=float, default=300.0, metavar="SECONDS")
    parser.add_argument("--driver-mtbf", type=float, default=240.0, metavar="HOURS")
    parser.add_argument("--restart", type=float, default=300.0, metavar="SECONDS")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, required=True, help="the table, as JSON")
    options = parser.parse_args()
    base = Cluster(
        1, int(options.images), options.images_per_part, options.rate, options.spread, 0.0, options.recovery,
        options.driver_mtbf * HOUR, options.restart,
    )  # fmt: skip
    rows = []
    for hours in options.worker_mtbf:
        for workers in WORKERS:
            found = simulate(replace(base, workers=workers, worker_mtbf=hours * HOUR), options.seed)
            rows.append({"workers": workers, "worker_mtbf_hours": hours} | found)
            print(
                f"{workers:4d} workers, one failure in {hours:g} h each: {found['hours']:8.2f} h (ideal {found['ideal_hours']:.2f}), "
                f"{found['worker_failures']} + {found['driver_failures']} failures, lost {found['lost']:.2%}, "
                f"down {found['down']:.2%}, idle {found['idle']:.2%}"
            )
    found = {"cluster": asdict(base), "seed": options.seed, "rows": rows, "revision": git_revision()}
    write_json(options.output, found)
    write_atomic(options.output.with_suffix(".md"), to_markdown(rows, COLUMNS).encode())


if __name__ == "__main__":
    main()
