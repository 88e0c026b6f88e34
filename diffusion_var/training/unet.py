"""Training a UNet of ε, of velocities or of a flow by the simple loss (see `loss`), one of ε also with a learned range
by the hybrid loss (`hybrid_loss`), or together with a head (`joint`).

The weights that are returned are the exponential moving average of those that were trained. Every random number comes
from (seed, purpose, step), so that a run can be repeated, and continued exactly from a checkpoint; dropout's come from
a forked, seeded global generator. Each process of several takes its share of the step's one batch, so that a run does
not depend on their number, dropout and rounding apart.
"""

from __future__ import annotations

import copy
import hashlib
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch

from .. import checks
from ..covariance.head_targets import PUBLISHED_TARGETS, Target
from ..data.containers import by_position
from ..errors import NumericalError
from ..models.heads import HeadKind, HeadNetwork
from ..models.network_use import keeping_modes
from ..models.prediction import TrainedPrediction, check_prediction
from ..parallel import sharing, team
from ..process.schedule import NoiseSchedule
from ..randomness import generator
from .hybrid_loss import hybrid_loss, levels_held, step_coefficients
from .joint import JointNetwork, joint_loss, joint_losses
from .loop import averaging, checkpoint_of, own_device, share_of, train
from .loss import evaluation_loss, float_images, simple_loss, spread
from .state import TrainingState
from .trackers import Trackers

EVALUATION_IMAGES = 1024
FINGERPRINT_IMAGES = 16


@dataclass(frozen=True)
class UNetTraining:
    """How to train; all of it decides the result.

    Attributes:
        steps: optimiser steps.
        batch_size: images a step, over all processes together.
        learning_rate: reached after `warmup_steps`, then lowered to zero along a cosine.
        ema_decay: of the moving average, warmed up by diffusers' rule for short runs.
        mixed_precision: dtype of the forward pass.
        flip: mirror half of the images left to right.
        evaluate_every: steps between entries of the loss curve, which is of the simple loss.
        prediction: what the network learns to return, "epsilon", "v_prediction" or "flow"; see `models.prediction`.
        learned_range: the network has 2C channels and learns the range of its variances too.
        head: target of a head that is trained together with the network, "npr", "sn" or "ocm" (see `joint`), or None.
        head_kind: its size, see `HeadNetwork`.
        head_weight: of its loss beside the simple loss.
        head_gradient: whether its loss trains the network too.
        head_features: module whose input it reads; None: found for diffusers UNets.
    """

    steps: int
    batch_size: int = 256
    learning_rate: float = 1e-3
    warmup_steps: int = 200
    weight_decay: float = 1e-4
    ema_decay: float = 0.999
    mixed_precision: str = "no"
    flip: bool = False
    evaluate_every: int = 500
    seed: int = 0
    prediction: TrainedPrediction = "epsilon"
    learned_range: bool = False
    head: str | None = None
    head_kind: HeadKind = "simple"
    head_weight: float = 1.0
    head_gradient: bool = True
    head_features: str | None = None

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "warmup_steps", "evaluate_every"):
            checks.whole(name, getattr(self, name), least=1)
        checks.positive("learning_rate", self.learning_rate)
        checks.number("weight_decay", self.weight_decay, "0 or a positive number", least=0.0)
        below_1 = math.nextafter(1.0, 0.0)
        checks.number("ema_decay", self.ema_decay, "at least 0 and below 1", least=0.0, most=below_1)
        wrong = self.mixed_precision not in ("no", "bf16")
        checks.refuse(wrong, f'mixed_precision is {self.mixed_precision!r}; expected "no" or "bf16".')
        checks.one_of("prediction", self.prediction, get_args(TrainedPrediction))
        if self.prediction != "epsilon":
            extra = "learned_range" if self.learned_range else "head" if self.head is not None else None
            only = f"{extra} is trained with epsilon only, but prediction is {self.prediction}; leave one of them out."
            checks.refuse(extra is not None, only)
        checks.positive("head_weight", self.head_weight)
        if self.head is not None:
            checks.one_of("head", self.head, tuple(PUBLISHED_TARGETS))
            checks.one_of("head_kind", self.head_kind, get_args(HeadKind))
            checks.refuse(self.learned_range, "learned_range and head are two covariances; leave one of them out.")

    def rate(self, step: int) -> float:
        """The learning rate of a step, 0 to steps − 1."""
        warmup = min(1.0, (step + 1) / self.warmup_steps)
        return self.learning_rate * warmup * 0.5 * (1 + math.cos(math.pi * step / self.steps))


@dataclass
class TrainingResult:
    """The averaged network and what its losses were.

    Attributes:
        network: the network with averaged weights, in evaluation mode.
        curve: (step, training loss, held-out loss) at the evaluation points, both the simple loss (of a learned range's
            first C channels too) of the averaged network, on at most 1,024 images each.
        seconds: spent training.
        head: the averaged head that was trained with it; with a table of this network it makes a
            `Head(head, table, HeadSpec(target, kind, output="papers"))`.
        head_curve: as `curve`, of the head's loss.
    """

    network: torch.nn.Module
    curve: list[tuple[int, float, float]] = field(default_factory=list)
    seconds: float = 0.0
    head: HeadNetwork | None = None
    head_curve: list[tuple[int, float, float]] = field(default_factory=list)


def train_unet(
    network: torch.nn.Module,
    images: Any,
    schedule: NoiseSchedule,
    settings: UNetTraining,
    *,
    held_out: Any = None,
    checkpoint: Path | None = None,
    checkpoint_seconds: float = 60.0,
    progress: bool = True,
    report_to: Any = None,
    logs: str | Path | None = None,
) -> TrainingResult:
    """Train a diffusers UNet, on the device that Accelerate finds and in as many processes as there are.

    Args:
        network: called as network(x_t, timestep).sample, C channels, or 2C for a learned range; trained in place.
        images: as for `estimate`, of (C, H, W): uint8 (scaled to [-1, 1]) or floats in the data range.
        held_out: images to report a loss on, or None.
        checkpoint: file to continue from if it exists; written every `checkpoint_seconds`, on Ctrl-C and at the end,
            where it is left: a result not yet saved is not lost.
        report_to: where the points of the curve are reported to as well, "tensorboard", "wandb", "trackio" or another
            tracker of Accelerate's, one of them or a list; None: nowhere.
        logs: folder for what trackers write; None: ./logs.

    Raises InputError for unusable arguments and for a checkpoint of another run, NumericalError where the loss is not
    finite.
    """
    with sharing("train_unet") as processes:
        trackers = Trackers(report_to, logs, vars(settings))
        check_prediction(settings.prediction, schedule)
        images = by_position(images)
        held_out = None if held_out is None else by_position(held_out, "held_out")
        checks.refuse(len(images) == 0, "there are no images to train on; pass at least one.")
        with keeping_modes(network):
            run = _Run(network, images, held_out, schedule, settings)
            processes.agree(run.identity, "train_unet")
            kept = checkpoint_of(checkpoint, run.identity, checkpoint_seconds)
            with torch.random.fork_rng(devices=_cuda(run.device)):
                train(run, settings.steps, settings.evaluate_every, kept, "train", progress, trackers)
        curve = [(int(step), losses[0], losses[1]) for step, *losses in run.state.curve]
        averaged = run.averaged()
        if not isinstance(averaged, JointNetwork):
            return TrainingResult(averaged, curve, run.state.seconds)
        of_head = [(int(step), losses[2], losses[3]) for step, *losses in run.state.curve]
        return TrainingResult(averaged.trunk, curve, run.state.seconds, averaged.head, of_head)


class _Run:
    """The moving parts of one training run."""

    def __init__(
        self, network: torch.nn.Module, images: Any, held_out: Any, schedule: NoiseSchedule, settings: UNetTraining
    ) -> None:
        from diffusers.training_utils import EMAModel

        self.images, self.held_out, self.schedule, self.settings = images, held_out, schedule, settings
        self.device = own_device()
        self.team = team()
        self.share = share_of(settings.batch_size, self.team.count, self.team.rank)
        pixels = float_images(images, spread(len(images), FINGERPRINT_IMAGES))
        wrong = pixels.ndim != 4
        checks.refuse(wrong, f"an image has shape {tuple(pixels.shape[1:])}; expected (C, H, W): reshape the images.")
        self.simple_loss: Callable[..., torch.Tensor] = partial(simple_loss, prediction=settings.prediction)
        self.loss = self.simple_loss
        if settings.learned_range:
            self.loss = partial(hybrid_loss, coefficients=step_coefficients(schedule), levels=levels_held(pixels))
        network.to(self.device)
        self.names: tuple[str, ...] = ("train_loss", "held_out_loss")
        #: Whose gradients are clipped, each for itself: a head must not change the steps of the network.
        self.parts = [network]
        groups: int | None = None
        if settings.head is not None:
            options: dict[str, Any] = {"module": settings.head_features, "gradient": settings.head_gradient}
            shape = tuple(pixels.shape[1:])
            network = JointNetwork(network, settings.head, settings.head_kind, shape, settings.seed, **options)
            self.parts.append(network.head)
            self.names += ("head_loss", "held_out_head_loss")
            groups = network.head.stated_groups
            self.loss = partial(_joint, weight=settings.head_weight, target=network.target)
        network.train()
        optimizer = torch.optim.AdamW(network.parameters(), settings.learning_rate, weight_decay=settings.weight_decay)
        self.state = TrainingState(network, EMAModel(network.parameters(), decay=settings.ema_decay), optimizer)
        self.network, self.optimizer = averaging(network, self.device), optimizer
        self.identity = {
            **{k: v for k, v in vars(settings).items() if settings.head is not None or not k.startswith("head")},
            # The checkpoints of before there was a prediction have no entry of it, and are of ε.
            "schedule": schedule.digest + ("" if settings.prediction == "epsilon" else f" ({settings.prediction})"),
            "images": len(images),
            "fingerprint of the images": _fingerprint(pixels),
            **({} if groups is None else {"groups of the head": groups}),
            **{f"unet.{name}": value for name, value in getattr(network, "config", {}).items() if name[0] != "_"},
        }
        self.dtype = torch.bfloat16 if settings.mixed_precision == "bf16" else None
        self._average = copy.deepcopy(network).eval().requires_grad_(False)
        self._recent = torch.zeros((), device=self.device)

    def step(self) -> None:
        """One optimiser step."""
        settings, step = self.settings, self.state.step
        # Processes must not drop the same units, so each has a seed of its own.
        _seed(self.device, int(generator(settings.seed, "train unet dropout", step, self.share.start).integers(2**63)))
        stream = generator(settings.seed, "train unet", step)
        x_0 = self._batch(stream)
        with torch.autocast(self.device.type, dtype=self.dtype, enabled=self.dtype is not None):
            loss = self.loss(self.network, x_0, self.schedule, stream, share=self.share)
        for group in self.optimizer.param_groups:
            group["lr"] = settings.rate(step)
        self.optimizer.zero_grad()
        with self.team.waiting():
            loss.backward()  # type: ignore[no-untyped-call,unused-ignore]
        for part in self.parts:
            torch.nn.utils.clip_grad_norm_(part.parameters(), 1.0)
        self.optimizer.step()
        self.state.average.step(self.state.network.parameters())
        self.state.step += 1
        self._recent = self._recent + loss.detach()

    def _batch(self, stream: np.random.Generator) -> torch.Tensor:
        """The images of a step, of which this process decodes its share only."""
        size = self.settings.batch_size
        picks = stream.integers(len(self.images), size=size)
        flips = stream.random(size) < 0.5 if self.settings.flip else np.zeros(size, dtype=bool)
        own = float_images(self.images, picks[self.share])
        own[flips[self.share]] = own[flips[self.share]].flip(-1)
        x_0 = own.new_zeros(size, *own.shape[1:])
        x_0[self.share] = own
        return x_0

    def refuse_nan(self) -> None:
        """Look at the losses since the last look, of all processes alike."""
        recent = sum(theirs for _, theirs in self.team.gather({}, float(self._recent)))
        if not math.isfinite(recent):
            raise NumericalError(
                f"the training loss became {recent} at or before step {self.state.step - 1}; lower the learning rate."
            )
        self._recent = torch.zeros_like(self._recent)

    def averaged(self) -> torch.nn.Module:
        """The network with averaged weights, in evaluation mode."""
        self.state.average.copy_to(self._average.parameters())
        for average, value in zip(self._average.buffers(), self.state.network.buffers(), strict=True):
            average.copy_(value)
        return self._average

    def evaluate(self) -> str:
        """Add the averaged network's training and held-out losses to the curve."""
        losses = self.team.first_alone(self._losses)
        self.state.curve.append((float(self.state.step), *losses))
        of_head = f", head={losses[2]:.4f}" if len(losses) > 2 else ""
        return f"train={losses[0]:.4f}, held_out={losses[1]:.4f}{of_head}"

    def _losses(self) -> list[float]:
        """Of the averaged network: in training and held out, of the simple loss and of a head's, if there is one."""
        network, losses = self.averaged(), []
        measured: list[Callable[..., torch.Tensor]] = [self.simple_loss]
        if isinstance(network, JointNetwork):
            measured.append(partial(_of_head, target=network.target))
        for loss in measured:
            for images in (self.images, self.held_out):
                if images is None or len(images) == 0:
                    losses.append(math.nan)
                    continue
                chosen = float_images(images, spread(len(images), EVALUATION_IMAGES))
                with torch.autocast(self.device.type, dtype=self.dtype, enabled=self.dtype is not None):
                    losses.append(evaluation_loss(network, chosen, self.schedule, loss=loss))
        return losses

    def is_content(self) -> bool:
        return False


def _joint(*given: Any, weight: float, target: Target, **options: Any) -> torch.Tensor:
    return joint_loss(weight, *joint_losses(*given, target=target, **options))


def _of_head(*given: Any, target: Target) -> torch.Tensor:
    return joint_losses(*given, target=target)[1]


def _seed(device: torch.device, seed: int) -> None:
    """Seed the generators that dropout draws from, and no others (`torch.manual_seed` seeds those of every device)."""
    torch.default_generator.manual_seed(seed)
    if device.type != "cpu":
        torch.get_device_module(device).manual_seed(seed)


def _fingerprint(pixels: torch.Tensor) -> str:
    """A short hash of a few images: enough to tell one data set from another."""
    return hashlib.sha256(str(tuple(pixels.shape)).encode() + pixels.cpu().numpy().tobytes()).hexdigest()[:16]


def _cuda(device: torch.device) -> list[torch.device]:
    return [device] if device.type == "cuda" else []
