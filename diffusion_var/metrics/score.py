"""A number and how it was made, and the rule that only like is compared with like.

Two scores may stand in one table if they were made under the same protocol: the same metric and parameters, features
and weights, resizing, colour, number format, reference and counts (an FID's bias falls as 1/N, so that 10,000 images
score worse than 50,000). Names and versions are told, and not compared.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from importlib import metadata
from typing import Any

from ..errors import InputError

COMPARED = (
    "metric",
    "parameters",
    "features",
    "features_sha256",
    "resize",
    "colour",
    "number_format",
    "images",
    "reference",
    "reference_sha256",
)
HIGHER_IS_BETTER = frozenset({"precision", "recall", "density", "coverage"})


@dataclass(frozen=True)
class Score:
    """A number and how it was made. `float(score)` is the number.

    Attributes:
        protocol: what decides the number, by the names of `COMPARED`, and names and versions besides.
        standard_error: of the value, where the metric gives one.
        interval: a confidence interval of the value; its level is in the protocol.
    """

    value: float
    protocol: dict[str, Any] = field(default_factory=dict)
    standard_error: float | None = None
    interval: tuple[float, float] | None = None

    def __float__(self) -> float:
        return self.value

    def __str__(self) -> str:
        error = "" if self.standard_error is None else f" ± {self.standard_error:.2g}"
        between = "" if self.interval is None else f" ({self.interval[0]:.5g} to {self.interval[1]:.5g})"
        return f"{self.value:.5g}{error}{between}"


def require_same_protocol(scores: Mapping[str, Score]) -> dict[str, Any]:
    """The protocol that all scores (name -> Score) share: the fields of `COMPARED`.

    Raises InputError that names the first field in which two of them differ, and its two values.
    """
    return _shared(scores, COMPARED)


def _shared(scores: Mapping[str, Score], fields: Iterable[str]) -> dict[str, Any]:
    if not scores:
        raise InputError("there are no scores to compare; pass at least one.")
    (first, score), *others = scores.items()
    shared = {name: score.protocol.get(name) for name in fields}
    for other, another in others:
        for name, value in shared.items():
            if (found := another.protocol.get(name)) != value:
                raise InputError(
                    f"the scores of {first} and {other} cannot be compared: {name} is {value!r} in one and {found!r} "
                    "in the other; score both in the same way."
                )
    return shared


def score_table(scores: Mapping[str, Mapping[str, Score]]) -> str:
    """A Markdown table, row -> column -> Score, the best of each column in bold; a cell may be absent ("–").

    Columns may be of several metrics; the rest of the protocol is one in the whole table, and all of it in a column.
    Raises InputError, naming two cells and the field in which they differ, where it is not.
    """
    columns = list(dict.fromkeys(column for row in scores.values() for column in row))
    cells = {column: {row: line[column] for row, line in scores.items() if column in line} for column in columns}
    named = {f"{row}, {column}": score for column in columns for row, score in cells[column].items()}
    _shared(named, [name for name in COMPARED if name not in ("metric", "parameters")])
    for column in columns:
        require_same_protocol({f"{row}, {column}": score for row, score in cells[column].items()})
    best = {column: _best(list(cells[column].values())) for column in columns}
    lines = [["", *columns], ["---", *("---:" for _ in columns)]]
    for row in scores:
        shown = [cells[column].get(row) for column in columns]
        lines.append(
            [row]
            + [
                "–" if score is None else f"**{score}**" if score.value == best[column] else str(score)
                for column, score in zip(columns, shown, strict=True)
            ]
        )
    return "".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |\n" for line in lines)


def _best(scores: list[Score]) -> float:
    choose = max if scores[0].protocol.get("metric") in HIGHER_IS_BETTER else min
    return choose((score.value for score in scores if not math.isnan(score.value)), default=math.nan)


def versions() -> dict[str, str]:
    """The versions of what computes a score."""
    import torch

    found = {"torch": str(torch.__version__)}
    for package in ("diffusion-var", "torch-fidelity"):
        try:
            found[package.replace("-", "_")] = metadata.version(package)
        except metadata.PackageNotFoundError:  # a bare checkout, or an environment without it
            continue
    return found
