"""The variance check: what it draws is compared with the law of total variance in closed form, for Gaussian data."""

from typing import Any

import numpy as np
import pytest
import torch

import diffusion_var as dv
from diffusion_var.process.linear import linear_gain
from diffusion_var.randomness import generator
from diffusion_var.sampling.check import VarianceCheck

SCHEDULE, SHAPE, L, MEAN, IMAGES = dv.NoiseSchedule.linear(1000), (1, 8, 8), 0.09, 0.7, 128
CHOICES = ("beta_tilde", "beta", "analytic")
STEPS = [1, 30, 100, 250, 500, 1000]


def population(seed: int) -> np.ndarray:
    """200 images with mean exactly MEAN and covariance exactly L I."""
    z = generator(seed, "population").standard_normal((200, 64))
    z = np.linalg.qr(z - z.mean(0))[0] * np.sqrt(200 * L)
    return (z + MEAN).reshape(200, *SHAPE)


class Model(dv.oracles.GaussianDenoiser):
    """Exact, and remembers how it was called."""

    def __init__(self, variance: float = L) -> None:
        super().__init__(SCHEDULE, MEAN, np.full(SHAPE, variance))
        self.calls: list[tuple[int, int]] = []

    def exact_mean(self, x_t: torch.Tensor, alpha: Any, sigma: Any) -> torch.Tensor:
        level = float(torch.as_tensor(alpha).flatten()[0])
        self.calls.append((len(x_t), int(np.abs(SCHEDULE.alpha - level).argmin())))
        return super().exact_mean(x_t, alpha, sigma)


@pytest.fixture(scope="module")
def table() -> dv.VarianceTable:
    indices = sorted({*STEPS, *dv.steps.linspace(1000, 26)})
    structures = ("isotropic", "pixel")
    return dv.estimate(Model(), population(1), 0.5, indices=indices, structures=structures, progress=False)


def closed_form(choice: str, steps: list[int]) -> dict[int, float]:
    """E‖x_s − α_s μ‖²/d of the sampler, by s: x_s is linear in x_t, plus noise."""
    variance, found = 1.0, {}  # the prior's, of mean 0
    shift = -SCHEDULE.alpha[steps[-1]] * MEAN
    for s, t in reversed(list(zip([0, *steps[:-1]], steps, strict=True))):
        kernel = dv.ReverseKernel(SCHEDULE, t, s)
        slope = kernel.gain * linear_gain(L, kernel.alpha_t, kernel.sigma_t) + kernel.eps_gain / kernel.sigma_t
        v = L * kernel.sigma_t**2 / (kernel.alpha_t**2 * L + kernel.sigma_t**2)
        noise = {"beta_tilde": kernel.beta_tilde, "beta": kernel.beta}.get(choice, kernel.lambda2 + kernel.gain**2 * v)
        variance, shift = slope**2 * variance + (noise if s > 0 else 0.0), slope * shift
        found[s] = variance + shift**2
    return found


@pytest.mark.parametrize("steps", [STEPS, [30, 250, 1000], 10])
def test_totals_and_noise_are_the_closed_forms(table: dv.VarianceTable, steps: Any) -> None:
    found = dv.check(table, Model(), steps, IMAGES, seed=2, show=False)
    indices = dv.steps.linspace(1000, 10) if steps == 10 else steps
    assert [(step.t, step.s) for step in found.steps] == list(zip(indices, [0, *indices[:-1]], strict=True))[::-1]
    assert found.images == IMAGES
    expected = {choice: closed_form(choice, indices) for choice in CHOICES}
    relative = 4 * np.sqrt(2 / (IMAGES * 64))  # of a variance from that many normal numbers
    for step in found.steps:
        alpha, sigma = SCHEDULE.alpha[step.s], SCHEDULE.sigma[step.s]
        assert step.expected == pytest.approx(alpha**2 * L + sigma**2, rel=1e-6)
        for choice in CHOICES:
            assert step.total[choice] * step.expected == pytest.approx(expected[choice][step.s], rel=relative)
        assert step.total["beta_tilde"] < step.total["analytic"] < step.total["beta"]
        if step.s == 0:
            assert step.noise == {}
            continue
        assert step.total["analytic"] == pytest.approx(1, rel=relative)
        kernel = dv.ReverseKernel(SCHEDULE, step.t, step.s)
        v = L * kernel.sigma_t**2 / (kernel.alpha_t**2 * L + kernel.sigma_t**2)
        best = kernel.lambda2 + kernel.gain**2 * v
        assert step.noise["beta_tilde"] == pytest.approx(kernel.beta_tilde / best, rel=1e-4)
        assert step.noise["beta"] == pytest.approx(kernel.beta / best, rel=1e-4)
        assert step.noise["analytic"] == 1.0
        assert step.noise["beta_tilde"] < 1 < step.noise["beta"]
    if steps == 10:  # few steps: what is missing, or too much, is no matter of sampling error
        end = found.steps[-1].total
        assert end["beta_tilde"] < 0.8
        assert end["beta"] > 1.1


def test_too_little_variance_in_the_table_shows(table: dv.VarianceTable) -> None:
    """The analytic column is drawn too, not taken for right."""
    images = (population(1) - MEAN) * 0.3 + MEAN
    narrow = dv.estimate(Model(), images, 0.5, indices=[1, 1000], structures=(), progress=False)
    found = dv.check(narrow, Model(), 10, 32, show=False)
    assert max(abs(step.total["analytic"] - 1) for step in found.steps) > 0.2


def test_the_run_is_that_of_the_sampler(table: dv.VarianceTable) -> None:
    """Three runs in batches, from the same noise; not clamped; the analytic one of the structure asked for."""
    model = Model()
    found = dv.check(table, model, STEPS, 10, seed=3, structure="pixel", batch_size=4, show=False)
    assert model.calls == 3 * [(batch, n) for batch in (4, 4, 2) for n in STEPS[::-1]]
    again = dv.check(table, Model(), STEPS, 10, seed=3, structure="pixel", batch_size=10, show=False)
    other = dv.check(table, Model(), STEPS, 10, seed=4, structure="pixel", show=False)
    choices = (dv.FixedSmall(), dv.FixedLarge(), dv.Analytic(table, structure="pixel"))
    for name, covariance in zip(CHOICES, choices, strict=True):
        images = dv.Sampler(Model(), covariance, STEPS).sample(10, seed=3).double()
        total = float((images - MEAN).square().mean()) / L
        assert found.steps[-1].total[name] == pytest.approx(total, rel=1e-5)
        assert again.steps[-1].total[name] == pytest.approx(total, rel=1e-5)
        assert abs(other.steps[-1].total[name] / total - 1) > 1e-4


def test_the_sampler_shows_every_step(table: dv.VarianceTable) -> None:
    """Once a step and batch, falling, down to the images themselves, before they are clamped."""
    seen: list[tuple[int, int, int]] = []
    last: list[torch.Tensor] = []

    def visit(kernel: dv.ReverseKernel, x: torch.Tensor) -> None:
        seen.append((kernel.t, kernel.s, len(x)))
        if kernel.s == 0:
            last.append(x.clone())

    sampler = dv.Sampler(Model(), dv.FixedLarge(), STEPS)
    images = torch.cat(list(sampler.stream(range(5), 1, batch_size=3, visit=visit)))
    falling = list(zip(STEPS[::-1], [*STEPS[-2::-1], 0], strict=True))
    assert seen == [(t, s, batch) for batch in (3, 2) for t, s in falling]
    assert torch.equal(torch.cat(last), images)
    assert torch.equal(images, sampler.sample(5, 1, batch_size=3))  # looking changes nothing
    bounded = dv.Denoiser(lambda x, t: 0.5 * x, SCHEDULE, shape=SHAPE, data_range=(-0.1, 0.1), clip=None)
    last.clear()
    images = next(dv.Sampler(bounded, dv.FixedLarge(), [1, 1000]).stream(range(5), 1, visit=visit))
    assert float(last[0].abs().max()) > 0.1
    assert torch.equal(last[0].clamp(-0.1, 0.1), images)


def test_conditions_go_with_their_image() -> None:
    def told(x_t: torch.Tensor, timestep: torch.Tensor, condition: torch.Tensor) -> torch.Tensor:
        return condition[:, None, None, None].to(x_t.dtype).expand_as(x_t)

    denoiser = dv.Denoiser(told, SCHEDULE, "sample", (1, 2, 2))
    conditions = torch.tensor([-0.5, 0.5] * 4)
    images = conditions[:, None, None, None].expand(8, 1, 2, 2)
    table = dv.estimate(denoiser, images, 0.5, indices=[1, 1000], conditions=conditions, progress=False)
    found = dv.check(table, denoiser, [1, 1000], 8, conditions=conditions, batch_size=3, show=False)
    assert found.steps[-1].total["analytic"] == pytest.approx(1.0, rel=1e-5)  # the two values, as often as in the data


# ---- what is printed ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("steps", [1, 2, 10, 11, 12, 26])
def test_at_most_twenty_lines(table: dv.VarianceTable, steps: int, capsys: pytest.CaptureFixture[str]) -> None:
    found = dv.check(table, Model(), steps, 2)
    printed = capsys.readouterr()
    assert printed.out == f"{found}\n"
    assert printed.err == ""
    lines = str(found).splitlines()
    assert len(lines) == 6 + min(steps, 11) <= 20
    assert max(len(line) for line in lines) <= 120
    assert f"{steps} DDPM steps, 2 images" in lines[0]
    rows = lines[3:-3]
    first, last = found.steps[0], found.steps[-1]
    assert rows[0].split()[:3] == [str(first.t), "to", str(first.s)]
    assert rows[-1].split()[:3] == [str(last.t), "to", "0"]
    assert rows[-1].split()[3::2] == ["none"] * 3
    numbers = rows[0].split()[3:]
    for k, choice in enumerate(CHOICES):
        assert numbers[2 * k + 1] == f"{first.total[choice]:.3f}"
        assert numbers[2 * k] == (f"{first.noise[choice]:.3f}" if steps > 1 else "none")
    assert len({row.split()[0] for row in rows}) == len(rows)  # no step twice


def test_verdicts(table: dv.VarianceTable) -> None:
    """Where there is too little and too much noise, and by how much."""
    found = dv.check(table, Model(), STEPS, 8, show=False)
    noisy = found.steps[:-1]
    least = min(noisy, key=lambda step: step.noise["beta_tilde"])
    most = max(noisy, key=lambda step: step.noise["beta"])
    small, large, analytic = str(found).splitlines()[-3:]
    end = found.steps[-1].total
    too_little = (
        f"too little noise, down to {least.noise['beta_tilde']:.2g} of the optimum from {least.t} to {least.s}."
    )
    too_much = f"too much noise, up to {most.noise['beta']:.2g} times the optimum from {most.t} to {most.s}."
    assert small == f"β̃: images end with {end['beta_tilde']:.2f} of the data's variance; {too_little}"
    assert large == f"β: images end with {end['beta']:.2f} of the data's variance; {too_much}"
    assert analytic == f"analytic: images end with {end['analytic']:.2f} of the data's variance."


def test_nothing_is_printed_when_not_asked(table: dv.VarianceTable, capsys: pytest.CaptureFixture[str]) -> None:
    assert isinstance(dv.check(table, Model(), 3, 2, show=False), VarianceCheck)
    assert capsys.readouterr() == ("", "")


# ---- what is refused ------------------------------------------------------------------------------------------------


def test_tables_that_do_not_fit(table: dv.VarianceTable) -> None:
    with pytest.raises(dv.InputError, match=r"another model \(network fingerprint"):
        dv.check(table, Model(0.5), show=False)
    other = dv.oracles.GaussianDenoiser(dv.NoiseSchedule.cosine(1000), MEAN, np.full(SHAPE, L))
    with pytest.raises(dv.InputError, match=r"another model \(schedule"):
        dv.check(table, other, show=False)
    published = dv.VarianceTable.from_moments(SCHEDULE, eps_square=np.full(1000, 0.5))
    with pytest.raises(dv.InputError, match="published arrays and knows no data"):
        dv.check(published, Model(), show=False)
    elsewhere = dv.VarianceTable.from_moments(other.schedule, eps_square=np.full(1000, 0.5))
    with pytest.raises(dv.InputError, match=r"another model \(schedule"):
        dv.check(elsewhere, Model(), show=False)
    with pytest.raises(dv.InputError, match="no structure 'dct'"):
        dv.check(table, Model(), structure="dct", show=False)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"count": 0}, "count=0 must be a whole number of at least 1"),
        ({"count": True}, "count=True must be a whole number"),
        ({"steps": 0}, "steps=0 is not a usable"),
        ({"steps": [5, 3]}, "must rise strictly"),
        ({"batch_size": 0}, "batch_size=0 must be a whole number of at least 1"),
        ({"conditions": [1, 2]}, "2 entries for 64 images"),
    ],
)
def test_unusable_arguments(table: dv.VarianceTable, options: dict[str, Any], message: str) -> None:
    with pytest.raises(dv.InputError, match=message):
        dv.check(table, Model(), **options)
