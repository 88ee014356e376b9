"""Run notebooks from top to bottom and keep their outputs, in place or in another folder.

--set PHOTOGRAPHS=1 gives a value in place of that of the cell that is tagged `parameters`.
"""

import argparse
import os
import sys
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError
from tqdm import tqdm

from hybrid_tokenizer.checkpoints.files import write_atomic

CELL_SECONDS = 600
WITHOUT_WIDGETS = {"PYTHONWARNINGS": "ignore:IProgress not found"}  # tqdm's advice, which names a path of this machine
COMMANDS = {"PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])}
"""The console command of this environment is found first."""


def with_values(notebook: nbformat.NotebookNode, values: list[str]) -> nbformat.NotebookNode:
    """The notebook with `values`, lines of NAME=VALUE, at the end of its cell of parameters."""
    for cell in notebook.cells:
        if "parameters" in cell.metadata.get("tags", []):
            cell.source = "\n".join([cell.source, *values])
    return notebook


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("notebooks", type=Path, nargs="+", metavar="NOTEBOOK.ipynb")
    parser.add_argument("--output", type=Path, metavar="FOLDER", help="write there instead of in place")
    parser.add_argument(
        "--set", action="append", default=[], metavar="NAME=VALUE", help="a value of Python; needs --output"
    )
    options = parser.parse_args()
    if options.set and options.output is None:
        raise SystemExit("error: --set changes the notebook; give --output, so that the committed one stays as it is")
    for path in tqdm(options.notebooks, unit="notebook"):
        if not path.is_file():
            raise SystemExit(f"error: {path} does not exist; give the path of a notebook")
        notebook = with_values(nbformat.read(path, as_version=4), options.set)
        # the times of a run would change the file without a change of its content
        client = NotebookClient(notebook, timeout=CELL_SECONDS, kernel_name="python3", record_timing=False)
        try:
            client.execute(cwd=str(path.parent), env=os.environ | WITHOUT_WIDGETS | COMMANDS)
        except CellExecutionError as error:
            raise SystemExit(f"error: {path}: {error.ename}: {error.evalue}") from None
        notebook.metadata.pop("widgets", None)
        target = (options.output or path.parent) / path.name
        write_atomic(target, nbformat.writes(notebook).encode() + b"\n")
        print(target)


if __name__ == "__main__":
    main()
