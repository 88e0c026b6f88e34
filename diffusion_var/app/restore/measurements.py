"""The measurements of a restoration: made of clean images here, or read from a file.

Those that are made are kept among the cells: made again, on another device or by another number of threads, they could
differ by a rounding, and the cells would be those of other measurements.
"""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.numpy import load_file

from ... import checks, parallel
from ...data.arrays import whole_array
from ...documents import Arrays, Form
from ...errors import InputError
from ...files import regular_file
from ...restoration.noise import MeasurementNoise
from ...restoration.operators import Operator
from ...resume import StateRecord
from ..cell_files import CellFiles
from .options import RestoreOptions

FORM = Form("diffusion_var.measurements", 1, "file of measurements", StateRecord)
_AT_ONCE = 16  # images that are measured together, whatever the batch size


def kept(y: torch.Tensor, folder: Path, identity: dict[str, Any]) -> torch.Tensor:
    """y of an earlier run of the same `identity`, or this one, kept for later ones; the same in all processes."""
    files, label = CellFiles(folder, FORM, identity), "measurements"

    def load_or_save() -> Arrays:
        found = files.load(label, {})
        if found is None or found[0]["y"].shape != tuple(y.shape):
            found = {"y": y.cpu().numpy()}, None
            files.save(label, {}, (found[0], {}))
        return found[0]

    team = parallel.team()
    arrays: list[Arrays] = []
    team.first_alone(lambda: arrays.append(load_or_save()))
    told = team.gather(arrays[0] if team.first else {})
    return torch.from_numpy(np.array(told[0][0]["y"])).to(y.device)


def measured(operator: Operator, truth: torch.Tensor, options: RestoreOptions, device: torch.device) -> torch.Tensor:
    """y = A x_0 + n of clean images, (B, *m); the noise of image i depends on the seed and on i alone."""
    parts = torch.split(truth, _AT_ONCE)
    with torch.no_grad():
        clean = torch.cat([operator.A(part.to(device)) for part in parts])
    noise = MeasurementNoise(options.noise, tuple(clean.shape[1:]), clean)
    return clean + torch.cat([noise.of_row(options.seed, i, clean) for i in range(len(clean))])


def read_measurements(path: Path) -> torch.Tensor:
    """y of a file, (B, *m) float32; InputError for a file that holds none."""
    file = regular_file(path, "file of measurements")
    try:
        if file.suffix.lower() == ".npz":
            with zipfile.ZipFile(file) as archive:
                array = whole_array(archive, "y") if "y.npy" in archive.namelist() else None
        else:
            array = load_file(file).get("y")
    except (
        InputError,
        SafetensorError,
        zipfile.BadZipFile,
        OSError,
        ValueError,
        TypeError,
        KeyError,
        EOFError,
    ) as error:
        reason = " ".join(str(error).split())[:200]
        raise InputError(
            f"the measurements {path} cannot be read ({reason}); expected an npz or safetensors file with an array y."
        ) from error
    array = checks.given(array, f"the measurements {path} hold no array called y; name it so.")
    wrong = array.dtype.kind != "f" or array.ndim < 2 or len(array) == 0
    checks.refuse(wrong, f"y of {path} is {array.dtype} of shape {array.shape}; expected (B, …) floats.")
    checks.refuse(
        not bool(np.isfinite(array).all()),
        f"y of {path} holds NaN or infinite values; elements that were not measured are left out by the operator: put "
        "0 in their place.",
    )
    return torch.from_numpy(array.astype(np.float32))
