"""Files that somebody changed and signed again: the checksum is right, whatever they hold."""

import json
from pathlib import Path
from typing import Any

import safetensors
import safetensors.numpy

from diffusion_var.documents import _digest


def contents(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """The arrays and the metadata of a document, without its checksum."""
    with safetensors.safe_open(str(path), "numpy") as file:
        arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
        metadata = json.loads(file.metadata()["diffusion_var"])
    del metadata["digest"]
    return arrays, metadata


def sign(path: Path, arrays: dict[str, Any], metadata: dict[str, Any]) -> None:
    """Write a document with the checksum that its contents have."""
    full = {**metadata, "digest": _digest(arrays, metadata)}
    path.write_bytes(safetensors.numpy.save(arrays, {"diffusion_var": json.dumps(full, sort_keys=True)}))
