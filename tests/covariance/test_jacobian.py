"""Covariances by bands from Jacobian-vector products: their ratios against exact ones, their errors against what these
are, the likelihood that they gain, and their use wherever a covariance is used."""

import math
import warnings
from functools import cache
from typing import Any

import numpy as np
import pytest
import small_heads
import torch
from small_pipelines import small_unet

import diffusion_var as dv
from diffusion_var.covariance.jacobian import band_ratios, positive_mean, random_effects
from diffusion_var.errors import DiffusionVarWarning, InputError
from diffusion_var.process.bands import Bands, frequencies
from diffusion_var.process.kernel import ReverseKernel, reverse_kernels
from diffusion_var.process.structure import make_structure
from diffusion_var.testing import CovarianceContract

SHAPE, D = (3, 8, 8), 192
SCHEDULE = dv.NoiseSchedule.linear(100, 1e-3, 0.1)
INDICES = [1, 2, 5, 10, 20, 40, 60, 80, 100]


@cache
def mixture() -> dv.oracles.MixtureDenoiser:
    """Three kinds of images whose spectra differ in size and in slope, with correlations off the diagonal."""
    structure, stream = make_structure("dct", SHAPE), np.random.default_rng(0)
    basis = structure.forward(torch.eye(D, dtype=torch.float64).view(D, *SHAPE)).flatten(1).numpy()  # Bᵀ
    radius, covariances = frequencies(SHAPE[1:]), []
    for scale, slope in ((0.3, 1.0), (0.1, 2.0), (0.02, 3.0)):
        spectrum = np.broadcast_to(scale * (0.1 / (0.1 + radius)) ** slope, SHAPE).flatten() * 4.0
        mixed = np.eye(D) + 0.3 * stream.standard_normal((D, D)) / math.sqrt(D)
        root = basis @ (np.sqrt(spectrum)[:, None] * mixed)
        covariances.append(root @ root.T + 1e-5 * np.eye(D))
    return dv.oracles.MixtureDenoiser(SCHEDULE, np.zeros((3, *SHAPE)), covariances=covariances)


@cache
def table() -> dv.VarianceTable:
    images, names = mixture().sample(3000, seed=1), ("isotropic", "dct")
    return dv.estimate(mixture(), images, 0.05, indices=INDICES, structures=names, progress=False)


def noisy(n: int, count: int, seed: int = 3) -> torch.Tensor:
    clean = mixture().sample(count, seed=seed)
    noise = torch.from_numpy(np.random.default_rng([seed, n]).standard_normal(clean.shape)).float()
    alpha, sigma = SCHEDULE.coefficients(n, clean)
    found: torch.Tensor = alpha * clean + sigma * noise
    return found


def posterior(covariance: dv.Jacobian, x_t: torch.Tensor, n: Any) -> Any:
    with torch.no_grad():
        return covariance.prepare(mixture())(x_t, n)


# ---- as any covariance ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("measured", [True, False])
class TestJacobian(CovarianceContract):
    @pytest.fixture
    def denoiser(self) -> dv.Denoiser:
        return mixture()

    @pytest.fixture
    def covariance(self, measured: bool) -> dv.Jacobian:
        return dv.Jacobian(table() if measured else None, bands=6)


# ---- the model of a band's ratio ------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [2, 20, 60])
@pytest.mark.parametrize("bands", [4, 8])
def test_ratios_are_those_of_the_exact_covariance(n: int, bands: int) -> None:
    """Pooled over bands, the diagonal of Cov[x_0|x_t]: nearer with more probes, and as near as the estimate says."""
    x_t, parts = noisy(n, 48), Bands(SHAPE, bands)
    v = torch.from_numpy(table().posterior_variance(n, structure="dct"))
    exact = parts.sum(mixture().posterior_variance(x_t, n, "dct")) / parts.sum(v)
    errors, relative = {}, {}
    for probes in (1, 4, 16):
        covariance = dv.Jacobian(table(), bands=bands, probes=probes)
        found = posterior(covariance, x_t, n)
        diagonal = covariance._diagonal(found, covariance._basis(SHAPE).dct)
        ratio, error2 = band_ratios(diagonal, v, parts, parts.neighbours(8.0))
        errors[probes] = float((ratio - exact).square().mean())
        relative[probes] = float(((ratio - exact).square() / error2).mean())
        shrunk = covariance.ratio(found, SCHEDULE.level(n))
        assert shrunk is not None
        assert bool((shrunk > 0).all())
        assert float((shrunk - exact).square().mean()) < 0.7 * float((1.0 - exact).square().mean())
        if n == 60 and probes == 1:  # where errors are as large as what they are errors of
            assert float((shrunk - exact).square().mean()) < 0.9 * errors[probes]
    assert errors[16] < 0.5 * errors[4] < 0.25 * errors[1]
    # Near clean data the errors are small, and how an image's profile inside a band differs shows more.
    assert (0.1 if n == 2 else 0.5) < relative[1] < 2.0


def test_ratios_and_errors_by_hand() -> None:
    """Two bands, of which one is too small to know its own error."""
    bands = Bands((1, 2, 2), 2)  # the mean, and the other three
    v = torch.tensor([[[4.0, 1.0], [2.0, 1.0]]])
    e = torch.tensor([[[[6.0, 1.5], [2.0, 0.5]]]])
    ratio, error2 = band_ratios(e, v, bands, bands.neighbours(8.0))
    assert ratio.tolist() == [[1.5, 1.0]]
    count = 16 / 6  # (1 + 2 + 1)²/(1² + 2² + 1²)
    coefficient = (0.5**2 + 0.0 + 0.5**2) * (count / 4) ** 2 / (count - 1)
    assert error2[0].tolist() == pytest.approx([coefficient, coefficient / count])
    alone = band_ratios(e, v, bands, torch.eye(2, dtype=torch.float64))[1]
    assert float(alone[0, 0]) == pytest.approx(1e30), "of one coefficient alone nothing is known"


def test_the_expected_ratio_by_quadrature() -> None:
    """E[ρ|r] of the model in the module's docstring, with Bayes' rule on a grid."""
    stream = np.random.default_rng(7)
    ratio = np.concatenate([stream.normal(1.0, 0.8, (40, 12)), stream.normal(1.0, 0.1, (40, 12))])
    error2 = stream.uniform(0.05, 0.6, ratio.shape) ** 2
    found = random_effects(torch.from_numpy(ratio), torch.from_numpy(error2)).numpy()
    grid = np.linspace(0.0, 12.0, 24_001)
    weight = 1.0 / error2
    tau2 = ((weight * (ratio - 1) ** 2).sum(1) - 12) / weight.sum(1)
    assert (tau2 > 1e-4).sum() > 40
    assert (tau2 < 0).any()
    for i in np.flatnonzero(tau2 > 1e-4):
        for b in range(0, 12, 5):
            log_density = -0.5 * (ratio[i, b] - grid) ** 2 / error2[i, b] - 0.5 * (grid - 1) ** 2 / min(tau2[i], 1.0)
            density = np.exp(log_density - log_density.max())
            assert found[i, b] == pytest.approx((grid * density).sum() / density.sum(), rel=2e-3, abs=1e-3)
    np.testing.assert_allclose(found[tau2 < 0], 1.0, atol=1e-10)


def test_what_nothing_is_known_of_is_the_tables_and_what_is_known_well_stays() -> None:
    ratio = torch.tensor([[0.2, 3.0, 1.4]], dtype=torch.float64)
    torch.testing.assert_close(random_effects(ratio, torch.full_like(ratio, 1e-8)), ratio, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(random_effects(ratio, torch.full_like(ratio, 1e30)), torch.ones_like(ratio))
    wild = 1000.0 * torch.tensor([[-1.0, 1.0, -1.0, 1.0]], dtype=torch.float64)
    assert float(random_effects(wild, torch.full_like(wild, 1e5)).max()) < 2.0, "τ² is at most 1"


def test_the_mean_of_what_is_cut_off_is_positive_and_smooth() -> None:
    z = torch.linspace(-60.0, 10.0, 7001, dtype=torch.float64)
    found = positive_mean(z, torch.ones_like(z))
    assert bool((found > 0).all())
    assert bool((found[1:] > (1.0 - 1e-9) * found[:-1]).all())
    assert float(positive_mean(torch.zeros(1).double(), torch.ones(1).double())) == pytest.approx(
        math.sqrt(2 / math.pi)
    )
    torch.testing.assert_close(found[-1:], z[-1:], rtol=1e-9, atol=0)


# ---- what is gained -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("measured", [True, False])
def test_the_bound_is_between_the_tables_and_that_of_the_exact_diagonal(measured: bool) -> None:
    images, steps = mixture().sample(96, seed=9), [1, 5, 20, 60, 100]
    model = mixture()
    known = dv.Jacobian(table() if measured else None, bands=6)
    bound, of_table, exact = (
        dv.density_bound(model, covariance, images, steps, decoder_variance=1e-3)
        for covariance in (known, dv.Analytic(table(), structure="dct"), dv.ExactCovariance(model, "dct"))
    )
    gained = (of_table.value - bound.value) / (of_table.value - exact.value)
    assert of_table.value - exact.value > 0.02
    assert (0.75 if measured else 0.4) < gained < 1.0


# ---- images, batches, steps -----------------------------------------------------------------------------------------


def test_an_image_is_the_same_in_any_batch_and_a_seed_gives_other_probes() -> None:
    sampler = dv.Sampler(mixture(), dv.Jacobian(table(), bands=6), [5, 40, 100])
    images = sampler.sample(7, seed=1, batch_size=7)
    torch.testing.assert_close(sampler.sample(7, seed=1, batch_size=2), images, rtol=0, atol=1e-4)
    again = dv.Sampler(mixture(), dv.Jacobian(table(), bands=6), [5, 40, 100])
    assert torch.equal(again.sample(7, seed=1, batch_size=7), images)
    other = dv.Sampler(mixture(), dv.Jacobian(table(), bands=6, seed=1), [5, 40, 100])
    assert float((other.sample(7, seed=1, batch_size=7) - images).abs().max()) > 1e-3


def test_levels_of_a_batch_have_their_own_probes() -> None:
    """As the likelihood evaluates them: several at once, and rows of these."""
    covariance, x_t = dv.Jacobian(table(), bands=6), noisy(20, 4)
    places = torch.tensor([5, 5, 40, 100])
    together = posterior(covariance, x_t, places)
    for part, n in ((slice(0, 2), 5), (slice(2, 3), 40), (slice(3, 4), 100)):
        kernel = ReverseKernel(SCHEDULE, n, 2)
        found = covariance(together.rows(part), kernel)
        alone = covariance(posterior(covariance, x_t[part], n), kernel)
        torch.testing.assert_close(found.variance, alone.variance, rtol=1e-4, atol=1e-8)


def test_probes_are_of_their_level_and_seed() -> None:
    """The same wherever a level occurs, and others at the next one, so that their errors do not add up."""

    def probe(n: int, seed: int = 0) -> torch.Tensor:
        found: torch.Tensor = posterior(dv.Jacobian(bands=4, seed=seed), noisy(n, 2), n).jacobian.probed[0][0][0]
        return found

    assert torch.equal(probe(20), probe(20))
    for other in (probe(21), probe(60), probe(20, seed=1)):
        assert abs(float((probe(20) * other).mean())) < 0.3, "of random signs it is 0 ± 0.07, of the same 1"


@pytest.mark.parametrize("eta", [0.0, 0.5])
def test_without_a_table_a_ratio_is_to_what_x_t_says_by_itself(eta: float) -> None:
    """Σ = Bᵀ (λ² + γ² ρ σ²/α²) B, ρ drawn towards 1 from the bands' own r, of the same σ²/α²."""
    covariance, kernel, parts = dv.Jacobian(bands=4), ReverseKernel(SCHEDULE, 60, 20, eta), Bands(SHAPE, 4)
    here = posterior(covariance, noisy(60, 6), 60)
    v = (kernel.sigma_t / kernel.alpha_t) ** 2
    probe, product = here.jacobian.probed[0]
    dct = make_structure("dct", SHAPE)
    ratio, error2 = band_ratios(
        dct.forward(probe) * dct.forward(product), torch.full(SHAPE, v), parts, parts.neighbours(8.0)
    )
    expected = kernel.lambda2 + kernel.gain**2 * v * parts.spread(random_effects(ratio, error2))
    torch.testing.assert_close(covariance(here, kernel).variance, expected.float(), rtol=1e-4, atol=1e-8)


class Counted(torch.nn.Module):
    """A network that counts its passes, with and without tangents."""

    def __init__(self) -> None:
        super().__init__()
        self.passes: list[bool] = []

    def forward(self, x: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
        self.passes.append(torch._C._functorch.maybe_current_level() is not None)
        return torch.tanh(x.roll(1, -1)) * (0.3 + timestep.to(x).view(-1, 1, 1, 1) / 1000.0)


@pytest.mark.parametrize("probes", [1, 3])
def test_products_are_made_where_a_covariance_is_drawn(probes: int) -> None:
    """Not in the step to clean data, nor where x_t has no signal."""
    network = Counted()
    model = dv.Denoiser(network, SCHEDULE.with_zero_terminal_snr(), "sample", shape=SHAPE, clip=None, data_range=None)
    covariance = dv.Jacobian(bands=4, probes=probes)
    with pytest.raises(
        InputError, match=r"x_t holds no signal at index 100, .*give Jacobian a table, or let the steps"
    ):
        dv.Sampler(model, covariance, [5, 40, 100])
    sampler = dv.Sampler(model, covariance, [5, 40, 80], low_start=True)
    sampler.sample(2)
    assert network.passes == [True] * 2 * probes + [False]
    assert (covariance.products, covariance.products_with_mean) == (probes, 1)


def test_without_signal_the_table_is_used() -> None:
    schedule = SCHEDULE.with_zero_terminal_snr()
    model = dv.oracles.GaussianDenoiser(schedule, 0.0, np.exp(np.random.default_rng(1).uniform(-3, 0, SHAPE)))
    images = model.sample(500, seed=1)
    found = dv.estimate(model, images, 0.1, indices=[1, 20, 60, 100], structures=("isotropic", "dct"), progress=False)
    kernel, x_t = ReverseKernel(schedule, 100, 60), noisy(100, 3)
    covariance = dv.Jacobian(found, bands=4)
    with torch.no_grad():
        known = covariance(covariance.prepare(model)(x_t, 100), kernel)
    expected = dv.Analytic(found, structure="dct")(None, kernel).variance
    torch.testing.assert_close(known.variance, expected, rtol=1e-6, atol=1e-8)
    assert bool(torch.isfinite(dv.Sampler(model, covariance, [1, 20, 60, 100]).sample(3)).all())


# ---- networks -------------------------------------------------------------------------------------------------------


def test_a_clipped_mean_has_the_tables_three_moments() -> None:
    """Where a step uses the network's own ε̂, ρ multiplies γ² E r² − 2 γ c E rδ + c² E δ² [E3]."""
    model, found = small_heads.denoiser(), small_heads.table()
    covariance = dv.Jacobian(found, bands=4)
    (kernel, *_) = reverse_kernels(model.schedule, [5, 20, 50], 0.5, "network")
    x_t = torch.from_numpy(np.random.default_rng(0).standard_normal((3, *small_heads.SHAPE))).float()
    with torch.no_grad():
        here = covariance.prepare(model)(x_t, kernel.level_t)
    ratio = covariance.ratio(here, kernel.level_t)
    assert ratio is not None
    expected = dv.Analytic(found, structure="dct").variance(kernel) - kernel.lambda2
    spread = Bands(small_heads.SHAPE, 4).spread(ratio) * torch.from_numpy(expected)
    torch.testing.assert_close(
        covariance(here, kernel).variance, (kernel.lambda2 + spread).float(), rtol=1e-4, atol=1e-8
    )


def test_with_conditions_a_learned_range_and_latent_channels() -> None:
    def network(x: torch.Tensor, timestep: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
        told = label.to(x).view(-1, 1, 1, 1) + timestep.to(x).view(-1, 1, 1, 1) / 100
        return torch.cat([torch.tanh(x.roll(1, -1) + 0.1 * told), x], 1)

    model = dv.Denoiser(network, SCHEDULE, shape=(4, 4, 4), clip=None, data_range=None, classes=5)
    sampler = dv.Sampler(model, dv.Jacobian(bands=4), [5, 40, 100])
    labels = torch.tensor([0, 4, 2])
    images = sampler.sample(3, conditions=labels, batch_size=3)
    torch.testing.assert_close(sampler.sample(3, conditions=labels, batch_size=1), images, rtol=0, atol=1e-4)
    assert float((sampler.sample(3, conditions=labels.flip(0)) - images).abs().max()) > 1e-2
    guided = dv.Sampler(model.with_guidance(2.0, torch.tensor(0)), dv.Jacobian(bands=4), [5, 40, 100])
    assert bool(torch.isfinite(guided.sample(3, conditions=labels)).all())


@pytest.mark.parametrize("guidance", ["I", "II"])
def test_in_restoration(guidance: Any) -> None:
    """Type II is x̂_0 + Σ (Σ + σ_y²)⁻¹ (y − x̂_0), Σ its covariance; type I's vector-Jacobian product is of J too."""
    model, covariance = small_heads.denoiser(clip=None), dv.Jacobian(bands=4)
    y = torch.from_numpy(np.random.default_rng(1).standard_normal((2, *small_heads.SHAPE))).float()
    den = dv.ConditionedDenoiser(model, covariance, dv.Measurement(y, lambda x: x, noise=0.2), guidance, damped=False)
    x_t = torch.from_numpy(np.random.default_rng(2).standard_normal((2, *small_heads.SHAPE))).float()
    level = model.schedule.level(20)
    with torch.no_grad():
        own = covariance.prepare(model)(x_t, level)
        known = covariance.posterior_covariance(own, level)
        variance, dct = known.variance, known.structure
        u = dct.inverse(dct.forward(y - own.mean) / (variance + 0.04))
        found = den(x_t, 20).mean
    moved = dct.inverse(variance * dct.forward(u))
    if guidance == "I":
        x = x_t.clone().requires_grad_()
        (back,) = torch.autograd.grad(model(x, 20).mean, x, u)
        moved = level.sigma**2 / level.alpha * back
    torch.testing.assert_close(found, own.mean + moved, rtol=1e-3, atol=1e-3)
    for drawn in (covariance, den.posterior_noise()):
        images = dv.Sampler(den, drawn, [1, 20, 50], eta=1.0).sample(3, batch_size=2)
        assert bool(torch.isfinite(images).all())


def test_digits_are_drawn_without_accidents() -> None:
    model = dv.Denoiser.from_pretrained("digits")
    covariance = dv.Jacobian(bands=8)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DiffusionVarWarning)  # near pure noise its derivative is no covariance
        drawn = dv.Sampler(model, covariance, 5, eta=0.5).sample(256, batch_size=256)
    assert bool(torch.isfinite(drawn).all())
    assert 0.05 < float(drawn.std()) < 1.0


# ---- what is reported and refused -----------------------------------------------------------------------------------


def test_negative_estimates_are_counted_and_those_beyond_error_told() -> None:
    """A mean that moves against x_t has a derivative that is no covariance."""
    model = dv.Denoiser(lambda x, _: -0.4 * x, SCHEDULE, "sample", shape=SHAPE, clip=None, data_range=None)
    covariance = dv.Jacobian(bands=4)
    sampler = dv.Sampler(model, covariance, [5, 40, 100])
    with pytest.warns(DiffusionVarWarning, match="of 96 variances of bands, 96 were negative by far more"):
        images = sampler.sample(4)
    assert bool(torch.isfinite(images).all())
    assert covariance.counts() == [0, 0, 0], "told once"
    covariance.add_counts([3, 2, 10])
    assert covariance.counts() == [3, 2, 10]


def test_of_an_exact_mean_nothing_is_told() -> None:
    covariance = dv.Jacobian(table(), bands=8)
    dv.Sampler(mixture(), covariance, [2, 20, 60, 100]).sample(16)
    x_t = noisy(20, 16)
    covariance.ratio(posterior(covariance, x_t, 20), SCHEDULE.level(20))
    negative, certain, total = covariance.counts()
    assert total == 16 * covariance._basis(SHAPE).bands.count
    assert certain <= negative < 0.3 * total
    assert certain < 0.01 * total


def test_says_where_the_covariance_hardly_matters() -> None:
    """At η = 1 with many steps λ² is nearly all of the noise."""
    covariance = dv.Jacobian(table(), bands=4)
    steps = [*range(80, 101)]
    with pytest.warns(DiffusionVarWarning, match="hardly matters in these steps: it adds at most"):
        dv.Sampler(mixture(), covariance, steps, eta=1.0, low_start=True).kernels  # noqa: B018
    for enough in ([1, 30, 100], [1, *steps]):  # one step is enough
        dv.Sampler(mixture(), covariance, enough, eta=1.0)


def test_its_name_and_identity_tell_it_from_others() -> None:
    made = [
        dv.Jacobian(),
        dv.Jacobian(table()),
        dv.Jacobian(bands=4),
        dv.Jacobian(probes=2),
        dv.Jacobian(derivative="difference"),
        dv.Jacobian(seed=3),
    ]
    assert len({repr(covariance.identity()) for covariance in made}) == len(made)
    images = mixture().sample(64, seed=2)
    other = dv.estimate(mixture(), images, 9.0, indices=INDICES, structures=("isotropic", "dct"), progress=False)
    assert dv.Jacobian(other).identity() != dv.Jacobian(table()).identity(), "of another table"
    assert [covariance.name for covariance in made[:4]] == [
        "jacobian-dct-16, no table",
        "jacobian-dct-16",
        "jacobian-dct-4, no table",
        "jacobian-dct-16, no table, 2 probes",
    ]


def test_the_derivative_may_be_a_difference() -> None:
    x_t, kernel = noisy(20, 4), ReverseKernel(SCHEDULE, 20, 10)
    near, found = (
        covariance(posterior(covariance, x_t, 20), kernel).variance
        for covariance in (dv.Jacobian(table(), bands=6, derivative="difference"), dv.Jacobian(table(), bands=6))
    )
    torch.testing.assert_close(near, found, rtol=0.02, atol=1e-6)
    assert not torch.equal(near, found)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (
            {"structure": "pixel"},
            "structure='pixel' is not known of Jacobian, which pools coefficients of one frequency",
        ),
        ({"bands": 0}, "bands=0"),
        ({"bands": 2.5}, "bands=2.5"),
        ({"probes": 0}, "probes=0"),
        ({"derivative": "backward"}, "derivative='backward'"),
        ({"seed": 1.5}, "seed"),
        ({"table": "t.safetensors"}, "table must be a VarianceTable .*, or None, but got str"),
        ({"table": dv.VarianceTable.from_moments(SCHEDULE, eps_square=np.full(101, 0.5))}, "dct"),
    ],
)
def test_refuses_arguments(arguments: dict[str, Any], sentence: str) -> None:
    with pytest.raises(InputError, match=sentence):
        dv.Jacobian(**arguments)


def test_refuses_models_that_do_not_fit() -> None:
    with pytest.raises(InputError, match="bands=60 is more than there are frequencies in images"):
        dv.Jacobian(table(), bands=60)
    with pytest.raises(InputError, match="bands=60 is more"):
        dv.Sampler(mixture(), dv.Jacobian(bands=60), 4)
    vectors = dv.oracles.GaussianDenoiser(SCHEDULE, 0.0, np.ones(5))
    with pytest.raises(InputError, match=r"images of shape \(5,\) are vectors, which have no frequencies"):
        dv.Sampler(vectors, dv.Jacobian(bands=1), 4)
    other = dv.Denoiser(small_unet(), SCHEDULE, shape=SHAPE)
    with pytest.raises(InputError, match="table"):
        dv.Sampler(other, dv.Jacobian(table(), bands=4), 4)
    with pytest.raises(InputError, match=r"use covariance\.prepare"):
        dv.Jacobian(bands=4)(mixture()(noisy(20, 2), 20), ReverseKernel(SCHEDULE, 20, 10))
    with pytest.raises(InputError, match="so that it needs a posterior"):
        dv.Jacobian(bands=4)(None, ReverseKernel(SCHEDULE, 20, 10))
