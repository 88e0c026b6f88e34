"""Optimal trajectories of variance tables: which numbers are taken from them, and which indices are left out."""

import functools
import itertools
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

import diffusion_var as dv
from diffusion_var.likelihood import trajectories as trajectory
from diffusion_var.randomness import generator
from diffusion_var.variance.moments import StructureMoments

N, SHAPE = 60, (2, 4, 2)
SCHEDULE = dv.NoiseSchedule.linear(N)
ZERO_TERMINAL = SCHEDULE.with_zero_terminal_snr()
STRUCTURES = ("isotropic", "channel", "pixel")


def measured(indices: Any, schedule: dv.NoiseSchedule = SCHEDULE) -> dv.VarianceTable:
    """Of a mixture: not linear, so that the table has errors."""
    centres = np.linspace(0.1, 1.0, 16).reshape(SHAPE) * generator(1, "centres").normal(size=(3, *SHAPE))
    denoiser = dv.oracles.MixtureDenoiser(schedule, centres, 0.05)
    return dv.estimate(denoiser, denoiser.sample(100), 0.5, indices=indices, structures=STRUCTURES, progress=False)


@pytest.fixture(scope="module")
def table() -> dv.VarianceTable:
    return measured(range(1, N + 1))


def blurred(table: dv.VarianceTable, relative_error: float, indices: list[int], structure: str) -> dv.VarianceTable:
    """The table with this relative standard error of the structure at some indices, and the same values."""
    old = table.moments[structure]
    covariances, folds = old.covariances.copy(), None if old.folds is None else old.folds.copy()
    for n in indices:
        i, factor = int(np.searchsorted(table.indices, n)), relative_error / table.relative_error(n, structure)
        if folds is None:
            covariances[i] *= factor**2
        else:  # a fold's means, and below them its covariances
            folds[i, :, 1:] *= factor**2
    out = replace(table, moments={**table.moments, structure: StructureMoments(old.means, covariances, folds)})
    for n in indices:
        value, kept = (some.posterior_variance(n, structure=structure) for some in (out, table))
        assert np.allclose(value, kept, rtol=1e-12, atol=0)
        assert out.relative_error(n, structure) == pytest.approx(relative_error)
    return out


# ---- what is taken from the table -----------------------------------------------------------------------------------


@pytest.mark.parametrize("structure", STRUCTURES)
@pytest.mark.parametrize("estimator", [None, "residual", "data_variance"])
def test_costs_are_those_of_the_tables_variances(table: dv.VarianceTable, structure: str, estimator: Any) -> None:
    found = dv.steps.optimal_paths(table, 10, "kl", structure, estimator, max_relative_error=100.0)
    assert found.nodes.tolist() == list(range(1, N + 1))
    assert (found.most, found.nats) == (10, 0.5)
    for path in ([1, N], dv.steps.linspace(N, 7), found.steps(5)):
        expected = 0.0
        for s, t in itertools.pairwise(path):
            kernel = dv.ReverseKernel(SCHEDULE, t, s)
            v = table.posterior_variance(t, estimator or "residual", structure)
            expected += float(np.log((kernel.lambda2 + kernel.gain**2 * v) / kernel.lambda2).mean())
        begin = float(found.first[found.nodes == path[0]][0])
        assert found.cost_of(path) == pytest.approx(begin + expected, rel=1e-10)
    assert found.cost(5) <= found.cost_of(dv.steps.linspace(N, 5))


def test_structures_and_estimators_are_told_apart(table: dv.VarianceTable) -> None:
    asked = [{"structure": s} for s in STRUCTURES] + [{"estimator": "data_variance"}, {"estimator": "score_norm"}]
    for one, other in itertools.combinations(asked, 2):
        costs = [
            dv.steps.optimal_paths(table, 2, max_relative_error=100.0, **options).cost(2) for options in (one, other)
        ]
        assert abs(costs[0] - costs[1]) > 1e-4


@pytest.mark.parametrize("steps", [1, 2, 7, 59, 60, np.int64(7)])
def test_optimal_is_a_step_list(table: dv.VarianceTable, steps: int) -> None:
    free = dv.steps.optimal(table, steps)
    forced = [] if steps == 1 else [1] if steps == N else [1, 2]
    paths = [free, *(dv.steps.optimal(table, steps, first=n) for n in forced)]
    for first, path in zip([free[0], *forced], paths, strict=True):
        assert all(type(n) is int for n in path)
        assert dv.steps.explicit(SCHEDULE, path) == path  # ascending, within 1…N
        assert len(path) == steps
        assert (path[0], path[-1]) == (first, N)
        assert path.decoder == "isotropic"
        assert path.decoder_variance == pytest.approx(table.posterior_variance(first), rel=1e-12)


def test_a_thousand_indices() -> None:
    schedule = dv.NoiseSchedule.linear(1000)
    variance = np.array([0.01, 0.3])[:, None]
    eps_square = (schedule.sigma[1:] ** 2 / (schedule.alpha[1:] ** 2 * variance + schedule.sigma[1:] ** 2)).mean(0)
    found = dv.steps.optimal_paths(dv.VarianceTable.from_moments(schedule, eps_square=eps_square), first=1)
    assert found.most == 1000
    assert found.steps(1000) == list(range(1, 1001))
    for count in (2, 65, 500, 999):
        path = found.steps(count)
        assert dv.steps.explicit(schedule, path) == path
        assert (path[0], path[-1], len(path)) == (1, 1000, count)
        assert found.cost_of(path) == found.cost(count)


def test_a_schedule_of_one_index() -> None:
    only = dv.VarianceTable.from_moments(dv.NoiseSchedule.linear(1), eps_square=[0.5])
    assert dv.steps.optimal(only, 1) == [1]
    assert dv.steps.optimal_paths(only).most == dv.steps.optimal_paths(only, 1).most == 1


def test_zero_terminal_snr() -> None:
    found = dv.steps.optimal_paths(measured(range(1, N + 1), ZERO_TERMINAL))
    assert np.isfinite(found.cost(10))
    assert found.cost(10) < found.cost_of(dv.steps.linspace(N, 10))
    assert found.steps(10)[-1] == N


@pytest.mark.parametrize("structure", ["channel", "pixel"])
def test_binned_elements_cost_what_they_should(
    table: dv.VarianceTable, structure: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    exact = dv.steps.optimal_paths(table, structure=structure, first=1)
    assert [exact.binning_error(count) for count in (2, 30)] == [0.0, 0.0]
    most = 1 if structure == "channel" else 5
    monkeypatch.setattr(trajectory, "bin_variances", functools.partial(trajectory.bin_variances, most=most))
    binned = dv.steps.optimal_paths(table, structure=structure, first=1)
    assert binned.first[0] == exact.first[0]  # the decoder's cost is not binned
    for count in range(2, N + 1):
        bound = binned.binning_error(count)
        assert 0 < bound < 0.2 * (exact.cost(count) - exact.decoder_cost(count))
        # Binning makes a cost smaller, never larger; so the optima differ by no more than the bound either.
        assert -1e-12 <= exact.cost(count) - binned.cost(count) <= bound + 1e-12
        assert -1e-12 <= exact.cost_of(binned.steps(count)) - binned.cost(count) <= bound + 1e-12
    assert exact.cost(10) - binned.cost(10) > 1e-6


# ---- which indices are left out -------------------------------------------------------------------------------------


def test_poor_indices_are_not_visited(table: dv.VarianceTable) -> None:
    """What is poor may look cheap: no path of any length has it. The first index is needed, poor or not."""
    poor = blurred(table, 0.3, [1, 12, 25, 40], "isotropic")
    with pytest.warns(dv.DiffusionVarWarning, match=r"3 of 60 indices are not visited, .* above 0.1 .*\(12, 25, 40\)"):
        found = dv.steps.optimal_paths(poor)
    assert found.nodes.tolist() == [n for n in range(1, N + 1) if n not in (12, 25, 40)]
    assert found.most == 57
    assert found.steps(57) == found.nodes.tolist()
    with pytest.warns(dv.DiffusionVarWarning, match="not visited"):
        assert len(dv.steps.optimal(poor, 57)) == 57
    with pytest.warns(dv.DiffusionVarWarning), pytest.raises(dv.InputError, match=r"steps=58 .*: 57 indices can"):
        dv.steps.optimal(poor, 58)
    with pytest.raises(dv.InputError, match="all of them nodes"):
        found.cost_of([1, 25, N])
    # The rest costs what it did (but for the last bit: fewer nodes lie elsewhere in the processor's vectors), and a
    # higher limit (no warning) visits all.
    expected = dv.steps.optimal_paths(table).cost_of([1, 24, N])
    assert found.cost_of([1, 24, N]) == pytest.approx(expected, rel=1e-12)
    assert dv.steps.optimal_paths(poor, max_relative_error=0.31).most == N


def test_a_warning_names_eight_indices_and_blames_the_caller(table: dv.VarianceTable) -> None:
    with pytest.warns(dv.DiffusionVarWarning, match=r"20 of 60 .*\(20, 21, 22, 23, 24, 25, 26, 27, …\)") as caught:
        dv.steps.optimal(blurred(table, 0.3, list(range(20, 40)), "isotropic"), 5)
    assert caught[0].filename == __file__


def test_between_measured_indices_the_poorer_neighbour_counts() -> None:
    sparse = measured([1, 10, 20, 35, N])
    assert dv.steps.optimal_paths(sparse).most == N
    with pytest.warns(dv.DiffusionVarWarning, match="24 of 60"):
        found = dv.steps.optimal_paths(blurred(sparse, 0.5, [20], "isotropic"))
    assert found.nodes.tolist() == [*range(1, 11), *range(35, N + 1)]


def test_the_isotropic_error_decides_for_every_structure(table: dv.VarianceTable) -> None:
    """A cost is a mean over elements, so that elements that hardly vary, and are hardly known, rule out nothing."""
    assert dv.steps.optimal_paths(blurred(table, 5.0, [30], "pixel"), structure="pixel").most == N
    poor = blurred(table, 0.2, [31], "isotropic")
    for structure in STRUCTURES:
        with pytest.warns(dv.DiffusionVarWarning, match=r"1 of 60 .*\(31\)"):
            assert dv.steps.optimal_paths(poor, structure=structure).most == N - 1


def test_a_poor_last_variance_is_that_of_the_nearest_good_index(table: dv.VarianceTable) -> None:
    """Without one the last step might be free, whatever its length."""
    with pytest.warns(dv.DiffusionVarWarning) as caught:
        found = dv.steps.optimal_paths(blurred(table, 0.3, [N - 1, N], "isotropic"), structure="pixel")
    assert f"at index 60 is {table.posterior_variance(N):.6g}, " in str(caught[1].message)
    assert "that of index 58 stands for it" in str(caught[1].message)
    nodes = [*range(1, N - 1), N]
    v = [table.posterior_variance(min(n, N - 2), structure="pixel").ravel() for n in nodes]
    np.testing.assert_array_equal(found.matrix, trajectory.kl_costs(SCHEDULE, nodes, v))


# ---- published arrays -----------------------------------------------------------------------------------------------


def exact_moments(schedule: dv.NoiseSchedule) -> tuple[Any, Any]:
    """E ε̂² and v of Gaussian data with 64 variances, (N,) each."""
    l, alpha2, sigma2 = np.logspace(-3, 0, 64), schedule.alpha[1:, None] ** 2, schedule.sigma[1:, None] ** 2
    return (sigma2 / (alpha2 * l + sigma2)).mean(1), (l * sigma2 / (alpha2 * l + sigma2)).mean(1)


@pytest.mark.parametrize("samples", [10, 1000])
def test_paths_of_noisy_published_arrays_are_nearly_optimal(samples: int) -> None:
    """1 − E ε̂² is lost in noise at most indices; as it stands, a zero there would be sought out."""
    schedule = dv.NoiseSchedule.linear(1000)
    eps_square, v = exact_moments(schedule)
    matrix = trajectory.kl_costs(schedule, range(1, 1001), v)
    noisy = eps_square * (1 + np.random.default_rng(1).normal(size=1000) * np.sqrt(2 / 3072 / samples))
    assert (noisy > 1).sum() > 100

    def true_cost(path: list[int]) -> float:
        return float(sum(matrix[s - 1, t - 1] for s, t in itertools.pairwise(path)))

    best = true_cost(dv.steps.optimal(dv.VarianceTable.from_moments(schedule, eps_square=eps_square), 10))
    found = true_cost(dv.steps.optimal(dv.VarianceTable.from_moments(schedule, eps_square=noisy), 10))
    assert found < 1.02 * best < 0.98 * true_cost(dv.steps.log_snr(schedule, 10))


def test_exact_published_arrays_stay_as_they_are() -> None:
    eps_square, v = exact_moments(SCHEDULE)
    found = dv.steps.optimal_paths(dv.VarianceTable.from_moments(SCHEDULE, eps_square=eps_square))
    np.testing.assert_allclose(found.matrix, trajectory.kl_costs(SCHEDULE, range(1, N + 1), v), rtol=1e-9)


def test_published_arrays_at_zero_snr() -> None:
    """ε̂ says nothing of x_0 there: the variance is that of the index before."""
    eps_square, v = exact_moments(ZERO_TERMINAL)
    table = dv.VarianceTable.from_moments(ZERO_TERMINAL, eps_square=eps_square, data_range=None)
    expected = trajectory.kl_costs(ZERO_TERMINAL, range(1, N + 1), [*v[:-1], v[-2]])
    np.testing.assert_allclose(dv.steps.optimal_paths(table).matrix, expected, rtol=1e-9)


def test_no_positive_variance_at_all_is_refused() -> None:
    nothing = dv.VarianceTable.from_moments(SCHEDULE, eps_square=np.full(N, 1.5))
    with pytest.raises(dv.InputError, match="no positive variance at any index"):
        dv.steps.optimal(nothing, 2)


def test_a_path_must_rise(table: dv.VarianceTable) -> None:
    with pytest.raises(dv.InputError, match="must rise strictly"):
        dv.steps.optimal_paths(table).cost_of([1, 30, 20, 60])


# ---- what is refused ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("steps", [0, -3, N + 1, 2.5, True, None, "5"])
def test_numbers_of_steps_that_do_not_exist(table: dv.VarianceTable, steps: Any) -> None:
    with pytest.raises(dv.InputError, match=f"steps={steps!r} .* whole number (of at least 1|from 1 to 60)"):
        dv.steps.optimal(table, steps)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"objective": "fid"}, "objective='fid' is not known"),
        ({"objective": "bound"}, "needs measured costs, but got VarianceTable"),
        ({"structure": "dct"}, "no structure 'dct'"),
        ({"structure": "block"}, "structure 'block' is not known"),
        ({"estimator": "median"}, "estimator 'median' is not known"),
        ({"max_relative_error": 0.0}, "max_relative_error=0.0 must be a positive number"),
        ({"max_relative_error": -1.0}, "must be a positive number"),
        ({"max_relative_error": "x"}, "must be a positive number"),
        ({"max_relative_error": float("nan")}, "max_relative_error=nan must be a positive number"),
        ({"most": 0}, "steps=0 is not a usable number of steps: 60 indices"),
        ({"most": 61}, "steps=61 is not a usable number of steps"),
    ],
)
def test_options_that_do_not_exist(table: dv.VarianceTable, options: dict[str, Any], message: str) -> None:
    with pytest.raises(dv.InputError, match=message):
        dv.steps.optimal_paths(table, **options)


def test_other_things_than_tables_are_refused() -> None:
    with pytest.raises(dv.InputError, match="needs a variance table, but got ndarray"):
        dv.steps.optimal(np.ones((N, N)), 5)


@pytest.mark.parametrize(("indices", "missing"), [(range(1, N), N), (range(5, N + 1), 1)])
def test_a_table_without_the_ends_is_refused(indices: range, missing: int) -> None:
    with pytest.raises(dv.InputError, match=f"index {missing} is outside the measured indices"):
        dv.steps.optimal(measured([indices[0], 30, indices[-1]]), 5)


def test_tables_that_lack_an_estimator() -> None:
    published = dv.VarianceTable.from_moments(SCHEDULE, eps_square=np.full(N, 0.5))
    with pytest.raises(dv.InputError, match="cannot give the estimator 'residual'"):
        dv.steps.optimal(published, 5, estimator="residual")
    with pytest.raises(dv.InputError, match="measured with guidance"):
        dv.steps.optimal(replace(measured([1, N]), guidance_scale=2.0), 5, estimator="score_norm")
