"""Cells of a comparison on disk: one file for one method, number of steps and seed, so that a run can be interrupted.

A cell's file is named after the hash of all that decides its scores (network, schedule, table, method, steps, seed,
count, features, reference). So a cell is computed once, another configuration never takes it for its own, and a
configuration with more methods, steps or seeds takes over those that are there.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import numpy.typing as npt
from pydantic import Field, JsonValue, model_validator

from ...array_rules import ArrayRule, require_arrays
from ...documents import Arrays, Form, Record
from ...errors import InputError, warn
from ...metrics.score import Score
from ...resume import Parts, StateRecord

FOLDER = "cells"
_DIGITS = 24  # of a hash, in the name of a file


@dataclass
class Measured:
    """What was measured of one seed: scores by metric, and the first images (G, C, H, W) uint8."""

    scores: dict[str, Score]
    grid: npt.NDArray[np.uint8] = field(default_factory=lambda: np.zeros((0, 1, 1, 1), dtype=np.uint8))

    @property
    def plain(self) -> dict[str, Any]:
        """The scores, as plain data."""
        return {name: asdict(score) for name, score in self.scores.items()}

    @classmethod
    def from_plain(cls, scores: dict[str, Any], grid: npt.NDArray[np.uint8]) -> Measured:
        """From `plain` and the images."""
        return cls({name: Score(**vars(ScoreRecord.model_validate(score))) for name, score in scores.items()}, grid)


class ScoreRecord(Record):
    """A `Score`, as its file has it."""

    value: Annotated[float, Field(allow_inf_nan=True)]
    protocol: dict[str, JsonValue]
    standard_error: Annotated[float, Field(ge=0)] | None
    interval: tuple[float, float] | None

    @model_validator(mode="after")
    def _in_order(self) -> ScoreRecord:
        if math.isnan(self.value) or (self.interval is not None and not self.interval[0] <= self.interval[1]):
            raise ValueError("a score is a number, and its interval has the lower end first")
        return self


class CellRecord(StateRecord):
    """A cell's scores, by metric."""

    scores: dict[str, ScoreRecord]


def _check(arrays: Arrays, record: CellRecord) -> None:
    require_arrays(arrays, {"grid": ArrayRule("uint8", ("images", "channels", "height", "width"))})


FORM = Form("diffusion_var.comparison_cell", 1, "cell of a comparison", CellRecord, _check)


def files_of(folder: Path, label: str) -> list[Path]:
    """The cells in the folder of a comparison that are called so."""
    return [*(folder / FOLDER).glob(f"{_name(label)}-{'?' * _DIGITS}.safetensors")]


def _name(label: str) -> str:
    return re.sub(r"[^A-Za-z0-9.=-]+", "_", label).strip("_")[:80]


class CellStore:
    """The cells in the folder of a comparison.

    Args:
        folder: of the comparison; cells lie in its subfolder `cells`.
        common: what all cells share: network, features, reference, ... (plain data).
    """

    def __init__(self, folder: Path, common: dict[str, Any]) -> None:
        self.folder, self.common = folder / FOLDER, common
        # What a cell belongs to is in its name.
        self._parts = Parts(self.folder, FORM, {})

    def path(self, label: str, own: dict[str, Any]) -> Path:
        """The file of the cell that `own` describes; `label` is for people who look into the folder."""
        identity = json.dumps({**self.common, **own}, sort_keys=True, default=str)
        digest = hashlib.sha256(identity.encode()).hexdigest()[:_DIGITS]
        # The label may have changed since: only the hash tells.
        known = next(iter(self.folder.glob(f"*-{digest}.safetensors")), None)
        return known or self.folder / f"{_name(label)}-{digest}.safetensors"

    def load(self, label: str, own: dict[str, Any]) -> Measured | None:
        """A cell computed before; None, with a warning, also for one whose file is damaged."""
        try:
            found = self._parts.load(self.path(label, own).name)
        except InputError as error:
            warn(f"{error} This cell is computed again.")
            return None
        if found is None:
            return None
        arrays, record = found
        return Measured({name: Score(**vars(score)) for name, score in record.scores.items()}, arrays["grid"])

    def save(self, label: str, own: dict[str, Any], measured: Measured) -> None:
        """Write a cell, atomically."""
        self._parts.save(self.path(label, own).name, ({"grid": measured.grid}, {"scores": measured.plain}))
