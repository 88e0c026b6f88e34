"""Who does what of a round that many processes share: whole indices as far as they balance, the rest by single batches.

Sums of a whole index stay in the process that makes them, and are told once. The last rounds have few indices with many
draws, though: two of them would keep thirty processes waiting. So what does not fit into anybody's fair share is done
by whoever is free, batch after batch, and each of its shards' sums is told, to be merged in the order of one process.
"""

from __future__ import annotations

from collections.abc import Sequence

#: Batches of the rest that each process takes at least, if they can be cut so small: the last ones are waited for.
_WAVES = 4


def whole_shares(costs: Sequence[int], count: int) -> tuple[list[list[int]], list[int]]:
    """The positions of each process's units, ascending, and of those that would make a share more than fair.

    Args:
        costs: of each unit.
        count: of the processes. One takes all.
    """
    fair = -(-sum(costs) // count)
    shares: list[list[int]] = [[] for _ in range(count)]
    loads, rest = [0] * count, []
    for i in sorted(range(len(costs)), key=lambda i: (-costs[i], i)):
        r = loads.index(min(loads))
        if loads[r] + costs[i] > fair:
            rest.append(i)
            continue
        loads[r] += costs[i]
        shares[r].append(i)
    return [sorted(share) for share in shares], sorted(rest)


def batch_of_rest(cost: int, count: int, most: int) -> int:
    """Shards in a batch of the rest, which has `cost` shards in all: at most `most`, and less where they are few."""
    return max(1, min(most, cost // (_WAVES * count)))
