"""The cells of a restoration: a covariance with a type of guidance at a number of steps, each a file.

What a cell has of images is kept in it, so that the report is made of cells alone: the draws as 8-bit pictures, their
mean and standard deviation as floats, and every score image by image.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import numpy.typing as npt
import torch
from pydantic import Field

from ... import parallel
from ...array_rules import ArrayRule, require_arrays
from ...data.images import to_uint8
from ...documents import Arrays, Form
from ...files import make_folder
from ...metrics.paired import lpips, psnr, ssim
from ...process.steps import describe
from ...restoration.conditioned import ConditionedDenoiser
from ...restoration.restore import Restoration, restore
from ...resume import StateRecord
from ..cell_files import CellFiles
from ..terminal import say
from .setting import Setting

Float64 = npt.NDArray[np.float64]
_METRICS = {"psnr": psnr, "ssim": ssim, "lpips": lpips}


@dataclass
class Cell:
    """What came of one covariance, type of guidance and number of steps.

    Attributes:
        scores: metric -> (B, R), of each draw; "misfit" is |y − A x|²/σ_y² over the elements that are seen.
        of_mean: metric -> (B,), of the mean of the draws.
        mean: (B, C, H, W) float32, over the draws.
        std: (B, C, H, W) float32, of the draws; nan for one draw.
        draws: (B, R, C, H, W) uint8.
        evaluations: of the network for a draw.
        solves, not_converged, not_positive: see `Restoration`.
    """

    covariance: str
    guidance: str
    steps: int
    mean: npt.NDArray[np.float32]
    std: npt.NDArray[np.float32]
    draws: npt.NDArray[np.uint8]
    scores: dict[str, Float64] = field(default_factory=dict)
    of_mean: dict[str, Float64] = field(default_factory=dict)
    evaluations: int = 0
    solves: int = 0
    not_converged: int = 0
    not_positive: int = 0

    @property
    def label(self) -> str:
        """The row of tables that it stands in."""
        return f"{self.covariance}, {self.guidance}"

    @property
    def name(self) -> str:
        """Of its folder of pictures."""
        return f"{self.covariance}-{self.guidance}-{self.steps}"


class CellRecord(StateRecord):
    """The plain data of a cell."""

    covariance: str
    guidance: str
    steps: Annotated[int, Field(ge=1)]
    evaluations: Annotated[int, Field(ge=1)]
    solves: Annotated[int, Field(ge=0)]
    not_converged: Annotated[int, Field(ge=0)]
    not_positive: Annotated[int, Field(ge=0)]


def _check(arrays: Arrays, record: CellRecord) -> None:
    images = ("rows", "channels", "height", "width")
    rules: dict[str, ArrayRule] = {"mean": ArrayRule("float32", images)}
    rules |= {"std": ArrayRule("float32", images, least=0.0, finite=False)}
    rules |= {"draws": ArrayRule("uint8", ("rows", "draws", *images[1:]))}
    rules |= {
        name: ArrayRule("float64", ("rows", "draws"), finite=False) for name in arrays if name.startswith(_OF_DRAWS)
    }
    rules |= {name: ArrayRule("float64", ("rows",), finite=False) for name in arrays if name.startswith(_OF_MEANS)}
    require_arrays(arrays, rules)


_OF_DRAWS, _OF_MEANS = "of draws: ", "of means: "
FORM = Form("diffusion_var.restoration_cell", 1, "cell of a restoration", CellRecord, _check)
_PLAIN = ("covariance", "guidance", "steps", "evaluations", "solves", "not_converged", "not_positive")


class CellLoop:
    """Fills the cells of a restoration, those that are not there yet; processes share the batches of each."""

    def __init__(self, setting: Setting, folder: Path) -> None:
        self.setting, self.options = setting, setting.options
        self._files = CellFiles(folder, FORM, setting.identity)
        self.cells: list[Cell] = []  # in the first process

    def fill(self) -> list[Cell]:
        """All cells, by steps, covariances and types of guidance; in processes other than the first none."""
        options = self.options
        for k in options.steps:
            for covariance in options.all_covariances:
                for guidance in options.guidance:
                    self._one(covariance, guidance, k)
        return self.cells

    def _one(self, covariance: str, guidance: str, k: int) -> None:
        team, options = parallel.team(), self.options
        denoiser = self.setting.denoiser(covariance, guidance)
        label = f"{covariance}, {guidance}, K={k}"
        own = self._own(denoiser, k)
        if team.first_alone(lambda: self._load(label, own)):
            return
        say(f"restoring: {label}")
        checkpoint = self._checkpoint(label, own)
        if team.first:
            make_folder(checkpoint.parent)
        result = restore(
            denoiser,
            k,
            covariance=self.setting.sampler(denoiser, k).covariance,
            eta=options.eta,
            tau=options.tau,
            spacing=options.spacing,
            draws=options.draws,
            seed=options.seed,
            batch_size=options.batch_size,
            conditions=self.setting.conditions(),
            checkpoint=checkpoint,
        )

        def keep() -> None:
            cell = scored(self.setting, Cell(covariance, guidance, k, *_pictures(self.setting, result)), result)
            self._files.save(label, own, _state(cell))
            checkpoint.unlink(missing_ok=True)
            self.cells.append(cell)

        team.first_alone(keep)

    def _own(self, denoiser: ConditionedDenoiser, k: int) -> dict[str, Any]:
        """What a cell has for itself."""
        options = self.options
        sampler = self.setting.sampler(denoiser, k)
        own = {"conditioned on": denoiser.conditioned_on(), "steps": describe(sampler.steps), "draws": options.draws}
        return own | {"eta": sampler.eta, "tau": sampler.tau, "posterior_noise": options.posterior_noise}

    def _checkpoint(self, label: str, own: dict[str, Any]) -> Path:
        return self._files.path(label, own).with_suffix(".partial")

    def _load(self, label: str, own: dict[str, Any]) -> bool:
        found = self._files.load(label, own)
        if found is not None:
            self._checkpoint(label, own).unlink(missing_ok=True)  # of a run that was killed just after the cell
            arrays, record = found
            plain: dict[str, Any] = {name: getattr(record, name) for name in _PLAIN}
            plain |= {name: arrays[name] for name in ("mean", "std", "draws")}
            scores, of_mean = _named(arrays, _OF_DRAWS), _named(arrays, _OF_MEANS)
            self.cells.append(Cell(**plain, scores=scores, of_mean=of_mean))
        return found is not None


def _named(arrays: Arrays, start: str) -> dict[str, Float64]:
    return {name.removeprefix(start): array for name, array in arrays.items() if name.startswith(start)}


def _state(cell: Cell) -> tuple[Arrays, dict[str, Any]]:
    arrays: Arrays = {"mean": cell.mean, "std": cell.std, "draws": cell.draws}
    arrays |= {f"{_OF_DRAWS}{name}": values for name, values in cell.scores.items()}
    arrays |= {f"{_OF_MEANS}{name}": values for name, values in cell.of_mean.items()}
    return arrays, {name: getattr(cell, name) for name in _PLAIN}


# ---- pictures and scores --------------------------------------------------------------------------------------------


def _pictures(setting: Setting, result: Restoration) -> tuple[Any, Any, Any]:
    """Mean, standard deviation and draws of pictures: decoded, where the model works on latents."""
    found = as_pictures(setting, result)
    shown = Restoration(found, result.evaluations)
    limits = setting.model.image_range
    return shown.mean.numpy(), shown.std.numpy(), to_uint8(found.clamp(*limits), limits).numpy()


def as_pictures(setting: Setting, result: Restoration) -> torch.Tensor:
    """The draws as pictures, (B, R, C, H, W) floats in their range."""
    model, draws = setting.model, result.draws
    if model.denoiser.codec is None:
        return draws
    size = setting.options.batch_size
    parts = torch.split(draws.flatten(0, 1), size)
    found = torch.cat([model.pictures(part.to(model.denoiser.device)).cpu() for part in parts])
    return found.reshape(*draws.shape[:2], *found.shape[1:])


def scored(setting: Setting, cell: Cell, result: Restoration) -> Cell:
    """The cell with its scores, and what its solves came to."""
    pictures = as_pictures(setting, result)
    count = pictures.shape[1]
    cell.evaluations, cell.solves = result.evaluations, result.solves
    cell.not_converged, cell.not_positive = result.not_converged, result.not_positive
    if (misfit := _misfit(setting, pictures)) is not None:
        cell.scores["misfit"] = misfit
    if setting.truth is None:
        return cell
    limits = setting.model.image_range
    for name in setting.metrics[0]:
        of = _METRICS[name]
        found = [of(pictures[:, r], setting.truth, limits).numpy() for r in range(count)]
        cell.scores[name] = np.stack(found, axis=1)
        cell.of_mean[name] = of(torch.from_numpy(cell.mean), setting.truth, limits).numpy()
    error = (torch.from_numpy(cell.mean).double() - setting.truth.double()).square()
    cell.of_mean["squared error"] = error.flatten(1).mean(1).numpy()
    return cell


def _misfit(setting: Setting, pictures: torch.Tensor) -> Float64 | None:
    """|y − A x|²/σ_y² of each draw, over the elements that are seen; None without noise."""
    if setting.options.noise == 0.0:
        return None
    device, seen, found = setting.y.device, setting.seen, []
    for r in range(pictures.shape[1]):
        parts = torch.split(pictures[:, r], setting.options.batch_size)
        with torch.no_grad():
            made = torch.cat([setting.operator.A(part.to(device)).cpu() for part in parts])
        apart = (setting.y.cpu().double() - made.double())[:, seen]
        found.append((apart / setting.options.noise).square().mean(1).numpy())
    return np.stack(found, axis=1)
