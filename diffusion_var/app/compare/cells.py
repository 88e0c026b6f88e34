"""Cells of a comparison on disk: one file for one method, number of steps and seed, so that a run can be interrupted.

What decides a cell's scores (network, schedule, table, method, steps, seed, count, features, reference) is in the name
of its file, see `cell_files`.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import numpy.typing as npt
from pydantic import Field, JsonValue, model_validator

from ...array_rules import ArrayRule, require_arrays
from ...documents import Arrays, Form, Record
from ...metrics.score import Score
from ...resume import StateRecord
from ..cell_files import CellFiles


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


class CellStore:
    """The cells in the folder of a comparison; see `CellFiles` for the arguments."""

    def __init__(self, folder: Path, common: dict[str, Any]) -> None:
        self._files = CellFiles(folder, FORM, common)
        self.folder, self.common = self._files.folder, common

    def path(self, label: str, own: dict[str, Any]) -> Path:
        """The file of the cell that `own` describes; `label` is for people who look into the folder."""
        return self._files.path(label, own)

    def load(self, label: str, own: dict[str, Any]) -> Measured | None:
        """A cell computed before; None, with a warning, also for one whose file is damaged."""
        if (found := self._files.load(label, own)) is None:
            return None
        arrays, record = found
        return Measured({name: Score(**vars(score)) for name, score in record.scores.items()}, arrays["grid"])

    def save(self, label: str, own: dict[str, Any], measured: Measured) -> None:
        """Write a cell, atomically."""
        self._files.save(label, own, ({"grid": measured.grid}, {"scores": measured.plain}))
