"""Run the notebooks, and keep them with their output and pictures.

python scripts/run_notebooks.py              # all of notebooks/
python scripts/run_notebooks.py photographs  # one
"""

import os
import sys
import time
from pathlib import Path

import nbformat
from nbclient import NotebookClient

FOLDER = Path(__file__).resolve().parents[1] / "notebooks"


def run(path: Path) -> None:
    """Execute a notebook in place; what depends on when and where it ran is left out."""
    notebook = nbformat.read(path, as_version=4)
    begun = time.monotonic()
    NotebookClient(
        notebook, timeout=600, kernel_name="python3", resources={"metadata": {"path": str(FOLDER)}}
    ).execute()
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)
        if cell.cell_type == "code":
            cell.outputs = joined([out for out in cell.outputs if out.get("name") != "stderr"])  # bars and their like
    notebook.metadata["language_info"] = {"name": "python"}
    nbformat.write(notebook, path)
    print(f"{path.name}: {time.monotonic() - begun:.0f} s, {path.stat().st_size / 1000:.0f} kB")


def joined(outputs: list[nbformat.NotebookNode]) -> list[nbformat.NotebookNode]:
    """Printed lines come in pieces, by when they came: one piece of all that follow each other."""
    found: list[nbformat.NotebookNode] = []
    for out in outputs:
        if found and out.output_type == found[-1].output_type == "stream":
            found[-1].text += out.text
        else:
            found.append(out)
    return found


if __name__ == "__main__":
    os.environ.setdefault("TQDM_DISABLE", "1")
    names = sys.argv[1:] or sorted(path.stem for path in FOLDER.glob("*.ipynb"))
    for name in names:
        run(FOLDER / f"{name}.ipynb")
