"""Solvers of the probability-flow ODE and of the reverse SDE, as others sample: diffusers' own, run on a `Denoiser`.

A scheduler of diffusers computes every step, unchanged. What is made here is what it is told: the levels σ/α of the
step list, the network's x̂_0 (or what ε̂ is by it, (x − α x̂_0)/σ, for the one that takes nothing else), and x in its
units: x_t/√(α² + σ²) for solvers of variance-preserving data, x_t/α for those of σ = σ_t/α_t. Both are changes of
scale, by which no solver's result is changed, so that each serves every schedule and prediction type.

    dpm_solver_pp       DPM-Solver++(2M), or of another order (arXiv:2211.01095); sde_dpm_solver_pp: its SDE form
    unipc               UniPC (arXiv:2302.04867), predictor and corrector, B(h) of the second kind
    heun, euler         of EDM (arXiv:2206.00364) and k-diffusion, without churn
    euler_ancestral     k-diffusion's; its new noise is DDPM's, β̃ in units of x/α

All end with a step to clean data, x̂_0. Heun evaluates the network twice a step, but for the last.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, NoReturn

import torch

from .. import checks
from ..covariance.fixed import FixedSmall
from ..errors import InputError
from ..models.denoiser import Denoiser
from ..models.network_run import NetworkRun
from ..models.prediction import eps_of_mean
from ..process.kernel import ReverseKernel
from ..process.level import NoiseLevel
from ..randomness import Streams
from .noise import ImageNoise
from .sampler import Sampler


@dataclass(frozen=True)
class Solver:
    """One solver of diffusers.

    Attributes:
        scheduler: its class.
        label: as reports call it, with its {order}.
        spacing: of the steps it is usually given: "log_snr" or "karras".
        orders: that it has; the second is the usual one. Empty: no choice.
        config: of the scheduler.
        per_alpha: whether its x is x_t/α, and not x_t/√(α² + σ²).
        takes: the prediction type that it is given.
        is_random: whether it adds noise.
    """

    scheduler: str
    label: str
    spacing: str
    orders: tuple[int, ...] = ()
    config: dict[str, Any] = field(default_factory=dict)
    per_alpha: bool = False
    takes: str = "sample"
    is_random: bool = False

    @property
    def usual_order(self) -> int | None:
        """The order that it has where none is asked for."""
        return self.orders[1] if self.orders else None


SOLVERS: Final[dict[str, Solver]] = {
    "dpm_solver_pp": Solver("DPMSolverMultistepScheduler", "DPM-Solver++({order}M)", "log_snr", (1, 2, 3)),
    "sde_dpm_solver_pp": Solver(
        "DPMSolverMultistepScheduler",
        "SDE-DPM-Solver++({order}M)",
        "log_snr",
        (1, 2),
        {"algorithm_type": "sde-dpmsolver++"},
        is_random=True,
    ),
    "unipc": Solver("UniPCMultistepScheduler", "UniPC-{order}", "log_snr", (1, 2, 3)),
    "heun": Solver("HeunDiscreteScheduler", "Heun", "karras", per_alpha=True),
    "euler": Solver("EulerDiscreteScheduler", "Euler", "karras", per_alpha=True),
    "euler_ancestral": Solver(
        "EulerAncestralDiscreteScheduler",
        "Euler ancestral",
        "karras",
        per_alpha=True,
        takes="epsilon",
        is_random=True,
    ),
}


def steps_within(solver: str, evaluations: int) -> int:
    """The largest number of steps that takes at most so many evaluations; Heun's M steps take 2M − 1."""
    return (evaluations + 1) // 2 if solver == "heun" else evaluations


class SolverSampler(Sampler):
    """Draws images with one of diffusers' solvers; used like a `Sampler`, and from the same first noise.

    Args:
        denoiser: the model.
        solver: a name of `SOLVERS`: "dpm_solver_pp", "sde_dpm_solver_pp", "unipc", "heun", "euler" or
            "euler_ancestral".
        steps: see `Sampler`; log-SNR or Karras steps are usual (`steps.log_snr_levels`, `steps.karras`).
        order: of DPM-Solver++ and UniPC; None: 2.
        low_start: see `Sampler`.

    Attributes: `steps`, `kernels`, and `evaluations` of the network that an image takes.
    Raises InputError as `Sampler` does, for an order that the solver does not have, and for steps that begin at a level
    without signal, where log-SNR and σ/α, by which these solvers step, are infinite.
    """

    def __init__(
        self,
        denoiser: Denoiser,
        solver: str = "dpm_solver_pp",
        steps: int | Sequence[int] | Sequence[NoiseLevel] = 25,
        order: int | None = None,
        low_start: bool = False,
    ) -> None:
        self.name = checks.one_of("solver", solver, SOLVERS)
        self.solver = SOLVERS[self.name]
        self.order = check_order(self.name, order)
        super().__init__(denoiser, FixedSmall(), steps, eta=0.0, low_start=low_start)
        start = self.kernels[0].level_t
        checks.refuse(
            start.alpha == 0.0,
            f"the solver {solver} steps by the log-SNR, which is infinite at {start.name}: no signal is left there "
            "(zero terminal SNR); let the steps begin below it, or take a step that can begin there, such as DDIM's.",
        )
        self._visits = _visits(self.name, self.kernels)

    @property
    def evaluations(self) -> int:
        """How often the network is evaluated for an image."""
        return len(self._visits)

    def facts(self) -> dict[str, Any]:
        return {**super().facts(), "solver": self.name, "order": self.order}

    def scheduler(self) -> Any:
        """A scheduler of diffusers that is about to begin, at this sampler's levels."""
        import diffusers

        count = len(self._visits)
        config = {**self.solver.config, "prediction_type": self.solver.takes, "num_train_timesteps": max(1000, count)}
        if self.order is not None:
            config["solver_order"] = self.order
        made = getattr(diffusers, self.solver.scheduler)(**config)
        made.set_timesteps(len(self.kernels))
        # Its own levels are of a schedule on whole timesteps; these are the step list's.
        made.sigmas = torch.tensor([*(level.sigma / level.alpha for level, _ in self._visits), 0.0])
        made.timesteps = torch.arange(count, 0, -1, dtype=torch.float32)
        made.num_inference_steps = count
        made.set_begin_index(0)
        return made

    @torch.inference_mode()
    def _batch(
        self,
        run: NetworkRun,
        images: Sequence[int],
        seed: int,
        condition: Any,
        bar: Any,
        visit: Callable[[ReverseKernel, torch.Tensor], None] | None,
        x: torch.Tensor | None = None,
    ) -> torch.Tensor:
        condition = self.denoiser.condition_of(images, condition)
        if x is None:
            x = self._prior(ImageNoise(seed, images, self.denoiser.shape, self.denoiser.device))
        x = x / self._unit(self.kernels[0].level_t)
        scheduler = self.scheduler()
        noise = {"generator": _generators(seed, images)} if self.solver.is_random else {}
        sums = []
        for timestep, (level, done) in zip(scheduler.timesteps, self._visits, strict=True):
            x_t = scheduler.scale_model_input(x, timestep) * math.hypot(level.alpha, level.sigma)
            posterior = run(x_t, level, condition)
            told = posterior.mean
            if self.solver.takes == "epsilon":
                told = eps_of_mean(x_t, posterior.mean, level.alpha, level.sigma)
            sums.append(posterior.eps.sum(dtype=torch.float32))
            x = scheduler.step(told, timestep, x, **noise).prev_sample
            if done is not None and visit is not None:
                visit(done, x * self._unit(done.level_s))
            bar.update(len(images))
        return self._finished(x, sums, [level for level, _ in self._visits], images)

    def _unit(self, level: NoiseLevel) -> float:
        """What the solver's x is multiplied by to be x_t."""
        return level.alpha if self.solver.per_alpha else math.hypot(level.alpha, level.sigma)

    def invert(
        self, images: Any, iterations: int = 1, batch_size: int = 64, conditions: Any = None, progress: bool = False
    ) -> NoReturn:
        """Refused: solvers of several levels have no inverse of their own."""
        raise InputError(
            f"the solver {self.name} cannot be inverted; use dv.Sampler(denoiser, dv.FixedSmall(), steps, eta=0)."
        )


def check_order(solver: str, order: Any) -> int | None:
    """The order of a solver, by default its usual one; InputError for one that it does not have."""
    held = SOLVERS[solver]
    if order is None:
        return held.usual_order
    none = not held.orders
    checks.refuse(none, f"order={checks.brief(order)} has no meaning for the solver {solver}; leave it out.")
    return checks.whole("order", order, held.orders[0], held.orders[-1], f"the solver {solver} has no other")


def _visits(solver: str, kernels: Sequence[ReverseKernel]) -> list[tuple[NoiseLevel, ReverseKernel | None]]:
    """The levels at which the network is evaluated, and the step that is done after it, or None.

    Heun evaluates at the beginning of a step and, but for the last, again at its end.
    """
    if solver != "heun":
        return [(kernel.level_t, kernel) for kernel in kernels]
    out: list[tuple[NoiseLevel, ReverseKernel | None]] = []
    for kernel in kernels[:-1]:
        out += [(kernel.level_t, None), (kernel.level_s, kernel)]
    return [*out, (kernels[-1].level_t, kernels[-1])]


def _generators(seed: int, images: Sequence[int]) -> list[torch.Generator]:
    """One for each image, on the CPU: its numbers do not depend on who else is in the batch."""
    streams = Streams()
    seeds = [int(streams.at(seed, "solver noise", i).integers(2**63)) for i in images]
    return [torch.Generator().manual_seed(own) for own in seeds]
