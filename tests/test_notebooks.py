"""The notebooks are run from start to end, on less than a reader has: fewer songs, fewer steps."""

import os
import subprocess
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient
from nbformat.v4 import new_code_cell

REPOSITORY = Path(__file__).resolve().parents[1]
NOTEBOOKS = sorted((REPOSITORY / "notebooks").glob("*.ipynb"))
# What takes the place of a notebook's parameters, as papermill does it.
QUICK = {"quickstart": "STEPS = 2\nSONGS = 2", "your_own_data": "SECONDS = 4", "how_it_works": ""}


def read(path: Path) -> nbformat.NotebookNode:
    return nbformat.read(path, as_version=4)


def with_parameters(notebook: nbformat.NotebookNode, code: str) -> nbformat.NotebookNode:
    """The notebook with a cell behind its parameters that gives them other values; each must be there."""
    for place, cell in enumerate(notebook.cells):
        if "parameters" in cell.metadata.get("tags", []):
            assert all(f"{line.split(' = ')[0]} = " in cell.source for line in code.splitlines())
            notebook.cells.insert(place + 1, new_code_cell(code))
            return notebook
    assert not code, "no cell has the tag `parameters`"
    return notebook


def test_all_three_are_there():
    assert {path.stem for path in NOTEBOOKS} == set(QUICK)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_committed_without_outputs(path):
    notebook = read(path)
    nbformat.validate(notebook)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            assert cell.outputs == []
            assert cell.execution_count is None
        # What an editor adds of its own would change with each opening.
        assert set(cell.metadata) <= {"tags"}
    assert set(notebook.metadata) == {"kernelspec", "language_info"}
    assert notebook.metadata.kernelspec.name == "python3"


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_prose_stands_before_code(path):
    """Every cell of code that shows something is announced: never more than three in a row."""
    kinds = "".join(cell.cell_type[0] for cell in read(path).cells)
    assert kinds[0] == "m"
    assert "cccc" not in kinds


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_runs_from_start_to_end(path, tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(REPOSITORY / "src"))
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))  # of a user's own start-up files, nothing
    monkeypatch.setenv("JUPYTER_RUNTIME_DIR", str(tmp_path / "jupyter"))
    notebook, here = with_parameters(read(path), QUICK[path.stem]), tmp_path / "here"
    here.mkdir()
    before = status()
    NotebookClient(notebook, timeout=120, resources={"metadata": {"path": here}}).execute()
    outputs = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    said = "".join(output.text for output in outputs if output.output_type == "stream")
    assert "Traceback" not in said
    assert "Warning" not in said
    assert sum("image/png" in output.get("data", {}) for output in outputs) >= 4
    assert sum("<audio" in output.get("data", {}).get("text/html", "") for output in outputs) >= 3
    for name, proofs in PROOFS.items():
        assert name != path.stem or all(proof in said for proof in proofs), said
    # Wherever it is started, it writes into one folder that git ignores.
    assert {found.name for found in here.iterdir()} <= {"runs"}
    assert status() == before


# What the notebooks say where all is well.
PROOFS = {
    "quickstart": ["train: 2 songs", "Try:   stemwise separate"],
    "your_own_data": [
        "Song 0/: no vocals",
        "2 files for drums",
        "no audio file in it",
        "lasts 3.50 s",
        "duration is '3:05'",
        "no column 'piano_path'",
        "NaN",
        "MB on disk",
    ],
    "how_it_works": ["does not divide n_fft", "is at M = 0.8", "largest difference from Separator.separate"],
}


def status() -> str:
    """What git sees of the checkout."""
    command = ["git", "status", "--porcelain"]
    environment = {**os.environ, "GIT_OPTIONAL_LOCKS": "0"}
    return subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, check=True).stdout
