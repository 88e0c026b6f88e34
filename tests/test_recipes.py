"""The recipes of docs/your_network.md: each is run as it stands there, on a network of the code that it is for, and
compared with what that code itself makes of the same input. Packages that are absent are skipped."""

import math
import re
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from foreign_networks import (
    Body,
    CompVisDenoiser,
    EDM2Precond,
    EDMPrecond,
    OpenAIModel,
    VEScore,
    heun_free_edm_sampler,
    vp_marginal,
)
from places import ROOT

import diffusion_var as dv

PAGE = (ROOT / "docs" / "your_network.md").read_text()
SHAPE = (3, 32, 32)


def recipe(heading: str, part: int = 0) -> str:
    """The blocks below a heading of the page."""
    (section,) = re.findall(rf"^### {re.escape(heading)}\n(.*?)(?=^##|\Z)", PAGE, re.DOTALL | re.MULTILINE)
    return re.findall(r"```python\n(.*?)```", section, re.DOTALL)[part]


def follow(heading: str, part: int = 0, **given: Any) -> dict[str, Any]:
    """What a recipe makes of what a reader brings."""
    names = {"dv": dv, "torch": torch, "math": math, **given}
    exec(compile(recipe(heading, part), f"docs/your_network.md, {heading}", "exec"), names)
    return names


def noisy(shape: tuple[int, ...] = SHAPE, seed: int = 0) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).standard_normal((2, *shape))).float()


def largest(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a.detach().double() - b.detach().double()).abs().max())


def unbounded(made: dict[str, Any]) -> dv.Sampler:
    """A recipe's sampler without the last cut to the data range: a random network leaves it."""
    denoiser = made["denoiser"]
    wide = dv.Denoiser(denoiser.network, denoiser.schedule, denoiser.prediction, SHAPE, clip=None, data_range=None)
    return dv.Sampler(wide, dv.FixedSmall(), made["steps"], eta=0.0)


def test_there_is_a_test_for_every_recipe() -> None:
    section = PAGE.partition("## Recipes")[2].partition("\n## ")[0]
    tested = set(re.findall(r'"([^"\n]+)"', (ROOT / "tests" / "test_recipes.py").read_text()))
    assert set(re.findall(r"^### (.+)$", section, re.MULTILINE)) <= tested


# ---- packages on PyPI ----------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("objective", ["pred_v", "pred_noise", "pred_x0"])
def test_denoising_diffusion_pytorch(objective: str) -> None:
    package = pytest.importorskip("denoising_diffusion_pytorch")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        unet = package.Unet(dim=8, dim_mults=(1, 2), flash_attn=False)
        trained = package.GaussianDiffusion(unet, image_size=32, sampling_timesteps=10, objective=objective).eval()
    made = follow("denoising-diffusion-pytorch", trained=trained)
    denoiser, x = made["denoiser"], noisy()
    for n in (1, 300, 1000):
        told = torch.full((2,), n - 1)
        with torch.no_grad():
            theirs = trained.model_predictions(x, told, clip_x_start=True, rederive_pred_noise=True)
        posterior = denoiser(x, n)
        assert largest(posterior.mean, theirs.pred_x_start) < 2e-4, n
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        theirs = 2 * trained.ddim_sample((2, *SHAPE)) - 1
        torch.manual_seed(5)
        start = torch.randn(2, *SHAPE)
    assert largest(made["sampler"].from_noise(start), theirs) < 1e-3


def test_smalldiffusion() -> None:
    package = pytest.importorskip("smalldiffusion")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        models = [package.TimeInputMLP(dim=2), package.PredX0(package.TimeInputMLP)(dim=2)]
        models.append(package.PredV(package.TimeInputMLP)(dim=2))
    training_schedule = package.ScheduleLogLinear(200, 0.02, 10.0)
    for model in models:
        denoiser = follow("smalldiffusion, and other networks of ε that take σ", **locals())["denoiser"]
        x, schedule = noisy((2,)), denoiser.schedule
        for n in (1, 100, 200):
            sigma = torch.tensor(float(schedule.sigma[n]))
            with torch.no_grad():
                theirs = x - sigma * model.predict_eps(x, sigma)
            assert largest(denoiser(x, n).mean, theirs) < 1e-5 * max(1.0, float(sigma)), n
        assert float(schedule.sigma[1]) == pytest.approx(0.02)


def test_smalldiffusion_s_sampler() -> None:
    """Its DDIM (gam=1, mu=0) over its own trailing steps is the sampler at η = 0."""
    package = pytest.importorskip("smalldiffusion")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = package.TimeInputMLP(dim=2)
    training_schedule = package.ScheduleLogLinear(200, 0.02, 10.0)
    denoiser = follow("smalldiffusion, and other networks of ε that take σ", **locals())["denoiser"]
    sigmas, start = training_schedule.sample_sigmas(8), 10.0 * noisy((2,))
    with torch.no_grad():
        *_, theirs = package.samples(model, sigmas, gam=1.0, mu=0.0, xt=start.clone())
    # Theirs ends at the least σ, ours goes on to clean data: the last of its states is the mean at the step before.
    steps = dv.steps.sigmas(denoiser.schedule, sigmas.double().clamp(0.02, 10.0).tolist())
    states: list[torch.Tensor] = []
    x, levels = start, [*steps]
    for level_t, level_s in pairwise(levels):
        kernel = dv.ReverseKernel.between(level_t, level_s, eta=0.0)
        posterior = denoiser(x, level_t)
        x = level_s.alpha * posterior.mean + kernel.eps_gain * posterior.eps
        states.append(x)
    assert largest(states[-1], theirs) < 1e-4


@pytest.mark.parametrize("kind", ["VP", "VE", "Rectified", "Cosine"])
@pytest.mark.parametrize("wrapper", ["KarrasDenoiser", "SimpleDenoiser"])
def test_azula(kind: str, wrapper: str) -> None:
    pytest.importorskip("azula")
    from azula import denoise, noise

    class Backbone(Body):
        def forward(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:  # its times may have one axis or none
            return super().forward(x, t.reshape(-1).expand(len(x)))

    azula_denoiser = getattr(denoise, wrapper)(Backbone(3), getattr(noise, f"{kind}Schedule")())
    denoiser, x = follow("azula", azula_denoiser=azula_denoiser)["denoiser"], noisy()
    for n in (1, 400, 1000):
        with torch.no_grad():
            theirs = azula_denoiser(x, torch.tensor((n - 1) / 999)).mean
        assert largest(denoiser(x, n).mean, theirs) < 1e-4 * float(theirs.abs().max()), n


@pytest.mark.parametrize("schedule", ["VP", "Rectified"])
def test_azulas_ddim_is_the_sampler(schedule: str) -> None:
    pytest.importorskip("azula")
    from azula import denoise, noise, sample

    class Backbone(Body):
        def forward(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
            return super().forward(x, t.reshape(-1).expand(len(x)))

    azula_denoiser = denoise.KarrasDenoiser(Backbone(3), getattr(noise, f"{schedule}Schedule")())
    denoiser, start = follow("azula", azula_denoiser=azula_denoiser)["denoiser"], noisy()
    with torch.no_grad():
        theirs = sample.DDIMSampler(azula_denoiser, steps=9, eta=0.0, silent=True)(start)
    # Theirs ends at t = 0, whose noise is 0.001: there x_s = α x̂_0 + σ ε̂.
    steps = [1 + 111 * k for k in range(10)]
    x = start
    for t, s in zip(steps[:0:-1], steps[-2::-1], strict=True):
        kernel, posterior = dv.ReverseKernel(denoiser.schedule, t, s, eta=0.0), denoiser(x, t)
        x = kernel.alpha_s * posterior.mean + kernel.eps_gain * posterior.eps
    assert largest(x, theirs) < 1e-3


# ---- calling conventions --------------------------------------------------------------------------------------------


def test_openai_s_samplers() -> None:
    """Spaced, rescaled steps; learned variances are compared with OpenAI's in tests/parity."""
    model, images = OpenAIModel(), noisy()
    made = follow("OpenAI's improved-diffusion and guided-diffusion", model=model)
    schedule, steps = made["schedule"], made["steps"]
    assert schedule.timestep[1:].tolist() == [1000 * n / 4000 for n in range(4000)]
    assert len(steps) == 10
    posterior = made["denoiser"](images, 4000)
    with torch.no_grad():
        eps, second = model(images, torch.full((2,), 3999 * 0.25)).chunk(2, 1)
    assert largest(posterior.eps, eps) == 0
    assert posterior.range is not None
    assert largest(posterior.range, second) == 0
    assert made["learned"].sample(2).shape == (2, *SHAPE)
    # ddim_sample: ε̂ from the clipped x̂_0.
    x, alpha, sigma = images.double(), schedule.alpha, schedule.sigma
    for t, s in zip(steps[::-1], [*steps[-2::-1], 0], strict=True):
        with torch.no_grad():
            eps = model(x.float(), torch.full((2,), (t - 1) * 0.25))[:, :3].double()
        clean = ((x - sigma[t] * eps) / alpha[t]).clamp(-1, 1)
        x = alpha[s] * clean + sigma[s] * (x - alpha[t] * clean) / sigma[t]
    assert largest(made["ddim"].from_noise(images), x) < 1e-3


@pytest.mark.parametrize("wrapper", [EDMPrecond, EDM2Precond])
def test_edm_and_its_sampler(wrapper: Any) -> None:
    net = wrapper()
    made = follow("EDM and EDM2", net=net)
    denoiser, x = made["denoiser"], noisy()
    for n in (1, 500, 1000):
        sigma = float(denoiser.schedule.sigma[n])
        with torch.no_grad():
            assert largest(denoiser(sigma * x, n).mean, net(sigma * x, torch.full((2,), sigma))) == 0
    with torch.no_grad():
        theirs = heun_free_edm_sampler(net, x)
    assert largest(unbounded(made).from_noise(80.0 * x), theirs) < 1e-4
    assert largest(made["sampler"].from_noise(80.0 * x), theirs.clamp(-1, 1)) < 1e-4
    bare = dv.Denoiser(net.model, dv.NoiseSchedule.edm(1000), "edm", SHAPE, clip=None)
    assert largest(bare(x, 500).mean, denoiser(x, 500).mean) < 1e-5


def test_edms_labels_are_its_third_argument() -> None:
    net = EDMPrecond(labels=4)
    denoiser, x, labels = follow("EDM and EDM2", net=net)["denoiser"], noisy(), torch.eye(4)[[1, 3]]
    with torch.no_grad():
        theirs = net(x, torch.full((2,), float(denoiser.schedule.sigma[300])), labels)
    assert largest(denoiser(x, 300, labels).mean, theirs) == 0


@pytest.mark.parametrize(
    ("schedule", "prediction"),
    [
        (dv.NoiseSchedule.edm(), "sample"),
        (dv.NoiseSchedule.edm(told="sigma"), "edm"),
        (dv.NoiseSchedule.linear(1000), "sample"),
    ],
)
def test_an_edm_wrapper_in_another_convention_is_refused(schedule: dv.NoiseSchedule, prediction: Any) -> None:
    for network in (EDMPrecond(), torch.nn.DataParallel(EDMPrecond())):
        with pytest.raises(dv.InputError, match=r"EDMPrecond.*told='sigma'"):
            dv.Denoiser(network, schedule, prediction, SHAPE)


def test_a_wrapper_that_is_told_a_logarithm_gives_nan_and_a_remedy() -> None:
    """EDM2's wrapper cannot be told from other networks, so that it is the NaN that speaks."""
    denoiser = dv.Denoiser(EDM2Precond(), dv.NoiseSchedule.edm(40), "sample", SHAPE, clip=None)
    with pytest.raises(dv.NumericalError, match=r"ln\(σ\)/4.*told='sigma'.*prediction='sample'"):
        dv.estimate(denoiser, torch.zeros(4, *SHAPE), indices=[1], progress=False)
    with pytest.raises(dv.NumericalError, match="told='sigma'"):
        dv.Sampler(denoiser, dv.FixedSmall(), [5, 10], eta=0.0).from_noise(noisy())
    bad = torch.nn.Module()
    bad.forward = lambda x, t: x * math.nan  # type: ignore[method-assign]
    with pytest.raises(dv.NumericalError, match=r"check its weights and precision\.$"):
        dv.Sampler(dv.Denoiser(bad, dv.NoiseSchedule.linear(20), shape=SHAPE), dv.FixedSmall(), 3).sample(2)


def test_k_diffusion() -> None:
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
    model = CompVisDenoiser(Body(3), torch.cumprod(1 - betas, 0).float())
    made = follow("k-diffusion", model=model)
    x = float(model.sigmas[-1]) * noisy()
    states, sigmas = x.clone(), [*(level.sigma for level in made["steps"]), 0.0]
    ramp = torch.linspace(0, 1, 10)
    low, high = model.sigmas[0] ** (1 / 7), model.sigmas[-1] ** (1 / 7)
    assert largest(torch.tensor(sigmas[:-1]), (high + ramp * (low - high)) ** 7) < 1e-4
    for sigma, after in pairwise(sigmas):  # sample_euler
        with torch.no_grad():
            d = (states - model(states, torch.full((2,), sigma))) / sigma
        states = states + d * (after - sigma)
    assert largest(unbounded(made).from_noise(x), states) < 1e-3
    assert largest(made["sampler"].from_noise(x), states.clamp(-1, 1)) < 1e-3


def test_score_sde() -> None:
    model, x = Body(3), noisy()
    denoiser = follow("Score SDE", 0, model=model)["denoiser"]
    for n in (1, 500, 1000):
        factor, std = vp_marginal(n / 1000)
        with torch.no_grad():
            score = -model(x, torch.full((2,), 999 * n / 1000)) / std  # get_score_fn
        assert largest(denoiser(x, n).mean, (x + std**2 * score) / factor) < 1e-4 / factor
    model = VEScore()
    denoiser = follow("Score SDE", 1, model=model)["denoiser"]
    for n in (1, 500, 1000):
        sigma = 0.01 * (50.0 / 0.01) ** ((n - 1) / 999)
        with torch.no_grad():
            score = model(sigma * x, torch.full((2,), sigma))
        assert largest(denoiser(sigma * x, n).mean, sigma * x + sigma**2 * score) < 1e-3 * sigma
    assert denoiser.data_range == (0.0, 1.0)


def test_flow_matching_in_either_direction_is_one_model() -> None:
    """A network of the path from data at t = 0, and the same function as a code of data at t = 1 has it."""
    model = Body(3)

    class Reversed(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = model

        def forward(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
            return -self.inner(x, 1 - t)

    heading = "Flow matching, in either direction of time"
    denoiser, x = follow(heading, 0, model=model)["denoiser"], noisy()
    other = follow(heading, 1, model=Reversed())["denoiser"]
    for n in (1, 400, 1000):
        t = n / 1000
        with torch.no_grad():
            theirs = x - t * model(x, torch.full((2,), t))
        assert largest(denoiser(x, n).mean, theirs) < 1e-5
        assert largest(other(x, n).mean, theirs) < 1e-5


def test_vectors_signals_and_video() -> None:
    class FramesFirst(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = Body(3)

        def forward(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:  # (B, F, C, H, W)
            assert x.shape[1:] == (4, 3, 16, 16)
            return self.body(x.transpose(1, 2), t).transpose(1, 2)

    schedule = dv.NoiseSchedule.linear(50)
    made = follow("Vectors, signals, video", mlp=Body(6), unet1d=Body(2), video_model=FramesFirst(), schedule=schedule)
    for name in ("vectors", "signals", "video"):
        denoiser = made[name]
        assert dv.Sampler(denoiser, dv.FixedSmall(), 3, eta=0.0).sample(2).shape == (2, *denoiser.shape)


def test_diffusers() -> None:
    from diffusers import DDPMScheduler

    unet, scheduler = Body(3), DDPMScheduler(prediction_type="v_prediction")
    denoiser, x = follow("diffusers", unet=unet, scheduler=scheduler)["denoiser"], noisy()
    with torch.no_grad():
        out = scheduler.step(unet(x, torch.full((2,), 500)), 500, x, generator=torch.Generator().manual_seed(0))
    assert largest(denoiser(x, 501).mean, out.pred_original_sample) < 1e-5


@pytest.mark.filterwarnings("ignore::diffusion_var.errors.DiffusionVarWarning")  # of so few images
def test_whether_it_is_right() -> None:
    """The page's last blocks, on the bundled model as it is and as a network of v."""
    first, second = re.findall(r"```python\n(.*?)```", PAGE.partition("## Is it right?")[2], re.DOTALL)
    denoiser = dv.Denoiser.from_pretrained("digits")
    names = {"dv": dv, "denoiser": denoiser, "images": dv.data.digits_splits().table.images[:64]}
    exec(compile(first, "docs/your_network.md", "exec"), names)
    exec(compile(second.replace("0.05", "9.0"), "docs/your_network.md", "exec"), names)
    names["denoiser"] = dv.Denoiser(denoiser.network, denoiser.schedule, "v_prediction", (1, 8, 8))
    with pytest.raises(AssertionError):
        exec(compile(first, "docs/your_network.md", "exec"), names)


# ---- the adapter ----------------------------------------------------------------------------------------------------


def test_the_page_s_adaptations_and_what_a_table_knows_of_them() -> None:
    """Weights, mode and function are seen through the adapter."""
    (block,) = (b for b in re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL) if "a keyword" in b)

    class Model(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = Body(3)

        def forward(self, x: torch.Tensor, t: torch.Tensor, y: Any = None) -> torch.Tensor:
            assert not self.training
            return self.body(x, t) + (0 if y is None else y.view(-1, 1, 1, 1))

    x, t, model = noisy(), torch.tensor([3, 5]), Model()
    calls = [line.partition("#")[0].partition(" = ")[2] for line in block.splitlines()]
    keyword, order, first, scale = (eval(line, {"dv": dv, "model": model}) for line in calls)
    model.eval()
    with torch.no_grad():
        assert largest(keyword(x, t, torch.tensor([1, 2])), model(x, t, y=torch.tensor([1, 2]))) == 0
        assert largest(scale(x, t), model(x, t / 1000)) == 0
        swapped = dv.Adapted(Swapped(model), order.call)
        assert largest(swapped(x, t), model(x, t)) == 0
        assert largest(dv.Adapted(Tupled(model), first.call)(x, t), model(x, t)) == 0
    model.train()
    schedule, images = dv.NoiseSchedule.linear(50), torch.rand(4, *SHAPE) * 2 - 1
    denoiser = dv.Denoiser(scale, schedule, shape=SHAPE)
    table = dv.estimate(denoiser, images, 9.0, indices=[1, 50], structures=["isotropic"], progress=False)
    assert model.training
    table.check(denoiser)
    with pytest.raises(dv.InputError, match="what the network does"):
        table.check(dv.Denoiser(dv.Adapted(model, lambda model, x, t: model(x, t / 50)), schedule, shape=SHAPE))
    with torch.no_grad():
        model.body.inside.bias += 1
    with pytest.raises(dv.InputError, match="network fingerprint"):
        table.check(denoiser)


class Swapped(torch.nn.Module):
    """(t, x) -> like x."""

    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__()
        self.inner = model

    def forward(self, t: torch.Tensor, x: torch.Tensor) -> Any:
        return self.inner(x, t)


class Tupled(Swapped):
    """(x, t) -> (like x, something else)."""

    def forward(self, x: torch.Tensor, t: torch.Tensor) -> Any:
        return self.inner(x, t), None
