"""Training a covariance head on a frozen trunk (targets: see `variance.targets`).

One evaluation of the trunk a draw gives the mean and the features; no graph is kept through it. The target ocm alone
differentiates through the trunk, one vector-Jacobian product a draw: it costs about two more evaluations of the trunk
in time, and the memory of its activations for one batch. The optimiser is Adam, what is kept is an exponential moving
average (warmed up by diffusers' rule, so that short runs are not averages of their beginning). Every random number
comes from (seed, purpose, step): a resumed run is the uninterrupted one. Each process of a distributed run
(Accelerate) takes its share of the step's one batch.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

import torch

from ..covariance.head import Head, HeadSpec
from ..covariance.head_targets import Weighting, no_likelihood
from ..data.fixed_images import FixedImages
from ..errors import InputError
from ..models.conditions import Conditions, as_conditions
from ..models.denoiser import Denoiser
from ..models.guidance import check_classes
from ..models.heads import HeadNetwork
from ..variance.table import VarianceTable
from .head_draws import HeadRun


@dataclass(frozen=True)
class HeadTraining:
    """How to train; all of it decides the result.

    Attributes:
        steps: optimiser steps.
        batch_size: images a step, over all processes together.
        learning_rate, rate_schedule: of Adam; constant, or lowered to zero along a cosine.
        ema_decay: of the moving average of the weights, which is what is kept.
        weighting: what the loss lets count, "table", "likelihood" (npr and factor) or "papers"; see `variance.targets`.
        accumulate: parts that the batch of a process is evaluated in, one after the other: less memory.
        evaluate_every: steps between entries of the curve.
        patience: stop after so many entries without a lower held-out loss, and keep the best weights; None: never.
        likelihood_images, likelihood_steps: how many held-out images the curve's bits/dim are of (0: none), and K.
        seed: of every random number.
    """

    steps: int
    batch_size: int = 128
    learning_rate: float = 1e-4
    rate_schedule: Literal["constant", "cosine"] = "constant"
    ema_decay: float = 0.9999
    weighting: Weighting = "table"
    accumulate: int = 1
    evaluate_every: int = 500
    patience: int | None = None
    likelihood_images: int = 64
    likelihood_steps: int = 10
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "accumulate", "evaluate_every", "patience", "likelihood_steps"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise InputError(f"{name}={getattr(self, name)} must be at least 1.")
        for name, fits, expected in (
            ("learning_rate", 0 < self.learning_rate < math.inf, "a positive number"),
            ("ema_decay", 0 <= self.ema_decay < 1, "at least 0 and below 1"),
            ("likelihood_images", self.likelihood_images >= 0, "at least 0"),
            ("rate_schedule", self.rate_schedule in ("constant", "cosine"), "'constant' or 'cosine'"),
            ("weighting", self.weighting in get_args(Weighting), f"one of {', '.join(get_args(Weighting))}"),
        ):
            if not fits:
                raise InputError(f"{name}={getattr(self, name)!r} must be {expected}.")

    def rate(self, step: int) -> float:
        """The learning rate of a step, 0 to steps − 1."""
        if self.rate_schedule == "constant":
            return self.learning_rate
        return self.learning_rate * 0.5 * (1 + math.cos(math.pi * step / self.steps))


@dataclass(frozen=True)
class HeadPoint:
    """One entry of the curve, all of the averaged weights.

    Attributes:
        step: optimiser steps done.
        train, held_out: loss on at most 512 images each, always the same noise.
        bits_per_dim: bound on the held-out images (see `HeadTraining`); of a density where the data have no range.
    """

    step: int
    train: float
    held_out: float
    bits_per_dim: float


@dataclass
class HeadResult:
    """The trained head and what its losses were.

    Attributes:
        head: with averaged weights; with `patience` those of the lowest held-out loss.
        curve: see `HeadPoint`.
        seconds: spent training.
        stopped_early: whether `patience` ran out.
    """

    head: Head
    curve: list[HeadPoint] = field(default_factory=list)
    seconds: float = 0.0
    stopped_early: bool = False


def train_head(
    denoiser: Denoiser,
    table: VarianceTable,
    images: Any,
    settings: HeadTraining,
    spec: HeadSpec | None = None,
    *,
    held_out: Any = None,
    conditions: Any = None,
    held_out_conditions: Any = None,
    checkpoint: str | Path | None = None,
    checkpoint_seconds: float = 60.0,
    progress: bool = True,
) -> HeadResult:
    """Train a head on a frozen network's features, on the network's device and in as many processes as there are.

    Args:
        denoiser: the pretrained model; its weights are not changed.
        table: of the same model, covering the indices that the head is trained at.
        images: Dataset, tensor or array of (C, H, W): uint8, or floats in the data range.
        spec: which head; None: `HeadSpec()`, NPR with a simple head.
        held_out: images that are neither trained on nor part of the table, for the curve and `patience`; or None.
        conditions, held_out_conditions: None, one per image, or a `Conditions`; for conditional models.
        checkpoint: file to continue from if it exists; written every `checkpoint_seconds`, on Ctrl-C and at the end,
            where it is left: a result not yet saved is not lost.

    Raises InputError for what does not fit together and for a checkpoint of another run; NumericalError, naming the
    step, where the loss is not finite (the checkpoint then holds the last good state).
    """
    spec = spec or HeadSpec()
    if settings.patience is not None and held_out is None:
        raise InputError("patience stops by the loss on held-out images, but there are none; pass held_out=.")
    if settings.weighting == "likelihood" and spec.target in ("sn", "ocm"):
        raise no_likelihood(spec.target)
    table.check(denoiser)
    sources = [_source(images, conditions, denoiser, "images")]
    if held_out is not None:
        sources.append(_source(held_out, held_out_conditions, denoiser, "held_out"))
    with _frozen(denoiser):
        run = HeadRun(_new_head(denoiser, table, spec, settings.seed, sources[0]), denoiser, sources, settings)
        stopped = run.finish(None if checkpoint is None else Path(checkpoint), checkpoint_seconds, progress)
    curve = [HeadPoint(int(step), *values) for step, *values in run.curve]
    head = run.result()
    head.training = _record(settings, curve, run.state.step, stopped)
    return HeadResult(head, curve, run.state.seconds, stopped)


def _source(images: Any, conditions: Any, denoiser: Denoiser, name: str) -> tuple[FixedImages, Conditions | None]:
    """Images and their conditions; looked through once, so that a bad image does not end a long run."""
    source = FixedImages(images, denoiser.shape, denoiser.data_range)
    given = as_conditions(conditions, len(source))
    if given is None and (denoiser.conditional or denoiser.guidance is not None):
        raise InputError(f"this model is conditional, but {name} have no conditions; pass their labels or embeddings.")
    if given is not None and denoiser.classes is not None:
        check_classes(given.values, denoiser.classes)
    source.scan()
    return source, given


def _new_head(
    denoiser: Denoiser, table: VarianceTable, spec: HeadSpec, seed: int, source: tuple[FixedImages, Conditions | None]
) -> Head:
    """An untrained head that fits the trunk's features, its weights from the seed alone."""
    images, conditions = source
    x = images.take(torch.zeros(1, dtype=torch.int64).numpy()).to(denoiser.device)
    condition = None if conditions is None else conditions.values[:1].to(denoiser.device)
    with torch.no_grad():
        features = denoiser.with_features(spec.module)(x, int(table.indices[-1]), condition).features
    assert features is not None
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        network = HeadNetwork(spec.kind, features.shape[1:], denoiser.shape, zero=spec.output == "ratio")
    head = Head(network.to(denoiser.device), table, spec)
    head.prior.refuse_guided(denoiser)
    return head


@contextmanager
def _frozen(denoiser: Denoiser) -> Iterator[None]:
    """The network's weights without gradients, and as they were afterwards."""
    network = denoiser.network
    trained = [p for p in network.parameters() if p.requires_grad] if isinstance(network, torch.nn.Module) else []
    for parameter in trained:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in trained:
            parameter.requires_grad_(True)


def _record(settings: HeadTraining, curve: list[HeadPoint], steps: int, stopped: bool) -> dict[str, Any]:
    """What a head's file says of its training."""
    last = None if not curve else {k: v for k, v in vars(curve[-1]).items() if v == v}  # JSON knows no nan
    return {**copy.copy(vars(settings)), "steps_done": steps, "stopped_early": stopped, "last": last}
