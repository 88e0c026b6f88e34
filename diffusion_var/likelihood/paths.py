"""Shortest paths of every number of nodes, by dynamic programming:

F_1(t) = first(t),      F_k(t) = min over s < t of F_{k−1}(s) + cost(s, t),

first(t) being what a path costs that begins at t: in the bound, the decoder from there [E18].
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, Protocol, overload

import numpy as np
import numpy.typing as npt

from .. import checks
from ..errors import InputError

Float64Array = npt.NDArray[np.float64]

#: Rows of the dynamic programme at once: what is added and searched stays in the processor's cache.
_ROWS = 64


def least_costs(costs: Float64Array, most: int, first: Float64Array | None = None) -> Float64Array:
    """(most, I): [k, j] is the least cost of a path of k + 1 nodes that ends at node j; inf where there is none.

    Args:
        costs: (I, I), [i, j] the cost of the step between nodes i < j; inf for i ≥ j.
        first: (I,), what it costs to begin at a node; inf where no path may. None: all begin at node 0, for nothing.
    """
    count = len(costs)
    by_target = np.ascontiguousarray(costs.T)
    least = np.full((most, count), math.inf)
    least[0] = first if first is not None else [0.0] + [math.inf] * (count - 1)
    sums = np.empty((_ROWS, count))
    for k in range(1, most):
        # A path of k + 1 nodes ends at node k or later, and comes from node k − 1 or later.
        for start in range(k, count, _ROWS):
            last = min(start + _ROWS, count)
            block = sums[: last - start, : last - k]
            np.add(by_target[start:last, k - 1 : last - 1], least[k - 1, k - 1 : last - 1], out=block)
            np.min(block, axis=1, out=least[k, start:last])
    return least


class Trajectory(Sequence[int]):
    """A path: indices, ascending, and the variance of the decoder that it was chosen with.

    It is a sequence of whole numbers like a list of them, and equal to one; what takes steps takes it.

    Attributes:
        decoder_variance: a number, or an array that broadcasts to an image, in squared data units.
        decoder: what that is, in words, such as "2 × isotropic".
    """

    def __init__(self, indices: Sequence[int], decoder_variance: float | Float64Array, decoder: str) -> None:
        self._indices = tuple(int(n) for n in indices)
        self.decoder_variance, self.decoder = decoder_variance, decoder

    @overload
    def __getitem__(self, place: int) -> int: ...
    @overload
    def __getitem__(self, place: slice) -> list[int]: ...
    def __getitem__(self, place: int | slice) -> int | list[int]:
        return list(self._indices[place]) if isinstance(place, slice) else self._indices[place]

    def __len__(self) -> int:
        return len(self._indices)

    def __iter__(self) -> Iterator[int]:
        return iter(self._indices)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and not isinstance(other, str) and self._indices == tuple(other)

    def __hash__(self) -> int:
        return hash(self._indices)

    def __repr__(self) -> str:
        return f"Trajectory({list(self._indices)}, decoder: {self.decoder})"


def decoder_of_path(steps: Any) -> Any:
    """The decoder's variance that a path brings with it, or the published codes' "beta_tilde" for other steps."""
    return steps.decoder_variance if isinstance(steps, Trajectory) else "beta_tilde"


class DecoderOfNodes(Protocol):
    """What a decoder from each of some indices costs, and with which variance."""

    def variance(self, n: int) -> float | Float64Array:
        """The variance from index n."""

    def label(self, n: int) -> str:
        """What that is, in words."""


@dataclass(frozen=True, eq=False)
class OptimalPaths:
    """The optimal paths of all numbers of steps.

    Attributes:
        nodes: the indices that may be visited, ascending; the last is N.
        least: see `least_costs`.
        matrix: the costs of all steps between nodes.
        nats: what one unit of cost is in nats/dim of the bound (1/2 for "kl").
        binning: (nodes,) bound on the error of a cost of a step from that node.
        first: (nodes,) what the decoder from a node costs, in the same unit; inf where no path begins.
        decoders: the decoders from the nodes.
    """

    nodes: npt.NDArray[np.int64] = field(repr=False)
    least: Float64Array = field(repr=False)
    matrix: Float64Array = field(repr=False)
    nats: float
    binning: Float64Array = field(repr=False)
    first: Float64Array = field(repr=False)
    decoders: DecoderOfNodes = field(repr=False)

    @property
    def most(self) -> int:
        """The largest number of steps."""
        return len(self.least)

    def steps(self, count: int) -> Trajectory:
        """The optimal path of `count` indices, ascending, with its decoder. Of several equal ones, that with the least
        indices at its end."""
        self._check(count)
        path = [len(self.nodes) - 1]
        for k in range(count - 1, 0, -1):
            end = path[-1]
            path.append(int(np.argmin(self.least[k - 1, :end] + self.matrix[:end, end])))
        start = int(self.nodes[path[-1]])
        indices = [int(self.nodes[j]) for j in reversed(path)]
        return Trajectory(indices, self.decoders.variance(start), self.decoders.label(start))

    def cost(self, count: int) -> float:
        """The least cost of `count` indices, in the objective's unit: the sum of cost(s, t) and of the decoder's for
        "kl", nats/dim for "bound". It is the bound's expectation but for the prior's term."""
        self._check(count)
        return float(self.least[count - 1, -1])

    def decoder_cost(self, count: int) -> float:
        """The decoder's part of `cost(count)`."""
        return float(self.first[self._place(self.steps(count)[0])])

    def cost_of(self, steps: Sequence[int]) -> float:
        """The cost of any ascending path between nodes, e.g. an even one. InputError for indices that are no nodes, or
        for a first one that no path may begin at."""
        place = {int(n): j for j, n in enumerate(self.nodes)}
        missing = [n for n in steps if n not in place]
        positions = [place[n] for n in steps if n in place]
        if missing or not positions or any(b <= a for a, b in pairwise(positions)):
            raise InputError(
                f"the path {checks.brief(list(steps))} must rise strictly and have an index or more, all of them "
                f"nodes (not: {checks.listing(missing) or 'none'})."
            )
        begins = math.isfinite(self.first[positions[0]])
        checks.refuse(
            not begins,
            f"no path begins at {steps[0]}: what the decoder costs from there was not measured, or not asked.",
        )
        return float(sum((self.matrix[i, j] for i, j in pairwise(positions)), self.first[positions[0]]))

    def begins_at(self, n: int) -> bool:
        """Whether a path may begin at an index."""
        return n in self.nodes and math.isfinite(self.first[self._place(n)])

    def bits_per_dim(self, cost: float) -> float:
        """A cost as bits/dim of the bound."""
        return cost * self.nats / math.log(2.0)

    def binning_error(self, count: int) -> float:
        """A bound on the error that binning (more than 4,096 elements) makes in `cost(count)`; 0 without."""
        return float(sum(self.binning[self._place(n)] for n in self.steps(count)[1:]))

    def _place(self, n: int) -> int:
        return int(np.searchsorted(self.nodes, n))

    def _check(self, count: int) -> None:
        wrong = not checks.is_whole(count) or not 1 <= count <= self.most
        checks.refuse(wrong, f"{count} steps are not among the computed paths of 1 to {self.most} steps.")
        nowhere = not math.isfinite(self.least[int(count) - 1, -1])
        checks.refuse(
            nowhere, f"no path of {count} steps begins where one may; ask for fewer, or let it begin elsewhere."
        )
