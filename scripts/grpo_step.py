"""Reinforcement learning of a flow model by GRPO, complete and small enough for one CPU: which noise learns best?

    python scripts/grpo_step.py                        # two minutes
    python scripts/grpo_step.py --seeds 10 --iterations 60

A flow model of 8×8 digits (a small MLP) is trained first, and its variance table measured. Then the model is rewarded
for digits that are written in the upper half: pixels lit there less those lit below, a number that has no gradient. In
an iteration a group of images is sampled in a few stochastic steps; the log-probability of every step under the new
weights over that under the old ones makes the clipped ratio of PPO, and the group's own mean reward is the baseline
(GRPO, arXiv:2402.03300; of flows arXiv:2505.05470). What differs between the runs is the steps' noise alone:

    flow_grpo, cps       set by hand, see `rival_steps.py`
    isotropic, dct       measured: AnalyticFlowScheduler, η = 1

What is reported is the reward of the ODE's samples from fixed noise: of what the network has learnt, whatever noise it
was taught with; and how far they are from real digits. Pairs of one seed are compared by a paired t-test, with Holm's
correction for the number of comparisons.
"""

from __future__ import annotations

import argparse
import copy
import math
from dataclasses import dataclass
from itertools import combinations
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from rival_steps import USUAL, rival_step
from scipy.stats import ttest_rel
from table_rows import header, row

import diffusion_var as dv
from diffusion_var.data import digits_splits, to_float
from diffusion_var.training import UNetTraining, train_unet

METHODS = ("flow_grpo", "cps", "isotropic", "dct")
SHAPE = (1, 8, 8)


class Flow(torch.nn.Module):
    """F(x_t, t) of 8×8 images; called as diffusers' networks are."""

    def __init__(self, width: int = 256) -> None:
        super().__init__()
        self.layers = torch.nn.Sequential(
            *(torch.nn.Linear(64 + 32, width), torch.nn.SiLU(), torch.nn.Linear(width, width), torch.nn.SiLU()),
            *(torch.nn.Linear(width, width), torch.nn.SiLU(), torch.nn.Linear(width, 64)),
        )

    def forward(self, x: torch.Tensor, timestep: torch.Tensor) -> SimpleNamespace:
        angle = timestep.float()[:, None] / 1000 * torch.pi * 2.0 ** torch.arange(-1, 7, 0.5)
        told = torch.cat([angle.sin(), angle.cos()], dim=1)
        return SimpleNamespace(sample=self.layers(torch.cat([x.flatten(1), told], dim=1)).view_as(x))


def reward(images: torch.Tensor) -> torch.Tensor:
    """Pixels that are lit in the upper half less those in the lower, (B,)."""
    lit = (images > 0).float().flatten(1)
    return lit[:, :32].sum(1) - lit[:, 32:].sum(1)


# ---- the model, and steps of it -------------------------------------------------------------------------------------


@dataclass
class Model:
    """What every run starts from."""

    network: Flow
    table: dv.VarianceTable
    digits: torch.Tensor


def trained(steps: int, seed: int = 0) -> Model:
    """A flow model of the training digits, and its table, of digits that it has not seen."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network = Flow()
    splits, schedule = digits_splits(), dv.NoiseSchedule.flow(1000)
    settings = UNetTraining(steps, batch_size=128, learning_rate=2e-3, prediction="flow", evaluate_every=steps)
    made = train_unet(network, splits.train.images, schedule, settings, progress=False).network
    denoiser = dv.Denoiser(made, schedule, "flow", SHAPE, clip=None, data_range=(-1.0, 1.0))
    table = dv.estimate(denoiser, splits.table.images, 0.05, structures=("isotropic", "dct"), progress=False)
    assert isinstance(made, Flow)
    return Model(made, table, to_float(splits.train.images))


class HandSet:
    """A step of another code, with the same face as the scheduler's: (x_s, log p)."""

    def __init__(self, rule: str, scheduler: FlowMatchEulerDiscreteScheduler) -> None:
        self.rule, self.sigmas = rule, scheduler.sigmas.tolist()

    def step(
        self, k: int, flow: torch.Tensor, x: torch.Tensor, given: torch.Tensor | None, stream: torch.Generator
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        affine = rival_step(self.rule, self.sigmas[k], self.sigmas[k + 1], USUAL[self.rule])
        mean = affine.of_x * x + affine.of_flow * flow
        if affine.deviation == 0:
            return mean, None
        if given is None:
            given = mean + affine.deviation * torch.randn(x.shape, generator=stream)
        nats = 0.5 * ((given - mean) / affine.deviation).square() + math.log(affine.deviation * math.sqrt(2 * math.pi))
        return given, -nats.flatten(1).sum(1)


class Measured:
    """A step of `AnalyticFlowScheduler`."""

    def __init__(self, table: dv.VarianceTable, structure: str, scheduler: FlowMatchEulerDiscreteScheduler) -> None:
        self.scheduler = dv.AnalyticFlowScheduler.from_table(table, scheduler, structure=structure, eta=1.0)
        self.scheduler.set_timesteps(len(scheduler.timesteps))

    def step(
        self, k: int, flow: torch.Tensor, x: torch.Tensor, given: torch.Tensor | None, stream: torch.Generator
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        scheduler = self.scheduler
        if k == 0 and given is None:
            scheduler.set_timesteps(
                len(scheduler.timesteps)
            )  # a run begins; what is given has its place by its timestep
        out = scheduler.step(
            flow, scheduler.timesteps[k], x, generator=stream, prev_sample=given, log_prob_reduction="sum"
        )
        return out.prev_sample, out.log_prob


def policy(method: str, table: dv.VarianceTable, steps: int) -> tuple[HandSet | Measured, torch.Tensor]:
    """The steps of a method, and their timesteps."""
    scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0)
    scheduler.set_timesteps(steps)
    made = Measured(table, method, scheduler) if method in ("isotropic", "dct") else HandSet(method, scheduler)
    return made, scheduler.timesteps


# ---- GRPO -----------------------------------------------------------------------------------------------------------


@dataclass
class Settings:
    """Of a run."""

    steps: int = 8
    group: int = 96
    epochs: int = 2
    clip: float = 0.2
    learning_rate: float = 2e-4
    iterations: int = 40


def learn(model: Model, method: str, seed: int, settings: Settings) -> tuple[list[float], torch.Tensor]:
    """The reward after every iteration, that of the untrained model first, and the last samples of the ODE."""
    network, stream = copy.deepcopy(model.network).requires_grad_(True).train(), torch.Generator().manual_seed(seed)
    steps, times = policy(method, model.table, settings.steps)
    optimizer = torch.optim.Adam(network.parameters(), settings.learning_rate)
    curve = [float(reward(by_ode(network)).mean())]
    for _ in range(settings.iterations):
        path, old = [torch.randn((settings.group, *SHAPE), generator=stream)], []
        with torch.no_grad():
            for k, t in enumerate(times):
                flow = network(path[-1], t.expand(settings.group)).sample
                x, log_prob = steps.step(k, flow, path[-1], None, stream)
                path.append(x)
                old.append(log_prob)
        rewards = reward(path[-1])
        advantage = (rewards - rewards.mean()) / (rewards.std() + 1e-6)
        for _ in range(settings.epochs):
            for k, t in enumerate(times):
                if old[k] is None:  # nothing was drawn
                    continue
                flow = network(path[k], t.expand(settings.group)).sample
                _, log_prob = steps.step(k, flow, path[k], path[k + 1], stream)
                ratio = (log_prob - old[k]).exp()
                kept = ratio.clamp(1 - settings.clip, 1 + settings.clip)
                loss = -torch.minimum(ratio * advantage, kept * advantage).mean()
                optimizer.zero_grad()
                loss.backward()
                torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
                optimizer.step()
        curve.append(float(reward(by_ode(network)).mean()))
    return curve, by_ode(network)


@torch.no_grad()
def by_ode(network: Flow, count: int = 256, steps: int = 10) -> torch.Tensor:
    """Samples of Euler's method, always from the same noise."""
    scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0)
    scheduler.set_timesteps(steps)
    x = torch.randn((count, *SHAPE), generator=torch.Generator().manual_seed(1234))
    for t in scheduler.timesteps:
        x = scheduler.step(network(x, t.expand(count)).sample, t, x).prev_sample
    return x


def distance(samples: torch.Tensor, digits: torch.Tensor) -> float:
    """Root mean square difference, a pixel, from the nearest training digit."""
    nearest = torch.cdist(samples.flatten(1), digits.flatten(1)).amin(1)
    return float((nearest.square().mean() / samples[0].numel()).sqrt())


# ---- what is printed ------------------------------------------------------------------------------------------------


def compared(final: dict[str, np.ndarray[Any, Any]]) -> list[tuple[str, str, float, float, float]]:
    """Of every pair of methods: their names, the mean difference, its standard error, and p by Holm."""
    pairs = list(combinations(final, 2))
    found = [float(ttest_rel(final[a], final[b]).pvalue) for a, b in pairs]
    held, least = dict.fromkeys(pairs, 1.0), 0.0
    for rank, i in enumerate(np.argsort(found)):
        least = max(least, min(1.0, (len(pairs) - rank) * found[i]))
        held[pairs[i]] = least
    made = []
    for a, b in pairs:
        apart = final[a] - final[b]
        made.append((a, b, float(apart.mean()), float(apart.std(ddof=1) / len(apart) ** 0.5), held[a, b]))
    return made


def report(model: Model, seeds: int, settings: Settings) -> None:
    runs = {method: [learn(model, method, seed, settings) for seed in range(seeds)] for method in METHODS}
    curves = {method: np.array([curve for curve, _ in found]) for method, found in runs.items()}
    shown = sorted({round(settings.iterations * share) for share in (0, 0.125, 0.25, 0.5, 0.75, 1)})
    before = distance(by_ode(model.network), model.digits)
    print(f"reward after an iteration, the ODE's samples, {seeds} seeds (mean ± standard error);")
    print(f"before the first they are {before:.3f} from the digits:\n")
    header("noise", *(f"{n}" for n in shown), "distance from digits")
    for method, curve in curves.items():
        cells = [f"{curve[:, n].mean():.2f} ± {curve[:, n].std(ddof=1) / seeds**0.5:.2f}" for n in shown]
        away = np.mean([distance(samples, model.digits) for _, samples in runs[method]])
        row(method, *cells, f"{away:.3f}")
    print(f"\nmean of all {settings.iterations} iterations, differences in pairs of one seed:\n")
    header("noise", "less", "difference", "p (Holm)", "differ")
    for a, b, apart, error, p in compared({method: curve[:, 1:].mean(1) for method, curve in curves.items()}):
        row(a, b, f"{apart:.2f} ± {error:.2f}", f"{p:.2g}", "yes" if p < 0.05 else "no")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--iterations", type=int, default=Settings.iterations)
    parser.add_argument("--group", type=int, default=Settings.group, help="images an iteration")
    parser.add_argument("--steps", type=int, default=Settings.steps, help="of the sampler")
    parser.add_argument("--learning-rate", type=float, default=Settings.learning_rate)
    parser.add_argument("--train-steps", type=int, default=4000, help="of the flow model, before")
    given = parser.parse_args()
    chosen = Settings(given.steps, given.group, iterations=given.iterations, learning_rate=given.learning_rate)
    report(trained(given.train_steps), given.seeds, chosen)
