"""Drawing shards and evaluating them: from (index, shard number) to the sums of one batch.

A shard is 16 draws of x_0 ~ data and ε ~ N(0, I) at one index. Its random numbers come from (seed, index n, shard
number) alone, so that it does not matter when, or beside which others, it is drawn.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from ..errors import NumericalError
from ..models.conditions import Conditions, rows_of
from ..models.denoiser import Denoiser
from ..models.network_run import NetworkRun
from ..models.network_use import not_finite
from ..models.posterior import Posterior
from ..process.structure import Structure, make_structure
from ..randomness import Streams
from .between_images import image_values
from .moments import SHARD, DrawnBatch, MomentMaps, shard_sums
from .population import Population

#: (index n, shard number)
Shard = tuple[int, int]
#: per structure name: sums (S, 8, *v) and pooled covariances (S, 8, 8) of S shards
Sums = dict[str, tuple[npt.NDArray[Any], npt.NDArray[Any]]]


class Evaluated(NamedTuple):
    """Of S shards: their sums, and of every draw (S, 16) the image's position and (S, 16, 5) its `image_values`."""

    sums: Sums
    images: npt.NDArray[np.int64]
    values: npt.NDArray[np.float32]

    @property
    def bytes(self) -> int:
        """Of the sums."""
        return sum(array.nbytes for pair in self.sums.values() for array in pair)


class ShardEvaluator:
    """Draws batches of shards, runs the network on them and sums their moments.

    Args:
        denoiser: the network.
        population: where x_0 is drawn from, with replacement.
        conditions: None, or which conditions go with the images of the population.
        seed: of every random number.
        batch_size: network evaluations at once, where that is less than a shard.
        structures: by name, those to sum for.
    """

    def __init__(
        self,
        denoiser: Denoiser,
        population: Population,
        conditions: Conditions | None,
        seed: int,
        batch_size: int,
        structures: dict[str, Structure],
    ) -> None:
        self.denoiser, self.population, self.conditions = denoiser, population, conditions
        self.seed, self.batch_size, self.structures = seed, batch_size, structures
        self.run = NetworkRun(denoiser)
        self._streams = Streams()
        data, device = population.statistics, denoiser.device
        # The isotropic structure needs the dct basis for its control variate, asked for or not.
        self.dct = structures.get("dct") or make_structure("dct", denoiser.shape, data.rotation)
        self.mean = torch.from_numpy(data.mean).to(device, torch.float32)
        self.variances = {
            "spectrum": torch.from_numpy(data.spectrum).to(device, torch.float32),
            "pixel": torch.from_numpy(data.pixel_variance).to(device, torch.float32),
        }

    @torch.inference_mode()
    def sums(self, batch: Sequence[Shard], weights: dict[str, npt.NDArray[Any] | None], done: int) -> Evaluated:
        """The sums of each shard of a batch, for each structure, and what is kept of its draws.

        Args:
            batch: the shards.
            weights: by structure, (S, *v) weights of the elements in the pooled covariance, or None for ones.
            done: evaluations before this batch, for the error message.

        Raises NumericalError, naming the index and the batch, where the network gave NaN or Inf.
        """
        draws = self._draw(batch)
        maps = MomentMaps(draws, self.mean, self.variances)
        out: Sums = {}
        pixel: torch.Tensor | None = None  # channel and pixel share the maps of the pixel basis
        for name, structure in self.structures.items():
            if name == "isotropic":
                values = maps.isotropic(self.dct)
                kept = image_values(values.cpu().numpy(), maps.known_linear_error(self.dct).cpu().numpy())
            elif name == "dct":
                values = maps.elementwise(structure)
            else:
                pixel = maps.elementwise(structure) if pixel is None else pixel
                values = structure.pool(pixel)
            weight = weights[name]
            total, covariances = shard_sums(
                values, None if weight is None else torch.from_numpy(weight).to(values.device)
            )
            self._refuse_nan(total, batch, done)
            out[name] = total.numpy(), covariances.numpy()
        return Evaluated(out, draws.positions.reshape(-1, SHARD), kept.reshape(len(batch), SHARD, -1))

    def _draw(self, batch: Sequence[Shard]) -> DrawnBatch:
        shape, device = self.denoiser.shape, self.denoiser.device
        picks = np.empty(len(batch) * SHARD, dtype=np.int64)
        chosen = np.zeros_like(picks)
        noise = np.empty((len(picks), *shape), dtype=np.float32)
        for k, (n, shard) in enumerate(batch):
            stream, part = self._streams.at(self.seed, "estimate", n, shard), slice(k * SHARD, (k + 1) * SHARD)
            picks[part] = stream.integers(len(self.population), size=SHARD)
            stream.standard_normal(out=noise[part], dtype=np.float32)
            if self.conditions is not None:
                chosen[part] = self.conditions.pick(picks[part], stream)
        indices = torch.tensor([n for n, _ in batch]).repeat_interleave(SHARD)
        x_0, eps = self.population.take(picks).to(device), torch.from_numpy(noise).to(device)
        alpha, sigma = self.denoiser.schedule.coefficients(indices, x_0)
        x_t = alpha * x_0 + sigma * eps
        condition = None if self.conditions is None else self.conditions.take(chosen, device)
        posterior = self._posterior(x_t, indices, condition)
        return DrawnBatch(x_0, eps, x_t, alpha, sigma, posterior, self.denoiser.clip is not None, picks)

    def _posterior(self, x_t: torch.Tensor, n: torch.Tensor, condition: Any) -> Posterior:
        """The network on a batch, in pieces where the batch size is less than a shard."""
        if self.batch_size >= SHARD:
            return self.run(x_t, n, condition)
        pieces = [
            self.run(x_t[part], n[part], None if condition is None else rows_of(condition, part))
            for part in (slice(k, k + self.batch_size) for k in range(0, len(x_t), self.batch_size))
        ]
        return Posterior(torch.cat([p.mean for p in pieces]), torch.cat([p.eps for p in pieces]))

    def _refuse_nan(self, sums: torch.Tensor, batch: Sequence[Shard], done: int) -> None:
        bad = (~torch.isfinite(sums.flatten(1)).all(1)).nonzero()
        if len(bad):
            n = batch[int(bad[0])][0]
            raise NumericalError(
                f"the network gave NaN or infinite values at index n={n}, in the batch of evaluations {done} to "
                f"{done + len(batch) * SHARD}; {not_finite(self.denoiser.schedule.level(n))}."
            )
