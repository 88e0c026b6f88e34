"""Whether two folders hold the same: byte by byte, or, where processes have grouped batches otherwise, the same numbers
to rounding."""

from __future__ import annotations

import io
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
from forks import tree
from PIL import Image

CLOSE = 1e-5  # relative to the largest number beside it
_NUMBER = re.compile(r"-?\d+(?:\.\d+)?(?:e[-+]?\d+)?")
_DIGEST = re.compile(r"[0-9a-f]{12,64}")
_DIGESTS = ("digest", "run", "table", "features_sha256", "reference_sha256")  # of what is itself to rounding


def unlike(mine: Path, other: Path, exact: bool) -> list[str]:
    """The names of the files in which two folders differ."""
    a, b = tree(mine), tree(other)
    names = sorted(name for name in {**a, **b} if a.get(name) != b.get(name))
    return names if exact else [n for n in names if n not in a or n not in b or not _close(mine / n, other / n)]


def _close(mine: Path, other: Path) -> bool:
    kind = mine.suffix if mine.suffix in (".npz", ".json", ".png", ".html") else ""
    if mine.name == "SHA256SUMS" or kind == ".html":  # of what else is compared
        return True
    a, b = mine.read_bytes(), other.read_bytes()
    if kind == ".npz":
        with np.load(io.BytesIO(a)) as x, np.load(io.BytesIO(b)) as y:
            return x.files == y.files and all(_near(x[name], y[name]) for name in x.files)
    if kind == ".png":
        x, y = (np.asarray(Image.open(io.BytesIO(content)), dtype=np.float64) for content in (a, b))
        return x.shape == y.shape and float(np.abs(x - y).mean()) <= 1.0
    if kind == ".json":
        return _same(json.loads(a), json.loads(b))
    if a[8:9] == b"{":
        (x, told), (y, said) = _document(mine), _document(other)
        return x.keys() == y.keys() and all(_near(x[name], y[name]) for name in x) and _same(told, said)
    return _same_text(a.decode(), b.decode())


def _document(path: Path) -> tuple[dict[str, Any], Any]:
    with safetensors.safe_open(str(path), "numpy") as file:
        arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
        return arrays, json.loads((file.metadata() or {}).get("diffusion_var", "{}"))


def _near(a: Any, b: Any) -> bool:
    if a.shape != b.shape or a.dtype != b.dtype:
        return False
    if a.dtype.kind in "iu":
        return bool(np.abs(a.astype(np.int64) - b.astype(np.int64)).max(initial=0) <= (a.dtype == np.uint8))
    if a.dtype.kind != "f":
        return str(a) == str(b) or _same(json.loads(str(a)), json.loads(str(b)))
    scale = np.abs(a[np.isfinite(a)]).max(initial=0.0)
    return bool(np.allclose(a, b, rtol=CLOSE, atol=CLOSE * float(scale), equal_nan=True))


def _same(a: Any, b: Any, name: str = "") -> bool:
    """Plain data with the same numbers, but for digests, seconds and the device of one process."""
    if name in (*_DIGESTS, "seconds", "device"):
        return True
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(_same(a[key], b[key], key) for key in a)
    if isinstance(a, list) and isinstance(b, list):
        return len(a) == len(b) and all(map(_same, a, b))
    if isinstance(a, float) and isinstance(b, float):
        return a == b or abs(a - b) <= 10 * CLOSE * max(abs(a), abs(b))
    if isinstance(a, str) and isinstance(b, str):
        return _same_text(a, b)
    return bool(a == b)


def _same_text(a: str, b: str) -> bool:
    """Words that are the same, around numbers that are the same to what is shown of them."""
    a, b = (_DIGEST.sub("digest", text) for text in (a, b))
    if _NUMBER.sub("", a) != _NUMBER.sub("", b):
        return False
    pairs = zip(_NUMBER.findall(a), _NUMBER.findall(b), strict=True)
    return all(abs(float(x) - float(y)) <= max(1e-3 * abs(float(x)), _unit(x)) for x, y in pairs)


def _unit(number: str) -> float:
    """One unit of the last digit that is shown, of a number with a fraction."""
    mantissa, _, exponent = number.partition("e")
    decimals = len(mantissa.partition(".")[2])
    return 10.0 ** (int(exponent or 0) - decimals) if decimals else 0.0
