"""The script behind results/flow.md's exact model: other codes' steps are what their formulas say, a table serves every
σ list, the closed form is where the scheduler's samples end, and its variances are worth what they should be."""

import importlib
import math

import numpy as np
import pytest
import torch
from places import SCRIPTS

import diffusion_var as dv


@pytest.fixture(scope="module", autouse=True)
def scripts():
    """The modules of scripts/ can be imported."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(SCRIPTS))
        yield


@pytest.fixture(scope="module")
def rivals(scripts):
    return importlib.import_module("rival_steps")


@pytest.fixture(scope="module")
def oracles(scripts):
    return importlib.import_module("flow_oracles")


def measured(oracle, count=3000, tolerance=0.02, **options):
    return dv.estimate(oracle, oracle.sample(count, seed=1).float(), tolerance, progress=False, **options)


# ---- other codes' steps ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(("t", "s"), [(0.9, 0.7), (0.5, 0.1), (0.1, 0.0), (1.0, 0.95)])
@pytest.mark.parametrize("rule", ["flow_grpo", "dance_grpo"])
def test_euler_maruyama_of_the_reverse_sde(rivals, rule: str, t: float, s: float) -> None:
    """dx = (F − ½ g² ∇log p) dt + g dw backwards, with ∇log p = −ε̂/t."""
    a, x, flow = 0.7, 1.3, -0.4
    g = a if rule == "dance_grpo" else a * math.sqrt(t / (1 - t)) if t < 1 else a * math.sqrt(1 / (1 - s))
    score = -(x + (1 - t) * flow) / t
    mean = x + (flow - 0.5 * g**2 * score) * (s - t)
    step = rivals.rival_step(rule, t, s, a)
    assert step.of_x * x + step.of_flow * flow == pytest.approx(mean, rel=1e-12)
    assert step.deviation == pytest.approx(g * math.sqrt(t - s), rel=1e-12)


@pytest.mark.parametrize(("t", "s"), [(0.9, 0.7), (0.5, 0.1), (0.1, 0.0), (1.0, 0.95)])
def test_the_others_are_steps_of_this_package_without_a_variance(rivals, t: float, s: float) -> None:
    levels = dv.NoiseLevel.flow(t), dv.NoiseLevel.flow(s)
    x, flow = 1.3, -0.4
    for rule, a, noise in (("ode", 0.0, {"eta": 0.0}), ("precise", 0.9, {"tau": 0.9 / math.sqrt(2)})):
        kernel, step = dv.ReverseKernel.between(*levels, **noise), rivals.rival_step(rule, t, s, a)
        mean = kernel.alpha_s * (x - t * flow) + kernel.eps_gain * (x + (1 - t) * flow)
        assert step.of_x * x + step.of_flow * flow == pytest.approx(mean, rel=1e-9)
        assert step.deviation**2 == pytest.approx(kernel.lambda2, rel=1e-9, abs=1e-15)
    step = rivals.rival_step("cps", t, s, 0.8)
    assert step.deviation == pytest.approx(s * math.sin(0.4 * math.pi))
    c = math.sqrt(s * s - step.deviation**2)  # of ε̂
    assert step.of_x == pytest.approx(1 - s + c)
    assert step.of_flow == pytest.approx(c * (1 - t) - (1 - s) * t)


# ---- a table off its grid -------------------------------------------------------------------------------------


def places(oracles) -> list[dv.NoiseLevel]:
    """Levels of the lists of shift 3 and of a dynamic shift."""
    return [dv.NoiseLevel.flow(t) for grid in ("shift 3", "dynamic, mu 1.15") for t in oracles.levels(grid, 7)[1:-1]]


def test_a_table_of_the_even_grid_serves_other_lists(oracles) -> None:
    oracle = oracles.gaussian(6)
    table = measured(oracle)
    for level in places(oracles):
        exact = oracle.posterior_variance(level).mean()
        error = math.hypot(table.standard_error(level, images=True), 1e-3 * exact)
        assert abs(table.posterior_variance(level) - exact) < 3.5 * error


def test_a_table_of_a_mixture_serves_other_lists(oracles) -> None:
    """Between modes v is no smooth multiple of the linear-MMSE value."""
    means = np.random.default_rng(0).standard_normal((3, 1, 4, 4))
    oracle = dv.oracles.MixtureDenoiser(dv.NoiseSchedule.flow(1000), means, [0.02, 0.1, 0.3])
    table, noise = measured(oracle), torch.from_numpy(np.random.default_rng(1).standard_normal((4000, 1, 4, 4)))
    x_0 = oracle.sample(4000, seed=2)
    for level in places(oracles):
        each = oracle.posterior_variance(level.alpha * x_0 + level.sigma * noise, level, "isotropic")
        exact = float(each.mean())
        drawn = float(each.std()) / len(each) ** 0.5
        error = math.hypot(table.standard_error(level, images=True), drawn, 5e-3 * exact)
        assert abs(table.posterior_variance(level) - exact) < 3.5 * error


# ---- where the samples end ------------------------------------------------------------------------------------


@pytest.mark.parametrize("structure", ["isotropic", "dct"])
@torch.no_grad()
def test_the_closed_form_is_where_the_schedulers_samples_end(oracles, structure: str) -> None:
    from diffusers import FlowMatchEulerDiscreteScheduler

    oracle, count = oracles.gaussian(4), 20_000
    table = measured(oracle, structures=("isotropic", "dct"))
    table.prediction = "flow"  # of an oracle it is x̂_0, of which F follows
    scheduler = dv.AnalyticFlowScheduler.from_table(
        table, FlowMatchEulerDiscreteScheduler(shift=3.0), structure=structure
    )
    scheduler.set_timesteps(5)
    scheduler.generator = torch.Generator().manual_seed(0)
    x = torch.from_numpy(np.random.default_rng(0).standard_normal((count, 1, 4, 4)))
    for t, sigma in zip(scheduler.timesteps, scheduler.sigmas[:-1].tolist(), strict=True):
        mean = oracle(x, dv.NoiseLevel.flow(sigma)).mean
        x = scheduler.step((x - mean) / sigma, t, x).prev_sample
    found = oracle.structure.forward(x).square().mean(0)
    variance = oracle.variance.numpy()
    ends: np.ndarray = np.ones_like(variance)
    for factor, noise in oracles.analytic(variance, oracles.levels("shift 3", 5), table, structure, eta=1.0):
        ends = factor**2 * ends + noise
    assert np.abs(found.numpy() / ends - 1).max() < 4.5 * math.sqrt(2 / count)


def test_measured_variances_lose_less_than_half_of_what_hand_set_noise_does(rivals, oracles) -> None:
    """Ten steps, shift 3, with the noise that is usual there."""
    oracle = oracles.gaussian(32)
    variance, times = oracle.variance.numpy(), oracles.levels("shift 3", 10)
    table = measured(oracle, 600, 0.05, structures=("isotropic", "dct"))
    theirs = {
        rule: oracles.divergence(variance, oracles.rival(variance, times, rule, a)) for rule, a in rivals.USUAL.items()
    }
    ours = {
        name: oracles.divergence(variance, oracles.analytic(variance, times, table, **options))
        for name, options in oracles.OURS.items()
    }
    assert ours["analytic, isotropic, η = 1"] < 0.5 * min(theirs.values())
    assert ours["analytic, dct, η = 1"] < 0.01 * min(theirs.values())
    expected = {"ode": 0.1353, "flow_grpo": 0.0277, "dance_grpo": 0.0863, "cps": 0.3236, "precise": 0.2037}
    assert theirs == pytest.approx(expected, abs=1e-4)


def test_the_report_on_small_data(oracles, capsys) -> None:
    oracles.report(6, 800, 0.05)
    printed = capsys.readouterr().out
    assert printed.count("KL(data ‖ sampler)") == 3
    rows = [line.strip("| ").split(" | ") for line in printed.splitlines() if line.startswith("| flow_grpo")]
    assert len(rows) == 3
    assert all(float(cell) > 0 for cells in rows for cell in cells[1:4])
