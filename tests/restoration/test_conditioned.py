"""ConditionedDenoiser is a denoiser like any other: in samplers and solvers, at every kind of level, with conditions,
guidance, heads, learned variances and flows; and image i follows measurement i mod B."""

import json
from typing import Any

import numpy as np
import pytest
import small_heads
import torch
from measurements import SCHEDULE, SHAPE, Constant, dense, gaussian, halved, masked, matrix_of, measured, normal
from naive_restoration import naive_type_1, naive_type_2

import diffusion_var as dv
from diffusion_var.errors import InputError, NumericalError
from diffusion_var.process.structure import make_structure
from diffusion_var.restoration import ConjugateGradients
from diffusion_var.restoration.conditioned_mean import step_length
from diffusion_var.restoration.solver import cut_lanczos
from diffusion_var.sampling.euler_maruyama import EulerMaruyama
from diffusion_var.sampling.solvers import SolverSampler

TIGHT = ConjugateGradients(1e-12, 500)
GUIDANCE = pytest.mark.parametrize("guidance", ["I", "II"])
STEPS = [1, 60, 300, 1000]


def network(x: torch.Tensor, timestep: torch.Tensor, label: torch.Tensor | None = None) -> torch.Tensor:
    """No function of one pixel, and none that is linear; with labels, another for each."""
    out = torch.tanh(x.roll(1, -1)) * (0.3 + timestep.to(x).view(-1, 1, 1, 1) / 1000.0) + 0.5 * x
    return out if label is None else out * (0.5 + 0.3 * label.to(x).view(-1, 1, 1, 1))


class Counted(torch.nn.Module):
    """The network as a module that counts its passes, forward and back."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(1))
        self.forwards = self.backwards = 0

    def forward(self, x: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
        self.forwards += 1
        if x.requires_grad:
            x.register_hook(self._count)
        return self.weight * network(x, timestep)

    def _count(self, _: torch.Tensor) -> None:
        self.backwards += 1


def model(clip: Any = None, **options: Any) -> dv.Denoiser:
    return dv.Denoiser(network, SCHEDULE, shape=SHAPE, clip=clip, **options)


VARIANCE = torch.exp(normal(*SHAPE, seed=8) - 2.0)
COVARIANCE = Constant(make_structure("dct", SHAPE), VARIANCE)


def conditioned(guidance: Any = "I", base: Any = None, rows: int = 3, **options: Any) -> dv.ConditionedDenoiser:
    base = model() if base is None else base
    images = normal(rows, *SHAPE, seed=2).float().clamp(-1.0, 1.0)
    covariance = options.pop("covariance", COVARIANCE)
    return dv.ConditionedDenoiser(base, covariance, measured(halved, images), guidance, **options)


def close(a: torch.Tensor, b: torch.Tensor, within: float) -> None:
    assert float((a.double() - b.double()).abs().max()) < within


def naive(base: Any, guidance: str, x_t: torch.Tensor, n: int, y: torch.Tensor, condition: Any = None) -> torch.Tensor:
    """One image (1, …), with dense matrices; the constant covariance and means of 2 × 2 pixels."""

    def mean(x: torch.Tensor) -> torch.Tensor:
        return base(x.view_as(x_t), n, condition).mean.flatten()

    x = x_t.double().flatten()
    A, R = matrix_of(halved), 0.01 * np.eye(18)
    sigma_0, known = dense(COVARIANCE.structure, VARIANCE), mean(x).detach().numpy()
    if guidance == "II":
        found = naive_type_2(known, sigma_0, A, R, y.flatten().double().numpy())
    else:
        J = torch.autograd.functional.jacobian(mean, x).numpy()
        alpha, sigma = SCHEDULE.alpha[n], SCHEDULE.sigma[n]
        found = naive_type_1(known, J, alpha, sigma, sigma_0, A, R, y.flatten().double().numpy())
    return torch.from_numpy(found).view_as(x_t)


# ---- levels, rows, precision ----------------------------------------------------------------------------------------


@GUIDANCE
def test_every_kind_of_level_is_the_plain_formula(guidance: Any) -> None:
    """One index, indices for each, a level, levels for each: all give each image its own level and measurement."""
    den = conditioned(guidance, solver=TIGHT)
    x_t, indices = normal(3, *SHAPE), [60, 1, 60]
    levels = [SCHEDULE.level(n) for n in indices]
    expected = torch.cat([naive(model(), guidance, x_t[i : i + 1], indices[i], den.measurement.y[i]) for i in range(3)])
    for place in (torch.tensor(indices), levels):
        posterior = den(x_t, place)
        close(posterior.mean, expected, 1e-8)
        alpha, sigma = (
            torch.tensor([getattr(level, k) for level in levels], dtype=torch.float64) for k in ("alpha", "sigma")
        )
        close(alpha.view(3, 1, 1, 1) * posterior.mean + sigma.view(3, 1, 1, 1) * posterior.eps, x_t, 1e-12)
    for i, n in enumerate(indices):
        for place in (n, torch.tensor(n), SCHEDULE.level(n)):
            close(den(x_t, place).mean[i], expected[i], 1e-8)
    off_grid = dv.NoiseLevel(0.8, 0.5, 120.5)
    close(den(x_t, [off_grid] * 3).mean, den(x_t, off_grid).mean, 1e-12)
    assert torch.equal(den.residual(x_t, torch.tensor(indices))[1:2], den.residual(x_t, 1)[1:2])


@GUIDANCE
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_results_have_the_precision_of_x_t_and_no_graph_whatever_mode_the_caller_is_in(
    guidance: Any, dtype: torch.dtype
) -> None:
    den, x_t = conditioned(guidance), normal(3, *SHAPE).to(dtype)
    expected = den(x_t, 300)
    assert expected.mean.dtype == expected.eps.dtype == dtype
    assert not expected.mean.requires_grad
    for mode in (torch.inference_mode, torch.no_grad, torch.enable_grad):
        with mode():
            own = x_t.clone()
            assert torch.equal(den(own, 300).mean, expected.mean)
            assert torch.equal(den(own, 300).eps, expected.eps)
    given = x_t.clone().requires_grad_()
    den(given, 300)
    assert given.grad is None


@GUIDANCE
def test_a_layer_for_an_operator_keeps_no_graph_and_autocast_is_for_networks(
    guidance: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its parameters want gradients, and each product of a solve would be kept for them."""
    layer = torch.nn.Conv2d(3, 3, 3, padding=1, bias=False)
    with torch.no_grad():
        layer.weight.copy_(normal(3, 3, 3, 3, seed=4))
    x_t = normal(3, *SHAPE).float()
    den = dv.ConditionedDenoiser(model(), COVARIANCE, dv.Measurement(layer(x_t), layer), guidance)
    solutions: list[torch.Tensor] = []
    counted = dv.ConditionedDenoiser.counted
    monkeypatch.setattr(den, "counted", lambda found: solutions.append(found.u) or counted(den, found))
    expected = den(x_t, 300).mean
    assert not solutions[0].requires_grad
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(den(x_t, 300).mean, expected)


@GUIDANCE
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_solved_in_float32(guidance: Any, dtype: torch.dtype) -> None:
    """What half precision loses is the last rounding alone."""
    den, x_t = conditioned(guidance), normal(3, *SHAPE).to(dtype)
    found, expected = den(x_t, 300), den(x_t.float(), 300)
    assert found.mean.dtype == found.eps.dtype == dtype
    assert torch.equal(found.mean, expected.mean.to(dtype))
    assert torch.equal(den.residual(x_t, 300), den.residual(x_t.float(), 300))


@GUIDANCE
def test_a_step_is_one_evaluation_and_for_type_1_a_backward_pass(guidance: Any) -> None:
    counted = Counted()
    den = conditioned(guidance, dv.Denoiser(counted, SCHEDULE, shape=SHAPE, clip=None))
    dv.Sampler(den, dv.FixedSmall(), STEPS, eta=1.0).sample(3, batch_size=3)
    assert counted.forwards == len(STEPS)
    assert counted.backwards == (len(STEPS) if guidance == "I" else 0)
    assert counted.weight.grad is None


def test_rows_of_ones_own() -> None:
    den, x_t = conditioned(), normal(3, *SHAPE)
    expected = den(x_t, 300).mean
    rows = [2, 0, 2, 1, 0]
    found = den(x_t[rows], 300, den.rows_condition(rows)).mean
    close(found, expected[rows], 1e-6)
    other = den(x_t, 300, den.rows_condition([1, 2, 0])).mean
    assert float((other - expected).abs().max()) > 0.1
    one = conditioned(rows=1)
    assert one(x_t, 300).mean.shape == x_t.shape  # of a single measurement all images
    with pytest.raises(InputError, match=r"5 images and 3 measurements.*denoiser\.rows_condition\(rows\)"):
        den(x_t[rows], 300)
    for wrong in ([0, 1], [0, 1, 3], [0, -1, 1]):
        with pytest.raises(InputError, match="rows of y must be 3 numbers from 0 to 2, one for each image"):
            den(x_t, 300, den.rows_condition(wrong))
    with pytest.raises(InputError, match="2 levels for 3 images"):
        den(x_t, [SCHEDULE.level(3)] * 2)


@pytest.mark.parametrize("covariance", [dv.FixedSmall(), COVARIANCE, None])
def test_image_i_of_a_run_has_measurement_i_mod_b_whatever_the_batches(covariance: Any) -> None:
    """With little noise the samples say which measurement they followed."""
    base, known = gaussian("pixel")
    images = base.sample(3, seed=1)
    den = dv.ConditionedDenoiser(base, known, measured(masked(), images, 0.01))
    sampler = dv.Sampler(den, den.posterior_noise() if covariance is None else covariance, STEPS, eta=1.0)
    whole = sampler.sample(8, seed=3, batch_size=8)
    for batch_size in (1, 3, 5):
        close(sampler.sample(8, seed=3, batch_size=batch_size), whole, 1e-4)
    parts = torch.cat(list(sampler.stream([5, 4, 7], seed=3, batch_size=2)))
    close(parts, whole[[5, 4, 7]], 1e-4)
    mask = masked()(torch.ones(1, *SHAPE))[0] != 0
    apart = (masked()(whole)[:, None] - den.measurement.y[None])[..., mask].abs().mean(-1)
    if covariance is not COVARIANCE:  # which adds noise that does not know of the measurement
        assert apart.argmin(1).tolist() == [i % 3 for i in range(8)]
        assert float(apart.min(1).values.max()) < 0.05


def test_the_length_of_a_step() -> None:
    """⟨u, r⟩/⟨u, S_J u⟩, at most 1, and 1 where S_J is not positive along u; each image its own."""
    u, r = torch.ones(4, 2), torch.tensor([[1.0, 2.0], [1.0, 2.0], [1.0, 2.0], [-1.0, -2.0]])
    product = torch.tensor([[2.0, 4.0], [0.5, 1.0], [-1.0, -2.0], [2.0, 4.0]])
    found = step_length(r, u, product)
    assert found.dtype == torch.float64
    assert found.tolist() == [0.5, 1.0, 1.0, 0.0]


def test_a_covariance_that_is_too_small_overshoots_unless_it_is_damped() -> None:
    """A fiftieth of Σ asks for a correction that is many times too long; damped, the residual is not made larger."""
    base, known = gaussian("dct")
    images, n = base.sample(3, seed=1).double(), 600
    measurement = measured(halved, images, 0.05)
    x_t = SCHEDULE.alpha[n] * images + SCHEDULE.sigma[n] * normal(3, *SHAPE)

    def left(mean: torch.Tensor) -> torch.Tensor:
        return (measurement.y - halved(mean)).flatten(1).norm(dim=1)

    small, before = dv.Scaled(known, 0.02), left(base(x_t, n).mean)
    damped, as_published = (
        dv.ConditionedDenoiser(base, small, measurement, "I", TIGHT, damped=damped)(x_t, n).mean
        for damped in (True, False)
    )
    assert bool((left(as_published) > 3.0 * before).all())
    assert bool((left(damped) < before).all())
    exact = [
        dv.ConditionedDenoiser(base, known, measurement, "I", TIGHT, damped=damped)(x_t, n).mean
        for damped in (True, False)
    ]
    close(exact[0], exact[1], 1e-10)  # where Σ is right there is nothing to shorten


# ---- other denoisers ------------------------------------------------------------------------------------------------


@GUIDANCE
@pytest.mark.parametrize("prediction", ["epsilon", "sample", "v_prediction"])
def test_every_prediction_is_the_plain_formula(guidance: Any, prediction: Any) -> None:
    base = model(prediction=prediction)
    den, x_t = conditioned(guidance, base, solver=TIGHT), normal(3, *SHAPE)
    for i in range(3):
        expected = naive(base, guidance, x_t[i : i + 1], 60, den.measurement.y[i])
        close(den(x_t, 60).mean[i : i + 1], expected, 1e-8)


@GUIDANCE
def test_labels_and_guidance_are_the_models_own(guidance: Any) -> None:
    """Labels go to the network beside the rows; J is that of the guided mean."""
    base = model(conditional=True, classes=4)
    labels, x_t = torch.tensor([0, 3, 1]), normal(3, *SHAPE)
    for scale in (1.0, 2.5):
        guided = base.with_guidance(scale, torch.tensor(2))
        den = conditioned(guidance, guided, solver=TIGHT)
        remade = conditioned(guidance, base, solver=TIGHT).with_guidance(scale, torch.tensor(2))
        for i in range(3):
            own = labels[i : i + 1]
            expected = naive(guided, guidance, x_t[i : i + 1], 60, den.measurement.y[i], own)
            close(den(x_t, 60, labels).mean[i : i + 1], expected, 1e-8)
            close(remade(x_t, 60, labels).mean[i : i + 1], expected, 1e-8)
    two = den(x_t[[1, 1]], 60, den.rows_condition([0, 2], labels[[1, 0]]))
    each = [den(x_t[1:2], 60, den.rows_condition([r], labels[k : k + 1])).mean for r, k in ((0, 1), (2, 0))]
    close(two.mean, torch.cat(each), 1e-9)
    close(den(x_t, [SCHEDULE.level(60)] * 3, labels).mean, den(x_t, 60, labels).mean, 1e-9)
    sampler = dv.Sampler(den, dv.FixedSmall(), STEPS, eta=0.0)
    whole = sampler.sample(5, batch_size=5, conditions=torch.tensor([0, 1, 2, 3, 0]))
    close(sampler.sample(5, batch_size=2, conditions=torch.tensor([0, 1, 2, 3, 0])), whole, 1e-3)


@GUIDANCE
def test_a_classifiers_guidance_has_its_share_in_j(guidance: Any) -> None:
    weights = normal(4, 72, seed=5)
    base = model(conditional=False).with_classifier(lambda x, _: x.flatten(1) @ weights.T.to(x), 2.0)
    labels, x_t = torch.tensor([0, 3, 1]), normal(3, *SHAPE)
    den = conditioned(guidance, base, solver=TIGHT)
    for i in range(3):
        expected = naive(base, guidance, x_t[i : i + 1], 60, den.measurement.y[i], labels[i : i + 1])
        close(den(x_t, 60, labels).mean[i : i + 1], expected, 1e-8)


@GUIDANCE
def test_clipping(guidance: Any) -> None:
    """The conditioned mean stays within the bounds, and ε̂ is that of the mean that is left."""
    den, x_t = conditioned(guidance, model((-0.3, 0.4))), 2.0 * normal(3, *SHAPE)
    posterior = den(x_t, 300)
    assert float(posterior.mean.min()) == pytest.approx(-0.3, abs=1e-12)
    assert float(posterior.mean.max()) == pytest.approx(0.4, abs=1e-12)
    close(SCHEDULE.alpha[300] * posterior.mean + SCHEDULE.sigma[300] * posterior.eps, x_t, 1e-9)


@GUIDANCE
def test_a_flow_begins_without_signal(guidance: Any) -> None:
    """At α = 0, x_t says nothing: E[x_0|y], with the data's own covariance."""
    schedule = dv.NoiseSchedule.flow(50)
    base, known = gaussian("dct", schedule=schedule)
    images = base.sample(3, seed=1).double()
    den = dv.ConditionedDenoiser(base, known, measured(halved, images), guidance, TIGHT)
    x_t = normal(3, *SHAPE)
    matrix, prior = matrix_of(halved), dense(known.structure, known.data_variance)
    mean = base.mean.flatten().numpy()
    for i in range(3):
        y = den.measurement.y[i].flatten().numpy()
        expected = naive_type_2(mean, prior, matrix, 0.01 * np.eye(18), y)
        close(den(x_t, 50).mean[i].flatten(), torch.from_numpy(expected), 1e-9)
    images = dv.Sampler(den, dv.FixedSmall(), 8, eta=0.0).sample(4, batch_size=3)
    assert bool(torch.isfinite(images).all())


@GUIDANCE
def test_with_a_head(guidance: Any) -> None:
    """The head reads features of the same evaluation; a trunk is not run twice."""
    head = small_heads.head(scale=0.3)
    base = small_heads.denoiser()
    y = normal(2, *small_heads.SHAPE).float()
    den = dv.ConditionedDenoiser(base, head, dv.Measurement(y, lambda x: x, noise=0.2), guidance, TIGHT)
    x_t = normal(2, *small_heads.SHAPE, seed=3).float()
    posterior = head.prepare(base)(x_t, 20)
    assert posterior.features is not None
    known = head.posterior_covariance(posterior, base.schedule.level(20))
    assert known.variance.ndim == 4
    if guidance == "II":
        u = (y - posterior.mean) / (known.variance + 0.04)
        expected = (posterior.mean + known.variance * u).clamp(-1.0, 1.0)
        close(den(x_t, 20).mean, expected.detach(), 1e-5)
    sampler = dv.Sampler(den, head, [1, 20, 50], eta=1.0)
    close(sampler.sample(4, batch_size=4), sampler.sample(4, batch_size=3), 1e-3)


@GUIDANCE
def test_with_a_learned_range(guidance: Any) -> None:
    """A network of 2C channels: what its variance of the step to the index before leaves for x_0."""

    def doubled(x: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
        return torch.cat([network(x, timestep), torch.tanh(x)], 1)

    base = dv.Denoiser(doubled, SCHEDULE, shape=SHAPE, clip=None)
    images = normal(3, *SHAPE, seed=2)
    den = dv.ConditionedDenoiser(base, dv.LearnedRange(), measured(lambda x: x, images), guidance)
    x_t, n = normal(3, *SHAPE), 300
    posterior = base(x_t, n)
    kernel = dv.ReverseKernel(SCHEDULE, n, n - 1)
    v = torch.exp(
        (torch.tanh(x_t) + 1) / 2 * np.log(kernel.beta) + (1 - torch.tanh(x_t)) / 2 * np.log(kernel.beta_tilde)
    )
    v = (v - kernel.lambda2).clamp_min(0.0) / kernel.gain**2
    u = (den.measurement.y - posterior.mean) / (v + 0.01)
    if guidance == "II":
        close(den(x_t, n).mean, posterior.mean + v * u, 1e-8)
    close(den.residual(x_t, n), (u * (den.measurement.y - posterior.mean)).flatten(1).mean(1), 1e-8)
    assert den(x_t, n).range is not None
    with pytest.raises(InputError, match="is of none; take indices of the denoiser's schedule"):
        den(x_t, dv.NoiseLevel(0.8, 0.5, 120.5))


def test_below_a_level_the_covariance_above_it_the_constant() -> None:
    den = conditioned("II", below=0.5)
    own, constant = conditioned("II"), conditioned("II", covariance=dv.PiGDM())
    x_t = normal(3, *SHAPE)
    ratio = SCHEDULE.sigma / np.maximum(SCHEDULE.alpha, 1e-12)
    last = int(np.flatnonzero(ratio < 0.5)[-1])
    assert torch.equal(den(x_t, last).mean, own(x_t, last).mean)
    assert torch.equal(den(x_t, last + 1).mean, constant(x_t, last + 1).mean)
    assert float((own(x_t, last).mean - constant(x_t, last).mean).abs().max()) > 1e-3


# ---- in samplers and solvers ----------------------------------------------------------------------------------------


@GUIDANCE
@pytest.mark.parametrize("solver", ["dpm_solver_pp", "unipc", "euler", "heun"])
def test_in_diffusers_solvers(guidance: Any, solver: str) -> None:
    """A Gaussian's samples come near their measurements, and do not depend on the batches."""
    base, known = gaussian("dct")
    den = dv.ConditionedDenoiser(base, known, measured(halved, base.sample(3, seed=1), 0.05), guidance)
    sampler = SolverSampler(den, solver, 12)
    images = sampler.sample(6, batch_size=6)
    close(sampler.sample(6, batch_size=4), images, 1e-3)
    away = halved(images) - den.measurement.y[torch.arange(6) % 3]
    assert float(away.abs().mean()) < 0.15


@GUIDANCE
def test_in_euler_maruyama_and_backwards(guidance: Any) -> None:
    base, known = gaussian("dct")
    den = dv.ConditionedDenoiser(base, known, measured(halved, base.sample(3, seed=1), 0.05), guidance)
    steps = [1, 100, 300, 600]
    sampler = EulerMaruyama(den, den.posterior_noise(), steps)
    close(sampler.sample(5, batch_size=5), sampler.sample(5, batch_size=2), 1e-3)
    ddim = dv.Sampler(den, dv.FixedSmall(), list(range(20, 620, 20)), eta=0.0)
    images = base.sample(3, seed=1)
    start = ddim.invert(images, batch_size=2, iterations=3)
    assert start.shape == images.shape
    assert bool(torch.isfinite(start).all())


def test_what_it_is_conditioned_on_tells_runs_apart() -> None:
    """What `Sampler` compares between processes, and `restore` with a checkpoint's: y, its noise, Σ, and how."""

    def facts(std: float = 0.1, guidance: Any = "II", shift: float = 0.0, **options: Any) -> dict[str, Any]:
        images = normal(3, *SHAPE, seed=2).float() + shift
        options = {"covariance": COVARIANCE, **options}
        measurement = measured(halved, images, std)
        den = dv.ConditionedDenoiser(model(), options.pop("covariance"), measurement, guidance, **options)
        return den.conditioned_on()

    first = facts()
    assert json.loads(json.dumps(first)) == first
    assert facts() == first
    changes: list[dict[str, Any]] = [
        {"std": 0.2},
        {"guidance": "I"},
        {"shift": 0.5},
        {"covariance": dv.PiGDM()},
        {"below": 0.5},
        {"damped": False},
        {"solver": "cg"},
        {"solver": ConjugateGradients(1e-3)},
    ]
    told = [json.dumps(facts(**change)) for change in changes]
    assert len({json.dumps(first), *told}) == len(changes) + 1
    assert model().conditioned_on() == {}


# ---- what is counted ------------------------------------------------------------------------------------------------


def test_solves_that_did_not_converge_are_counted_and_said_once(recwarn: pytest.WarningsRecorder) -> None:
    den = conditioned("II", solver=ConjugateGradients(1e-6, 2))
    with pytest.warns(UserWarning, match=r"of 16 solves of S u = r, 16 did not reach their tolerance .* and 0"):
        dv.Sampler(den, dv.FixedSmall(), STEPS, eta=1.0).sample(4, batch_size=4)
    assert den.counts() == [0, 0, 0, 0]
    den(normal(3, *SHAPE), 300)
    assert den.counts() == [3, 3, 0, 6]
    den.add_counts([2, 1, 1, 4])
    assert den.counts() == [5, 4, 1, 10]
    with pytest.warns(UserWarning, match="of 5 solves .* 4 did not .* and 1 met a direction"):
        den.report()
    recwarn.clear()
    den.report()
    fine = conditioned("II")
    dv.Sampler(fine, dv.FixedSmall(), STEPS).sample(2, batch_size=2)
    fine.report()
    assert [str(w.message) for w in recwarn if "solves" in str(w.message)] == []


NAN_SETTINGS: list[dict[str, Any]] = [
    {},
    {"solver": "cg"},
    {"covariance": dv.PiGDM()},
    {"covariance": dv.NetworkJacobian()},
]


@GUIDANCE
@pytest.mark.parametrize("options", NAN_SETTINGS)
def test_nan_is_said(guidance: Any, options: dict[str, Any]) -> None:
    """In the network's output, whatever solves; and in its derivative, where that is taken."""
    x_t = normal(3, *SHAPE).float()
    broken = dv.Denoiser(lambda x, t: x * float("nan"), SCHEDULE, shape=SHAPE, clip=(-1.0, 1.0))
    den = conditioned(guidance, broken, **options)
    for call in (den, den.residual):
        with pytest.raises(NumericalError, match="y − A x̂_0 is not finite at index 300"):
            call(x_t, 300)
    steep = dv.Denoiser(lambda x, t: 0.5 * x + (0.0 * x).sqrt(), SCHEDULE, shape=SHAPE, clip=None)
    den = conditioned(guidance, steep, **options)
    if guidance == "I" or isinstance(den.given_covariance, dv.NetworkJacobian):
        with pytest.raises(NumericalError, match="is not finite at index 300"):
            den(x_t.abs(), 300)
    else:
        assert bool(torch.isfinite(den(x_t.abs(), 300).mean).all())


def test_an_image_without_a_finite_product_is_said_beside_others() -> None:
    S, r = torch.eye(4, dtype=torch.float64).repeat(3, 1, 1), normal(3, 4)
    S[0] = torch.diag(torch.tensor([1.0, 2.0, 3.0, 4.0]))
    S[1, 0, 0] = float("nan")

    def product(u: torch.Tensor) -> torch.Tensor:
        return (S @ u[..., None])[..., 0]

    for found in (ConjugateGradients()(product, r), cut_lanczos(product, r, 3, 0.1)):
        assert torch.isfinite(found.u).all(1).tolist() == [True, False, True]
