"""Log-probabilities of steps [E13] against dense Gaussians of torch.distributions, for both schedulers and every
structure; gradients, ratios, and what has none."""

from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import pytest
import scipy.fft
import torch
from diffusers import DDPMPipeline, FlowMatchEulerDiscreteScheduler
from small_flows import HEAD_SHAPE, SHAPE, STRUCTURES, head_denoiser, normal, seeded, small_head, table
from torch.utils.checkpoint import checkpoint

import diffusion_var as dv
from diffusion_var.models.pretrained.layout import Layout

D = int(np.prod(SHAPE))
BETAS: dict[str, Any] = {"num_train_timesteps": 50, "beta_schedule": "scaled_linear", "beta_start": 0.002}
BETAS |= {"beta_end": 0.2, "prediction_type": "v_prediction", "clip_sample": True, "clip_sample_range": 0.8}
HEADS: dict[str, dict[str, Any]] = {"npr": {}, "factor dct": {"target": "factor", "structure": "dct"}}
# What log p may be off by, a dimension: of storage nothing is lost, it is of the value as stored.
CLOSE = 2e-6


@cache
def beta_table() -> dv.VarianceTable:
    def network(x_t: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
        return torch.tanh(x_t.flip(-1)) - 0.3 * x_t

    schedule = dv.NoiseSchedule.from_diffusers(BETAS)
    denoiser = dv.Denoiser(network, schedule, "v_prediction", SHAPE, clip=(-0.8, 0.8))
    images = 0.8 * np.tanh(np.random.default_rng(0).standard_normal((40, *SHAPE)))
    return dv.estimate(denoiser, images, 1e9, structures=STRUCTURES, indices=[1, 8, 20, 35, 50], progress=False)


def of_betas(structure: str, **options: Any) -> dv.AnalyticScheduler:
    made = dv.AnalyticScheduler.from_table(beta_table(), BETAS, structure=structure, **options)
    made.set_timesteps(6)
    return made


def of_flow(structure: str, **options: Any) -> dv.AnalyticFlowScheduler:
    theirs = FlowMatchEulerDiscreteScheduler(shift=3.0)
    made: dv.AnalyticFlowScheduler = dv.AnalyticFlowScheduler.from_table(
        table(), theirs, structure=structure, **options
    )
    made.set_timesteps(6)
    return made


BOTH: dict[str, Callable[..., Any]] = {"betas": of_betas, "flow": of_flow}


def kernel_at(scheduler: Any, k: int, eta: float | None = 1.0, tau: float | None = None) -> dv.ReverseKernel:
    """The step that begins at the k-th timestep."""
    if isinstance(scheduler, dv.AnalyticFlowScheduler):
        t, s = (dv.NoiseLevel.flow(float(sigma)) for sigma in scheduler.sigmas[k : k + 2])
        return dv.ReverseKernel.between(t, s, eta, tau)
    t, s = (int(scheduler.timesteps[i]) + 1 for i in (k, k + 1))
    return dv.ReverseKernel(scheduler.schedule, t, s, eta, tau=tau)


def orthonormal(structure: str, rotation: Any = None) -> np.ndarray:
    """B as a matrix (d, d): rows are the basis's elements."""
    if structure != "dct":
        return np.eye(D)
    images = np.eye(D).reshape(D, *SHAPE)
    return scipy.fft.dctn(images, axes=(1, 2, 3), norm="ortho").reshape(D, D).T


def dense(structure: str, variances: Any) -> torch.Tensor:
    """Bᵀ diag(variances) B, (d, d) float64."""
    B = orthonormal(structure)
    spread = np.broadcast_to(variances, SHAPE).ravel()
    return torch.from_numpy(B.T @ (spread[:, None] * B))


def reference(x: torch.Tensor, mean: torch.Tensor, covariance: torch.Tensor) -> torch.Tensor:
    """log N(x; mean, Σ) in nats, (B,) float64; Σ of (d, d), or one for each image."""
    gaussian = torch.distributions.MultivariateNormal(mean.double().flatten(1), covariance)
    return gaussian.log_prob(x.double().flatten(1))


@pytest.mark.parametrize("kind", BOTH)
@pytest.mark.parametrize("structure", STRUCTURES)
@pytest.mark.parametrize("noise", [{"eta": 1.0}, {"eta": 0.3}, {"tau": 1.7}], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_dense_gaussians(kind: str, structure: str, noise: dict[str, float], dtype: torch.dtype) -> None:
    scheduler = BOTH[kind](structure, **noise)
    x, F = normal(3, *SHAPE, dtype=dtype), 0.5 * normal(3, *SHAPE, seed=1, dtype=dtype)
    k = 2
    kernel = kernel_at(scheduler, k, noise.get("eta"), noise.get("tau"))
    held = table() if kind == "flow" else beta_table()
    variances = dv.Analytic(held, structure=structure).variance(kernel)
    if kind == "flow":
        scheduler.set_begin_index(k)
        v = held.posterior_variance(kernel.level_t, structure=structure)
        np.testing.assert_allclose(variances, kernel.lambda2 + kernel.gain**2 * v)  # [E2] itself
    out = scheduler.step(F, scheduler.timesteps[k], x, generator=seeded(), log_prob_reduction="sum")
    covariance = dense(structure, variances)
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    assert out.prev_sample.dtype == dtype
    assert out.prev_sample_mean.dtype == out.log_prob.dtype == out.std_dev_t.dtype == wide
    # The curve of a config has the table's variances to 1e-4, which a quadratic of d standard normals is off by.
    close = D * (2e-4 if kind == "flow" and structure in ("isotropic", "channel") else CLOSE)
    assert float((out.log_prob - reference(out.prev_sample, out.prev_sample_mean, covariance)).abs().max()) < close
    std = float(covariance.trace() / D) ** 0.5
    torch.testing.assert_close(out.std_dev_t, torch.full((1, 1, 1, 1), std, dtype=wide), rtol=1e-4, atol=0)
    by_dimension = again(scheduler, k, F, x, out.prev_sample)
    torch.testing.assert_close(by_dimension.log_prob, out.log_prob / D)
    assert list(out.keys()) == ["prev_sample", "prev_sample_mean", "std_dev_t", "log_prob", "pred_original_sample"]
    other = again(scheduler, k, F, x, normal(3, *SHAPE, seed=9, dtype=dtype), log_prob_reduction="sum")
    expected = reference(other.prev_sample, out.prev_sample_mean, covariance)
    assert float(((other.log_prob - expected) / expected).abs().max()) < (2e-3 if close > 1e-3 else 1e-5)


def again(scheduler: Any, k: int, F: torch.Tensor, x: torch.Tensor, stored: torch.Tensor, **options: Any) -> Any:
    """Scores what is stored; the scheduler may be anywhere."""
    before = getattr(scheduler, "step_index", None)
    out = scheduler.step(F, scheduler.timesteps[k], x, prev_sample=stored, **options)
    assert getattr(scheduler, "step_index", None) == before
    assert out.prev_sample is stored
    return out


# ---- heads ------------------------------------------------------------------------------------------------------


def with_head(spec: dict[str, Any]) -> tuple[dv.AnalyticFlowScheduler, Any]:
    from diffusers import DDPMScheduler

    pipe = DDPMPipeline(head_denoiser().network, DDPMScheduler())
    pipe.scheduler = FlowMatchEulerDiscreteScheduler(shift=2.0)
    pipe.scheduler = dv.AnalyticFlowScheduler.from_head(small_head(**spec), pipe)
    pipe.scheduler.set_timesteps(5)
    return pipe.scheduler, pipe


@pytest.mark.parametrize("name", HEADS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_heads(name: str, dtype: torch.dtype) -> None:
    scheduler, pipe = with_head(HEADS[name])
    x, t = normal(3, *HEAD_SHAPE, dtype=dtype), scheduler.timesteps[0]
    output = pipe.unet(x.float(), t).sample.to(dtype)
    out = scheduler.step(output, t, x, generator=seeded(), log_prob_reduction="sum")
    pipe.unet(x.float(), t)
    scored = scheduler.step(output, t, x, prev_sample=out.prev_sample, log_prob_reduction="sum")
    assert torch.equal(scored.log_prob, out.log_prob)
    head, kernel = small_head(**HEADS[name]), kernel_at(scheduler, 0)
    posterior = head.prepare(head_denoiser())(x.float(), kernel.level_t)
    held = head(posterior, kernel)
    assert held is not None
    d = int(np.prod(HEAD_SHAPE))
    columns = torch.eye(d, dtype=torch.float64).view(d, *HEAD_SHAPE)
    variance = held.variance.double().expand(3, *HEAD_SHAPE)
    matrices = []
    for each in variance:
        if name == "npr":
            matrices.append(each.flatten().diag())
        else:
            B = torch.from_numpy(scipy.fft.dctn(columns.numpy(), axes=(1, 2, 3), norm="ortho").reshape(d, d).T)
            matrices.append(B.T @ (each.flatten()[:, None] * B))
    covariance = torch.stack(matrices)
    expected = reference(out.prev_sample, out.prev_sample_mean, covariance)
    assert float((out.log_prob - expected).abs().max()) < 1e-5 * d
    std = (covariance.diagonal(dim1=1, dim2=2).mean(1)).sqrt()
    torch.testing.assert_close(out.std_dev_t.double(), std.view(3, 1, 1, 1), rtol=1e-5, atol=0)
    assert out.std_dev_t.shape == (3, 1, 1, 1)
    assert float(std.std()) > 0


@pytest.mark.parametrize("name", HEADS)
def test_heads_of_packed_samples(name: str) -> None:
    layout = Layout("tokens_2x2").of(HEAD_SHAPE)
    plain, pipe = with_head(HEADS[name])
    packed = dv.AnalyticFlowScheduler.from_config(plain.config, layout="tokens_2x2")
    packed.attach_head(plain.head)
    packed.set_timesteps(5)
    x, noise, features = normal(2, *HEAD_SHAPE), normal(2, *HEAD_SHAPE, seed=1), normal(2, 8, *HEAD_SHAPE[1:], seed=2)
    t, F, found = plain.timesteps[0], pipe.unet(x, plain.timesteps[0]).sample, []
    for scheduler, change in ((plain, lambda images: images), (packed, layout.samples)):
        given = change(F), t, change(x)
        found.append(scheduler.step(*given, variance_noise=change(noise), features=features))
    torch.testing.assert_close(found[1].prev_sample, layout.samples(found[0].prev_sample))
    torch.testing.assert_close(found[1].log_prob, found[0].log_prob)
    assert found[1].std_dev_t.shape == (2, 1, 1)


def test_features_of_one_of_several_evaluations() -> None:
    """Pipelines that guide by calls of their own evaluate the network twice a step: which is which is not guessed."""
    scheduler, pipe = with_head({})
    x, t = normal(2, *HEAD_SHAPE), scheduler.timesteps[0]
    pipe.unet(x, t)
    scheduler.set_timesteps(5)  # what came before a run is none of its own
    output = pipe.unet(x, t).sample
    assert scheduler.step(output, t, x).log_prob is not None
    for _ in range(2):
        output = pipe.unet(x, t).sample
    with pytest.raises(dv.InputError, match=r"evaluated 2 times since the last step, .* pass features= of that one"):
        scheduler.step(output, t, x)
    given = scheduler.step(output, t, x, features=normal(2, 8, *HEAD_SHAPE[1:]))
    assert given.log_prob is not None


def test_features_after_a_backward_pass_with_gradient_checkpointing() -> None:
    """It evaluates the network again, after the step: an evaluation that is none of the next step's."""
    scheduler, pipe = with_head({})
    x, t = normal(2, *HEAD_SHAPE).requires_grad_(), scheduler.timesteps[0]
    output = checkpoint(lambda x: pipe.unet(x, t).sample, x, use_reentrant=False)
    scheduler.step(output, t, x, prev_sample=normal(2, *HEAD_SHAPE, seed=1)).log_prob.sum().backward()
    output = pipe.unet(x, t).sample
    with pytest.raises(dv.InputError, match=r"evaluated 2 times .* in the backward pass of gradient checkpointing"):
        scheduler.step(output, t, x)


def test_no_gradient_through_a_heads_covariance() -> None:
    scheduler, _ = with_head({})
    x, t = normal(2, *HEAD_SHAPE), scheduler.timesteps[0]
    F, features = 0.1 * normal(2, *HEAD_SHAPE, seed=1), normal(2, 8, *HEAD_SHAPE[1:], seed=2)
    F.requires_grad_()
    features.requires_grad_()
    out = scheduler.step(F, t, x, features=features, prev_sample=normal(2, *HEAD_SHAPE, seed=3))
    out.log_prob.sum().backward()
    assert features.grad is None
    assert float(F.grad.abs().max()) > 0
    kernel = kernel_at(scheduler, 0)
    # ∂ log p/∂F = Σ⁻¹ (x_s − m) ∂m/∂F, and ∂m/∂F = −γ σ_t + c by [E1] at σ_t = 1.
    head = small_head()
    ones = torch.zeros(2, *HEAD_SHAPE)
    held = head(dv.Posterior(ones, ones, None, features.detach()), kernel)
    assert held is not None
    slope = -kernel.alpha_s * kernel.sigma_t + kernel.eps_gain * kernel.alpha_t
    expected = slope * (out.prev_sample - out.prev_sample_mean.detach()) / held.variance / int(np.prod(HEAD_SHAPE))
    torch.testing.assert_close(F.grad, expected, rtol=1e-4, atol=1e-7)


# ---- precision --------------------------------------------------------------------------------------------------


def under_autocast(step: Callable[..., Any], *given: Any, **options: Any) -> tuple[Any, Any]:
    """What a step gives without a training loop's autocast around it, and with it."""
    plain = step(*given, **options)
    with torch.autocast("cpu", torch.bfloat16):
        return plain, step(*given, **options)


@pytest.mark.parametrize("kind", BOTH)
def test_autocast_does_not_reach_a_step(kind: str) -> None:
    scheduler, x, F = BOTH[kind]("dct"), normal(2, *SHAPE), 0.3 * normal(2, *SHAPE, seed=1)
    t, noise = scheduler.timesteps[0], normal(2, *SHAPE, seed=2)

    def step(**options: Any) -> Any:
        scheduler.set_timesteps(6)
        return scheduler.step(F, t, x, log_prob_reduction="sum", **options)

    for options in ({"variance_noise": noise}, {"prev_sample": noise}):
        plain, cast = under_autocast(step, **options)
        assert plain.log_prob is not None
        for name, value in plain.items():
            assert torch.equal(cast[name], value)


def test_autocast_does_not_reach_a_head() -> None:
    scheduler, _ = with_head({})
    x, F, features = normal(2, *HEAD_SHAPE), normal(2, *HEAD_SHAPE, seed=1), normal(2, 8, *HEAD_SHAPE[1:], seed=2)
    given = {"features": features, "prev_sample": normal(2, *HEAD_SHAPE, seed=3)}
    plain, cast = under_autocast(scheduler.step, F, scheduler.timesteps[0], x, **given)
    assert torch.equal(cast.log_prob, plain.log_prob)


# ---- gradients and ratios ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", BOTH)
@pytest.mark.parametrize("structure", STRUCTURES)
def test_gradients_are_finite_differences(kind: str, structure: str) -> None:
    scheduler, k = BOTH[kind](structure, eta=0.7), 2
    x = 0.3 * normal(2, *SHAPE, dtype=torch.float64)
    F = (0.1 * normal(2, *SHAPE, seed=1, dtype=torch.float64)).requires_grad_()  # x̂_0 is not clipped
    stored = 0.3 * normal(2, *SHAPE, seed=2, dtype=torch.float64)

    def log_prob(output: torch.Tensor) -> torch.Tensor:
        return again(scheduler, k, output, x, stored, log_prob_reduction="sum").log_prob

    assert torch.autograd.gradcheck(log_prob, (F,), eps=1e-6, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", BOTH)
def test_a_sample_that_is_just_drawn_has_the_same_gradient(kind: str) -> None:
    """x_s moves with the mean that it is drawn around, but log p is of the number that is stored."""
    scheduler, k = BOTH[kind]("pixel"), 0
    x, grads = 0.3 * normal(2, *SHAPE), []
    F = (0.1 * normal(2, *SHAPE, seed=1)).requires_grad_()
    first = scheduler.step(F, scheduler.timesteps[k], x, generator=seeded())
    for out in (first, again(scheduler, k, F, x, first.prev_sample.detach())):
        grads.append(torch.autograd.grad(out.log_prob.sum(), F, retain_graph=True)[0])
    assert float(grads[0].abs().max()) > 0
    assert torch.equal(*grads)


@pytest.mark.parametrize("kind", BOTH)
@pytest.mark.parametrize("structure", STRUCTURES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_the_ratio_on_the_same_weights_is_one(kind: str, structure: str, dtype: torch.dtype, reduction: Any) -> None:
    scheduler, x, kept = BOTH[kind](structure), normal(4, *SHAPE, dtype=dtype), []
    weight = torch.nn.Parameter(torch.tensor(0.4))

    def network(x: torch.Tensor) -> torch.Tensor:
        return torch.tanh(weight * x.float()).to(dtype)

    generator = seeded(5)
    with torch.no_grad():
        for t in scheduler.timesteps:
            out = scheduler.step(network(x), t, x, generator=generator, log_prob_reduction=reduction)
            kept.append((x, t, out.prev_sample, out.log_prob))
            x = out.prev_sample
    assert kept[-1][3] is None  # the step to clean data adds no noise
    for x, t, stored, log_prob in [kept[i] for i in (3, 0, 4, 1, 2)]:
        out = scheduler.step(network(x), t, x, prev_sample=stored, log_prob_reduction=reduction)
        ratio = (out.log_prob - log_prob).exp()
        assert torch.equal(ratio, torch.ones(4))
        gradient = torch.autograd.grad(out.log_prob.mean(), weight)[0]
        assert gradient != 0


@pytest.mark.parametrize("kind", BOTH)
def test_a_better_mean_is_more_probable(kind: str) -> None:
    """½ (quadratic_old − quadratic_new): all else is the same for two policies."""
    scheduler, held = BOTH[kind]("dct"), table() if kind == "flow" else beta_table()
    x, F, t = 0.3 * normal(2, *SHAPE), 0.1 * normal(2, *SHAPE, seed=1), scheduler.timesteps[0]
    stored = scheduler.step(F, t, x, generator=seeded()).prev_sample
    before, moved = (again(scheduler, 0, scale * F, x, stored, log_prob_reduction="sum") for scale in (1.0, 1.05))
    covariance = dense("dct", dv.Analytic(held, structure="dct").variance(kernel_at(scheduler, 0)))
    inverse = covariance.inverse()
    quadratics = []
    for one in (before, moved):
        away = (stored - one.prev_sample_mean).double().flatten(1)
        quadratics.append(torch.einsum("bi,ij,bj->b", away, inverse, away))
    expected = 0.5 * (quadratics[0] - quadratics[1])
    torch.testing.assert_close((moved.log_prob - before.log_prob).double(), expected, rtol=1e-3, atol=2e-4)


# ---- where there is none ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", BOTH)
def test_without_noise(kind: str) -> None:
    """Steps of mixed windows: the ODE's in between, with no variance at all."""
    scheduler, x, F = BOTH[kind]("channel"), normal(2, *SHAPE), 0.3 * normal(2, *SHAPE, seed=1)
    t = scheduler.timesteps[0]
    plain = type(scheduler).from_config(scheduler.config, variance_type="fixed_small", eta=0.0)
    plain.set_timesteps(6)
    out, ode = scheduler.step(F, t, x, noise=False), plain.step(F, t, x)
    torch.testing.assert_close(out.prev_sample, ode.prev_sample, rtol=0, atol=1e-6)
    for one in (out, ode):
        assert one.log_prob is None
        assert torch.equal(one.std_dev_t, torch.zeros(1, 1, 1, 1))
    scored = scheduler.step(F, t, x, noise=False, prev_sample=x)
    assert scored.prev_sample is x
    assert scored.log_prob is None
    assert float(scheduler.step(F, scheduler.timesteps[1], x, generator=seeded()).std_dev_t) > 0


def test_a_singular_covariance_has_none() -> None:
    """Nothing is left to draw in some directions: v = 0 there, at η = 0."""
    from diffusion_var.covariance.reverse import StructuredCovariance
    from diffusion_var.pipelines.output import log_probability
    from diffusion_var.process.structure import Pixel

    variance = torch.ones(1, 2, 2)
    variance[0, 0, 0] = 0.0
    x = torch.zeros(3, 1, 2, 2)
    assert log_probability(StructuredCovariance(Pixel((1, 2, 2)), variance), x, x, "sum") is None
    whole = log_probability(StructuredCovariance(Pixel((1, 2, 2)), variance + 1.0), x, x, "sum")
    assert whole is not None
    expected = -0.5 * (4 * np.log(2 * np.pi) + 3 * np.log(2.0))
    torch.testing.assert_close(whole, torch.full((3,), float(expected)))


@pytest.mark.parametrize("kind", BOTH)
def test_refused(kind: str) -> None:
    scheduler, x = BOTH[kind]("isotropic"), normal(2, *SHAPE)
    t = scheduler.timesteps[0]
    with pytest.raises(dv.InputError, match=r"prev_sample has shape \(1, 3, 4, 6\), but sample has \(2, 3, 4, 6\)"):
        scheduler.step(x, t, x, prev_sample=x[:1])
    with pytest.raises(dv.InputError, match="log_prob_reduction='total' is not known; use one of mean, sum"):
        scheduler.step(x, t, x, log_prob_reduction="total")
    assert isinstance(scheduler.step(x, t, x, return_dict=False, prev_sample=x)[0], torch.Tensor)
