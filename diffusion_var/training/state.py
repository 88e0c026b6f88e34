"""What a training run needs to go on exactly: weights, their average, Adam's moments, the step and the loss curve.

Every random number of a run depends on the step alone, so there is no generator state to keep. The file is a checked
safetensors document, written atomically.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from ..documents import Arrays, read_document, write_document
from ..errors import InputError

FORMAT = "diffusion_var.training_checkpoint"
FORMAT_VERSION = 1


@dataclass
class TrainingState:
    """A training run between two steps.

    Attributes:
        network: the module whose weights are trained.
        average: diffusers' EMAModel of its parameters.
        optimizer: Adam or AdamW over the same parameters.
        step: steps done.
        curve: (step, training loss, held-out loss) so far.
        seconds: time spent training so far, over all interruptions.
        extra: whatever else a run must find again.
    """

    network: torch.nn.Module
    average: Any
    optimizer: torch.optim.Optimizer
    step: int = 0
    curve: list[tuple[int, float, float]] = field(default_factory=list)
    seconds: float = 0.0
    extra: dict[str, torch.Tensor] = field(default_factory=dict)

    def save(self, path: Path, identity: dict[str, Any]) -> None:
        """Write the state; `identity` (JSON) is what must agree for the run to be continued."""
        arrays = {f"network.{name}": _array(value) for name, value in self.network.state_dict().items()}
        arrays |= {f"average.{i}": _array(value) for i, value in enumerate(self.average.shadow_params)}
        for i, parameter in enumerate(self._parameters()):
            for name, value in self.optimizer.state.get(parameter, {}).items():
                arrays[f"optimizer.{i}.{name}"] = _array(torch.as_tensor(value))
        arrays |= {f"extra.{name}": _array(value) for name, value in self.extra.items()}
        metadata = {
            "identity": identity,
            "step": self.step,
            "curve": self.curve,
            "seconds": self.seconds,
            "average_steps": self.average.optimization_step,
        }
        write_document(path, FORMAT, FORMAT_VERSION, arrays, metadata)

    def restore(self, path: Path, identity: dict[str, Any]) -> None:
        """Continue from `path`; InputError if it is damaged or belongs to another run."""
        arrays, metadata = read_document(path, FORMAT, FORMAT_VERSION, "training checkpoint")
        saved, own = metadata["identity"], json.loads(json.dumps(identity))  # JSON has no tuples
        for key in {**own, **saved}:
            # A checkpoint of an older version lacks the names that came later.
            if key in saved and saved[key] != own.get(key):
                raise InputError(
                    f"the checkpoint {path} belongs to another run: its {key} is {saved[key]}, but this run's is "
                    f"{own.get(key)}; delete it to start anew, or restore the option."
                )
        weights = {f"network.{name}": value for name, value in self.network.state_dict().items()}
        for name in sorted({*weights, *(name for name in arrays if name.startswith("network."))}):
            there, here = (str(tuple(held[name].shape)) if name in held else "absent" for held in (arrays, weights))
            if there != here:
                raise InputError(
                    f"the checkpoint {path} belongs to another network: its {name.removeprefix('network.')} is "
                    f"{there}, but this run's is {here}; delete it to start anew, or restore the network."
                )
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
        self.average.optimization_step = metadata["average_steps"]
        self.step, self.seconds = metadata["step"], metadata["seconds"]
        self.curve = [(int(step), float(train), float(held_out)) for step, train, held_out in metadata["curve"]]

    def _parameters(self) -> list[torch.nn.Parameter]:
        return [parameter for group in self.optimizer.param_groups for parameter in group["params"]]


def _array(value: torch.Tensor) -> Any:
    return value.detach().cpu().numpy()


def _optimizer_state(arrays: Arrays, prefix: str, parameter: torch.Tensor) -> dict[str, torch.Tensor]:
    found = {name[len(prefix) :]: torch.from_numpy(a.copy()) for name, a in arrays.items() if name.startswith(prefix)}
    # Adam keeps its own count of steps on the CPU, its moments where the parameter is.
    return {name: value if name == "step" else value.to(parameter.device) for name, value in found.items()}
