"""What an advice keeps, so that an interrupted one goes on: the table's checkpoint, and beside it the decoders' and a
folder of the results of single experiments."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import numpy as np

from ..array_rules import ArrayRule
from ..documents import Form
from ..files import expanded
from ..process.schedule import Float64Array
from ..resume import ANEW, Parts, StateRecord

FORM = Form("diffusion_var.advice_part", 1, "part of an advice", StateRecord, remedy=ANEW)


class Kept:
    """Arrays by name, made once.

    Args:
        folder: that keeps them; None: nothing is kept.
        identity: what decides them all; plain data.
    """

    def __init__(self, folder: Path | None, identity: dict[str, Any]) -> None:
        self._parts = None if folder is None else Parts(folder, FORM, identity)

    def get(self, name: str, shape: tuple[int, int], make: Callable[[], Float64Array]) -> Float64Array:
        """The array of that name and shape: as it was kept, or made now. InputError where what was kept belongs to
        something else, or cannot be it."""
        if self._parts is None:
            return make()
        found = self._parts.load(f"{name}.safetensors", {"values": ArrayRule("float64", shape)})
        if found is not None:
            return np.asarray(found[0]["values"])
        values = make()
        self._parts.save(f"{name}.safetensors", ({"values": values}, {}))
        return values


def beside(checkpoint: Path, what: Literal["decoders", "parts"]) -> Path:
    """Where something else is kept, beside the table's checkpoint."""
    return checkpoint.with_name(f"{checkpoint.name}.{what}")


def forget(checkpoint: Path) -> None:
    """Remove all that is kept for an advice, and nothing else."""
    checkpoint = expanded(checkpoint)
    checkpoint.unlink(missing_ok=True)
    beside(checkpoint, "decoders").unlink(missing_ok=True)
    folder = beside(checkpoint, "parts")
    for part in folder.glob("*.safetensors"):
        part.unlink()
    if folder.is_dir() and not any(folder.iterdir()):
        folder.rmdir()
