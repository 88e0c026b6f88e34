"""What a training run needs to go on exactly: weights, their average, Adam's moments, the step and the loss curve.

Every random number of a run depends on the step alone, so there is no generator state to keep. How it is written, and
refused where it belongs to another run, is `resume`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from ..documents import Arrays
from ..errors import InputError
from ..resume import State


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

    def continue_from(self, arrays: Arrays, plain: dict[str, Any]) -> None:
        """Take what `kept` gave; InputError where it is of another network."""
        weights = {f"network.{name}": value for name, value in self.network.state_dict().items()}
        _require_same_network(arrays, weights)
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
        self.average.optimization_step = plain["average_steps"]
        self.step, self.seconds = plain["step"], plain["seconds"]
        self.curve = [tuple(float(number) for number in row) for row in arrays["curve"]]

    def _parameters(self) -> list[torch.nn.Parameter]:
        return [parameter for group in self.optimizer.param_groups for parameter in group["params"]]


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
                f"the checkpoint belongs to another network: its {name.removeprefix('network.')} is {there}, but this "
                f"run's is {here}; delete it to start anew, or restore the network."
            )
