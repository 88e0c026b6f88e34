"""The variance table's file: a checked document (see `documents`) of moments, schedule, data statistics and origins."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..documents import Arrays, document_digest, read_document, write_document
from ..process.schedule import NoiseSchedule
from .population import DataStatistics

if TYPE_CHECKING:
    from .table import VarianceTable

FORMAT = "diffusion_var.variance_table"
FORMAT_VERSION = 2  # 2: guidance scale and latent scaling


def write_table(table: VarianceTable, path: str | Path) -> None:
    """See `VarianceTable.save`."""
    write_document(path, FORMAT, FORMAT_VERSION, *table_contents(table))


def table_digest(table: VarianceTable) -> str:
    """See `VarianceTable.digest`."""
    return document_digest(FORMAT, FORMAT_VERSION, *table_contents(table))


def table_contents(table: VarianceTable) -> tuple[Arrays, dict[str, Any]]:
    """The arrays and the metadata of a table's document."""
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
    metadata: dict[str, Any] = {
        "schedule": {"digest": schedule.digest, "prior_std": schedule.prior_std},
        "structures": list(table.moments),
        "shape": table.shape,
        "prediction": table.prediction,
        "clip": table.clip,
        "data_range": table.data_range,
        "network": table.network,
        "guidance_scale": table.guidance_scale,
        "latent_scaling": table.latent_scaling,
        "data": data,
        "seed": table.seed,
        "tolerance": table.tolerance,
        "evaluations": table.evaluations,
        "details": table.details,
    }
    return arrays, metadata


def read_table(path: str | Path) -> VarianceTable:
    """See `VarianceTable.load`."""
    return table_of(*read_document(path, FORMAT, FORMAT_VERSION, "variance table"))


def table_of(arrays: Arrays, meta: dict[str, Any]) -> VarianceTable:
    """The table of a document's arrays and metadata."""
    from .table import StructureMoments, VarianceTable

    schedule = NoiseSchedule(
        arrays["schedule.alpha"], arrays["schedule.sigma"], arrays["schedule.timestep"], meta["schedule"]["prior_std"]
    )
    data = None
    if meta["data"] is not None:
        names = ("mean", "pixel_variance", "spectrum", "rotation")
        known: dict[str, Any] = {name: arrays[f"data.{name}"] for name in names} | meta["data"]
        data = DataStatistics(**known)

    def pair(name: str) -> Any:
        return None if meta.get(name) is None else tuple(meta[name])

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
        guidance_scale=meta.get("guidance_scale", 1.0),
        latent_scaling=pair("latent_scaling"),
        data=data,
        seed=meta["seed"],
        tolerance=meta["tolerance"],
        evaluations=meta["evaluations"],
        details=meta["details"],
    )
