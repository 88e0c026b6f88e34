"""One checked file of arrays and metadata: safetensors, all metadata under a single JSON key, written atomically.

The JSON carries a SHA-256 of everything else (arrays and metadata), so that a damaged file is recognised. The format
version is checked first; a newer one is refused. More metadata keys would make the bytes differ between runs.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from .errors import InputError
from .files import expanded, write_atomic

_KEY = "diffusion_var"
Arrays = dict[str, npt.NDArray[Any]]


def write_document(path: str | Path, form: str, version: int, arrays: Arrays, metadata: dict[str, Any]) -> None:
    """Write arrays and JSON metadata as one checked safetensors file."""
    arrays = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
    full = {**metadata, "format": form, "format_version": version}
    full["digest"] = document_digest(form, version, arrays, metadata)
    write_atomic(path, save(arrays, metadata={_KEY: json.dumps(full, sort_keys=True)}))


def document_digest(form: str, version: int, arrays: Arrays, metadata: dict[str, Any]) -> str:
    """SHA-256 over the arrays and metadata of a document: the same contents give the same digest."""
    # By way of JSON, as a reader gets them: tuples are lists there.
    full = json.loads(json.dumps({**metadata, "format": form, "format_version": version}))
    return _digest({name: np.ascontiguousarray(array) for name, array in arrays.items()}, full)


def read_document(
    path: str | Path, form: str, version: int, noun: str, remedy: str = "make it again"
) -> tuple[Arrays, dict[str, Any]]:
    """Read what `write_document` wrote; `noun` names the thing in error messages, `remedy` what mends a damaged one."""
    path = expanded(path)
    if not path.is_file():
        inside = sorted(found.name for found in path.glob("*.safetensors")) if path.is_dir() else []
        hint = f"it is a folder: give a file in it ({', '.join(inside[:3])})" if inside else "check the path"
        raise InputError(f"there is no {noun} at {path}; {hint}.")
    try:
        with safe_open(str(path), framework="numpy") as file:
            text = (file.metadata() or {}).get(_KEY)
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
        metadata = json.loads(text) if text is not None else None
    except (SafetensorError, OSError, ValueError) as error:
        raise InputError(
            f"{path} is not a readable {noun}: the file is damaged or of another kind ({error}); {remedy}."
        ) from error
    if not isinstance(metadata, dict) or metadata.get("format") != form:
        raise InputError(f"{path} is a safetensors file but not a {noun}; check the path.")
    found = metadata.get("format_version")
    if isinstance(found, int) and found > version:
        raise InputError(
            f"{path} has format version {found}, but this version of diffusion_var reads up to {version}; update "
            "diffusion_var."
        )
    if not isinstance(found, int) or metadata.pop("digest", None) != _digest(arrays, metadata):
        raise InputError(f"{path} is damaged: its contents do not match their checksum; {remedy} or copy it again.")
    return arrays, metadata


def _digest(arrays: Arrays, metadata: dict[str, Any]) -> str:
    content = hashlib.sha256(json.dumps(metadata, sort_keys=True).encode())
    for name in sorted(arrays):
        content.update(f"{name}{arrays[name].dtype}{arrays[name].shape}".encode() + arrays[name].tobytes())
    return content.hexdigest()
