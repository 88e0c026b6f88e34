"""The loop over a comparison's cells: each is read from its file, or measured and kept there."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

import torch

from ...data.images import to_uint8
from ...files import make_folder
from ...likelihood.bound import plain_variance
from ...likelihood.decoder_costs import DecoderCosts
from ...likelihood.paths import Trajectory, decoder_of_path
from ...metrics.score import Score
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
)


def identity_of(method: Method) -> dict[str, Any]:
    """What of a method decides a cell: all of it but its name and its steps, which are told as they were resolved."""
    defaults = {f.name: f.default for f in fields(method)}
    own = {k: v for k, v in asdict(method).items() if k not in _OPTIONAL or v != defaults[k]}
    return own | {"name": None, "steps": None}


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
        self._table_hash = None if result.table is None else hashlib.sha256(table.read_bytes()).hexdigest()

    def measure_cells(self) -> None:
        """Fill the comparison, computing what is not there yet."""
        schedule, table = self.denoiser.schedule, self.result.table
        spread = [
            (method, k, make_steps(schedule, method, k, table, self.decoders, LEVELS))
            for method in self.options.methods
            for k in self.options.method_steps(method)
        ]
        plan = [(method, k, steps, make_sampler(self.denoiser, method, steps, table)) for method, k, steps in spread]
        images = self.options.count if self.options.image_metrics else 0
        with_bits = [k for method, k, *_ in plan if self.likelihoods is not None and method.is_noisy]
        bound_size = 0 if self.likelihoods is None else len(self.likelihoods.images)
        evaluations = sum(sampler.evaluations for *_, sampler in plan) * images + sum(with_bits) * bound_size
        total = evaluations * len(self.options.seeds)
        with progress_bar(total, "compare", "eval", unit_scale=True) as bar:
            for method, k, steps, sampler in plan:
                bar.set_postfix_str(f"{method.label}, K={k}")
                self.result.cells.append(self._measure(method, k, steps, sampler, bar))

    def _measure(self, method: Method, k: int, steps: StepList | Trajectory, sampler: Sampler, bar: Any) -> Cell:
        """All seeds of one method at one number of steps."""
        path = steps if isinstance(steps, Trajectory) else None
        cell = Cell(method, k, path=path, evaluations=sampler.evaluations)
        if self.options.image_metrics:
            measured = [self._cell(method, sampler, seed, bar) for seed in self.options.seeds]
            cell.grid = torch.from_numpy(measured[0].grid)
            for metric in self.options.image_metrics:
                cell.scores[metric] = [m.scores[metric] for m in measured]
        if self.likelihoods is not None and method.is_noisy:
            cell.scores[BITS] = [self._bits(method, steps, sampler, seed, bar) for seed in self.options.seeds]
        return cell

    def _cell(self, method: Method, sampler: Sampler, seed: int, bar: Any) -> Measured:
        """The samples of one seed of one method at one number of steps, from their file or computed."""
        assert self.scoring is not None
        label = f"{method.label} K={sampler.evaluations} seed={seed}"
        own = self._own(method, sampler, seed) | {"count": self.options.count}
        measured = self.store.load(label, own)
        if measured is None:
            grid: list[torch.Tensor] = []
            sample = self.scoring.collect(self._images(sampler, seed, grid, bar), label)
            measured = Measured(self.scoring.scores(sample), torch.cat(grid)[:GRID_IMAGES].numpy())
            self.store.save(label, own, measured)
        else:
            bar.update(sampler.evaluations * self.options.count)
        self._remember(label, measured)
        return measured

    def _own(self, method: Method, sampler: Sampler, seed: int) -> dict[str, Any]:
        """What a cell has for itself."""
        own = identity_of(method) | {"steps": describe(sampler.steps), "seed": seed}
        if method.head is not None:
            own["head"] = sampler.covariance.identity()
        return own | {"table": self._table_hash if method.covariance == "analytic" else None}

    def _bits(self, method: Method, steps: StepList | Trajectory, sampler: Sampler, seed: int, bar: Any) -> Score:
        """The likelihood bound with one seed's noise, from its file or computed."""
        assert self.likelihoods is not None
        label = f"{method.label} K={len(sampler.steps)} seed={seed}"
        # The cap is on samples alone: capped and not, a method has one likelihood.
        uncapped = replace(method, final_noise_cap=None, capped_steps=1)
        own = self._own(uncapped, sampler, seed) | self.likelihoods.identity
        own["decoder"] = plain_variance(decoder_of_path(steps))
        measured = self.store.load(label, own)
        if measured is None:
            make_folder(self.store.folder)
            partial = self.store.path(label, own).with_suffix(".partial")
            measured = Measured({BITS: self.likelihoods.score(sampler, steps, method, seed, partial)})
            self.store.save(label, own, measured)
            partial.unlink(missing_ok=True)
        bar.update(len(sampler.steps) * len(self.likelihoods.images))
        self.by_metric[BITS][label] = measured.scores[BITS]
        return measured.scores[BITS]

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

    def measure_baseline(self, groups: list[Any]) -> None:
        """Score each group of real images."""
        for g, images in enumerate(groups):
            assert self.scoring is not None
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
