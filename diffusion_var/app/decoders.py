"""Where the decoder of a likelihood gets its variance: measured on images that are not scored, beside the table."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch.utils.data import Subset

from ..data.names import Part
from ..models.conditions import Conditions
from ..variance.table import VarianceTable
from .model import Model

if TYPE_CHECKING:
    from ..likelihood.decoder_costs import DecoderCosts

#: Images that a decoder is measured on: a few hundred tell its variances apart, at one evaluation an index.
MOST_IMAGES = 512


def measure_decoders(
    model: Model,
    images: Any,
    conditions: Conditions | None,
    table: VarianceTable | None,
    levels: int | None,
    seed: int,
    batch_size: int,
    checkpoint: Path | None,
) -> DecoderCosts:
    """What decoders cost on images, of more than 512 on those of a fixed shuffle; interrupted, it goes on from
    `checkpoint`.

    Args:
        conditions: of all the images.
    """
    from ..likelihood.decoder_costs import decoder_costs

    chosen = Part(None, MOST_IMAGES, shuffled=True).indices(len(images))
    part = images[torch.from_numpy(chosen)] if isinstance(images, torch.Tensor) else Subset(images, chosen.tolist())
    return decoder_costs(
        model.denoiser,
        model.inputs(part),
        table,
        seed=seed,
        levels=levels,
        conditions=None if conditions is None else conditions.part(chosen),
        batch_size=batch_size,
        checkpoint=checkpoint,
        progress=True,
    )
