"""The hybrid loss: its bound against torch.distributions and the likelihoods' own terms, its gradients, its optimum."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch.distributions import Normal, kl_divergence

import diffusion_var as dv
from diffusion_var.covariance.reverse import StepCovariances
from diffusion_var.data.images import to_float
from diffusion_var.errors import InputError
from diffusion_var.likelihood.decoder import make_decoder
from diffusion_var.likelihood.terms import BoundTerms, Evaluation
from diffusion_var.randomness import generator, normal
from diffusion_var.training.hybrid_loss import hybrid_loss, levels_held, range_bound, step_coefficients
from diffusion_var.training.loss import evaluation_loss, simple_loss, spread
from diffusion_var.training.unet import FINGERPRINT_IMAGES, UNetTraining, train_unet

BETAS = np.linspace(1e-3, 0.1, 100)
SCHEDULE = dv.NoiseSchedule.from_betas(BETAS)
COEFFICIENTS = step_coefficients(SCHEDULE)
SHAPE = (2, 3, 4)
D = math.prod(SHAPE)
N_ROWS = torch.tensor([1, 2, 100, 1, 37, 3, 99, 2])


def batch(levels: int | None) -> dict[str, torch.Tensor]:
    """Images on levels (both ends among them) or between, noise, an imperfect ε̂ and a raw range; all float64."""
    stream = np.random.default_rng(4)
    pixels = torch.from_numpy(stream.integers(0, 256, (len(N_ROWS), *SHAPE)))
    pixels[:, 0, 0, :2] = torch.tensor([0, 255])
    x_0 = pixels.double() / 127.5 - 1 if levels else torch.from_numpy(stream.uniform(-1, 1, pixels.shape))
    eps, error, raw = (torch.from_numpy(stream.standard_normal(pixels.shape)) for _ in range(3))
    return {"raw": raw, "eps_hat": eps + 0.7 * error, "x_0": x_0, "eps": eps}


def by_hand(row: int, n: int, given: dict[str, torch.Tensor], levels: int | None) -> float:
    """A term in bits/dim from the betas alone: DDPM eq. 7, Improved DDPM eq. 15, DDPM eq. 13 at n = 1."""
    raw, eps_hat, x_0, eps = (given[name][row] for name in ("raw", "eps_hat", "x_0", "eps"))
    alpha_bar = np.append(1.0, np.cumprod(1 - BETAS))
    beta, beta_tilde = (lambda k: BETAS[k - 1]), (lambda k: BETAS[k - 1] * (1 - alpha_bar[k - 1]) / (1 - alpha_bar[k]))
    f = (raw + 1) / 2
    std = (f * math.log(beta(n)) + (1 - f) * math.log(beta_tilde(max(n, 2)))).exp().sqrt()
    x_t = math.sqrt(alpha_bar[n]) * x_0 + math.sqrt(1 - alpha_bar[n]) * eps
    clean = (x_t - math.sqrt(1 - alpha_bar[n]) * eps_hat) / math.sqrt(alpha_bar[n])
    if n == 1 and levels is None:
        nats = -Normal(clean, std).log_prob(x_0)
    elif n == 1:
        p = Normal(clean, std)
        upper = torch.where(x_0 == 1, 1.0, p.cdf(x_0 + 1 / 255))
        nats = -(upper - torch.where(x_0 == -1, 0.0, p.cdf(x_0 - 1 / 255))).log()
    else:
        from_clean = math.sqrt(alpha_bar[n - 1]) * beta(n) / (1 - alpha_bar[n])
        from_noisy = math.sqrt(1 - beta(n)) * (1 - alpha_bar[n - 1]) / (1 - alpha_bar[n])
        q = Normal(from_clean * x_0 + from_noisy * x_t, math.sqrt(beta_tilde(n)))
        nats = kl_divergence(q, Normal(from_clean * clean + from_noisy * x_t, std))
    return float(nats.sum()) / (D * math.log(2))


@pytest.mark.parametrize("levels", [256, None])
def test_every_rows_term_is_the_one_worked_out_by_hand(levels: int | None) -> None:
    given = batch(levels)
    found = range_bound(**given, n=N_ROWS, coefficients=COEFFICIENTS, levels=levels)
    assert found.dtype == torch.float64
    expected = [by_hand(row, int(n), given, levels) for row, n in enumerate(N_ROWS)]
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-10)


@pytest.mark.parametrize("n", [[1, 1], [5, 5]])
def test_batches_with_and_without_the_last_step(n: list[int]) -> None:
    given = {name: value[:2] for name, value in batch(256).items()}
    found = range_bound(**given, n=torch.tensor(n), coefficients=COEFFICIENTS, levels=256)
    np.testing.assert_allclose(found.numpy(), [by_hand(row, k, given, 256) for row, k in enumerate(n)], rtol=1e-10)


@pytest.mark.parametrize("levels", [256, None])
def test_terms_are_those_of_the_likelihood(levels: int | None) -> None:
    """`bits_per_dim`'s decoder has β̃, the lower end of the range; `density_bound` may have the covariance's own."""
    given = batch(levels)
    if levels:
        given["raw"][N_ROWS == 1] = -1.0
    row = iter(range(len(N_ROWS)))

    def network(x_t: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
        k = next(row)
        return torch.cat([given["eps_hat"][k], given["raw"][k]])[None]

    denoiser = dv.Denoiser(network, SCHEDULE, shape=SHAPE, clip=None, data_range=(-1.0, 1.0))
    covariance = dv.LearnedRange()
    choice, last = "beta_tilde" if levels else "covariance", [dv.ReverseKernel(SCHEDULE, 1, 0)]
    decoder = make_decoder(denoiser, covariance, last, choice, levels, (-1.0, 1.0) if levels else None)
    expected = []
    for k, n in enumerate(N_ROWS.tolist()):
        kernel = dv.ReverseKernel(SCHEDULE, n, n - 1)
        steps, decoders = ((), ((0, kernel, decoder),)) if kernel.last else (((0, kernel),), ())
        evaluation = Evaluation(kernel.level_t, steps, decoders)
        terms = BoundTerms(denoiser, [evaluation], StepCovariances(covariance))
        x_0, eps = given["x_0"][k : k + 1], given["eps"][k : k + 1]
        posterior = denoiser(kernel.alpha_t * x_0 + kernel.sigma_t * eps, n)
        expected.append(float(terms.at(evaluation, x_0, eps, posterior)) / (D * math.log(2)))
    found = range_bound(**given, n=N_ROWS, coefficients=COEFFICIENTS, levels=levels)
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-10)


class Fixed(torch.nn.Module):
    """Returns its one parameter (B, 2C, H, W), as a diffusers network would."""

    def __init__(self, output: torch.Tensor) -> None:
        super().__init__()
        self.output = torch.nn.Parameter(output)

    def forward(self, x: torch.Tensor, timestep: torch.Tensor) -> Any:
        return type("Out", (), {"sample": self.output})


@pytest.mark.parametrize("levels", [256, None])
def test_each_half_gets_the_gradient_of_its_own_loss_alone(levels: int | None) -> None:
    given = batch(levels)
    halves = {name: given[name].requires_grad_() for name in ("eps_hat", "raw")}
    range_bound(**given, n=N_ROWS, coefficients=COEFFICIENTS, levels=levels).sum().backward()
    assert halves["eps_hat"].grad is None  # exactly none
    assert bool((halves["raw"].grad.flatten(1).abs().amax(1) > 0).all())

    x_0 = given["x_0"].float()
    whole, plain = (Fixed(normal(generator(0, "test"), len(x_0), 4, 3, 4)) for _ in range(2))
    stream = [generator(1, "test") for _ in range(3)]
    loss = hybrid_loss(whole, x_0, SCHEDULE, stream[0], N_ROWS, coefficients=COEFFICIENTS, levels=levels)
    loss.backward()
    simple = simple_loss(plain, x_0, SCHEDULE, stream[1], N_ROWS)
    simple.backward()
    eps_half, range_half = whole.output.grad.split(2, dim=1)
    assert torch.equal(eps_half, plain.output.grad[:, :2])
    assert float(plain.output.grad[:, 2:].abs().max()) == 0
    assert bool((range_half.flatten(1).abs().amax(1) > 0).all())
    # And its value: 0.001 N times the mean of the terms, with the noise that L_simple has.
    eps_hat, raw = whole.output.detach().split(2, dim=1)
    bound = range_bound(raw, eps_hat, x_0, normal(stream[2], *x_0.shape), N_ROWS, COEFFICIENTS, levels)
    assert float(loss.detach()) == pytest.approx(float(simple.detach()) + 0.001 * 100 * float(bound.mean()), rel=1e-6)


def test_the_gradient_is_that_of_differences_even_far_from_the_image() -> None:
    """An untrained network errs by many standard deviations, where Φ's tails are tiny."""
    given = {name: value[:1] for name, value in batch(256).items()}
    n, step = torch.tensor([1]), 1e-5
    for factor in (1.0, 30.0, 1000.0):
        given["eps_hat"] = given["eps"] + factor * torch.linspace(-1, 1, D).reshape(1, *SHAPE).double()

        def term(raw: torch.Tensor, given: dict[str, torch.Tensor] = given) -> torch.Tensor:
            return range_bound(**{**given, "raw": raw}, n=n, coefficients=COEFFICIENTS, levels=256)

        raw = given["raw"].detach().requires_grad_()
        term(raw).backward()
        shifts = step * torch.eye(D, dtype=torch.float64).reshape(D, 1, *SHAPE)
        expected = [float(term(raw.detach() + s) - term(raw.detach() - s)) / (2 * step) for s in shifts]
        np.testing.assert_allclose(raw.grad.flatten().numpy(), expected, rtol=1e-4, atol=1e-6 * max(map(abs, expected)))


def test_parts_of_a_batch_fit_together() -> None:
    """What two processes compute of one step averages to what one process computes, indices drawn."""
    x_0 = batch(None)["x_0"].float()
    network = Ranged(0.5)
    whole, *parts = (
        float(
            hybrid_loss(
                network, x_0, SCHEDULE, generator(3, "test"), share=share, coefficients=COEFFICIENTS, levels=None
            ).detach()
        )
        for share in (slice(None), slice(0, 4), slice(4, 8))
    )
    assert np.mean(parts) == pytest.approx(whole, rel=1e-6)
    assert parts[0] != pytest.approx(parts[1], rel=1e-3)


class Ranged(torch.nn.Module):
    """The exact ε̂ of x_0 ~ N(0, v) times a weight, and a raw range, both per timestep."""

    def __init__(self, variance: float) -> None:
        super().__init__()
        alpha, sigma = SCHEDULE.alpha[1:], SCHEDULE.sigma[1:]
        self.weight = torch.nn.Parameter(torch.from_numpy(sigma / (alpha**2 * variance + sigma**2)).float())
        self.raw = torch.nn.Parameter(torch.zeros(100))

    def forward(self, x: torch.Tensor, timestep: torch.Tensor) -> Any:
        weight, raw = (p[timestep.long()][:, None, None, None] for p in (self.weight, self.raw))
        return type("Out", (), {"sample": torch.cat([weight * x, raw.expand_as(x)], dim=1)})


def test_the_learned_variance_approaches_the_optimum() -> None:
    """For x_0 ~ N(0, v) it is λ² + γ² Var[x_0|x_t] (Analytic-DPM, Theorem 1), between β̃ and β for 0 < v < 1."""
    v = 0.05
    images = math.sqrt(v) * normal(generator(1, "data"), 4000, 1, 4, 4)
    settings = UNetTraining(
        steps=500, batch_size=256, learning_rate=3e-2, weight_decay=0.0, warmup_steps=10, learned_range=True
    )
    network = train_unet(Ranged(v), images, SCHEDULE, settings, progress=False).network
    alpha, sigma, beta, beta_tilde, lambda2, gain = COEFFICIENTS[1:].T.numpy()
    optimum = lambda2 + gain**2 * v * sigma**2 / (alpha**2 * v + sigma**2)

    def found(raw: Any) -> Any:
        return np.exp((raw + 1) / 2 * np.log(beta / beta_tilde) + np.log(beta_tilde))

    before, after = (np.abs(np.log(found(raw) / optimum)) for raw in (np.zeros(100), network.raw.detach().numpy()))
    assert before.max() > 0.5
    assert after.max() < 0.05


def test_the_evaluation_loss_is_of_the_first_half() -> None:
    images = normal(generator(1, "data"), 50, 1, 4, 4)
    network, plain = Ranged(1.0), Ranged(1.0)
    plain.forward = lambda x, t: type("Out", (), {"sample": Ranged.forward(plain, x, t).sample[:, :1]})
    assert evaluation_loss(network, images, SCHEDULE) == evaluation_loss(plain, images, SCHEDULE)


def test_kinds_of_images() -> None:
    pixels = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (3, *SHAPE))).to(torch.uint8)
    assert levels_held(to_float(pixels)) == 256
    assert levels_held(normal(generator(0, "test"), 3, *SHAPE) / 10) is None


def test_refusals() -> None:
    images = torch.zeros(40, 1, 4, 4, dtype=torch.uint8)
    settings = UNetTraining(steps=30, batch_size=40, learned_range=True)

    def refused(said: str, network: Any = None, images: Any = images, schedule: Any = SCHEDULE) -> None:
        with pytest.raises(InputError, match=said) as error:
            train_unet(network or Ranged(1.0), images, schedule, settings, progress=False)
        assert "\n" not in str(error.value)

    refused("returns 1 channels, but learned_range needs 2, twice the images'", Fixed(torch.zeros(40, 1, 4, 4)))
    refused("the schedule has one index, but learned_range needs", schedule=dv.NoiseSchedule.from_betas([0.1]))
    refused("zero terminal SNR", schedule=dv.NoiseSchedule.from_betas([0.1, 0.2, 1.0]))
    mixed = torch.full((40, 1, 4, 4), 0.123)
    mixed[spread(40, FINGERPRINT_IMAGES)] = -1.0  # those that are looked at first
    refused("hold 256 levels only, as 8-bit images do, but a later one does not", images=mixed)
