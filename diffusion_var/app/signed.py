"""JSON that a command writes, with the identity of its run and a digest: so it is known whether a file is as it was
written, and by which request. And such a command as a whole: what it finds is printed, and written if asked."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ..files import write_atomic
from ..json_text import parse_json
from ..parallel import is_first
from .claims import claimed_file, run_identity
from .outputs import checkpoint_beside, usable_checkpoint
from .terminal import say, say_lines


def find_and_tell(
    command: str,
    options: Any,
    find: Callable[[Path | None], tuple[dict[str, Any], object]],
    forget: Callable[[Path], None] = lambda checkpoint: checkpoint.unlink(missing_ok=True),
) -> None:
    """Print what a command finds, as text or with `json` as JSON, and write it to `out` if there is one.

    Args:
        command: its name.
        options: with out, checkpoint, overwrite and json.
        find: what is found, as plain data and as what prints as text, from a checkpoint if one is given.
        forget: removes what was kept at a checkpoint, once the result is written.
    """
    checkpoint = None if options.checkpoint is None else usable_checkpoint(options.checkpoint)
    if options.out is None:
        _tell(options, *find(checkpoint))
        return
    checkpoint, this = checkpoint_beside(options.out, checkpoint), run_identity(command, options)
    aloud = not options.json
    with claimed_file(options.out, this, run_of_signed, options.overwrite, checkpoint, aloud) as finished:
        if finished:
            if options.json and is_first():
                print(json.dumps(content_of_signed(options.out)))
            return
        content, result = find(checkpoint)
        if is_first():
            write_signed(options.out, content, this)
            forget(checkpoint)
        _tell(options, content, result)
        if aloud:
            say(f"written: {options.out}")


def _tell(options: Any, content: dict[str, Any], result: object) -> None:
    if not options.json:
        say_lines(str(result))
    elif is_first():
        print(json.dumps(content))


def write_signed(path: Path, content: dict[str, Any], run: str) -> None:
    """Write content with its run and digest, atomically."""
    signed = {**content, "run": run}
    signed["digest"] = _digest(signed)
    write_atomic(path, (json.dumps(signed, indent=2) + "\n").encode())


def run_of_signed(path: Path) -> Any:
    """The run that wrote a file, if the file is as it was written."""
    try:
        held = parse_json(path.read_bytes())
        return held["run"] if held.pop("digest") == _digest(held) else None
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return None


def content_of_signed(path: Path) -> dict[str, Any]:
    """What was written, without run and digest."""
    held: dict[str, Any] = parse_json(path.read_bytes())
    return {name: value for name, value in held.items() if name not in ("run", "digest")}


def _digest(content: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
