"""What the Krylov spaces of a run came to, in whole numbers that add up."""

from __future__ import annotations

import torch

from .krylov import KrylovSpace
from .tally import Tally

#: Weights, and errors of log-determinants in nats a dimension, are counted in parts, as whole numbers.
PARTS = 1e6


class KrylovCounts(Tally):
    """Eigenvalues cut, of how many; solves that did not converge, of how many; log-determinants, and their squared
    errors, in (1e-6 nats a dimension)²; spaces, and their weights, in millionths."""

    def __init__(self) -> None:
        super().__init__("cut", "values", "unsolved", "solves", "log_dets", "squares", "spaces", "weights")

    def of_space(self, space: KrylovSpace) -> None:
        """The eigenvalues of a space, and how much of it is the products' own."""
        weights = (PARTS * space.weight).sum().round().long()
        self.count(cut=space.cut.sum(), values=space.counted.sum(), spaces=len(space.size), weights=weights)

    def of_solve(self, space: KrylovSpace, tolerance: float) -> None:
        """A space that was to solve something to a residual of `tolerance`."""
        self.of_space(space)
        self.count(unsolved=space.open(tolerance).sum(), solves=len(space.size))

    def of_log_det(self, error: torch.Tensor, d: int) -> None:
        """The standard errors of log-determinants, (B,) nats."""
        squares = (error / d * PARTS).square().nan_to_num(0.0, 0.0).sum().round().long()
        self.count(log_dets=len(error), squares=squares)
