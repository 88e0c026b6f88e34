"""Likelihoods of the probability flow: closed forms of Gaussian data and mixtures, the solvers' orders, the probes."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import diffusion_var as dv
from diffusion_var.likelihood import ode
from diffusion_var.process.steps import describe
from diffusion_var.randomness import Streams

SCHEDULE = dv.NoiseSchedule.linear(1000, 1e-4, 0.05)  # α_N = 3e-6: the prior is the marginal
SHAPE, D = (1, 2, 3), 6
VARIANCE = np.geomspace(0.03, 2.0, D).reshape(SHAPE)
GAUSSIAN = dv.oracles.GaussianDenoiser(SCHEDULE, 0.3, VARIANCE)
MEANS = np.random.default_rng(0).normal(size=(3, *SHAPE))
MIXTURE = dv.oracles.MixtureDenoiser(SCHEDULE, MEANS, [0.05, 0.1, 0.3], [0.2, 0.3, 0.5])
ORDERS = {"euler": 1, "heun": 2, "rk4": 4}


def gaussian_bits(x: np.ndarray, model: dv.oracles.GaussianDenoiser) -> np.ndarray:
    """Under the flow and its prior exactly, per dimension: x/α − μ grows with √(l + σ²/α²)."""
    schedule, l = model.schedule, model.variance.numpy()
    top = schedule.num_steps - schedule.zero_terminal_snr
    ratio = np.exp(-schedule.log_snr.clip(-700, 700))
    growth = np.sqrt((l + ratio[top]) / (l + ratio[1]))
    mean = model.mean.numpy()
    level = schedule.level(top)
    x_n, std = level.alpha * (mean + growth * (x - mean)), schedule.prior_std_at(level)
    nats = 0.5 * (x_n / std) ** 2 + 0.5 * np.log(2 * np.pi * std**2) - np.log(level.alpha) - np.log(growth)
    return nats.reshape(len(x), -1).mean(1) / math.log(2)


def mixture_bits(x: np.ndarray) -> np.ndarray:
    """The density of the mixture with the noise of index 1 on it."""
    total = np.array([0.05, 0.1, 0.3]) + (SCHEDULE.sigma[1] / SCHEDULE.alpha[1]) ** 2
    square = np.square(x[:, None] - MEANS).sum((2, 3, 4))
    log = np.log([0.2, 0.3, 0.5]) - 0.5 * square / total - 0.5 * D * np.log(2 * np.pi * total)
    return -np.logaddexp.reduce(log, axis=1) / (D * math.log(2))


def data(model: Any, count: int = 5) -> torch.Tensor:
    return model.sample(count, seed=1)


@pytest.mark.parametrize("method", ORDERS)
@pytest.mark.parametrize("model", [GAUSSIAN, MIXTURE], ids=["gaussian", "mixture"])
def test_the_solvers_orders(model: Any, method: Any) -> None:
    """Against the closed forms, with the whole trace; twice the steps, 2^order of the error, both ways."""
    x = data(model)
    exact = gaussian_bits(x.numpy(), GAUSSIAN) if model is GAUSSIAN else mixture_bits(x.double().numpy())
    errors = []
    for steps in (80, 160):
        found = dv.ode_likelihood(model, x, steps, method=method, trace="exact")
        assert found.evaluations == 5 * steps * {"euler": 1, "heun": 2, "rk4": 4}[method]
        errors.append(np.abs(found.per_image - exact).max())
    order = math.log2(errors[0] / errors[1])
    assert abs(order - ORDERS[method]) < 0.45, errors
    assert errors[-1] < {"euler": 0.1, "heun": 3e-3, "rk4": 1e-4}[method]


@pytest.mark.parametrize(
    "schedule",
    [dv.NoiseSchedule.edm(100), dv.NoiseSchedule.flow(200), dv.NoiseSchedule.vp_sde(300), dv.NoiseSchedule.cosine(500)],
    ids=["edm", "flow", "vp", "cosine"],
)
def test_every_schedule_has_the_same_flow(schedule: dv.NoiseSchedule) -> None:
    model = dv.oracles.GaussianDenoiser(schedule, 0.3, VARIANCE)
    x = data(model)
    found = dv.ode_likelihood(model, x, 200, method="rk4", trace="exact")
    np.testing.assert_allclose(found.per_image, gaussian_bits(x.numpy(), model), atol=2e-4)


def test_levels_of_ones_own_and_indices() -> None:
    x, exact = data(GAUSSIAN), gaussian_bits(data(GAUSSIAN).numpy(), GAUSSIAN)
    for steps in (dv.steps.log_snr(SCHEDULE, 150), dv.steps.karras(SCHEDULE, 200)):
        found = dv.ode_likelihood(GAUSSIAN, x, steps, method="rk4", trace="exact")
        np.testing.assert_allclose(found.per_image, exact, atol=2e-3)
        on_grid = isinstance(steps[0], int)
        assert found.settings["steps"] == (steps if on_grid else describe(steps))
    # a flow that ends early meets another prior
    part = dv.ode_likelihood(GAUSSIAN, x, dv.steps.log_snr(SCHEDULE, 150)[:50], trace="exact")
    assert np.abs(part.per_image - exact).max() > 0.01


def test_mean_and_error_are_those_of_the_images() -> None:
    x = data(GAUSSIAN, 40)
    found = dv.ode_likelihood(GAUSSIAN, x, 60, trace="exact")
    assert found.value == float(found) == found.per_image.mean()
    assert found.standard_error == pytest.approx(found.per_image.std(ddof=1) / math.sqrt(40))
    assert found.noise_error == 0.0
    assert math.isnan(dv.ode_likelihood(GAUSSIAN, x[:1], 5).standard_error)
    assert "bits/dim of density (40 images, standard error" in str(found)
    assert found.to_dict()["value"] == found.value
    assert dv.ode_likelihood(GAUSSIAN, x[:1], 5).to_dict()["standard_error"] is None


# ---- the trace ------------------------------------------------------------------------------------------------------

DCT = dv.oracles.GaussianDenoiser(SCHEDULE, 0.3, VARIANCE, basis="dct")


@pytest.mark.parametrize("trace", ["rademacher", "gaussian"])
def test_probes_are_unbiased_and_their_error_is_right(trace: Any) -> None:
    x = data(DCT, 8)
    exact = dv.ode_likelihood(DCT, x, 20, trace="exact")
    probed = dv.ode_likelihood(DCT, x, 20, trace=trace, draws=150, batch_size=600)
    z = (probed.value - exact.value) / probed.noise_error
    assert abs(z) < 3
    assert 1e-4 < probed.noise_error < 0.05
    each = dv.ode_likelihood(DCT, x, 20, trace=trace, draws=1).per_image - exact.per_image
    assert (np.abs(each) > 1e-5).all()


def test_signs_are_exact_where_the_jacobian_is_diagonal_and_gaussian_probes_are_not() -> None:
    x = data(GAUSSIAN, 3)
    exact, signs, normal = (dv.ode_likelihood(GAUSSIAN, x, 20, trace=t) for t in ("exact", "rademacher", "gaussian"))  # type: ignore[arg-type]
    np.testing.assert_allclose(signs.per_image, exact.per_image, rtol=1e-9)
    assert np.abs(normal.per_image - exact.per_image).min() > 1e-4


def test_an_image_does_not_depend_on_the_batch() -> None:
    x = data(DCT, 6)
    whole = dv.ode_likelihood(DCT, x, 15, seed=3, draws=2, batch_size=12)
    parts = dv.ode_likelihood(DCT, x, 15, seed=3, draws=2, batch_size=5)
    np.testing.assert_allclose(parts.per_image, whole.per_image, rtol=1e-9)
    first = dv.ode_likelihood(DCT, x[:2], 15, seed=3, draws=2)
    np.testing.assert_allclose(first.per_image, whole.per_image[:2], rtol=1e-9)
    assert np.abs(dv.ode_likelihood(DCT, x, 15, seed=4, draws=2).per_image - whole.per_image).min() > 1e-6


# ---- networks, images, conditions -----------------------------------------------------------------------------------


class Network(torch.nn.Module):
    """Small, float32, smooth, with a condition."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.weight = torch.nn.Parameter(0.3 * torch.randn(2 * D, D, generator=generator))

    def forward(self, x: torch.Tensor, timestep: torch.Tensor, label: torch.Tensor | None = None) -> torch.Tensor:
        shift = 0.0 if label is None else 0.1 * label[:, None]
        hidden = torch.tanh(x.flatten(1) @ self.weight.T + shift)
        return (x.flatten(1) * 0.8 + hidden @ self.weight).view_as(x)


def network(**options: Any) -> dv.Denoiser:
    return dv.Denoiser(Network(), SCHEDULE, shape=SHAPE, clip=None, data_range=(-1.0, 1.0), **options)


def test_a_network_of_float32_and_its_autocast() -> None:
    x = np.random.default_rng(1).uniform(-1, 1, (4, *SHAPE)).astype(np.float32)
    model = network()
    exact = dv.ode_likelihood(model, x, 30, trace="exact")
    probed = dv.ode_likelihood(model, x, 30, draws=60)
    assert abs(probed.value - exact.value) < 4 * probed.noise_error
    assert all(p.grad is None for p in model.network.parameters())  # type: ignore[union-attr]
    double = dv.Denoiser(Network().double(), SCHEDULE, shape=SHAPE, clip=None)
    np.testing.assert_allclose(dv.ode_likelihood(double, x, 30, trace="exact").per_image, exact.per_image, atol=1e-4)


def test_quantised_images_are_spread_over_their_levels() -> None:
    """The mean over the spread of the density's bits, less the bits of a level's width."""
    model = dv.oracles.GaussianDenoiser(SCHEDULE, 0.0, np.full(SHAPE, 0.2))
    model.data_range = (-1.0, 1.0)
    x = np.random.default_rng(1).integers(0, 16, (3, *SHAPE)) * (2 / 15) - 1
    found = dv.ode_likelihood(model, x.astype(np.float32), 40, seed=5, method="rk4", trace="exact", levels=16, draws=3)
    streams, expected = Streams(), np.zeros((3, 3))
    for i in range(3):
        for j in range(3):
            u = streams.at(5, "ode likelihood dequantisation", i, j).random(SHAPE) - 0.5
            expected[i, j] = gaussian_bits((x[i] + 2 / 15 * u)[None], model)[0] - math.log2(2 / 15)
    np.testing.assert_allclose(found.per_image, expected.mean(1), atol=1e-3)
    assert found.noise_error == pytest.approx(math.sqrt(expected.var(1, ddof=1).sum() / 3) / 3, rel=1e-2)
    assert found.unit == "bits/dim, dequantised"


def test_conditions_go_with_their_images() -> None:
    x = np.random.default_rng(1).uniform(-1, 1, (4, *SHAPE)).astype(np.float32)
    model = network(classes=5, conditional=True)
    both = dv.ode_likelihood(model, x, 10, trace="exact", conditions=[0, 1, 2, 3], batch_size=3).per_image
    for i in range(4):
        alone = dv.ode_likelihood(model, x[i : i + 1], 10, trace="exact", conditions=[i]).value
        assert alone == pytest.approx(both[i], rel=1e-5)
    assert dv.ode_likelihood(model, x[:1], 10, trace="exact", conditions=[4]).value != pytest.approx(both[0], abs=1e-3)


def test_an_interrupted_run_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    x, path = data(DCT, 6), tmp_path / "c"
    whole = dv.ode_likelihood(DCT, x, 8, draws=2, batch_size=4)
    batch, calls = ode.OdeRun._batch, []

    def stopped(self: Any, images: Any, draws: Any) -> Any:
        calls.append(len(images))
        if len(calls) == 3:
            raise KeyboardInterrupt
        return batch(self, images, draws)

    with monkeypatch.context() as patch:
        patch.setattr(ode.OdeRun, "_batch", stopped)
        with pytest.raises(KeyboardInterrupt):
            dv.ode_likelihood(DCT, x, 8, draws=2, batch_size=4, checkpoint=path)
        again = dv.ode_likelihood(DCT, x, 8, draws=2, batch_size=4, checkpoint=path)
    assert calls == [4, 4, 4, 4]
    assert np.array_equal(again.per_image, whole.per_image)
    with pytest.raises(dv.InputError, match=r"belongs to another run \(different seed"):
        dv.ode_likelihood(DCT, x, 8, 1, draws=2, checkpoint=path)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": 0}, "steps=0 must be a whole number"),
        ({"steps": [5]}, "the flow needs at least two levels to go between"),
        ({"method": "rk45"}, "method='rk45' is not known; use one of euler, heun, rk4"),
        ({"trace": "full"}, "trace='full' is not known; use one of rademacher, gaussian, exact"),
        ({"trace": "exact", "draws": 3}, "draws=3 would all be the same: with trace='exact' nothing is random"),
        ({"levels": 256}, "levels needs a data range, which is None"),
        ({"denoiser": dv.oracles.GaussianDenoiser(SCHEDULE, 0.0, np.ones(5000)), "trace": "exact"}, "of 5000 elements"),
        (
            {"denoiser": dv.oracles.GaussianDenoiser(dv.NoiseSchedule.flow(50), 0.0, VARIANCE), "steps": [1, 20, 50]},
            "the flow cannot end at index 50, which holds no signal",
        ),
        (
            {"denoiser": dv.Denoiser(lambda x, t: x.detach(), SCHEDULE, shape=SHAPE, clip=None)},
            "the network's output cannot be differentiated by its input",
        ),
    ],
)
def test_what_is_refused(options: dict[str, Any], message: str) -> None:
    shape = options.get("denoiser", GAUSSIAN).shape
    with pytest.raises(dv.InputError, match=message):
        dv.ode_likelihood(**{"denoiser": GAUSSIAN, "data": torch.zeros(2, *shape), "steps": 4, **options})


def test_nan_is_named() -> None:
    broken = dv.Denoiser(lambda x, t: x / (x - x), SCHEDULE, shape=SHAPE, clip=None)
    with pytest.raises(dv.NumericalError, match="the flow of image 0 gives a likelihood of nan"):
        dv.ode_likelihood(broken, torch.zeros(2, *SHAPE), 3)
