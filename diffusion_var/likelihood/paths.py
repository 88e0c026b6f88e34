"""Shortest paths of every number of nodes, by dynamic programming:

F_1(first) = 0,      F_k(t) = min over s < t of F_{k−1}(s) + cost(s, t).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from .. import checks
from ..errors import InputError

Float64Array = npt.NDArray[np.float64]

#: Rows of the dynamic programme at once: what is added and searched stays in the processor's cache.
_ROWS = 64


def least_costs(costs: Float64Array, most: int) -> Float64Array:
    """(most, I): [k, j] is the least cost of a path of k + 1 nodes from node 0 to node j; inf where there is none.

    Args:
        costs: (I, I), [i, j] the cost of the step between nodes i < j; inf for i ≥ j.
    """
    count = len(costs)
    by_target = np.ascontiguousarray(costs.T)
    least = np.full((most, count), math.inf)
    least[0, 0] = 0.0
    sums = np.empty((_ROWS, count))
    for k in range(1, most):
        # A path of k + 1 nodes ends at node k or later, and comes from node k − 1 or later.
        for first in range(k, count, _ROWS):
            last = min(first + _ROWS, count)
            block = sums[: last - first, : last - k]
            np.add(by_target[first:last, k - 1 : last - 1], least[k - 1, k - 1 : last - 1], out=block)
            np.min(block, axis=1, out=least[k, first:last])
    return least


@dataclass(frozen=True, eq=False)
class OptimalPaths:
    """The optimal paths of all numbers of steps.

    Attributes:
        nodes: the indices that may be visited, ascending; the first is 1 and the last N.
        least: see `least_costs`.
        matrix: the costs of all steps between nodes.
        nats: what one unit of cost is in nats/dim of the bound (1/2 for "kl").
        binning: (nodes,) bound on the error of a cost of a step from that node.
    """

    nodes: npt.NDArray[np.int64] = field(repr=False)
    least: Float64Array = field(repr=False)
    matrix: Float64Array = field(repr=False)
    nats: float
    binning: Float64Array = field(repr=False)

    @property
    def most(self) -> int:
        """The largest number of steps."""
        return len(self.least)

    def steps(self, count: int) -> list[int]:
        """The optimal path of `count` indices, ascending; of one: [N]. Of several equal ones, that with the least
        indices at its end."""
        self._check(count)
        if count == 1:
            return [int(self.nodes[-1])]
        path = [len(self.nodes) - 1]
        for k in range(count - 1, 0, -1):
            end = path[-1]
            path.append(int(np.argmin(self.least[k - 1, :end] + self.matrix[:end, end])))
        return [int(self.nodes[j]) for j in reversed(path)]

    def cost(self, count: int) -> float:
        """The least cost of `count` indices, in the objective's unit: the sum of cost(s, t) for "kl", nats/dim for
        "bound". One index has no step, and nothing to compare."""
        self._check(count)
        checks.refuse(count == 1, "a path of one index has no step between indices, and no cost; ask for two or more.")
        return float(self.least[count - 1, -1])

    def cost_of(self, steps: Sequence[int]) -> float:
        """The cost of any ascending path between nodes, e.g. an even one. InputError for indices that are no nodes."""
        place = {int(n): j for j, n in enumerate(self.nodes)}
        missing = [n for n in steps if n not in place]
        positions = [place[n] for n in steps if n in place]
        if missing or len(positions) < 2 or any(b <= a for a, b in pairwise(positions)):
            raise InputError(
                f"the path {checks.brief(list(steps))} must rise strictly and have two indices or more, all of them "
                f"nodes (not: {checks.listing(missing) or 'none'})."
            )
        return float(sum(self.matrix[i, j] for i, j in pairwise(positions)))

    def bits_per_dim(self, cost: float) -> float:
        """A cost as bits/dim of the bound."""
        return cost * self.nats / math.log(2.0)

    def binning_error(self, count: int) -> float:
        """A bound on the error that binning (more than 4,096 elements) makes in `cost(count)`; 0 without."""
        place = {int(n): j for j, n in enumerate(self.nodes)}
        return float(sum(self.binning[place[n]] for n in self.steps(count)[1:]))

    def _check(self, count: int) -> None:
        wrong = not checks.is_whole(count) or not 1 <= count <= self.most
        checks.refuse(wrong, f"{count} steps are not among the computed paths of 1 to {self.most} steps.")
