"""One checked file of arrays and metadata: safetensors, all metadata under a single JSON key, written atomically.

The JSON carries a SHA-256 of everything else (arrays and metadata), so that a damaged file is recognised. The format
version is checked first; a newer one is refused. More metadata keys would make the bytes differ between runs.

What kind of file it is says its `Form`: what the metadata must be (a pydantic model, strict) and what the arrays must
be. A file is parsed once, here; what comes out of `read_document` makes sense, or an InputError with the path went out.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from . import checks
from .errors import InputError
from .files import expanded, write_atomic
from .json_text import parse_json

_KEY = "diffusion_var"
Arrays = dict[str, npt.NDArray[Any]]
#: What a parser may raise on a file that somebody made up: of nesting, of numbers and of types that do not exist.
_UNREADABLE = (
    *(SafetensorError, OSError, ValueError, TypeError, AttributeError),
    *(OverflowError, RecursionError, MemoryError),
)


class Record(BaseModel):
    """Plain data of a file: exactly the fields that are named, each of exactly its type, without NaN or infinity."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True, allow_inf_nan=False)


@dataclass(frozen=True)
class Form:
    """A kind of document.

    Attributes:
        name: in the file.
        version: that is written; newer ones are refused.
        noun: in messages.
        metadata: what the metadata must be, but for name, version and digest.
        check: refuses arrays and metadata that make no sense, with an InputError that says what is wrong of "it" (the
            file); None: whoever reads it knows.
        remedy: what mends a damaged one.
    """

    name: str
    version: int
    noun: str
    metadata: type[Record]
    check: Callable[[Arrays, Any], None] | None = None
    remedy: str = "make it again"


def write_document(path: str | Path, form: Form, arrays: Arrays, metadata: dict[str, Any]) -> None:
    """Write arrays and JSON metadata as one checked safetensors file."""
    arrays = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
    full = {**metadata, "format": form.name, "format_version": form.version}
    full["digest"] = document_digest(form, arrays, metadata)
    write_atomic(path, save(arrays, metadata={_KEY: json.dumps(full, sort_keys=True)}))


def document_digest(form: Form, arrays: Arrays, metadata: dict[str, Any]) -> str:
    """SHA-256 over the arrays and metadata of a document: the same contents give the same digest."""
    # By way of JSON, as a reader gets them: tuples are lists there.
    full = json.loads(json.dumps({**metadata, "format": form.name, "format_version": form.version}))
    return _digest({name: np.ascontiguousarray(array) for name, array in arrays.items()}, full)


def read_document(path: str | os.PathLike[str], form: Form) -> tuple[Arrays, Any]:
    """The arrays and the metadata (of the form's model) that `write_document` wrote.

    Raises InputError, with the path, for a file that is missing, damaged, of another form or a newer version, or whose
    contents make no sense.
    """
    path = expanded(path)
    arrays, metadata = _read_signed(path, form)
    with making(path, form):
        record = form.metadata.model_validate_json(json.dumps(metadata))
        if form.check is not None:
            form.check(arrays, record)
    return arrays, record


@contextmanager
def making(path: str | Path, form: Form) -> Iterator[None]:
    """While something is made of a file's contents: what is refused in here says which file it was."""
    try:
        yield
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(str(part) for part in first["loc"]) or "metadata"
        reason = f"its {where} is {checks.brief(first['input'])} ({first['msg'][:200]})"
        raise InputError(f"{path} is no {form.noun} that can be used: {reason}; {form.remedy}.") from error
    except InputError as error:
        reason = str(error).rstrip(".")
        raise InputError(f"{path} is no {form.noun} that can be used: {reason}; {form.remedy}.") from error


def _read_signed(path: Path, form: Form) -> tuple[Arrays, dict[str, Any]]:
    noun = form.noun
    if not path.is_file():
        inside = sorted(found.name for found in path.glob("*.safetensors")) if path.is_dir() else []
        hint = f"it is a folder: give a file in it ({', '.join(inside[:3])})" if inside else "check the path"
        raise InputError(f"there is no {noun} at {path}; {hint}.")
    try:
        with safe_open(str(path), framework="numpy") as file:
            text = (file.metadata() or {}).get(_KEY)
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
        metadata = parse_json(text) if text is not None else None
        digest = metadata.pop("digest", None) if isinstance(metadata, dict) else None
        right = isinstance(metadata, dict) and digest == _digest(arrays, metadata)
    except _UNREADABLE as error:
        reason = " ".join(str(error).split())[:200]
        raise InputError(
            f"{path} is not a readable {noun}: the file is damaged or of another kind ({reason}); {form.remedy}."
        ) from error
    if not isinstance(metadata, dict) or metadata.pop("format", None) != form.name:
        raise InputError(f"{path} is a safetensors file but not a {noun}; check the path.")
    found = metadata.pop("format_version", None)
    if checks.is_whole(found) and found > form.version:
        raise InputError(
            f"{path} has format version {found}, but this version of diffusion_var reads up to {form.version}; update "
            "diffusion_var."
        )
    if not (checks.is_whole(found) and found >= 1 and right):
        raise InputError(
            f"{path} is damaged: its contents do not match their checksum; {form.remedy} or copy it again."
        )
    return arrays, metadata


def _digest(arrays: Arrays, metadata: dict[str, Any]) -> str:
    content = hashlib.sha256(json.dumps(metadata, sort_keys=True).encode())
    for name in sorted(arrays):
        content.update(f"{name}{arrays[name].dtype}{arrays[name].shape}".encode() + arrays[name].tobytes())
    return content.hexdigest()
