"""Denoiser: prediction types against diffusers, what the network is told, clipping, and what is refused."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler
from safetensors.torch import load_file, save_file

from diffusion_var import Denoiser, InputError, NoiseLevel, NoiseSchedule

SCHEDULE = NoiseSchedule.linear(1000)
SHAPE = (3, 4, 4)
PREDICTIONS = ("epsilon", "sample", "v_prediction")


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).standard_normal(shape, dtype=np.float32))


def smooth(x_t: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
    """Some network: depends on the input, on the timestep, and on the place."""
    ramp = torch.linspace(-0.5, 0.5, x_t.shape[-1])
    return torch.tanh(0.8 * x_t + ramp + timestep.to(x_t.dtype)[:, None, None, None] / 1000)


def doubled(x_t: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
    return torch.cat([smooth(x_t, timestep), x_t.square()], dim=1)


class Recorder:
    """A network that keeps what it was called with."""

    def __init__(self) -> None:
        self.calls: list[tuple[Any, ...]] = []

    def __call__(self, *arguments: Any) -> torch.Tensor:
        self.calls.append(arguments)
        return arguments[0]


class Untimed(torch.nn.Module):
    """A convolution with seeded weights."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        self.conv = torch.nn.Conv2d(3, 3, 3, padding=1)
        for k, parameter in enumerate(self.parameters()):
            parameter.data = normal(*parameter.shape, seed=10 * seed + k)

    def forward(self, x_t: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.conv(x_t)
        return out


# ---- what the prediction means --------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [DDPMScheduler, DDIMScheduler])
@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("clip", [None, (-0.8, 0.8)])
@pytest.mark.parametrize("n", [1, 2, 300, 1000])
def test_mean_is_diffusers_pred_original_sample(kind: type, prediction: str, clip: Any, n: int) -> None:
    scheduler = kind(prediction_type=prediction, clip_sample=clip is not None, clip_sample_range=0.8)
    scheduler.set_timesteps(1000)
    x_t = normal(2, *SHAPE)
    out = smooth(x_t, torch.full((2,), n - 1))
    expected = scheduler.step(out, n - 1, x_t, generator=torch.Generator().manual_seed(0)).pred_original_sample
    posterior = Denoiser(smooth, SCHEDULE, prediction, SHAPE, clip=clip)(x_t, n)
    # float32's 1 - alphas_cumprod: up to 1.7e-4 of sigma² at n = 1, about 1e-5 of alpha at n = 1000.
    torch.testing.assert_close(posterior.mean, expected, rtol=1e-4, atol=1e-5)
    if clip is not None:
        assert float(posterior.mean.abs().max()) <= 0.8 + 1e-6
        assert n == 1 or prediction == "v_prediction" or float(posterior.mean.abs().max()) == pytest.approx(0.8)


@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("n", [1, 300, 1000])
def test_eps_is_the_networks_own(prediction: str, n: int) -> None:
    """x_t = α x̂_0 + σ ε̂ holds with the mean before clipping; clipping leaves ε̂ alone."""
    x_t = normal(2, *SHAPE).double()
    free = Denoiser(smooth, SCHEDULE, prediction, SHAPE, clip=None)(x_t, n)
    clipped = Denoiser(smooth, SCHEDULE, prediction, SHAPE, clip=(-0.1, 0.2))(x_t, n)
    alpha, sigma = SCHEDULE.alpha[n], SCHEDULE.sigma[n]
    torch.testing.assert_close(alpha * free.mean + sigma * free.eps, x_t, rtol=1e-12, atol=1e-12)
    assert torch.equal(clipped.eps, free.eps)
    assert torch.equal(clipped.mean, free.mean.clamp(-0.1, 0.2))
    assert not torch.equal(clipped.mean, free.mean)
    out = smooth(x_t, torch.full((2,), n - 1))
    if prediction == "v_prediction":
        torch.testing.assert_close(alpha * free.eps - sigma * free.mean, out, rtol=1e-12, atol=1e-12)
    else:
        assert torch.equal(free.eps if prediction == "epsilon" else free.mean, out)


def test_v_prediction_where_alpha_and_sigma_are_not_on_the_circle() -> None:
    schedule = NoiseSchedule([1.0, 0.7, 0.2], [0.0, 0.3, 0.8], [0.0, 1.0, 2.0])
    x_0, eps = normal(2, *SHAPE).double(), normal(2, *SHAPE, seed=1).double()
    for n in (1, 2):
        alpha, sigma = schedule.alpha[n], schedule.sigma[n]
        v = alpha * eps - sigma * x_0
        posterior = Denoiser(lambda x, t, v=v: v, schedule, "v_prediction", SHAPE, clip=None)(
            alpha * x_0 + sigma * eps, n
        )
        torch.testing.assert_close(posterior.mean, x_0, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(posterior.eps, eps, rtol=1e-12, atol=1e-12)


def test_zero_terminal_snr_with_predictions_that_can() -> None:
    schedule = NoiseSchedule.from_betas([0.1, 1.0])
    x_t = normal(2, *SHAPE)
    for prediction in ("sample", "v_prediction"):
        posterior = Denoiser(lambda x, t: 0.3 * x, schedule, prediction, SHAPE, clip=None)(x_t, 2)
        sign = 1.0 if prediction == "sample" else -1.0
        torch.testing.assert_close(posterior.mean, sign * 0.3 * x_t)
        torch.testing.assert_close(posterior.eps, x_t)


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_index_as_number_and_as_tensor_agree(prediction: str) -> None:
    denoiser = Denoiser(doubled, SCHEDULE, prediction, SHAPE)
    x_t, indices = normal(4, *SHAPE), [1, 7, 500, 1000]
    together = denoiser(x_t, torch.tensor(indices))
    for i, n in enumerate(indices):
        alone = denoiser(x_t[i : i + 1], n)
        for name in ("mean", "eps", "range"):
            one, of_many = getattr(alone, name)[0], getattr(together, name)[i]
            torch.testing.assert_close(one, of_many, rtol=1e-5, atol=1e-6)


# ---- what the network is told and gives -----------------------------------------------------------------------


@pytest.mark.parametrize("n", [1, 640, 1000, torch.tensor([1, 640, 1000])])
@pytest.mark.parametrize(
    ("schedule", "dtype", "scale", "shift"),
    [(SCHEDULE, torch.int64, 1.0, -1.0), (NoiseSchedule.vp_sde(1000), torch.float32, 0.999, 0.0)],
)
def test_timestep(schedule: NoiseSchedule, dtype: torch.dtype, scale: float, shift: float, n: Any) -> None:
    network = Recorder()
    Denoiser(network, schedule, "epsilon", SHAPE)(normal(3, *SHAPE), n)
    (_, timestep) = network.calls[0]
    assert timestep.shape == (3,)
    assert timestep.dtype == dtype
    expected = torch.as_tensor(n).double().expand(3) * scale + shift
    torch.testing.assert_close(timestep.double(), expected, rtol=1e-6, atol=0)


def test_condition_is_passed_on() -> None:
    network, condition = Recorder(), torch.tensor([3, 1])
    denoiser, x_t = Denoiser(network, SCHEDULE, "epsilon", SHAPE), normal(2, *SHAPE)
    denoiser(x_t, 5)
    denoiser(x_t, 5, condition)
    denoiser(x_t, 5, condition=condition)
    assert [len(call) for call in network.calls] == [2, 3, 3]
    for given, found in (
        (condition, network.calls[1][2]),
        (condition, network.calls[2][2]),
        (x_t, network.calls[0][0]),
    ):
        assert torch.equal(found, given)
        assert found.data_ptr() != given.data_ptr()  # its own, which it may write into


def test_two_c_channels_are_the_prediction_and_the_range() -> None:
    x_t = normal(2, *SHAPE)
    plain = Denoiser(smooth, SCHEDULE, "epsilon", SHAPE)(x_t, 10)
    with_range = Denoiser(doubled, SCHEDULE, "epsilon", SHAPE)(x_t, 10)
    assert plain.range is None
    assert torch.equal(with_range.mean, plain.mean)
    assert torch.equal(with_range.eps, plain.eps)
    assert torch.equal(with_range.range, x_t.square())


def test_output_object_with_sample() -> None:
    x_t = normal(2, *SHAPE)
    wrapped = Denoiser(lambda x, t: SimpleNamespace(sample=smooth(x, t)), SCHEDULE, "epsilon", SHAPE)(x_t, 10)
    assert torch.equal(wrapped.mean, Denoiser(smooth, SCHEDULE, "epsilon", SHAPE)(x_t, 10).mean)


def test_autocast_runs_the_network_only() -> None:
    x_t, network, inside = normal(2, *SHAPE), Untimed(), []
    network.conv.register_forward_hook(lambda module, given, out: inside.append(out.dtype))
    plain = Denoiser(network, SCHEDULE, "epsilon", SHAPE, clip=None)(x_t, 10)
    cast = Denoiser(network, SCHEDULE, "epsilon", SHAPE, clip=None, autocast=torch.bfloat16)(x_t, 10)
    assert inside == [torch.float32, torch.bfloat16]
    assert cast.mean.dtype == cast.eps.dtype == torch.float32
    torch.testing.assert_close(cast.eps, plain.eps, rtol=0.05, atol=0.1)
    # The rest is float32: x_t comes back to float32's precision, not bfloat16's.
    alpha, sigma = float(SCHEDULE.alpha[10]), float(SCHEDULE.sigma[10])
    torch.testing.assert_close(alpha * cast.mean + sigma * cast.eps, x_t, rtol=1e-5, atol=1e-6)


def test_ranges() -> None:
    assert Denoiser(smooth, SCHEDULE).data_range == (-1.0, 1.0)
    assert Denoiser(smooth, SCHEDULE, clip=(0, 2)).data_range == (0.0, 2.0)
    assert Denoiser(smooth, SCHEDULE, clip=None).data_range is None
    assert Denoiser(smooth, SCHEDULE, clip=None, data_range=(0, 1)).data_range == (0.0, 1.0)
    assert Denoiser(smooth, SCHEDULE, clip=(-1, 1), data_range=None).data_range is None
    assert Denoiser(smooth, SCHEDULE, clip=(-1, 1), data_range=None).clip == (-1.0, 1.0)


# ---- what a table remembers -----------------------------------------------------------------------------------


def test_fingerprint_follows_the_weights(tmp_path: Any) -> None:
    network = Untimed()
    original = Denoiser(network, SCHEDULE).fingerprint
    assert original is not None
    assert Denoiser(Untimed(), SCHEDULE, "v_prediction", (3, 8, 8)).fingerprint == original

    save_file(network.state_dict(), tmp_path / "weights.safetensors")
    loaded = Untimed(seed=5)
    assert Denoiser(loaded, SCHEDULE).fingerprint != original
    loaded.load_state_dict(load_file(tmp_path / "weights.safetensors"))
    assert Denoiser(loaded, SCHEDULE).fingerprint == original

    with torch.no_grad():
        loaded.conv.bias[1] += 1e-6
    assert Denoiser(loaded, SCHEDULE).fingerprint != original
    renamed = torch.nn.Module()
    renamed.other = network.conv
    assert Denoiser(renamed, SCHEDULE).fingerprint != original


def test_a_callable_has_no_fingerprint() -> None:
    assert Denoiser(smooth, SCHEDULE).fingerprint is None


# ---- what is refused ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"prediction": "noise"}, "prediction='noise' is not known"),
        ({"schedule": NoiseSchedule.from_betas([0.1, 1.0])}, "zero terminal SNR"),
        ({"shape": ()}, "shape must be"),
        ({"shape": (3, 2, 4, 4, 4)}, "at most 3 spatial axes"),
        ({"shape": (3, 0, 32)}, "shape must be"),
        ({"shape": (3, 32.5, 32)}, "shape must be"),
        ({"clip": (1.0, -1.0)}, "clip="),
        ({"clip": (1.0, 1.0)}, "clip="),
        ({"clip": (0.0, float("inf"))}, "clip="),
        ({"clip": (float("nan"), 1.0)}, "clip="),
        ({"clip": (0.0, 1.0, 2.0)}, "clip="),
        ({"clip": 1.0}, "clip=1.0 must be a pair"),
        ({"clip": ("a", "b")}, "clip="),
        ({"data_range": (1.0, 0.0)}, "data_range="),
    ],
)
def test_bad_arguments_are_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        Denoiser(smooth, **{"schedule": SCHEDULE, **arguments})


@pytest.mark.parametrize("shape", [(2, 1, 4, 4), (2, 3, 4, 5), (3, 4, 4), (2, 3, 4), (2, 2, 3, 4, 4)])
def test_bad_input_shape_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(InputError, match=r"x_t has shape .* takes \(B, 3, 4, 4\)"):
        Denoiser(smooth, SCHEDULE, shape=SHAPE)(normal(*shape), 5)


@pytest.mark.parametrize(
    "n",
    [
        0,
        1001,
        2.5,
        torch.tensor([0, 5]),
        torch.tensor([5, 1001]),
        torch.tensor([5.0, 6.0]),
        torch.tensor(5),
        torch.tensor([5]),
        torch.tensor([5, 6, 7]),
        torch.tensor([[5, 6]]),
    ],
)
def test_bad_index_is_refused(n: Any) -> None:
    with pytest.raises(InputError, match="integer"):
        Denoiser(smooth, SCHEDULE, shape=SHAPE)(normal(2, *SHAPE), n)


def test_an_index_for_each_of_many_is_not_stretched_over_one_image() -> None:
    with pytest.raises(InputError, match=r"a \(1,\) tensor"):
        Denoiser(smooth, SCHEDULE, shape=SHAPE)(normal(1, *SHAPE), torch.tensor([5, 6]))


@pytest.mark.parametrize(
    ("network", "message"),
    [
        (lambda x, t: x[:, :2], "returned 2 channels, but images have 3; expected 3 or 6"),
        (lambda x, t: x.repeat(1, 3, 1, 1), "returned 9 channels"),
        (lambda x, t: x[:1], "same batch, height and width"),
        (lambda x, t: x[..., :3], "same batch, height and width"),
        (lambda x, t: x.mean(), "same batch, height and width"),
        (lambda x, t: (x,), "returned tuple"),
        (lambda x, t: None, "returned NoneType"),
    ],
)
def test_bad_output_is_refused(network: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        Denoiser(network, SCHEDULE, shape=SHAPE)(normal(2, *SHAPE), 5)


def test_fingerprint_follows_weights_that_are_changed_in_place() -> None:
    network = torch.nn.Conv2d(1, 1, 3, padding=1)
    denoiser = Denoiser(lambda x, t: network(x), NoiseSchedule.linear(10), shape=(1, 4, 4))
    assert denoiser.fingerprint is None
    denoiser = Denoiser(network, NoiseSchedule.linear(10), shape=(1, 4, 4))
    before = denoiser.fingerprint
    assert denoiser.fingerprint == before
    torch.nn.init.zeros_(network.weight)
    assert denoiser.fingerprint != before


# ---- noise levels, and images of any shape --------------------------------------------------------------------------


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_an_indexs_level_gives_the_indexs_posterior_to_the_bit(prediction: str) -> None:
    denoiser, x_t = Denoiser(doubled, SCHEDULE, prediction, SHAPE), normal(4, *SHAPE)
    for n in (1, 500, 1000):
        mine, own = denoiser(x_t, SCHEDULE.level(n)), denoiser(x_t, n)
        for name in ("mean", "eps", "range"):
            assert torch.equal(getattr(mine, name), getattr(own, name))
    many = [SCHEDULE.level(n) for n in (1, 7, 500, 1000)]
    mine, own = denoiser(x_t, many), denoiser(x_t, torch.tensor([1, 7, 500, 1000]))
    assert torch.equal(mine.mean, own.mean)


def test_a_level_off_the_grid_is_what_it_says() -> None:
    """α, σ and timestep are the level's own, wherever it comes from."""
    network = Recorder()
    denoiser, x_t = Denoiser(network, SCHEDULE, "epsilon", SHAPE, clip=None), normal(2, *SHAPE).double()
    level = NoiseLevel(0.7, 0.9, 123.25)
    posterior = denoiser(x_t, level)
    assert network.calls[0][1].tolist() == [123.25, 123.25]
    torch.testing.assert_close(0.7 * posterior.mean + 0.9 * posterior.eps, x_t, rtol=1e-12, atol=1e-12)
    flow = Denoiser(smooth, NoiseSchedule.flow(50), "flow", SHAPE, clip=None)
    exact = flow(x_t, NoiseLevel.flow(0.333))
    velocity = smooth(x_t, torch.tensor([333.0, 333.0]))
    torch.testing.assert_close(exact.mean, x_t - 0.333 * velocity, rtol=1e-12, atol=1e-12)
    for place, message in (
        (NoiseLevel.clean(), "n is clean data, where x_0 is x_t itself"),
        ([level, NoiseLevel.clean()], "n is clean data"),
        ([level] * 3, "n is a list of 3 noise levels for 2 images; give one, or one for each"),
        ([level, 5], "n must be an index, or a dv.NoiseLevel, .* but got int"),
        (NoiseLevel.flow(1.0), "level without signal .* prediction type epsilon says nothing"),
    ):
        with pytest.raises(InputError, match=message):
            denoiser(x_t, place)
    assert torch.isfinite(flow(x_t, NoiseLevel.flow(1.0)).mean).all()


@pytest.mark.parametrize("shape", [(5,), (2, 7), (3, 4, 6), (2, 3, 4, 5)], ids=["vector", "signal", "image", "video"])
@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_every_shape_has_the_posterior_of_its_numbers_as_one_image(shape: tuple[int, ...], prediction: str) -> None:
    """Elementwise networks do not see the shape: neither does what is made of their output."""
    count = int(np.prod(shape[1:]))
    flat = Denoiser(elementwise, SCHEDULE, prediction, (shape[0], 1, count))
    shaped = Denoiser(elementwise, SCHEDULE, prediction, shape)
    x_t = normal(3, *shape)
    mine, same = shaped(x_t, 300), flat(x_t.reshape(3, shape[0], 1, count), 300)
    assert mine.mean.shape == mine.eps.shape == (3, *shape)
    assert torch.equal(mine.mean.reshape(3, -1), same.mean.reshape(3, -1))
    many = shaped(x_t, torch.tensor([1, 300, 1000]))
    torch.testing.assert_close(many.mean[1], mine.mean[1], rtol=1e-5, atol=1e-5)


def elementwise(x_t: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
    return torch.tanh(1.3 * x_t) + 0.1
