"""The variance table's file: one safetensors file, all metadata under one JSON key, written atomically.

The JSON carries a SHA-256 of everything else (arrays and metadata), so that a damaged file is recognised. The format
version is checked first; a newer one is refused. More metadata keys would make the bytes differ between runs.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from ..errors import InputError
from ..files import write_atomic
from ..process.schedule import NoiseSchedule
from .population import DataStatistics

if TYPE_CHECKING:
    from .table import VarianceTable

FORMAT = "diffusion_var.variance_table"
FORMAT_VERSION = 1
_KEY = "diffusion_var"
Arrays = dict[str, npt.NDArray[Any]]


def write_document(path: str | Path, form: str, version: int, arrays: Arrays, metadata: dict[str, Any]) -> None:
    """Write arrays and JSON metadata as one checked safetensors file."""
    arrays = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
    full = {**metadata, "format": form, "format_version": version}
    full["digest"] = _digest(arrays, full)
    write_atomic(path, save(arrays, metadata={_KEY: json.dumps(full, sort_keys=True)}))


def read_document(path: str | Path, form: str, version: int, noun: str) -> tuple[Arrays, dict[str, Any]]:
    """Read what `write_document` wrote; `noun` names the thing in error messages."""
    if not Path(path).is_file():
        raise InputError(f"there is no {noun} at {path}; check the path.")
    try:
        with safe_open(str(path), framework="numpy") as file:
            text = (file.metadata() or {}).get(_KEY)
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
        metadata = json.loads(text) if text is not None else None
    except (SafetensorError, OSError, ValueError) as error:
        raise InputError(
            f"{path} is not a readable {noun}: the file is damaged or of another kind ({error}); make it again."
        ) from error
    if not isinstance(metadata, dict) or metadata.get("format") != form:
        raise InputError(f"{path} is a safetensors file but not a {noun}; check the path.")
    if not isinstance(metadata.get("format_version"), int) or metadata["format_version"] > version:
        raise InputError(
            f"{path} has format version {metadata.get('format_version')}, but this version of diffusion_var reads up "
            f"to {version}; update diffusion_var."
        )
    if metadata.pop("digest", None) != _digest(arrays, metadata):
        raise InputError(
            f"{path} is damaged: its contents do not match their checksum; make it again or copy it again."
        )
    return arrays, metadata


def _digest(arrays: Arrays, metadata: dict[str, Any]) -> str:
    content = hashlib.sha256(json.dumps(metadata, sort_keys=True).encode())
    for name in sorted(arrays):
        content.update(f"{name}{arrays[name].dtype}{arrays[name].shape}".encode() + arrays[name].tobytes())
    return content.hexdigest()


def write_table(table: VarianceTable, path: str | Path) -> None:
    """See `VarianceTable.save`."""
    schedule = table.schedule
    arrays: Arrays = {
        "schedule.alpha": schedule.alpha,
        "schedule.sigma": schedule.sigma,
        "schedule.timestep": schedule.timestep,
        "indices": table.indices,
        "counts": table.counts,
    }
    for name, moments in table.moments.items():
        arrays[f"{name}.means"] = moments.means
        arrays[f"{name}.covariances"] = moments.covariances
    data: dict[str, Any] | None = None
    if table.data is not None:
        for name in ("mean", "pixel_variance", "spectrum", "rotation"):
            arrays[f"data.{name}"] = getattr(table.data, name)
        data = {"count": table.data.count, "fingerprint": table.data.fingerprint}
    metadata = {
        "schedule": {"digest": schedule.digest, "prior_std": schedule.prior_std},
        "structures": list(table.moments),
        "shape": table.shape,
        "prediction": table.prediction,
        "clip": table.clip,
        "data_range": table.data_range,
        "network": table.network,
        "data": data,
        "seed": table.seed,
        "tolerance": table.tolerance,
        "evaluations": table.evaluations,
        "details": table.details,
    }
    write_document(path, FORMAT, FORMAT_VERSION, arrays, metadata)


def read_table(path: str | Path) -> VarianceTable:
    """See `VarianceTable.load`."""
    from .table import StructureMoments, VarianceTable

    arrays, meta = read_document(path, FORMAT, FORMAT_VERSION, "variance table")
    schedule = NoiseSchedule(
        arrays["schedule.alpha"], arrays["schedule.sigma"], arrays["schedule.timestep"], meta["schedule"]["prior_std"]
    )
    data = None
    if meta["data"] is not None:
        names = ("mean", "pixel_variance", "spectrum", "rotation")
        known: dict[str, Any] = {name: arrays[f"data.{name}"] for name in names} | meta["data"]
        data = DataStatistics(**known)

    def pair(name: str) -> Any:
        return None if meta[name] is None else tuple(meta[name])

    return VarianceTable(
        schedule=schedule,
        indices=arrays["indices"],
        counts=arrays["counts"],
        moments={
            name: StructureMoments(arrays[f"{name}.means"], arrays[f"{name}.covariances"])
            for name in meta["structures"]
        },
        shape=pair("shape"),
        prediction=meta["prediction"],
        clip=pair("clip"),
        data_range=pair("data_range"),
        network=meta["network"],
        data=data,
        seed=meta["seed"],
        tolerance=meta["tolerance"],
        evaluations=meta["evaluations"],
        details=meta["details"],
    )
