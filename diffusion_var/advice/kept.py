"""Results of single experiments, kept in a folder, so that an interrupted advice goes on."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from ..array_rules import ArrayRule, require_arrays
from ..documents import Arrays, Form
from ..files import expanded
from ..process.schedule import Float64Array
from ..resume import ANEW, Parts, StateRecord

_VALUES = {"values": ArrayRule("float64", ("rows", "columns"))}


def _check(arrays: Arrays, record: StateRecord) -> None:
    require_arrays(arrays, _VALUES)


FORM = Form("diffusion_var.advice_part", 1, "part of an advice", StateRecord, _check, remedy=ANEW)


class Kept:
    """Arrays by name, made once.

    Args:
        folder: that keeps them; None: nothing is kept.
        identity: what decides them all; plain data.
    """

    def __init__(self, folder: Path | None, identity: dict[str, Any]) -> None:
        self._parts = None if folder is None else Parts(folder, FORM, identity)

    def get(self, name: str, make: Callable[[], Float64Array]) -> Float64Array:
        """The array (R, C) of that name: as it was kept, or made now. InputError where it belongs to something else."""
        if self._parts is None:
            return make()
        found = self._parts.load(f"{name}.safetensors")
        if found is not None:
            return np.asarray(found[0]["values"])
        values = make()
        self._parts.save(f"{name}.safetensors", ({"values": values}, {}))
        return values


def forget(folder: Path) -> None:
    """Remove a folder of parts, if it is there and holds nothing else."""
    folder = expanded(folder)
    for part in folder.glob("*.safetensors"):
        part.unlink()
    if folder.is_dir() and not any(folder.iterdir()):
        folder.rmdir()
