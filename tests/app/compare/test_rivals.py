"""Solvers as rivals in a comparison: columns are evaluations, what a method spends is said, and no cell is mistaken."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import diffusion_var as dv
from diffusion_var.app.compare.findings import score_rows, short_of
from diffusion_var.app.compare.options import CompareOptions
from diffusion_var.app.compare.pictures import sample_sheet, score_curves
from diffusion_var.app.compare.result import Cell, Comparison
from diffusion_var.app.compare.run import run
from diffusion_var.app.config import load_options
from diffusion_var.metrics.score import Score
from diffusion_var.models.denoiser import Denoiser

METHODS: list[dict[str, Any]] = [
    {"covariance": "beta_tilde", "eta": 0},
    {"sampler": "unipc"},
    {"sampler": "heun"},
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("rivals") / "x"
    run(load_options(CompareOptions, {"methods": METHODS, "steps": [3, 4], "seeds": [0, 1], "count": 20, "out": out}))
    return out


def test_columns_are_evaluations(folder: Path) -> None:
    cells = json.loads((folder / "results.json").read_text())["cells"]
    found = {(cell["sampler"], cell["steps"]): cell["evaluations"] for cell in cells}
    assert found == {(None, 3): 3, (None, 4): 4, ("unipc", 3): 3, ("unipc", 4): 4, ("heun", 3): 3, ("heun", 4): 3}
    for kind in ("md", "html"):
        text = (folder / f"report.{kind}").read_text()
        assert "† Heun spends 3 of 4 evaluations: no more of its steps fit." in text
        assert text.count(" †</td>" if kind == "html" else " † |") == 1
    # Heun at 4 is Heun at 3: one cell, drawn once.
    assert len(list((folder / "cells").glob("Heun_*"))) == 2
    by_steps = {cell["steps"]: cell["scores"] for cell in cells if cell["sampler"] == "heun"}
    assert by_steps[3] == by_steps[4]


def test_scores_are_those_of_the_solvers_own_images(folder: Path) -> None:
    cells = json.loads((folder / "results.json").read_text())["cells"]
    cell = next(c for c in cells if c["sampler"] == "heun" and c["steps"] == 3)
    denoiser = Denoiser.from_pretrained("digits")
    images = dv.SolverSampler(denoiser, "heun", dv.steps.karras(denoiser, 2)).sample(20, seed=1, batch_size=20)
    score = dv.metrics.fid(images, dv.data.digits_splits().score.images, "digits")
    assert cell["scores"]["fid"]["values"][1] == pytest.approx(float(score), rel=1e-3)


def comparison() -> Comparison:
    options = load_options(CompareOptions, {"methods": METHODS, "steps": [4], "seeds": [0, 1, 2]})
    result = Comparison(options, None, real=torch.zeros(3, 1, 8, 8, dtype=torch.uint8))
    for method, value in zip(options.methods, (1.0, 2.0, 3.0), strict=True):
        scores = [Score(value + 0.1 * seed, {}) for seed in range(3)]
        spent = 3 if method.sampler == "heun" else 4
        grid = torch.full((3, 1, 8, 8), 255, dtype=torch.uint8)
        result.cells.append(Cell(method, 4, {"fid": scores}, grid, evaluations=spent))
    return result


def test_a_method_stands_where_it_spends() -> None:
    result = comparison()
    assert short_of(result) == ["† Heun spends 3 of 4 evaluations: no more of its steps fit."]
    assert [cells[0][0][-1] == "†" for _, cells in score_rows(result, "fid")] == [False, False, True]
    axes = score_curves(result, "fid").axes[0]
    places = [container[0].get_xdata()[0] for container in axes.containers]
    assert np.allclose(places, [4, 4, 3], rtol=0.05)


def test_ties_are_marked_with_the_best() -> None:
    result = comparison()
    near = [Score(value, {}) for value in (1.2, 0.9, 1.3)]
    result.cells[1] = replace(result.cells[1], scores={"fid": near})
    assert [cells[0][1] for _, cells in score_rows(result, "fid")] == [True, True, False]


def test_a_sheet_shows_whole_pixels_and_real_images_first() -> None:
    figure = sample_sheet(comparison(), 4)
    assert [text.get_text() for text in figure.texts] == ["real images", "DDIM", "UniPC-2", "Heun"]
    assert len(figure.images) == 4 * 3
    assert {image.get_size() for image in figure.images} == {(64, 64)}  # eight times 8
    assert float(np.max(figure.images[0].get_array())) == 0.0
    assert float(np.min(figure.images[3].get_array())) == 255.0


def test_a_schedule_without_signal_at_its_end_is_refused_before_the_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundled = Denoiser.from_pretrained("digits")
    ending = dv.Denoiser(bundled.network, bundled.schedule.with_zero_terminal_snr(), "v_prediction", bundled.shape)
    monkeypatch.setattr(Denoiser, "from_pretrained", lambda *_, **__: ending)
    settings = {"methods": [{"sampler": "unipc"}], "steps": [3], "out": tmp_path / "x"}
    with pytest.raises(dv.InputError, match="the solver unipc steps by the log-SNR, which is infinite at index 1000"):
        run(load_options(CompareOptions, settings))
    assert not (tmp_path / "x" / "cells").exists()
