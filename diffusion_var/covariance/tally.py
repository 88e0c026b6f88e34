"""Counts of what is worth a word at the end of a run: they add up over batches and processes, and are reported once."""

from __future__ import annotations

from collections.abc import Sequence

import torch


class Tally:
    """Counts by name, in the order of the names; all 0 at first."""

    def __init__(self, *names: str) -> None:
        self.names = names
        self._counted, self._reported = torch.zeros(len(names), dtype=torch.int64), [0] * len(names)

    def count(self, **found: int | torch.Tensor) -> None:
        """Add what was found of some of them; tensors () stay on their device, so that no step waits for them."""
        device = next((each.device for each in found.values() if isinstance(each, torch.Tensor)), self._counted.device)
        more = torch.zeros_like(self._counted, device=device)
        for name, each in found.items():
            more[self.names.index(name)] = each
        self._counted = self._counted.to(device) + more

    def add(self, counts: Sequence[int]) -> None:
        """Take what another process has counted."""
        self.count(**dict(zip(self.names, counts, strict=True)))

    @property
    def total(self) -> list[int]:
        """Since it was made."""
        return [int(count) for count in self._counted]

    @property
    def new(self) -> list[int]:
        """Since they were last reported."""
        return [now - before for now, before in zip(self.total, self._reported, strict=True)]

    def report(self) -> list[int]:
        """The new ones, which are old from now on."""
        found, self._reported = self.new, self.total
        return found
