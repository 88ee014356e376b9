"""Run notebooks from top to bottom and keep their outputs, in place or in another folder.

PHOTOGRAPHS=1 in the environment makes them quick, SUPER_RESOLUTION=package or FILE.pth adds that row to them.
"""

import argparse
import os
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError
from tqdm import tqdm

from hybrid_tokenizer.checkpoints.files import write_atomic

CELL_SECONDS = 600
WITHOUT_WIDGETS = {"PYTHONWARNINGS": "ignore:IProgress not found"}  # tqdm's advice, which names a path of this machine


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("notebooks", type=Path, nargs="+", metavar="NOTEBOOK.ipynb")
    parser.add_argument("--output", type=Path, metavar="FOLDER", help="write there instead of in place")
    options = parser.parse_args()
    for path in tqdm(options.notebooks, unit="notebook"):
        if not path.is_file():
            raise SystemExit(f"error: {path} does not exist; give the path of a notebook")
        notebook = nbformat.read(path, as_version=4)
        # the times of a run would change the file without a change of its content
        client = NotebookClient(notebook, timeout=CELL_SECONDS, kernel_name="python3", record_timing=False)
        try:
            client.execute(cwd=str(path.parent), env=os.environ | WITHOUT_WIDGETS)
        except CellExecutionError as error:
            raise SystemExit(f"error: {path}: {error.ename}: {error.evalue}") from None
        notebook.metadata.pop("widgets", None)
        target = (options.output or path.parent) / path.name
        write_atomic(target, nbformat.writes(notebook).encode() + b"\n")
        print(target)


if __name__ == "__main__":
    main()
