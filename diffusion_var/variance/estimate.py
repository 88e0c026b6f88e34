"""One Monte Carlo pass over x_0 ~ data and ε ~ N(0, I): from a denoiser and images to a variance table.

The pass goes in rounds. At a round boundary the draws of every index are planned from the merged sums (`allocation`);
within a round, shards of 16 draws from all indices fill batches of one size, so that the network is always full. Every
shard's random numbers come from (seed, index n, shard number), and an index's shards are merged in their order, so that
a resumed run gives the bytes of an uninterrupted one. Memory does not grow with the number of draws.

Many processes share a round by whole indices, each of which one of them takes to the round's end, and by batches of
those that do not fit (`shares`). Where they meet, each takes over the others' sums of an index as they are, and merges
what the batches gave: nothing is added up in another order than one process has.

Sources: Analytic-DPM (arXiv:2201.06503) for the quantity, Extended-Analytic-DPM (arXiv:2206.07309) for the residual
under an imperfect mean; control variates and allocation are [E6]'s.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import numpy.typing as npt
from pydantic import Field

from .. import checks, parallel
from ..array_rules import ArrayRule, Rules
from ..documents import Form
from ..errors import InputError, warn
from ..models.conditions import as_conditions
from ..models.denoiser import Denoiser, check_denoiser
from ..parallel import Team
from ..process.structure import STRUCTURE_NAMES, make_structure
from ..progress import progress_bar
from ..resume import ANEW, Checkpoint, State, StateRecord
from . import allocation
from .between_images import ImageDraws
from .moments import CONTROLS, SHARD, MomentSums, StructureMoments, control_expectations
from .plausibility import check_agreement, check_folds, check_moments, check_noise
from .population import Population
from .shards import Evaluated, Shard, ShardEvaluator
from .shares import batch_of_rest, whole_shares
from .table import VarianceTable

#: Arrays of a state that change between rounds alone.
_PLANNED = frozenset({"targets", "start_counts", *(f"{name}.weights" for name in STRUCTURE_NAMES)})
#: Bytes of shards' sums that a process holds before it calls a meeting: some batches even of large images.
_HELD = 256 << 20
_FEW = 0.05  # relative error with the choice of the images (and twice the tolerance), above which there is a warning
Pair = tuple[npt.NDArray[Any], npt.NDArray[Any]]


class StateOfRun(StateRecord):
    """Where a run is: the round (−1: before the first), and how many of its shards are merged."""

    round_number: Annotated[int, Field(ge=-1)]
    done_in_round: Annotated[int, Field(ge=0)]


FORM = Form("diffusion_var.estimate_checkpoint", 1, "estimator checkpoint", StateOfRun, remedy=ANEW)


def estimate(
    denoiser: Denoiser,
    images: Any,
    tolerance: float = 0.01,
    seed: int = 0,
    indices: Sequence[int] | None = None,
    structures: Sequence[str] = STRUCTURE_NAMES,
    conditions: Any = None,
    max_evaluations: int | None = None,
    batch_size: int = 64,
    checkpoint: str | Path | None = None,
    progress: bool = True,
) -> VarianceTable:
    """Measure a denoiser's reverse-variance moments on images.

    In a program of several processes (torchrun) every one makes this call; they share the evaluations, and all get the
    same table.

    Args:
        denoiser: the network, its schedule and conventions.
        images: Dataset, tensor or array of (C, *spatial); uint8, or floats in the data range; never augmented at
            random.
        tolerance: relative standard error to reach for the isotropic value at every index; five times that for the
            root-mean-square over the elements of each other structure.
        seed: of every random number.
        indices: which n to measure; None: 64, evenly spaced in log-SNR.
        structures: any of isotropic, channel, pixel, dct; isotropic is always included.
        conditions: None, one condition per image (a tensor, array or list of labels or embeddings, or a nest of such),
            or a `Conditions` (labels of a list, or a list drawn from at random).
        max_evaluations: stop there; indices that fall short are named in a warning and in the table.
        batch_size: network evaluations at once (rounded down to whole shards of 16; below 16, a shard in pieces).
        checkpoint: file to resume from if it exists and to write every 30 s and on any interruption. It is left in
            place at the end, so that a result not yet saved is not lost.
        progress: a progress bar with evaluations, worst error (in tolerances) and time left.

    Returns: a `VarianceTable`.
    Raises InputError for unusable arguments or images and for a network that is changed meanwhile, NumericalError where
    it gives NaN or Inf.
    """
    with parallel.sharing("estimate") as team:
        check_denoiser(denoiser, "estimate")
        names, schedule = _structure_names(structures), denoiser.schedule
        batch_size, seed = checks.whole("batch_size", batch_size, least=1), checks.seed(seed)
        default = allocation.default_indices(schedule)
        wanted = default if indices is None else allocation.merge_indices(schedule, indices)
        allocation.check_budget(tolerance, max_evaluations, wanted)
        population = Population(images, denoiser.shape, denoiser.data_range)
        if population.order is not None:
            warn(population.order)
        given = as_conditions(conditions, len(population))
        if given is not None:
            given.check(denoiser.classes)
        rotation = population.statistics.rotation
        kinds = {name: make_structure(name, denoiser.shape, rotation if name == "dct" else None) for name in names}
        evaluator = ShardEvaluator(denoiser, population, given, seed, batch_size, kinds)
        run = _Run(evaluator, wanted, float(tolerance), max_evaluations, team)
        team.agree(run.facts(), "estimate")
        sure = (allocation.LEAST_DRAWS - allocation.PILOT_DRAWS) // SHARD
        team.tell_idle(sure * len(wanted), f"shards of {SHARD} draws")
        with Checkpoint(checkpoint, FORM, run.identity()) as kept:
            run.finish(kept, progress)
        run.refuse_changed()
        return run.table()


def _structure_names(structures: Sequence[str]) -> list[str]:
    if not isinstance(structures, list | tuple | set | frozenset) or any(
        name not in STRUCTURE_NAMES for name in structures
    ):
        raise InputError(f"structures={structures!r} must be a list of {', '.join(STRUCTURE_NAMES)}.")
    return [name for name in STRUCTURE_NAMES if name == "isotropic" or name in structures]


class _Run:
    """The state of one pass: sums per structure, and the place reached in the current round."""

    def __init__(
        self,
        evaluator: ShardEvaluator,
        indices: list[int],
        tolerance: float,
        max_evaluations: int | None,
        team: Team,
    ) -> None:
        self.evaluator, self.indices, self.team = evaluator, indices, team
        self.tolerance, self.max_evaluations = tolerance, max_evaluations
        self.sums = {name: MomentSums(kind, len(indices)) for name, kind in evaluator.structures.items()}
        self.draws = ImageDraws(len(indices))
        # Where we are: the round, and the draws of its beginning and its end, between which `counts` are.
        self.round_number = -1
        self.targets = np.zeros(len(indices), dtype=np.int64)
        self.start_counts = np.zeros(len(indices), dtype=np.int64)
        #: (I,) the counts that all processes have.
        self.shared_counts = np.zeros(len(indices), dtype=np.int64)
        #: The model as it is when the run starts.
        self.model = evaluator.denoiser.identity(keep=True)

    # ---- the loop ---------------------------------------------------------------------------------------------

    def finish(self, checkpoint: Checkpoint, progress: bool) -> None:
        """Run to the end, from the checkpoint if it holds anything."""
        with checkpoint.restoring(self._rules()) as saved:
            if saved is not None:
                self._continue_from(*saved)
        with (
            checkpoint.keeping(self._state),
            self.evaluator.run,
            progress_bar(self._planned(), "estimate", "eval", progress, initial=self.evaluations) as bar,
        ):
            if not bar.disable:
                size = sum(s.sums.size * (8 if s.weights is None else 4) for s in self.sums.values()) / 1e6
                names = ", ".join(self.sums)
                bar.write(f"{len(self.indices)} indices, structures {names}: the table will take about {size:.2g} MB")
            self._run_round(checkpoint, bar)
            while self._plan_next(checkpoint, bar):
                self._run_round(checkpoint, bar)

    def _state(self) -> State:
        arrays = {
            f"{name}.{key}": np.asarray(value)
            for name, sums in self.sums.items()
            for key, value in sums.arrays().items()
        }
        arrays |= {f"draws.{key}": value for key, value in self.draws.arrays().items()}
        arrays |= {"targets": self.targets, "start_counts": self.start_counts}
        done = int((self.counts - self.start_counts).sum()) // SHARD
        return arrays, {"round_number": self.round_number, "done_in_round": done}

    def _rules(self) -> Rules:
        """What the arrays of this run's checkpoint must be like."""
        rules = {
            f"{name}.{key}": ArrayRule(
                value.dtype.name, value.shape, least=sums.LEAST.get(key), optional=key in sums.OPTIONAL
            )
            for name, sums in self.sums.items()
            for key, value in sums.arrays().items()
        }
        rules |= {name: ArrayRule("int64", (len(self.indices),), least=0) for name in ("targets", "start_counts")}
        last = len(self.evaluator.population) - 1
        return rules | {
            "draws.images": ArrayRule("int32", self.draws.images.shape, least=-1, most=last, optional=True),
            "draws.values": ArrayRule("float32", self.draws.values.shape, optional=True),
        }

    def _continue_from(self, arrays: dict[str, npt.NDArray[Any]], place: StateOfRun) -> None:
        targets, start_counts = arrays["targets"], arrays["start_counts"]
        allocation.check_targets(start_counts, targets)
        for name, sums in self.sums.items():
            known = {key: arrays.get(f"{name}.{key}") for key in sums.arrays()}
            sums.restore({key: value for key, value in known.items() if value is not None})
            check_moments(name, sums.means(), sums.covariances()[sums.covariance_shards > 0])
        if "draws.images" in arrays:  # earlier versions kept none
            self.draws.restore({key: arrays[f"draws.{key}"] for key in self.draws.arrays()})
        self.targets, self.start_counts = targets.copy(), start_counts.copy()
        self.round_number, self.shared_counts = place.round_number, self.counts.copy()
        check_noise(self.sums["isotropic"].means(), self.counts, math.prod(self.evaluator.denoiser.shape))
        self._check_place(place.done_in_round)
        for name, sums in self.sums.items():
            check_agreement(name, sums.means(), self.sums["isotropic"].means())
            if sums.fold_sums is not None:
                check_folds(name, sums.fold_sums, sums.sums, sums.covariance_sums)

    def _check_place(self, done_in_round: int) -> None:
        """Refuse counts of draws that are not those of the place reached."""
        for name, sums in self.sums.items():
            done = sums.counts - self.start_counts
            wrong = (done % SHARD).any() or done.sum() != done_in_round * SHARD or (done < 0).any()
            wrong = wrong or (sums.counts > self.targets).any() or not np.array_equal(sums.counts, self.counts)
            checks.refuse(bool(wrong), f"its {name}.counts are not those of the place that it says it reached")
            forgotten = allocation.PILOT_DRAWS if sums.weights is not None and self.round_number > 0 else 0
            wrong = not np.array_equal(sums.covariance_shards, (sums.counts - forgotten) // SHARD)
            checks.refuse(wrong, f"its {name}.covariance_shards are not those of its draws")
        checks.refuse(self.draws.beyond(self.counts), "its draws.images are of more draws than it has")

    @property
    def counts(self) -> npt.NDArray[np.int64]:
        """(I,) draws merged so far."""
        return self.sums["isotropic"].counts

    @property
    def evaluations(self) -> int:
        """Network evaluations merged so far."""
        return int(self.counts.sum())

    def _planned(self) -> int:
        """Evaluations that are sure to be made: the least number, or what the round ends with."""
        return max(allocation.LEAST_DRAWS * len(self.indices), int(self.targets.sum()))

    # ---- a round ----------------------------------------------------------------------------------------------

    def _run_round(self, checkpoint: Checkpoint, bar: Any) -> None:
        """All draws of the round: each process those of its indices, then of the rest what is free; now and then they
        meet."""
        ends = self._ends()
        batches, rest = self._batches(ends)
        while (self.counts < ends).any():
            while batches and not self.team.called:
                batch = batches.popleft()
                found = self._evaluate(batch)
                with checkpoint.changing():
                    self._add(batch, found)
                bar.update(len(batch) * SHARD)
                if checkpoint.due():
                    self.team.call()
                    break
            held: dict[int, Evaluated] = {}
            for k in self.team.claimed(len(rest)):
                held[k] = self._evaluate(rest[k])
                bar.update(len(rest[k]) * SHARD)
                if checkpoint.due() or sum(found.bytes for found in held.values()) > _HELD:
                    self.team.call()
            if self._meet(rest, held, checkpoint):
                checkpoint.save(self._state())
            self.team.end_if_stopped()

    def _ends(self) -> npt.NDArray[np.int64]:
        """(I,) the draws with which the round ends: its targets, as far as the budget goes. (Plans keep to it, but a
        checkpoint's may have been made with a larger one.)"""
        if self.max_evaluations is None:
            return self.targets
        left, budget = self.targets - self.counts, max(self.max_evaluations - self.evaluations, 0) // SHARD * SHARD
        return np.asarray(self.counts + np.clip(budget - (np.cumsum(left) - left), 0, left))

    def _batches(self, ends: npt.NDArray[np.int64]) -> tuple[deque[list[Shard]], list[list[Shard]]]:
        """What is left of the round, in batches of (index position, shard number), each in the order in which they are
        merged: this process's own, and those that are for whoever is free.

        Which is which follows from the round's plan alone, and so is the same after an interruption.
        """
        costs = ((ends - self.start_counts) // SHARD).tolist()
        shares, rest = whole_shares(costs, self.team.count)
        most = max(1, self.evaluator.batch_size // SHARD)
        few = batch_of_rest(sum(costs[i] for i in rest), self.team.count, most)

        def cut(positions: list[int], size: int) -> list[list[Shard]]:
            queue = [(i, k) for i in positions for k in range(int(self.counts[i]) // SHARD, int(ends[i]) // SHARD)]
            return [queue[k : k + size] for k in range(0, len(queue), size)]

        return deque(cut(shares[self.team.rank], most)), cut(rest, few)

    def _evaluate(self, batch: list[Shard]) -> Evaluated:
        positions = [i for i, _ in batch]
        weights = {name: None if s.weights is None else s.weights[positions] for name, s in self.sums.items()}
        return self.evaluator.sums([(self.indices[i], shard) for i, shard in batch], weights, self.evaluations)

    def _add(self, batch: list[Shard], found: Evaluated) -> None:
        """Merge the shards of a batch."""
        for name, pair in found.sums.items():
            self._add_sums(name, batch, *pair)
        self._add_draws(batch, found.images, found.values)

    def _add_sums(self, name: str, batch: list[Shard], sums: npt.NDArray[Any], covariances: npt.NDArray[Any]) -> None:
        for (i, _), value, covariance in zip(batch, sums, covariances, strict=True):
            self.sums[name].add(i, value, covariance)

    def _add_draws(self, batch: list[Shard], images: npt.NDArray[Any], values: npt.NDArray[Any]) -> None:
        for (i, shard), image, value in zip(batch, images, values, strict=True):
            self.draws.add(i, shard, image, value)

    # ---- meeting ----------------------------------------------------------------------------------------------

    def _meet(self, rest: list[list[Shard]], held: dict[int, Evaluated], checkpoint: Checkpoint) -> bool:
        """Everybody's running sums of the indices that it took further since the last meeting, and everybody's batches
        of the rest, in every process. Whether it is time to save.

        Args:
            rest: what is left of it; what is done is taken out.
            held: what this process has of it, by position: together the processes have the first ones.
        """
        further = (self.counts > self.shared_counts) & (self.team.count > 1)  # alone, there is nobody to tell
        mine = np.flatnonzero(further)
        sums = {name: array for name, array in self._state()[0].items() if name not in _PLANNED}
        told = {"positions": mine, **{name: array[mine] for name, array in sums.items()}}
        found = self.team.gather(told, [checkpoint.due(), len(held)])
        with checkpoint.changing():
            for theirs, _ in found:
                for name, array in sums.items():
                    array[theirs["positions"]] = theirs[name]
            if done := sum(number for _, (_, number) in found):
                self._merge_rest(rest[:done], held)
                del rest[:done]
            self.shared_counts = self.counts.copy()
        return any(due for _, (due, _) in found)

    def _merge_rest(self, done: list[list[Shard]], held: dict[int, Evaluated]) -> None:
        """Merge what the processes hold of the rest, in its order; by structure, since it may be large."""
        for name in self.sums:
            for batch, pair in self._of_all(done, {k: found.sums[name] for k, found in held.items()}):
                self._add_sums(name, batch, *pair)
        for batch, pair in self._of_all(done, {k: (found.images, found.values) for k, found in held.items()}):
            self._add_draws(batch, *pair)

    def _of_all(self, done: list[list[Shard]], mine: dict[int, Pair]) -> list[tuple[list[Shard], Pair]]:
        """The batches, each with the two arrays (of its shards) that one of the processes has of it."""
        told = {str(part): np.concatenate([pair[part] for pair in mine.values()]) for part in (0, 1) if mine}
        found: dict[int, Pair] = {}
        for theirs, positions in self.team.gather(told, [*mine]):
            cuts = np.cumsum([len(done[k]) for k in positions])[:-1]
            pairs = zip(np.split(theirs["0"], cuts), np.split(theirs["1"], cuts), strict=True) if positions else ()
            found |= zip(positions, pairs, strict=True)
        return [(batch, found[k]) for k, batch in enumerate(done)]

    # ---- between rounds ---------------------------------------------------------------------------------------

    def _plan_next(self, checkpoint: Checkpoint, bar: Any) -> bool:
        """At a round boundary: plan the next round; False when there is nothing left to do."""
        with checkpoint.changing():
            if self.round_number >= 0:
                self._reweigh()
        # One process plans for all: the last bit of an error may depend on the machine.
        targets = np.array(self.team.first_alone(lambda: self._plan(bar).tolist()), dtype=np.int64)
        if np.array_equal(targets, self.counts):
            return False
        with checkpoint.changing():
            if self.round_number == 0:
                for sums in self.sums.values():
                    sums.forget_weighted_covariances()
            self.round_number += 1
            self.start_counts, self.targets = self.counts.copy(), targets
        return True

    def _plan(self, bar: Any) -> npt.NDArray[np.int64]:
        """(I,) the draws with which the next round shall end; the bar is told what is expected."""
        error = np.full(len(self.indices), np.inf)
        if self.round_number >= 1:
            errors, freedom = self.errors()
            error = errors.max(0)
            s, i = np.unravel_index(int(errors.argmax()), errors.shape)
            where = f"{[*self.sums][s]} at n={self.indices[i]}"
            bar.set_postfix_str(f"worst error {error[i]:.2f} tolerances, {where}")
            error = np.maximum(error, allocation.doubt(self.counts, errors[0], freedom))
        targets = allocation.next_targets(self.round_number + 1, self.counts, error, self.max_evaluations)
        if self.round_number >= 1:
            ahead = np.zeros_like(error) if np.array_equal(targets, self.counts) else error
            bar.total = allocation.expected_total(self.counts, ahead, bar.total, targets, self.max_evaluations)
        return targets

    def _reweigh(self) -> None:
        """Weigh elements by the latest 1/v² for the draws to come. (Done twice, it changes nothing more.)"""
        data, schedule = self.evaluator.population.statistics, self.evaluator.denoiser.schedule
        for sums in self.sums.values():
            for i, n in enumerate(self.indices):
                expected = control_expectations(data, sums.structure, schedule.alpha[n], schedule.sigma[n])
                sums.reweigh(i, expected[CONTROLS.index("linear_error_square")])

    def errors(self) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
        """(S, I) the relative error of each structure at each index, in units of its tolerance, isotropic first; and
        (I,) the degrees of freedom of the isotropic one."""
        table = self.table(announce=False)
        found = [[table.relative_error(n, name) for n in self.indices] for name in self.sums]
        freedom = [table.interpolation.freedom(i) for i in range(len(self.indices))]
        return np.array(found) / self._tolerances()[:, None], np.array(freedom)

    def _tolerances(self) -> npt.NDArray[np.float64]:
        """(S,) of each structure."""
        factors = [1.0 if name == "isotropic" else allocation.ELEMENTWISE_FACTOR for name in self.sums]
        return self.tolerance * np.array(factors)

    # ---- what it is and what it gives -------------------------------------------------------------------------

    def identity(self) -> dict[str, Any]:
        """What a checkpoint must agree on. Tolerance and budget may change: a finished run can be taken further."""
        evaluator, conditions = self.evaluator, self.evaluator.conditions
        return {
            "seed": evaluator.seed,
            "indices": self.indices,
            "structures": list(self.sums),
            "data": evaluator.population.statistics.fingerprint,
            "conditions": None if conditions is None else conditions.fingerprint,
            **self.model.plain(),
        }

    def facts(self) -> dict[str, Any]:
        """What processes that share the run must agree on."""
        limits = {"tolerance": self.tolerance, "max_evaluations": self.max_evaluations}
        return {**self.identity(), **limits, "batch size": self.evaluator.batch_size}

    def refuse_changed(self) -> None:
        """What was measured of several networks is the table of none. (Their weights alone are compared: what a network
        does changes by itself in those that are random, of which a warning has been given.)"""
        if self.evaluator.denoiser.fingerprint != self.model.facts.get("network"):
            raise InputError(
                "the network's weights were changed while its table was made, so that the table, and the checkpoint if "
                "there is one, are of no one network; measure a copy that nobody trains, from the start."
            )

    def table(self, announce: bool = True) -> VarianceTable:
        """The table of what has been merged; says which indices fall short of the tolerance."""
        evaluator, denoiser = self.evaluator, self.evaluator.denoiser
        moments = {
            name: StructureMoments(
                sums.means().astype(np.float64 if sums.weights is None else np.float32),
                sums.covariances(),
                sums.folds(),
            )
            for name, sums in self.sums.items()
        }
        table = VarianceTable(
            schedule=denoiser.schedule,
            indices=np.array(self.indices, dtype=np.int64),
            counts=self.counts.copy(),
            moments=moments,
            shape=denoiser.shape,
            prediction=denoiser.prediction,
            clip=denoiser.clip,
            data_range=denoiser.data_range,
            network=self.model.facts.get("network"),
            network_facts=self.model.network_facts,
            guidance_scale=denoiser.guidance_scale,
            latent_scaling=_pair(self.model.facts.get("latent_scaling")),
            data=evaluator.population.statistics,
            seed=evaluator.seed,
            tolerance=self.tolerance,
            evaluations=self.evaluations,
            image_variance=self.draws.variance(denoiser.schedule.log_snr[self.indices]) if announce else None,
        )
        if announce:
            table.details = {"versions": _versions(), "shortfall": self._shortfall()}
            if which := [said for said in (evaluator.population.order, self._few_images(table)) if said]:
                table.details["which_images"] = which
            if evaluator.conditions is not None:
                table.details["conditions"] = evaluator.conditions.origin()
        return table

    def _few_images(self, table: VarianceTable) -> str | None:
        """One sentence, also as a warning, where the choice of the images is what makes the table uncertain."""
        errors = [table.relative_error(n, images=True) for n in self.indices]
        worst, count = int(np.argmax(errors)), len(self.evaluator.population)
        if not errors[worst] > max(_FEW, 2.0 * self.tolerance):
            return None
        said = (
            f"the images are few: the tolerance {self.tolerance:g} is for these {count:,} alone, and for others of "
            f"their kind the relative standard error is {errors[worst]:.2g} at n={self.indices[worst]}, which no "
            "number of evaluations makes less; use more images."
        )
        warn(said)
        return said

    def _shortfall(self) -> list[str]:
        (errors, _), tolerances, names = self.errors(), self._tolerances(), [*self.sums]
        short = []
        for i in np.flatnonzero(errors.max(0) > 1.0):
            s = int(errors[:, i].argmax())
            wanted, times = tolerances[s], errors[s, i]
            short.append(
                f"n={self.indices[i]}: {names[s]} {times * wanted:.2%}, {times:.2f} times the tolerance of {wanted:.2g}"
            )
        if short:
            shown = "; ".join(short[:8]) + (f"; and {len(short) - 8} more" if len(short) > 8 else "")
            warn(
                f"{self.evaluations} evaluations were spent before the tolerance {self.tolerance:g} was met at "
                f"{len(short)} of {len(self.indices)} indices ({shown}); raise max_evaluations for those."
            )
        return short


def _pair(values: Any) -> Any:
    """(scale, shift), each a number or a tuple of them by channel."""
    return None if values is None else tuple(tuple(x) if isinstance(x, list) else x for x in values)


def _versions() -> dict[str, str]:
    from importlib.metadata import version

    return {name: version(name) for name in ("diffusion-var", "torch", "numpy")}
