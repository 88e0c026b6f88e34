"""Every notebook runs from top to bottom, prints what it is kept with, and is kept with its pictures."""

import base64
import json
import re
from pathlib import Path
from typing import Any

import pytest
from places import ROOT

NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
#: What has no meaning of its own to compare: numbers (of another machine), and how wide they are.
NUMBERS = re.compile(r"[-+\u2212]?\b[\d.,]+(?:e[-+]?\d+)?\b%?|\b[0-9a-f]{12}\b")


def cells(path: Path) -> list[dict[str, Any]]:
    return [cell for cell in json.loads(path.read_text())["cells"] if cell["cell_type"] == "code"]


def words(text: str) -> list[str]:
    return NUMBERS.sub("#", text).split()


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_runs(
    path: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MPLBACKEND", "Agg")
    monkeypatch.chdir(tmp_path)
    namespace: dict[str, object] = {"__name__": path.stem}
    for number, cell in enumerate(cells(path)):
        kept = "".join("".join(out.get("text", "")) for out in cell["outputs"])
        exec(compile("".join(cell["source"]), f"{path.name}, code cell {number}", "exec"), namespace)
        said = capsys.readouterr().out
        assert words(said)[:20] == words(kept)[:20], f"{path.name}, code cell {number}: run `make notebooks`"


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebooks_are_kept_as_they_ran(path: Path) -> None:
    """In order, without an error, with pictures that are pictures, and nothing of the machine that they ran on."""
    found = cells(path)
    assert [cell["execution_count"] for cell in found] == list(range(1, len(found) + 1))
    outputs = [out for cell in found for out in cell["outputs"]]
    assert {out["output_type"] for out in outputs} <= {"stream", "display_data", "execute_result"}
    pictures = [out["data"]["image/png"] for out in outputs if "image/png" in out.get("data", {})]
    assert pictures
    assert all(base64.b64decode(picture).startswith(b"\x89PNG") for picture in pictures)
    text = json.dumps([out.get("text", "") for out in outputs])
    assert "/home/" not in text
    assert "/tmp/" not in text
    assert "Warning" not in text
    assert path.stat().st_size < 600_000


def test_there_is_one_for_each_thing_that_a_user_does() -> None:
    assert [path.stem for path in NOTEBOOKS] == [
        "advice",
        "covariance",
        "likelihoods",
        "photographs",
        "pipeline",
        "restoration",
    ]
