"""Senseless files with a right checksum: one thing of a document's arrays or metadata changed, and signed again.

Every mutant breaks a rule that no run breaks, so that a reader must refuse all of them, in one sentence with the path.
What may be anything (the details of a run, its seed) is left alone.
"""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from signed import contents, sign

#: Metadata whose inside may be any JSON, and numbers that may be negative.
FREE = ("details", "training", "protocol", "held_out_accuracy", "training_images")
SIGNED = ("seed", "value", "mean", "steps_offset")
#: Arrays of which a change is another, sensible array: a mirrored basis, another mean, weights.
ZERO_IS_FINE = (
    *("head.", "network.", "extra.", "average."),  # weights
    *("data.mean", "grid", "latents", "values", "noise", "squares", "mean", "image_variance", "draws.", "nats"),
)
OPTIONAL = ("optimizer.", "extra.", "image_variance", "draws.", "isotropic.fold")
NEGATIVE_IS_FINE = (*ZERO_IS_FINE, "data.rotation", "optimizer.", "trunk.", "curve")


def mutants(path: Path, others_zero: tuple[str, ...] = ()) -> Iterator[tuple[str, Callable[[Path], None]]]:
    """Names of mutants of a document, each with what writes it to a path."""
    arrays, metadata = contents(path)
    for name, changed in _metadata(metadata):
        yield f"metadata {name}", lambda target, m=changed: sign(target, arrays, m)
    for name, content in _arrays(arrays, (*ZERO_IS_FINE, *others_zero)):
        yield f"array {name}", lambda target, a=content: sign(target, a, metadata)


def _metadata(metadata: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    def places(value: Any, place: tuple[Any, ...]) -> Iterator[tuple[Any, ...]]:
        if place:
            yield place
        if place and place[-1] in FREE:
            return
        items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
        for key, inside in items:
            yield from places(inside, (*place, key))

    for place in places(metadata, ()):
        whole = copy.deepcopy(metadata)
        holder = whole
        for key in place[:-1]:
            holder = holder[key]
        name, old = ".".join(map(str, place)), holder[place[-1]]
        for new in _senseless(str(place[-1]), old):
            holder[place[-1]] = new
            yield f"{name} = {str(new)[:40]}", copy.deepcopy(whole)
    yield "something more", {**metadata, "something": 1}


def _senseless(name: str, old: Any) -> list[Any]:
    wrong: list[Any] = [{"a": 1}, [[]], True] if not isinstance(old, bool) else ["x"]
    if not isinstance(old, bool) and old == 1:  # which is the same to Python
        wrong.remove(True)
    if name in FREE:
        return [5, "x", []] if isinstance(old, dict) else []
    if isinstance(old, int):
        return [*wrong, "7", 1.5, math.nan, *([] if name in SIGNED else [-1, -(10**400)])]
    if isinstance(old, float):
        return [*wrong, "7", math.nan, *([] if name == "value" else [math.inf])]
    if isinstance(old, str):
        return [*wrong, 5, "", "x" * 3000]
    if isinstance(old, list):
        return [{"a": 1}, True, "x", [{}]]
    if isinstance(old, dict):
        return [[], 5, "x"]
    return wrong


def json_mutants(content: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Names of mutants of a JSON file without a checksum, each with its text: some are torn, some hold other values."""
    text = json.dumps(content)
    for end in (0, 1, len(text) // 2, len(text) - 1):
        yield f"torn at {end}", text[:end]
    for other in ("null", "[]", "5", '"x"', "{}", "\x00", "[" * 100_000, '{"a":' * 50_000):
        yield f"other {other[:5]!r}", other
    for name, changed in _metadata(content):
        yield name, json.dumps(changed)
    for key in content:
        yield f"{key} gone", json.dumps({name: value for name, value in content.items() if name != key})


def _arrays(arrays: dict[str, Any], zero_is_fine: tuple[str, ...]) -> Iterator[tuple[str, dict[str, Any]]]:
    for name, array in arrays.items():
        rest = {key: value for key, value in arrays.items() if key != name}
        if not name.removeprefix("table.").startswith(OPTIONAL):
            yield f"{name} gone", rest
        for what, changed in _changes(name.removeprefix("table."), array, zero_is_fine):
            yield f"{name} {what}", {**rest, name: changed}
    yield "something more", {**arrays, "something": np.zeros(2)}


def _changes(name: str, array: np.ndarray[Any, Any], zero_is_fine: tuple[str, ...]) -> Iterator[tuple[str, Any]]:
    yield "of another type", (array != 0).astype(np.float16 if array.dtype != np.float16 else np.int8)
    yield "with an axis more", array[None]
    if array.size == 0:
        return
    if array.ndim and len(array) > 1 and not name.startswith(("grid", "latents", "extra.", "curve")):
        yield "cut", array[:-1].copy()
    if array.dtype.kind == "f" and not name.startswith("curve"):
        for bad in (np.nan, np.inf):
            if name == "schedule.timestep" or (name == "image_variance" and np.isnan(bad)):
                continue
            spoiled = array.copy()
            spoiled.flat[spoiled.size // 2] = bad
            yield f"with {bad}", spoiled
    if not name.startswith(zero_is_fine) and array.any():
        yield "all zero", np.zeros_like(array)
    if (
        (not name.startswith(NEGATIVE_IS_FINE) or name == "image_variance")
        and array.dtype.kind in "fi"
        and (array > 0).any()
    ):
        yield "negative", -np.abs(array)
    if name == "indices" and array.size > 1:
        doubled = array.copy()
        doubled[1] = doubled[0]
        yield "doubled", doubled
        yield "reversed", array[::-1].copy()
