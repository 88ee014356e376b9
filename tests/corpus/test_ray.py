"""The command on Ray. One test, since each start of Ray takes seconds."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import ray
from helpers.bad_images import write_bad_folder
from helpers.commands import run_command
from helpers.corpora import SIDE, fill, write_folder, write_tokenizer

from hybrid_tokenizer.corpus.config import RayConfig, TokenizeConfig, ViewConfig
from hybrid_tokenizer.corpus.dataset import TokenDataset
from hybrid_tokenizer.corpus.pipeline import ray_session
from hybrid_tokenizer.errors import HybridTokenizerError


@pytest.fixture
def started_ray(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    monkeypatch.setenv("RAY_worker_niceness", "0")  # beside other tests, its workers would otherwise come last
    ray.init(address="local", num_cpus=2, object_store_memory=100 * 2**20, include_dashboard=False, log_to_driver=False, logging_level="error")  # fmt: skip
    yield
    ray.shutdown()


def files_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted((folder / "data").iterdir())}


def test_a_killed_run_is_finished_on_ray(tmp_path, tokenizer_folder, started_ray, capsys):
    pictures = write_folder(tmp_path / "pictures", 40)
    write_bad_folder(pictures / "bad")
    config = TokenizeConfig(
        input=str(pictures), output=str(tmp_path / "undisturbed"), model_name=str(tokenizer_folder),
        data=ViewConfig(image_size=SIDE), batch_size=4, rows_per_part=8,
    )  # fmt: skip
    expected = fill(config)
    output = fill(replace(config, output=str(tmp_path / "tokens")), stop_after=2)
    (output / "_work" / "parts" / ".00000003.parquet.0.tmp").write_bytes(b"half of a part")
    (output / "data").mkdir()
    (output / "data" / "tokens-00001-of-00009.parquet").write_bytes(b"half of a shard, when files were to be smaller")
    options = [
        f"input={pictures}", f"output={output}", f"model_name={tokenizer_folder}", f"data.image_size={SIDE}", "batch_size=4",
        "workers=1",
    ]  # fmt: skip

    with pytest.raises(HybridTokenizerError, match=r"has no dataset\.json"):
        TokenDataset(output)
    capsys.readouterr()
    assert run_command("tokenize_corpus", *options) is None
    said = capsys.readouterr().out.splitlines()
    assert files_of(output) == files_of(expected)
    assert sorted(path.name for path in output.iterdir()) == ["data", "dataset.json", "report.json"]
    held, reference = (json.loads((folder / "dataset.json").read_text()) for folder in (output, expected))
    assert held == reference and held["num_rows"] == 41
    bad = {"bad/huge.png", "bad/one.png", "bad/text.png", "bad/truncated.jpg"}
    assert bad <= {one["key"] for one in held["skipped"]} and held["num_skipped"] == len(held["skipped"])
    assert said[-1].startswith(f"41 rows of 53 tokens, {held['num_skipped']} images skipped")
    assert [line.split(":")[0] for line in said[:-1]] == [f"skipped {one['key']}" for one in held["skipped"]]
    report = json.loads((output / "report.json").read_text())
    assert report["parts_of_earlier_runs"] == 2
    assert report["limited_by"] == ("encoding" if report["waiting_share"] <= 0.1 else "reading and cutting")
    assert report["num_rows"] == held["num_rows"] - 16 and report["bytes_read"] > 0 and 0 <= report["waiting_share"] < 1

    ids = [TokenDataset(output)[row]["id"] for row in range(41)]
    assert sorted(row["id"] for row in ray.data.read_parquet(str(output / "data")).iter_rows()) == sorted(ids)

    written = {path: path.stat().st_mtime_ns for path in output.rglob("*")}
    assert run_command("tokenize_corpus", *options) is None  # a finished folder is left as it is
    assert {path: path.stat().st_mtime_ns for path in output.rglob("*")} == written
    message = run_command("tokenize_corpus", *options, "data.views=2")
    assert "was begun with data.views=0, not 2" in message and "\n" not in message
    other = write_tokenizer(tmp_path / "other", seed=1)
    message = run_command("tokenize_corpus", *options, f"model_name={other}")
    assert "holds tokens of 'small'" in message and "give another output" in message
    message = run_command("tokenize_corpus", *options, f"output={pictures}")
    assert "holds other files" in message

    @ray.remote
    def fail():
        raise HybridTokenizerError("the value, the rule and the remedy")

    with pytest.raises(HybridTokenizerError, match=r"^the value, the rule and the remedy$"), ray_session(RayConfig()):
        ray.get(fail.remote())
