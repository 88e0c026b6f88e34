"""A batch whose images are at several noise levels: taken apart by level, and put together again."""

from __future__ import annotations

from typing import Any

import torch

from ..models.denoiser import Place
from ..models.posterior import Posterior
from ..process.level import NoiseLevel
from ..process.schedule import NoiseSchedule


def level_groups(schedule: NoiseSchedule, n: Place, batch: int) -> list[tuple[NoiseLevel, Any]]:
    """The levels of a batch, each with its images: an index of these, or all of them."""
    levels = schedule.levels(n, batch)
    if len(levels) == 1:
        return [(levels[0], slice(None))]
    return [
        (level, torch.tensor([k for k, other in enumerate(levels) if other == level]))
        for level in dict.fromkeys(levels)
    ]


def merged(parts: list[tuple[Any, Posterior]], batch: int) -> Posterior:
    """Posteriors of parts of a batch, each with its images, as one of the batch."""
    return Posterior(*(_whole([(part, getattr(of, name)) for part, of in parts], batch) for name in _FIELDS))


_FIELDS = ("mean", "eps", "range", "features")


def _whole(pieces: list[tuple[Any, Any]], batch: int) -> Any:
    """A tensor of the batch from those of its parts; None where they have none."""
    if pieces[0][1] is None:
        return None
    whole = pieces[0][1].new_empty((batch, *pieces[0][1].shape[1:]))
    for part, piece in pieces:
        whole[part] = piece
    return whole
