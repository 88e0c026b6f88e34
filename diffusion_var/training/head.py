"""Training a covariance head on a frozen trunk (targets: see `covariance.head_targets`; the loop is `loop`).

One evaluation of the trunk a draw gives the mean and the features; no graph is kept through it. The target ocm alone
differentiates through the trunk, one vector-Jacobian product a draw: it costs about two more evaluations of the trunk
in time, and the memory of its activations for one batch. The optimiser is Adam, what is kept is an exponential moving
average (warmed up by diffusers' rule, so that short runs are not averages of their beginning).
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch

from .. import checks
from ..covariance.head import Head
from ..covariance.head_spec import HeadSpec
from ..covariance.head_targets import HeadDraw, Weighting, no_likelihood
from ..errors import NumericalError
from ..files import expanded
from ..likelihood.bound import bits_per_dim, density_bound
from ..models.denoiser import Denoiser, check_denoiser
from ..models.pooled_head import PooledHead
from ..models.posterior import Posterior
from ..parallel import beat, sharing, team
from ..randomness import generator
from ..variance.table import VarianceTable
from .head_draws import HeadDraws, IntArray, Source
from .loop import averaging, checkpoint_of, share_of, train
from .loss import spread
from .state import TrainingState
from .trackers import Trackers

EVALUATION_IMAGES = 512
#: Which part of a batch, its indices, and its draws.
_Part = tuple[int, IntArray, HeadDraw, Posterior]


@dataclass(frozen=True)
class HeadTraining:
    """How to train; all of it decides the result.

    Attributes:
        steps: optimiser steps.
        batch_size: images a step, over all processes together.
        learning_rate, rate_schedule: of Adam; constant, or lowered to zero along a cosine.
        ema_decay: of the moving average of the weights, which is what is kept.
        weighting: what the loss lets count, "table", "likelihood" (npr, factor and bands) or "papers"; see
            `covariance.head_targets`.
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
        for name in ("steps", "batch_size", "accumulate", "evaluate_every", "likelihood_steps"):
            checks.whole(name, getattr(self, name), least=1)
        if self.patience is not None:
            checks.whole("patience", self.patience, least=1)
        checks.positive("learning_rate", self.learning_rate)
        below_1 = math.nextafter(1.0, 0.0)
        checks.number("ema_decay", self.ema_decay, "at least 0 and below 1", least=0.0, most=below_1)
        checks.whole("likelihood_images", self.likelihood_images, least=0)
        checks.one_of("rate_schedule", self.rate_schedule, ("constant", "cosine"))
        checks.one_of("weighting", self.weighting, get_args(Weighting))

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
    report_to: Any = None,
    logs: str | Path | None = None,
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
        report_to: where the points of the curve are reported to as well, "tensorboard", "wandb", "trackio" or another
            tracker of Accelerate's, one of them or a list; None: nowhere.
        logs: folder for what trackers write; None: ./logs.

    Raises InputError for what does not fit together and for a checkpoint of another run; NumericalError, naming the
    step, where the loss is not finite (the checkpoint then holds the last good state).
    """
    check_denoiser(denoiser, "train_head")
    with sharing("train_head") as processes:
        spec = HeadSpec() if spec is None else spec
        trackers = Trackers(report_to, logs, {**vars(spec), **vars(settings)})
        alone = settings.patience is not None and held_out is None
        checks.refuse(alone, "patience stops by the loss on held-out images, but there are none; pass held_out=.")
        if settings.weighting == "likelihood" and spec.target in ("sn", "ocm"):
            raise no_likelihood(spec.target)
        checks.refuse(
            settings.weighting == "likelihood" and spec.output == "papers",
            "output='papers' may be negative while it is trained, so that it has no likelihood; use weighting='table' "
            "or 'papers', or output='ratio'.",
        )
        checks.refuse(
            spec.output == "bounded",
            "output='bounded' is of heads from earlier files, and no new ones are trained; use 'ratio' or 'papers'.",
        )
        table.check(denoiser)
        sources = [Source.of(images, conditions, denoiser, "images")]
        if held_out is not None:
            sources.append(Source.of(held_out, held_out_conditions, denoiser, "held_out"))
        path = None if checkpoint is None else expanded(checkpoint)
        with _frozen(denoiser):
            run = HeadRun(new_head(denoiser, table, spec, settings.seed, sources[0]), denoiser, sources, settings)
            identity = {} if path is None and processes.count == 1 else run.identity()
            processes.agree(identity, "train_head")
            kept = checkpoint_of(path, identity, checkpoint_seconds)
            with run.draws.run:
                stopped = train(run, settings.steps, settings.evaluate_every, kept, "train head", progress, trackers)
        curve = [HeadPoint(int(step), *values) for step, *values in run.state.curve]
        head = run.result()
        head.training = _record(settings, curve, run.state.step, stopped)
        return HeadResult(head, curve, run.state.seconds, stopped)


class HeadRun:
    """The moving parts of one training run.

    Args:
        head: whose network is trained, in place.
        denoiser: the frozen trunk.
        sources: the images to train on and, if there are any, held-out ones.
        settings: see `HeadTraining`.

    The state's curve is (step, training loss, held-out loss, bits/dim), nan where there is none.
    """

    names: tuple[str, ...] = ("train_loss", "held_out_loss", "bits_per_dim")

    def __init__(self, head: Head, denoiser: Denoiser, sources: list[Source], settings: HeadTraining) -> None:
        from diffusers.training_utils import EMAModel

        self.head, self.sources, self.settings = head, sources, settings
        self.denoiser = head.prepare(denoiser)
        self.draws = HeadDraws(head, self.denoiser)
        self.team = team()
        self.share = share_of(settings.batch_size, self.team.count, self.team.rank)
        if isinstance(head.network, PooledHead):
            self._standardise(head.network)
        network = head.network.train()
        optimizer = torch.optim.Adam(network.parameters(), settings.learning_rate)
        average = EMAModel(network.parameters(), decay=settings.ema_decay)
        self.state = TrainingState(network, average, optimizer)
        self.network: Any = averaging(network, self.denoiser.device)
        self.averaged = Head(copy.deepcopy(network).eval().requires_grad_(False), head.table, head.spec)
        self._losses: list[torch.Tensor] = []

    @torch.no_grad()
    def _standardise(self, network: PooledHead) -> None:
        """By the images that the curve's training loss is of; the same in every process."""
        parts, drawn = self._fixed(self.sources[0])
        with self.draws.run:
            seen = [posterior.features for _, _, _, posterior in drawn(range(len(parts)))]
            found = [network.pooled(features) for features in seen if features is not None]
        network.standardise(torch.cat(found))

    def identity(self) -> dict[str, Any]:
        """What a checkpoint must agree on."""
        return {
            **self.denoiser.identity().plain(),
            **vars(self.settings),
            **{f"head {key}": value for key, value in self.head.spec.plain().items()},
            **({"cut of the head in training": None} if self.head.spec.output == "papers" else {}),  # once there was
            **({} if (groups := self.head.network.stated_groups) is None else {"groups of the head": groups}),
            "features of the trunk": list(self.head.network.features),
            "table": self.head.table.digest,
            "images": [source.fingerprint() for source in self.sources],
        }

    def is_content(self) -> bool:
        """Whether the held-out loss has not fallen for as long as `patience` allows."""
        losses, patience = [row[2] for row in self.state.curve], self.settings.patience
        return patience is not None and len(losses) - 1 - int(np.argmin(losses or [0.0])) >= patience

    def step(self) -> None:
        """One optimiser step."""
        settings, step = self.settings, self.state.step
        for group in self.state.optimizer.param_groups:
            group["lr"] = settings.rate(step)
        self.state.optimizer.zero_grad()
        stream = generator(settings.seed, "train head", step)
        picks = stream.integers(len(self.sources[0].images), size=settings.batch_size)
        low, high = self.head.prior.indices
        n = stream.integers(low, high + 1, size=settings.batch_size)
        rows = np.arange(settings.batch_size)[self.share]
        loss = torch.zeros((), device=self.denoiser.device)
        parts = np.array_split(rows, min(settings.accumulate, len(rows)))
        for part, draw, posterior in self.draws.batch(self.sources[0], picks, n, stream, parts):
            predicted = self._predicted(self.head, self.network, posterior, n[part])
            own = self.head.target.loss(predicted, draw, settings.weighting) * (len(part) / len(rows))
            with self.team.waiting():
                own.backward()  # type: ignore[no-untyped-call,unused-ignore]
            loss = loss + own.detach()
        self.state.optimizer.step()
        self.state.average.step(self.state.network.parameters())
        self.state.step += 1
        self._losses.append(loss)

    def _predicted(self, head: Head, network: Any, posterior: Any, n: Any) -> torch.Tensor:
        """ρ of a batch, by a head's network (or its distributed form)."""
        indices = torch.from_numpy(n)
        raw = network(posterior.features, head.time(indices, len(indices), self.denoiser.device))
        return head.output(raw, posterior, indices)

    def refuse_nan(self) -> None:
        """Look at the losses since the last look, of all processes alike."""
        own = [float(loss) for loss in torch.stack(self._losses)] if self._losses else []
        losses = np.array([theirs for _, theirs in self.team.gather({}, own)])
        bad = np.flatnonzero((~np.isfinite(losses)).any(0))
        if len(bad):
            first = int(bad[0])
            step = self.state.step - losses.shape[1] + first
            raise NumericalError(
                f"the head's loss is {float(losses[:, first].mean())} at step {step}; lower the learning rate, or "
                "check the images and the trunk. The checkpoint, if there is one yet, holds the last good state."
            )
        self._losses = []

    # ---- the curve --------------------------------------------------------------------------------------------

    def result(self) -> Head:
        """The head with averaged weights; with `patience`, those of the lowest held-out loss."""
        best = [value for name, value in sorted(self.state.extra.items()) if name.startswith("best.")]
        self._average()
        for parameter, value in zip(self.averaged.network.parameters(), best, strict=False):
            parameter.copy_(value)
        return self.averaged

    def _average(self) -> Head:
        self.state.average.copy_to(self.averaged.network.parameters())
        return self.averaged

    def evaluate(self) -> str:
        """Add an entry to the curve; a word on it for the progress bar."""
        head = self._average()
        losses = [self._loss(head, source) for source in self.sources] + [math.nan]
        entry = (float(self.state.step), losses[0], losses[1], self._bits(head))
        held_out = [row[2] for row in self.state.curve]
        if self.settings.patience is not None and entry[2] <= min(held_out, default=math.inf):
            best = {f"best.{i:03d}": p.detach().clone() for i, p in enumerate(head.network.parameters())}
            self.state.extra.update(best)
        self.state.curve.append(entry)
        names = ("train", "held_out", "bits_per_dim")
        return ", ".join(f"{k}={v:.4g}" for k, v in zip(names, entry[1:], strict=True) if not math.isnan(v))

    def _fixed(self, source: Source) -> tuple[list[Any], Callable[[Iterable[int]], Iterator[_Part]]]:
        """The parts of a fixed batch, of images and indices spread evenly, and what makes some of them."""
        picks = np.array(spread(len(source.images), EVALUATION_IMAGES))
        stream = generator(0, "head evaluation")
        low, high = self.head.prior.indices
        n = low + (np.arange(len(picks)) * (high - low + 1)) // len(picks)
        n = stream.permutation(n)
        count = math.ceil(len(picks) / max(1, self.settings.batch_size // self.settings.accumulate))
        parts = np.array_split(np.arange(len(picks)), min(count, len(picks)))

        def drawn(which: Iterable[int]) -> Iterator[_Part]:
            chosen = list(which)
            batch = self.draws.batch(source, picks, n, stream, [parts[i] for i in chosen])
            for i, (part, draw, posterior) in zip(chosen, batch, strict=True):
                yield i, n[part], draw, posterior

        return parts, drawn

    @torch.no_grad()
    def _loss(self, head: Head, source: Source) -> float:
        """The loss with fixed noise: comparable between steps and runs."""
        parts, drawn = self._fixed(source)
        own = {}
        for i, n, draw, posterior in drawn(self.team.share([len(part) for part in parts])):
            predicted = self._predicted(head, head.network, posterior, n)
            own[i] = float(head.target.loss(predicted, draw, self.settings.weighting)) * len(n)
            beat()
        gathered = self.team.gather({}, list(own.items()))
        losses = {i: loss for _, theirs in gathered for i, loss in theirs}
        self.team.end_if_stopped()
        return sum((losses[i] for i in range(len(parts))), 0.0) / sum(len(part) for part in parts)

    def _bits(self, head: Head) -> float:
        count = min(self.settings.likelihood_images, 0 if len(self.sources) < 2 else len(self.sources[1].images))
        if count == 0:
            return math.nan
        images, conditions = self.sources[1].images, self.sources[1].conditions
        chosen = np.array(spread(len(images), count))
        given = None if conditions is None else conditions.part(chosen)
        steps = min(self.settings.likelihood_steps, head.table.schedule.num_steps)
        bound = density_bound if self.denoiser.data_range is None or not images.quantised else bits_per_dim
        return float(bound(self.denoiser, head, images.take(chosen), steps, conditions=given))


def new_head(denoiser: Denoiser, table: VarianceTable, spec: HeadSpec, seed: int, source: Source) -> Head:
    """An untrained head that fits the trunk's features, its weights from the seed alone."""
    x = source.images.take(np.zeros(1, dtype=np.int64)).to(denoiser.device)
    with torch.no_grad():
        trunk = denoiser.with_features(spec.module)
        features = trunk(x, int(table.indices[-1]), source.first_condition(denoiser.device)).features
    assert features is not None
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        network = spec.new_network(features.shape[1:], denoiser.shape)
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
