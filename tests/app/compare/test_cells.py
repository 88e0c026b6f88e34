"""A comparison is interrupted, continued, extended and damaged: no cell is computed twice, none is lost or mistaken."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from diffusion_var.app.compare.cells import CellStore, Measured
from diffusion_var.app.compare.options import CompareOptions
from diffusion_var.app.compare.run import run as run_compare
from diffusion_var.app.compare.sample_scores import Scoring, baseline_groups
from diffusion_var.app.config import load_options
from diffusion_var.errors import DiffusionVarWarning, InputError
from diffusion_var.metrics.score import Score

SMALL: dict[str, Any] = {
    "tolerance": 0.5,
    "steps": [2, 3],
    "seeds": [0, 1],
    "count": 40,
    "batch_size": 40,
    "methods": [{"covariance": "beta"}, {"covariance": "beta_tilde", "eta": 0}],
}


def options(folder: Path, **changes: Any) -> CompareOptions:
    absent = {name: None for name, value in changes.items() if value is None}  # None as a flag means "not given"
    return replace(load_options(CompareOptions, {**SMALL, "out": folder, **changes}), **absent)


@pytest.fixture
def computed(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """The names of the samples that were scored, in order; a name in `stop` interrupts the run instead."""
    names: list[str] = []
    whole = Scoring.scores

    def scores(self: Scoring, sample: Any) -> Any:
        names.append(sample.origin["name"])
        return whole(self, sample)

    monkeypatch.setattr(Scoring, "scores", scores)
    return names


def test_an_interrupted_run_computes_only_what_is_missing(
    tmp_path: Path, computed: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    run_compare(options(tmp_path / "whole"))
    whole = list(computed)
    assert len(whole) == len(set(whole)) == 2 * 2 * 2 + 2  # and two groups of real images
    computed.clear()
    save = CellStore.save

    def interrupted(self: CellStore, label: str, own: dict[str, Any], measured: Measured) -> None:
        if len(computed) == 4:
            raise KeyboardInterrupt
        save(self, label, own, measured)

    with monkeypatch.context() as patch:
        patch.setattr(CellStore, "save", interrupted)
        with pytest.raises(KeyboardInterrupt):
            run_compare(options(tmp_path / "cut"))
    assert computed == whole[:4]
    computed.clear()
    run_compare(options(tmp_path / "cut"))
    assert computed == whole[3:]  # the fourth was not saved
    computed.clear()
    run_compare(options(tmp_path / "cut"))
    assert computed == []
    for name in ("results.csv", "results.json", "report.md"):
        assert (tmp_path / "cut" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), name


def test_more_methods_steps_and_seeds_take_over_what_is_there(tmp_path: Path, computed: list[str]) -> None:
    run_compare(options(tmp_path / "x", baseline=None))
    computed.clear()
    more = [*SMALL["methods"], {"covariance": "beta_tilde", "steps": [3]}]
    run_compare(options(tmp_path / "x", baseline=None, methods=more, seeds=[0, 1, 2]))
    assert sorted(computed) == [
        "DDIM K=2 seed=2",
        "DDIM K=3 seed=2",
        "DDPM β K=2 seed=2",
        "DDPM β K=3 seed=2",
        *(f"DDPM β̃ K=3 seed={seed}" for seed in range(3)),
    ]
    rows = json.loads((tmp_path / "x" / "results.json").read_text())["cells"]
    assert [(row["method"], row["steps"]) for row in rows] == [
        ("DDPM β", 2),
        ("DDPM β", 3),
        ("DDIM", 2),
        ("DDIM", 3),
        ("DDPM β̃", 3),
    ]
    assert "| DDPM β̃ | – |" in (tmp_path / "x" / "report.md").read_text()


@pytest.mark.parametrize(
    "change",
    [
        {"count": 41},
        {"reference": "digits:train"},
        {"metrics": ["fid", "precision"]},
        {"dtype": "bfloat16"},
        {"methods": [{"covariance": "beta"}, {"covariance": "beta_tilde", "eta": 0, "spacing": "trailing"}]},
    ],
)
def test_other_settings_do_not_take_a_cell_for_their_own(
    tmp_path: Path, computed: list[str], change: dict[str, Any]
) -> None:
    """Not even where the report of the others is replaced, which keeps the cells."""
    small = {"baseline": None, "seeds": [0], "steps": [3]}
    run_compare(options(tmp_path / "x", **small))
    assert len(computed) == 2
    before = {file: file.read_bytes() for file in (tmp_path / "x" / "cells").iterdir()}
    run_compare(options(tmp_path / "x", **{**small, **change, "overwrite": True}))
    assert len(computed) == (3 if "methods" in change else 4)
    assert {file: file.read_bytes() for file in before} == before


def test_a_new_name_or_batch_size_keeps_the_cells(tmp_path: Path, computed: list[str]) -> None:
    run_compare(options(tmp_path / "x", baseline=None))
    computed.clear()
    run_compare(options(tmp_path / "x", baseline=None, batch_size=7))
    assert computed == []


def test_the_table_decides_analytic_cells_only(tmp_path: Path, computed: list[str]) -> None:
    methods = [{"covariance": "beta_tilde"}, {"covariance": "analytic"}]
    common = {"baseline": None, "seeds": [0], "steps": [3], "methods": methods}
    run_compare(options(tmp_path / "x", **common))
    computed.clear()
    common["overwrite"] = True
    run_compare(options(tmp_path / "x", **common, table=tmp_path / "x" / "table.safetensors"))
    assert computed == []
    run_compare(options(tmp_path / "x", **common, tolerance=0.1))
    assert computed == ["Analytic-DDPM isotropic K=3 seed=0"]


def test_a_table_is_that_of_the_config_and_not_of_earlier_runs(tmp_path: Path) -> None:
    methods = [{"covariance": "analytic"}]
    common = {"baseline": None, "seeds": [0], "steps": [2], "methods": methods, "overwrite": True}
    for tolerance in (0.5, 0.1, 0.5):
        run_compare(options(tmp_path / "x", **common, tolerance=tolerance))
    run_compare(options(tmp_path / "y", **common))
    names = ("table.safetensors", "results.csv")
    assert all((tmp_path / "x" / name).read_bytes() == (tmp_path / "y" / name).read_bytes() for name in names)


def test_a_single_step_has_a_report(tmp_path: Path) -> None:
    """No step t → s with s > 0 is left to draw a variance of."""
    methods = [{"covariance": "analytic"}]
    run_compare(options(tmp_path / "x", baseline=None, seeds=[0], steps=[1], methods=methods))
    assert (tmp_path / "x" / "report.html").exists()


def test_groups_of_real_images_are_random_and_disjoint(tmp_path: Path) -> None:
    """A folder may hold its images class by class."""
    images = torch.arange(100, dtype=torch.uint8)[:, None, None, None].expand(-1, 1, 8, 8).contiguous()
    name = str(tmp_path / "sorted.npz")
    named, opened = options(tmp_path, baseline=name, count=30, seeds=[0, 1, 2, 3]), {name: images}
    groups = [[int(image[0, 0, 0]) for image in group] for group in baseline_groups(named, opened, (1, 8, 8))]
    assert [len(group) for group in groups] == [30, 30, 30]
    assert len({i for group in groups for i in group}) == 90
    assert all(30 < np.mean(group) < 70 for group in groups)
    with pytest.raises(InputError, match=r"baseline .* shape \(1, 8, 8\); expected .*\(3, 8, 9\)"):
        baseline_groups(named, opened, (3, 8, 9))


def test_a_renamed_method_keeps_its_cells(tmp_path: Path, computed: list[str]) -> None:
    small = {"baseline": None, "seeds": [0], "steps": [2]}
    run_compare(options(tmp_path / "x", **small))
    computed.clear()
    named = [{**method, "name": f"mine {i} {'long ' * 60}"} for i, method in enumerate(SMALL["methods"])]
    run_compare(options(tmp_path / "x", **small, methods=named))
    assert computed == []


def test_what_a_killed_write_leaves_is_not_in_the_way(tmp_path: Path) -> None:
    (tmp_path / "x").mkdir()
    (tmp_path / "x" / ".table.safetensors.abc.tmp").write_bytes(b"half")
    run_compare(options(tmp_path / "x", baseline=None, seeds=[0], steps=[2]))
    assert (tmp_path / "x" / "report.html").exists()


def test_without_analytic_methods_no_table_is_measured(tmp_path: Path) -> None:
    run_compare(options(tmp_path / "x", seeds=[0], steps=[2], table_images="digits:none"))
    assert not (tmp_path / "x" / "table.safetensors").exists()
    assert "The variance" not in (tmp_path / "x" / "report.html").read_text()


def test_a_damaged_cell_is_told_and_computed_again(tmp_path: Path, computed: list[str]) -> None:
    run_compare(options(tmp_path / "x", baseline=None))
    first = (tmp_path / "x" / "results.csv").read_bytes()
    computed.clear()
    victim = next((tmp_path / "x" / "cells").glob("DDIM_K=2_seed=1-*"))
    content = bytearray(victim.read_bytes())
    content[-1] ^= 1
    victim.write_bytes(bytes(content))
    with pytest.warns(DiffusionVarWarning, match=r"DDIM_K=2_seed=1.*computed again"):
        run_compare(options(tmp_path / "x", baseline=None))
    assert computed == ["DDIM K=2 seed=1"]
    assert (tmp_path / "x" / "results.csv").read_bytes() == first


def test_cells_of_different_protocols_refuse_one_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = CellStore.load

    def load(self: CellStore, label: str, own: dict[str, Any]) -> Measured | None:
        measured = whole(self, label, own)
        if measured is not None and "DDIM" in label:
            score = measured.scores["fid"]
            measured.scores["fid"] = replace(score, protocol={**score.protocol, "resize": "bicubic"})
        return measured

    run_compare(options(tmp_path / "x"))
    monkeypatch.setattr(CellStore, "load", load)
    with pytest.raises(InputError, match=r"cannot be compared: resize is 'none' in one and 'bicubic'"):
        run_compare(options(tmp_path / "x"))


def test_a_store_gives_back_what_it_was_given(tmp_path: Path) -> None:
    store = CellStore(tmp_path, {"network": "abc"})
    score = Score(0.1 + 0.2, {"metric": "fid", "parameters": {"k": 3}}, 1e-300, (0.25, 1 / 3))
    grid = np.arange(48, dtype=np.uint8).reshape(3, 1, 4, 4)
    store.save("a b/c", {"seed": 0}, Measured({"fid": score}, grid))
    found = store.load("a b/c", {"seed": 0})
    assert found is not None
    assert found.scores == {"fid": score}
    assert np.array_equal(found.grid, grid)
    assert store.load("a b/c", {"seed": 1}) is None
    assert CellStore(tmp_path, {"network": "abd"}).load("a b/c", {"seed": 0}) is None


def test_a_folder_of_something_else_is_refused(tmp_path: Path, computed: list[str]) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(InputError, match="not empty"):
        run_compare(options(tmp_path))
    assert computed == []


@pytest.mark.slow
def test_a_killed_process_leaves_whole_cells_that_the_next_one_takes_over(tmp_path: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "diffusion_var",
        "compare",
        "--out",
        str(tmp_path / "x"),
        "--tolerance",
        "0.5",
    ]
    command += ["--steps", "2,3", "--seeds", "0,1", "--count", "40"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    cells = tmp_path / "x" / "cells"
    while len(list(cells.glob("*.safetensors"))) < 5 and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    before = {path: path.stat().st_mtime_ns for path in cells.glob("[!.]*.safetensors")}
    assert 5 <= len(before) < 15 * 2 * 2
    assert subprocess.run(command, env=environment, capture_output=True, check=False).returncode == 0
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert (tmp_path / "x" / "report.html").exists()
