"""Advice where the answer is known: exact Gaussian data, a mean that is misread, images that were trained on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import diffusion_var as dv
from diffusion_var.advice import samples
from diffusion_var.advice.advise import least_budget
from diffusion_var.advice.distances import Difference
from diffusion_var.advice.samples import Choice, choices, leaning

SHAPE = (1, 8, 8)
SCHEDULE = dv.NoiseSchedule.linear(100, 1e-3, 0.2)
#: 1/f²: of such data the dct's variances are everything that a step lacks.
FREQUENCY = np.hypot(*np.meshgrid(np.arange(1, 9), np.arange(1, 9)))[None]
EXACT = dv.oracles.GaussianDenoiser(SCHEDULE, 0.0, 4.0 / FREQUENCY**2, basis="dct")
IMAGES = EXACT.sample(240, seed=1)
HOW: dict[str, Any] = {"steps": (3,), "progress": False, "batch_size": 128}


class Network(torch.nn.Module):
    """The exact mean, told in v, with a weight to know it by; it fails after so many evaluations."""

    def __init__(self, most: int | None = None) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(1))
        self.evaluations, self.most = 0, most

    def forward(self, x: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
        self.evaluations += len(x)
        if self.most is not None and self.evaluations > self.most:
            raise KeyboardInterrupt
        n = timestep.long() + 1
        mean = EXACT(x, n).mean
        alpha, sigma = SCHEDULE.coefficients(n, x)
        eps = (x - alpha * mean) / sigma
        return alpha * eps - sigma * mean


def wrapped(network: Any, prediction: Any = "v_prediction") -> dv.Denoiser:
    return dv.Denoiser(network, SCHEDULE, prediction, SHAPE, clip=None)


@pytest.fixture(scope="module")
def advice() -> dv.Advice:
    return dv.advise(EXACT, IMAGES, 12_000, **HOW)


def test_an_exact_gaussian_wants_the_dct(advice: dv.Advice) -> None:
    assert advice.diagnosis.verdict == "fits"
    assert advice.worth_it
    assert advice.samples is not None
    assert advice.likelihood is not None
    (tested,) = advice.samples.tested
    assert tested.verdict == "yes"
    assert tested.advised.structure == "dct"
    assert tested.gain.value > 4 * tested.gain.error
    values = {name: value for name, value, _ in tested.first_look}
    assert values["Analytic-DDIM dct"] < 0.5 * min(values["DDIM"], values["DDPM β̃"], values["Analytic-DDIM isotropic"])
    assert advice.likelihood.structure == "dct"
    assert advice.likelihood.worth_it
    assert max(row.surely for row in advice.mean) < 0.05
    assert "samples yes (at 3 steps)" in advice.sentence


def test_it_keeps_to_its_budget_and_its_images(advice: dv.Advice) -> None:
    assert advice.evaluations <= advice.budget == 12_000
    assert advice.images == (120, 120)
    assert advice.table is not None
    assert advice.table.data is not None
    assert advice.table.data.count == 120
    assert advice.samples is not None
    assert advice.samples.reference == 120
    assert advice.samples.floor is not None
    assert advice.samples.floor < advice.samples.tested[0].distances[0][1]


def test_what_it_says(advice: dv.Advice) -> None:
    assert json.loads(json.dumps(advice.to_dict())) == advice.to_dict()
    text = str(advice)
    assert text.splitlines()[0] == advice.sentence
    assert 'dv.Sampler(denoiser, dv.Analytic(table, structure="dct"), steps=3, eta=' in text
    for title in ("Conventions:", "The mean:", "Likelihoods (", "Samples ("):
        assert title in text
    code = next(line.strip() for line in text.splitlines() if "dv.Sampler(" in line)
    sampler = eval(code, {"dv": dv, "denoiser": EXACT, "table": advice.table})
    assert sampler.sample(2).shape == (2, *SHAPE)


def test_bounds_are_those_of_bits_per_dim(advice: dv.Advice) -> None:
    """The path and its decoder, from a table alone, on images of one's own: the value within its error."""
    found = advice.likelihood
    assert found is not None
    assert found.unit == "bits/dim of density"
    row = next(row for row in found.rows if row.name == "β, even steps")
    again = dv.density_bound(EXACT, dv.FixedLarge(), EXACT.sample(400, seed=7), 3)
    assert abs(row.value - again.value) < 4 * np.hypot(row.error, again.standard_error)
    assert found.paths[3][-1] == 100
    best = min(found.rows, key=lambda row: row.value)
    assert best.name == "analytic dct, optimal steps"
    # A Gaussian whose dct variances are known needs few steps for its own entropy.
    entropy = 0.5 * float(np.log2(2 * np.pi * np.e * EXACT.variance.numpy()).mean())
    assert entropy - 0.05 < best.value < entropy + 0.25


def test_a_mean_that_is_misread_ends_it() -> None:
    found = dv.advise(wrapped(Network(), "epsilon"), IMAGES, 12_000, **HOW)
    assert found.worth_it is None
    assert (found.likelihood, found.samples, found.table) == (None, None, None)
    assert found.diagnosis.verdict == "another"
    assert found.diagnosis.best.convention["prediction"] == "v_prediction"
    assert found.sentence.startswith("declare the network rightly first")
    assert 'prediction="v_prediction"' in str(found)


def test_an_interrupted_advice_goes_on(tmp_path: Path) -> None:
    network = Network()
    whole = dv.advise(wrapped(network), IMAGES, 9_000, **HOW)
    total = network.evaluations
    for most in (2_000, 7_000):  # in the table, and in the samples
        stopped = Network(most=most)
        with pytest.raises(KeyboardInterrupt):
            dv.advise(wrapped(stopped), IMAGES, 9_000, checkpoint=tmp_path / "c", **HOW)
    rest = Network()
    found = dv.advise(wrapped(rest), IMAGES, 9_000, checkpoint=tmp_path / "c", **HOW)
    assert found.to_dict() == whole.to_dict()
    assert rest.evaluations < total - 5_000
    kept = Network()
    again = dv.advise(wrapped(kept), IMAGES, 9_000, checkpoint=tmp_path / "c", **HOW)
    assert again.to_dict() == whole.to_dict()
    assert kept.evaluations < 1_000  # the doctor's alone


def test_a_table_of_other_images_is_taken(advice: dv.Advice) -> None:
    found = dv.advise(EXACT, IMAGES, 12_000, table=advice.table, **HOW)
    assert found.table is advice.table
    assert found.samples is not None
    assert advice.samples is not None
    assert found.samples.count > advice.samples.count  # what the table would have cost


def test_conditions_go_along() -> None:
    """Each image has its class, in the table, the bounds and the samples: a network that gets none fails."""
    seen: set[int] = set()

    def network(x: torch.Tensor, timestep: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
        seen.update(label.tolist())
        return EXACT(x, timestep.long() + 1).mean

    denoiser = dv.Denoiser(network, SCHEDULE, "sample", SHAPE, clip=None, conditional=True, classes=5)
    found = dv.advise(denoiser, IMAGES, 9_000, conditions=[i % 3 for i in range(240)], **HOW)
    assert seen == {0, 1, 2}
    assert found.diagnosis.ok


def test_images_that_were_trained_on_are_refused() -> None:
    seen = torch.cat([EXACT.sample(50, seed=9), IMAGES[::100]])
    with pytest.raises(dv.InputError, match=r"3 of 240 are among those that the network was trained on.*too good"):
        dv.advise(EXACT, IMAGES, 12_000, trained_on=seen, **HOW)
    least = least_budget((3,), EXACT)
    with pytest.raises(dv.InputError, match="too small"):  # it gets past unseen ones
        dv.advise(EXACT, IMAGES, least - 1, trained_on=EXACT.sample(50, seed=9), **HOW)


def test_refusals() -> None:
    with pytest.raises(dv.InputError, match=r"images holds 99, but at least 100 are needed"):
        dv.advise(EXACT, IMAGES[:99], 12_000, **HOW)
    least = least_budget((3,), EXACT)
    with pytest.raises(dv.InputError, match=rf"it takes at least {least} network evaluations"):
        dv.advise(EXACT, IMAGES, least - 1, **HOW)
    other = dv.oracles.GaussianDenoiser(SCHEDULE, 0.5, 4.0 / FREQUENCY**2, basis="dct")
    table = dv.estimate(other, IMAGES, 9.0, indices=[1, 100], progress=False)
    with pytest.raises(dv.InputError, match="network"):
        dv.advise(EXACT, IMAGES, 12_000, table=table, **HOW)


def test_what_is_told_apart_at_one_number_of_steps_is_taken_at_others() -> None:
    def tested(steps: int, value: float, p: float) -> samples.Tested:
        rows = (("DDIM", 2.0, 0.1),)
        return samples.Tested(steps, rows, rows, Choice(), Choice("dct"), Difference(value, 0.1, p), 5, "quadratic")

    alone = leaning([tested(5, 1.0, 0.2), tested(10, 1.0, 0.02)])  # 5 % shared by five
    assert [t.advised.name for t in alone] == ["DDIM, quadratic steps"] * 2
    lean = leaning([tested(5, 1.0, 1e-4), tested(10, 0.1, 0.2), tested(20, -0.1, 0.2), tested(50, -1.0, 1e-4)])
    assert [t.verdict for t in lean] == ["yes", "not told apart", "not told apart", "no"]
    named = [
        "Analytic-DDIM dct, quadratic steps",
        "Analytic-DDIM dct",
        "DDIM, quadratic steps",
        "DDIM, quadratic steps",
    ]
    assert [t.advised.name for t in lean] == named


def test_choices_have_names_and_a_cap_needs_a_range() -> None:
    named = [choice.name for choice in choices(True)]
    assert named[:2] == ["DDPM β̃", "DDIM"]
    assert len({*named}) == len(named) == 7
    assert all(choice.final_noise_cap is None for choice in choices(False))
    assert Choice("dct", 0.0, 1.0, "quadratic").name == "Analytic-DDIM dct, cap 1, quadratic steps"
