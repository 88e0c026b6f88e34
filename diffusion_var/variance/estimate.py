"""One Monte Carlo pass over x_0 ~ data and ε ~ N(0, I): from a denoiser and images to a variance table.

The pass goes in rounds. At a round boundary the draws of every index are planned from the merged sums (`allocation`);
within a round, shards of 16 draws from all indices fill batches of one size, so that the network is always full. Every
shard's random numbers come from (seed, index n, shard number), and shards are merged in one fixed order, so that a
resumed run gives the bytes of an uninterrupted one. Memory does not grow with the number of draws.

Sources: Analytic-DPM (arXiv:2201.06503) for the quantity, Extended-Analytic-DPM (arXiv:2206.07309) for the residual
under an imperfect mean; control variates and allocation are DESIGN §2.6's.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from tqdm import tqdm

from ..errors import DiffusionVarWarning, InputError, NumericalError
from ..models.denoiser import Denoiser
from ..process.structure import STRUCTURE_NAMES, make_structure
from ..randomness import generator
from . import allocation
from .checkpoint import Checkpoint
from .moments import SHARD, TARGETS, Draws, MomentMaps, MomentSums, shard_sums
from .population import Population
from .table import StructureMoments, VarianceTable, merge_indices

_CHECKPOINT_SECONDS = 30.0


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

    Args:
        denoiser: the network, its schedule and conventions.
        images: Dataset, tensor or array of (C, H, W); uint8, or floats in the data range; never augmented at random.
        tolerance: relative standard error to reach for the isotropic value at every index; five times that for the
            root-mean-square over the elements of each other structure.
        seed: of every random number.
        indices: which n to measure; None: 64, evenly spaced in log-SNR.
        structures: any of isotropic, channel, pixel, dct; isotropic is always included.
        conditions: None, or a tensor or array of one condition per image, passed to the network with it.
        max_evaluations: stop there; indices that fall short are named in a warning and in the table.
        batch_size: network evaluations at once (rounded down to whole shards of 16; below 16, a shard in pieces).
        checkpoint: file to resume from if it exists and to write every 30 s and on any interruption. It is left in
            place at the end, so that a result not yet saved is not lost.
        progress: a progress bar with evaluations, worst error (in tolerances) and time left.

    Returns: a `VarianceTable`.
    Raises InputError for unusable arguments or images, NumericalError where the network gives NaN or Inf.
    """
    names = ["isotropic", *(name for name in STRUCTURE_NAMES[1:] if name in structures)]
    unknown = [name for name in structures if name not in STRUCTURE_NAMES]
    if unknown or isinstance(structures, str):
        raise InputError(f"structures={structures!r} must be a list of {', '.join(STRUCTURE_NAMES)}.")
    if batch_size < 1:
        raise InputError(f"batch_size={batch_size} must be at least 1.")
    wanted = (
        allocation.default_indices(denoiser.schedule) if indices is None else merge_indices(denoiser.schedule, indices)
    )
    allocation.check_budget(tolerance, max_evaluations, wanted)
    population = Population(images, denoiser.shape, denoiser.data_range)
    if conditions is not None:
        conditions = torch.as_tensor(conditions)
        if len(conditions) != len(population):
            raise InputError(
                f"conditions has {len(conditions)} entries for {len(population)} images; give one for each."
            )
    run = _Run(denoiser, population, names, wanted, tolerance, seed, conditions, max_evaluations, batch_size)
    run.finish(None if checkpoint is None else Checkpoint(checkpoint, run.identity()), progress)
    return run.table()


class _Run:
    """The state of one pass: sums per structure, and the place reached in the current round."""

    def __init__(
        self,
        denoiser: Denoiser,
        population: Population,
        names: list[str],
        indices: list[int],
        tolerance: float,
        seed: int,
        conditions: torch.Tensor | None,
        max_evaluations: int | None,
        batch_size: int,
    ) -> None:
        self.denoiser, self.population, self.conditions = denoiser, population, conditions
        self.indices, self.tolerance, self.seed, self.max_evaluations = indices, tolerance, seed, max_evaluations
        self.batch_size = batch_size
        data, device = population.statistics, denoiser.device
        self.dct = make_structure("dct", denoiser.shape, data.rotation)
        self.sums = {
            name: MomentSums(self.dct if name == "dct" else make_structure(name, denoiser.shape), len(indices))
            for name in names
        }
        self.mean = torch.from_numpy(data.mean).to(device, torch.float32)
        self.variances = {
            "spectrum": torch.from_numpy(data.spectrum).to(device, torch.float32),
            "pixel": torch.from_numpy(data.pixel_variance).to(device, torch.float32),
        }
        # Where we are: the round, the draws planned for its end, and the shards of its queue already merged.
        self.round_number = -1
        self.targets = np.zeros(len(indices), dtype=np.int64)
        self.start_counts = np.zeros(len(indices), dtype=np.int64)
        self.done_in_round = 0
        self._merging = False

    # ---- the loop ---------------------------------------------------------------------------------------------

    def finish(self, checkpoint: Checkpoint | None, progress: bool) -> None:
        """Run to the end, from the checkpoint if it holds anything."""
        if checkpoint is not None:
            checkpoint.restore(self)
        with tqdm(
            total=self._expected(), initial=self.evaluations, unit="eval", desc="estimate", disable=not progress
        ) as bar:
            if progress:
                size = sum(s.sums.size * (8 if s.weights is None else 4) for s in self.sums.values()) / 1e6
                bar.write(
                    f"{len(self.indices)} indices, structures {', '.join(self.sums)}: the table will take about {size:.2g} MB"
                )
            try:
                self._run_round(checkpoint, bar)
                while self._plan_next(bar):
                    self._run_round(checkpoint, bar)
            finally:
                # Whatever stopped us, everything merged so far is kept; a stop within a merge keeps the last file.
                if checkpoint is not None and not self._merging:
                    checkpoint.save(self)

    @property
    def counts(self) -> npt.NDArray[np.int64]:
        """(I,) draws merged so far."""
        return self.sums["isotropic"].counts

    @property
    def evaluations(self) -> int:
        """Network evaluations merged so far."""
        return int(self.counts.sum())

    def _queue(self) -> list[tuple[int, int]]:
        """The round's shards, (index position, shard number), in the order in which they are merged."""
        return [
            (i, shard)
            for i, (start, end) in enumerate(zip(self.start_counts, self.targets, strict=True))
            for shard in range(int(start) // SHARD, int(end) // SHARD)
        ]

    def _plan_next(self, bar: Any) -> bool:
        """At a round boundary: plan the next round; False when there is nothing left to do."""
        if self.round_number >= 0:
            self._reweigh()
        error = np.full(len(self.indices), np.inf)
        if self.round_number >= 1:
            error = self.errors()
            bar.total = max(self._expected(error), self.evaluations)
            bar.set_postfix_str(f"worst error {error.max():.2f} tolerances")
        targets = allocation.next_targets(self.round_number + 1, self.counts, error, self.max_evaluations)
        if np.array_equal(targets, self.counts):
            return False
        self.round_number += 1
        self.start_counts, self.targets, self.done_in_round = self.counts.copy(), targets, 0
        return True

    def _expected(self, error: npt.NDArray[np.float64] | None = None) -> int:
        draws = (
            allocation.LEAST_DRAWS * len(self.indices)
            if error is None
            else int(allocation.needed_draws(self.counts, error).sum())
        )
        return draws if self.max_evaluations is None else min(draws, self.max_evaluations)

    def _run_round(self, checkpoint: Checkpoint | None, bar: Any) -> None:
        queue, saved = self._queue(), time.monotonic()
        per_batch = max(1, self.batch_size // SHARD)
        while self.done_in_round < len(queue):
            batch = queue[self.done_in_round : self.done_in_round + per_batch]
            sums = self._evaluate(batch)
            self._merging = True
            for name, (values, covariances) in sums.items():
                for (i, _), value, covariance in zip(batch, values, covariances, strict=True):
                    self.sums[name].add(i, value, covariance)
            self.done_in_round += len(batch)
            self._merging = False
            bar.update(len(batch) * SHARD)
            if checkpoint is not None and time.monotonic() - saved > _CHECKPOINT_SECONDS:
                checkpoint.save(self)
                saved = time.monotonic()

    # ---- one batch --------------------------------------------------------------------------------------------

    @torch.inference_mode()
    def _evaluate(self, batch: list[tuple[int, int]]) -> dict[str, tuple[npt.NDArray[Any], npt.NDArray[Any]]]:
        """Draw a batch of shards, run the network, and sum each shard for each structure."""
        draws = self._draw(batch)
        maps = MomentMaps(draws, self.mean, self.variances)
        positions = np.array([i for i, _ in batch])
        out = {}
        pixel: torch.Tensor | None = None
        for name, sums in self.sums.items():
            if name == "isotropic":
                values = maps.isotropic(self.dct)
            elif name == "dct":
                values = maps.elementwise(self.dct)
            else:
                pixel = maps.elementwise(sums.structure) if pixel is None else pixel
                values = sums.structure.pool(pixel)
            weights = None if sums.weights is None else torch.from_numpy(sums.weights[positions]).to(values.device)
            total, covariances = shard_sums(values, weights)
            out[name] = total.numpy(), covariances.numpy()
            if not torch.isfinite(total).all():
                shard = int((~torch.isfinite(total.flatten(1)).all(1)).nonzero()[0])
                raise NumericalError(
                    f"the network gave NaN or infinite values at index n={self.indices[batch[shard][0]]}, in the batch of "
                    f"evaluations {self.evaluations} to {self.evaluations + len(batch) * SHARD}; check its weights and precision."
                )
        return out

    def _draw(self, batch: list[tuple[int, int]]) -> Draws:
        shape, device = self.denoiser.shape, self.denoiser.device
        picks = np.empty(len(batch) * SHARD, dtype=np.int64)
        noise = np.empty((len(picks), *shape), dtype=np.float32)
        for k, (i, shard) in enumerate(batch):
            stream, part = generator(self.seed, "estimate", self.indices[i], shard), slice(k * SHARD, (k + 1) * SHARD)
            picks[part] = stream.integers(len(self.population), size=SHARD)
            stream.standard_normal(out=noise[part], dtype=np.float32)
        n = torch.tensor([self.indices[i] for i, _ in batch]).repeat_interleave(SHARD)
        x_0, eps = self.population.take(picks).to(device), torch.from_numpy(noise).to(device)
        alpha, sigma = self.denoiser.coefficients(n, x_0)
        x_t = alpha * x_0 + sigma * eps
        condition = None if self.conditions is None else self.conditions[torch.from_numpy(picks)].to(device)
        if self.batch_size >= SHARD:
            posterior = self.denoiser(x_t, n, condition)
        else:
            posterior = self._in_pieces(x_t, n, condition)
        return Draws(x_0, eps, x_t, alpha, sigma, posterior, self.denoiser.clip is not None)

    def _in_pieces(self, x_t: torch.Tensor, n: torch.Tensor, condition: torch.Tensor | None) -> Any:
        from ..models.denoiser import Posterior

        pieces = [
            self.denoiser(x_t[part], n[part], None if condition is None else condition[part])
            for part in (slice(k, k + self.batch_size) for k in range(0, len(x_t), self.batch_size))
        ]
        return Posterior(torch.cat([p.mean for p in pieces]), torch.cat([p.eps for p in pieces]))

    # ---- between rounds ---------------------------------------------------------------------------------------

    def _reweigh(self) -> None:
        """Weigh elements by 1/v², v the latest residual, for the draws to come; after the pilot, forget its covariance.

        Elements that (almost) never vary are weighted as if they had a hundredth of the mean standard deviation.
        """
        k = TARGETS.index("error_square")
        for sums in self.sums.values():
            if sums.weights is None:
                continue
            v = sums.means()[:, k]
            mean = v.mean(axis=tuple(range(1, v.ndim)), keepdims=True)
            sums.weights[...] = 1.0 / np.maximum(np.maximum(v, 1e-4 * mean), 1e-150) ** 2
            if self.round_number == 0:
                sums.covariance_sums[...] = 0.0
                sums.covariance_shards[...] = 0

    def errors(self) -> npt.NDArray[np.float64]:
        """(I,) worst relative error over structures, in units of the tolerance."""
        table = self.table(announce=False)
        factor = {name: 1.0 if name == "isotropic" else allocation.ELEMENTWISE_FACTOR for name in self.sums}
        return np.array(
            [
                max(table.relative_error(n, name) / (factor[name] * self.tolerance) for name in self.sums)
                for n in self.indices
            ]
        )

    # ---- what it is and what it gives -------------------------------------------------------------------------

    def identity(self) -> dict[str, Any]:
        """What a checkpoint must agree on."""
        return {
            "seed": self.seed,
            "indices": self.indices,
            "structures": list(self.sums),
            "schedule": self.denoiser.schedule.digest,
            "shape": list(self.denoiser.shape),
            "prediction": self.denoiser.prediction,
            "clip": None if self.denoiser.clip is None else list(self.denoiser.clip),
            "network": self.denoiser.fingerprint,
            "data": self.population.statistics.fingerprint,
        }

    def table(self, announce: bool = True) -> VarianceTable:
        """The table of what has been merged; says which indices fall short of the tolerance."""
        denoiser = self.denoiser
        moments = {
            name: StructureMoments(
                sums.means().astype(np.float64 if sums.weights is None else np.float32), sums.covariances()
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
            network=denoiser.fingerprint,
            data=self.population.statistics,
            seed=self.seed,
            tolerance=self.tolerance,
            evaluations=self.evaluations,
        )
        if announce:
            table.details = {"versions": _versions(), "shortfall": self._shortfall()}
        return table

    def _shortfall(self) -> list[str]:
        error = self.errors()
        short = [f"n={n}: {e:.2f} times the tolerance" for n, e in zip(self.indices, error, strict=True) if e > 1.0]
        if short:
            shown = "; ".join(short[:8]) + (f"; and {len(short) - 8} more" if len(short) > 8 else "")
            warnings.warn(
                f"{self.evaluations} evaluations were spent before the tolerance {self.tolerance:g} was met at "
                f"{len(short)} of {len(error)} indices ({shown}); raise max_evaluations for those.",
                DiffusionVarWarning,
                stacklevel=4,
            )
        return short


def _versions() -> dict[str, str]:
    from importlib.metadata import version

    return {name: version(name) for name in ("diffusion-var", "torch", "numpy")}
