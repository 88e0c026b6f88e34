"""Products with the derivative of the mean, against exact covariances and differences; in every mode of the caller, at
several levels at once, for rows of a batch; and what cannot be differentiated is refused by name."""

import warnings
from typing import Any

import numpy as np
import pytest
import torch
from small_heads import SHAPE, denoiser
from small_pipelines import STEPS, save_dit, small_unet

import diffusion_var as dv
from diffusion_var.errors import InputError, NetworkError
from diffusion_var.models.derivative import Linearised
from diffusion_var.models.mean_jacobian import MeanJacobian
from diffusion_var.process.level import NoiseLevel

SCHEDULE = dv.NoiseSchedule.linear(100, 1e-3, 0.1)


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).standard_normal(shape)).float()


def mixture(shape: tuple[int, ...] = (3, 2, 2), schedule: dv.NoiseSchedule = SCHEDULE) -> dv.oracles.MixtureDenoiser:
    """Three Gaussians with covariances that share no basis."""
    d, stream = int(np.prod(shape)), np.random.default_rng(4)
    roots = stream.standard_normal((3, d, d)) * np.array([0.2, 0.05, 0.3])[:, None, None]
    covariances = roots @ roots.transpose(0, 2, 1) + 1e-3 * np.eye(d)
    means = 0.7 * stream.standard_normal((3, *shape))
    return dv.oracles.MixtureDenoiser(schedule, means, weights=[1, 2, 1], covariances=covariances)


def fixed(*directions: torch.Tensor) -> Any:
    """Probes that are the same at every level."""
    return lambda level, like: torch.stack(directions)


def jacobian_of(model: dv.Denoiser, x_t: torch.Tensor, n: Any, *directions: torch.Tensor, **options: Any) -> Any:
    condition = options.pop("condition", None)
    with torch.no_grad():
        found = model.with_jacobian(fixed(*directions) if directions else None, **options)(x_t, n, condition).jacobian
    assert isinstance(found, MeanJacobian)
    return found


def relative(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float((found.double() - expected.double()).norm() / expected.double().norm())


# ---- what they are --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("derivative", "tolerance"), [("forward", 1e-5), ("difference", 2e-3)])
@pytest.mark.parametrize("n", [1, 20, 60, 100])
def test_a_product_is_the_posterior_covariance_times_a_vector(n: int, derivative: Any, tolerance: float) -> None:
    """(σ²/α) J v = Cov[x_0|x_t] v for an exact mean: those that come with it, and those that are asked for later."""
    model, probe, other = mixture(), normal(3, 2, 2, seed=1), normal(4, 3, 2, 2, seed=2)
    alpha, sigma = SCHEDULE.coefficients(n, other)
    x_t = alpha * model.sample(4, seed=3) + sigma * normal(4, 3, 2, 2, seed=n)
    found = jacobian_of(model, x_t, n, probe, 2 * probe, derivative=derivative)
    covariance = model.posterior_covariance(x_t, n)
    first, second = found.probed
    assert torch.equal(first[0], probe.expand(4, -1, -1, -1))
    expected = (covariance @ probe.double().flatten()).view_as(x_t)
    assert relative(first[1], expected) < tolerance
    assert relative(second[1], 2 * expected) < tolerance
    expected = torch.einsum("bij,bj->bi", covariance, other.double().flatten(1)).view_as(x_t)
    assert relative(found.times(other), expected) < tolerance


@pytest.mark.parametrize("prediction", ["epsilon", "sample", "v_prediction"])
def test_forward_against_a_difference_on_a_network_with_attention(prediction: Any) -> None:
    network = small_unet(in_channels=1, out_channels=1).double()
    model = dv.Denoiser(network, SCHEDULE, prediction, shape=SHAPE, clip=None, data_range=None)
    x_t, v = normal(3, *SHAPE).double(), normal(3, *SHAPE, seed=1).double()
    exact = jacobian_of(model, x_t, 40).times(v)
    near = jacobian_of(model, x_t, 40, derivative="difference").times(v)
    assert 0 < relative(near, exact) < 2e-3


def test_where_the_mean_is_clipped_nothing_moves() -> None:
    """The derivative is that of the mean in use."""
    model = dv.Denoiser(lambda x, _: 0.0 * x, SCHEDULE, "sample", shape=(1, 2, 2), clip=(-1.0, 1.0))
    model.network = lambda x, _: 2.0 * x
    x_t = torch.tensor([[[[0.1, 0.9], [-0.3, -2.0]]]])
    level = SCHEDULE.level(50)
    moved = jacobian_of(model, x_t, 50, torch.ones(1, 2, 2)).probed[0][1]
    expected = 2.0 * level.sigma**2 / level.alpha * torch.tensor([[[[1.0, 0.0], [1.0, 0.0]]]])
    torch.testing.assert_close(moved, expected)


def test_the_posterior_is_the_same_as_without() -> None:
    model = denoiser().with_features()
    x_t = normal(3, *SHAPE)
    with torch.no_grad():
        plain = model(x_t, 20)
        found = model.with_jacobian(fixed(normal(*SHAPE)))(x_t, 20)
        again = model.with_jacobian(fixed(normal(*SHAPE))).without_jacobian()(x_t, 20)
    for name in ("mean", "eps", "features"):
        torch.testing.assert_close(getattr(found, name), getattr(plain, name), rtol=1e-5, atol=1e-5)
    assert plain.jacobian is None
    assert again.jacobian is None
    doubled = dv.Denoiser(lambda x, _: torch.cat([torch.tanh(x), x], 1), SCHEDULE, shape=SHAPE)
    extra = doubled.with_jacobian(fixed(normal(*SHAPE)))(x_t, 20).range
    assert extra is not None
    torch.testing.assert_close(extra, x_t)


# ---- batches --------------------------------------------------------------------------------------------------------


def of_levels(level: NoiseLevel, like: torch.Tensor) -> torch.Tensor:
    """Two probes, others at every level."""
    return torch.stack([torch.full_like(like[0], level.sigma), level.alpha * torch.ones_like(like[0]).cumsum(-1)])


@pytest.mark.parametrize("derivative", ["forward", "difference"])
def test_several_levels_in_a_batch_are_each_alone(derivative: Any) -> None:
    model = mixture().with_jacobian(of_levels, derivative)
    x_t, v, places = normal(4, 3, 2, 2), normal(4, 3, 2, 2, seed=1), [10, 70, 10, 100]
    levels = [SCHEDULE.level(n) for n in places]
    with torch.no_grad():
        together = [model(x_t, torch.tensor(places)).jacobian, model(x_t, levels).jacobian]
        for i, n in enumerate(places):
            alone = model(x_t[i : i + 1], n).jacobian
            assert alone is not None
            for found in together:
                assert found is not None
                for ours, theirs in zip(found.probed, alone.probed, strict=True):
                    assert torch.equal(ours[0][i], theirs[0][0])
                    torch.testing.assert_close(ours[1][i], theirs[1][0], rtol=1e-4, atol=1e-5)
                torch.testing.assert_close(found.times(v)[i], alone.times(v[i : i + 1])[0], rtol=1e-4, atol=1e-5)
    with pytest.raises(InputError, match="2 levels for 4 images"):
        model(x_t, levels[:2])


@pytest.mark.parametrize("n", [30, torch.tensor([5, 30, 60, 90, 100])])
@pytest.mark.parametrize("derivative", ["forward", "difference"])
def test_rows_of_a_batch_and_rows_of_these(n: Any, derivative: Any) -> None:
    def network(x: torch.Tensor, timestep: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
        return torch.tanh(x.roll(1, -1) * (1 + label.view(-1, 1, 1, 1)) + timestep.view(-1, 1, 1, 1) / 100)

    model = dv.Denoiser(network, SCHEDULE, shape=(1, 3, 3), clip=None, classes=9)
    x_t, v, labels = normal(5, 1, 3, 3), normal(5, 1, 3, 3, seed=1), torch.tensor([3, 0, 5, 1, 8])
    whole = jacobian_of(model, x_t, n, normal(1, 3, 3), condition=labels, derivative=derivative)
    expected = whole.times(v)
    for part, rows in ((slice(1, 4), [1, 2, 3]), (torch.tensor([4, 0]), [4, 0])):
        found = whole.rows(part)
        assert torch.equal(found.probed[0][1], whole.probed[0][1][rows])
        torch.testing.assert_close(found.times(v[rows]), expected[rows], rtol=1e-3, atol=1e-4)
    nested = whole.rows(slice(1, 4)).rows(torch.tensor([2, 0]))
    torch.testing.assert_close(nested.times(v[[3, 1]]), expected[[3, 1]], rtol=1e-3, atol=1e-4)


def test_without_signal_there_is_no_derivative() -> None:
    """Where α = 0, σ²/α is infinite and J is 0: none of a batch, or 0 beside images that have signal."""
    flow = dv.NoiseSchedule.flow(10)
    model = mixture(schedule=flow).with_jacobian(of_levels)
    x_t = normal(2, 3, 2, 2)
    with torch.no_grad():
        assert model(x_t, 10).jacobian is None
        found, alone = model(x_t, torch.tensor([10, 4])).jacobian, model(x_t[1:], 4).jacobian
    assert found is not None
    assert alone is not None
    for (_, ours), (_, theirs) in zip(found.probed, alone.probed, strict=True):
        assert not bool(ours[0].any())
        torch.testing.assert_close(ours[1], theirs[0], rtol=1e-5, atol=1e-6)
    assert not bool(found.times(x_t)[0].any())


# ---- whoever calls --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("derivative", ["forward", "difference"])
def test_in_every_mode_of_the_caller(derivative: Any) -> None:
    """Inference mode knows no derivatives, and a caller that wants gradients gets them of the mean alone."""
    model, v = denoiser(clip=None), normal(*SHAPE)
    model.network.requires_grad_(True)
    linearised = model.with_jacobian(fixed(v), derivative)
    x_t = normal(2, *SHAPE, seed=1)
    with torch.no_grad():
        expected = linearised(x_t, 20)
    assert expected.jacobian is not None
    with torch.inference_mode():
        inner = linearised(x_t.clone(), 20)
    assert inner.jacobian is not None
    assert not inner.mean.requires_grad
    x = x_t.clone().requires_grad_()
    outer = linearised(x, 20)
    assert outer.jacobian is not None
    assert outer.mean.requires_grad
    assert not outer.jacobian.probed[0][1].requires_grad
    assert not outer.jacobian.times(x).requires_grad
    (back,) = torch.autograd.grad(outer.mean, x, torch.ones_like(x_t))
    (plain,) = torch.autograd.grad(model(x, 20).mean, x, torch.ones_like(x_t))
    torch.testing.assert_close(back, plain)
    for found in (inner, outer):
        torch.testing.assert_close(found.mean.detach(), expected.mean, rtol=1e-5, atol=1e-5)
        ours = found.jacobian
        assert ours is not None
        torch.testing.assert_close(ours.probed[0][1], expected.jacobian.probed[0][1], rtol=1e-3, atol=1e-3)
    outer = outer.detached()
    assert not outer.mean.requires_grad


def test_the_first_derivative_warns_of_nothing() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        jacobian_of(denoiser(), normal(1, *SHAPE), 20, normal(*SHAPE))


@pytest.mark.parametrize("scale", [1.0, 3.0])
def test_of_a_transformer_with_conditions_and_guidance(scale: float, tmp_path: Any) -> None:
    model = dv.Denoiser.from_pretrained(save_dit(tmp_path / "dit"))
    model = model if scale == 1 else model.with_guidance(scale, torch.tensor(1000))
    x_t, v, labels = normal(2, *model.shape), normal(*model.shape, seed=1), torch.tensor([1, 2])
    found, near = (
        jacobian_of(model, x_t, STEPS // 2, v, condition=labels, derivative=derivative).probed[0][1]
        for derivative in ("forward", "difference")
    )
    assert 0 < relative(near, found) < 1e-2


def test_guided_by_a_classifier() -> None:
    """By differences alone, of the mean with its gradient."""

    class Classifier(torch.nn.Module):
        def forward(self, x: torch.Tensor, _: torch.Tensor) -> torch.Tensor:
            return torch.stack([torch.zeros(len(x)), x.square().sum((1, 2, 3))], 1)

    plain = dv.Denoiser(Network(torch.tanh), SCHEDULE, shape=SHAPE, clip=None, conditional=False)
    model, x_t, v = plain.with_classifier(Classifier(), 1.0), normal(2, *SHAPE), normal(*SHAPE, seed=1)
    labels, level = torch.tensor([1, 1]), SCHEDULE.level(60)
    found, expected = (
        jacobian_of(m, x_t.double(), 60, v.double(), condition=c, derivative="difference").probed[0][1]
        for m, c in ((model, labels), (plain, None))
    )
    # ∇ log p = 2 x (1 − p), p the sigmoid of |x|²: the mean moves by σ²/α of it.
    x = x_t.double()
    p = torch.sigmoid(x.square().sum((1, 2, 3))).view(-1, 1, 1, 1)
    along = (x * v).sum((1, 2, 3)).view(-1, 1, 1, 1)
    second = 2 * (1 - p) * v - 4 * p * (1 - p) * along * x
    torch.testing.assert_close(found - expected, (level.sigma**2 / level.alpha) ** 2 * second, rtol=1e-2, atol=1e-2)
    with pytest.raises(InputError, match=r'classifier.* take derivative="difference"'):
        jacobian_of(model, x_t, 60, v, condition=labels)


def test_of_a_compiled_network() -> None:
    plain = Network(torch.tanh)
    model, compiled = (
        dv.Denoiser(network, SCHEDULE, shape=SHAPE) for network in (plain, torch.compile(plain, backend="eager"))
    )
    x_t, v = normal(2, *SHAPE), normal(*SHAPE, seed=1)
    with torch.inference_mode():
        compiled(x_t, 40)  # compiled without a derivative
    found, expected = (jacobian_of(m, x_t, 40, v).probed[0][1] for m in (compiled, model))
    assert relative(found, expected) < 1e-5


def test_of_weights_in_half_precision() -> None:
    network = small_unet(in_channels=1, out_channels=1)
    x_t, v = normal(2, *SHAPE), normal(*SHAPE, seed=1)
    full = jacobian_of(dv.Denoiser(network, SCHEDULE, shape=SHAPE, clip=None), x_t, 60, v).probed[0][1]
    half = dv.Denoiser(network.to(torch.bfloat16), SCHEDULE, shape=SHAPE, clip=None)
    assert relative(jacobian_of(half, x_t, 60, v).probed[0][1], full) < 0.02
    with pytest.raises(InputError, match='computes in half precision; take derivative="forward"'):
        jacobian_of(half, x_t, 60, v, derivative="difference")


# ---- what cannot be differentiated ----------------------------------------------------------------------------------


class Doubled(torch.autograd.Function):
    """A function with a backward derivative and no forward one."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        return 2 * x

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> torch.Tensor:
        return 2 * gradient


class Layer(torch.nn.Module):
    """One that does what it is told with x."""

    def __init__(self, work: Any) -> None:
        super().__init__()
        self.work = work

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = self.work(x)
        return found


class Network(torch.nn.Module):
    def __init__(self, work: Any) -> None:
        super().__init__()
        self.first = torch.nn.Sequential(torch.nn.Conv2d(1, 1, 3, padding=1), Layer(work))

    def forward(self, x: torch.Tensor, _: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = self.first(x)
        return found


def as_array(x: torch.Tensor) -> torch.Tensor:
    return torch.from_numpy(np.tanh(x.detach().numpy()))


@pytest.mark.parametrize("work", [Doubled.apply, as_array, lambda x: torch.tanh(x, out=torch.empty_like(x))])
def test_a_layer_without_a_forward_derivative_is_named(work: Any) -> None:
    model = dv.Denoiser(Network(work), SCHEDULE, shape=(1, 4, 4), clip=None)
    x_t, v = normal(2, 1, 4, 4), normal(1, 4, 4, seed=1)
    sentence = r'no forward derivative: its layer first\.1 \(Layer\) says: .*; take derivative="difference"'
    with pytest.raises(InputError, match=sentence):
        jacobian_of(model, x_t, 40, v)
    near = jacobian_of(model, x_t, 40, v, derivative="difference").probed[0][1]
    if work is as_array:
        smooth = dv.Denoiser(Network(torch.tanh), SCHEDULE, shape=(1, 4, 4), clip=None)
        smooth.network.load_state_dict(model.network.state_dict())
        assert relative(near, jacobian_of(smooth, x_t, 40, v).probed[0][1]) < 5e-3


@pytest.mark.parametrize(
    "work", [lambda x: torch.tanh(x).detach(), lambda x: torch.tanh(x.data), torch.inference_mode()(torch.tanh)]
)
@pytest.mark.parametrize("prediction", ["epsilon", "sample"])
def test_a_network_that_keeps_its_derivative_to_itself(prediction: Any, work: Any) -> None:
    """Nothing fails then, and the product is a number times the probe."""
    network = Network(lambda x: work(x).clone())
    model = dv.Denoiser(network, SCHEDULE, prediction, shape=(1, 4, 4), clip=None)
    with pytest.raises(InputError, match="the network keeps its derivative to itself"):
        jacobian_of(model, normal(2, 1, 4, 4), 40, normal(1, 4, 4, seed=1))


def test_a_network_whose_derivative_is_a_number_is_none_of_these() -> None:
    model = dv.Denoiser(lambda x, _: 0.3 * x, SCHEDULE, "sample", shape=(1, 4, 4), clip=None)
    v, level = normal(1, 4, 4), SCHEDULE.level(40)
    found = jacobian_of(model, normal(2, 1, 4, 4), 40, v).probed[0][1]
    torch.testing.assert_close(found, 0.3 * level.sigma**2 / level.alpha * v.expand(2, -1, -1, -1))


def test_what_fails_anyway_fails_in_its_own_words() -> None:
    def work(_: torch.Tensor) -> torch.Tensor:
        raise RuntimeError("no such luck")

    model = dv.Denoiser(Network(work), SCHEDULE, shape=(1, 4, 4))
    with pytest.raises(NetworkError, match="no such luck"):
        jacobian_of(model, normal(1, 1, 4, 4), 40, normal(1, 4, 4))


def test_vectors_and_probes_of_other_shapes_are_refused_and_of_other_dtypes_converted() -> None:
    """In words of their own: the network is not to blame."""
    model, x_t, v = mixture(), normal(2, 3, 2, 2), normal(2, 3, 2, 2, seed=1)
    found = jacobian_of(model, x_t, 40)
    for given, shape in ((v[:1], r"\(1, 3, 2, 2\)"), (v[0], r"\(3, 2, 2\)")):
        with pytest.raises(
            InputError, match=rf"v has shape {shape}, but this posterior's products are of \(2, 3, 2, 2"
        ):
            found.times(given)
    with pytest.raises(InputError, match=r"v has shape .* products are of \(1, 3, 2, 2\)"):
        found.rows(slice(0, 1)).times(v)
    assert torch.equal(found.times(v.double()), found.times(v))
    with pytest.raises(InputError, match=r"probes have shape \(1, 3, 2\), but \(P, 3, 2, 2\) is expected"):
        jacobian_of(model, x_t, 40, torch.ones(3, 2))
    with pytest.raises(InputError, match="probes=3 must be a function"):
        model.with_jacobian(3)  # type: ignore[arg-type]


def test_refuses_autocast_and_unknown_derivatives() -> None:
    network = small_unet(in_channels=1, out_channels=1)
    model = dv.Denoiser(network, SCHEDULE, shape=SHAPE, autocast=torch.bfloat16)
    with pytest.raises(InputError, match="no derivative under autocast"):
        jacobian_of(model, normal(1, *SHAPE), 40, normal(*SHAPE))
    with pytest.raises(InputError, match="derivative='reverse'"):
        Linearised(None, "reverse")  # type: ignore[arg-type]
