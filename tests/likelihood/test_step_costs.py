"""Measured costs of all steps between some indices: against closed forms, and against the bound that they are of."""

import itertools
import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

import diffusion_var as dv
from diffusion_var.covariance.reverse import ReverseCovariance, StructuredCovariance
from diffusion_var.process.structure import make_structure

N, SHAPE = 40, (1, 4, 3)
SCHEDULE = dv.NoiseSchedule.linear(N, 1e-3, 0.3)
VARIANCE = np.geomspace(0.01, 1.0, 12).reshape(SHAPE)
GAUSSIAN = dv.oracles.GaussianDenoiser(SCHEDULE, 0.3, VARIANCE)
INDICES = [1, 4, 9, 17, 28, N]
ELEMENTS = [GAUSSIAN.posterior_variance(n) for n in range(1, N + 1)]
EPS_SQUARE = SCHEDULE.sigma[1:] ** 2 * np.mean(
    1 / (SCHEDULE.alpha[1:, None] ** 2 * VARIANCE.ravel() + SCHEDULE.sigma[1:, None] ** 2), 1
)
TABLE = dv.VarianceTable.from_moments(SCHEDULE, eps_square=EPS_SQUARE, data_range=None)


class PerPixel(ReverseCovariance):
    """The exact covariance of the Gaussian data."""

    name = "exact"

    def __call__(self, posterior: dv.Posterior | None, kernel: dv.ReverseKernel) -> StructuredCovariance:
        variance = kernel.lambda2 + kernel.gain**2 * ELEMENTS[kernel.t - 1]
        return StructuredCovariance(make_structure("pixel", SHAPE), torch.from_numpy(variance))


COVARIANCES: dict[str, tuple[ReverseCovariance, float]] = {
    "beta_tilde": (dv.FixedSmall(), 1.0),
    "beta": (dv.FixedLarge(), 1.0),
    "isotropic": (dv.Analytic(TABLE, "score_norm"), 1.0),
    "pixel": (PerPixel(), 1.0),
    "eta": (PerPixel(), 0.4),
}


def used_variance(name: str, kernel: dv.ReverseKernel) -> Any:
    v = ELEMENTS[kernel.t - 1]
    optimal = kernel.lambda2 + kernel.gain**2 * (v.mean() if name == "isotropic" else v)
    return {"beta_tilde": kernel.lambda2, "beta": kernel.beta}.get(name, optimal)


# ---- what is measured -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", COVARIANCES)
def test_costs_of_gaussian_data_are_the_closed_form(name: str) -> None:
    """E KL = ½ E[log u/λ² − 1 + λ²/u + γ² v/u], per element of variance v and noise u."""
    covariance, eta = COVARIANCES[name]
    images = GAUSSIAN.sample(200, seed=1)
    found = dv.step_costs(GAUSSIAN, covariance, images, INDICES, seed=2, eta=eta)
    assert found.indices.tolist() == INDICES
    assert (found.images, found.schedule) == (200, SCHEDULE)
    for (i, s), (j, t) in itertools.product(enumerate(INDICES), enumerate(INDICES)):
        if i >= j:
            assert found.values[i, j] == math.inf
            assert math.isnan(found.standard_errors[i, j])
            continue
        kernel = dv.ReverseKernel(SCHEDULE, t, s, eta)
        u, v = used_variance(name, kernel), ELEMENTS[t - 1]
        ratio = (kernel.lambda2 + kernel.gain**2 * v) / u
        expected = 0.5 * float(np.mean(np.log(u / kernel.lambda2) - 1 + ratio))
        error = found.standard_errors[i, j]
        assert 0 < error < 0.15 * expected
        assert abs(found.values[i, j] - expected) <= 4 * error


def test_the_standard_error_is_that_over_images() -> None:
    """Of many runs with other images, the spread of the means (known to 8 %) is the error that one run states."""
    runs = [dv.step_costs(GAUSSIAN, PerPixel(), GAUSSIAN.sample(40, k), [1, 9, N], seed=k) for k in range(80)]
    for pair in ((0, 1), (0, 2), (1, 2)):
        spread = np.std([run.values[pair] for run in runs], ddof=1)
        assert spread == pytest.approx(np.mean([run.standard_errors[pair] for run in runs]), rel=0.3)
    one = dv.step_costs(GAUSSIAN, PerPixel(), GAUSSIAN.sample(1), [1, 9, N])
    assert np.isnan(one.standard_errors).all()


def test_64_indices_by_default() -> None:
    schedule = dv.NoiseSchedule.linear(100)
    denoiser = dv.oracles.GaussianDenoiser(schedule, 0.0, VARIANCE)
    found = dv.step_costs(denoiser, dv.FixedLarge(), denoiser.sample(1))
    assert found.indices.tolist() == dv.steps.log_snr(schedule, 64)
    assert np.isfinite(found.values[np.triu_indices(64, 1)]).all()
    few = dv.step_costs(GAUSSIAN, dv.FixedLarge(), GAUSSIAN.sample(1))
    assert few.indices.tolist() == list(range(1, N + 1))


# ---- the bound they are of ------------------------------------------------------------------------------------------


def network(x_t: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
    return 0.8 * torch.tanh(1.3 * x_t) + 0.15 * x_t.flip(-1) + 0.003 * timestep[:, None, None, None]


CLIPPING = dv.Denoiser(network, SCHEDULE, shape=SHAPE)


def pictures(count: int) -> torch.Tensor:
    stream = torch.Generator().manual_seed(5)
    return torch.randint(0, 256, (count, *SHAPE), generator=stream, dtype=torch.uint8)


@pytest.mark.parametrize("path", [INDICES, [1, N], [1, 9, 28, N], [1, 17, N]])
@pytest.mark.parametrize(
    "options", [{}, {"seed": 3, "draws": 2}, {"eta": 0.5, "clipped_eps": "rederived"}, {"eta": 0.5}], ids=str
)
def test_a_paths_costs_are_the_terms_of_its_bound(path: list[int], options: dict[str, Any]) -> None:
    """The same random numbers for an image and index, whatever else is measured, in which batches."""
    covariance = dv.FixedSmall()
    costs = dv.step_costs(CLIPPING, covariance, pictures(7), INDICES, batch_size=3, **options)
    bound = dv.bits_per_dim(CLIPPING, covariance, pictures(7), path, batch_size=64, **options)
    assert bound.steps == tuple(path)
    pairs = [(INDICES.index(s), INDICES.index(t)) for s, t in itertools.pairwise(path)][::-1]
    expected = np.array([costs.values[pair] for pair in pairs]) / math.log(2)
    errors = np.array([costs.standard_errors[pair] for pair in pairs]) / math.log(2)
    np.testing.assert_allclose(bound.per_step[1:-1], expected, rtol=1e-9)
    np.testing.assert_allclose(bound.per_step_error[1:-1], errors, rtol=1e-9)
    if "eta" not in options:
        found = dv.steps.optimal_paths(costs, objective="bound")
        middle = found.bits_per_dim(found.cost_of(path) - found.first[0])
        assert bound.value == pytest.approx(bound.prior + middle + bound.decoder, rel=1e-9)


def test_densities_have_the_same_terms() -> None:
    images = GAUSSIAN.sample(6, seed=4)
    costs = dv.step_costs(GAUSSIAN, PerPixel(), images, INDICES, seed=1, batch_size=5)
    bound = dv.density_bound(GAUSSIAN, PerPixel(), images, [1, 9, N], seed=1, decoder_variance="covariance")
    expected = np.array([costs.values[2, 5], costs.values[0, 2]]) / math.log(2)
    np.testing.assert_allclose(bound.per_step[1:-1], expected, rtol=1e-9)


def test_conditions_go_with_their_image() -> None:
    def told(x_t: torch.Tensor, timestep: torch.Tensor, condition: torch.Tensor) -> torch.Tensor:
        return network(x_t, timestep) + condition[:, None, None, None].to(x_t.dtype)

    denoiser, conditions = dv.Denoiser(told, SCHEDULE, shape=SHAPE), torch.linspace(-1, 1, 7)
    costs = dv.step_costs(denoiser, dv.FixedSmall(), pictures(7), INDICES, conditions=conditions, batch_size=3)
    bound = dv.bits_per_dim(denoiser, dv.FixedSmall(), pictures(7), [1, 9, N], conditions=conditions)
    assert bound.per_step[1] == pytest.approx(costs.values[2, 5] / math.log(2), rel=1e-9)
    shifted = dv.step_costs(denoiser, dv.FixedSmall(), pictures(7), INDICES, conditions=conditions.flip(0))
    assert abs(shifted.values[2, 5] / costs.values[2, 5] - 1) > 1e-3


def test_seeds_and_draws_matter() -> None:
    def values(**options: Any) -> Any:
        found = dv.step_costs(CLIPPING, dv.FixedSmall(), pictures(5), INDICES, **options)
        return found.values[np.triu_indices(6, 1)]

    assert np.array_equal(values(seed=1), values(seed=1))
    assert np.abs(values(seed=1) / values(seed=2) - 1).min() > 1e-5
    assert np.abs(values(draws=2) / values(draws=1) - 1).min() > 1e-5


@pytest.mark.parametrize("options", [{}, {"draws": 2, "seed": 3}], ids=str)
def test_a_free_paths_cost_is_its_bound(options: dict[str, Any]) -> None:
    """Decoder included: the random numbers of a bound on the same images are those of the costs."""
    covariance, images = dv.FixedLarge(), pictures(7)
    costs = dv.step_costs(CLIPPING, covariance, images, INDICES, batch_size=3, **options)
    assert costs.decoder is not None
    alone = dv.decoder_costs(CLIPPING, images, indices=INDICES, batch_size=5, **options)
    np.testing.assert_allclose(alone.values, costs.decoder.values, rtol=1e-9)
    np.testing.assert_allclose(alone.standard_errors, costs.decoder.standard_errors, rtol=1e-7)
    for count in range(1, 7):
        path = dv.steps.optimal(costs, count, "bound")
        bound = dv.bits_per_dim(CLIPPING, covariance, images, path, **options)
        paths = dv.steps.optimal_paths(costs, objective="bound")
        assert bound.value - bound.prior == pytest.approx(paths.bits_per_dim(paths.cost(count)), rel=1e-9)
        assert bound.decoder == pytest.approx(paths.bits_per_dim(paths.decoder_cost(count)), rel=1e-9)
        assert bound.settings["decoder_variance"] == path.decoder_variance
        other = dv.bits_per_dim(CLIPPING, covariance, images, path, decoder_variance=1e-3, **options)
        assert other.decoder > bound.decoder  # what is given wins over what the path brings


@pytest.mark.parametrize("covariance", ["beta", "beta_tilde"])
@pytest.mark.parametrize("count", [2, 4, 8, 16])
def test_the_optimal_path_of_a_covariance_beats_others(all_costs: Any, covariance: str, count: int) -> None:
    """β is far from optimal, so that the best path for the optimal covariance is not the best for it."""
    images, costs = all_costs[covariance]
    found = dv.steps.optimal_paths(costs, objective="bound", first=1)
    best = dv.steps.optimal(costs, count, "bound", first=1)
    assert best == found.steps(count)
    assert found.nats == 1.0
    bounds = {}
    for name, path in {
        "best": best,
        "even": dv.steps.linspace(N, count),
        "kl": dv.steps.optimal(TABLE, count, first=1),
    }.items():
        bound = dv.bits_per_dim(
            *(GAUSSIAN, COVARIANCES[covariance][0], images, path),
            seed=6,
            data_range=(-4.0, 4.0),
            decoder_variance="beta_tilde",
        )
        bounds[name] = bound.value
        middle = bound.value - bound.prior - bound.decoder
        assert middle == pytest.approx(found.bits_per_dim(found.cost_of(path) - found.first[0]), rel=1e-9)
    assert bounds["best"] <= min(bounds.values()) + 1e-12
    if count in (4, 8, 16):
        assert bounds["best"] < bounds["even"] - 1e-3
        assert bounds["best"] < bounds["kl"] - 1e-3


@pytest.fixture(scope="module")
def all_costs() -> dict[str, Any]:
    grid = torch.linspace(-4, 4, 256)
    nearest = ((GAUSSIAN.sample(16, seed=7) + 4) * 255 / 8).round().clamp(0, 255).long()
    images = grid[nearest]
    return {
        name: (images, dv.step_costs(GAUSSIAN, COVARIANCES[name][0], images, range(1, N + 1), seed=6))
        for name in ("beta", "beta_tilde")
    }


# ---- interruptions --------------------------------------------------------------------------------------------------


class Interrupted(dv.oracles.GaussianDenoiser):
    """Counts its calls, and is interrupted in one of them."""

    calls, last = 0, math.inf

    def exact_mean(self, x_t: torch.Tensor, alpha: Any, sigma: Any) -> torch.Tensor:
        self.calls += 1
        if self.calls == self.last:
            raise KeyboardInterrupt
        return super().exact_mean(x_t, alpha, sigma)


@pytest.mark.parametrize("last", [1, 2, 6, 11, 23])
def test_an_interrupted_run_goes_on_where_it_was(tmp_path: Any, last: int) -> None:
    def run(denoiser: dv.Denoiser, **options: Any) -> dv.StepCosts:
        arguments = {"indices": INDICES, "seed": 8, "draws": 2, "batch_size": 4, **options}
        return dv.step_costs(denoiser, PerPixel(), GAUSSIAN.sample(9, seed=9), **arguments)

    whole = Interrupted(SCHEDULE, 0.3, VARIANCE)
    expected = run(whole)
    stopped, path = Interrupted(SCHEDULE, 0.3, VARIANCE), tmp_path / "costs"
    stopped.last = last
    with pytest.raises(KeyboardInterrupt):
        run(stopped, checkpoint=path)
    resumed = Interrupted(SCHEDULE, 0.3, VARIANCE)
    found = run(resumed, checkpoint=path)
    assert np.array_equal(found.values, expected.values)
    assert np.array_equal(found.standard_errors, expected.standard_errors, equal_nan=True)
    assert found.images == expected.images
    assert resumed.calls == whole.calls - (last - 1)
    # Finished, it is read; and it is nobody else's.
    again = Interrupted(SCHEDULE, 0.3, VARIANCE)
    assert np.array_equal(run(again, checkpoint=path).values, expected.values)
    assert again.calls == 0
    for options in ({"seed": 9}, {"indices": INDICES[1:]}, {"eta": 0.5}, {"draws": 1}):
        with pytest.raises(dv.InputError, match="belongs to another run"):
            run(again, checkpoint=path, **options)


# ---- what is refused ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"indices": [N]}, r"indices=\[40\] has no step"),
        ({"indices": []}, "the step list is empty"),
        ({"indices": [1, 9, 9]}, "must rise strictly"),
        ({"indices": [0, 9]}, "other than integers from 1 to 40"),
        ({"eta": 0.0}, "eta=0 .* infinite"),
        ({"eta": 1.5}, r"eta=1.5 is outside \[0, 1\]"),
        ({"clipped_eps": "both"}, "clipped_eps='both' is not known"),
        ({"draws": 0}, "draws=0 must be a whole number"),
        ({"batch_size": 2.5}, "batch_size=2.5 must be a whole number"),
        ({"covariance": dv.FixedLarge(), "eta": 0.5}, "eta=1 only"),
        ({"images": torch.zeros(3, 1, 4, 4)}, "shape"),
    ],
)
def test_unusable_arguments(options: dict[str, Any], message: str) -> None:
    arguments = {"covariance": PerPixel(), "images": GAUSSIAN.sample(2), "indices": INDICES, **options}
    with pytest.raises(dv.InputError, match=message):
        dv.step_costs(GAUSSIAN, **arguments)


@pytest.mark.parametrize(
    ("indices", "count", "objective", "message"),
    [
        (INDICES, 4, "kl", "needs a variance table, but got StepCosts.*objective='bound'"),
        (INDICES, 4, "fid", "objective='fid' is not known"),
        (INDICES, 7, "bound", "steps=7 is not a usable number of steps: 6 indices can be visited"),
        (INDICES, 41, "bound", "steps=41 is not a usable number of steps: .* from 1 to 6 "),
        (INDICES[:-1], 2, "bound", "cover the indices 1 to 28, but a path ends at 40"),
    ],
)
def test_paths_that_the_costs_do_not_give(indices: list[int], count: int, objective: Any, message: str) -> None:
    costs = dv.step_costs(GAUSSIAN, PerPixel(), GAUSSIAN.sample(2), indices)
    with pytest.raises(dv.InputError, match=message):
        dv.steps.optimal(costs, count, objective)


@pytest.mark.parametrize(
    ("count", "path", "first"), [(1, [N], None), (2, [1, N], 1), (2, [17, N], 17), (6, INDICES, None)]
)
def test_paths_of_extreme_length(count: int, path: list[int], first: int | None) -> None:
    costs = dv.step_costs(GAUSSIAN, PerPixel(), GAUSSIAN.sample(2), INDICES)
    assert dv.steps.optimal(costs, count, "bound", first=first) == path


def test_beginnings_that_do_not_exist() -> None:
    costs = dv.step_costs(GAUSSIAN, PerPixel(), GAUSSIAN.sample(2), INDICES)
    for first in (2, 0, 41, "1", 1.5, True):
        with pytest.raises(dv.InputError, match=f"first={first!r} must be one of the indices that can be visited"):
            dv.steps.optimal(costs, 2, "bound", first=first)
    with pytest.raises(dv.InputError, match="no path of 3 steps begins where one may"):
        dv.steps.optimal(costs, 3, "bound", first=28)
    bare = replace(costs, decoder=None)
    with pytest.raises(dv.InputError, match="these measured costs have no decoder terms"):
        dv.steps.optimal(bare, 2, "bound")
    with pytest.raises(dv.InputError, match=r"must be what dv\.decoder_costs measured, or None, but got 'table'"):
        dv.steps.optimal(costs, 2, "bound", decoder_variance="table")
    few = dv.decoder_costs(GAUSSIAN, GAUSSIAN.sample(2), indices=[9, 17])
    assert dv.steps.optimal(bare, 2, "bound", decoder_variance=few)[0] in (9, 17)
    with pytest.raises(dv.InputError, match="no decoder's cost is known at index 4"):
        dv.steps.optimal(bare, 2, "bound", decoder_variance=few, first=4)
    with pytest.raises(dv.InputError, match="no decoder was measured at index 4, only at 9, 17"):
        few.variance(4)
