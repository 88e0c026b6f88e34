"""Prediction types: outputs built by hand from (x_0, ε) give them back, at every kind of noise level."""

import math
from typing import Any, get_args

import numpy as np
import pytest
import torch
from diffusers import EDMEulerScheduler

from diffusion_var import Denoiser, InputError, NoiseSchedule
from diffusion_var.models.prediction import Prediction, check_prediction, mean_and_eps, network_input

PREDICTIONS: tuple[Prediction, ...] = get_args(Prediction)
#: Those that a level says enough of; the other, previous_x, is tested beside: test_previous_x.py.
OF_A_LEVEL = tuple(name for name in PREDICTIONS if name != "previous_x")
NEED_SIGNAL = ("epsilon", "score", "edm", "edm_v")
SHAPE = (3, 4, 4)


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).standard_normal(shape))


X_0, EPS = normal(5, *SHAPE), normal(5, *SHAPE, seed=1)


def levels(schedule: NoiseSchedule, *indices: int) -> list[tuple[float, float]]:
    return [(float(schedule.alpha[n]), float(schedule.sigma[n])) for n in indices]


LEVELS = [
    *levels(NoiseSchedule.linear(1000), 1, 2, 300, 1000),
    *levels(NoiseSchedule.cosine(1000), 1, 999),
    *levels(NoiseSchedule.flow(1000), 1, 500, 999),
    *levels(NoiseSchedule.flow(1000, shift=3.0), 10, 900),
    *levels(NoiseSchedule.edm(18), 1, 5, 9, 14, 18),
    (1.0, 1348.0),
    (0.7, 0.3),
    (2.5, 0.01),
]


def output(prediction: str, x_0: torch.Tensor, eps: torch.Tensor, alpha: Any, sigma: Any, sd: float) -> torch.Tensor:
    """What a perfect network of this type returns; for EDM as its paper has it, at x = x_0 + s ε, s = σ/α."""
    if prediction in ("edm", "edm_v"):
        s = sigma / alpha
        c_skip, c_out = sd**2 / (s**2 + sd**2), s * sd / (s**2 + sd**2) ** 0.5
        network = (x_0 - c_skip * (x_0 + s * eps)) / c_out
        return network if prediction == "edm" else -network
    by_hand = {
        "epsilon": lambda: eps,
        "sample": lambda: x_0,
        "v_prediction": lambda: alpha * eps - sigma * x_0,
        "flow": lambda: eps - x_0,
        "flow_to_data": lambda: x_0 - eps,
        "score": lambda: -eps / sigma,
        "trigflow": lambda: alpha * sd * eps - sigma / sd * x_0,
    }
    return by_hand[prediction]()


def closely(mean: torch.Tensor, eps: torch.Tensor) -> None:
    torch.testing.assert_close(mean, X_0, rtol=0, atol=1e-10)
    torch.testing.assert_close(eps, EPS, rtol=0, atol=1e-10)


@pytest.mark.parametrize("prediction", OF_A_LEVEL)
@pytest.mark.parametrize(("alpha", "sigma"), LEVELS)
@pytest.mark.parametrize("sigma_data", [0.5, 1.3])
def test_a_perfect_output_gives_back_x_0_and_eps(
    prediction: Prediction, alpha: float, sigma: float, sigma_data: float
) -> None:
    x_t, out = alpha * X_0 + sigma * EPS, output(prediction, X_0, EPS, alpha, sigma, sigma_data)
    closely(*mean_and_eps(prediction, out, x_t, alpha, sigma, sigma_data))


@pytest.mark.parametrize("prediction", OF_A_LEVEL)
def test_a_level_for_each_image(prediction: Prediction) -> None:
    columns = torch.tensor(LEVELS[2:7], dtype=torch.float64)
    alpha, sigma = columns[:, 0].reshape(5, 1, 1, 1), columns[:, 1].reshape(5, 1, 1, 1)
    x_t, out = alpha * X_0 + sigma * EPS, output(prediction, X_0, EPS, alpha, sigma, 0.5)
    closely(*mean_and_eps(prediction, out, x_t, alpha, sigma))
    shown = network_input(prediction, x_t, alpha, sigma, 0.5)
    for i, (a, s) in enumerate(LEVELS[2:7]):
        torch.testing.assert_close(shown[i], network_input(prediction, x_t[i], a, s, 0.5), rtol=1e-14, atol=0)


@pytest.mark.parametrize("prediction", OF_A_LEVEL)
@pytest.mark.parametrize(("alpha", "sigma"), LEVELS)
def test_mean_and_eps_make_up_x_t_whatever_the_output(prediction: Prediction, alpha: float, sigma: float) -> None:
    """x_t = α x̂_0 + σ ε̂ is a definition, not a property of good networks."""
    x_t, out = alpha * X_0 + sigma * EPS, normal(5, *SHAPE, seed=2)
    mean, eps = mean_and_eps(prediction, out, x_t, alpha, sigma)
    scale = max(float((alpha * mean).abs().max()), float((sigma * eps).abs().max()))
    assert float((alpha * mean + sigma * eps - x_t).abs().max()) <= 1e-14 * scale
    assert float((mean - X_0).abs().max()) > 1e-6  # another output is another mean


# ---- EDM ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("prediction", "theirs"), [("edm", "epsilon"), ("edm_v", "v_prediction")])
@pytest.mark.parametrize("sigma_data", [0.5, 1.0])
@pytest.mark.parametrize("sigma", [0.002, 0.1, 1.0, 80.0])
@pytest.mark.parametrize("alpha", [1.0, 0.3])
def test_edm_is_diffusers_preconditioning(
    prediction: Prediction, theirs: str, sigma_data: float, sigma: float, alpha: float
) -> None:
    """Their x is x_t/α and their sigma σ/α; both types are asked for because only the sign of c_out differs."""
    scheduler = EDMEulerScheduler(prediction_type=theirs, sigma_data=sigma_data)
    x, out = X_0 + sigma * EPS, normal(5, *SHAPE, seed=2)
    shown = network_input(prediction, alpha * x, alpha, alpha * sigma, sigma_data)
    torch.testing.assert_close(shown, scheduler.precondition_inputs(x, sigma), rtol=1e-13, atol=0)
    mean, eps = mean_and_eps(prediction, out, alpha * x, alpha, alpha * sigma, sigma_data)
    denoised = scheduler.precondition_outputs(x, out, sigma)
    torch.testing.assert_close(mean, denoised, rtol=1e-12, atol=1e-13)
    torch.testing.assert_close(eps, (x - denoised) / sigma, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("prediction", ["edm", "edm_v"])
def test_edm_keeps_the_digits_of_eps_in_float32(prediction: Prediction) -> None:
    """As (x_t − x̂_0)/σ it would lose three of them at the smallest level."""
    x_t, out, sigma = X_0 + 0.002 * EPS, normal(5, *SHAPE, seed=2), 0.002
    _, exact = mean_and_eps(prediction, out, x_t, 1.0, sigma)
    mean, eps = mean_and_eps(prediction, out.float(), x_t.float(), 1.0, sigma)
    assert float((eps.double() - exact).abs().max()) < 2e-6
    assert float(((x_t.float() - mean).double() / sigma - exact).abs().max()) > 2e-5


@pytest.mark.parametrize("prediction", ["epsilon", "sample", "v_prediction", "flow", "score"])
def test_other_networks_are_shown_x_t_itself(prediction: Prediction) -> None:
    assert network_input(prediction, X_0, 0.6, 0.8, 0.5) is X_0


# ---- in a denoiser --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("prediction", "schedule"),
    [
        ("epsilon", NoiseSchedule.linear(100)),
        ("sample", NoiseSchedule.flow(100)),
        ("v_prediction", NoiseSchedule.linear(100).with_zero_terminal_snr()),
        ("flow", NoiseSchedule.flow(100, shift=3.0)),
        ("score", NoiseSchedule.edm(100, 0.01, 50.0, math.inf)),
        ("edm", NoiseSchedule.edm(100)),
        ("edm_v", NoiseSchedule.edm(100)),
        ("edm", NoiseSchedule.linear(100)),
    ],
)
@pytest.mark.parametrize("n", [1, 42, 100, torch.tensor([1, 2, 42, 99, 100])])
@pytest.mark.parametrize("sigma_data", [0.5, 2.0])
def test_a_denoiser_with_a_perfect_network(
    prediction: Prediction, schedule: NoiseSchedule, n: Any, sigma_data: float
) -> None:
    index = torch.as_tensor(n).expand(5).numpy()
    alpha, sigma = (torch.from_numpy(a[index]).reshape(5, 1, 1, 1) for a in (schedule.alpha, schedule.sigma))
    x_t, told = alpha * X_0 + sigma * EPS, []

    def network(x: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
        told.append((x, timestep))
        return output(prediction, X_0, EPS, alpha, sigma, sigma_data)

    denoiser = Denoiser(network, schedule, prediction, SHAPE, clip=None, sigma_data=sigma_data)
    posterior = denoiser(x_t, n)
    closely(posterior.mean, posterior.eps)
    ((shown, timestep),) = told
    torch.testing.assert_close(timestep.double().numpy(), schedule.timestep[index], rtol=1e-6, atol=0)
    torch.testing.assert_close(shown, network_input(prediction, x_t, alpha, sigma, sigma_data), rtol=1e-13, atol=0)
    assert shown.data_ptr() != x_t.data_ptr()  # it may write into what it is given


# ---- zero terminal SNR and what is refused --------------------------------------------------------------------

ENDS_EMPTY = [NoiseSchedule.flow(10), NoiseSchedule.linear(10).with_zero_terminal_snr()]


@pytest.mark.parametrize("prediction", ["sample", "v_prediction", "flow"])
def test_x_0_is_found_where_x_t_holds_none_of_it(prediction: Prediction) -> None:
    out = output(prediction, X_0, EPS, 0.0, 1.0, 0.5)
    closely(*mean_and_eps(prediction, out, EPS, 0.0, 1.0))


@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("schedule", ENDS_EMPTY, ids=["flow", "rescaled"])
def test_zero_terminal_snr(prediction: Prediction, schedule: NoiseSchedule) -> None:
    if prediction not in NEED_SIGNAL:
        check_prediction(prediction, schedule)
        Denoiser(lambda x, t: x, schedule, prediction, SHAPE)
        return
    for refuse in (check_prediction, lambda p, s: Denoiser(lambda x, t: x, s, p, SHAPE)):
        with pytest.raises(InputError, match=rf"zero terminal SNR .* prediction type {prediction} says nothing.*\.$"):
            refuse(prediction, schedule)


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_every_type_may_be_used_with_every_schedule_that_keeps_signal(prediction: Prediction) -> None:
    for schedule in (NoiseSchedule.linear(10), NoiseSchedule.edm(10)):
        check_prediction(prediction, schedule)


def test_an_unknown_type_is_refused_with_the_known_ones() -> None:
    with pytest.raises(InputError, match=r"prediction='velocity' is not known; use one of .*previous_x\.$") as caught:
        check_prediction("velocity", NoiseSchedule.linear(10))
    assert all(name in str(caught.value) for name in PREDICTIONS)


@pytest.mark.parametrize("sigma_data", [0.0, -0.5, math.nan])
def test_bad_sigma_data_is_refused(sigma_data: float) -> None:
    with pytest.raises(InputError, match=f"sigma_data={sigma_data} must be positive"):
        Denoiser(lambda x, t: x, NoiseSchedule.edm(10), "edm", SHAPE, sigma_data=sigma_data)
