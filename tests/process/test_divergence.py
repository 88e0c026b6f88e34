"""What the likelihood bound asks of the process: how far a step's mean is off, and the trace of Σ⁻¹."""

import math
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from diffusion_var import NoiseSchedule, ReverseKernel
from diffusion_var.process.structure import STRUCTURE_NAMES, make_structure

SHAPE = (3, 2, 4)
SCHEDULES = {
    "linear": NoiseSchedule.linear(1000),
    "cosine": NoiseSchedule.cosine(200),
    "flow": NoiseSchedule.flow(100),
    "edm": NoiseSchedule.edm(50),
}


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).standard_normal(shape))


def noisy(schedule: NoiseSchedule, t: int, clip: float | None) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, Any]:
    """x_0, ε, x_t and a posterior that is wrong, clipped or not, and whose ε̂ is the network's own."""
    x_0, eps = normal(5, *SHAPE, seed=1), normal(5, *SHAPE, seed=2)
    alpha, sigma = schedule.alpha[t], schedule.sigma[t]
    x_t = alpha * x_0 + sigma * eps
    mean = torch.tanh(x_t) + 0.1
    eps_hat = (x_t - alpha * mean) / sigma
    return x_0, eps, x_t, SimpleNamespace(mean=mean if clip is None else mean.clamp(-clip, clip), eps=eps_hat)


@pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES)
@pytest.mark.parametrize("clip", [None, 0.4])
@pytest.mark.parametrize("clipped_eps", [None, "network", "rederived"])
@pytest.mark.parametrize("eta", [0.0, 0.3, 1.0])
def test_mean_error_is_the_difference_of_the_two_means(
    schedule: NoiseSchedule, clip: float | None, clipped_eps: Any, eta: float
) -> None:
    """Eq. (1) at (x_0, x_t), written out here, less the mean that a sampler steps to."""
    N = schedule.num_steps
    for t, s in ((1, 0), (2, 1), (N // 2, N // 2 - 1), (N // 2, 1), (N, N // 3), (N, 0)):
        kernel = ReverseKernel(schedule, t, s, eta, clipped_eps)
        x_0, eps, x_t, posterior = noisy(schedule, t, clip)
        true = kernel.alpha_s * x_0 + kernel.eps_gain * (x_t - kernel.alpha_t * x_0) / kernel.sigma_t
        found = kernel.mean_error(x_0, eps, posterior)
        expected = true - kernel.mean(x_t, posterior)
        assert float(expected.abs().max()) > 1e-4, (t, s)
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("eta", [0.3, 1.0])
def test_which_eps_a_step_uses_matters_only_where_the_mean_is_clipped(eta: float) -> None:
    schedule = SCHEDULES["linear"]
    network, rederived = (ReverseKernel(schedule, 400, 300, eta, choice) for choice in ("network", "rederived"))
    x_0, eps, _, free = noisy(schedule, 400, None)
    torch.testing.assert_close(
        network.mean_error(x_0, eps, free), rederived.mean_error(x_0, eps, free), rtol=1e-9, atol=1e-12
    )
    x_0, eps, _, clipped = noisy(schedule, 400, 0.4)
    gap = network.mean_error(x_0, eps, clipped) - rederived.mean_error(x_0, eps, clipped)
    assert float(gap.abs().max()) > 0.1


def test_a_perfect_posterior_has_no_error() -> None:
    x_0, eps = normal(2, *SHAPE), normal(2, *SHAPE, seed=1)
    for eta in (0.0, 0.5, 1.0):
        kernel = ReverseKernel(SCHEDULES["cosine"], 150, 20, eta)
        assert not kernel.mean_error(x_0, eps, SimpleNamespace(mean=x_0, eps=eps)).any()


# ---- tr Σ⁻¹ -------------------------------------------------------------------------------------------------------


def matrix(structure: Any, variance: torch.Tensor) -> torch.Tensor:
    """Σ (d, d), from what it does to the unit vectors."""
    d = structure.d
    basis = torch.eye(d, dtype=torch.float64).reshape(d, *structure.shape)
    half: torch.Tensor = structure.colour(variance, basis).reshape(d, d)
    return half @ half.T


def variances(structure: Any, *batch: int) -> torch.Tensor:
    shape = structure.variance_shape or (1, 1, 1)  # a scalar is kept with the three axes that structures sum over
    return torch.from_numpy(np.random.default_rng(3).uniform(0.05, 3.0, (*batch, *shape)))


@pytest.mark.parametrize("name", STRUCTURE_NAMES)
def test_inverse_trace_is_the_trace_of_the_inverse_matrix(name: str) -> None:
    structure = make_structure(name, SHAPE)
    variance = variances(structure)
    expected = torch.linalg.inv(matrix(structure, variance)).trace()
    torch.testing.assert_close(structure.inverse_trace(variance), expected, rtol=1e-10, atol=0)


@pytest.mark.parametrize("name", STRUCTURE_NAMES)
def test_inverse_trace_is_the_expected_quadratic_form_of_white_noise(name: str) -> None:
    """E εᵀ Σ⁻¹ ε = tr Σ⁻¹: over the d unit vectors, whose squares sum to the identity, exactly."""
    structure = make_structure(name, SHAPE)
    variance = variances(structure)
    units = torch.eye(structure.d, dtype=torch.float64).reshape(-1, *SHAPE)
    expected = structure.quadratic(variance, units).sum()
    torch.testing.assert_close(structure.inverse_trace(variance), expected, rtol=1e-10, atol=0)


@pytest.mark.parametrize("name", STRUCTURE_NAMES)
@pytest.mark.parametrize("batch", [(4,), (2, 3)])
def test_inverse_trace_of_a_batch_is_each_ones_own_and_float64(name: str, batch: tuple[int, ...]) -> None:
    structure = make_structure(name, SHAPE)
    variance = variances(structure, *batch).float()
    found = structure.inverse_trace(variance)
    assert found.shape == batch
    assert found.dtype == torch.float64
    for place in np.ndindex(*batch):
        alone = structure.inverse_trace(variance[place])
        assert alone.shape == ()
        assert float(found[place]) == pytest.approx(float(alone), rel=1e-14)


def test_inverse_trace_of_one_number() -> None:
    assert float(make_structure("isotropic", SHAPE).inverse_trace(torch.full((1, 1, 1), 0.25))) == 4 * math.prod(SHAPE)
