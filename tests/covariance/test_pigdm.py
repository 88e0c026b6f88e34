"""ΠGDM's constant: its published form, its limits, and that for white data it is exact."""

from typing import Any

import numpy as np
import pytest
import torch

import diffusion_var as dv
from diffusion_var.errors import InputError
from diffusion_var.testing import CovarianceContract

SCHEDULE = dv.NoiseSchedule.linear(100, 1e-3, 0.1)


class TestPiGDM(CovarianceContract):
    @pytest.fixture(params=[1.0, 0.2])
    def covariance(self, request: pytest.FixtureRequest) -> dv.ReverseCovariance:
        return dv.PiGDM(request.param)


def posterior(shape: tuple[int, ...] = (1, 2, 3)) -> dv.Posterior:
    return dv.Posterior(torch.zeros(2, *shape, dtype=torch.float64), torch.zeros(2, *shape, dtype=torch.float64))


def test_as_published() -> None:
    """r_t² = σ²/(σ² + 1) where x_t = x_0 + σ ε."""
    schedule = dv.NoiseSchedule.edm(30)
    for n in (1, 15, 30):
        found = dv.PiGDM().posterior_covariance(posterior(), schedule.level(n)).variance
        assert float(found) == pytest.approx(schedule.sigma[n] ** 2 / (schedule.sigma[n] ** 2 + 1.0), rel=1e-12)


def test_for_white_data_it_is_exact_at_every_step() -> None:
    white = dv.oracles.GaussianDenoiser(SCHEDULE, 0.3, np.full((1, 2, 3), 0.4))
    for t, s, eta in ((100, 40, 1.0), (40, 1, 0.5), (1, 0, 1.0)):
        kernel = dv.ReverseKernel(SCHEDULE, t, s, eta)
        v = float(white.posterior_variance(t).flat[0])
        found = dv.PiGDM(0.4)(posterior(), kernel).variance
        assert float(found) == pytest.approx(kernel.lambda2 + kernel.gain**2 * v, rel=1e-12)


def test_without_signal_it_is_the_datas_variance() -> None:
    flow = dv.NoiseSchedule.flow(10)
    assert float(dv.PiGDM(0.7).posterior_covariance(posterior(), flow.level(10)).variance) == pytest.approx(0.7)


@pytest.mark.parametrize("l", [0.0, -1.0, float("nan"), float("inf"), "1", None])
def test_what_is_refused(l: Any) -> None:
    with pytest.raises(InputError, match="data_variance"):
        dv.PiGDM(l)
