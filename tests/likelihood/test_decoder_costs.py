"""Decoders from every index: measured and expected costs against closed forms, and paths that begin where they like."""

import itertools
import math
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from scipy.integrate import quad
from scipy.stats import norm

import diffusion_var as dv
from diffusion_var.covariance.reverse import ReverseCovariance, StructuredCovariance
from diffusion_var.likelihood.expected_decoder import expected_decoder_nats, mean_decoder_nats
from diffusion_var.process.structure import make_structure

N, SHAPE = 12, (1, 3, 2)
SCHEDULE = dv.NoiseSchedule.linear(N, 1e-3, 0.5)
VARIANCE = np.geomspace(0.01, 1.0, 6).reshape(SHAPE)
GAUSSIAN = dv.oracles.GaussianDenoiser(SCHEDULE, 0.3, VARIANCE)


class Exact(ReverseCovariance):
    """The exact covariance of the Gaussian data, pixel by pixel."""

    name = "exact"

    def __call__(self, posterior: dv.Posterior | None, kernel: dv.ReverseKernel) -> StructuredCovariance:
        variance = kernel.lambda2 + kernel.gain**2 * GAUSSIAN.posterior_variance(int(kernel.level_t.index or 0))
        return StructuredCovariance(make_structure("pixel", SHAPE), torch.from_numpy(variance))


@pytest.fixture(scope="module")
def table() -> dv.VarianceTable:
    images = GAUSSIAN.sample(300, seed=1)
    indices = list(range(1, N + 1))
    return dv.estimate(GAUSSIAN, images, 0.05, indices=indices, structures=("pixel",), progress=False)


# ---- measured -------------------------------------------------------------------------------------------------------


def test_measured_costs_of_gaussian_data_are_the_closed_form(table: dv.VarianceTable) -> None:
    """½ (log 2πw + v/w) for an error of variance v, averaged over pixels."""
    found = dv.decoder_costs(GAUSSIAN, GAUSSIAN.sample(400, seed=2), table, seed=3)
    assert found.indices.tolist() == list(range(1, N + 1))
    assert (found.images, found.levels, found.data_range) == (400, None, None)
    assert {name for name, _ in found.choices} == {"isotropic", "pixel"}
    for i, n in enumerate(range(1, N + 1)):
        v = GAUSSIAN.posterior_variance(n)
        for m, (name, factor) in enumerate(found.choices):
            w = factor * table.posterior_variance(n, structure=name)
            expected = float(np.mean(0.5 * (np.log(2 * math.pi * w) + v / w)))
            assert abs(found.values[i, m] - expected) < 4.5 * found.standard_errors[i, m]
        # With the right variance of every pixel, none is better; the next factors are at √2 or 2 times it.
        assert found.label(n) == "pixel"
        np.testing.assert_allclose(np.ravel(found.variance(n)), np.ravel(v), rtol=0.2)
        assert found.best(n)[0] == found.values[i].min()


def test_without_a_table_shares_of_the_noise_are_tried() -> None:
    found = dv.decoder_costs(GAUSSIAN, GAUSSIAN.sample(50, seed=2), indices=[2, 7, N])
    assert {name for name, _ in found.choices} == {"sigma2"}
    for n in (2, 7, N):
        best, noise = found.variance(n), float(SCHEDULE.sigma[n] / SCHEDULE.alpha[n]) ** 2
        assert best == pytest.approx(GAUSSIAN.posterior_variance(n).mean(), rel=0.35)
        assert found.label(n) == ("sigma2" if best == noise else f"{best / noise:.3g} × sigma2")
    assert found.costs([1, 2, 3, 7]).tolist() == [math.inf, found.best(2)[0], math.inf, found.best(7)[0]]


def network(x_t: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
    return 0.8 * torch.tanh(1.3 * x_t) + 0.15 * x_t.flip(-1) + 0.003 * timestep[:, None, None, None]


CLIPPING = dv.Denoiser(network, SCHEDULE, shape=SHAPE)


def pictures(count: int, seed: int = 5) -> torch.Tensor:
    stream = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, *SHAPE), generator=stream, dtype=torch.uint8)


def test_the_choice_is_the_best_of_those_that_a_bound_can_have() -> None:
    """Discretised: the same numbers as bounds with that decoder, one by one."""
    found = dv.decoder_costs(CLIPPING, pictures(6), indices=[3, 9], seed=1, batch_size=4)
    for i, n in enumerate((3, 9)):
        noise = float(SCHEDULE.sigma[n] / SCHEDULE.alpha[n]) ** 2
        for m, (name, factor) in enumerate(found.choices):
            assert name == "sigma2"
            bound = dv.bits_per_dim(CLIPPING, dv.FixedLarge(), pictures(6), [n, N], 1, decoder_variance=factor * noise)
            assert bound.decoder * math.log(2) == pytest.approx(found.values[i, m], rel=1e-9)
        assert found.best(n)[0] == found.values[i].min()


class Interrupted(dv.oracles.GaussianDenoiser):
    """Counts its calls, and is interrupted in one of them."""

    calls, last = 0, math.inf

    def exact_mean(self, x_t: torch.Tensor, alpha: Any, sigma: Any) -> torch.Tensor:
        self.calls += 1
        if self.calls == self.last:
            raise KeyboardInterrupt
        return super().exact_mean(x_t, alpha, sigma)


def test_interrupted_it_goes_on(tmp_path: Any) -> None:
    def run(denoiser: dv.Denoiser, **options: Any) -> dv.DecoderCosts:
        arguments: dict[str, Any] = {"indices": [2, 5, 9, N], "seed": 8, "batch_size": 4, **options}
        return dv.decoder_costs(denoiser, GAUSSIAN.sample(9, seed=3), **arguments)

    whole, stopped, resumed = (Interrupted(SCHEDULE, 0.3, VARIANCE) for _ in range(3))
    expected, path = run(whole), tmp_path / "decoders"
    stopped.last = 6
    with pytest.raises(KeyboardInterrupt):
        run(stopped, checkpoint=path)
    assert np.array_equal(run(resumed, checkpoint=path).values, expected.values)
    assert resumed.calls == whole.calls - 5
    for options in ({"seed": 9}, {"indices": [2, N]}, {"draws": 2}):
        with pytest.raises(dv.InputError, match="belongs to another run"):
            run(resumed, checkpoint=path, **options)


def test_tables_and_images_that_do_not_fit(table: dv.VarianceTable) -> None:
    with pytest.raises(dv.InputError, match="table must be a variance table, or None, but got str"):
        dv.decoder_costs(GAUSSIAN, GAUSSIAN.sample(2), "table")  # type: ignore[arg-type]
    with pytest.raises(dv.InputError, match="another model"):
        dv.decoder_costs(CLIPPING, pictures(2), table)
    with pytest.raises(dv.InputError, match="none of 256 levels"):
        dv.decoder_costs(CLIPPING, torch.full((2, *SHAPE), 0.1234))
    with pytest.raises(dv.InputError, match="levels=1 must be a whole number"):
        dv.decoder_costs(CLIPPING, pictures(2), levels=1)


# ---- expected -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("v", [1e-7, 3e-5, 1e-3, 0.3])
@pytest.mark.parametrize("ratio", [0.3, 1.0, 4.0])
def test_the_expected_cost_is_the_integral(v: float, ratio: float) -> None:
    distance = 2 / 255
    w = max(v * ratio, distance**2 / 12)

    def cost(e: float) -> float:
        low, high = (e - distance / 2) / math.sqrt(w), (e + distance / 2) / math.sqrt(w)
        upper = low > 0
        inside = norm.sf(low) - norm.sf(high) if upper else norm.cdf(high) - norm.cdf(low)
        return float(-math.log(inside) * norm.pdf(e, scale=math.sqrt(v)))

    reach = 7 * math.sqrt(v)
    expected, _ = quad(cost, -reach, reach, limit=400, epsabs=1e-10)
    assert float(expected_decoder_nats(v, w, distance)) == pytest.approx(expected, abs=2e-4)


def test_far_above_a_level_it_is_the_density() -> None:
    v, w, distance = np.array([0.02, 0.5]), np.array([0.03, 0.4]), 2 / 255
    density = expected_decoder_nats(v, w, None)
    np.testing.assert_allclose(density, 0.5 * (np.log(2 * math.pi * w) + v / w), rtol=1e-14)
    np.testing.assert_allclose(expected_decoder_nats(v, w, distance), density - math.log(distance), atol=3e-3)


@pytest.mark.parametrize("w", [None, 1e-3])
def test_many_elements_are_interpolated(w: float | None) -> None:
    v = np.exp(np.random.default_rng(0).normal(-7, 3, (3, 20, 20)))
    v[0, :3] = 0.0
    least, distance = (2 / 255) ** 2 / 12, 2 / 255
    direct = float(expected_decoder_nats(v, np.maximum(v, least) if w is None else w, distance).mean())
    assert mean_decoder_nats(v, w, least, distance) == pytest.approx(direct, rel=2e-4)


# ---- free beginnings ------------------------------------------------------------------------------------------------


def gaussian_cost(path: tuple[int, ...]) -> float:
    """The bound of Gaussian data in nats/dim but for the prior, with the exact covariance and decoder."""
    v = GAUSSIAN.posterior_variance(path[0])
    total = float(np.mean(0.5 * np.log(2 * math.pi * math.e * v)))
    for s, t in itertools.pairwise(path):
        kernel = dv.ReverseKernel(SCHEDULE, t, s)
        total += float(np.mean(0.5 * np.log1p(kernel.gain**2 * GAUSSIAN.posterior_variance(t) / kernel.lambda2)))
    return total


def test_free_paths_equal_brute_force_and_are_never_worse(table: dv.VarianceTable) -> None:
    """Of isotropic steps with an isotropic decoder; all paths of up to five of the twelve indices."""
    v = [float(table.posterior_variance(n)) for n in range(1, N + 1)]

    def cost(path: tuple[int, ...]) -> float:
        total = 0.5 * math.log(2 * math.pi * math.e * v[path[0] - 1])
        for s, t in itertools.pairwise(path):
            kernel = dv.ReverseKernel(SCHEDULE, t, s)
            total += 0.5 * math.log1p(kernel.gain**2 * v[t - 1] / kernel.lambda2)
        return total

    free, forced = dv.steps.optimal_paths(table), dv.steps.optimal_paths(table, first=1)
    for count in range(1, 6):
        every = [(*inner, N) for inner in itertools.combinations(range(1, N), count - 1)]
        best = min(every, key=cost)
        found = free.steps(count)
        assert found == best
        assert free.cost(count) * free.nats == pytest.approx(cost(best), rel=1e-9)
        assert found.decoder_variance == pytest.approx(v[best[0] - 1], rel=1e-12)
        if count > 1:
            assert free.cost(count) <= forced.cost(count)
            assert forced.steps(count) == min((p for p in every if p[0] == 1), key=cost)
    assert free.cost(3) < forced.cost(3) - 1e-3  # of data of many variances it pays


def test_with_the_exact_covariance_every_path_costs_the_same() -> None:
    """Gaussian data lose nothing at any step, so that it is all one where a path begins: the entropy."""
    entropy = float(np.mean(0.5 * np.log(2 * math.pi * math.e * VARIANCE)))
    information = float(np.mean(0.5 * np.log1p(VARIANCE * math.exp(SCHEDULE.log_snr[N]))))
    every = [(*p, N) for k in range(5) for p in itertools.combinations(range(1, N), k)]
    np.testing.assert_allclose([gaussian_cost(path) for path in every], entropy - information, rtol=1e-9)


@pytest.mark.parametrize("count", [1, 2, 4])
def test_the_bound_of_a_free_path_is_what_it_costs(table: dv.VarianceTable, count: int) -> None:
    """On held-out images: the path brings the decoder's variances, one for every pixel."""
    images = GAUSSIAN.sample(600, seed=9)
    measured = dv.decoder_costs(GAUSSIAN, GAUSSIAN.sample(300, seed=4), table)
    path = dv.steps.optimal(table, count, structure="pixel", decoder_variance=measured)
    assert np.shape(path.decoder_variance) == SHAPE
    bound = dv.density_bound(GAUSSIAN, Exact(), images, path, seed=5)
    assert abs(bound.value - bound.prior - gaussian_cost(tuple(path)) / math.log(2)) < 4 * bound.standard_error
    told = bound.settings["decoder_variance"]
    assert told["shape"] == list(SHAPE)
    assert told["mean"] == pytest.approx(float(np.mean(path.decoder_variance)))


@pytest.mark.parametrize("choice", [None, "table", "isotropic", "pixel", "sigma2", 0.05, VARIANCE])
def test_choices_of_a_table_alone(table: dv.VarianceTable, choice: Any) -> None:
    named = choice if isinstance(choice, str | None) else "given"
    paths = dv.steps.optimal_paths(table, structure="pixel", decoder_variance=choice)
    path = paths.steps(3)
    n, v = path[0], table.posterior_variance(path[0], structure="pixel")
    noise = float(SCHEDULE.sigma[n] / SCHEDULE.alpha[n]) ** 2
    v = table.posterior_variance(n) if named == "isotropic" else v
    wanted: dict[Any, Any] = {"sigma2": noise, "given": np.asarray(choice if named == "given" else 1.0)}
    w: npt.NDArray[np.float64] = wanted.get(named, v)
    np.testing.assert_allclose(path.decoder_variance, w, rtol=1e-9)
    expected = float(np.mean(0.5 * (np.log(2 * math.pi * w) + v / w)))
    assert paths.decoder_cost(3) * paths.nats == pytest.approx(expected, rel=1e-9)
    assert path.decoder == {"isotropic": "isotropic", "sigma2": "sigma2", "given": "as given"}.get(str(named), "pixel")


@pytest.mark.parametrize("bad", ["respaced", "covariance", "best"])
def test_choices_that_a_table_cannot_give(table: dv.VarianceTable, bad: str) -> None:
    with pytest.raises(dv.InputError, match=rf"variance='{bad}' is not known; use one of table, .*decoder_costs"):
        dv.steps.optimal(table, 3, decoder_variance=bad)  # type: ignore[arg-type]


def test_costs_of_another_schedule_are_refused(table: dv.VarianceTable) -> None:
    other = dv.oracles.GaussianDenoiser(dv.NoiseSchedule.cosine(N), 0.3, VARIANCE)
    costs = dv.decoder_costs(other, other.sample(2))
    with pytest.raises(dv.InputError, match="measured on another noise schedule"):
        dv.steps.optimal(table, 3, decoder_variance=costs)


# ---- other decoders of steps ----------------------------------------------------------------------------------------


def test_named_decoder_variances_are_their_numbers(table: dv.VarianceTable) -> None:
    path, images = [2, 5, N], GAUSSIAN.sample(5)
    noise = float(SCHEDULE.sigma[2] / SCHEDULE.alpha[2]) ** 2
    wanted = {
        "respaced": dv.ReverseKernel(SCHEDULE, 5, 2).beta_tilde,
        "sigma2": noise,
        "table": table.posterior_variance(2, structure="pixel"),
        "isotropic": float(table.posterior_variance(2)),
        "covariance": table.posterior_variance(2, structure="pixel"),
    }
    covariance = dv.Analytic(table, structure="pixel")
    for name, variance in wanted.items():
        named = dv.density_bound(GAUSSIAN, covariance, images, path, decoder_variance=name)  # type: ignore[arg-type]
        given = dv.density_bound(GAUSSIAN, covariance, images, path, decoder_variance=variance)
        assert named.value == pytest.approx(given.value, rel=1e-6), name


def test_a_learned_range_decodes_with_itself() -> None:
    """As Improved DDPM does: the network's own variance in the discretised decoder, its β̃ that of the step before."""

    def both(x_t: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
        return torch.cat([network(x_t, timestep), torch.tanh(2 * x_t)], 1)

    denoiser, steps, images = dv.Denoiser(both, SCHEDULE, shape=SHAPE), [1, 4, N], pictures(5)
    covariance = dv.LearnedRange(steps)
    bound = dv.bits_per_dim(denoiser, covariance, images, steps, seed=2, decoder_variance="covariance")
    total = 0.0
    for i, image in enumerate(images):
        x_0 = (image.double() / 255 * 2 - 1)[None]
        from diffusion_var.randomness import Streams

        eps = Streams().at(2, "likelihood noise", i, 0, 1).standard_normal(SHAPE, dtype=np.float32)
        x_t = float(SCHEDULE.alpha[1]) * x_0 + float(SCHEDULE.sigma[1]) * torch.from_numpy(eps.astype(np.float64))
        posterior = denoiser(x_t.float(), 1)
        f = (np.tanh(2 * x_t.float().double().numpy()) + 1) / 2
        low, high = dv.ReverseKernel(SCHEDULE, 4, 1).beta_tilde, dv.ReverseKernel(SCHEDULE, 1, 0).beta
        std = np.sqrt(np.exp(f * np.log(high) + (1 - f) * np.log(low)))
        error = x_0.numpy() - posterior.mean.double().numpy()
        above = np.where(image.numpy() == 255, 1.0, norm.cdf((error + 1 / 255) / std))
        below = np.where(image.numpy() == 0, 0.0, norm.cdf((error - 1 / 255) / std))
        total -= float(np.log(above - below).sum())
    assert bound.decoder == pytest.approx(total / (5 * 6 * math.log(2)), rel=1e-4)
