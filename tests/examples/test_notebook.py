"""The notebook under examples/: it runs from top to bottom, and shows what it printed and drew."""

from __future__ import annotations

from pathlib import Path

import pytest
from paths import ROOT
from patience import patience

nbformat = pytest.importorskip("nbformat")
nbclient = pytest.importorskip("nbclient")
pytest.importorskip("ipykernel")
pytest.importorskip("matplotlib")

NOTEBOOK = ROOT / "examples" / "two_rates.ipynb"


def test_outputs_are_those_of_a_run_without_errors() -> None:
    cells = [c for c in nbformat.read(NOTEBOOK, as_version=4).cells if c.cell_type == "code"]
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    shown = [output for cell in cells for output in cell.outputs]
    assert {output.output_type for output in shown} == {"stream", "display_data"}
    assert sum("image/png" in output.get("data", {}) for output in shown) == 2


@pytest.mark.slow
def test_it_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    for cell in notebook.cells:
        cell.source = cell.source.replace("STEPS = 9, 10, 3000", "STEPS = 9, 10, 1500")
    client = nbclient.NotebookClient(notebook, resources={"metadata": {"path": str(tmp_path)}})
    limit = patience(15)
    client.timeout = limit and round(limit)  # it takes whole seconds
    client.execute()
    printed = [o.text for c in notebook.cells for o in c.get("outputs", []) if "text" in o]
    assert any("1500 steps of 12 groups: 1500 launches" in text for text in printed)
