"""The variance table's file: a checked document (see `documents`) of moments, schedule, data statistics and origins.

Tables are typed `Any` here: `table` builds on this file, and not the other way round.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..documents import Arrays, Form, document_digest, read_document, write_document
from ..process.schedule import NoiseSchedule
from .moments import StructureMoments
from .population import DataStatistics
from .table_record import TableRecord, check_table_file

FORM = Form(
    "diffusion_var.variance_table",
    2,  # 2: guidance scale and latent scaling
    "variance table",
    TableRecord,
    check_table_file,
)


def write_table_file(table: Any, path: str | Path) -> None:
    """See `VarianceTable.save`."""
    write_document(path, FORM, *table_contents(table))


def table_digest(table: Any) -> str:
    """See `VarianceTable.digest`."""
    return document_digest(FORM, *table_contents(table))


def table_contents(table: Any) -> tuple[Arrays, dict[str, Any]]:
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
        if moments.folds is not None:
            arrays[f"{name}.folds"] = moments.folds
    if table.image_variance is not None:
        arrays["image_variance"] = table.image_variance
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
        # Older files have none, and keep their digest when they are read and written.
        **({} if table.network_facts is None else {"network_facts": table.network_facts}),
    }
    return arrays, metadata


def read_table_file(path: str | Path) -> dict[str, Any]:
    """The arguments of the `VarianceTable` in a file."""
    return table_fields(*read_document(path, FORM))


def table_fields(arrays: Arrays, record: TableRecord) -> dict[str, Any]:
    """The arguments of the `VarianceTable` of a document's arrays and metadata."""
    schedule = NoiseSchedule(
        arrays["schedule.alpha"], arrays["schedule.sigma"], arrays["schedule.timestep"], record.schedule.prior_std
    )
    data = None
    if record.data is not None:
        names = ("mean", "pixel_variance", "spectrum", "rotation")
        known: dict[str, Any] = {name: arrays[f"data.{name}"] for name in names}
        data = DataStatistics(**known, count=record.data.count, fingerprint=record.data.fingerprint)
    moments = {  # earlier versions knew no folds
        name: StructureMoments(arrays[f"{name}.means"], arrays[f"{name}.covariances"], arrays.get(f"{name}.folds"))
        for name in record.structures
    }
    plain = {name: getattr(record, name) for name in TableRecord.model_fields if name not in ("structures",)}
    return {
        **plain,
        "schedule": schedule,
        "indices": arrays["indices"],
        "counts": arrays["counts"],
        "moments": moments,
        "data": data,
        "image_variance": arrays.get("image_variance"),  # earlier versions did not know it
    }
