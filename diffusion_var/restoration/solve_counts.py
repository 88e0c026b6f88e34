"""What the solves of S u = r came to, in numbers that add up over processes."""

from __future__ import annotations

from ..covariance.tally import Tally
from .solver import Solution


class SolveCounts(Tally):
    """Counts of solves: how many, not converged, not positive, and products with S."""

    def __init__(self) -> None:
        super().__init__("solves", "not_converged", "not_positive", "products")

    def counted(self, found: Solution) -> Solution:
        """A solution, once it is counted."""
        open_, negative = (~found.converged).sum(), (~found.positive).sum()
        self.count(
            solves=len(found.products), not_converged=open_, not_positive=negative, products=found.products.sum()
        )
        return found
