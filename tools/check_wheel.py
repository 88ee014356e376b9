"""Build the wheel of the last commit, install it with every extra in a fresh environment, and run what a new user runs first.

python tools/check_wheel.py FOLDER --json FILE: everything happens below FOLDER, outside the repository. It downloads packages.
"""

import argparse
import json
import os
import re
import subprocess
import sys
import time
import urllib.request
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hybrid_tokenizer.checkpoints.files import write_json

ROOT = Path(__file__).resolve().parents[1]
QUIET = {"OMP_NUM_THREADS": "1", "TQDM_DISABLE": "1", "PYTHONUNBUFFERED": "1"}
SMALL_GUIDE = (
    "guide.image_size=64", "data.image_size=64", "data.val_at_least=2", "training.max_steps=24", "training.batch_size=2",
    "training.warmup_steps=4", "training.num_workers=0", "training.tracker=none",
)  # fmt: skip
COPY_PHOTOGRAPHS = (
    "import sys; from hybrid_tokenizer.data import sample_photographs; "
    "[image.save(f'{name}.png') for name, image in sample_photographs().items()]"
)


def build(folder: Path) -> Path:
    """The wheel of HEAD, from an export, so that files of the working tree and of earlier builds stay out."""
    source = folder / "source"
    source.mkdir(parents=True)
    archive = subprocess.run(["git", "archive", "HEAD"], cwd=ROOT, check=True, capture_output=True).stdout
    subprocess.run(["tar", "-x"], cwd=source, input=archive, check=True)
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", folder / "dist", source]
    subprocess.run(command, check=True)
    (wheel,) = (folder / "dist").glob("*.whl")
    return wheel


def contents(wheel: Path) -> dict[str, list[int]]:
    """Files and bytes in the wheel by entry of its folders."""
    found: dict[str, list[int]] = {}
    with zipfile.ZipFile(wheel) as opened:
        for entry in opened.infolist():
            row = found.setdefault("/".join(entry.filename.split("/")[:2]), [0, 0])
            row[0] += 1
            row[1] += entry.file_size
    return found


def install(folder: Path, wheel: Path) -> Path:
    """A fresh environment with the wheel and all its extras. Returns its folder of programs."""
    subprocess.run([sys.executable, "-m", "venv", folder / "venv"], check=True)
    programs = folder / "venv" / "bin"
    command = [programs / "python", "-m", "pip", "install", "--quiet", "-c", ROOT / "constraints.txt", f"{wheel}[all]"]
    subprocess.run(command, check=True)
    return programs


def try_demo(program: Path, work: Path) -> str:
    """Start the page, fetch it, encode a sample through its API, and stop it as Ctrl-C does."""
    command = [program, "demo", "--port", "0"]
    process = subprocess.Popen(command, cwd=work, env=os.environ | QUIET, stdout=subprocess.PIPE, text=True)
    try:
        line = process.stdout.readline() if process.stdout else ""
        link = re.fullmatch(r"listening on (\S+)\n", line)
        if link is None:
            raise SystemExit(f"error: the demo printed {line!r} before it listened")
        with urllib.request.urlopen(link[1]) as page:
            size = len(page.read())
        request = urllib.request.Request(f"{link[1]}api/encode/cat", method="POST")
        with urllib.request.urlopen(request) as answer:
            ids = json.load(answer)["ids"]
    finally:
        process.send_signal(2)
        status = process.wait(timeout=60)
    return f"page of {size} bytes, {len(ids)} ids, stopped with status {status}"


def check(folder: Path) -> dict[str, Any]:
    """Times in seconds and what each step said last."""
    steps: dict[str, dict[str, Any]] = {}

    def step(name: str, action: Callable[[], Any]) -> Any:
        started = time.perf_counter()
        result = action()
        steps[name] = {"seconds": round(time.perf_counter() - started, 1), "said": str(result).strip().split("\n")[-1]}
        print(f"{name:14} {steps[name]['seconds']:6.1f} s  {steps[name]['said']}", flush=True)
        return result

    wheel = step("build", lambda: build(folder))
    programs = step("install", lambda: install(folder, wheel))
    work = folder / "work"
    (work / "photos").mkdir(parents=True)

    def run(*command: Any, cwd: Path = work) -> str:
        done = subprocess.run([*map(str, command)], cwd=cwd, env=os.environ | QUIET, capture_output=True, text=True)
        if done.returncode:
            raise SystemExit(
                f"error: {' '.join(map(str, command))} ended with {done.returncode}: {done.stderr[-2000:]}"
            )
        return done.stdout

    program = programs / "hybrid-tokenizer"
    run(programs / "python", "-c", COPY_PHOTOGRAPHS, cwd=work / "photos")
    step("help", lambda: run(program, "eval", "--help"))
    step("reconstruct", lambda: run(program, "reconstruct", "photos/cat.png"))
    rows = "tokenizers=[identity,guide_only,hybrid,codec]"
    step("eval", lambda: run(program, "eval", rows, "output_dir=out/eval"))
    step("train-guide", lambda: run(program, "train-guide", "data.root=photos", "output_dir=runs/guide", *SMALL_GUIDE))
    step("demo", lambda: try_demo(program, work))
    home = run(programs / "python", "-c", "import hybrid_tokenizer as h; print(h.__file__)").strip()
    return {
        "wheel": wheel.name, "bytes": wheel.stat().st_size, "contents": contents(wheel), "installed_at": home, "steps": steps
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="a new folder outside the repository")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write times, sizes and contents there")
    options = parser.parse_args()
    if options.folder.exists() or options.folder.resolve().is_relative_to(ROOT):
        raise SystemExit(f"error: {options.folder} exists or is inside the repository; give a new folder outside it")
    report = check(options.folder.resolve())
    for name, (files, size) in sorted(report["contents"].items()):
        print(f"{name:40} {files:5} files {size:12,} bytes")
    print(f"{report['wheel']}: {report['bytes']:,} bytes")
    if options.json is not None:
        write_json(options.json, report)


if __name__ == "__main__":
    main()
