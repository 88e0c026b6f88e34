"""JSON that a command writes, with the identity of its run and a digest: so it is known whether a file is as it was
written, and by which request."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from ..files import write_atomic


def write_signed(path: Path, content: dict[str, Any], run: str) -> None:
    """Write content with its run and digest, atomically."""
    signed = {**content, "run": run}
    signed["digest"] = _digest(signed)
    write_atomic(path, (json.dumps(signed, indent=2) + "\n").encode())


def run_of_signed(path: Path) -> Any:
    """The run that wrote a file, if the file is as it was written."""
    try:
        held = json.loads(path.read_bytes())
        return held["run"] if held.pop("digest") == _digest(held) else None
    except (ValueError, TypeError, KeyError, AttributeError):
        return None


def content_of_signed(path: Path) -> dict[str, Any]:
    """What was written, without run and digest."""
    held: dict[str, Any] = json.loads(path.read_bytes())
    return {name: value for name, value in held.items() if name not in ("run", "digest")}


def _digest(content: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
