"""Classifier-free guidance: against two separate calls, what the network is called with, and what is refused."""

import math
from typing import Any, get_args

import numpy as np
import pytest
import torch

from diffusion_var import Denoiser, InputError, NoiseSchedule
from diffusion_var.models.prediction import Prediction

SCHEDULE = NoiseSchedule.linear(100)
SHAPE = (2, 4, 4)
NULL = 10


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).standard_normal(shape))


X_T, LABELS = normal(3, *SHAPE), torch.tensor([7, 0, 3])


class Conditional(torch.nn.Module):
    """A network that depends on place, timestep and condition (labels or embeddings), and counts its calls."""

    def __init__(self, channels: int = 2, dtype: torch.dtype = torch.float64) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(normal(channels, 2, seed=1).to(dtype), requires_grad=False)
        self.calls: list[tuple[torch.Tensor, ...]] = []

    def forward(self, x: torch.Tensor, timestep: torch.Tensor, condition: torch.Tensor) -> torch.Tensor:
        self.calls.append((x, timestep, condition))
        drive = condition.to(x.dtype).reshape(len(x), -1).mean(1) + 0.01 * timestep.to(x.dtype)
        mixed = self.weight @ torch.sin(2 * x + drive[:, None, None, None]).flatten(2)
        return mixed.unflatten(2, x.shape[2:]) + 0.1 * x.flip(-1).repeat(1, len(self.weight) // 2, 1, 1)


def denoiser(network: Any, scale: float = 1.0, unconditional: Any = NULL, **options: Any) -> Denoiser:
    return Denoiser(
        network,
        SCHEDULE,
        **{"shape": SHAPE, "clip": None, **options},
        guidance_scale=scale,
        unconditional=unconditional,
    )


def apart(network: Any, scale: float, condition: torch.Tensor, null: torch.Tensor, timestep: int) -> torch.Tensor:
    """The guided first half, from two calls."""
    t = torch.full((len(X_T),), timestep)
    given, free = (network(X_T, t, c)[:, :2] for c in (condition, null))
    return free + scale * (given - free)


# ---- what is computed -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("prediction", get_args(Prediction))
@pytest.mark.parametrize("scale", [0.0, 0.5, 1.7, 7.5, -1.0])
def test_guided_is_free_plus_w_times_the_difference(prediction: Prediction, scale: float) -> None:
    """For every prediction type: guiding the output guides x_0 and ε alike, because they are linear in it."""
    guided = denoiser(Conditional(), scale, prediction=prediction)(X_T, 40, LABELS)
    plain = denoiser(Conditional(), prediction=prediction)
    given, free = plain(X_T, 40, LABELS), plain(X_T, 40, torch.full((3,), NULL))
    for name in ("mean", "eps"):
        a, b, c = (getattr(posterior, name) for posterior in (guided, given, free))
        torch.testing.assert_close(a, c + scale * (b - c), rtol=1e-12, atol=1e-12)
        assert float((b - c).abs().max()) > 0.01


def test_guided_eps_is_that_of_two_calls_of_the_network() -> None:
    network = Conditional()
    eps = denoiser(network, 3.0)(X_T, 40, LABELS).eps
    expected = apart(network, 3.0, LABELS, torch.full((3,), NULL), 39)
    torch.testing.assert_close(eps, expected, rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("scale", [1, 1.0])
@pytest.mark.parametrize("unconditional", [None, NULL])
def test_scale_one_is_the_conditional_prediction_in_one_call(scale: float, unconditional: Any) -> None:
    network = Conditional()
    plain = denoiser(network, scale, unconditional)
    eps = plain(X_T, 40, LABELS).eps
    assert plain.guidance is None
    assert plain.guidance_scale == 1.0
    ((x, timestep, condition),) = network.calls
    assert torch.equal(x, X_T)
    assert timestep.tolist() == [39, 39, 39]
    assert torch.equal(condition, LABELS)
    assert torch.equal(eps, network(X_T, timestep, LABELS))


def test_guidance_is_one_call_with_twice_the_batch() -> None:
    network = Conditional()
    denoiser(network, 3.0)(X_T, torch.tensor([40, 1, 100]), LABELS)
    ((x, timestep, condition),) = network.calls
    assert torch.equal(x, torch.cat([X_T, X_T]))
    assert timestep.tolist() == [39, 0, 99, 39, 0, 99]
    assert condition.tolist() == [7, 0, 3, NULL, NULL, NULL]


@pytest.mark.parametrize("scale", [1.0, 4.0])
def test_of_two_c_channels_the_first_half_is_guided(scale: float) -> None:
    """The learned range stays the conditional one, as in DiT's code."""
    network = Conditional(channels=4)
    posterior = denoiser(network, scale)(X_T, 40, LABELS)
    expected = apart(network, scale, LABELS, torch.full((3,), NULL), 39)
    torch.testing.assert_close(posterior.eps, expected, rtol=1e-13, atol=1e-13)
    t = torch.full((3,), 39)
    assert posterior.range is not None
    torch.testing.assert_close(posterior.range, network(X_T, t, LABELS)[:, 2:], rtol=1e-13, atol=1e-13)
    free = network(X_T, t, torch.full((3,), NULL))[:, 2:]
    assert float((posterior.range - free).abs().max()) > 0.01


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("own", "within"), [(torch.float32, 1e-5), (torch.float64, 1e-12)])
def test_embeddings(dtype: torch.dtype, own: torch.dtype, within: float) -> None:
    """The null is one image's; it is repeated over the batch, and both are given in the network's own precision."""
    network, prompts, null = Conditional(dtype=own), normal(3, 5, 6, seed=2).to(dtype), normal(5, 6, seed=3)
    eps = denoiser(network, 2.5, null)(X_T, 40, prompts).eps
    assert [given.dtype for given in network.calls[-1][::2]] == [own, own]  # x and the condition
    expected = apart(Conditional(), 2.5, prompts.double(), null.expand(3, 5, 6), 39)
    torch.testing.assert_close(eps, expected, rtol=within, atol=within)


@pytest.mark.parametrize("labels", [[7, 0, 3], np.array([7, 0, 3], dtype=np.uint8), LABELS.to(torch.int32), (7, 0, 3)])
def test_labels_of_any_kind(labels: Any) -> None:
    expected = denoiser(Conditional(), 2.0)(X_T, 40, LABELS).eps
    network = Conditional()
    assert torch.equal(denoiser(network, 2.0)(X_T, 40, labels).eps, expected)
    assert not network.calls[0][2].is_floating_point()


def test_clipping_comes_after_guidance() -> None:
    free = denoiser(Conditional(), 9.0)(X_T, 60, LABELS)
    clipped = denoiser(Conditional(), 9.0, clip=(-0.5, 0.5))(X_T, 60, LABELS)
    assert torch.equal(clipped.mean, free.mean.clamp(-0.5, 0.5))
    assert float(free.mean.abs().max()) > 0.5
    assert torch.equal(clipped.eps, free.eps)


@pytest.mark.parametrize("scale", [1.0, 3.0])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(scale: float, dtype: torch.dtype) -> None:
    """Inputs and embeddings are cast for the network alone; the posterior has the type of x_t."""
    prompts, null = normal(3, 5, 6, seed=2).float(), normal(5, 6, seed=3).float()
    network, x_t = Conditional(channels=4, dtype=dtype), X_T.float()
    posterior = denoiser(network, scale, null)(x_t, 40, prompts)
    exact = denoiser(Conditional(channels=4), scale, null)(X_T, 40, prompts.double())
    ((x, _, condition),) = network.calls
    assert x.dtype == condition.dtype == dtype
    for name in ("mean", "eps", "range"):
        found = getattr(posterior, name)
        assert found.dtype == torch.float32
        difference = float((found.double() - getattr(exact, name)).abs().max())
        assert 0 < difference < 60 * torch.finfo(dtype).eps
    # Only the network is in half precision: x_t is made up again to float32's digits.
    again = SCHEDULE.alpha[40] * posterior.mean + SCHEDULE.sigma[40] * posterior.eps
    assert float((again - x_t).abs().max()) < 2e-6


# ---- another scale --------------------------------------------------------------------------------------------


def test_with_guidance_changes_the_scale_and_nothing_else() -> None:
    network = Conditional()
    original = denoiser(network, 2.0)
    other = original.with_guidance(5.0)
    assert (original.guidance_scale, other.guidance_scale) == (2.0, 5.0)
    assert other.network is network
    assert other.schedule is original.schedule
    torch.testing.assert_close(other(X_T, 40, LABELS).eps, denoiser(network, 5.0)(X_T, 40, LABELS).eps)
    torch.testing.assert_close(original(X_T, 40, LABELS).eps, denoiser(network, 2.0)(X_T, 40, LABELS).eps)


def test_with_guidance_and_another_null() -> None:
    other = denoiser(Conditional(), 2.0).with_guidance(2.0, 4)
    assert torch.equal(other(X_T, 40, LABELS).eps, denoiser(Conditional(), 2.0, 4)(X_T, 40, LABELS).eps)
    assert denoiser(Conditional(), 1.0, None).with_guidance(2.0, 4).guidance_scale == 2.0


def test_with_guidance_one_is_without() -> None:
    network = Conditional()
    denoiser(network, 2.0).with_guidance(1.0)(X_T, 40, LABELS)
    assert [len(call[0]) for call in network.calls] == [3]


# ---- what is refused ------------------------------------------------------------------------------------------


def sentence(caught: pytest.ExceptionInfo[InputError]) -> str:
    message = str(caught.value)
    assert "\n" not in message
    assert message.endswith(".")
    return message


@pytest.mark.parametrize("scale", [math.nan, math.inf, -math.inf, "3", None, [2.0], 1 + 1j])
def test_a_scale_that_is_no_finite_number(scale: Any) -> None:
    for make in (lambda: denoiser(Conditional(), scale), lambda: denoiser(Conditional()).with_guidance(scale, NULL)):
        with pytest.raises(InputError, match="guidance_scale=") as caught:
            make()
        assert "must be a finite number" in sentence(caught)


def test_a_scale_without_a_null() -> None:
    plain = denoiser(Conditional(), 1.0, None)
    for make in (lambda: denoiser(Conditional(), 2.5, None), lambda: plain.with_guidance(2.5)):
        with pytest.raises(InputError, match=r"guidance_scale=2.5 needs the condition that stands for none") as caught:
            make()
        assert "unconditional=" in sentence(caught)


@pytest.mark.parametrize(("scale", "conditional"), [(2.0, False), (1.0, True), (2.0, True)])
def test_a_missing_condition(scale: float, conditional: bool) -> None:
    network = Conditional()
    with pytest.raises(InputError, match="needs a condition, but none was given") as caught:
        denoiser(network, scale, conditional=conditional)(X_T, 40)
    sentence(caught)
    assert not network.calls


@pytest.mark.parametrize("scale", [1.0, 2.0])
@pytest.mark.parametrize("condition", [torch.tensor([1, 2]), torch.tensor([1, 2, 3, 4]), [5], 5, normal(1, 5, 6)])
def test_a_wrong_count_of_conditions(scale: float, condition: Any) -> None:
    network = Conditional()
    with pytest.raises(InputError, match=r"condition has shape .* for 3 images") as caught:
        denoiser(network, scale)(X_T, 40, condition)
    sentence(caught)
    assert not network.calls


@pytest.mark.parametrize("condition", [["a cat", "a dog", "a hat"], [None, None, None]])
def test_conditions_that_are_no_numbers(condition: Any) -> None:
    with pytest.raises(InputError, match="conditions must be numbers") as caught:
        denoiser(Conditional(), 2.0)(X_T, 40, condition)
    sentence(caught)
    with pytest.raises(InputError, match="conditions must be numbers"):
        denoiser(Conditional(), 2.0, condition)


# ---- conditions that do not fit -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([0, 4], r"from 0 to 3 for this network, but they are from 0 to 4"),
        ([-1, 0], r"from -1 to 0"),
        ([0.5, 1.0], r"whole numbers"),
        ([[0], [1]], r"shape \(2, 1\)"),
        ([[0], [1, 2]], r"ragged"),
    ],
)
def test_class_labels_that_the_network_does_not_know(labels: list[Any], message: str) -> None:
    denoiser = Denoiser(lambda x, t, c: x, NoiseSchedule.linear(10), shape=(1, 2, 2), classes=4)
    with pytest.raises(InputError, match=message):
        denoiser(torch.zeros(2, 1, 2, 2), 5, labels)


@pytest.mark.parametrize("unconditional", [7.5, [0, 1], torch.zeros(3)])
def test_a_null_of_another_kind_is_refused(unconditional: Any) -> None:
    denoiser = Denoiser(
        lambda x, t, c: x, NoiseSchedule.linear(10), shape=(1, 2, 2), guidance_scale=2.0, unconditional=unconditional
    )
    with pytest.raises(InputError, match="give one of the same kind"):
        denoiser(torch.zeros(2, 1, 2, 2), 5, [1, 2])


@pytest.mark.parametrize("returned", [None, (1,), torch.zeros(1, 1, 2, 2)])
def test_what_a_guided_network_returns_is_checked(returned: Any) -> None:
    denoiser = Denoiser(
        lambda x, t, c: returned, NoiseSchedule.linear(10), shape=(1, 2, 2), guidance_scale=2.0, unconditional=0
    )
    with pytest.raises(InputError, match="the network returned"):
        denoiser(torch.zeros(2, 1, 2, 2), 5, [1, 2])


def test_the_null_outlives_a_scale_of_one() -> None:
    def network(x: torch.Tensor, t: torch.Tensor, condition: torch.Tensor) -> torch.Tensor:
        return x * condition[:, None, None, None]

    denoiser = Denoiser(network, NoiseSchedule.linear(10), shape=(1, 2, 2), clip=None, unconditional=1)
    x = torch.ones(2, 1, 2, 2)
    guided = denoiser.with_guidance(1.0).with_guidance(np.float32(3.0))
    # free + w (given − free) with free = 1 and given = 2
    torch.testing.assert_close(guided(x, 5, [2, 2]).eps, torch.full_like(x, 4.0))


def test_a_condition_for_a_network_that_takes_none_is_refused() -> None:
    denoiser = Denoiser(lambda x, t: x, NoiseSchedule.linear(10), shape=(1, 2, 2), conditional=False)
    with pytest.raises(InputError, match="takes no condition"):
        denoiser(torch.zeros(2, 1, 2, 2), 5, [1, 2])


# ---- nests --------------------------------------------------------------------------------------------------------


class ByNest(Conditional):
    """Told by a dict: the label, and an embedding that adds to it."""

    def forward(self, x: torch.Tensor, timestep: torch.Tensor, condition: Any) -> torch.Tensor:
        return super().forward(x, timestep, condition["label"] + condition["more"][0].mean(1))


MORE = normal(3, 5, seed=4)


def test_guidance_of_a_nest_is_that_of_two_calls() -> None:
    network, null = ByNest(), {"label": NULL, "more": (torch.zeros(5, dtype=torch.float64),)}
    condition = {"label": LABELS, "more": (MORE,)}
    eps = denoiser(network, 3.0, null)(X_T, 40, condition).eps
    (call,) = network.calls
    assert len(call[0]) == 6
    given = Conditional.forward(network, X_T, call[1][:3], LABELS + MORE.mean(1))
    free = Conditional.forward(network, X_T, call[1][:3], torch.full((3,), float(NULL), dtype=torch.float64))
    torch.testing.assert_close(eps, (free + 3.0 * (given - free))[:, :2], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("null", "message"),
    [
        (NULL, "unconditional is another nest than the conditions"),
        ({"label": NULL, "other": (torch.zeros(5),)}, "unconditional is another nest than the conditions"),
        (
            {"label": NULL, "more": (torch.zeros(4, dtype=torch.float64),)},
            r"unconditional\['more'\]\[0\] has shape \(4,\) .* but one condition has \(5,\)",
        ),
    ],
)
def test_a_null_of_another_nest_is_refused(null: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        denoiser(ByNest(), 3.0, null)(X_T, 40, {"label": LABELS, "more": (MORE,)})
