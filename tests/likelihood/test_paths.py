"""The mathematics of optimal trajectories: published paths and costs, the dynamic programme, and the binning."""

import itertools
import math
from typing import Any

import mpmath
import numpy as np
import numpy.typing as npt
import pytest
from places import golden

import diffusion_var as dv
from diffusion_var.likelihood.paths import Trajectory, least_costs
from diffusion_var.likelihood.trajectories import bin_variances, kl_costs
from diffusion_var.process.schedule import NoiseSchedule
from diffusion_var.randomness import generator

Array = npt.NDArray[np.float64]

GOLDEN: dict[str, Any] = golden()
SPECTRUM = np.logspace(-3, 0, 64)
N = 1000
SCHEDULES = {"linear": NoiseSchedule.linear(N), "cosine": NoiseSchedule.cosine(N)}
COUNTS = (3, 5, 10, 25, 50, 100)


def gaussian_variance(schedule: NoiseSchedule, spectrum: Array) -> Array:
    """(N, len(spectrum)): Var[x_0|x_n] of Gaussian data, n = 1…N."""
    alpha2, sigma2 = schedule.alpha[1:, None] ** 2, schedule.sigma[1:, None] ** 2
    return np.asarray(spectrum * sigma2 / (alpha2 * spectrum + sigma2))


def published_table(schedule: NoiseSchedule, spectrum: Array) -> dv.VarianceTable:
    alpha2, sigma2 = schedule.alpha[1:, None] ** 2, schedule.sigma[1:, None] ** 2
    return dv.VarianceTable.from_moments(schedule, eps_square=(sigma2 / (alpha2 * spectrum + sigma2)).mean(1))


def end_points(schedule: NoiseSchedule) -> float:
    """The published costs are log(σ*² α²_{t|s}/β), ours log(σ*²/λ²): they differ by this sum along any path."""
    return float(schedule.log_snr[-1] - schedule.log_snr[1])


# ---- published paths ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def paths() -> dict[str, dv.steps.OptimalPaths]:
    """From index 1, as they were published; where a path begins is not part of their cost."""
    return {name: dv.steps.optimal_paths(published_table(s, SPECTRUM), 100, first=1) for name, s in SCHEDULES.items()}


def steps_cost(found: dv.steps.OptimalPaths, path: list[int]) -> float:
    return found.cost_of(path) - float(found.first[0])


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("count", COUNTS)
def test_published_paths(paths: dict[str, dv.steps.OptimalPaths], name: str, count: int) -> None:
    expected = GOLDEN[name]["trajectories"][str(count)]["optimal"]
    assert paths[name].steps(count) == expected
    assert dv.steps.optimal(published_table(SCHEDULES[name], SPECTRUM), count, first=1) == expected


@pytest.mark.parametrize("count", COUNTS)
def test_published_costs_on_the_linear_schedule(paths: dict[str, dv.steps.OptimalPaths], count: int) -> None:
    expected, offset = GOLDEN["linear"]["trajectories"][str(count)], end_points(SCHEDULES["linear"])
    found = paths["linear"]
    assert found.cost(count) - found.decoder_cost(count) + offset == pytest.approx(expected["cost"], rel=1e-9)
    assert steps_cost(found, expected["linear"]) + offset == pytest.approx(expected["linear_cost"], rel=1e-9)


def published_formula(path: list[int]) -> float:
    """log(1 − β E‖score‖²/d) along a path on the cosine schedule, in plain float64: near N it cancels."""
    before = [math.cos((n / N + 0.008) / 1.008 * math.pi / 2) ** 2 for n in range(N + 1)]
    betas = [min(1 - b / a, 0.999) for a, b in itertools.pairwise(before)]
    alpha_bar = np.concatenate([[1.0], np.cumprod(1 - np.array(betas))])
    score = (1 / (alpha_bar[:, None] * SPECTRUM + (1 - alpha_bar)[:, None])).mean(1)
    return sum(math.log(1 - (1 - alpha_bar[t] / alpha_bar[s]) * score[t]) for s, t in itertools.pairwise(path))


@pytest.fixture(scope="module")
def alpha_bar_in_fifty_digits() -> list[Any]:
    """Of the cosine schedule; it ends at 2.4e-9."""
    with mpmath.workdps(50):
        offset = mpmath.mpf("0.008")
        f = [mpmath.cos((mpmath.mpf(n) / N + offset) / (1 + offset) * mpmath.pi / 2) ** 2 for n in range(N + 1)]
        out = [mpmath.mpf(1)]
        for a, b in itertools.pairwise(f):
            out.append(out[-1] * (1 - min(1 - b / a, mpmath.mpf("0.999"))))
        return out


def cost_in_fifty_digits(alpha_bar: list[Any], path: list[int]) -> Any:
    with mpmath.workdps(50):
        spectrum = [mpmath.mpf(10) ** (-3 + mpmath.mpf(3) * k / 63) for k in range(64)]
        total = mpmath.mpf(0)
        for s, t in itertools.pairwise(path):
            score = sum(1 / (alpha_bar[t] * l + 1 - alpha_bar[t]) for l in spectrum) / 64
            total += mpmath.log(1 - (1 - alpha_bar[t] / alpha_bar[s]) * score)
        return total


@pytest.mark.parametrize("which", ["optimal", "linear"])
@pytest.mark.parametrize("count", COUNTS)
def test_published_costs_on_the_cosine_schedule(alpha_bar_in_fifty_digits: list[Any], count: int, which: str) -> None:
    """The published float64 sums lose up to 7e-9 to cancellation near N; ours and fifty digits do not."""
    trajectory, schedule = GOLDEN["cosine"]["trajectories"][str(count)], SCHEDULES["cosine"]
    path, published = trajectory[which], trajectory["cost" if which == "optimal" else "linear_cost"]
    assert published_formula(path) == pytest.approx(published, rel=1e-12)  # the same quantity, cancellation and all
    exact = cost_in_fifty_digits(alpha_bar_in_fifty_digits, path)
    variance = gaussian_variance(schedule, SPECTRUM).mean(1)[np.array(path) - 1]
    ours = np.diag(kl_costs(schedule, path, variance), 1).sum() + end_points(schedule)
    assert float(ours / exact - 1) == pytest.approx(0, abs=1e-12)
    published_error = abs(float(published / exact - 1))
    assert published_error < (1e-9 if count >= 25 else 1e-8)
    assert ours == pytest.approx(published, rel=1e-9 if published_error < 1e-9 else 1e-8)


# ---- costs ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "schedule",
    [
        NoiseSchedule.linear(200),
        NoiseSchedule.cosine(200),
        NoiseSchedule.vp_sde(200),
        NoiseSchedule.edm(200),
        NoiseSchedule.flow(200),
        NoiseSchedule.linear(200).with_zero_terminal_snr(),
    ],
    ids=["linear", "cosine", "vp_sde", "edm", "flow", "zero_terminal"],
)
@pytest.mark.parametrize("elements", [None, 5])
def test_costs_are_those_of_the_reverse_kernel(schedule: NoiseSchedule, elements: int | None) -> None:
    stream = generator(1, "kernel costs")
    nodes = sorted({1, 2, 3, 199, 200, *(int(n) for n in stream.integers(4, 199, 9))})
    variance = np.exp(stream.uniform(-9, 3, (len(nodes), elements or 1)))
    variance[2, 0] = 0.0  # a pixel that never varies is no trouble
    costs = kl_costs(schedule, nodes, variance if elements else variance[:, 0])
    assert costs.shape == (len(nodes), len(nodes))
    for (i, s), (j, t) in itertools.product(enumerate(nodes), enumerate(nodes)):
        if i >= j:
            assert costs[i, j] == math.inf
            continue
        kernel = dv.ReverseKernel(schedule, t, s)
        extra = kernel.gain**2 * variance[j]
        assert costs[i, j] == pytest.approx(np.log1p(extra / kernel.lambda2).mean(), rel=1e-11)
        assert costs[i, j] == pytest.approx(np.log((kernel.lambda2 + extra) / kernel.lambda2).mean(), abs=1e-11)


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("l", [0.01, 0.25, 4.0])
def test_one_variance_makes_every_path_cost_the_same(name: str, l: float) -> None:
    schedule, stream = SCHEDULES[name], generator(2, "paths", int(100 * l))
    matrix = kl_costs(schedule, range(1, N + 1), gaussian_variance(schedule, np.array([l])))
    expected = math.log1p(l * math.exp(schedule.log_snr[1])) - math.log1p(l * math.exp(schedule.log_snr[N]))
    for count in (2, 3, 10, 100, 1000):
        inside = stream.choice(np.arange(2, N), count - 2, replace=False)
        path = [1, *(int(n) for n in np.sort(inside)), N]
        cost = sum(matrix[s - 1, t - 1] for s, t in itertools.pairwise(path))
        assert cost == pytest.approx(expected, rel=1e-10)


def test_more_steps_cost_less_for_data_of_many_variances(paths: dict[str, dv.steps.OptimalPaths]) -> None:
    """An index between s and t helps if 1/v rises at least as fast as the SNR, which the law of v under exact means
    says; strictly, where the variances differ. (Of estimates it need not hold.)"""
    for found in paths.values():
        costs = np.array([found.cost(count) for count in range(2, 101)])
        assert np.diff(costs).max() < 0


# ---- the dynamic programme ------------------------------------------------------------------------------------------


def random_costs(count: int, seed: int) -> Array:
    costs = generator(seed, "random costs").uniform(0.0, 1.0, (count, count)) + 0.05
    costs[np.tril_indices(count)] = math.inf
    return np.asarray(costs)


class Numbered:
    """Decoders whose variance is their index."""

    def variance(self, n: int) -> float:
        return float(n)

    def label(self, n: int) -> str:
        return f"number {n}"


def paths_of(costs: Array, nodes: Array | None = None, first: Array | None = None) -> dv.steps.OptimalPaths:
    labels = np.arange(1, len(costs) + 1) if nodes is None else nodes
    begin = np.where(np.arange(len(costs)) == 0, 0.0, math.inf) if first is None else first
    least = least_costs(costs, len(costs), begin)
    return dv.steps.OptimalPaths(labels, least, costs, 0.5, np.zeros(len(costs)), begin, Numbered())


@pytest.mark.parametrize("seed", range(4))
def test_least_costs_against_every_path(seed: int) -> None:
    """Every node as an end, every number of nodes: all 2^7 subsets and more."""
    costs, count = random_costs(9, seed), 9
    least, found = least_costs(costs, count), paths_of(costs)
    assert least[0].tolist() == [0.0] + 8 * [math.inf]
    for k, end in itertools.product(range(1, count), range(count)):
        every = [(0, *inner, end) for inner in itertools.combinations(range(1, end), k - 1)] if end else []
        sums = {path: sum(costs[i, j] for i, j in itertools.pairwise(path)) for path in every}
        assert least[k, end] == pytest.approx(min(sums.values(), default=math.inf), rel=1e-14)
        if end == count - 1:
            assert found.steps(k + 1) == [j + 1 for j in min(sums, key=lambda path: sums[path])]


@pytest.mark.parametrize("count", [1, 2, 63, 64, 65, 150])
def test_least_costs_against_the_plain_loop(count: int) -> None:
    """The blocks of rows leave out only what is infinite: the same bits."""
    costs = random_costs(count, 5)
    plain = np.full((count, count), math.inf)
    plain[0, 0] = 0.0
    for k in range(1, count):
        plain[k] = np.min(costs + plain[k - 1][:, None], axis=0)
    assert np.array_equal(least_costs(costs, count), plain)
    assert np.array_equal(least_costs(costs, (count + 1) // 2), plain[: (count + 1) // 2])


def test_a_path_costs_what_was_found() -> None:
    nodes = np.arange(3, 3 + 2 * 70, 2)
    found = paths_of(random_costs(70, 6), nodes)
    assert found.most == 70
    assert found.steps(2) == [3, 141]
    assert found.steps(70) == [int(n) for n in nodes]
    for count in range(2, 71):
        path = found.steps(count)
        assert len(path) == count
        assert list(path) == sorted({*path})
        assert found.cost_of(path) == found.cost(count)  # summed in the same order: the same bits
    assert found.bits_per_dim(3.0) == pytest.approx(3.0 * 0.5 / math.log(2), rel=1e-15)


def test_of_equal_paths_that_with_the_least_indices() -> None:
    costs = np.where(np.isfinite(random_costs(6, 0)), 1.0, math.inf)
    assert [paths_of(costs).steps(count) for count in (2, 3, 4)] == [[1, 6], [1, 2, 6], [1, 2, 3, 6]]


@pytest.mark.parametrize("count", [0, 10, -1, 2.5])
def test_a_number_of_steps_that_was_not_computed_is_refused(count: Any) -> None:
    found = paths_of(random_costs(9, 0))
    for ask in (found.steps, found.cost, found.decoder_cost, found.binning_error):
        with pytest.raises(dv.InputError, match="not among the computed paths of 1 to 9 steps"):
            ask(count)


def test_other_paths_are_refused() -> None:
    found = paths_of(random_costs(9, 0))
    for ask in (found.steps, found.cost):  # it would begin at the last node
        with pytest.raises(dv.InputError, match="no path of 1 steps begins where one may"):
            ask(1)
    with pytest.raises(dv.InputError, match=r"all of them nodes \(not: 10, 12\)"):
        found.cost_of([1, 10, 12])
    for path in ([9], [2, 9]):
        with pytest.raises(dv.InputError, match=rf"no path begins at {path[0]}: what the decoder costs from there"):
            found.cost_of(path)
    with pytest.raises(dv.InputError, match="an index or more"):
        found.cost_of([])


@pytest.mark.parametrize("seed", range(4))
def test_free_beginnings_against_every_path(seed: int) -> None:
    """Every first node with a price of its own, some of them closed: all subsets of 9 nodes."""
    costs, count = random_costs(9, seed), 9
    first = generator(seed, "beginnings").uniform(0.0, 2.0, count)
    first[[2, 5]] = math.inf
    found, forced = paths_of(costs, first=first), paths_of(costs, first=np.where(np.arange(9) == 0, first, math.inf))
    for k in range(1, count + 1):
        every = [(*inner, 8) for inner in itertools.combinations(range(8), k - 1)]
        sums = {path: first[path[0]] + sum(costs[i, j] for i, j in itertools.pairwise(path)) for path in every}
        best = min(sums, key=lambda path: sums[path])
        assert found.cost(k) == pytest.approx(sums[best], rel=1e-14)
        path = found.steps(k)
        assert path == [j + 1 for j in best]
        assert (path.decoder_variance, path.decoder) == (path[0], f"number {path[0]}")
        assert found.cost_of(path) == found.cost(k)
        assert found.decoder_cost(k) == first[best[0]]
        assert k == 1 or found.cost(k) <= forced.cost(k)


def test_a_trajectory_is_a_sequence() -> None:
    path = Trajectory(np.array([1, 4, 9]), 0.5, "as given")
    assert path == [1, 4, 9]
    assert path == (1, 4, 9)
    assert path == Trajectory([1, 4, 9], 0.7, "another")
    assert path != [1, 4]
    assert path != "149"
    assert (path[0], path[-1], path[1:], len(path), list(path)) == (1, 9, [4, 9], 3, [1, 4, 9])
    assert {path: 1}[Trajectory([1, 4, 9], 0.7, "another")] == 1
    assert 4 in path
    assert repr(path) == "Trajectory([1, 4, 9], decoder: as given)"
    assert all(type(n) is int for n in path)


# ---- many elements as few -------------------------------------------------------------------------------------------

SPECTRA = {
    "smooth": lambda stream, count: np.exp(-8 * np.linspace(0, 1, count)),
    "lognormal": lambda stream, count: np.exp(stream.normal(-3, 2, count)),
    "two values": lambda stream, count: np.where(np.arange(count) == 0, 0.01, 1.0),
    "some zeros": lambda stream, count: stream.uniform(0, 1, count) * (stream.uniform(0, 1, count) > 0.3),
    "one zero": lambda stream, count: np.where(np.arange(count) == 0, 0.0, 1.0),
    "all zeros": lambda stream, count: np.zeros(count),
}


@pytest.mark.parametrize("spectrum", SPECTRA)
@pytest.mark.parametrize("elements", [9, 15, 16, 17, 31, 160, 1001])
def test_binning_errs_by_no_more_than_its_bound(spectrum: str, elements: int) -> None:
    variances = np.stack([SPECTRA[spectrum](generator(seed, "spectra"), elements) for seed in range(3)])
    binned, bound = bin_variances(variances, 8)
    assert binned.shape[0] == 3
    assert binned.shape[1] <= 8
    assert bound.shape == (3,)
    # Below 1e-12 of the largest, variances are raised to that.
    raised = np.maximum(variances, 1e-12 * variances.max(1, keepdims=True))
    for weight in np.logspace(-4, 8, 25):
        change = np.abs(np.log1p(weight * binned).mean(1) - np.log1p(weight * raised).mean(1))
        assert (change <= bound + 1e-12).all(), (weight, change, bound)


@pytest.mark.parametrize("elements", [1, 7, 8])
def test_few_elements_are_kept(elements: int) -> None:
    variances = generator(3, "few").uniform(0, 1, (4, elements))
    binned, bound = bin_variances(variances, 8)
    assert np.array_equal(binned, variances)
    assert np.array_equal(bound, np.zeros(4))


def test_binning_costs_little_where_there_are_many() -> None:
    variances = np.exp(generator(4, "many").normal(-3, 2, (1, 16384)))
    binned, bound = bin_variances(variances)
    assert binned.shape == (1, 4096)
    assert bound[0] < 1e-4
    change = abs(np.log1p(20 * binned).mean() - np.log1p(20 * variances).mean())
    assert 0 < change < bound[0]
