"""Names that a package imports when they are first used (PEP 562), so that importing it is quick."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any


def names_of(
    package: str, homes: Mapping[str, str], modules: Mapping[str, str] | None = None
) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """A package's `__getattr__` and `__dir__`.

    Args:
        package: its `__name__`.
        homes: name: the module that it is in, relative to the package (".bound").
        modules: name: a module that is public itself.
    """
    whole = modules or {}

    def find(name: str) -> Any:
        if name in whole:
            return import_module(whole[name], package)
        if name in homes:
            return getattr(import_module(homes[name], package), name)
        raise AttributeError(f"module {package!r} has no attribute {name!r}")

    return find, lambda: sorted({*homes, *whole})
