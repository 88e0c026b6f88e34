"""What a network may have been trained to be shown, told and to return: the conventions that the doctor tries.

    asked    which (α, σ) data and noise are mixed with, in which scale of the data, what the network is shown of
             x_t (itself, or EDM's c_in x_t/α) and what it is told of the noise level: needs an evaluation of its own;
    read     what its output is (ε, x_0, v, …) and with which sign: needs none, so that one output is read in all ways.

The usual schedules are those of `NoiseSchedule`, and the sigmoid one of Jabri et al. (arXiv:2212.11972).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any, Literal

import numpy as np
import torch

from ..models.denoiser import Denoiser
from ..models.prediction import Prediction, mean_and_eps, network_input, step_before
from ..process.schedule import Float64Array, NoiseSchedule

DECLARED = "declared"
Shown = Literal["x_t", "edm"]

#: What a network is told at the indices n = 1…N of a schedule: by name, of (schedule, n).
TOLD: dict[str, Callable[[NoiseSchedule, Float64Array], Float64Array]] = {
    DECLARED: lambda schedule, n: schedule.timestep[n.astype(int)],
    "n - 1": lambda schedule, n: n - 1,
    "n": lambda schedule, n: n,
    "n/N": lambda schedule, n: n / schedule.num_steps,
    "1000 n/N": lambda schedule, n: 1000 * n / schedule.num_steps,
    "N - n": lambda schedule, n: schedule.num_steps - n,
    "1 - n/N": lambda schedule, n: 1 - n / schedule.num_steps,
    "1000 (1 - n/N)": lambda schedule, n: 1000 * (1 - n / schedule.num_steps),
    "sigma": lambda schedule, n: schedule.sigma[n.astype(int)],
    "sigma/alpha": lambda schedule, n: np.exp(-0.5 * schedule.log_snr[n.astype(int)]),
    "ln(sigma/alpha)": lambda schedule, n: -0.5 * schedule.log_snr[n.astype(int)],
    "ln(sigma/alpha)/4": lambda schedule, n: -0.125 * schedule.log_snr[n.astype(int)],
    "log SNR": lambda schedule, n: schedule.log_snr[n.astype(int)],
    "alpha": lambda schedule, n: schedule.alpha[n.astype(int)],
}
_OF_NOISE = ("sigma", "ln(sigma/alpha)", "ln(sigma/alpha)/4")  # of networks whose data are not scaled
_OF_TIME = ("n - 1", "n/N", "N - n", "1 - n/N", "log SNR")
_OF_FLOW = ("n/N", "1000 n/N", "1 - n/N", "1000 (1 - n/N)")

#: What an output may be, with its sign; EDM's is read of what is shown EDM's input alone.
READINGS: tuple[tuple[Prediction, int], ...] = (
    *((prediction, +1) for prediction in ("epsilon", "sample", "v_prediction", "flow", "score", "previous_x")),
    *((prediction, -1) for prediction in ("epsilon", "v_prediction", "flow", "score")),
)
EDM_READINGS: tuple[tuple[Prediction, int], ...] = (("edm", +1), ("edm_v", +1), ("sample", +1), ("epsilon", +1))


@dataclass(frozen=True)
class Scale:
    """The network's own data are scale · x_0 + shift; `name` says so in words."""

    name: str
    scale: float = 1.0
    shift: float = 0.0


AS_GIVEN = Scale(DECLARED)


@dataclass(frozen=True)
class Convention:
    """One convention; `changes` counts in how many parts it differs from what is declared.

    Attributes:
        schedule_name, schedule: with which (α, σ) data and noise are mixed.
        told: a name of `TOLD`.
        shown: "x_t", or "edm" for c_in x_t/α.
        data: the scale of the data.
        prediction, sign: what the output, times the sign, is.
    """

    schedule_name: str
    schedule: NoiseSchedule = field(repr=False, compare=False)
    told: str = DECLARED
    shown: Shown = "x_t"
    data: Scale = AS_GIVEN
    prediction: Prediction = "epsilon"
    sign: int = 1

    @property
    def readings(self) -> tuple[tuple[Prediction, int], ...]:
        """How an output may be read; the mean of the index before is known on the declared schedule alone."""
        if self.shown == "edm":
            return EDM_READINGS
        own = self.schedule_name == DECLARED
        return tuple(pair for pair in READINGS if own or pair[0] != "previous_x")

    def read_as(self, prediction: Prediction, sign: int) -> Convention:
        """The same question, its answer read in another way."""
        return replace(self, prediction=prediction, sign=sign)

    @property
    def whole(self) -> bool:
        """Whether the network is told whole numbers alone."""
        told = TOLD[self.told](self.schedule, np.arange(1.0, self.schedule.num_steps + 1))
        return bool(np.array_equal(told, told.round()))

    def timestep(self, n: int) -> float:
        """What the network is told at an index."""
        return float(TOLD[self.told](self.schedule, np.array(float(n))))

    def input(self, x_t: torch.Tensor, n: int, sigma_data: float) -> torch.Tensor:
        """What the network is shown of x_t."""
        alpha, sigma = float(self.schedule.alpha[n]), float(self.schedule.sigma[n])
        return network_input("edm" if self.shown == "edm" else "epsilon", x_t, alpha, sigma, sigma_data)

    def mean(self, output: torch.Tensor, x_t: torch.Tensor, n: int, sigma_data: float) -> torch.Tensor:
        """x̂_0 in the network's own scale, of its output."""
        alpha, sigma = float(self.schedule.alpha[n]), float(self.schedule.sigma[n])
        before = step_before(self.schedule, n, x_t) if self.prediction == "previous_x" else None
        return mean_and_eps(self.prediction, self.sign * output, x_t, alpha, sigma, sigma_data, before)[0]

    def changes(self, declared: Convention) -> int:
        """In how many parts it is another one."""
        mine, theirs = self._parts(), declared._parts()
        return sum(a != b for a, b in zip(mine, theirs, strict=True))

    def _parts(self) -> tuple[Any, ...]:
        return self.schedule_name, self.told, self.shown, self.data, self.prediction, self.sign

    def differences(self, declared: Convention) -> list[str]:
        """What is to be declared otherwise, each in a phrase with the argument that does it."""
        out = []
        if self.prediction != declared.prediction:
            out.append(f'prediction="{self.prediction}"')
        if self.sign < 0:
            out.append("the negative of the network's output (lambda x, t: -network(x, t))")
        if self.schedule_name != declared.schedule_name:
            out.append(f"schedule={self.schedule_name}")
        if not self._told_as_usual(declared):
            out.append(f"timestep {self.told} of the schedule's indices (dv.NoiseSchedule(alpha, sigma, timestep))")
        if self.shown != declared.shown and self.prediction not in ("edm", "edm_v"):
            out.append("the network is shown x_t/√(σ² + α² sigma_data²)" if self.shown == "edm" else "it is shown x_t")
        if self.data != declared.data:
            out.append(self.data.name)
        return out

    def _told_as_usual(self, declared: Convention) -> bool:
        """Whether the timestep is that of the schedule that is named, so that nothing needs to be said of it."""
        own = TOLD[self.told](self.schedule, np.arange(1.0, self.schedule.num_steps + 1))
        return self.told == declared.told or np.array_equal(own, self.schedule.timestep[1:])

    def plain(self) -> dict[str, Any]:
        """As plain data."""
        return {
            "prediction": self.prediction,
            "sign": self.sign,
            "schedule": self.schedule_name,
            "timestep": self.told,
            "shown": self.shown,
            "data": self.data.name,
        }


def declared_convention(denoiser: Denoiser) -> Convention:
    """What a denoiser's arguments say."""
    shown: Shown = "edm" if denoiser.prediction in ("edm", "edm_v") else "x_t"
    return Convention(DECLARED, denoiser.schedule, shown=shown, prediction=denoiser.prediction)


# ---- what is tried --------------------------------------------------------------------------------------------------


@cache
def usual_schedules() -> dict[str, NoiseSchedule]:
    """By the call that makes them."""
    found = {f"dv.NoiseSchedule.{name}(1000)": name for name in ("linear", "cosine", "scaled_linear", "flow", "edm")}
    out = {call: getattr(NoiseSchedule, name)(1000) for call, name in found.items()}
    out["dv.NoiseSchedule.from_betas(…) of the sigmoid schedule, 1000 steps"] = sigmoid_schedule(1000)
    return out


def sigmoid_schedule(N: int, start: float = -3.0, end: float = 3.0) -> NoiseSchedule:
    """ᾱ(u) = (s(end) − s(start + u (end − start)))/(s(end) − s(start)), s the logistic function (arXiv:2212.11972),
    with β cut at 0.999."""
    u = np.linspace(0.0, 1.0, N + 1)
    s = 1.0 / (1.0 + np.exp(-(start + u * (end - start))))
    alpha_bar = (s[-1] - s) / (s[-1] - s[0])
    return NoiseSchedule.from_betas(np.clip(1.0 - alpha_bar[1:] / alpha_bar[:-1], 1e-8, 0.999))


def askings(declared: Convention) -> Iterator[Convention]:
    """All other ways to ask the network, in the data's declared scale: the declared schedule with every timestep, the
    usual ones with those that are usual of them."""
    for told in TOLD:
        yield replace(declared, told=told)
    if declared.shown == "edm":
        yield replace(declared, shown="x_t", told="sigma")
    for name, schedule in usual_schedules().items():
        if schedule == declared.schedule:
            continue
        kind = _OF_FLOW if "flow" in name else _OF_NOISE if "edm" in name else _OF_TIME
        for told in kind:
            yield replace(declared, schedule_name=name, schedule=schedule, told=told, shown="x_t")
            if kind is _OF_NOISE:
                yield replace(declared, schedule_name=name, schedule=schedule, told=told, shown="edm")


def scales(data_range: tuple[float, float] | None, mean: float, std: float) -> list[Scale]:
    """Other scales that the network's data may have: of data with a range, other ranges; of any, unit variance."""
    out = []
    if data_range is not None:
        low, high = data_range
        for a, b in ((-1.0, 1.0), (0.0, 1.0), (-0.5, 0.5), (0.0, 255.0)):
            if (a, b) != (low, high):
                scale = (b - a) / (high - low)
                out.append(Scale(f"data scaled to [{a:g}, {b:g}] (clip=({a:g}, {b:g}))", scale, a - scale * low))
    for size in (1.0, 0.5):
        if abs(std - size) > 0.1 * size or abs(mean) > 0.1 * size:
            out.append(Scale(f"data of mean 0 and standard deviation {size:g}", size / std, -mean * size / std))
    return out
