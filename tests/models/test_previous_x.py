"""Networks that predict the mean of the index before, against DDPM's posterior written out from the betas."""

from typing import Any

import numpy as np
import pytest
import torch

import diffusion_var as dv
from diffusion_var.models.prediction import mean_and_eps, step_before

SHAPE = (2, 3, 3)
BETAS = {
    "linear": np.linspace(1e-4, 0.02, 1000),
    "rough": np.random.default_rng(3).uniform(0.001, 0.3, 40),
    "empty": np.append(np.linspace(0.01, 0.3, 19), 1.0),  # x_N holds no signal
}
SCHEDULES = {
    **{name: dv.NoiseSchedule.from_betas(betas) for name, betas in BETAS.items()},
    "flow": dv.NoiseSchedule.flow(30, 3.0),
    "edm": dv.NoiseSchedule.edm(18),
}


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).standard_normal(shape))


def noisy(schedule: dv.NoiseSchedule, n: int, count: int = 3) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    x_0, eps = normal(count, *SHAPE), normal(count, *SHAPE, seed=1)
    return x_0, eps, schedule.alpha[n] * x_0 + schedule.sigma[n] * eps


def posterior_mean(betas: np.ndarray, n: int, x_0: torch.Tensor, x_t: torch.Tensor) -> torch.Tensor:
    """DDPM, eq. 7."""
    kept = np.append(1.0, np.cumprod(1 - betas))
    first = np.sqrt(kept[n - 1]) * betas[n - 1] / (1 - kept[n])
    second = np.sqrt(1 - betas[n - 1]) * (1 - kept[n - 1]) / (1 - kept[n])
    return first * x_0 + second * x_t


def of_oracle(exact: dv.Denoiser) -> dv.Denoiser:
    """A network that returns the exact mean of the index before; told n − 1, as DDPM's are."""
    schedule = exact.schedule

    def network(x_t: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
        rows = zip(x_t, timestep.tolist(), strict=True)
        kernels = [(row[None], dv.ReverseKernel(schedule, int(t) + 1, int(t))) for row, t in rows]
        return torch.cat([kernel.mean(x, exact(x, kernel.level_t)) for x, kernel in kernels])

    return dv.Denoiser(network, schedule, "previous_x", SHAPE, clip=None)


# ---- the formula ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", BETAS)
@pytest.mark.parametrize("place", [1, 2, 7, 15, -2, -1])
def test_the_posterior_mean_of_ddpm_gives_back_x_0_and_eps(name: str, place: int) -> None:
    schedule = SCHEDULES[name]
    n = place if place > 0 else schedule.num_steps + 1 + place
    x_0, eps, x_t = noisy(schedule, n)
    output = posterior_mean(BETAS[name], n, x_0, x_t)
    mean, found = mean_and_eps("previous_x", output, x_t, None, None, before=step_before(schedule, n, x_t))
    # The betas' running product, which the formula above divides by, has lost four digits at n = 1.
    torch.testing.assert_close(mean, x_0, rtol=0, atol=1e-9)
    torch.testing.assert_close(found, eps, rtol=0, atol=1e-9)


@pytest.mark.parametrize("name", SCHEDULES)
def test_every_index_of_every_kind_of_schedule(name: str) -> None:
    """The mean of a step at η = 1 is inverted, for levels of any scale; all indices in one batch, and one by one."""
    schedule = SCHEDULES[name]
    n = torch.arange(1, schedule.num_steps + 1)[:60]
    n[-1] = schedule.num_steps
    x_0, eps = normal(len(n), *SHAPE), normal(len(n), *SHAPE, seed=1)
    alpha, sigma = (torch.from_numpy(a[n.numpy()]).view(-1, 1, 1, 1) for a in (schedule.alpha, schedule.sigma))
    x_t = alpha * x_0 + sigma * eps
    kernels = [dv.ReverseKernel(schedule, t, t - 1) for t in n.tolist()]
    output = torch.stack([k.alpha_s * x_0[i] + k.eps_gain * eps[i] for i, k in enumerate(kernels)])
    denoiser = dv.Denoiser(lambda *_: output, schedule, "previous_x", SHAPE, clip=None)
    posterior = denoiser(x_t, n)
    torch.testing.assert_close(posterior.mean, x_0, rtol=0, atol=1e-9)
    torch.testing.assert_close(posterior.eps, eps, rtol=0, atol=1e-9)
    levels = denoiser(x_t, [schedule.level(t) for t in n.tolist()])
    assert torch.equal(levels.mean, posterior.mean)
    for i in (0, 1, len(n) // 2, len(n) - 1):
        one = dv.Denoiser(lambda *_, i=i: output[i : i + 1], schedule, "previous_x", SHAPE, clip=None)
        for place in (int(n[i]), schedule.level(int(n[i]))):
            alone = one(x_t[i : i + 1], place)
            torch.testing.assert_close(alone.mean, posterior.mean[i : i + 1], rtol=1e-12, atol=1e-12)
            torch.testing.assert_close(alone.eps, posterior.eps[i : i + 1], rtol=1e-12, atol=1e-12)


def test_at_the_first_index_the_network_says_x_0_itself() -> None:
    output = normal(3, *SHAPE).float()
    denoiser = dv.Denoiser(lambda *_: output, SCHEDULES["linear"], "previous_x", SHAPE, clip=None)
    assert torch.equal(denoiser(normal(3, *SHAPE, seed=2).float(), 1).mean, output)


@pytest.mark.parametrize("n", [2, 30, 100, 500, 1000])
def test_nothing_cancels_in_float32(n: int) -> None:
    """Given the rounded output, x̂_0 is right to a few roundings of its own: not to those of x_t over γ (1e-3 at N)."""
    schedule = SCHEDULES["linear"]
    x_0, _, x_t = noisy(schedule, n)
    output, x_t = posterior_mean(BETAS["linear"], n, x_0, x_t).float(), x_t.float()

    def both(output: torch.Tensor, x_t: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return mean_and_eps("previous_x", output, x_t, None, None, before=step_before(schedule, n, x_t))

    found, exact = both(output, x_t), both(output.double(), x_t.double())
    kernel = dv.ReverseKernel(schedule, n, n - 1)
    #: What the output's own rounding makes of each: 2⁻²⁴ of it, over γ and over γ σ_t/α_t.
    inherent = 2**-24 * float(output.abs().max()) / kernel.gain
    for one, other, least in zip(found, exact, (inherent, inherent * kernel.alpha_t / kernel.sigma_t), strict=True):
        assert float((one - other).abs().max()) < max(0.1 * least, 5e-7 * float(other.abs().max()))
    share = kernel.eps_gain / kernel.sigma_t
    if n >= 100:
        plain = (output - share * x_t) / kernel.gain
        assert float((plain - exact[0]).abs().max()) > 10 * float((found[0] - exact[0]).abs().max())


# ---- an oracle ----------------------------------------------------------------------------------------------------


def mixture(N: int = 40) -> dv.oracles.MixtureDenoiser:
    return dv.oracles.MixtureDenoiser(
        dv.NoiseSchedule.linear(N, 1e-3, 0.2), normal(3, *SHAPE, seed=5), [0.02, 0.3, 0.1], [0.5, 0.3, 0.2]
    )


@pytest.mark.parametrize("n", [1, 2, 20, 40, torch.tensor([1, 13, 40])])
def test_an_oracle_of_the_index_before_gives_the_exact_posterior(n: Any) -> None:
    exact = mixture()
    x_t = normal(3, *SHAPE, seed=7)
    found, expected = of_oracle(exact)(x_t, n), exact(x_t, n)
    torch.testing.assert_close(found.mean, expected.mean, rtol=0, atol=1e-12)
    torch.testing.assert_close(found.eps, expected.eps, rtol=0, atol=1e-12)


def test_tables_samples_and_bounds_are_the_oracles() -> None:
    exact = mixture()
    of_mean, images = of_oracle(exact), exact.sample(300, seed=1)
    tables = [dv.estimate(d, images, 0.05, indices=[1, 10, 40], progress=False) for d in (of_mean, exact)]
    for n in (1, 10, 40):
        assert tables[0].posterior_variance(n) == pytest.approx(tables[1].posterior_variance(n), rel=1e-4)
    steps = [1, 9, 25, 40]  # longer than the network's own
    pairs = [
        dv.Sampler(d, dv.Analytic(t), steps).sample(8, seed=3) for d, t in zip((of_mean, exact), tables, strict=True)
    ]
    torch.testing.assert_close(*pairs, rtol=0, atol=1e-4)
    bounds = [
        dv.density_bound(d, dv.Analytic(t), images[:20], steps, decoder_variance=0.05, progress=False)
        for d, t in zip((of_mean, exact), tables, strict=True)
    ]
    assert float(bounds[0]) == pytest.approx(float(bounds[1]), abs=1e-4)


def test_every_step_of_the_networks_own_grid_has_its_mean() -> None:
    """Without clipping, a sampler at η = 1 that leaves out nothing moves to what the network said."""
    exact = mixture()
    of_mean, x_t = of_oracle(exact), normal(3, *SHAPE, seed=7)
    for n in (1, 2, 17, 40):
        said = of_mean.network(x_t, torch.full((3,), n - 1))
        mean = dv.ReverseKernel(exact.schedule, n, n - 1).mean(x_t, of_mean(x_t, n))
        torch.testing.assert_close(mean, said, rtol=0, atol=1e-12)


# ---- off the grid -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "n", [SCHEDULES["linear"].level_at(0.123), dv.NoiseLevel(0.8, 0.6, 5.0), SCHEDULES["rough"].level(5)]
)
def test_levels_off_the_grid_are_refused(n: dv.NoiseLevel) -> None:
    denoiser = dv.Denoiser(lambda x, t: x, SCHEDULES["linear"], "previous_x", SHAPE)
    with pytest.raises(dv.InputError, match=r"off the schedule's grid.*give indices from 1 to 1000\.$"):
        denoiser(normal(2, *SHAPE), n)
    with pytest.raises(dv.InputError, match="off the schedule's grid"):
        denoiser(normal(2, *SHAPE), [SCHEDULES["linear"].level(3), n])
