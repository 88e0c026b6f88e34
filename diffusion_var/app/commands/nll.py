"""What the commands nll and steps do, once their options are checked."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...data.names import open_images
from ...errors import InputError
from ...files import write_atomic
from ...process import steps as step_lists
from ...variance.table import VarianceTable
from ..methods import make_covariance, make_steps
from ..model import open_model
from ..options import SPACING_NAMES, Method, NllOptions, StepsOptions
from .outputs import figure_kind, require_new_file, write_figure

if TYPE_CHECKING:
    from ...likelihood.paths import OptimalPaths
    from ...likelihood.result import LikelihoodBound
    from ...likelihood.step_costs import StepCosts
    from ...process.schedule import NoiseSchedule


# ---- nll --------------------------------------------------------------------------------------------------------


def run_nll(options: NllOptions) -> None:
    """Print a bound on the negative log-likelihood of images, and write its parts if asked."""
    if options.out is not None:
        require_new_file(options.out, options.overwrite)
    table = _table_of(options)
    checkpoint = options.checkpoint
    if checkpoint is None and options.out is not None:
        checkpoint = options.out.with_name(options.out.name + ".partial")
    if checkpoint is not None and options.out is not None and checkpoint.resolve() == options.out.resolve():
        raise InputError(f"checkpoint and out are both {options.out}, but they are two files; choose another one.")
    result = _bound(options, table, checkpoint)
    content = {"model": options.model, "images_name": options.images, **result.to_dict()}
    if options.out is not None:
        write_atomic(options.out, (json.dumps(content, indent=2) + "\n").encode())
        if checkpoint is not None:
            checkpoint.unlink(missing_ok=True)
    if options.json:
        print(json.dumps(content))
        return
    print(result)
    if options.out is not None:
        print(f"written: {options.out}")


def _table_of(options: NllOptions) -> VarianceTable | None:
    needed = options.covariance == "analytic" or options.spacing == "optimal"
    if not needed:
        refuse_set(options, ("structure", "estimator"), f"--covariance {options.covariance}")
    if options.continuous:
        refuse_set(options, ("levels",), "--continuous")
    if options.spacing == "optimal" and options.eta != 1:
        raise InputError(
            f"--spacing optimal is for eta=1, but eta={options.eta:g}; measure a path with `diffusion-var steps "
            "--objective bound --eta …` and give its indices as --steps."
        )
    if options.table is None:
        if options.spacing == "optimal":
            raise InputError(
                "--spacing optimal needs a variance table; give one with --table, or indices with --steps."
            )
        return None
    if not needed:
        raise InputError(
            f"--table has no meaning with --covariance {options.covariance}; add --covariance analytic or --spacing "
            "optimal, or leave it out."
        )
    return VarianceTable.load(options.table)


def _bound(options: NllOptions, table: VarianceTable | None, checkpoint: Path | None) -> LikelihoodBound:
    from ...likelihood.bound import bits_per_dim, density_bound

    covariance = make_covariance(options, table)  # before the model is opened: a missing table is told at once
    model = open_model(options.model, options)
    if options.spacing == "optimal" and isinstance(options.steps, int):
        from ...likelihood.trajectories import optimal

        assert table is not None
        steps = optimal(table, options.steps, structure=options.structure, estimator=options.estimator)
    else:
        steps = make_steps(model.denoiser.schedule, options.steps, options.spacing)
    images = open_images(options.images, options.download)
    conditions = model.table_conditions(options.images, options.download)
    shared: dict[str, Any] = {
        "eta": options.eta,
        "decoder_variance": options.decoder_variance,
        "draws": options.draws,
        "step_samples": options.step_samples,
        "clipped_eps": options.clipped_eps,
        "conditions": conditions,
        "batch_size": options.batch_size,
        "checkpoint": checkpoint,
        "progress": True,
    }
    if options.continuous or model.denoiser.codec is not None:
        return density_bound(model.denoiser, covariance, model.inputs(images), steps, options.seed, **shared)
    return bits_per_dim(model.denoiser, covariance, model.inputs(images), steps, options.seed, options.levels, **shared)


# ---- steps ------------------------------------------------------------------------------------------------------


def run_steps(options: StepsOptions) -> None:
    """Print the optimal trajectories and what they save, and draw them if asked."""
    from ...likelihood.trajectories import optimal_paths

    if options.plot is not None:
        figure_kind(options.plot)
        require_new_file(options.plot, options.overwrite)
    table = None if options.table is None else VarianceTable.load(options.table)
    costs: VarianceTable | StepCosts
    if options.objective == "bound":
        refuse_set(options, ("max_relative_error",), "--objective bound")
        if options.covariance != "analytic":
            refuse_set(options, ("table", "structure", "estimator"), f"--covariance {options.covariance}")
        costs = _measured_costs(options, table)
    elif table is None:
        raise InputError("a variance table is needed: diffusion-var steps TABLE (made by `diffusion-var estimate`).")
    else:
        measured = (
            "model",
            "images",
            "covariance",
            "head",
            "eta",
            "indices",
            "draws",
            "batch_size",
            "seed",
            "checkpoint",
        )
        refuse_set(options, measured, "--objective kl")
        costs = table
    paths = optimal_paths(
        costs,
        max(options.steps),
        options.objective,
        options.structure,
        options.estimator,
        options.max_relative_error,
    )
    found = [_path_facts(paths, costs, count) for count in options.steps]
    for facts in found:
        print(json.dumps(facts) if options.json else _path_text(facts))
    if options.plot is not None:
        from ... import plots

        write_figure(plots.trajectories(found, costs.schedule.num_steps), options.plot)
        if not options.json:
            print(f"\nwritten: {options.plot}")


def refuse_set(options: Any, names: Sequence[str], where: str) -> None:
    """Refuse options that were given and would be ignored."""
    defaults = {f.name: f.default for f in fields(options)}
    given = [name for name in names if getattr(options, name) != defaults[name]]
    if given:
        flags = ", ".join(f"--{name.replace('_', '-')}" for name in given)
        raise InputError(f"{flags} would have no meaning with {where}; leave out one or the other.")


def _measured_costs(options: StepsOptions, table: VarianceTable | None) -> StepCosts:
    from ...likelihood.step_costs import step_costs

    if options.model is None or options.images is None:
        raise InputError("--objective bound measures costs on images; give --model and --images.")
    method = Method(
        options.covariance,
        estimator=options.estimator or "residual",
        structure=options.structure,
        head=options.head,
    )
    covariance = make_covariance(method, table)
    model = open_model(options.model, options)
    indices = _measured_indices(model.denoiser.schedule, options)
    if max(options.steps) > len(indices):  # now, and not after the work
        raise InputError(f"--steps {max(options.steps)} is more than the {len(indices)} indices to be measured.")
    return step_costs(
        model.denoiser,
        covariance,
        model.inputs(open_images(options.images, options.download)),
        indices,
        options.seed,
        eta=options.eta,
        draws=options.draws,
        conditions=model.table_conditions(options.images, options.download),
        batch_size=options.batch_size,
        checkpoint=options.checkpoint,
        progress=True,
    )


def _measured_indices(schedule: NoiseSchedule, options: StepsOptions) -> list[int]:
    """Those asked for; by default 64, and those of the even trajectories, to compare with."""
    if options.indices is not None:
        return options.indices
    from ...likelihood.step_costs import INDICES

    N = schedule.num_steps
    even = [n for count in options.steps if 1 < count <= INDICES for n in step_lists.linspace(N, min(count, N))]
    return sorted({*step_lists.log_snr(schedule, min(max(INDICES, *options.steps, 1), N)), *even})


def _path_facts(paths: OptimalPaths, costs: VarianceTable | StepCosts, count: int) -> dict[str, Any]:
    """The optimal path of a number of steps, and what its steps cost in bits/dim beside those of other spacings."""
    facts: dict[str, Any] = {"steps": count, "indices": paths.steps(count)}
    if count == 1:
        return facts
    facts["bits_per_dim"] = {"optimal": paths.bits_per_dim(paths.cost(count))}
    for name, spread in (("even", step_lists.linspace), ("log_snr", step_lists.log_snr)):
        path = spread(costs.schedule, count)
        if {*path} <= {int(n) for n in paths.nodes}:
            facts["bits_per_dim"][name] = paths.bits_per_dim(paths.cost_of(path))
    if error := paths.binning_error(count):
        facts["binning_error"] = paths.bits_per_dim(error)
    return facts


def _path_text(facts: dict[str, Any]) -> str:
    lines = [f"K = {facts['steps']}: {','.join(map(str, facts['indices']))}"]
    if "bits_per_dim" in facts:
        parts = [f"{SPACING_NAMES[name]} {bits:.4f}" for name, bits in facts["bits_per_dim"].items()]
        error = f" (binning errs by at most {facts['binning_error']:.1g})" if "binning_error" in facts else ""
        lines.append(f"    the steps' share of the bound, bits/dim: {', '.join(parts)}{error}")
    return "\n".join(lines)
