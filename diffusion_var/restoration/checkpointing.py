"""Recomputing activations in a backward pass rather than keeping them, where a network of diffusers can."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

from .. import checks
from ..unwrapping import unwrapped

Context = Callable[[], AbstractContextManager[None]]


@contextmanager
def unchanged() -> Iterator[None]:
    """The network as it is."""
    yield


def recomputing(network: Any) -> Context:
    """A context in which the network checkpoints, and after which it does what it did before; InputError for a network
    that cannot."""
    inner: Any = unwrapped(network)
    able = hasattr(inner, "enable_gradient_checkpointing") and getattr(inner, "_supports_gradient_checkpointing", True)
    checks.refuse(
        not able,
        f"checkpointing needs a network of diffusers that can recompute its activations, but this is a "
        f"{type(inner).__name__}; leave it out, and take smaller batches.",
    )

    @contextmanager
    def checkpointed() -> Iterator[None]:
        was = bool(getattr(inner, "is_gradient_checkpointing", False))
        inner.enable_gradient_checkpointing()
        try:
            yield
        finally:
            if not was:
                inner.disable_gradient_checkpointing()

    return checkpointed
