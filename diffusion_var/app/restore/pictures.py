"""Pictures of a restoration: files for each image, sheets of a few of them, and the calibration's curves.

Standard deviations and errors are root mean squares over the channels, on one scale in all files and sheets: white (in
sheets yellow) is a quarter of the data range and more.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch

from ...data.images import encode_images, to_uint8
from ...plots import COLOURS, new_figure, plain
from ...restoration.solver import ConjugateGradients
from ..sheets import picture_sheet
from .calibration import Calibration
from .cells import Cell
from .setting import Setting
from .tables import Mean

if TYPE_CHECKING:
    from matplotlib.figure import Figure

UInt8 = npt.NDArray[np.uint8]
_IN_SHEET = 8  # images
_PRIOR_LEAST = 1e-4  # of the noise's variance, for a first look at measurements that are no images


def image_files(setting: Setting, cell: Cell, count: int) -> dict[str, UInt8]:
    """Of the first images of a cell: names of files without their endings, and the images (1, C, H, W)."""
    files: dict[str, UInt8] = {}
    kinds = {"mean": as_uint8(setting, cell.mean[:count])}
    if cell.draws.shape[1] > 1:
        kinds["std"] = grey(setting, deviation(cell)[:count])
    if setting.truth is not None:
        kinds["error"] = grey(setting, error(setting, cell)[:count])
    for kind, images in kinds.items():
        files |= {f"restored/{cell.name}/{kind}/{i:06d}": images[i : i + 1] for i in range(len(images))}
    for i, r in np.ndindex(min(count, len(cell.draws)), cell.draws.shape[1]):
        files[f"restored/{cell.name}/draws/{i:06d}_{r}"] = cell.draws[i, r][None]
    return files


def given_files(setting: Setting, count: int) -> dict[str, UInt8]:
    """Of the first images: the truth, and what was measured of them."""
    kinds = {"measured": shown_measurements(setting, count)}
    if setting.truth is not None:
        kinds["truth"] = as_uint8(setting, setting.truth[:count].numpy())
    return {f"{kind}/{i:06d}": images[i : i + 1] for kind, images in kinds.items() for i in range(len(images))}


def png_files(images: dict[str, UInt8]) -> Iterator[tuple[str, bytes]]:
    """The files themselves."""
    for name, image in images.items():
        yield f"{name}.png", encode_images(torch.from_numpy(np.ascontiguousarray(image)))[0]


# ---- images ---------------------------------------------------------------------------------------------------------


def as_uint8(setting: Setting, images: npt.NDArray[np.float32]) -> UInt8:
    """Pictures of floats in the model's range."""
    limits = setting.model.image_range
    found: UInt8 = to_uint8(torch.from_numpy(images).clamp(*limits), limits).numpy()
    return found


def deviation(cell: Cell) -> npt.NDArray[np.float64]:
    """(B, H, W): the draws' standard deviation, over channels."""
    found: npt.NDArray[np.float64] = np.sqrt(np.square(cell.std.astype(np.float64)).mean(1))
    return found


def error(setting: Setting, cell: Cell) -> npt.NDArray[np.float64]:
    """(B, H, W): how far the mean is from the truth, over channels."""
    assert setting.truth is not None
    apart = cell.mean.astype(np.float64) - setting.truth.numpy()
    found: npt.NDArray[np.float64] = np.sqrt(np.square(apart).mean(1))
    return found


def grey(setting: Setting, maps: npt.NDArray[np.float64]) -> UInt8:
    """Maps (B, H, W) as grey pictures (B, 1, H, W)."""
    low, high = setting.model.image_range
    found: UInt8 = (np.clip(maps / (0.25 * (high - low)), 0.0, 1.0) * 255.0).round().astype(np.uint8)[:, None]
    return found


def _coloured(maps: UInt8) -> UInt8:
    """Grey pictures (B, 1, H, W) in colours that tell small values apart, (B, 3, H, W)."""
    from matplotlib import colormaps

    colours = (colormaps["inferno"](np.arange(256))[:, :3] * 255.0).round().astype(np.uint8)
    return np.ascontiguousarray(np.moveaxis(colours[maps[:, 0]], -1, 1))


def shown_measurements(setting: Setting, count: int) -> UInt8:
    """The first measurements as pictures: those that are images as they are, others by the linear estimate for white
    data of variance 1, x = Aᵀ (A Aᵀ + σ_y² I)⁻¹ y."""
    y = torch.where(setting.seen.to(setting.y.device), setting.y[:count], 0.0)
    if y.ndim == 4 and y.shape[1] in (1, 3):
        return as_uint8(setting, y.cpu().numpy())
    linear, least = setting.measurement.map_of(setting.model.image_shape), max(setting.options.noise**2, _PRIOR_LEAST)
    with torch.no_grad():
        u = ConjugateGradients()(lambda v: linear.apply(linear.adjoint(v)) + least * v, y).u
        return as_uint8(setting, linear.adjoint(u).cpu().float().numpy())


# ---- figures --------------------------------------------------------------------------------------------------------


def sheet(setting: Setting, cells: Sequence[Cell]) -> Figure:
    """A few images: truth, measurement, and of each cell (all of one number of steps) a draw, the mean, the spread and
    the error."""
    count = min(_IN_SHEET, setting.rows)
    rows: list[tuple[str, UInt8]] = []
    if setting.truth is not None:
        rows.append(("truth", as_uint8(setting, setting.truth[:count].numpy())))
    rows.append(("measured", shown_measurements(setting, count)))
    given = len(rows)
    for cell in cells:
        rows.append((f"{cell.label}: a draw", cell.draws[:count, 0]))
        if cell.draws.shape[1] > 1:
            rows.append((f"mean of {cell.draws.shape[1]} draws", as_uint8(setting, cell.mean[:count])))
            rows.append(("their standard deviation", _coloured(grey(setting, deviation(cell)[:count]))))
        if setting.truth is not None:
            rows.append(("error of the mean", _coloured(grey(setting, error(setting, cell)[:count]))))
    return picture_sheet(rows, slanted=given)


def calibration_curves(found: Sequence[Calibration]) -> Figure:
    """rᵀS⁻¹r/dim(y) against σ/α, a line each covariance, with 95 % bands of the mean."""
    from matplotlib.ticker import LogFormatter

    figure, axes = new_figure(6.4, 4.4)
    others: dict[str, Any] = {"pigdm": "#d55e00", "head": "#8c564b", "jacobian": "#56b4e9", "exact": "#7b3294"}
    for one in found:
        means = [Mean.of(values) for values in one.residual]
        middle, error = np.array([mean.value for mean in means]), np.array([mean.error for mean in means])
        colour = {**COLOURS, **others}.get(one.covariance, "#999999")
        axes.plot(one.ratio, middle, ".-", color=colour, linewidth=1.4, label=plain(one.covariance))
        low, high = np.maximum(middle - 1.96 * error, 0.02 * middle), middle + 1.96 * error
        axes.fill_between(one.ratio, low, high, color=colour, alpha=0.2, linewidth=0)
    axes.axhline(1.0, color="black", linewidth=0.8, linestyle=(0, (5, 3)))
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_formatter(LogFormatter(labelOnlyBase=False, minor_thresholds=(1, 0.4)))
    axes.set_xlabel("noise level, σ/α")
    axes.set_ylabel("rᵀ S⁻¹ r / dim(y), right at 1")
    axes.grid(alpha=0.3, which="both")
    axes.legend(frameon=False)
    return figure
