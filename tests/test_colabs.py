"""The notebooks of `colabs/`: each runs from top to bottom, and is committed with what it shows."""

import pathlib
import re

import nbclient
import nbformat
import pytest

from polgrad import algorithms, experiments

ROOT = pathlib.Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT / "colabs").glob("*.ipynb"))
LIMIT_S = 600
"""Seconds for one cell, on a busy machine; on two free cores a whole notebook takes under 120."""

pytestmark = pytest.mark.colabs
each = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


def read(path):
    return nbformat.read(path, as_version=4)


def outputs(notebook):
    return [o for cell in notebook.cells if cell.cell_type == "code" for o in cell.outputs]


def pictures(notebook):
    return sum("image/png" in o.get("data", {}) for o in outputs(notebook))


def written(notebook):
    """All text that a reader sees in the outputs."""
    streams = [o.text for o in outputs(notebook) if o.output_type == "stream"]
    shown = [o.data for o in outputs(notebook) if "data" in o]
    return "\n".join(streams + [str(v) for d in shown for k, v in d.items() if k[:5] != "image"])


def test_there_are_notebooks():
    assert NOTEBOOKS


@each
def test_it_runs_from_top_to_bottom(path, tmp_path, monkeypatch):
    # The tests' own flags, eight simulated devices among them, are not a reader's.
    monkeypatch.delenv("XLA_FLAGS")
    notebook, committed = read(path), read(path)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs = []
    nbclient.NotebookClient(
        notebook,
        timeout=LIMIT_S,
        kernel_name="python3",
        resources={"metadata": {"path": str(tmp_path)}},
    ).execute()
    assert pictures(notebook) == pictures(committed)


@each
def test_it_is_committed_with_clean_outputs(path):
    notebook = read(path)
    nbformat.validate(notebook)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    assert pictures(notebook) >= 2
    for output in outputs(notebook):
        assert output.output_type != "error"
        assert output.get("name") != "stderr", output.text
    found = re.findall(r"(?:/home|/root|/work|/tmp|/Users|/var)/\S*", written(notebook))
    assert not found, f"the outputs name paths of the machine that made them: {found}"
    assert set(notebook.metadata) <= {"colab", "kernelspec", "language_info"}
    assert not any(cell.metadata for cell in code)


@each
def test_it_opens_in_colab_and_installs_what_is_missing(path):
    notebook = read(path)
    address = (
        f"https://colab.research.google.com/github/polgrad/polgrad/blob/main/colabs/{path.name}"
    )
    assert address in notebook.cells[0].source
    first = next(cell for cell in notebook.cells if cell.cell_type == "code").source
    assert "import polgrad" in first and "except ImportError" in first and "%pip install" in first


@each
def test_its_commands_name_what_there_is(path):
    words = "\n".join(cell.source for cell in read(path).cells if cell.cell_type == "markdown")
    assert set(re.findall(r"polgrad run (\w+)", words)) <= set(experiments.names())
    assert set(re.findall(r"--algorithm (\w+)(?![\w.])", words)) <= set(algorithms.NAMES)
    assert set(re.findall(r"`(\w+)\.ipynb`", words)) <= {other.stem for other in NOTEBOOKS}
