"""The notebook of the demo runs from top to bottom, with fewer questions."""

from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

NOTEBOOK = Path(__file__).parents[1] / "docs/demo.ipynb"

SMALL = """
train_size, test_size, iterations = 8, 6, 1
settings = ["model={model}", "engine.type=transformers", "engine.max_new_tokens=12", "proposal={proposal}"]
own_texts = own_texts[:2]
"""
# A model of random weights writes no score, so PPS alone would leave nothing to train on.
PROPOSAL = "{type: mixture, components: [{weight: 1, proposal: {type: pps}}, {weight: 1, proposal: {type: direct}}]}"


def test_the_notebook_is_kept_without_outputs_or_with_those_of_one_whole_run() -> None:
    cells = [cell for cell in nbformat.read(NOTEBOOK, 4).cells if cell.cell_type == "code"]
    counts = [cell.execution_count for cell in cells]
    assert counts in ([None] * len(cells), list(range(1, len(cells) + 1)))
    assert all(cell.execution_count is not None or cell.outputs == [] for cell in cells)
    assert [output for cell in cells for output in cell.outputs if output.output_type == "error"] == []


@pytest.mark.slow
def test_the_notebook_runs_and_shows_samples_accuracy_and_predictions(
    tmp_path: Path, tiny_model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    notebook = nbformat.read(NOTEBOOK, 4)
    (place,) = [n for n, cell in enumerate(notebook.cells) if "parameters" in cell.metadata.get("tags", ())]
    small = nbformat.v4.new_code_cell(SMALL.format(model=tiny_model, proposal=PROPOSAL))
    notebook.cells.insert(place + 1, small)
    NotebookClient(notebook, timeout=300, kernel_name="python3", resources={"metadata": {"path": tmp_path}}).execute()
    outputs = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    shown = "".join(output.text for output in outputs if output.get("name") == "stdout")
    assert "10605 sentences" in shown
    plain, hinted = shown.partition("PLAIN")[2].split("HINTED")
    assert "Hint:" not in plain
    assert "Hint: Evaluate the sentence as if its score was" in hinted
    assert shown.count(", accepted] ") + shown.count(", not used] ") == 4
    assert "[correct, accepted] Score: " in shown
    assert "iteration 1: accuracy " in shown
    assert "data utilization " in shown
    assert [output for output in outputs if "image/png" in output.get("data", {})]
    assert "A masterpiece from the first scene to the last." in shown
    assert "Two hours of my life" in shown.rpartition("masterpiece")[2]
    (run,) = (tmp_path / "runs").iterdir()
    assert (run / "iteration-01/weights").is_dir()
