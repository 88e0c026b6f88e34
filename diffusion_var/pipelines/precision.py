"""The precision of a step: its tensors', whatever the loop around it has its network evaluated in."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import ParamSpec, TypeVar

import torch

from ..process.structure import without_autocast

P = ParamSpec("P")
R = TypeVar("R")


def outside_autocast(step: Callable[P, R]) -> Callable[P, R]:
    """A scheduler's step that the autocast around it does not reach, as training loops have one around all they do: a
    head would be evaluated, and a basis multiplied, in half precision."""

    @wraps(step)
    def exact(*arguments: P.args, **options: P.kwargs) -> R:
        tensors = (value for value in (*arguments, *options.values()) if isinstance(value, torch.Tensor))
        first = next(tensors, None)
        with without_autocast(torch.device("cpu") if first is None else first.device):
            return step(*arguments, **options)

    return exact
