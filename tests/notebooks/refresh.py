"""Run the notebooks and store their output: ``python -m tests.notebooks.refresh [notebook …]``.

Labs are stored as pictures of their finished run, so that a repository's web view shows them.
"""

from __future__ import annotations

import base64
import io
import os
import sys
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from PIL import Image

from lca_widgets.widgets.lab import PICTURES_VARIABLE

NOTEBOOKS = Path(__file__).parents[2] / "notebooks"
CELL_TIMEOUT = 120  # seconds


def refresh(path: Path) -> None:
    notebook = nbformat.read(path, as_version=4)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
    NotebookClient(
        notebook,
        timeout=CELL_TIMEOUT,
        resources={"metadata": {"path": str(path.parent)}},
        store_widget_state=False,
        coalesce_streams=True,  # one output a cell, however its lines were sent
    ).execute()
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)  # times of day: a difference in every run
        for output in cell.get("outputs", []):
            if "image/png" in output.get("data", {}):
                output.data["image/png"] = smaller(output.data["image/png"])
    nbformat.write(notebook, path)


def smaller(picture: str) -> str:
    """Pack a base64 PNG picture more tightly, pixel for pixel the same: a third of the size."""
    buffer = io.BytesIO()
    with Image.open(io.BytesIO(base64.b64decode(picture))) as image:
        image.convert("RGB").save(buffer, "PNG", optimize=True)  # drawn on white: nothing shines
    return base64.b64encode(buffer.getvalue()).decode()


def main() -> None:
    os.environ[PICTURES_VARIABLE] = "1"
    os.environ["OMP_NUM_THREADS"] = "1"
    for path in [Path(name) for name in sys.argv[1:]] or sorted(NOTEBOOKS.glob("*.ipynb")):
        refresh(path)
        print(path.name)


if __name__ == "__main__":
    main()
