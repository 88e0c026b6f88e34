"""The loop over a comparison's cells: each is read from its file, or measured and kept there, by one process."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch

from ... import parallel
from ...data.images import to_uint8
from ...files import make_folder
from ...likelihood.bound import plain_variance
from ...likelihood.decoder_costs import DecoderCosts
from ...likelihood.paths import Trajectory, decoder_of_path
from ...metrics.score import Score
from ...models.product_cost import ProductCost
from ...process.steps import StepList, describe
from ...progress import progress_bar
from ...sampling.sampler import Sampler
from ..methods import make_sampler, make_steps
from ..model import Model
from ..options import BITS
from .cells import CellStore, Measured
from .likelihood_scores import LEVELS, LikelihoodScoring
from .options import Method
from .result import Cell, Comparison
from .sample_scores import Scoring

GRID_IMAGES = 12
# Parts of a method that decide a cell only where they are given.
_OPTIONAL = (
    "head",
    "tau",
    "sigmas",
    "factor",
    "capped_steps",
    "rho",
    "power",
    "average",
    "decoder_variance",
    "first_index",
    "sampler",
    "order",
    "bands",
    "probes",
    "krylov_steps",
    "derivative",
    "multistep",
)


def identity_of(method: Method) -> dict[str, Any]:
    """What of a method decides a cell: all of it but its name and its steps, which are told as they were resolved."""
    defaults = {f.name: f.default for f in fields(method)}
    own = {k: v for k, v in asdict(method).items() if k not in _OPTIONAL or v != defaults[k]}
    return own | {"name": None, "steps": None}


class Row(NamedTuple):
    """A method at a number of evaluations, and how it is carried out."""

    method: Method
    evaluations: int
    steps: StepList | Trajectory
    sampler: Sampler


class Unit(NamedTuple):
    """What one process measures by itself: a seed of a row, or a group of real images.

    `measure` moves the progress bar that it is given, by `cost` evaluations of the network in all.
    """

    title: str
    cost: int
    measure: Callable[[Any], Measured]


class CellLoop:
    """Fills a comparison. `by_metric`: metric -> name of the cell -> its score."""

    def __init__(
        self,
        result: Comparison,
        model: Model,
        scoring: Scoring | None,
        likelihoods: LikelihoodScoring | None,
        store: CellStore,
        table: Path,
        decoders: DecoderCosts | None,
    ) -> None:
        self.result, self.options, self.model, self.denoiser = result, result.options, model, model.denoiser
        self.scoring, self.likelihoods, self.store, self.decoders = scoring, likelihoods, store, decoders
        self.by_metric: dict[str, dict[str, Score]] = {metric: {} for metric in self.options.metrics}
        self._table_hash = None
        if result.table is not None:
            self._table_hash = parallel.team().first_alone(lambda: hashlib.sha256(table.read_bytes()).hexdigest())

    def measure(self, groups: list[Any]) -> None:
        """Fill the comparison, and its floor from groups of real images, computing what is not there yet."""
        rows = self._rows()
        planned = [self._planned(row) for row in rows]
        units = {key: unit for found in planned for _, key, unit in found}  # of equal cells one
        real = {f"real images {g}": images for g, images in enumerate(groups)}
        units |= {Path(label): self._real_unit(label, images) for label, images in real.items()}
        measured = dict(zip(units, self._shared([*units.values()]), strict=True))
        for row, found in zip(rows, planned, strict=True):
            self.result.cells.append(self._cell(row, [(label, measured[key]) for label, key, _ in found]))
        for label, images in real.items():
            scores = measured[Path(label)].scores
            for metric, score in scores.items():
                self.result.baseline.setdefault(metric, []).append(float(score))
            if len(images) == self.options.count:  # fewer are set beside the others, not compared with them
                self._remember(label, scores)

    def _shared(self, units: list[Unit]) -> list[Measured]:
        """What every unit measures: the dearest first, each in the next process that is free."""
        team = parallel.team()
        team.tell_idle(len(units), "cells")
        order = sorted(range(len(units)), key=lambda i: -units[i].cost)
        mine: dict[int, Measured] = {}
        with progress_bar(sum(unit.cost for unit in units), "compare", "eval", unit_scale=True) as bar:
            for i in map(order.__getitem__, team.claimed(len(order))):
                bar.set_postfix_str(units[i].title)
                with parallel.alone():
                    mine[i] = units[i].measure(bar)
            told = team.gather({str(i): m.grid for i, m in mine.items()}, {str(i): m.plain for i, m in mine.items()})
        team.end_if_stopped()
        found = {int(i): Measured.from_plain(m, grids[i]) for grids, theirs in told for i, m in theirs.items()}
        return [found[i] for i in range(len(units))]

    def _rows(self) -> list[Row]:
        schedule, table = self.denoiser.schedule, self.result.table
        spread = [
            (method, k, make_steps(schedule, method, k, table, self.decoders, LEVELS, self._cost(method)))
            for method in self.options.methods
            for k in self.options.method_steps(method)
        ]
        return [Row(*row, make_sampler(self.denoiser, row[0], row[2], table)) for row in spread]

    def _cost(self, method: Method) -> ProductCost | None:
        """Of a method's Jacobian-vector products; None where it takes none."""
        return self.result.costs[method.derivative or "forward"] if method.takes_products else None

    def _planned(self, row: Row) -> list[tuple[str, Path, Unit]]:
        """All seeds of a row, samples first: label, file and unit."""
        found = []
        for seed in self.options.seeds if self.options.image_metrics else ():
            own = self._own(row.method, row.sampler, seed) | {"count": self.options.count}
            found.append(self._sample_unit(row, seed, own))
        for seed in self.options.seeds if self.likelihoods is not None and row.method.is_noisy else ():
            # The cap is on samples alone: capped and not, a method has one likelihood.
            uncapped = replace(row.method, final_noise_cap=None, capped_steps=1)
            found.append(self._bits_unit(row, seed, self._own(uncapped, row.sampler, seed)))
        return found

    def _cell(self, row: Row, measured: list[tuple[str, Measured]]) -> Cell:
        """A row's scores, of all seeds."""
        path = row.steps if isinstance(row.steps, Trajectory) else None
        cell = Cell(row.method, row.evaluations, path=path, evaluations=row.sampler.evaluations)
        if (cost := self._cost(row.method)) is not None:
            cell.equivalents = row.sampler.equivalents(cost)
        for metric in (*self.options.image_metrics, BITS):
            if scores := [found.scores[metric] for _, found in measured if metric in found.scores]:
                cell.scores[metric] = scores
        for label, found in measured:
            self._remember(label, found.scores)
        if self.options.image_metrics:
            cell.grid = torch.from_numpy(measured[0][1].grid)
        return cell

    def _remember(self, label: str, scores: Mapping[str, Score]) -> None:
        for metric, score in scores.items():
            self.by_metric[metric][label] = score

    def _sample_unit(self, row: Row, seed: int, own: dict[str, Any]) -> tuple[str, Path, Unit]:
        """The samples of one seed, from their file or computed."""
        label, sampler = f"{row.method.label} K={row.sampler.evaluations} seed={seed}", row.sampler
        cost = sampler.evaluations * self.options.count

        def measure(bar: Any) -> Measured:
            assert self.scoring is not None
            measured = self.store.load(label, own)
            if measured is None:
                grid: list[torch.Tensor] = []
                sample = self.scoring.collect(self._images(sampler, seed, grid, bar), label)
                measured = Measured(self.scoring.scores(sample), torch.cat(grid)[:GRID_IMAGES].numpy())
                self.store.save(label, own, measured)
            else:
                bar.update(cost)
            return measured

        return label, self.store.path(label, own), Unit(_title(row), cost, measure)

    def _bits_unit(self, row: Row, seed: int, own: dict[str, Any]) -> tuple[str, Path, Unit]:
        """The likelihood bound with one seed's noise, from its file or computed."""
        assert self.likelihoods is not None
        label, likelihoods = f"{row.method.label} K={len(row.sampler.steps)} seed={seed}", self.likelihoods
        own = own | likelihoods.identity | {"decoder": plain_variance(decoder_of_path(row.steps))}
        cost, path = len(row.sampler.steps) * len(likelihoods.images), self.store.path(label, own)

        def measure(bar: Any) -> Measured:
            measured = self.store.load(label, own)
            if measured is None:
                make_folder(self.store.folder)
                partial = path.with_suffix(".partial")
                measured = Measured({BITS: likelihoods.score(row.sampler, row.steps, row.method, seed, partial)})
                self.store.save(label, own, measured)
                partial.unlink(missing_ok=True)
            bar.update(cost)
            return measured

        return label, path, Unit(_title(row), cost, measure)

    def _real_unit(self, label: str, images: Any) -> Unit:
        """The scores of a group of real images."""

        def measure(bar: Any) -> Measured:
            assert self.scoring is not None
            sample = self.scoring.collect(images, label)
            own = {"real": sample.origin["sha256"]}
            measured = self.store.load(label, own)
            if measured is None:
                measured = Measured(self.scoring.scores(sample))
                self.store.save(label, own, measured)
            return measured

        return Unit(label, 0, measure)

    def _own(self, method: Method, sampler: Sampler, seed: int) -> dict[str, Any]:
        """What a cell has for itself."""
        own = identity_of(method) | {"steps": describe(sampler.steps), "seed": seed}
        if method.head is not None:
            own["head"] = sampler.covariance.identity()
        return own | {"table": self._table_hash if method.takes_table else None}

    def _images(self, sampler: Sampler, seed: int, grid: list[torch.Tensor], bar: Any) -> Iterator[torch.Tensor]:
        """Batches of uint8 images; the first ones are left in `grid`."""
        wanted = range(self.options.count)
        conditions = self.model.sample_conditions(wanted)
        for batch in sampler.stream(wanted, seed, self.options.batch_size, conditions):
            floats = self.model.pictures(batch)
            limits = self.model.image_range
            images = to_uint8(floats.clamp(*limits) if self.denoiser.exact else floats, limits)
            if sum(map(len, grid)) < GRID_IMAGES:
                grid.append(images)
            # Of known data the moments are known of what is neither rounded nor clamped.
            yield floats if self.denoiser.exact and self.options.features == "pixels" else images
            bar.update(sampler.evaluations * len(images))


def _title(row: Row) -> str:
    """A row, beside the progress bar."""
    return f"{row.method.label}, K={row.evaluations}"
