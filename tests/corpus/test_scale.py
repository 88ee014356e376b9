"""The deployment files' syntax, and the simulation of clusters."""

import json
import runpy
from dataclasses import replace
from pathlib import Path

import jsonschema
import pytest
import ray
import yaml

from hybrid_tokenizer.commands.cli import COMMANDS

ROOT = Path(__file__).resolve().parents[2]


def check_command(text: str) -> None:
    program, name, *options = text.split()
    assert program == "hybrid-tokenizer" and COMMANDS[name].config == "tokenize_corpus"
    assert {"input", "output", "ray.address"} <= {option.split("=")[0] for option in options}


def test_the_cluster_file_fits_the_schema_of_ray():
    path = ROOT / "configs" / "ray" / "cluster.yaml"
    cluster = yaml.safe_load(path.read_text())
    schema = json.loads((Path(ray.__file__).parent / "autoscaler" / "ray-schema.json").read_text())
    jsonschema.validate(cluster, schema)
    assert cluster["head_node_type"] in cluster["available_node_types"]
    assert cluster["available_node_types"]["gpu"]["resources"]["GPU"] == 1
    assert "NOT RUN" in path.read_text()


def test_the_kuberay_file_is_one_job_with_the_command():
    path = ROOT / "configs" / "ray" / "kuberay.yaml"
    (job,) = yaml.safe_load_all(path.read_text())
    assert (job["apiVersion"], job["kind"]) == ("ray.io/v1", "RayJob") and "NOT RUN" in path.read_text()
    check_command(job["spec"]["entrypoint"])
    cluster = job["spec"]["rayClusterSpec"]
    groups = [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]
    for pod in (group["template"]["spec"] for group in groups):
        assert {mount["name"] for one in pod["containers"] for mount in one["volumeMounts"]} == {v["name"] for v in pod["volumes"]}  # fmt: skip
    assert cluster["rayVersion"] == ray.__version__


@pytest.fixture(scope="module")
def simulation():
    return runpy.run_path(str(ROOT / "tools" / "simulate_cluster.py"))


@pytest.fixture(scope="module")
def cluster(simulation):
    hour = 3600.0
    return simulation["Cluster"](16, 40_000_000, 1000, 100.0, 0.2, 1e9 * hour, 300.0, 1e9 * hour, 300.0)


def test_a_cluster_without_failures_takes_its_ideal_time(simulation, cluster):
    found = simulation["simulate"](replace(cluster, spread=0.0), seed=0)
    assert found["hours"] == pytest.approx(found["ideal_hours"]) and found["useful"] == pytest.approx(1)
    assert found["worker_failures"] == found["driver_failures"] == 0


def test_failures_cost_time_and_the_shares_sum_to_one(simulation, cluster):
    rows = [
        simulation["simulate"](replace(cluster, worker_mtbf=mtbf, driver_mtbf=2 * mtbf), seed=1)
        for mtbf in (1e9, 36000.0, 3600.0)
    ]
    assert [row["hours"] for row in rows] == sorted(row["hours"] for row in rows)
    assert [row["lost"] for row in rows] == sorted(row["lost"] for row in rows) and rows[2]["driver_failures"] > 0
    for row in rows:
        assert sum(row[name] for name in ("useful", "lost", "down", "idle")) == pytest.approx(1)
        assert min(row[name] for name in ("lost", "down", "idle")) >= 0
    again = simulation["simulate"](replace(cluster, worker_mtbf=3600.0, driver_mtbf=7200.0), seed=1)
    assert again == rows[2]


def test_the_lost_share_is_half_a_part_per_failure(simulation, cluster):
    found = simulation["simulate"](replace(cluster, worker_mtbf=3600.0, spread=0.0), seed=2)
    lost_seconds = found["lost"] * found["hours"] * 3600 * cluster.workers
    assert found["worker_failures"] > 50
    assert lost_seconds / found["worker_failures"] == pytest.approx(5, rel=0.2)  # a part takes 10 s
