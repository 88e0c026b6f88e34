"""A head's file: a checked document (see `documents`) of its weights, its kind, and the table that it multiplies.

The table carries the trunk's fingerprint, schedule, shape, prediction type and clipping, and refuses what they do not
fit, as everywhere. Heads are typed `Any` here: `head` builds on this file, and not the other way round.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch
from pydantic import Field, JsonValue

from .. import checks
from ..documents import Arrays, Form, Record, document_digest, making, read_document, write_document
from ..errors import InputError
from ..models.heads import HeadNetwork, first_groups_of
from ..models.pooled_head import PooledHead
from ..variance.table import VarianceTable
from ..variance.table_file import table_contents, table_fields
from ..variance.table_record import Size, TableRecord, check_table_file
from .head_spec import HeadSpec

_WEIGHTS, _TABLE = "head.", "table."


class HeadRecord(Record):
    """A head's metadata; the spec is checked where it is made.

    `cut` says where a head with the papers' output is cut in use; version 1 did not know it, and had another.
    `groups` are those of the normalisations; versions 1 and 2 did not say, and had `first_groups_of` the features.
    The spec's bands, and heads of kind "pooled", are of version 4.
    """

    spec: HeadSpec
    cut: Literal["range"] | None = None
    features: Annotated[tuple[Size, ...], Field(min_length=1, max_length=4)]
    groups: Annotated[int, Field(ge=1)] | None = None
    training: dict[str, JsonValue]
    table: TableRecord


def _check(arrays: Arrays, record: HeadRecord) -> None:
    for name, array in _part(arrays, _WEIGHTS).items():
        checks.refuse(array.dtype != np.float32, f"its weights {name} are {array.dtype}, but float32 is expected")
        checks.refuse(not np.isfinite(array).all(), f"it holds NaN or infinite weights ({name})")
    unknown = [name for name in arrays if not name.startswith((_WEIGHTS, _TABLE))]
    checks.refuse(bool(unknown), f"it holds arrays that do not belong there ({checks.listing(unknown, 3)})")
    check_table_file(_part(arrays, _TABLE), record.table)


FORM = Form(
    "diffusion_var.variance_head",
    4,  # 2: cut; 3: groups; 4: bands, pooled
    "variance head",
    HeadRecord,
    _check,
)
#: Heads that say nothing which an earlier version did not are written as it had them, so that they keep their digests.
_FIRST, _SECOND, _THIRD = (replace(FORM, version=version) for version in (1, 2, 3))


def write_head_file(head: Any, path: str | Path) -> None:
    """See `Head.save`."""
    write_document(path, _form(head), *_contents(head))


def head_digest(head: Any) -> str:
    """See `Head.digest`."""
    return document_digest(_form(head), *_contents(head))


def _form(head: Any) -> Form:
    if head.spec.bands is not None or head.spec.kind == "pooled":
        return FORM
    if head.network.stated_groups is not None:
        return _THIRD
    return _SECOND if head.spec.output == "papers" else _FIRST


def _contents(head: Any) -> tuple[Arrays, dict[str, Any]]:
    arrays, table = table_contents(head.table)
    content: Arrays = {_TABLE + name: array for name, array in arrays.items()}
    content |= {_WEIGHTS + name: value.detach().cpu().numpy() for name, value in head.network.state_dict().items()}
    # What version 1 called "papers" is "bounded" here, and was never written otherwise.
    output = "papers" if head.spec.output == "bounded" else head.spec.output
    groups = head.network.stated_groups
    metadata = {
        "spec": {**head.spec.plain(), "output": output},
        **({"cut": "range"} if head.spec.output == "papers" else {}),
        "features": list(head.network.features),
        **({} if groups is None else {"groups": groups}),
        "training": head.training,
        "table": table,
    }
    return content, metadata


def read_head_file(path: str | Path) -> tuple[HeadNetwork | PooledHead, VarianceTable, HeadSpec, dict[str, Any]]:
    """The arguments of the `Head` in a file."""
    arrays, record = read_document(path, FORM)
    table, spec = VarianceTable(**table_fields(_part(arrays, _TABLE), record.table)), record.spec
    if spec.output == "papers" and record.cut is None:
        spec = replace(spec, output="bounded")
    # Clones, which begin where PyTorch puts tensors itself: by that some kernels round.
    weights: dict[str, Any] = {name: torch.from_numpy(a).clone() for name, a in _part(arrays, _WEIGHTS).items()}
    with making(path, FORM), torch.device("meta"):  # no memory: the weights of the file take these places
        groups = record.groups or first_groups_of
        network = spec.new_network(record.features, table.shape or (1, 1, 1), groups)
    try:
        network.load_state_dict(weights, assign=True)
    except RuntimeError as error:
        raise InputError(
            f"the weights in {path} are not those of a {spec.kind} head (of another version of diffusers?): "
            f"{' '.join(str(error).split())[:200]}; train it again."
        ) from error
    return network.eval().requires_grad_(False), table, spec, record.training


def _part(arrays: Arrays, prefix: str) -> Arrays:
    return {name.removeprefix(prefix): array for name, array in arrays.items() if name.startswith(prefix)}
