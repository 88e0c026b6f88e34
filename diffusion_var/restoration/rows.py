"""Which row of y an image goes with: a part of its condition, so that whoever hands conditions on hands it on too."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from .. import checks
from ..errors import InputError
from ..models.conditions import as_nest, map_leaves

_ROWS, _OWN = "row of the measurement", "condition"


def as_condition(rows: Sequence[int] | torch.Tensor, condition: Any) -> dict[str, Any]:
    """Rows of y, one an image, with the model's own conditions; InputError for what is no whole number."""
    given = rows.tolist() if isinstance(rows, torch.Tensor) else list(rows)
    wrong = not all(checks.is_whole(row) for row in given)
    checks.refuse(wrong, f"the rows {checks.brief(rows)} must be whole numbers: which rows of y go with the images.")
    of_model = {} if condition is None else {_OWN: condition}
    return {_ROWS: torch.tensor([int(row) for row in given], dtype=torch.int64), **of_model}


def has_rows(condition: Any) -> bool:
    """Whether a condition says which rows its images go with."""
    return isinstance(condition, dict) and _ROWS in condition


def taken_apart(condition: Any, batch: int, count: int) -> tuple[torch.Tensor, Any]:
    """The rows (B,) that a batch goes with, of `count`, and the model's own condition; InputError where they are not
    known, or not there."""
    if has_rows(condition):
        rows = condition[_ROWS].cpu()
        wrong = len(rows) != batch or not bool(((rows >= 0) & (rows < count)).all())
        checks.refuse(wrong, f"rows of y must be {batch} numbers from 0 to {count - 1}, one for each image.")
        return rows, condition.get(_OWN)
    if count not in (1, batch):
        raise InputError(
            f"there are {batch} images and {count} measurements, so that it is not known which goes with which; "
            "pass condition=denoiser.rows_condition(rows)."
        )
    return torch.arange(batch) % count, condition


def of_part(part: Any, rows: torch.Tensor, condition: Any) -> tuple[torch.Tensor, Any]:
    """The rows and conditions of some of a batch's images."""
    return rows[part], None if condition is None else map_leaves(lambda leaf: leaf[part], as_nest(condition))
