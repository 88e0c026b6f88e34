"""The command steps: optimal trajectories, from a table or from measured costs."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from ...errors import InputError
from ...parallel import is_first
from ...process import steps as step_lists
from ...variance.allocation import merge_indices
from ...variance.table import VarianceTable
from ..claims import claimed_file, run_identity
from ..compare.options import Method
from ..methods import check_first_index, make_covariance, refuse_set
from ..model import check_model_options, open_model, open_schedule, read
from ..options import StepsOptions
from ..outputs import usable_checkpoint
from ..terminal import say_lines

if TYPE_CHECKING:
    from ...likelihood.paths import OptimalPaths
    from ...likelihood.step_costs import StepCosts
    from ...process.schedule import NoiseSchedule


def run(options: StepsOptions) -> None:
    """Print the optimal trajectories and what they save, and draw them if asked."""
    from ...plots import picture_format, run_of_picture, save_figure, trajectories

    if options.plot is None:
        _find(options)
        return
    picture_format(options.plot)
    this = run_identity("steps", options)
    with claimed_file(options.plot, this, run_of_picture, options.overwrite, aloud=not options.json) as finished:
        found, schedule = _find(options)
        if finished:
            return
        if is_first():
            save_figure(trajectories(found, schedule.num_steps), options.plot, this)
        if not options.json:
            say_lines("", f"written: {options.plot}")


def _find(options: StepsOptions) -> tuple[list[dict[str, Any]], NoiseSchedule]:
    """What is known of each number of steps, printed; and the schedule."""
    from ...likelihood.trajectories import optimal_paths

    table = None if options.table is None else VarianceTable.load(options.table)
    costs: VarianceTable | StepCosts
    if options.objective == "bound":
        refuse_set(options, ("max_relative_error", "decoder_variance"), "--objective bound")
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
    check_first_index(options, costs.schedule)
    paths = optimal_paths(
        costs,
        max(options.steps),
        options.objective,
        options.structure,
        options.estimator,
        options.max_relative_error,
        first=options.first_index,
        decoder_variance=options.decoder_variance,
    )
    found = [_path_facts(paths, costs, count) for count in options.steps]
    for facts in found if is_first() else ():
        print(json.dumps(facts)) if options.json else say_lines(_path_text(facts))
    return found, costs.schedule


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
    # What can be wrong without the model is told at once.
    covariance = make_covariance(method, table)
    if options.checkpoint is not None:
        usable_checkpoint(options.checkpoint)
    check_model_options(options)
    images = read(options.images, options)
    schedule = open_schedule(options.model, options)
    indices = merge_indices(schedule, _measured_indices(schedule, options))
    if max(options.steps) > len(indices):  # now, and not after the work
        raise InputError(f"--steps {max(options.steps)} is more than the {len(indices)} indices to be measured.")
    model = open_model(options.model, options)
    return step_costs(
        model.denoiser,
        covariance,
        model.inputs(images),
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
    best = paths.steps(count)
    facts: dict[str, Any] = {"steps": count, "indices": list(best), "decoder": best.decoder}
    facts["decoder_bits_per_dim"] = paths.bits_per_dim(paths.decoder_cost(count))
    facts["bits_per_dim"] = {"optimal": paths.bits_per_dim(paths.cost(count))}
    for name, spread in (("even", step_lists.linspace), ("log_snr", step_lists.log_snr)):
        path = spread(costs.schedule, count)
        if {*path} <= {int(n) for n in paths.nodes} and paths.begins_at(path[0]):
            facts["bits_per_dim"][name] = paths.bits_per_dim(paths.cost_of(path))
    if error := paths.binning_error(count):
        facts["binning_error"] = paths.bits_per_dim(error)
    return facts


def _path_text(facts: dict[str, Any]) -> str:
    from ...plots import SPACING_NAMES

    lines = [f"K = {facts['steps']}: {','.join(map(str, facts['indices']))}"]
    if "bits_per_dim" in facts:
        parts = [f"{SPACING_NAMES[name]} {bits:.4f}" for name, bits in facts["bits_per_dim"].items()]
        decoder = facts["decoder_bits_per_dim"]
        error = f" (binning errs by at most {facts['binning_error']:.1g})" if "binning_error" in facts else ""
        lines.append(f"    expected bits/dim: {', '.join(parts)}{error}")
        lines.append(f"    of these the decoder from {facts['indices'][0]}: {decoder:.4f} ({facts['decoder']})")
    return "\n".join(lines)
