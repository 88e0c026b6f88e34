"""A head's file: a checked document (see `documents`) of its weights, its kind, and the table that it multiplies.

The table carries the trunk's fingerprint, schedule, shape, prediction type and clipping, and refuses what they do not
fit, as everywhere. Heads are typed `Any` here: `head` builds on this file, and not the other way round.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from .. import checks
from ..documents import Arrays, document_digest, read_document, write_document
from ..errors import InputError
from ..models.heads import HeadNetwork
from ..variance.table import VarianceTable
from ..variance.table_file import table_contents, table_fields
from .head_spec import HeadSpec

FORMAT = "diffusion_var.variance_head"
FORMAT_VERSION = 1
_WEIGHTS, _TABLE = "head.", "table."


def write_head_file(head: Any, path: str | Path) -> None:
    """See `Head.save`."""
    write_document(path, FORMAT, FORMAT_VERSION, *_contents(head))


def head_digest(head: Any) -> str:
    """See `Head.digest`."""
    return document_digest(FORMAT, FORMAT_VERSION, *_contents(head))


def _contents(head: Any) -> tuple[Arrays, dict[str, Any]]:
    arrays, table = table_contents(head.table)
    content: Arrays = {_TABLE + name: array for name, array in arrays.items()}
    content |= {_WEIGHTS + name: value.detach().cpu().numpy() for name, value in head.network.state_dict().items()}
    metadata = {
        "spec": vars(head.spec),
        "features": list(head.network.features),
        "training": head.training,
        "table": table,
    }
    return content, metadata


def read_head_file(path: str | Path) -> tuple[HeadNetwork, VarianceTable, HeadSpec, dict[str, Any]]:
    """The arguments of the `Head` in a file."""
    arrays, metadata = read_document(path, FORMAT, FORMAT_VERSION, "variance head")
    table = VarianceTable(**table_fields(_part(arrays, _TABLE), metadata["table"]))
    spec = HeadSpec(**metadata["spec"])
    network = HeadNetwork(spec.kind, metadata["features"], table.shape or (1, 1, 1))
    weights: dict[str, Any] = {name: torch.from_numpy(a.copy()) for name, a in _part(arrays, _WEIGHTS).items()}
    wrong = [name for name, value in weights.items() if not torch.isfinite(value).all()]
    checks.refuse(
        bool(wrong), f"the head {path} holds NaN or infinite weights ({', '.join(wrong[:1])}); train it again."
    )
    try:
        network.load_state_dict(weights)
    except RuntimeError as error:
        raise InputError(
            f"the weights in {path} are not those of a {spec.kind} head (of another version of diffusers?): "
            f"{' '.join(str(error).split())[:200]}; train it again."
        ) from error
    return network.eval().requires_grad_(False), table, spec, metadata["training"]


def _part(arrays: Arrays, prefix: str) -> Arrays:
    return {name.removeprefix(prefix): array for name, array in arrays.items() if name.startswith(prefix)}
