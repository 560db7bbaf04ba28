"""The notebooks run from their first cell to their last; their own assertions hold."""

from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

NOTEBOOKS = sorted((Path(__file__).parents[1] / "docs/notebooks").glob("*.ipynb"))


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_it_runs_and_shows_what_is_stored(path, tmp_path):
    notebook = nbformat.read(path, as_version=4)
    stored = [cell.outputs for cell in notebook.cells if cell.cell_type == "code"]
    resources = {"metadata": {"path": str(tmp_path)}}
    NotebookClient(notebook, timeout=300, resources=resources).execute()
    run = [cell.outputs for cell in notebook.cells if cell.cell_type == "code"]
    assert list(map(bool, run)) == list(map(bool, stored))  # what is printed may come in pieces
    assert sum(map(bool, run)) > 5
    assert not any("error" in output.output_type for outputs in run for output in outputs)


def test_there_are_two():
    assert len(NOTEBOOKS) == 2
