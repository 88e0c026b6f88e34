"""What every exact denoiser has: float64 parameters and a fingerprint of them, no network, and samples of its data."""

from __future__ import annotations

import hashlib
from abc import abstractmethod
from collections.abc import Sequence
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from .. import checks
from ..errors import InputError
from ..process.schedule import NoiseSchedule
from .denoiser import Denoiser, Place
from .identity import ModelIdentity


class ExactDenoiser(Denoiser):
    """A denoiser computed from the data's distribution; subclasses give `exact_mean` and `sample`."""

    exact = True

    def __init__(self, schedule: NoiseSchedule, shape: Sequence[int], device: torch.device | str | None = None) -> None:
        super().__init__(self._no_network, schedule, "sample", shape, clip=None, device=device)
        self._parameters: dict[str, torch.Tensor] = {}

    @staticmethod
    def _no_network(*_: Any) -> torch.Tensor:
        raise NotImplementedError("an exact denoiser has no network")

    def _keep(self, name: str, values: npt.ArrayLike | torch.Tensor, shape: tuple[int, ...]) -> torch.Tensor:
        array = values.detach().cpu().numpy() if isinstance(values, torch.Tensor) else np.asarray(values)
        square = array.ndim == 1 < len(shape) and len(array) == shape[0] == shape[-1] > 1
        checks.refuse(
            square,
            f"{name} has shape {array.shape}, which of images {shape} could be the channels or the last axis; give it "
            f"all {len(shape)} axes, with 1 where the values are shared.",
        )
        try:
            tensor = torch.from_numpy(np.broadcast_to(array.astype(np.float64), shape).copy()).to(self.device)
        except ValueError:
            raise InputError(f"{name} has shape {array.shape}, but {shape} is needed.") from None
        if not torch.isfinite(tensor).all():
            raise InputError(f"{name} must hold finite numbers only.")
        self._parameters[name] = tensor
        return tensor

    @abstractmethod
    def exact_mean(self, x_t: torch.Tensor, alpha: Any, sigma: Any) -> torch.Tensor:
        """E[x_0|x_t] in float64; alpha and sigma are floats or (B, 1, …) tensors."""

    @abstractmethod
    def sample(self, count: int, seed: int = 0) -> torch.Tensor:
        """`count` images of the data distribution, (count, C, *spatial) float32, on the CPU."""

    def _predict(self, x_t: torch.Tensor, n: Place, condition: Any) -> tuple[torch.Tensor, None]:
        x = x_t.double()
        return self.exact_mean(x, *self.schedule.coefficients(n, x)).to(x_t.dtype), None

    def _network_facts(self, beside: ModelIdentity | None, keep: bool) -> dict[str, Any]:
        return {"network": self._own_fingerprint}

    @cached_property
    def _own_fingerprint(self) -> str | None:
        content = hashlib.sha256(type(self).__name__.encode())
        for name, tensor in sorted(self._parameters.items()):
            content.update(f"{name}{tuple(tensor.shape)}".encode() + tensor.cpu().numpy().tobytes())
        return content.hexdigest()
