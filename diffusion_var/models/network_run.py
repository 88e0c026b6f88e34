"""One run's evaluations of a network: in evaluation mode, counted, and looked at where there is reason to.

Whatever is measured or drawn here takes the network for a function of one noisy image. Functional dropout and noise
inside make it a random one, and normalisation over the batch makes it one of all of them. Both leave traces: a
generator that has moved, one that is held, a normalisation without statistics of its own. Where there is one, the
first batch of a run is evaluated again, with other images in half of its places, and what differs is said. (Without
one it is not: an evaluation more would be a tenth of a short run.)
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import torch

from ..errors import NetworkError, warn
from .conditions import as_nest, map_leaves
from .network_use import device_error, is_of_device
from .posterior import Posterior

if TYPE_CHECKING:
    from .denoiser import Denoiser, Place

#: Relative root-mean-square difference above which two evaluations are not the same: of float32, and of less.
_ROUNDING, _ROUNDING_HALF = 1e-3, 2e-2
_GENERATORS = (torch.Generator, np.random.Generator, np.random.RandomState, random.Random)


class NetworkRun:
    """Calls a denoiser, for one run.

    Entered (again and again, if the run hands over its results in between), it holds the network in evaluation mode,
    and lets go of it as it was. Attribute `evaluations`: so far.
    """

    def __init__(self, denoiser: Denoiser) -> None:
        self.denoiser, self._plain = denoiser, denoiser.without_jacobian()
        self.evaluations = 0
        self._rows = 0  # of the last batch
        self._looked = denoiser.exact or denoiser.use.steady
        self._held = ExitStack()

    def __enter__(self) -> Self:
        self._held.enter_context(self.denoiser.use.evaluating(self.denoiser.network))
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: Any) -> None:
        self._held.close()
        if error is not None and is_of_device(error):
            raise device_error(error, f"or its device did{self._after}", self._rows) from error

    def __call__(self, x_t: torch.Tensor, n: Place, condition: Any = None, without_jacobian: bool = False) -> Posterior:
        """The posterior, as the denoiser gives it; or without the products that it would bring, where no covariance is
        asked for."""
        self._rows = len(x_t)
        denoiser = self._plain if without_jacobian else self.denoiser
        try:
            posterior = denoiser(x_t, n, condition) if self._looked else self._first(x_t, n, condition)
        except NetworkError as error:
            error.after = self._after
            raise
        self.evaluations += len(x_t)
        return posterior

    @property
    def _after(self) -> str:
        return f", after {self.evaluations:,} evaluations of this run"

    # ---- the look ---------------------------------------------------------------------------------------------

    def _first(self, x_t: torch.Tensor, n: Place, condition: Any) -> Posterior:
        self._looked = True
        before = _random_state(x_t.device)
        posterior = self.denoiser(x_t, n, condition)
        if _random_state(x_t.device) != before or _is_suspect(self.denoiser.network):
            self._look(posterior, x_t, n, condition)
        return posterior

    @torch.no_grad()
    def _look(self, first: Posterior, x_t: torch.Tensor, n: Place, condition: Any) -> None:
        # The places of the second half are taken by images of the first, whose results should not change.
        kept = (len(x_t) + 1) // 2
        rows = torch.arange(len(x_t))
        rows[kept:] = rows[: len(x_t) - kept]
        arguments = x_t[rows.to(x_t.device)], _of_rows(n, rows), _of_rows(condition, rows)
        second = self.denoiser(*arguments)
        found = self._difference(first.rows(slice(kept)), second.rows(slice(kept)))
        rounding = _ROUNDING_HALF if self.denoiser.in_half_precision else _ROUNDING
        if not found > rounding:
            self.denoiser.use.steady = True
        elif (again := self._difference(second, self.denoiser(*arguments))) > rounding:
            warn(
                f"the network is random at evaluation: evaluated twice, one batch differs by {again:.2g} of its size "
                "(root mean square), so that all that follows is about a random mean; switch off its dropout or noise, "
                "which evaluation mode does not reach."
            )
        else:
            warn(
                "what the network says of an image depends on the other images of the batch: with others beside it, it "
                f"differs by {found:.2g} of its size (root mean square), so that all that follows depends on the batch "
                "size; look for normalisation or attention over the batch."
            )

    def _difference(self, first: Posterior, second: Posterior) -> float:
        """The relative difference of what the network predicted; of x̂_0 and ε̂ where it is a mixture of both."""
        names = {"epsilon": ("eps",), "score": ("eps",), "previous_x": ("eps",), "sample": ("mean",)}
        pairs = [
            (getattr(first, name).double(), getattr(second, name).double())
            for name in names.get(self.denoiser.prediction, ("mean", "eps"))
        ]
        return max(float((a - b).norm() / a.norm().clamp(min=1e-30)) for a, b in pairs)


def _of_rows(value: Any, rows: torch.Tensor) -> Any:
    """Levels or conditions of some rows; what is one for all of a batch stays."""
    if isinstance(value, list):
        return [value[i] for i in rows.tolist()]
    if value is None or not isinstance(value, torch.Tensor | tuple | dict):
        return value
    return map_leaves(lambda leaf: leaf[rows.to(leaf.device)], as_nest(value))


def _random_state(device: torch.device) -> tuple[Any, ...]:
    """The states of the generators that everybody draws from; one that moves has been drawn from."""
    _, words, *place = np.random.get_state()  # noqa: NPY002 (it is the network that may use it)
    state = [torch.get_rng_state().numpy().tobytes(), np.asarray(words).tobytes(), tuple(place), random.getstate()]
    if device.type == "cuda":
        state.append(torch.cuda.get_rng_state(device).numpy().tobytes())
    return tuple(state)


def _is_suspect(network: Any) -> bool:
    """Whether it holds a generator of its own, or normalises over the batch in evaluation mode too."""
    parts = network.modules() if isinstance(network, torch.nn.Module) else [network]
    for part in parts:
        if isinstance(part, torch.nn.modules.batchnorm._BatchNorm) and part.running_mean is None:
            return True
        if any(isinstance(value, _GENERATORS) for value in _held_by(part)):
            return True
    return False


def _held_by(part: Any) -> Iterator[Any]:
    """What an object holds: its attributes; of a function, what it closes over and its defaults."""
    function = getattr(part, "__func__", part)
    yield from getattr(part, "__dict__", {}).values()
    yield from getattr(function, "__defaults__", None) or ()
    for cell in getattr(function, "__closure__", None) or ():
        try:
            yield cell.cell_contents
        except ValueError:  # not yet filled
            continue
