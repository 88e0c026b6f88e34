"""Methods × numbers of steps × seeds in one run: one variance table, many samplers, one score each.

Every method draws image i of a seed from the same first noise, so that grids compare like with like. Scores are taken
against one reference and set beside a floor: as many real images, scored the same way.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from ..errors import InputError
from ..files import make_folder
from ..metrics.features import FeatureNetwork, load_features
from ..metrics.fid import feature_statistics, fid
from ..metrics.images import to_uint8
from ..metrics.statistics import FeatureStatistics
from ..models.denoiser import Denoiser
from ..variance.estimate import estimate
from ..variance.table import VarianceTable
from .data import open_images, open_model
from .methods import make_sampler, make_steps
from .options import CompareOptions, Method

GRID_IMAGES = 16
CHECKPOINT, TABLE = "table.partial", "table.safetensors"


@dataclass
class Cell:
    """One method at one number of steps: its score for every seed, and a few of its images.

    Attributes:
        scores: one Fréchet distance per seed.
        grid: (G, C, H, W) uint8, the first images of the first seed.
    """

    method: Method
    steps: int
    scores: list[float]
    grid: torch.Tensor

    @property
    def mean(self) -> float:
        """Mean over seeds."""
        return float(np.mean(self.scores))

    @property
    def spread(self) -> float:
        """Standard deviation over seeds; nan for one seed."""
        return float(np.std(self.scores, ddof=1)) if len(self.scores) > 1 else float("nan")


@dataclass
class Comparison:
    """What a comparison measured.

    Attributes:
        cells: in the order of methods, then steps.
        baseline: scores of real images, in groups as large as a cell's of one seed; empty without a baseline.
        protocol: how the scores were taken.
    """

    options: CompareOptions
    denoiser: Denoiser
    table: VarianceTable
    cells: list[Cell] = field(default_factory=list)
    baseline: list[float] = field(default_factory=list)
    protocol: dict[str, Any] = field(default_factory=dict)

    def cell(self, method: Method, steps: int) -> Cell:
        """The cell of a method and a number of steps."""
        return next(c for c in self.cells if c.method == method and c.steps == steps)


def compare(options: CompareOptions, folder: Path, announce: Callable[[str], None] = print) -> Comparison:
    """Run a comparison; `folder` receives the variance table and its checkpoint.

    Raises InputError for options that cannot be carried out, before anything long is started.
    """
    for name, values in (("steps", options.steps), ("seeds", options.seeds), ("methods", options.methods)):
        if not values or len({repr(v) for v in values}) != len(values):
            raise InputError(f"{name} must hold at least one value and none twice, but it is {values}.")
    if options.count < 2 or options.batch_size < 1:
        raise InputError(
            f"count={options.count} and batch_size={options.batch_size} must be at least 2 (better hundreds) and 1."
        )
    denoiser = open_model(options.model, options.device, options.dtype)
    if denoiser.data_range is None:
        raise InputError("the model has no data range, so its samples cannot be scored as pictures; give it one.")
    features = load_features(options.features)
    reference = feature_statistics(open_images(options.reference, options.download), features)
    step_lists = {k: make_steps(denoiser.schedule, k) for k in options.steps}
    for method in options.methods:  # all but the table itself, so that mistakes show before the work
        trial = replace(method, covariance="beta_tilde") if method.covariance == "analytic" else method
        for steps in step_lists.values():
            make_sampler(denoiser, trial, steps, None)
    make_folder(folder)
    announce(f"1/3 measuring the variance table of {options.model} on {options.table_images}")
    table = estimate(
        denoiser,
        open_images(options.table_images, options.download),
        tolerance=options.tolerance,
        max_evaluations=options.max_evaluations,
        checkpoint=folder / CHECKPOINT,
    )
    table.save(folder / TABLE)
    (folder / CHECKPOINT).unlink(missing_ok=True)
    result = Comparison(options, denoiser, table)
    samplers = {
        (i, k): make_sampler(denoiser, method, step_lists[k], table)
        for i, method in enumerate(options.methods)
        for k in options.steps
    }
    evaluations = sum(options.steps) * len(options.methods) * len(options.seeds) * options.count
    announce(f"2/3 sampling and scoring {len(samplers)} cells of {len(options.seeds)} × {options.count} images")
    with tqdm(total=evaluations, unit="eval", unit_scale=True, desc="compare") as bar:
        for (i, k), sampler in samplers.items():
            bar.set_postfix_str(f"{options.methods[i].label}, K={k}")
            scores, grid = [], torch.empty(0)
            for seed in options.seeds:
                statistics, first = _statistics(sampler, features, seed, options)
                score = fid(statistics, reference, features)
                scores.append(float(score))
                grid = first if seed == options.seeds[0] else grid
                result.protocol = score.protocol
                bar.update(k * options.count)
            result.cells.append(Cell(options.methods[i], k, scores, grid))
    result.baseline = _baseline(options, features, reference)
    return result


def _statistics(
    sampler: Any, features: FeatureNetwork, seed: int, options: CompareOptions
) -> tuple[FeatureStatistics, torch.Tensor]:
    """Feature statistics of one seed's images, never holding more than a batch, and the first few images."""
    data_range = sampler.denoiser.data_range
    statistics, first = FeatureStatistics(features.dimension), torch.empty(0)
    for batch in sampler.stream(range(options.count), seed=seed, batch_size=options.batch_size):
        images = to_uint8(batch, data_range)
        first = images[:GRID_IMAGES] if len(first) == 0 else first
        statistics.update(features(images))
    return statistics, first


def _baseline(options: CompareOptions, features: FeatureNetwork, reference: FeatureStatistics) -> list[float]:
    """Scores of disjoint groups of `count` real images (or of all of them, if they are fewer)."""
    if options.baseline is None:
        return []
    images = open_images(options.baseline, options.download)
    size = min(options.count, len(images))
    groups = min(max(len(images) // size, 1), len(options.seeds))
    return [
        float(fid(torch.stack([images[i] for i in range(g * size, (g + 1) * size)]), reference, features))
        for g in range(groups)
    ]
