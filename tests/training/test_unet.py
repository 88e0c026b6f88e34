"""Training a UNet: the loss falls to what an oracle reaches, runs repeat, and broken input is named."""

import random

import numpy as np
import pytest
import torch
from small_training import Images, small_unet, train, weights

import diffusion_var as dv
from diffusion_var.data.images import to_float
from diffusion_var.errors import InputError, NumericalError
from diffusion_var.randomness import generator
from diffusion_var.resume import Checkpoint
from diffusion_var.training.loop import share_of
from diffusion_var.training.loss import evaluation_loss, float_images, simple_loss, spread
from diffusion_var.training.unet import UNetTraining, train_unet

SCHEDULE = dv.NoiseSchedule.linear(100, 1e-3, 0.1)


class Out:
    """What a diffusers network returns."""

    def __init__(self, sample: torch.Tensor) -> None:
        self.sample = sample


class Linear(torch.nn.Module):
    """ε̂ = w(timestep) x_t, with one weight per timestep: for Gaussian data the best possible is known."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(100))

    def forward(self, x: torch.Tensor, timestep: torch.Tensor) -> Out:
        return Out(self.weight[timestep.long()][:, None, None, None] * x)


def test_trained_weights_approach_the_closed_form() -> None:
    """For x_0 ~ N(0, v): E[ε|x_t] = σ/(α² v + σ²) x_t."""
    variance = 0.25
    images = 0.5 * torch.from_numpy(generator(1, "data").standard_normal((4000, 1, 4, 4))).float()
    network = Linear()
    settings = UNetTraining(steps=600, learning_rate=5e-2, weight_decay=0.0, warmup_steps=10)
    result = train_unet(network, images, SCHEDULE, settings, progress=False)
    alpha, sigma = SCHEDULE.alpha[1:], SCHEDULE.sigma[1:]
    expected = sigma / (alpha**2 * variance + sigma**2)
    weight = result.network.weight.detach().numpy()  # type: ignore[union-attr]
    assert np.abs(weight - expected).max() < 0.05
    oracle = Linear()
    oracle.weight.data = torch.from_numpy(expected).float()
    assert evaluation_loss(result.network, images, SCHEDULE) == pytest.approx(
        evaluation_loss(oracle, images, SCHEDULE), rel=5e-3
    )


@pytest.mark.parametrize("prediction", ["flow", "v_prediction"])
def test_networks_of_flows_and_velocities_approach_theirs(prediction: str) -> None:
    """For x_0 ~ N(0, v), with w = x_t/(α² v + σ²): E[ε − x_0|x_t] = (σ − α v) w, E[α ε − σ x_0|x_t] = ασ(1 − v) w.
    A grid of 100 even levels has timesteps that are indices, 100 t = n: they are moved by one for the weights."""
    variance = 0.25
    images = 0.5 * torch.from_numpy(generator(1, "data").standard_normal((4000, 1, 4, 4))).float()
    flow = dv.NoiseSchedule.flow(100, timestep_scale=100.0)
    schedule = dv.NoiseSchedule(flow.alpha, flow.sigma, flow.timestep - 1) if prediction == "flow" else SCHEDULE
    settings = UNetTraining(1000, learning_rate=5e-2, weight_decay=0.0, warmup_steps=10, prediction=prediction)  # type: ignore[arg-type]
    result = train_unet(Linear(), images, schedule, settings, progress=False)
    alpha, sigma = schedule.alpha[1:], schedule.sigma[1:]
    says = sigma - alpha * variance if prediction == "flow" else alpha * sigma * (1 - variance)
    expected = says / (alpha**2 * variance + sigma**2)
    weight = result.network.weight.detach().numpy()  # type: ignore[union-attr]
    assert np.abs(weight - expected).max() < 0.1
    # The loss is that of F, and the mean that a denoiser makes of it is E[x_0|x_t].
    network = Linear()
    network.weight.data = torch.from_numpy(expected).float()
    mean = alpha * variance / (alpha**2 * variance + sigma**2)
    denoiser = dv.Denoiser(network, schedule, prediction, (1, 4, 4), clip=None, data_range=None)
    for n in (1, 40, 100):
        torch.testing.assert_close(denoiser(images[:2], n).mean, mean[n - 1] * images[:2], rtol=1e-5, atol=1e-6)


def test_a_flow_has_no_learned_range_and_no_head_and_needs_no_signal() -> None:
    for extra in ({"learned_range": True}, {"head": "npr"}):
        with pytest.raises(InputError, match="is trained with epsilon only, but prediction is flow"):
            UNetTraining(1, prediction="flow", **extra)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="prediction"):
        UNetTraining(1, prediction="sample")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="zero terminal SNR"):
        train(schedule=dv.NoiseSchedule.flow(100))


def test_a_checkpoint_without_a_prediction_is_of_epsilon(tmp_path, monkeypatch) -> None:
    """Those of before there were others."""
    init = Checkpoint.__init__
    old = lambda self, path, form, identity, seconds: init(  # noqa: E731
        self, path, form, {k: v for k, v in identity.items() if k != "prediction"}, seconds
    )
    with monkeypatch.context() as patch:
        patch.setattr(Checkpoint, "__init__", old)
        made = weights(train(checkpoint=tmp_path / "c", steps=4))
    assert torch.equal(weights(train(checkpoint=tmp_path / "c", steps=4)), made)
    with pytest.raises(InputError, match=r"its schedule is .* but this run's is '.* \(v_prediction\)'"):
        train(checkpoint=tmp_path / "c", steps=4, prediction="v_prediction")


def test_two_runs_with_one_seed_are_equal_and_leave_the_global_generator_alone() -> None:
    states = torch.get_rng_state(), random.getstate(), str(np.random.get_state())  # noqa: NPY002
    runs = [train(steps=4, seed=s) for s in (0, 0, 1)]
    with pytest.raises(ZeroDivisionError):
        train(Images(lambda call: 1 // (30 - call)))
    torch.testing.assert_close(torch.get_rng_state(), states[0], rtol=0, atol=0)
    assert (random.getstate(), str(np.random.get_state())) == states[1:]  # noqa: NPY002
    made = [weights(run) for run in runs]
    assert torch.equal(made[0], made[1])
    assert not torch.equal(made[0], made[2])
    assert not runs[0].network.training


def test_a_run_does_not_depend_on_the_global_generator() -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        one = weights(train(steps=3))
        torch.manual_seed(2)
        assert torch.equal(weights(train(steps=3)), one)
        # Dropout draws anew at every step: a run without it differs.
        assert not torch.equal(weights(train(steps=3, network=small_unet(dropout=0.0))), one)


def test_simple_loss_of_the_zero_network_is_one() -> None:
    """E‖0 − ε‖²/d = 1."""
    stream = generator(0, "test")
    loss = simple_loss(Linear(), torch.zeros(500, 1, 8, 8), SCHEDULE, stream).detach()
    assert float(loss) == pytest.approx(1.0, abs=0.03)


def test_the_evaluation_loss_does_not_depend_on_the_batch_size() -> None:
    images = to_float(Images().images)
    network = small_unet().eval()
    losses = [evaluation_loss(network, images, SCHEDULE, batch_size=size) for size in (1, 3, 7, 20, 256)]
    assert losses == pytest.approx([losses[-1]] * 5, rel=1e-5)
    assert evaluation_loss(network, images, SCHEDULE, repeats=1) != pytest.approx(losses[-1], rel=1e-5)


def test_the_evaluation_loss_is_that_of_its_definition() -> None:
    """For ε̂ = w x_t and x_0 = 0 it is the mean of (w σ_n − 1)² ε², over indices that are all there equally often."""
    oracle = Linear()
    oracle.weight.data[:] = 0.7
    expected = np.mean((0.7 * SCHEDULE.sigma[1:] - 1) ** 2)
    found = evaluation_loss(oracle, torch.zeros(300, 1, 8, 8), SCHEDULE)
    assert found == pytest.approx(expected, rel=0.02)


def test_parts_of_a_batch_fit_together() -> None:
    """What two processes compute of one step averages to what one process computes."""
    images, network = to_float(Images().images), small_unet().eval()
    whole, *parts = (
        float(simple_loss(network, images, SCHEDULE, generator(0, "test"), share=share).detach())
        for share in (slice(None), slice(0, 10), slice(10, 20))
    )
    assert np.mean(parts) == pytest.approx(whole, rel=1e-5)
    assert parts[0] != pytest.approx(parts[1], rel=1e-3)


def test_the_curve_is_of_the_averaged_network_on_spread_images() -> None:
    images, held_out = Images(), Images().images[:5]
    result = train_unet(
        small_unet(), images, SCHEDULE, UNetTraining(6, 4, evaluate_every=4), held_out=held_out, progress=False
    )
    assert [point[0] for point in result.curve] == [4, 6]
    assert result.curve[-1][1] == evaluation_loss(result.network, to_float(images.images), SCHEDULE)
    assert result.curve[-1][2] == evaluation_loss(result.network, to_float(held_out), SCHEDULE)
    assert result.curve[0] != result.curve[1]


def test_indices_are_spread_over_all_classes() -> None:
    assert spread(5, 16) == [0, 1, 2, 3, 4]
    assert spread(10, 5) == [0, 2, 4, 6, 8]
    chosen = spread(50_000, 1024)
    assert (len(chosen), len(set(chosen)), chosen[0]) == (1024, 1024, 0)
    assert 49_900 < chosen[-1] < 50_000
    assert set(np.diff(chosen)) == {48, 49}


def test_the_rate_warms_up_and_falls_to_zero() -> None:
    settings = UNetTraining(steps=100, learning_rate=2.0, warmup_steps=10)
    rates = np.array([settings.rate(step) for step in range(100)])
    cosine = 1 + np.cos(np.pi * np.arange(100) / 100)
    assert np.allclose(rates, np.minimum(np.arange(1, 101) / 10, 1) * cosine)
    assert rates[99] < 0.001


def test_kinds_of_images_are_equal() -> None:
    """8-bit or floats, a tensor or a Dataset, with labels or without."""
    pixels = Images().images
    labelled = torch.utils.data.TensorDataset(pixels, torch.arange(20))
    floats = to_float(pixels)
    expected = weights(train(steps=2))
    for images in (pixels, floats, labelled, floats.double(), [image.numpy() for image in pixels]):
        assert torch.equal(weights(train(images, steps=2)), expected)
    assert torch.equal(floats, to_float(pixels))  # nothing was mirrored in place
    with pytest.raises(InputError, match=r"images are torch\.int64; expected uint8"):
        float_images(pixels.long(), [0])


class Recorder(torch.nn.Module):
    """Keeps what it is shown."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.register_buffer("calls", torch.zeros(()))
        self.shown: list[torch.Tensor] = []

    def forward(self, x: torch.Tensor, timestep: torch.Tensor) -> Out:
        if self.training:
            self.calls += 1
            self.shown.append(x.detach().clone())
        return Out(self.weight * x)


@pytest.mark.parametrize("flip", [False, True])
def test_half_of_the_images_are_mirrored(flip: bool) -> None:
    schedule = dv.NoiseSchedule.linear(10, 1e-8, 1.1e-8)  # next to no noise
    image = torch.linspace(-1, 1, 12).reshape(1, 1, 3, 4).repeat(3, 1, 1, 1)
    network = Recorder()
    settings = UNetTraining(10, batch_size=40, flip=flip)
    result = train_unet(network, image, schedule, settings, progress=False)
    shown = torch.cat(network.shown)
    assert len(shown) == 400
    straight = (shown - image[0]).abs().amax((1, 2, 3)) < 0.01
    mirrored = (shown - image[0].flip(-1)).abs().amax((1, 2, 3)) < 0.01
    assert bool((straight ^ mirrored).all())
    assert (160 < int(mirrored.sum()) < 240) if flip else not bool(mirrored.any())
    assert int(result.network.calls) == 10  # buffers follow  # type: ignore[union-attr]


def test_dropout_drops_anew_at_every_step() -> None:
    class Dropped(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = torch.nn.Parameter(torch.zeros(()))
            self.masks: list[tuple[bool, ...]] = []

        def forward(self, x: torch.Tensor, timestep: torch.Tensor) -> Out:
            if self.training:
                self.masks.append(tuple((torch.nn.functional.dropout(torch.ones(64)) > 0).tolist()))
            return Out(self.weight * x)

    runs = [Dropped() for _ in range(3)]
    for network, seed in zip(runs, (0, 0, 1), strict=True):
        settings = UNetTraining(5, batch_size=2, seed=seed)
        train_unet(network, torch.ones(4, 1, 2, 2), SCHEDULE, settings, progress=False)
    assert len(set(runs[0].masks)) == 5
    assert runs[0].masks == runs[1].masks
    assert not set(runs[0].masks) & set(runs[2].masks)


def test_the_average_is_that_of_the_weights() -> None:
    """diffusers' warm-up: after step k + 1 the decay is (1 + k)/(10 + k), at most `ema_decay`; after the first, 0."""

    class Drift(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = torch.nn.Parameter(torch.zeros(()))
            self.history: list[float] = []

        def forward(self, x: torch.Tensor, timestep: torch.Tensor) -> Out:
            if self.training:
                self.history.append(float(self.weight.detach()))
            return Out(self.weight * x)

    network = Drift()
    settings = UNetTraining(8, batch_size=4, learning_rate=0.1, warmup_steps=1, ema_decay=0.3)
    result = train_unet(network, torch.ones(4, 1, 2, 2), SCHEDULE, settings, progress=False)
    average = 0.0
    for step, weight in enumerate([*network.history[1:], float(network.weight.detach())]):
        decay = 0.0 if step == 0 else min((1 + step) / (10 + step), 0.3)
        average = decay * average + (1 - decay) * weight
    assert float(result.network.weight) == pytest.approx(average, rel=1e-5)  # type: ignore[arg-type]
    assert float(network.weight.detach()) != pytest.approx(average, rel=1e-3)


def test_precision_is_that_of_the_settings_whatever_accelerate_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    from accelerate.state import AcceleratorState

    expected = weights(train(steps=2))
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    AcceleratorState._reset_state(reset_partial_state=True)
    assert torch.equal(weights(train(steps=2)), expected)
    bf16 = train(steps=2, mixed_precision="bf16")
    assert not torch.equal(weights(bf16), expected)
    assert {parameter.dtype for parameter in bf16.network.parameters()} == {torch.float32}


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"steps": 0}, "steps=0 must be a whole number of at least 1"),
        ({"batch_size": 0}, "batch_size=0"),
        ({"warmup_steps": 0}, "warmup_steps=0"),
        ({"evaluate_every": 0}, "evaluate_every=0"),
        ({"learning_rate": 0.0}, r"learning_rate=0\.0 must be a positive number"),
        ({"learning_rate": float("nan")}, "learning_rate=nan"),
        ({"weight_decay": -0.1}, r"weight_decay=-0\.1 must be 0 or"),
        ({"ema_decay": 1.0}, r"ema_decay=1\.0 must be at least 0 and below 1"),
        ({"mixed_precision": "fp16"}, "mixed_precision is 'fp16'"),
    ],
)
def test_wrong_settings(wrong: dict[str, object], said: str) -> None:
    with pytest.raises(InputError, match=said):
        UNetTraining(**{"steps": 1, **wrong})  # type: ignore[arg-type]


def test_refusals() -> None:
    assert [share_of(12, 3, process) for process in range(3)] == [slice(0, 4), slice(4, 8), slice(8, 12)]
    with pytest.raises(InputError, match="batch_size=10 does not divide among 4 processes"):
        share_of(10, 4, 0)
    with pytest.raises(InputError, match="there are no images"):
        train(torch.zeros(0, 1, 8, 8))
    broken = Linear()
    broken.weight.data[:] = torch.nan
    with pytest.raises(NumericalError, match="step 0"):
        train_unet(broken, torch.zeros(4, 1, 4, 4), SCHEDULE, UNetTraining(steps=1), progress=False)
