"""nbval passes where nothing is stored; these tests see to it that there is something to compare.

They cannot see whether a stored number is right: the cells' own assertions do that.
"""

from __future__ import annotations

import copy
import re
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest

from tests.notebooks.refresh import NOTEBOOKS

PATHS = sorted(NOTEBOOKS.glob("*.ipynb"))
MAX_BYTES = 600_000
notebook_paths = pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem)


def code_cells(path: Path) -> list[nbformat.NotebookNode]:
    notebook = nbformat.read(path, as_version=4)
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def outputs(path: Path) -> list[nbformat.NotebookNode]:
    return [output for cell in code_cells(path) for output in cell.outputs]


def compared_texts(path: Path) -> list[str]:
    streams = [o.text for o in outputs(path) if o.output_type == "stream"]
    return streams + [o.data["text/plain"] for o in outputs(path) if "data" in o]


def test_there_are_notebooks():
    assert [path.stem[:2] for path in PATHS] == [
        "00",
        "01",
        "02",
        "03",
        "04",
        "05",
        "06",
        "07",
        "08",
    ]


@notebook_paths
def test_every_code_cell_was_run_in_order(path):
    counts = [cell.execution_count for cell in code_cells(path)]
    assert counts == list(range(1, len(counts) + 1))


@notebook_paths
def test_no_traceback_and_no_warning_is_stored(path):
    assert not [o for o in outputs(path) if o.output_type == "error" or o.get("name") == "stderr"]


@notebook_paths
def test_numbers_are_stored_for_comparison(path):
    numbers = [
        n for text in compared_texts(path) for n in re.findall(r"\d+\.\d+|\d+e[+-]\d+", text)
    ]
    assert len(numbers) >= 5


@notebook_paths
def test_every_lab_is_stored_as_a_picture(path):
    labs = [o for o in outputs(path) if ".from_state(" in o.get("data", {}).get("text/plain", "")]
    assert labs
    for output in labs:
        assert "image/png" in output.data
        assert not [mime for mime in output.data if "widget" in mime]


@notebook_paths
def test_no_output_is_exempt_from_comparison(path):
    sources = [cell.source + str(cell.metadata) for cell in code_cells(path)]
    assert not [source for source in sources if re.search("nbval|raises-exception", source, re.I)]


@notebook_paths
def test_stored_output_is_small(path):
    assert path.stat().st_size < MAX_BYTES


def run_nbval(folder: Path) -> str:
    """Compare the notebooks in ``folder`` as `make test` does; return what pytest printed."""
    command = [sys.executable, "-m", "pytest", "-v", "-p", "tests.notebooks.comparison"]
    command += ["--nbval", "--nbval-current-env", "--rootdir", str(folder), str(folder)]
    run = subprocess.run(
        command, capture_output=True, text=True, timeout=110, check=False, cwd=NOTEBOOKS.parent
    )
    return run.stdout


def test_an_altered_stored_digit_fails(tmp_path):
    cells = [
        nbformat.v4.new_code_cell(
            "print('kappa 4.0')",
            execution_count=1,
            outputs=[nbformat.v4.new_output("stream", text="kappa 4.0\n")],
        )
    ]
    notebook = nbformat.v4.new_notebook(cells=cells)
    altered = copy.deepcopy(notebook)
    altered.cells[0].outputs[0].text = "kappa 4.1\n"
    nbformat.write(notebook, tmp_path / "true.ipynb")
    nbformat.write(altered, tmp_path / "altered.ipynb")

    printed = run_nbval(tmp_path)
    assert "1 failed, 1 passed" in printed
    assert re.search(r"FAILED .*altered\.ipynb::Cell 0", printed)
