"""JSON as plain data. Whatever is wrong with a text is a ValueError: no key twice, of which one would win in silence,
and no nesting deeper than Python follows."""

from __future__ import annotations

import json
from typing import Any

from . import checks


def parse_json(text: str | bytes) -> Any:
    """What a JSON text holds; ValueError where it is none."""
    try:
        return json.loads(text, object_pairs_hook=_mapping)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error


def _mapping(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"the key {checks.brief(twice)} stands twice")
    return found
