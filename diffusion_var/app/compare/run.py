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
from contextlib import ExitStack, contextmanager
from dataclasses import fields, replace
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from ... import checks, parallel
from ...data.images import to_uint8, writable_shape
from ...files import make_folder, regular_file, require_empty_folder
from ...likelihood.decoder_costs import DecoderCosts
from ...locks import locked
from ...metrics.score import require_same_protocol
from ...models.denoiser import Denoiser
from ...process.schedule import NoiseSchedule
from ...same_folder import require_shared
from ...sampling.multistep import check_share
from ...sampling.solvers import check_order
from ...unwrapping import unwrapped
from ...variance.allocation import check_budget, default_indices
from ...variance.estimate import estimate
from ...variance.table import VarianceTable
from ..cell_files import FOLDER
from ..claims import run_identity
from ..decoders import measure_decoders
from ..methods import make_covariance, make_noise, make_sampler, make_steps
from ..model import Model, check_model_options, open_model, open_schedule, read
from ..options import BITS
from ..outputs import require_writable
from ..terminal import say, say_lines
from .cells import CellStore
from .exact import EXACT, floor_images, moments, table_images
from .folder import TABLE, ComparisonFolder
from .likelihood_scores import LEVELS, LikelihoodScoring
from .loop import GRID_IMAGES, CellLoop
from .options import CompareOptions, Method, check_rival
from .product_costs import derivatives, product_costs
from .result import Comparison
from .sample_scores import Scoring, baseline_groups, open_features


def run(options: CompareOptions) -> None:
    """Measure, sample, score and write the report into `options.out`; prints the scores and who wins."""
    require_writable(require_empty_folder(options.out, overwrite=True))  # a file is no folder
    with parallel.sharing("compare"), held_folder(options.out) as first:
        _check(options)
        begin = ComparisonFolder(options).begin if first else None
        result = compare(options, options.out, begin=begin)
        if first:
            _report(result, options)


@contextmanager
def held_folder(folder: Path) -> Iterator[bool]:
    """An output folder, which all processes see, locked by the first one; whether this is it."""
    team = parallel.team()
    with ExitStack() as stack:
        if team.first:
            stack.enter_context(locked(folder, folder=True))
        require_shared(folder, team)
        yield team.first


def _report(result: Comparison, options: CompareOptions) -> None:
    from .findings import findings, short_of
    from .report import text_table, write_report

    say("3/3 writing the report")
    write_report(result, options.out, run_identity("compare", options))
    for metric in options.metrics:
        say_lines(text_table(result, metric))
    if result.costs:
        say_lines("", *short_of(result))
    say_lines("", *(f"- {line}" for line in findings(result)), "")
    say(f"The report is {options.out / 'report.html'} (and report.md, with pictures and results.csv beside it).")


def compare(
    options: CompareOptions,
    folder: Path,
    announce: Callable[[str], None] = say,
    begin: Callable[[str | None], None] | None = None,
) -> Comparison:
    """Run a comparison, or what is left of it; `folder` receives the variance table and the cells.

    `begin` is called with the network's fingerprint when everything is in order and the work begins. Processes share
    the cells, and each is given all of them.

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
    # No process works in a folder of which the first has not said that it is this comparison's.
    parallel.team().first_alone(lambda: None if begin is None else begin(denoiser.fingerprint))
    table, table_file = _table(options, model, sources, folder, announce)
    store = CellStore(folder, _common(options, model, scoring))
    result = Comparison(options, table)
    if pictures and real is not None:
        some = torch.stack([torch.as_tensor(real[i]) for i in range(min(GRID_IMAGES, len(real)))])
        result.real = to_uint8(some if some.dtype == torch.uint8 else some.clamp(*model.image_range), model.image_range)
    result.costs = product_costs(options, model, folder, announce)
    decoders = None if decoders_from is None else _decoders(options, model, decoders_from, table, folder, announce)
    loop = CellLoop(result, model, scoring, likelihoods, store, table_file, decoders)
    announce("2/3 sampling and scoring" if pictures else "2/3 bounding likelihoods")
    loop.measure(groups)
    for metric, scores in loop.by_metric.items():
        shared = require_same_protocol(scores)
        # The rest is the first cell's; the name and hash of its images say nothing about the others.
        told = next(iter(scores.values())).protocol
        rest = sorted(k for k in told if k not in shared and not k.startswith("images_"))
        result.protocols[metric] = {k: _sorted(value) for k, value in {**shared, **{k: told[k] for k in rest}}.items()}
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
    if options.product_cost is not None:
        checks.number("product_cost", options.product_cost, "a number of evaluations, at least 0", least=0.0)
        checks.refuse(
            "forward" not in derivatives(options),
            f"product_cost={options.product_cost} has no meaning where no method takes forward-mode products; leave it "
            "out.",
        )
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
        trial = method
        if method.covariance == "analytic":
            share = None if method.multistep is None else 1.0  # the one that asks nothing of a covariance
            trial = replace(method, covariance="beta_tilde", multistep=share)
        trial = replace(trial, spacing="linspace", first_index=None) if method.spacing == "optimal" else trial
        yield from ((trial, k) for k in options.method_steps(method))


def _try_methods(options: CompareOptions, schedule: NoiseSchedule) -> None:
    for method in options.methods:
        if method.multistep is not None:
            check_share(method.multistep, "multistep")
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
    if parallel.is_first():
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
