"""Bits/dim in a comparison: the bound's own numbers, beside scores of samples and kept like them."""

import csv
import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

import diffusion_var as dv
from diffusion_var.app.compare.likelihood_scores import LikelihoodScoring
from diffusion_var.app.compare.options import CompareOptions, Method
from diffusion_var.app.compare.pictures import score_curves
from diffusion_var.app.compare.result import Cell, Comparison
from diffusion_var.app.compare.run import run as run_compare
from diffusion_var.app.compare.sample_scores import Scoring
from diffusion_var.app.config import load_options
from diffusion_var.app.markdown import markdown
from diffusion_var.data.digits import digits_splits
from diffusion_var.errors import InputError
from diffusion_var.likelihood.terms import BoundTerms
from diffusion_var.metrics.score import Score

SMALL: dict[str, Any] = {
    "tolerance": 0.5,
    "steps": [2, 4],
    "seeds": [0, 1],
    "count": 20,
    "baseline": None,
    "metrics": ["fid", "bits_per_dim"],
    "likelihood_images": "digits:score[:30]",
    "methods": [
        {"covariance": "beta"},
        {"covariance": "beta", "final_noise_cap": 1},
        {"covariance": "beta_tilde", "eta": 0},
        {"covariance": "analytic", "structure": "pixel", "spacing": "quadratic", "eta": 0.5},
    ],
}


def options(folder: Path, **changes: Any) -> CompareOptions:
    return replace(load_options(CompareOptions, {**SMALL, "out": folder, **changes}), baseline=None)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    found = tmp_path_factory.mktemp("likelihoods") / "run"
    run_compare(options(found))
    return found


def cells(folder: Path) -> dict[tuple[str, int], dict[str, Any]]:
    content = json.loads((folder / "results.json").read_text())
    return {(cell["method"], cell["steps"]): cell["scores"] for cell in content["cells"]}


def test_the_numbers_are_those_of_the_api(folder: Path) -> None:
    denoiser = dv.Denoiser.from_pretrained(Path(dv.__file__).parent / "assets" / "digits")
    table = dv.VarianceTable.load(folder / "table.safetensors")
    images, found = digits_splits().score.images[:30], cells(folder)
    asked = {
        "DDPM β": (dv.FixedLarge(), dv.steps.linspace(denoiser.schedule, 4), 1.0),
        "Analytic-η=0.5 pixel, quadratic": (
            dv.Analytic(table, structure="pixel"),
            dv.steps.quadratic(denoiser.schedule, 4),
            0.5,
        ),
    }
    for label, (covariance, steps, eta) in asked.items():
        values = [float(dv.bits_per_dim(denoiser, covariance, images, steps, seed, eta=eta)) for seed in (0, 1)]
        assert found[label, 4]["bits_per_dim"]["values"] == pytest.approx(values, rel=1e-4)
        assert found[label, 4]["bits_per_dim"]["mean"] == pytest.approx(np.mean(values), rel=1e-4)


def test_without_noise_there_is_none_and_the_cap_changes_nothing(folder: Path) -> None:
    found = cells(folder)
    assert all(set(found["DDIM", k]) == {"fid"} for k in (2, 4))
    for k in (2, 4):
        assert found["DDPM β", k]["bits_per_dim"] == found["DDPM β, cap 1", k]["bits_per_dim"]
        assert found["DDPM β", k]["fid"] != found["DDPM β, cap 1", k]["fid"]
    with (folder / "results.csv").open() as file:
        rows = {(row["method"], row["steps"], row["seed"]): row["bits_per_dim"] for row in csv.DictReader(file)}
    assert rows["DDIM", "2", "0"] == ""
    assert float(rows["DDPM β", "2", "1"]) == found["DDPM β", 2]["bits_per_dim"]["values"][1]


def test_the_report_tells_of_both(folder: Path) -> None:
    text = (folder / "report.md").read_text()
    best, who = min((s["bits_per_dim"]["mean"], m) for (m, k), s in cells(folder).items() if k == 4 and len(s) == 2)
    assert f"**{best:.4f} ±" in text
    assert "An upper bound on −log₂ P of the images `digits:score[:30]`" in text
    assert "| DDIM | – | – |" in text
    assert f"- Bits/dim, K = 4: {who} has the best score, {best:.4f}" in text
    assert (folder / "scores_bits_per_dim.png").stat().st_size > 5000
    assert f"reference: {markdown('digits:score[:30]')}" in text.split("## Protocol: bits/dim")[1]


def test_cells_are_computed_once(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of samples serve with and without likelihoods; those of likelihoods belong to their images."""
    bounds, samples = [], []
    whole, scores = LikelihoodScoring.score, Scoring.scores

    def count(self: LikelihoodScoring, *rest: Any) -> Any:
        bounds.append(rest[0].steps)
        return whole(self, *rest)

    def sample(self: Scoring, *rest: Any) -> Any:
        samples.append(rest)
        return scores(self, *rest)

    monkeypatch.setattr(LikelihoodScoring, "score", count)
    monkeypatch.setattr(Scoring, "scores", sample)
    methods = SMALL["methods"][:3]
    run_compare(options(tmp_path / "run", metrics=["fid"], methods=methods))
    assert (len(bounds), len(samples)) == (0, 3 * 2 * 2)
    run_compare(options(tmp_path / "run", methods=methods))
    assert (len(bounds), len(samples)) == (2 * 2, 3 * 2 * 2)  # two methods with noise share their bounds
    results = (tmp_path / "run" / "results.json").read_bytes()
    run_compare(options(tmp_path / "run", methods=methods))
    assert (len(bounds), len(samples)) == (2 * 2, 3 * 2 * 2)
    assert (tmp_path / "run" / "results.json").read_bytes() == results  # of scores that were read, in the same order
    run_compare(options(tmp_path / "run", methods=methods, likelihood_images="digits:score[:31]", overwrite=True))
    assert (len(bounds), len(samples)) == (4 * 2, 3 * 2 * 2)
    assert not list((tmp_path / "run").rglob("*.partial"))


def test_an_interrupted_bound_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = options(tmp_path / "run", methods=SMALL["methods"][:1], seeds=[0], steps=[3], batch_size=4)
    calls, whole = [], BoundTerms.at

    def at(self: BoundTerms, *rest: Any) -> Any:
        calls.append(1)
        if len(calls) == 5:
            raise KeyboardInterrupt
        return whole(self, *rest)

    monkeypatch.setattr(BoundTerms, "at", at)
    with pytest.raises(KeyboardInterrupt):
        run_compare(settings)
    assert len(list((tmp_path / "run" / "cells").glob("*.partial"))) == 1
    run_compare(settings)
    resumed = len(calls) - 5
    cut = cells(tmp_path / "run")
    calls[:] = [1] * 5
    run_compare(replace(settings, out=tmp_path / "whole"))
    assert cut == cells(tmp_path / "whole")
    assert 0 < resumed < len(calls) - 5


def test_a_first_bound_may_be_interrupted_where_the_table_is_given(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing has been written into the folder of the cells before."""
    given: dict[str, Any] = {"table": folder / "table.safetensors", "metrics": ["bits_per_dim"], "batch_size": 4}
    settings = options(tmp_path / "run", methods=SMALL["methods"][3:], seeds=[0], steps=[3], **given)
    calls, whole = [], BoundTerms.at

    def at(self: BoundTerms, *rest: Any) -> Any:
        calls.append(1)
        if len(calls) == 5:
            raise KeyboardInterrupt
        return whole(self, *rest)

    monkeypatch.setattr(BoundTerms, "at", at)
    with pytest.raises(KeyboardInterrupt):
        run_compare(settings)
    assert len(list((tmp_path / "run" / "cells").glob("*.partial"))) == 1


@pytest.mark.filterwarnings("ignore:the decoder's variance is that of the step 2 to 1")  # σ = 0.02 is not index 1's
def test_likelihoods_alone_need_no_samples(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the spacings that are for likelihoods, a covariance misjudged on purpose, and levels of one's own."""
    monkeypatch.setattr(dv.Sampler, "stream", lambda *_, **__: pytest.fail("a sample was made"))
    table = {"covariance": "analytic", "structure": "pixel"}
    methods: list[dict[str, Any]] = [
        table,
        {**table, "spacing": "optimal"},
        {**table, "spacing": "karras"},
        {**table, "factor": 4.0},
        {**table, "tau": 1.0},
        {**table, "sigmas": [20.0, 3.0, 0.5, 0.1, 0.02, 0.0], "name": "mine"},
    ]
    small = {"metrics": ["bits_per_dim"], "methods": methods, "steps": [4], "seeds": [0], "features": "nowhere"}
    run_compare(options(tmp_path / "run", **small, decoder_images="digits:table[:20]"))
    found = {method: scores["bits_per_dim"]["mean"] for (method, _), scores in cells(tmp_path / "run").items()}
    label = "Analytic-DDPM pixel"
    names = [label, f"{label}, optimal", f"{label}, karras", f"{label}, × 4", "Analytic-τ=1 pixel", "mine"]
    assert list(found) == names
    assert found[f"{label}, optimal"] < found[label] < found[f"{label}, × 4"]
    assert found["Analytic-τ=1 pixel"] == pytest.approx(found[label], rel=1e-9)
    text = (tmp_path / "run" / "report.md").read_text()
    assert "Samples" not in text
    assert "± standard error over the images" in text
    assert f"**{found[f'{label}, optimal']:.4f} ±" in text
    assert not list((tmp_path / "run").glob("samples*"))
    assert (tmp_path / "run" / "report.html").stat().st_size > 10_000
    # The optimal path and its decoder are those of the API
    (cell,) = [c for c in json.loads((tmp_path / "run" / "results.json").read_text())["cells"] if "path" in c]
    network = dv.Denoiser.from_pretrained(Path(dv.__file__).parent / "assets" / "digits")
    made = dv.VarianceTable.load(tmp_path / "run" / "table.safetensors")
    decoders = dv.decoder_costs(network, digits_splits().table.images[:20], made)
    path = dv.steps.optimal(made, 4, structure="pixel", decoder_variance=decoders)
    assert (cell["path"], cell["decoder"]) == (list(path), path.decoder)
    assert path[0] > 1
    bound = dv.bits_per_dim(network, dv.Analytic(made, structure="pixel"), digits_splits().score.images[:30], path)
    assert found[f"{label}, optimal"] == pytest.approx(float(bound), rel=1e-4)
    # The levels as the API takes them
    denoiser = dv.Denoiser.from_pretrained(Path(dv.__file__).parent / "assets" / "digits")
    measured = dv.VarianceTable.load(tmp_path / "run" / "table.safetensors")
    levels = dv.steps.sigmas(denoiser.schedule, methods[-1]["sigmas"])
    images = digits_splits().score.images[:30]
    value = float(dv.bits_per_dim(denoiser, dv.Analytic(measured, structure="pixel"), images, levels))
    assert found["mine"] == pytest.approx(value, rel=1e-4)


def test_a_hopeless_method_does_not_hide_the_others() -> None:
    """β̃'s hundreds of bits are cut off, and the picture says so; scores that lie together are shown whole."""
    methods = [Method("beta_tilde"), Method("beta"), Method("analytic")]

    def panel(bits: list[float]) -> Any:
        result = Comparison(CompareOptions(methods=methods, steps=[5], metrics=["fid", "bits_per_dim"]), None)
        result.cells = [
            Cell(method, 5, {"bits_per_dim": [Score(value, {})] * 3})
            for method, value in zip(methods, bits, strict=True)
        ]
        return score_curves(result, "bits_per_dim").axes[0]

    cut = panel([700.0, 7.0, 6.0])
    assert 14.0 < cut.get_ylim()[1] < 15.0
    assert "cut at twice the median" in cut.get_title()
    whole = panel([8.0, 7.0, 6.0])
    assert 8.0 < whole.get_ylim()[1] < 8.5
    assert "cut" not in whole.get_title()


def test_refusals(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"every method has η = 0.*leave bits_per_dim out"):
        run_compare(options(tmp_path / "b", methods=[{"covariance": "beta_tilde", "eta": 0}]))
    with pytest.raises(InputError, match="nowhere"):
        run_compare(options(tmp_path / "c", likelihood_images="nowhere"))
    np.save(tmp_path / "wide.npy", np.zeros((3, 1, 9, 9), dtype=np.uint8))
    with pytest.raises(InputError, match=r"9, 9"):
        run_compare(options(tmp_path / "d", likelihood_images=str(tmp_path / "wide.npy")))
    assert not list(tmp_path.glob("*/cells/*"))


def test_conditions_of_the_images_tell_cells_apart() -> None:
    settings = load_options(CompareOptions, SMALL)
    images = {settings.likelihood_images: digits_splits().score.images[:30]}
    denoiser = dv.Denoiser.from_pretrained(Path(dv.__file__).parent / "assets" / "digits")

    def identity(*conditions: int) -> Any:
        given = dv.Conditions(torch.tensor(conditions)) if conditions else None
        model: Any = SimpleNamespace(
            denoiser=denoiser, inputs=lambda images: images, table_conditions=lambda *_, **__: given
        )
        return json.dumps(LikelihoodScoring(settings, model, images).identity, sort_keys=True)

    assert len({identity(), identity(1), identity(2)}) == 3
    assert identity(1) == identity(1)
