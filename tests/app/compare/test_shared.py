"""A comparison that processes share: its report is one process's, to the byte; killed and stopped, it goes on."""

import json
import os
import re
import signal
import time
from pathlib import Path
from typing import Any

import pytest
from many import Many, many

from diffusion_var.app.compare.options import CompareOptions
from diffusion_var.app.compare.run import compare
from diffusion_var.app.compare.run import run as run_compare
from diffusion_var.app.compare.sample_scores import Scoring
from diffusion_var.app.config import load_options

SMALL: dict[str, Any] = {
    "steps": [2, 3],
    "seeds": [0, 1],
    "count": 24,
    "batch_size": 12,
    "metrics": ["fid", "bits_per_dim"],
    "likelihood_images": "digits:score[:24]",
    "methods": [{"covariance": "beta"}, *({"covariance": "beta_tilde", "eta": eta} for eta in (0, 0.5))],
}
#: Of these, samples and bounds; and two groups of real images.
CELLS = 3 * 2 * 2 + 2 * 2 * 2 + 2


def run(folder: Path, slow: float = 0.0, **changes: Any) -> int:
    """Carry it out, each cell with a pause before it; how many this process has scored."""
    scored = []
    whole = Scoring.collect

    def collect(self: Scoring, images: Any, name: str) -> Any:
        if " seed=" in name:
            time.sleep(slow)
            scored.append(name)
        return whole(self, images, name)

    Scoring.collect = collect  # type: ignore[method-assign]
    try:
        run_compare(load_options(CompareOptions, {**SMALL, "out": folder, **changes}))
    finally:
        Scoring.collect = whole  # type: ignore[method-assign]
    return len(scored)


def cells(folder: Path) -> dict[str, int]:
    return {file.name: file.stat().st_mtime_ns for file in (folder / "cells").glob("[!.]*.safetensors")}


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("one") / "x"
    run(folder)
    return folder


def assert_same_report(folder: Path, alone: Path) -> None:
    for name in ("results.csv", "results.json", "report.md", "report.html", "comparison.json"):
        assert (folder / name).read_bytes() == (alone / name).read_bytes(), name
    assert {*cells(folder)} == {*cells(alone)}


def test_the_report_is_that_of_one_process(alone: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    scored = many(2, run, tmp_path / "x")
    assert sum(scored) == 3 * 2 * 2
    assert min(scored) > 0
    assert_same_report(tmp_path / "x", alone)
    assert capfd.readouterr().out.count("The report is") == 1
    before = cells(tmp_path / "x")
    assert len(before) == CELLS
    assert {name: (tmp_path / "x" / "cells" / name).read_bytes() for name in before} == {
        name: (alone / "cells" / name).read_bytes() for name in cells(alone)
    }
    assert many(2, run, tmp_path / "x") == [0, 0]
    assert cells(tmp_path / "x") == before


def found(folder: Path) -> Any:
    result = compare(load_options(CompareOptions, {**SMALL, "out": folder, "metrics": ["fid"]}), folder)
    return [(cell.method.label, cell.steps, cell.values("fid")) for cell in result.cells], result.baseline


def test_every_process_knows_every_cell(alone: Path, tmp_path: Path) -> None:
    first, second = many(2, found, tmp_path)
    assert first == second
    content = json.loads((alone / "results.json").read_text())["cells"]
    assert [values for *_, values in first[0]] == [cell["scores"]["fid"]["values"] for cell in content]


def until(condition: Any) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_what_was_done_when_a_process_ended_is_kept(alone: Path, tmp_path: Path, number: int) -> None:
    folder = tmp_path / "x"
    processes = Many(2, run, folder, 0.1)
    until(lambda: len(cells(folder)) >= 4)
    os.kill(processes.processes[1].pid, number)
    first, second = processes.ends()
    if number == signal.SIGKILL:
        assert re.match(r"RankError: rank 1 of 2 was killed", first.error or ""), first
        assert second.code == -signal.SIGKILL
    else:
        assert (first.error, second.error) == ("Stopped: 15", "Stopped: 15")
    before = cells(folder)
    assert 4 <= len(before) < CELLS
    run(folder)
    assert {name: time for name, time in cells(folder).items() if name in before} == before
    assert_same_report(folder, alone)


def test_more_processes_than_cells_are_told(tmp_path: Path) -> None:
    small = {"steps": [2], "seeds": [0], "methods": SMALL["methods"][:1], "metrics": ["fid"], "baseline": None}
    absent = load_options(CompareOptions, {**SMALL, **small, "out": tmp_path / "x"})
    absent.baseline = None
    first, second = (end.error for end in Many(2, run_compare, absent).ends())
    assert first is not None
    assert first.startswith("DiffusionVarWarning: there are more processes (2) than cells (1) to share between them")
    assert first.endswith("wait: start fewer.")  # no size of batches makes more cells
    assert second is not None
    assert second.startswith("RankError: rank 0 of 2 failed")
