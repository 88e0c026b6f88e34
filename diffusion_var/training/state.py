"""What a training run needs to go on exactly: weights, their average, Adam's moments, the step and the loss curve.

Every random number of a run depends on the step alone, so there is no generator state to keep. How it is written, and
refused where it belongs to another run, is `resume`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Any

import numpy as np
import torch
from pydantic import Field

from ..array_rules import ArrayRule, Rules, require_arrays
from ..checks import refuse
from ..documents import Arrays, Form
from ..errors import InputError
from ..resume import ANEW, State, StateRecord


class StateOfTraining(StateRecord):
    """Steps done, seconds spent, and steps that the average has seen."""

    step: Annotated[int, Field(ge=0)]
    seconds: Annotated[float, Field(ge=0)]
    average_steps: Annotated[int, Field(ge=0)]


FORM = Form(
    "diffusion_var.training_checkpoint",
    2,  # 2: the curve is an array
    "training checkpoint",
    StateOfTraining,
    remedy=ANEW,
)


@dataclass
class TrainingState:
    """A training run between two steps.

    Attributes:
        network: the module whose weights are trained.
        average: diffusers' EMAModel of its parameters.
        optimizer: Adam or AdamW over the same parameters.
        step: steps done.
        curve: rows of numbers so far, the step first.
        seconds: time spent training so far, over all interruptions.
        extra: whatever else a run must find again.
    """

    network: torch.nn.Module
    average: Any
    optimizer: torch.optim.Optimizer
    step: int = 0
    curve: list[tuple[float, ...]] = field(default_factory=list)
    seconds: float = 0.0
    extra: dict[str, torch.Tensor] = field(default_factory=dict)

    def kept(self) -> State:
        """All of it as arrays and plain data."""
        arrays = {f"network.{name}": _array(value) for name, value in self.network.state_dict().items()}
        arrays |= {f"average.{i}": _array(value) for i, value in enumerate(self.average.shadow_params)}
        for i, parameter in enumerate(self._parameters()):
            for name, value in self.optimizer.state.get(parameter, {}).items():
                arrays[f"optimizer.{i}.{name}"] = _array(torch.as_tensor(value))
        arrays |= {f"extra.{name}": _array(value) for name, value in self.extra.items()}
        arrays["curve"] = np.array(self.curve, dtype=np.float64)
        plain = {"step": self.step, "seconds": self.seconds, "average_steps": self.average.optimization_step}
        return arrays, plain

    def continue_from(self, arrays: Arrays, plain: StateOfTraining) -> None:
        """Take what `kept` gave; InputError where it is of another network, or makes no sense."""
        weights = {f"network.{name}": value for name, value in self.network.state_dict().items()}
        _require_same_network(arrays, weights)
        require_arrays(arrays, self._rules(arrays, weights))
        self._require_steps(arrays, plain)
        with torch.no_grad():
            for name, value in weights.items():
                value.copy_(torch.from_numpy(arrays[name]))
            for i, value in enumerate(self.average.shadow_params):
                value.copy_(torch.from_numpy(arrays[f"average.{i}"]))
        for i, parameter in enumerate(self._parameters()):
            self.optimizer.state[parameter] = _optimizer_state(arrays, f"optimizer.{i}.", parameter)
        self.extra = {
            name.removeprefix("extra."): torch.from_numpy(a.copy())
            for name, a in arrays.items()
            if name.startswith("extra.")
        }
        self.average.optimization_step = plain.average_steps
        self.step, self.seconds = plain.step, plain.seconds
        self.curve = [tuple(float(number) for number in row) for row in arrays["curve"]]

    def _rules(self, arrays: Arrays, weights: dict[str, torch.Tensor]) -> Rules:
        """What the arrays of this run's checkpoint must be like."""
        rules = {name: _rule_of(value) for name, value in weights.items()}
        rules |= {f"average.{i}": _rule_of(value) for i, value in enumerate(self.average.shadow_params)}
        for i, parameter in enumerate(self._parameters()):
            shape = tuple(parameter.shape)
            rules[f"optimizer.{i}.step"] = ArrayRule("float32", (1,), least=0.0, optional=True)  # NumPy made it one
            rules[f"optimizer.{i}.exp_avg"] = ArrayRule("float32", shape, optional=True)
            rules[f"optimizer.{i}.exp_avg_sq"] = ArrayRule("float32", shape, least=0.0, optional=True)
        rules |= {name: ArrayRule("float32", None) for name in arrays if name.startswith("extra.")}
        curve = arrays.get("curve", np.zeros(0))
        rules["curve"] = ArrayRule("float64", ("points", "numbers") if curve.size else curve.shape, finite=False)
        return rules

    def _require_steps(self, arrays: Arrays, plain: StateOfTraining) -> None:
        """Refuse counts of steps that contradict each other."""
        counts = [arrays[name].item() for name in arrays if name.startswith("optimizer.") and name.endswith(".step")]
        wrong = plain.average_steps != plain.step or any(count != plain.step for count in counts)
        refuse(wrong, f"it says that {plain.step} steps were done, but its averages say otherwise")
        points = arrays["curve"][:, 0] if arrays["curve"].size else np.zeros(0)
        wrong = not (np.isfinite(points).all() and (np.diff(points) > 0).all() and (points <= plain.step).all())
        refuse(wrong, "the steps of its curve do not rise up to where it is")

    def _parameters(self) -> list[torch.nn.Parameter]:
        return [parameter for group in self.optimizer.param_groups for parameter in group["params"]]


def _rule_of(value: torch.Tensor) -> ArrayRule:
    return ArrayRule(_array(value).dtype.name, tuple(value.shape))


def _array(value: torch.Tensor) -> Any:
    return value.detach().cpu().numpy()


def _optimizer_state(arrays: Arrays, prefix: str, parameter: torch.Tensor) -> dict[str, torch.Tensor]:
    found = {name[len(prefix) :]: torch.from_numpy(a.copy()) for name, a in arrays.items() if name.startswith(prefix)}
    # Adam keeps its own count of steps on the CPU, its moments where the parameter is.
    return {name: value if name == "step" else value.to(parameter.device) for name, value in found.items()}


def _require_same_network(arrays: Arrays, weights: dict[str, torch.Tensor]) -> None:
    for name in sorted({*weights, *(name for name in arrays if name.startswith("network."))}):
        there, here = (str(tuple(held[name].shape)) if name in held else "absent" for held in (arrays, weights))
        if there != here:
            raise InputError(
                f"it belongs to another network: its {name.removeprefix('network.')} is {there}, but this run's is "
                f"{here}"
            )
