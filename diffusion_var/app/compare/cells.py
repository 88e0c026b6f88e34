"""Cells of a comparison on disk: one file for one method, number of steps and seed, so that a run can be interrupted.

A cell's file is named after the hash of all that decides its scores (network, schedule, table, method, steps, seed,
count, features, reference). So a cell is computed once, another configuration never takes it for its own, and a
configuration with more methods, steps or seeds takes over those that are there.
"""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ...errors import InputError, warn
from ...metrics.score import Score
from ...resume import Parts

FOLDER = "cells"
FORMAT = "diffusion_var.comparison_cell"
FORMAT_VERSION = 1


@dataclass
class Measured:
    """What was measured of one seed: scores by metric, and the first images (G, C, H, W) uint8."""

    scores: dict[str, Score]
    grid: npt.NDArray[np.uint8] = field(default_factory=lambda: np.zeros((0, 1, 1, 1), dtype=np.uint8))


class CellStore:
    """The cells in the folder of a comparison.

    Args:
        folder: of the comparison; cells lie in its subfolder `cells`.
        common: what all cells share: network, features, reference, ... (plain data).
    """

    def __init__(self, folder: Path, common: dict[str, Any]) -> None:
        self.folder, self.common = folder / FOLDER, common
        # What a cell belongs to is in its name.
        self._parts = Parts(self.folder, FORMAT, FORMAT_VERSION, "cell of a comparison", {})

    def path(self, label: str, own: dict[str, Any]) -> Path:
        """The file of the cell that `own` describes; `label` is for people who look into the folder."""
        identity = json.dumps({**self.common, **own}, sort_keys=True, default=str)
        digest = hashlib.sha256(identity.encode()).hexdigest()[:24]
        # The label may have changed since: only the hash tells.
        known = next(iter(self.folder.glob(f"*-{digest}.safetensors")), None)
        name = re.sub(r"[^A-Za-z0-9.=-]+", "_", label).strip("_")[:80]
        return known or self.folder / f"{name}-{digest}.safetensors"

    def load(self, label: str, own: dict[str, Any]) -> Measured | None:
        """A cell computed before; None, with a warning, also for one whose file is damaged."""
        try:
            found = self._parts.load(self.path(label, own).name)
        except InputError as error:
            warn(f"{error} This cell is computed again.")
            return None
        if found is None:
            return None
        arrays, plain = found
        return Measured({name: _score(content) for name, content in plain["scores"].items()}, arrays["grid"])

    def save(self, label: str, own: dict[str, Any], measured: Measured) -> None:
        """Write a cell, atomically."""
        scores = {name: asdict(score) for name, score in measured.scores.items()}
        self._parts.save(self.path(label, own).name, ({"grid": measured.grid}, {"scores": scores}))


def _score(content: dict[str, Any]) -> Score:
    interval = content["interval"]
    return Score(**{**content, "interval": None if interval is None else tuple(interval)})
