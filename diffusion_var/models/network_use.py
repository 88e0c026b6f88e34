"""How a user's network is used: in evaluation mode and left as it was, on inputs of its own, its errors placed.

A network may be in the middle of a training loop, write into what it is given, or fail for want of memory after hours.
Denoisers are called by `Denoiser` alone, autoencoders by `LatentCodec`, which ask here for all that protects the two
sides from each other.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch

from .. import checks
from ..errors import InputError, NetworkError, NumericalError, RankError
from ..process.level import NoiseLevel

_NO_MEMORY = (
    "out of memory",
    "outofmemory",
    "can't allocate memory",
    "not enough memory",
    "alloc_failed",
    "could not create a primitive",  # oneDNN
)
_OF_DEVICE = ("cuda error", "cublas", "cudnn", "hip error", "acceleratorerror")
_ELSEWHERE = ("same device", "weight type", "meta tensor", "expected device", "device type")


class NetworkUse:
    """What denoisers that are made from one another share of their network.

    Attribute `steady`: whether a run has found the network to give the same for the same batch.
    """

    def __init__(self) -> None:
        self.steady = False
        self._depth = 0

    @contextmanager
    def evaluating(self, network: Any) -> Iterator[None]:
        """The network in evaluation mode inside; each of its modules is left in the mode that it was found in."""
        if self._depth or not _is_training(network):  # inside a run it has been looked through already
            with self._inside():
                yield
            return
        with keeping_modes(network), self._inside():
            network.eval()  # dropout would make the posterior random
            yield

    @contextmanager
    def _inside(self) -> Iterator[None]:
        self._depth += 1
        try:
            yield
        finally:
            self._depth -= 1


def _is_training(network: Any) -> bool:
    return isinstance(network, torch.nn.Module) and any(module.training for module in network.modules())


@contextmanager
def keeping_modes(network: torch.nn.Module) -> Iterator[None]:
    """Each module of the network is in the same mode, training or evaluation, afterwards as before."""
    modes = [(module, module.training) for module in network.modules()]
    try:
        yield
    finally:
        for module, training in modes:  # parents first; by `train`, of which a module may have a version of its own
            if module.training != training:
                module.train(training)
        for module, training in modes:
            module.training = training


def own_input(x: torch.Tensor, dtype: torch.dtype | None) -> torch.Tensor:
    """A copy, which a network may write into; floats in `dtype`, if it is given."""
    return x.to(dtype, copy=True) if dtype is not None and x.is_floating_point() else x.clone()


def not_finite(level: NoiseLevel) -> str:
    """What to do about a network that gives NaN or infinite values at a level."""
    if not level.timestep < 0.0:
        return "check its weights and precision"
    return (
        f"check its weights and precision, and what it is told: {level.timestep:.4g} there, as EDM's bare networks are "
        "told ln(σ)/4; one that takes σ itself (EDM's and k-diffusion's wrappers, which return x̂_0) wants "
        "NoiseSchedule.edm(told='sigma') and Denoiser(…, prediction='sample')"
    )


# ---- what it raises -------------------------------------------------------------------------------------------------


def placed(network: Any, n: Any, x: torch.Tensor) -> AbstractContextManager[None]:
    """Whatever a denoising network raises inside becomes a `NetworkError` that says where it was."""
    return failing(network, x, lambda: f"at {describe_place(n)}, in a batch of {len(x)}")


@contextmanager
def failing(network: Any, x: torch.Tensor, where: Callable[[], str], who: str = "the network") -> Iterator[None]:
    """Whatever the network raises inside becomes a `NetworkError`, of which `where` and `who` are part; what this
    package has to say of its input `x` and its output passes."""
    try:
        yield
    except (InputError, NumericalError, NetworkError):
        raise
    except Exception as error:
        raise NetworkError(where(), _reason(error, len(x)) + _elsewhere(error, network, x), who) from error


def is_of_device(error: BaseException) -> bool:
    """Whether an error comes from a device or from want of memory, and so perhaps from an earlier call: GPUs report
    late."""
    if isinstance(error, MemoryError):
        return True
    said, ours = f"{type(error).__name__} {error}".lower(), isinstance(error, NumericalError | NetworkError | RankError)
    return isinstance(error, RuntimeError) and not ours and any(word in said for word in (*_NO_MEMORY, *_OF_DEVICE))


def device_error(error: BaseException, where: str, rows: int) -> NetworkError:
    """For an error `is_of_device`; `rows`: of the last batch."""
    return NetworkError(where, _reason(error, rows))


def describe_place(n: Any) -> str:
    """Where on the schedule a batch is, for messages."""
    if isinstance(n, torch.Tensor):
        low, high = (int(end) for end in n.aminmax())
        return f"index n={low}" if low == high else f"indices n={low} to {high}"
    if isinstance(n, list):
        return f"noise levels {checks.listing(list(dict.fromkeys(map(str, n))), 3)}"
    return str(n) if isinstance(n, NoiseLevel) and n.index is None else f"index n={getattr(n, 'index', n)}"


def _reason(error: BaseException, rows: int) -> str:
    lines = str(error).strip().splitlines()
    said = type(error).__name__ + (f": {lines[0][:300].rstrip('. ')}" if lines else "")
    whole = f"{said} {error}".lower()
    no_memory = isinstance(error, MemoryError) or any(word in whole for word in _NO_MEMORY)
    return f"out of memory ({said}); {_smaller(rows)}" if no_memory else said


def _smaller(rows: int) -> str:
    """What to try where a batch did not fit: half of it; of more than 16 in sixteens, as the estimator's shards are."""
    half = rows // 2 if rows < 32 else rows // 32 * 16
    if half:
        return f"use a smaller batch size: try {half}"
    return "not even a batch of 1 fits: use half precision, a device with more memory, or a smaller network"


def _elsewhere(error: Exception, network: Any, x: torch.Tensor) -> str:
    """A word on devices, where these are what is wrong."""
    if not isinstance(network, torch.nn.Module) or not any(word in str(error).lower() for word in _ELSEWHERE):
        return ""
    held = [*network.parameters(), *network.buffers()]
    found = sorted({str(tensor.device) for tensor in held if tensor.device != x.device})
    return f"; it holds tensors on {', '.join(found)}, but its input is on {x.device}: move it" if found else ""
