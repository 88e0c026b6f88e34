"""Running small pipelines: with a seed, with every step kept, and with a table that passes for their network's."""

import dataclasses
import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import DiffusionPipeline
from small_families import CALLS, FAMILIES

import diffusion_var as dv
from diffusion_var.models.pretrained.aligned import aligned
from diffusion_var.models.pretrained.layout import Layout, layout_of
from diffusion_var.models.pretrained.loop_checks import modules_of

SEED = 5


def drawn(pipe: Any, call: dict[str, Any], seed: int = SEED) -> torch.Tensor:
    """What a call gives; its own noise and the scheduler's come from seeds."""
    if hasattr(pipe.scheduler, "generator"):
        pipe.scheduler.generator = torch.Generator().manual_seed(seed + 1)
    out = pipe(**call, generator=torch.Generator().manual_seed(seed))[0]
    return torch.as_tensor(out).float()


def read_back(folder: Path) -> Any:
    """A pipeline as diffusers reads it, but for what decides how kernels round: where in memory its weights begin, and
    whether they want gradients."""
    pipe = DiffusionPipeline.from_pretrained(folder)
    pipe.set_progress_bar_config(disable=True)
    for module in modules_of(pipe).values():
        aligned(module).requires_grad_(False)
    return pipe


def off(found: torch.Tensor, expected: torch.Tensor) -> float:
    """The largest difference, in parts of the largest value."""
    assert found.shape == expected.shape
    return float((found - expected).abs().max() / expected.abs().max())


@dataclasses.dataclass
class Step:
    """What a scheduler was handed and what it gave; `noise`: standard, as its generator had it for the step."""

    output: torch.Tensor
    sample: torch.Tensor
    prev_sample: torch.Tensor
    noise: torch.Tensor


@contextmanager
def kept_steps(scheduler: Any) -> Iterator[list[Step]]:
    """The steps that are made inside, in order."""
    steps: list[Step] = []
    own = type(scheduler).step

    class Keeping(type(scheduler)):  # type: ignore[misc]
        def step(self, model_output: torch.Tensor, timestep: Any, sample: torch.Tensor, *args: Any, **kw: Any) -> Any:
            generator = next(
                (g for g in (kw.get("generator"), getattr(self, "generator", None)) if g is not None), None
            )
            again = torch.Generator()
            if generator is not None:
                again.set_state(generator.get_state())
            noise = torch.randn(sample.shape, generator=again, dtype=model_output.dtype)
            out = own(self, model_output, timestep, sample, *args, **kw)
            steps.append(Step(model_output.clone(), sample.clone(), out[0].clone(), noise))
            return out

    Keeping.step.__signature__ = inspect.signature(own)  # type: ignore[attr-defined]  # pipelines look at the names
    kind, scheduler.__class__ = type(scheduler), Keeping
    try:
        yield steps
    finally:
        scheduler.__class__ = kind


#: (C, *spatial) of what a family's scheduler is handed, as images.
SHAPES: dict[str, tuple[int, ...]] = dict.fromkeys(FAMILIES, (4, 8, 8)) | {
    "ddpm": (3, 8, 8),
    "ldm": (3, 8, 8),
    "sd3": (16, 8, 8),
    "flux2": (16, 4, 4),
    "stable_audio": (4, 16),
    "wan": (4, 3, 4, 4),
    "ltx": (4, 3, 4, 4),
}


def measured(schedule: dv.NoiseSchedule, shape: tuple[int, ...], **facts: Any) -> dv.VarianceTable:
    """A table of Gaussian data whose spectrum falls, which passes for a network's."""
    places = np.sqrt(sum(axis.astype(float) ** 2 for axis in np.indices(shape)[1:]))
    variance = np.broadcast_to(1.0 / (1.0 + places), shape)
    oracle = dv.oracles.GaussianDenoiser(schedule, 0.1, variance)
    last = schedule.num_steps
    indices = [1, last // 8, last // 2, 7 * last // 8, last]
    table = dv.estimate(
        oracle, oracle.sample(64), 1e9, indices=indices, structures=("isotropic", "channel", "dct"), progress=False
    )
    return dataclasses.replace(table, network=None, **facts)


def call_of(name: str) -> dict[str, Any]:
    """The arguments of a family's small call, anew."""
    return dict(CALLS[name])


@cache
def flow_table(name: str) -> dv.VarianceTable:
    """A table for a flow family's latents; another shift than its scheduler's."""
    return measured(dv.NoiseSchedule.flow(1000), SHAPES[name], prediction="flow")


@cache
def beta_table(name: str) -> dv.VarianceTable:
    """A table for a family by betas."""
    schedule = dv.NoiseSchedule.from_diffusers(FAMILIES[name]().scheduler)
    return measured(schedule, SHAPES[name], prediction="epsilon")


@dataclasses.dataclass
class Reference:
    """A step as it should be, in float64."""

    last: bool
    prev_sample: torch.Tensor
    log_prob: torch.Tensor  # (B,), the mean over dimensions


def references(steps: list[Step], pipe: Any, table: dv.VarianceTable, structure: str) -> Iterator[Reference]:
    """The kernel's mean, and noise of the table's covariance: of such noise Σ^½ z the quadratic is ‖z‖²."""
    layout = layout_of(pipe).of(table.shape or ())
    if structure == "isotropic" or (layout.name.startswith("tokens") and steps[0].sample.ndim > 3):
        layout = Layout("plain")
    sigmas, sign = pipe.scheduler.sigmas.double()[-len(steps) - 1 :], 1
    if pipe.scheduler.config.invert_sigmas:  # the network says x_0 − ε
        sigmas, sign = 1 - sigmas, -1
    for step, t, s in zip(steps, sigmas, sigmas[1:], strict=False):
        x, v, z = (layout.images(part).double() for part in (step.sample, sign * step.output, step.noise))
        kernel = dv.ReverseKernel.between(level(t), None if s == 0 else level(s), eta=1.0)
        expected, log_prob = kernel.mean(x, dv.Posterior(x - t * v, x + (1 - t) * v)), torch.tensor(torch.nan)
        if s > 0:
            v_t = torch.as_tensor(table.posterior_variance(level(t), structure=structure))
            variance = kernel.lambda2 + kernel.gain**2 * v_t
            isotropic = structure == "isotropic"
            expected = expected + (variance.sqrt() * z if isotropic else table.structure(structure).colour(variance, z))
            log_prob = -0.5 * (z.square().flatten(1).mean(1) + variance.log().mean() + np.log(2 * np.pi))
        yield Reference(bool(s == 0), layout.samples(expected), log_prob)


def check_flow_steps(steps: list[Step], pipe: Any, table: dv.VarianceTable, structure: str) -> None:
    """Every step that was kept is the one that it should be."""
    for step, expected in zip(steps, references(steps, pipe, table, structure), strict=True):
        close = 5e-5 if structure != "dct" and not expected.last else 2e-6
        assert off(step.prev_sample.double(), expected.prev_sample) <= close


def level(sigma: torch.Tensor) -> dv.NoiseLevel:
    """The level of a flow's σ."""
    return dv.NoiseLevel.flow(float(sigma))
