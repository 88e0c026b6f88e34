"""What a comparison measured: cells, each a method at a number of steps, and the floor that real images give."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from ...likelihood.paths import Trajectory
from ...metrics.score import HIGHER_IS_BETTER, Score
from ...models.product_cost import ProductCost
from ...variance.table import VarianceTable
from .options import CompareOptions, Method


@dataclass
class Cell:
    """One method at one number of evaluations: its scores for every seed, and a few of its images.

    Attributes:
        steps: K, the column: evaluations of the network for an image.
        scores: metric -> one score per seed; a metric that the method does not have (likelihoods at η = 0) is absent.
        grid: (G, C, H, W) uint8, the first images of the first seed; none where no samples were asked for.
        path: the optimal path that its steps are, with the decoder; None for other steps.
        evaluations: that it spends; fewer than K for a solver whose steps do not make up K. None: K.
        equivalents: the same with its Jacobian-vector products at their price; None for a method without.
    """

    method: Method
    steps: int
    scores: dict[str, list[Score]] = field(default_factory=dict)
    grid: torch.Tensor = field(default_factory=lambda: torch.zeros(0, 1, 1, 1, dtype=torch.uint8))
    path: Trajectory | None = None
    evaluations: int | None = None
    equivalents: float | None = None

    @property
    def spent(self) -> float:
        """The evaluations of the network that an image takes, its products at their price."""
        if self.equivalents is not None:
            return self.equivalents
        return self.steps if self.evaluations is None else self.evaluations

    def values(self, metric: str) -> list[float]:
        """One number per seed."""
        return [float(score) for score in self.scores[metric]]

    def mean(self, metric: str) -> float:
        """Mean over seeds."""
        return float(np.mean(self.values(metric)))

    def spread(self, metric: str) -> float:
        """Standard deviation over seeds; for one seed the score's own standard error, or nan."""
        values, first = self.values(metric), self.scores[metric][0]
        if len(values) > 1:
            return float(np.std(values, ddof=1))
        return float("nan") if first.standard_error is None else first.standard_error


@dataclass
class Comparison:
    """What a comparison measured.

    Attributes:
        table: the variance table; None where no method needs one.
        cells: in the order of methods, then steps.
        baseline: metric -> scores of real images, in groups as large as a cell's of one seed; empty without a baseline.
        protocols: metric -> how its scores were taken.
        costs: derivative -> what a Jacobian-vector product counts for; empty where no method takes any.
        real: (G, C, H, W) uint8, a few real images to look at beside the samples; none where none are known.
    """

    options: CompareOptions
    table: VarianceTable | None
    cells: list[Cell] = field(default_factory=list)
    baseline: dict[str, list[float]] = field(default_factory=dict)
    protocols: dict[str, dict[str, Any]] = field(default_factory=dict)
    costs: dict[str, ProductCost] = field(default_factory=dict)
    real: torch.Tensor = field(default_factory=lambda: torch.zeros(0, 1, 1, 1, dtype=torch.uint8))

    def cell(self, method: Method, steps: int) -> Cell | None:
        """The cell of a method and a number of evaluations, if there is one."""
        return next((c for c in self.cells if c.method == method and c.steps == steps), None)

    def column(self, steps: int, metric: str) -> list[Cell]:
        """The cells at a number of evaluations that have the metric, best first."""
        sign = -1 if metric in HIGHER_IS_BETTER else 1
        having = (c for c in self.cells if c.steps == steps and metric in c.scores)
        return sorted(having, key=lambda c: sign * c.mean(metric))
