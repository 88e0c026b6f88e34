"""Neighbouring images whose terms of the bound are under way: their network evaluations, a row each, and what these
have given so far. Any process may make any of the rows, in batches of neighbours, and says what it found as numbers.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from .rows import Rows

IntArray = npt.NDArray[np.int64]
Float64Array = npt.NDArray[np.float64]


class Chunk:
    """Some images, and their terms as far as they are known.

    Args:
        numbers: which images they are.
        rows: all their evaluations, sorted by place.
        draws, columns: how many of each.
        prior: whether column 0 is the prior's; it is taken with the last row.

    Attributes:
        values: (draws, images, columns) nats, 0 where they are not known yet.
        done: (rows,) bool, which evaluations have been made.
    """

    def __init__(self, numbers: IntArray, rows: Rows, draws: int, columns: int, prior: bool) -> None:
        self.numbers, self.rows, self._prior = numbers, rows, prior
        self.values = np.zeros((draws, len(numbers), columns))
        self.done = np.zeros(len(rows), dtype=bool)

    def left(self, batch_size: int) -> Iterator[Batch]:
        """What is still to be evaluated, in batches: of whole batches that are done the others stay the same."""
        left = np.flatnonzero(~self.done)
        for start in range(0, len(left), batch_size):
            yield Batch(self, left[start : start + batch_size])


@dataclass(frozen=True, eq=False)
class Batch:
    """Some rows of a chunk, evaluated together."""

    chunk: Chunk
    which: IntArray

    def __len__(self) -> int:
        return len(self.which)

    @property
    def rows(self) -> Rows:
        """The rows."""
        return self.chunk.rows.take(self.which)

    @property
    def with_prior(self) -> bool:
        """Whether the prior's term is taken with them."""
        return self.chunk._prior and int(self.which[-1]) == len(self.chunk.rows) - 1

    def found(self, columns: Sequence[IntArray]) -> Float64Array:
        """The terms that these rows gave, one after the other; `columns` are those of each place."""
        parts = [self.chunk.values[cells].ravel() for cells in self._cells(columns)]
        return np.concatenate([np.zeros(0), *parts])

    def take_over(self, found: Float64Array, columns: Sequence[IntArray]) -> Float64Array:
        """Note what these rows have given, at the beginning of `found`, to whoever made them; the rest of it."""
        for cells in self._cells(columns):
            known = self.chunk.values[cells]
            self.chunk.values[cells] = found[: known.size].reshape(known.shape)
            found = found[known.size :]
        self.chunk.done[self.which] = True
        return found

    def _cells(self, columns: Sequence[IntArray]) -> Iterator[tuple[Any, ...]]:
        """Where their terms stand in the chunk's values, place by place."""
        rows = self.rows
        for place in np.unique(rows.places):
            found = rows.take(rows.places == place)
            yield found.draws[:, None], found.images[:, None], columns[place]
        if self.with_prior:
            yield (..., slice(0, 1))
