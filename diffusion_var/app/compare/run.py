"""Methods × numbers of steps × seeds in one run: one variance table, many samplers, scores for each.

Every method draws image i of a seed from the same first noise, so that grids compare like with like. Scores are taken
against one reference and set beside a floor: as many real images, scored the same way. Likelihoods need no samples, and
may be measured alone. Each seed of a method at a number of steps is a file (see `cells`); an interrupted run goes on
with those that are missing.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import asdict, fields, replace
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from ... import checks
from ...data.images import to_uint8, writable_shape
from ...files import make_folder, regular_file, require_empty_folder
from ...likelihood.bound import plain_variance
from ...likelihood.decoder_costs import DecoderCosts
from ...likelihood.paths import Trajectory, decoder_of_path
from ...locks import locked
from ...metrics.score import Score, require_same_protocol
from ...models.denoiser import Denoiser
from ...process.schedule import NoiseSchedule
from ...process.steps import StepList, describe
from ...progress import progress_bar
from ...sampling.sampler import Sampler
from ...sampling.solvers import check_order
from ...unwrapping import unwrapped
from ...variance.allocation import check_budget, default_indices
from ...variance.estimate import estimate
from ...variance.table import VarianceTable
from ..claims import run_identity
from ..decoders import measure_decoders
from ..methods import make_covariance, make_noise, make_sampler, make_steps
from ..model import Model, check_model_options, open_model, open_schedule, read
from ..options import BITS
from ..outputs import require_writable
from ..terminal import say, say_lines
from .cells import FOLDER, CellStore, Measured
from .exact import EXACT, floor_images, moments, table_images
from .folder import TABLE, ComparisonFolder
from .likelihood_scores import LEVELS, LikelihoodScoring
from .options import CompareOptions, Method, check_rival
from .result import Cell, Comparison
from .sample_scores import Scoring, baseline_groups, open_features

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


def run(options: CompareOptions) -> None:
    """Measure, sample, score and write the report into `options.out`; prints the scores and who wins."""
    require_writable(require_empty_folder(options.out, overwrite=True))  # a file is no folder
    with locked(options.out, folder=True):
        _run(options)


def _run(options: CompareOptions) -> None:
    from .findings import findings
    from .report import text_table, write_report

    _check(options)
    folder = ComparisonFolder(options)
    result = compare(options, folder.path, begin=folder.begin)
    say("3/3 writing the report")
    write_report(result, folder.path, run_identity("compare", options))
    for metric in options.metrics:
        say_lines(text_table(result, metric))
    say_lines("", *(f"- {line}" for line in findings(result)), "")
    say(f"The report is {folder.path / 'report.html'} (and report.md, with pictures and results.csv beside it).")


def compare(
    options: CompareOptions,
    folder: Path,
    announce: Callable[[str], None] = say,
    begin: Callable[[str | None], None] = lambda network: None,
) -> Comparison:
    """Run a comparison, or what is left of it; `folder` receives the variance table and the cells.

    `begin` is called with the network's fingerprint when everything is in order and the work begins.

    Raises InputError for options that cannot be carried out, before anything long is started.
    """
    _check(options)
    check_model_options(options)
    pictures = bool(options.image_metrics)
    sources = _open_sources(options)
    images = _open_images(options)
    decoders_from = None if options.decoders_from is None else read(options.decoders_from, options)
    schedule = open_schedule(options.model, options)
    _try_methods(options, schedule)
    check_budget(options.tolerance, options.max_evaluations, default_indices(schedule))
    features = open_features(options) if pictures else None
    model = open_model(options.model, options)
    denoiser = model.denoiser
    if isinstance(sources, str):
        sources = table_images(denoiser)
    if pictures and options.baseline == EXACT:
        images[EXACT] = floor_images(denoiser, options)
    if pictures:
        writable_shape(f"the samples of {options.model}", model.image_shape)
        model.sample_conditions([0])  # refuses what is missing before the work
    _try_samplers(options, denoiser)
    scoring = None
    if features is not None:
        own = moments(denoiser, features) if options.reference == EXACT else None
        scoring = Scoring(options, features, images, denoiser.device, model.image_shape, own)
    likelihoods = LikelihoodScoring(options, model, images) if BITS in options.metrics else None
    groups = baseline_groups(options, images, model.image_shape) if pictures else []
    real = groups[0] if groups else images.get(options.reference)
    begin(denoiser.fingerprint)
    table, table_file = _table(options, model, sources, folder, announce)
    store = CellStore(folder, _common(options, model, scoring))
    result = Comparison(options, table)
    if pictures and real is not None:
        some = torch.stack([torch.as_tensor(real[i]) for i in range(min(GRID_IMAGES, len(real)))])
        result.real = to_uint8(some if some.dtype == torch.uint8 else some.clamp(*model.image_range), model.image_range)
    decoders = None if decoders_from is None else _decoders(options, model, decoders_from, table, folder, announce)
    run = _Run(result, model, scoring, likelihoods, store, table_file, decoders)
    announce("2/3 sampling and scoring" if pictures else "2/3 bounding likelihoods")
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
        wrong = not values or len({*values}) != len(values)
        checks.refuse(wrong, f"{name} must hold at least one value and none twice, but it is {values}.")
    for method in options.methods:
        check_rival(method, {f.name for f in fields(method) if getattr(method, f.name) != f.default})
    labels = [method.label.strip() for method in options.methods]
    wrong = not labels or "" in labels
    checks.refuse(wrong, "methods must hold at least one method, and none with an empty name.")
    twice = [label for label in labels if labels.count(label) > 1]
    checks.refuse(
        bool(twice), f"two methods are called {', '.join(map(repr, twice[:1]))}; remove one, or give it another name."
    )
    checks.refuse(
        options.count < 2 or options.batch_size < 1,
        f"count={options.count} and batch_size={options.batch_size} must be at least 2 (better hundreds) and 1.",
    )


def _trials(options: CompareOptions) -> Iterator[tuple[Method, int]]:
    """All of the methods but the table itself, so that mistakes show before the work."""
    for method in options.methods:
        trial = replace(method, covariance="beta_tilde") if method.covariance == "analytic" else method
        trial = replace(trial, spacing="linspace", first_index=None) if method.spacing == "optimal" else trial
        yield from ((trial, k) for k in options.method_steps(method))


def _try_methods(options: CompareOptions, schedule: NoiseSchedule) -> None:
    for trial, k in _trials(options):
        if trial.sampler is None:
            make_covariance(trial, None)
        else:
            check_order(trial.sampler, trial.order)
        make_noise(trial)
        make_steps(schedule, trial, k)


def _try_samplers(options: CompareOptions, denoiser: Denoiser) -> None:
    for trial, k in _trials(options):
        make_sampler(denoiser, trial, make_steps(denoiser.schedule, trial, k), None)


def _open_sources(options: CompareOptions) -> Any:
    """The given table, or the images to measure one on; None where no method needs one."""
    if not options.needs_table:
        return None
    if options.table is not None:
        return VarianceTable.load(options.table)
    if options.table_images == EXACT:
        return EXACT  # the model's own, once it is there
    return read(options.table_images, options)


def _open_images(options: CompareOptions) -> dict[str, Any]:
    """The images that scores and likelihoods need, by name; an npz of the reference may hold statistics instead."""
    names = [options.baseline] if options.image_metrics and options.baseline != EXACT else []
    names += [options.likelihood_images] if BITS in options.metrics else []
    if options.image_metrics and options.reference != EXACT:
        if options.reference.lower().endswith(".npz"):
            regular_file(options.reference, "reference")
        else:
            names.append(options.reference)
    return {name: read(name, options) for name in names if name is not None}


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


def _decoders(
    options: CompareOptions,
    model: Model,
    images: Any,
    table: VarianceTable | None,
    folder: Path,
    announce: Callable[[str], None],
) -> DecoderCosts:
    """What decoders cost, measured now or by a run before."""
    assert table is not None
    assert options.decoders_from is not None
    announce(f"1/3 measuring decoders of {options.model} on {options.decoders_from}")
    wanted = [options.decoders_from, options.dtype, options.model, table.digest, model.denoiser.fingerprint]
    name = hashlib.sha256(json.dumps([*wanted, _configuration(model.denoiser)]).encode()).hexdigest()[:12]
    make_folder(folder / FOLDER)
    conditions = model.table_conditions(options.decoders_from, options.download, own=True)
    checkpoint = folder / FOLDER / f"decoders-{name}.checkpoint"  # it stays: a later run reads it
    return measure_decoders(model, images, conditions, table, LEVELS, 0, options.batch_size, checkpoint)


def _configuration(denoiser: Denoiser) -> str:
    """What a diffusers network is besides its weights (activations, norms, ...), as text; empty for others."""
    config = getattr(unwrapped(denoiser.network), "config", {})
    return json.dumps({k: v for k, v in dict(config).items() if not k.startswith("_")}, sort_keys=True, default=str)


def _common(options: CompareOptions, model: Model, scoring: Scoring | None) -> dict[str, Any]:
    """What decides the scores of every cell."""
    denoiser = model.denoiser
    given = {} if not denoiser.conditional else {"conditions": model.conditions_digest, "w": denoiser.guidance_scale}
    if denoiser.codec is not None:
        given["autoencoder"] = denoiser.codec.fingerprint
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
        **({} if scoring is None else scoring.identity),
    }


def identity_of(method: Method) -> dict[str, Any]:
    """What of a method decides a cell: all of it but its name and its steps, which are told as they were resolved."""
    defaults = {f.name: f.default for f in fields(method)}
    own = {k: v for k, v in asdict(method).items() if k not in _OPTIONAL or v != defaults[k]}
    return own | {"name": None, "steps": None}


class _Run:
    """The loop over cells. `by_metric`: metric -> name of the cell -> its score."""

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
