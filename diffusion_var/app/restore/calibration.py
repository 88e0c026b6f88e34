"""Which covariance explains the measurements: rᵀ S⁻¹ r over the elements of y, r = y − A x̂_0, S = A Σ Aᵀ + σ_y² I.

Its mean over noisy versions x_t of the true images is 1 where Σ is the covariance of x_0 − x̂_0 as the operator sees it:
above 1, Σ is too small there, and the measurement is followed too closely; below 1, too large.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from ... import parallel
from ...documents import Form
from ...process.steps import log_snr
from ...progress import progress_bar
from ...randomness import generator, normal
from ...resume import StateRecord
from ..cell_files import CellFiles
from ..terminal import say
from .setting import Setting

FORM = Form("diffusion_var.calibration", 1, "calibration", StateRecord)


@dataclass(frozen=True)
class Calibration:
    """Of one covariance: `residual` (L, B) float64, of each image at each level; `indices` n of the levels, ascending,
    and their `ratio` σ/α."""

    covariance: str
    indices: list[int]
    ratio: npt.NDArray[np.float64]
    residual: npt.NDArray[np.float64]


def calibrate(setting: Setting, folder: Path) -> list[Calibration]:
    """The calibrations of all covariances, measured or read from their files; processes share the levels."""
    schedule, options = setting.model.denoiser.schedule, setting.options
    indices = [int(n) for n in log_snr(schedule, min(options.levels, schedule.num_steps))]
    levels = [schedule.level(n) for n in indices]
    indices = [n for n, level in zip(indices, levels, strict=True) if level.alpha > 0.0]
    ratio = np.array([schedule.level(n).sigma / schedule.level(n).alpha for n in indices])
    files, found = CellFiles(folder, FORM, setting.identity), []
    for name in options.all_covariances:
        residual = _of_covariance(setting, name, indices, files)
        found.append(Calibration(name, indices, ratio, residual))
    return found


def _of_covariance(setting: Setting, name: str, indices: list[int], files: CellFiles) -> npt.NDArray[np.float64]:
    team, denoiser = parallel.team(), setting.denoiser(name, "I")
    label, own = f"calibration {name}", {"conditioned on": denoiser.conditioned_on(), "indices": indices}
    kept: list[Any] = []

    def load() -> bool:
        there = files.load(label, own)
        if there is not None:
            kept.append(there[0]["residual"])
        return there is not None

    if team.first_alone(load):
        told = team.gather({"residual": kept[0]} if team.first else {})
        residual: npt.NDArray[np.float64] = told[0][0]["residual"]
        return residual
    say(f"calibrating: {name}")
    conditions, size = setting.conditions(), setting.options.batch_size
    batches = [range(start, min(start + size, setting.rows)) for start in range(0, setting.rows, size)]
    with progress_bar(len(indices) * setting.rows, "calibrate", "eval") as bar:

        def at(k: int) -> npt.NDArray[np.float64]:
            parts = []
            for rows in batches:
                own = None if conditions is None else conditions[rows.start : rows.stop]
                condition = denoiser.rows_condition(rows, own)
                parts.append(denoiser.residual(_noisy(setting, indices[k], rows), indices[k], condition).cpu().numpy())
                bar.update(len(rows))
            return np.concatenate(parts)

        residual = np.stack(team.made([1.0] * len(indices), at))
    team.first_alone(lambda: files.save(label, own, ({"residual": residual}, {})))
    denoiser.report()
    return residual


def _noisy(setting: Setting, n: int, rows: range) -> torch.Tensor:
    """x_t = α x_0 + σ ε of true images, at an index; the noise of each is its own."""
    assert setting.truth is not None
    level, shape = setting.model.denoiser.schedule.level(n), setting.model.denoiser.shape
    eps = torch.cat([normal(generator(setting.options.seed, "calibration noise", n, i), 1, *shape) for i in rows])
    x = level.alpha * setting.truth[rows.start : rows.stop] + level.sigma * eps
    return x.to(setting.y.device)
