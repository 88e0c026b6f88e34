"""One pass over images for terms of the likelihood bound: batches, random numbers, sums, and where it was interrupted.

Images are taken in chunks. Within a chunk the wanted (draw, index, image) triples are sorted by index and cut into
batches of one size, so that the network is always full. Every random number comes from (seed, purpose, image,
draw, index): methods that are compared see the same noise. Memory does not grow with the number of images.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from tqdm import tqdm

from ..data.fixed_images import FixedImages
from ..documents import read_document, write_document
from ..errors import DiffusionVarWarning, InputError, NumericalError
from ..models.conditions import Conditions
from ..models.guidance import check_classes
from ..models.identity import conventions
from ..randomness import Streams, generator
from ..variance.checkpoint import require_same_run
from .result import RunningMoments
from .terms import BoundTerms, Node, prior_kl

FORMAT = "diffusion_var.likelihood_checkpoint"
FORMAT_VERSION = 1
_CHECKPOINT_SECONDS = 30.0
_CHUNK = 64  # images whose terms are held at once: whatever the batch size, so that it may change on resuming
IntArray = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Rows:
    """Network evaluations, a row each: of which draw, node and image (of the chunk), and the weight of its terms."""

    draws: IntArray
    nodes: IntArray
    images: IntArray
    weights: npt.NDArray[np.float64]

    def __len__(self) -> int:
        return len(self.nodes)

    def take(self, part: IntArray | slice) -> Rows:
        """Some of them."""
        return Rows(self.draws[part], self.nodes[part], self.images[part], self.weights[part])


def strata_of(nodes: Sequence[Node], count: int) -> list[IntArray]:
    """`count` groups of neighbouring nodes of one step each, that should cost about the same together.

    What a step costs is guessed: log((1 + SNR_s)/(1 + SNR_t)), twice its KL for data of variance 1. Equal numbers of
    steps would throw the few dear ones next to the data together with many that cost nothing.
    """
    kernels = [node.steps[0][1] for node in nodes]
    at_s, at_t = (
        np.logaddexp(0.0, kernels[0].schedule.log_snr[indices])
        for indices in ([kernel.s for kernel in kernels], [kernel.t for kernel in kernels])
    )
    share = np.cumsum(at_s - at_t) / np.sum(at_s - at_t)
    cuts = [0, *(int(np.searchsorted(share, k / count)) + 1 for k in range(1, count)), len(nodes)]
    for k in range(1, count):  # none of them empty
        cuts[k] = min(max(cuts[k], cuts[k - 1] + 1), len(nodes) - (count - k))
    return [np.arange(start, stop) for start, stop in pairwise(cuts)]


class BoundRun:
    """The state of one pass.

    Args:
        terms: what to compute.
        images: the images, in the data range.
        conditions: of the images, or None.
        columns: number of terms of an image; column 0 is the prior's if `prior` is given.
        prior: the index at which the prior's term is taken, or None.
        seed, draws, batch_size: see `likelihood.bits_per_dim`.
        step_samples: how many of the middle nodes are evaluated for an image and draw; None: all.
    """

    def __init__(
        self,
        terms: BoundTerms,
        images: FixedImages,
        conditions: Conditions | None,
        columns: int,
        prior: int | None,
        seed: int,
        draws: int,
        batch_size: int,
        step_samples: int | None = None,
    ) -> None:
        self.terms, self.images, self.conditions, self.prior = terms, images, conditions, prior
        self.seed, self.draws, self.batch_size = seed, draws, batch_size
        if conditions is not None and terms.denoiser.classes is not None:
            check_classes(conditions.values, terms.denoiser.classes)
        nodes = len(terms.nodes)
        self.strata = None if step_samples is None else strata_of(terms.nodes[:-1], step_samples)
        self.per_image = draws * (nodes if self.strata is None else len(self.strata) + 1)
        # The sums over the chunks done, the last entry that of whole images; and the place in the present chunk.
        self.moments = RunningMoments(columns + 1)
        self.noise_variance = 0.0
        self.values = np.zeros((draws, min(_CHUNK, len(images)), columns))
        self.rows_done = 0
        # While the sums are half changed, an interruption must not save them.
        self._changing = False
        self._streams = Streams()
        self._saved = time.monotonic()

    # ---- the loop ---------------------------------------------------------------------------------------------

    def finish(self, checkpoint: str | Path | None, identity: dict[str, Any], progress: bool) -> None:
        """Run to the end, from the checkpoint if it holds anything; it is left in place."""
        path = None if checkpoint is None else Path(checkpoint)
        if path is not None:
            self._restore(path, identity)
            self._save(path, identity)  # an unwritable path is found now, not after the work
        total = len(self.images) * self.per_image
        with tqdm(total=total, unit="eval", desc="likelihood", disable=not progress) as bar:
            bar.update(self.moments.count * self.per_image)
            try:
                for start in range(self.moments.count, len(self.images), _CHUNK):
                    self._chunk(np.arange(start, min(start + _CHUNK, len(self.images))), path, identity, bar)
            finally:
                if path is not None and not self._changing:
                    self._keep(path, identity)

    def _chunk(self, numbers: IntArray, path: Path | None, identity: dict[str, Any], bar: Any) -> None:
        x_0 = self.images.take(numbers).to(self.terms.denoiser.device)
        rows = self._rows(numbers)
        bar.update(self.rows_done)
        while self.rows_done < len(rows):
            batch = rows.take(slice(self.rows_done, self.rows_done + self.batch_size))
            self._evaluate(batch, numbers, x_0)
            self.rows_done += len(batch)
            bar.update(len(batch))
            if path is not None and time.monotonic() - self._saved > _CHECKPOINT_SECONDS:
                self._save(path, identity)
        if self.prior is not None:
            schedule = self.terms.denoiser.schedule
            level = float(schedule.alpha[self.prior]), float(schedule.sigma[self.prior])
            self.values[:, : len(numbers), 0] = prior_kl(x_0, *level, schedule.prior_std).cpu().numpy()
        self._merge(len(numbers))

    def _merge(self, count: int) -> None:
        """The chunk at hand into the sums."""
        self._changing = True
        values = self.values[:, :count]
        whole = values.sum(-1, keepdims=True)
        self.moments.add(np.concatenate([values, whole], -1).mean(0))
        if self.draws > 1:
            self.noise_variance += float(whole.var(0, ddof=1).sum())
        self.values[...] = 0.0
        self.rows_done = 0
        self._changing = False

    @property
    def noise_error(self) -> float:
        """Standard error of the mean over these images, from the spread over draws; nan for one draw."""
        if self.draws < 2:
            return float("nan")
        return float(np.sqrt(self.noise_variance / self.draws)) / self.moments.count

    # ---- one batch --------------------------------------------------------------------------------------------

    def _rows(self, numbers: IntArray) -> Rows:
        """All evaluations of a chunk, sorted by node."""
        every = np.arange(len(self.terms.nodes)), np.ones(len(self.terms.nodes))
        draws, nodes, images, weights = [], [], [], []
        for draw in range(self.draws):
            for image, number in enumerate(numbers):
                picked, weight = every if self.strata is None else self._choose(int(number), draw)
                draws.append(np.full(len(picked), draw))
                nodes.append(picked)
                images.append(np.full(len(picked), image))
                weights.append(weight)
        rows = Rows(*(np.concatenate(parts) for parts in (draws, nodes, images, weights)))
        return rows.take(np.argsort(rows.nodes, kind="stable"))

    def _choose(self, image: int, draw: int) -> tuple[IntArray, npt.NDArray[np.float64]]:
        """One node of each stratum, weighted by the stratum's size; and always the last."""
        assert self.strata is not None
        stream = generator(self.seed, "likelihood steps", image, draw)
        picked = [int(stratum[stream.integers(len(stratum))]) for stratum in self.strata]
        sizes = [float(len(stratum)) for stratum in self.strata]
        return np.array([*picked, len(self.terms.nodes) - 1]), np.array([*sizes, 1.0])

    @torch.inference_mode()
    def _evaluate(self, batch: Rows, numbers: IntArray, chunk: torch.Tensor) -> None:
        denoiser, nodes = self.terms.denoiser, self.terms.nodes
        indices = torch.tensor([nodes[k].t for k in batch.nodes])
        x_0, eps = chunk[torch.from_numpy(batch.images)], self._noise(batch, numbers)
        alpha, sigma = denoiser.coefficients(indices, x_0)
        posterior = denoiser(alpha * x_0 + sigma * eps, indices, self._condition(batch, numbers))
        # Clipping and the tails of the decoder would hide an infinite output.
        finite = torch.isfinite(posterior.eps).flatten(1).all(1).cpu().numpy()
        for k in np.unique(batch.nodes):
            found = np.flatnonzero(batch.nodes == k)
            part = slice(int(found[0]), int(found[-1]) + 1)  # sorted by node
            values = self.terms.at(nodes[k], x_0[part], eps[part], posterior.rows(part)).numpy()
            values[~finite[part]] = np.nan
            rows, columns = batch.take(part), np.array([column for column, _ in nodes[k].steps])
            self._refuse_nan(values, int(k), numbers[rows.images])
            self.values[rows.draws[:, None], rows.images[:, None], columns] = values * rows.weights[:, None]

    def _noise(self, batch: Rows, numbers: IntArray) -> torch.Tensor:
        shape = self.terms.denoiser.shape
        out = np.empty((len(batch), *shape), dtype=np.float32)
        for row, draw, k, image in zip(out, batch.draws, batch.nodes, numbers[batch.images], strict=True):
            stream = self._streams.at(self.seed, "likelihood noise", image, draw, self.terms.nodes[k].t)
            stream.standard_normal(out=row, dtype=np.float32)
        return torch.from_numpy(out).to(self.terms.denoiser.device)

    def _condition(self, batch: Rows, numbers: IntArray) -> torch.Tensor | None:
        """Of each row; one drawn at random is the same at all steps of an image and draw."""
        if self.conditions is None:
            return None
        picked = [
            self.conditions.pick(numbers[[i]], self._streams.at(self.seed, "likelihood condition", numbers[i], draw))
            for draw, i in zip(batch.draws, batch.images, strict=True)
        ]
        return self.conditions.take(np.concatenate(picked)).to(self.terms.denoiser.device)

    def _refuse_nan(self, values: npt.NDArray[np.float64], k: int, images: IntArray) -> None:
        bad = np.argwhere(~np.isfinite(values))
        if len(bad):
            row, column = bad[0]
            kernel = self.terms.nodes[k].steps[column][1]
            raise NumericalError(
                f"the term of the step {kernel.t} to {kernel.s} is {values[row, column]} for image {images[row]}; "
                "check the network's weights and precision, and the covariance."
            )

    # ---- interruptions ----------------------------------------------------------------------------------------

    def _keep(self, path: Path, identity: dict[str, Any]) -> None:
        """Save at the end or after an interruption; a full disk must hide neither the result nor what stopped us."""
        try:
            self._save(path, identity)
        except InputError as error:
            warnings.warn(f"the checkpoint is not up to date: {error}", DiffusionVarWarning, stacklevel=2)

    def _save(self, path: Path, identity: dict[str, Any]) -> None:
        arrays = {"mean": self.moments.mean, "squares": self.moments.squares, "values": self.values}
        place = {
            "count": self.moments.count,
            "noise_variance": self.noise_variance,
            "rows_done": self.rows_done,
        }
        write_document(path, FORMAT, FORMAT_VERSION, arrays, {"identity": identity, **place})
        self._saved = time.monotonic()

    def _restore(self, path: Path, identity: dict[str, Any]) -> None:
        if not path.exists():
            return
        arrays, metadata = read_document(path, FORMAT, FORMAT_VERSION, "likelihood checkpoint")
        require_same_run(path, identity, metadata["identity"])
        self.moments.count, self.noise_variance = metadata["count"], metadata["noise_variance"]
        self.moments.mean, self.moments.squares = arrays["mean"].copy(), arrays["squares"].copy()
        self.values, self.rows_done = arrays["values"].copy(), metadata["rows_done"]


def run_identity(run: BoundRun, fingerprint: str, settings: dict[str, Any]) -> dict[str, Any]:
    """What a checkpoint must agree on."""
    denoiser, conditions = run.terms.denoiser, run.conditions
    return {
        **settings,
        "images": fingerprint,
        "network": denoiser.fingerprint,
        "schedule": denoiser.schedule.digest,
        "conditions": None if conditions is None else conditions.fingerprint,
        **conventions(denoiser),
    }
