"""Cells of a table of results on disk: one file each, so that an interrupted run goes on with those that are missing.

A cell's file is named after the hash of all that decides what is in it. So a cell is computed once, another
configuration never takes it for its own, and a larger table takes over the cells that are there.
"""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path
from typing import Any

from ..documents import Arrays, Form
from ..errors import InputError, warn
from ..resume import Parts, State

FOLDER = "cells"
_DIGITS = 24  # of a hash, in the name of a file


class CellFiles:
    """The cells in the folder of a table of results.

    Args:
        folder: of the table; cells lie in its subfolder `cells`.
        form: of a cell's document.
        common: what all cells share: network, operator, features, … (plain data).
    """

    def __init__(self, folder: Path, form: Form, common: dict[str, Any]) -> None:
        self.folder, self.common = folder / FOLDER, common
        # What a cell belongs to is in its name.
        self._parts = Parts(self.folder, form, {})

    def path(self, label: str, own: dict[str, Any]) -> Path:
        """The file of the cell that `own` describes; `label` is for people who look into the folder."""
        identity = json.dumps({**self.common, **own}, sort_keys=True, default=str)
        digest = hashlib.sha256(identity.encode()).hexdigest()[:_DIGITS]
        # The label may have changed since: only the hash tells.
        known = next(iter(self.folder.glob(f"*-{digest}.safetensors")), None)
        return known or self.folder / f"{file_name(label)}-{digest}.safetensors"

    def load(self, label: str, own: dict[str, Any]) -> tuple[Arrays, Any] | None:
        """The arrays and record of a cell computed before; None, with a warning, also for one whose file is damaged."""
        try:
            return self._parts.load(self.path(label, own).name)
        except InputError as error:
            warn(f"{error} This cell is computed again.")
            return None

    def save(self, label: str, own: dict[str, Any], state: State) -> None:
        """Write a cell, atomically."""
        self._parts.save(self.path(label, own).name, state)


def files_of(folder: Path, label: str) -> list[Path]:
    """The cells in the folder of a table that are called so."""
    return [*(folder / FOLDER).glob(f"{file_name(label)}-{'?' * _DIGITS}.safetensors")]


def file_name(label: str) -> str:
    """A label as the beginning of a file's name."""
    return re.sub(r"[^A-Za-z0-9.=-]+", "_", label).strip("_")[:80]
