"""What the solves of S u = r came to, in numbers that add up over processes."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from .solver import Solution


class SolveCounts:
    """Counts of solves: how many, not converged, not positive, and products with S."""

    def __init__(self) -> None:
        self._counted, self._reported = [0, 0, 0, 0], [0, 0, 0, 0]

    def counted(self, found: Solution) -> Solution:
        """A solution, once it is counted."""
        told = torch.stack([(~found.converged).sum(), (~found.positive).sum(), found.products.sum()]).tolist()
        self.add([len(found.products), *told])
        return found

    def add(self, counts: Sequence[int]) -> None:
        """Take what another process has counted."""
        self._counted = [mine + theirs for mine, theirs in zip(self._counted, counts, strict=True)]

    @property
    def new(self) -> list[int]:
        """Since they were last reported."""
        return [now - before for now, before in zip(self._counted, self._reported, strict=True)]

    def report(self) -> list[int]:
        """The new ones, which are old from now on."""
        found, self._reported = self.new, list(self._counted)
        return found
