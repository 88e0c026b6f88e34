"""In which precision a network takes its input: that of the layer that takes it first.

Most networks have one precision. Those in half precision often keep some layers in float32, and which of the two the
first layer is, only a trial tells: it is made where the first parameter's turns out to be wrong, and remembered.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import chain
from typing import Any

import torch

from .conditions import map_leaves
from .network_use import own_input

_OTHER_THAN_FLOAT32 = (torch.float16, torch.bfloat16, torch.float64)


class InputPrecision:
    """Evaluates networks on inputs of the precision that they take."""

    def __init__(self) -> None:
        self._found: dict[torch.dtype, torch.dtype] = {}  # by the dtype of the network's first parameter

    def evaluate(
        self, network: Any, run: Callable[..., Any], x: torch.Tensor, timestep: torch.Tensor, condition: Any
    ) -> Any:
        """run(x, timestep, condition) on copies, of x and the condition's floats as the network takes them; as they are
        where it has no precision of its own, or casts them itself."""
        lead = None if getattr(network, "casts_inputs", False) else leading_dtype(network)
        if lead is None:
            return run(*_copies(None, x, timestep, condition))
        first = self._found.get(lead, lead if lead in _OTHER_THAN_FLOAT32 else x.dtype)
        refused: RuntimeError | None = None
        for dtype in chain([first], _others(network, first)):
            try:
                out = run(*_copies(dtype, x, timestep, condition))
            except RuntimeError as error:
                if "type" not in str(error):  # as in "mat1 and mat2 must have the same dtype"
                    raise
                refused = refused or error
            else:
                if dtype != first:
                    self._found[lead] = dtype
                return out
        assert refused is not None
        raise refused


def leading_dtype(network: Any) -> torch.dtype | None:
    """The dtype of a network's first floating parameter; None without any."""
    if not isinstance(network, torch.nn.Module):
        return None
    return next((parameter.dtype for parameter in network.parameters() if parameter.is_floating_point()), None)


def _others(network: torch.nn.Module, first: torch.dtype) -> Iterator[torch.dtype]:
    """The other precisions that a network's parameters have."""
    kinds = dict.fromkeys(parameter.dtype for parameter in network.parameters() if parameter.is_floating_point())
    yield from (dtype for dtype in kinds if dtype != first)


def _copies(
    dtype: torch.dtype | None, x: torch.Tensor, timestep: torch.Tensor, condition: Any
) -> tuple[torch.Tensor, torch.Tensor, Any]:
    to = None if dtype == x.dtype and dtype not in _OTHER_THAN_FLOAT32 else dtype
    if condition is not None:
        condition = map_leaves(lambda leaf: own_input(leaf, to), condition)
    # Less than float32 could not hold every timestep, and networks embed it before they cast.
    if to == torch.float64 and timestep.is_floating_point():
        timestep = timestep.to(to)
    return own_input(x, to), timestep, condition
