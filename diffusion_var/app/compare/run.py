"""Methods × numbers of steps × seeds in one run: one variance table, many samplers, scores for each.

Every method draws image i of a seed from the same first noise, so that grids compare like with like. Scores are taken
against one reference and set beside a floor: as many real images, scored the same way. Each seed of a method at a
number of steps is a file (see `cells`); an interrupted run goes on with those that are missing.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from ...data.images import to_uint8
from ...data.names import open_images
from ...errors import InputError
from ...files import make_folder
from ...metrics.score import Score, require_same_protocol
from ...models.denoiser import Denoiser
from ...sampling.sampler import Sampler
from ...variance.allocation import check_budget, default_indices
from ...variance.estimate import estimate
from ...variance.table import VarianceTable
from ..methods import make_sampler, make_steps
from ..model import Model, open_model
from ..options import BITS, CompareOptions, Method
from .cells import FOLDER, CellStore, Measured
from .likelihood_scores import LikelihoodScoring
from .result import Cell, Comparison
from .sample_scores import Scoring, baseline_groups

GRID_IMAGES = 12
TABLE = "table.safetensors"


def compare(options: CompareOptions, folder: Path, announce: Callable[[str], None] = print) -> Comparison:
    """Run a comparison, or what is left of it; `folder` receives the variance table and the cells.

    Raises InputError for options that cannot be carried out, before anything long is started.
    """
    _check(options)
    model = open_model(options.model, options)
    denoiser = model.denoiser
    model.sample_conditions([0])  # refuses what is missing before the work
    for method in options.methods:  # all but the table itself, so that mistakes show before the work
        trial = replace(method, covariance="beta_tilde") if method.covariance == "analytic" else method
        for k in options.method_steps(method):
            make_sampler(denoiser, trial, make_steps(denoiser.schedule, k, method.spacing), None)
    check_budget(options.tolerance, options.max_evaluations, default_indices(denoiser.schedule))
    sources = _open_sources(options)
    scoring = Scoring(options, denoiser.device, model.image_shape)
    likelihoods = LikelihoodScoring(options, model) if BITS in options.metrics else None
    groups = baseline_groups(options, model.image_shape)
    table, table_file = _table(options, model, sources, folder, announce)
    store = CellStore(folder, _common(options, model, scoring))
    result = Comparison(options, table)
    run = _Run(result, model, scoring, likelihoods, store, table_file)
    announce("2/3 sampling and scoring")
    run.measure_cells()
    run.measure_baseline(groups)
    for metric, scores in run.by_metric.items():
        shared = require_same_protocol(scores)
        # The rest is the first cell's; the name and hash of its images say nothing about the others.
        told = next(iter(scores.values())).protocol
        rest = sorted(k for k in told if k not in shared and not k.startswith("images_"))
        result.protocols[metric] = {**shared, **{k: _sorted(told[k]) for k in rest}}
    return result


def _sorted(value: Any) -> Any:
    """A mapping in the order of its keys, which a file may have changed."""
    return dict(sorted(value.items())) if isinstance(value, dict) else value


def _check(options: CompareOptions) -> None:
    lists: list[tuple[str, Any]] = [(name, getattr(options, name)) for name in ("steps", "seeds", "metrics")]
    lists += [(f"steps of {m.label}", m.steps) for m in options.methods if m.steps is not None]
    for name, values in lists:
        if not values or len({*values}) != len(values):
            raise InputError(f"{name} must hold at least one value and none twice, but it is {values}.")
    labels = [method.label.strip() for method in options.methods]
    if not labels or "" in labels:
        raise InputError("methods must hold at least one method, and none with an empty name.")
    if twice := [label for label in labels if labels.count(label) > 1]:
        raise InputError(f"two methods are called {twice[0]!r}; remove one, or give it another name.")
    if not options.image_metrics:
        raise InputError(
            f"metrics holds {BITS} alone, which needs no samples; add a metric of images such as fid, or use "
            "`diffusion-var nll` or scripts/compare_likelihoods.py."
        )
    if options.count < 2 or options.batch_size < 1:
        raise InputError(
            f"count={options.count} and batch_size={options.batch_size} must be at least 2 (better hundreds) and 1."
        )


def _open_sources(options: CompareOptions) -> Any:
    """The given table, or the images to measure one on; None where no method needs one."""
    if all(method.covariance != "analytic" for method in options.methods):
        return None
    if options.table is not None:
        return VarianceTable.load(options.table)
    return open_images(options.table_images, options.download)


def _table(
    options: CompareOptions, model: Model, sources: Any, folder: Path, announce: Callable[[str], None]
) -> tuple[VarianceTable | None, Path]:
    """The table and its file: the given one, or one measured in `folder`, now or by a run before."""
    if sources is None or isinstance(sources, VarianceTable):
        announce("1/3 no method needs a variance table" if sources is None else f"1/3 the table is {options.table}")
        return sources, options.table or folder / TABLE
    denoiser = model.denoiser
    # A checkpoint serves this tolerance, budget and precision only: taken further, it would be another table.
    wanted = [options.tolerance, options.max_evaluations, options.dtype, options.table_images, options.model]
    wanted += [denoiser.fingerprint, _configuration(denoiser)]
    name = hashlib.sha256(json.dumps(wanted, default=str).encode()).hexdigest()[:12]
    make_folder(folder / FOLDER)
    announce(f"1/3 measuring the variance table of {options.model} on {options.table_images}")
    # It stays: by it the estimator knows that a later run's table is this one.
    table = estimate(
        denoiser,
        model.inputs(sources),
        tolerance=options.tolerance,
        conditions=model.table_conditions(options.table_images, options.download, own=True),
        max_evaluations=options.max_evaluations,
        checkpoint=folder / FOLDER / f"table-{name}.checkpoint",
    )
    table.save(folder / TABLE)
    return table, folder / TABLE


def _configuration(denoiser: Denoiser) -> str:
    """What a diffusers network is besides its weights (activations, norms, ...), as text; empty for others."""
    config = getattr(denoiser.network, "config", {})
    return json.dumps({k: v for k, v in dict(config).items() if not k.startswith("_")}, sort_keys=True, default=str)


def _common(options: CompareOptions, model: Model, scoring: Scoring) -> dict[str, Any]:
    """What decides the scores of every cell."""
    denoiser = model.denoiser
    given = {} if not denoiser.conditional else {"conditions": model.conditions_digest, "w": denoiser.guidance_scale}
    return {
        **given,
        "version": metadata.version("diffusion-var"),
        "network": denoiser.fingerprint,
        "configuration": _configuration(denoiser),
        "schedule": denoiser.schedule.digest,
        "prediction": denoiser.prediction,
        "clip": denoiser.clip,
        "data_range": denoiser.data_range,
        "dtype": options.dtype,
        "metrics": options.image_metrics,
        **scoring.identity,
    }


class _Run:
    """The loop over cells. `by_metric`: metric -> name of the cell -> its score."""

    def __init__(
        self,
        result: Comparison,
        model: Model,
        scoring: Scoring,
        likelihoods: LikelihoodScoring | None,
        store: CellStore,
        table: Path,
    ) -> None:
        self.result, self.options, self.model, self.denoiser = result, result.options, model, model.denoiser
        self.scoring, self.likelihoods, self.store = scoring, likelihoods, store
        self.by_metric: dict[str, dict[str, Score]] = {metric: {} for metric in self.options.metrics}
        self._table_hash = None if result.table is None else hashlib.sha256(table.read_bytes()).hexdigest()

    def measure_cells(self) -> None:
        """Fill the comparison, computing what is not there yet."""
        plan = [
            (method, k, make_steps(self.denoiser.schedule, k, method.spacing))
            for method in self.options.methods
            for k in self.options.method_steps(method)
        ]
        samplers = [make_sampler(self.denoiser, method, steps, self.result.table) for method, _, steps in plan]
        with_bits = [k for method, k, _ in plan if self.likelihoods is not None and self.likelihoods.has(method)]
        bound_size = 0 if self.likelihoods is None else len(self.likelihoods.images)
        evaluations = sum(k for _, k, _ in plan) * self.options.count + sum(with_bits) * bound_size
        total = evaluations * len(self.options.seeds)
        with tqdm(total=total, unit="eval", unit_scale=True, desc="compare") as bar:
            for (method, k, _), sampler in zip(plan, samplers, strict=True):
                bar.set_postfix_str(f"{method.label}, K={k}")
                measured = [self._cell(method, sampler, seed, bar) for seed in self.options.seeds]
                scores: dict[str, list[float]] = {
                    metric: [float(m.scores[metric]) for m in measured] for metric in self.options.image_metrics
                }
                if self.likelihoods is not None and self.likelihoods.has(method):
                    scores[BITS] = [self._bits(method, sampler, seed, bar) for seed in self.options.seeds]
                self.result.cells.append(Cell(method, k, scores, torch.from_numpy(measured[0].grid)))

    def _cell(self, method: Method, sampler: Sampler, seed: int, bar: Any) -> Measured:
        """One seed of one method at one number of steps, from its file or computed."""
        label = f"{method.label} K={len(sampler.steps)} seed={seed}"
        own = self._own(method, sampler, seed) | {"count": self.options.count}
        measured = self.store.load(label, own)
        if measured is None:
            grid: list[torch.Tensor] = []
            sample = self.scoring.collect(self._images(sampler, seed, grid, bar), label)
            measured = Measured(self.scoring.scores(sample), torch.cat(grid)[:GRID_IMAGES].numpy())
            self.store.save(label, own, measured)
        else:
            bar.update(len(sampler.steps) * self.options.count)
        self._remember(label, measured)
        return measured

    def _own(self, method: Method, sampler: Sampler, seed: int) -> dict[str, Any]:
        """What a cell has for itself."""
        own: dict[str, Any] = {**asdict(method), "name": None, "steps": sampler.steps, "seed": seed}
        own["head"] = None if method.head is None else sampler.covariance.identity()
        own = {key: value for key, value in own.items() if key != "head" or value is not None}
        return own | {"table": self._table_hash if method.covariance == "analytic" else None}

    def _bits(self, method: Method, sampler: Sampler, seed: int, bar: Any) -> float:
        """The likelihood bound with one seed's noise, from its file or computed."""
        assert self.likelihoods is not None
        label = f"{method.label} K={len(sampler.steps)} seed={seed}"
        # The cap is on samples alone: capped and not, a method has one likelihood.
        own = self._own(method, sampler, seed) | {"final_noise_cap": None, **self.likelihoods.identity}
        measured = self.store.load(label, own)
        if measured is None:
            partial = self.store.path(label, own).with_suffix(".partial")
            measured = Measured({BITS: self.likelihoods.score(sampler, method.clipped_eps, seed, partial)})
            self.store.save(label, own, measured)
            partial.unlink(missing_ok=True)
        bar.update(len(sampler.steps) * len(self.likelihoods.images))
        self.by_metric[BITS][label] = measured.scores[BITS]
        return float(measured.scores[BITS])

    def _images(self, sampler: Sampler, seed: int, grid: list[torch.Tensor], bar: Any) -> Iterator[torch.Tensor]:
        """Batches of uint8 images; the first ones are left in `grid`."""
        wanted = range(self.options.count)
        conditions = self.model.sample_conditions(wanted)
        for batch in sampler.stream(wanted, seed, self.options.batch_size, conditions):
            images = to_uint8(self.model.pictures(batch), self.model.image_range)
            if sum(map(len, grid)) < GRID_IMAGES:
                grid.append(images)
            yield images
            bar.update(len(sampler.steps) * len(images))

    def measure_baseline(self, groups: list[Any]) -> None:
        """Score each group of real images."""
        for g, images in enumerate(groups):
            label = f"real images {g}"
            sample = self.scoring.collect(images, label)
            own = {"real": sample.origin["sha256"]}
            measured = self.store.load(label, own)
            if measured is None:
                measured = Measured(self.scoring.scores(sample))
                self.store.save(label, own, measured)
            for metric, score in measured.scores.items():
                self.result.baseline.setdefault(metric, []).append(float(score))
            if len(images) == self.options.count:  # fewer are set beside the others, not compared with them
                self._remember(label, measured)

    def _remember(self, label: str, measured: Measured) -> None:
        for metric in self.options.image_metrics:
            self.by_metric[metric][label] = measured.scores[metric]
