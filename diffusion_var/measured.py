"""Numbers that were measured, as plain data, and when two of them agree: within a tolerance, for no two machines round
alike."""

from __future__ import annotations

import math
from typing import Any

from . import checks

Plain = dict[str, Any]
#: A tolerance above which numbers would agree that are not the same.
MOST_WITHIN = 0.1
_MOST_TEXT = 256


def measured(values: list[float], within: float, of: str) -> Plain:
    """Numbers as a document keeps them.

    Args:
        values: finite; rounded here to the six digits that are worth keeping.
        within: relative to their root-mean-square, how far another measurement may be off.
        of: what they are measurements of, as text or a digest; those of something else are not compared.
    """
    return {"of": of, "values": [float(f"{value:.6g}") for value in values], "within": within}


def agree(a: Any, b: Any) -> bool:
    """Whether two entries of documents are the same: equal, or measured numbers that agree within the larger of their
    two tolerances. What was not measured (None), or was measured of something else, is not compared."""
    if not (is_measured(a) or is_measured(b)):
        return bool(a == b)
    if a is None or b is None:
        return True
    if not (is_measured(a) and is_measured(b)) or (a["of"], len(a["values"])) != (b["of"], len(b["values"])):
        return is_measured(a) and is_measured(b)
    return distance(a, b) <= float(max(a["within"], b["within"]))


def distance(a: Plain, b: Plain) -> float:
    """The largest difference of two measurements, in units of the larger root-mean-square; 0 where both are 0."""
    scale = max(math.sqrt(sum(x * x for x in found["values"]) / len(found["values"])) for found in (a, b))
    worst = max(abs(x - y) for x, y in zip(a["values"], b["values"], strict=True))
    return worst / scale if scale else 0.0


def is_measured(value: Any) -> bool:
    """Whether an entry of a document is what `measured` makes."""
    if not isinstance(value, dict) or value.keys() != {"of", "values", "within"}:
        return False
    of, values, within = value["of"], value["values"], value["within"]
    if not isinstance(of, str) or not 0 < len(of) <= _MOST_TEXT:
        return False
    if not isinstance(values, list) or not values or not isinstance(within, float) or not 0 < within <= MOST_WITHIN:
        return False
    return all(isinstance(number, float) and math.isfinite(number) for number in values)


def shown(value: Any) -> str:
    """An entry of a document in a sentence; of a measurement the first numbers."""
    return f"({', '.join(map(str, value['values'][:3]))}, …)" if is_measured(value) else checks.brief(value)
