"""The moving parts of training a head: draws, losses, the curve, and where it was interrupted."""

from __future__ import annotations

import copy
import math
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from tqdm import tqdm

from ..covariance.head import Head
from ..covariance.head_targets import Draw
from ..data.fixed_images import FixedImages
from ..errors import NumericalError
from ..likelihood.bound import bits_per_dim, density_bound
from ..models.conditions import Conditions
from ..models.denoiser import Denoiser
from ..models.identity import conventions
from ..models.posterior import Posterior
from ..process.kernel import noise_floor
from ..process.schedule import NoiseSchedule
from ..randomness import generator, normal
from .interruption import Interruption
from .loss import spread
from .state import TrainingState
from .unet import CHECK_EVERY, processes, share_of

if TYPE_CHECKING:
    from .head import HeadTraining

EVALUATION_IMAGES = 512
Source = tuple[FixedImages, Conditions | None]
IntArray = np.ndarray[Any, np.dtype[np.int64]]


def random_floors(schedule: NoiseSchedule, n: IntArray, stream: np.random.Generator) -> torch.Tensor:
    """λ²/γ² of a step down from each index, (B, 1, 1, 1) float32: its length is log-uniform in 1…N, so that fine and
    coarse trajectories count alike, and it ends at 1, for the step to 0 is the decoder's."""
    length = np.round(schedule.num_steps ** stream.random(len(n))).astype(np.int64)
    s = np.maximum(n - np.maximum(length, 1), np.minimum(n - 1, 1))
    return torch.from_numpy(noise_floor(schedule.log_snr[n], schedule.log_snr[s])).float()[:, None, None, None]


class HeadRun:
    """One training run.

    Args:
        head: whose network is trained, in place.
        denoiser: the frozen trunk.
        sources: the images to train on and, if there are any, held-out ones.
        settings: see `HeadTraining`.

    Attribute `curve`: (step, training loss, held-out loss, bits/dim), nan where there is none.
    """

    def __init__(self, head: Head, denoiser: Denoiser, sources: list[Source], settings: HeadTraining) -> None:
        from accelerate import Accelerator
        from diffusers.training_utils import EMAModel

        self.head, self.sources, self.settings = head, sources, settings
        self.denoiser = head.prepare(denoiser)
        processes()
        # The trunk's precision is the denoiser's autocast; Accelerate's own settings must not add theirs.
        self.accelerator = Accelerator(mixed_precision="no")
        count, index = self.accelerator.num_processes, self.accelerator.process_index
        size = share_of(settings.batch_size, count)
        self.share = slice(index * size, (index + 1) * size)
        network = head.network.train()
        optimizer = torch.optim.Adam(network.parameters(), settings.learning_rate)
        average = EMAModel(network.parameters(), decay=settings.ema_decay)
        self.state = TrainingState(network, average, optimizer)
        self.network: Any = network
        if count > 1:
            self.network = torch.nn.parallel.DistributedDataParallel(network)
        self.averaged = Head(copy.deepcopy(network).eval().requires_grad_(False), head.table, head.spec)
        self.curve: list[tuple[float, ...]] = []
        self._losses: list[torch.Tensor] = []

    def identity(self) -> dict[str, Any]:
        """What a checkpoint must agree on."""
        sources = [(s.scan(), None if c is None else c.fingerprint) for s, c in self.sources]
        return {
            **vars(self.settings),
            **{f"head {key}": value for key, value in vars(self.head.spec).items()},
            "features of the trunk": list(self.head.network.features),
            "network": self.denoiser.fingerprint,
            "table": self.head.table.digest,
            "images": sources,
            **conventions(self.denoiser),
        }

    # ---- the loop ---------------------------------------------------------------------------------------------

    def finish(self, checkpoint: Path | None, checkpoint_seconds: float, progress: bool) -> bool:
        """Run to the end, from the checkpoint if it is there; whether it stopped early."""
        state, main, settings = self.state, self.accelerator.is_main_process, self.settings
        identity = {} if checkpoint is None else self.identity()
        if checkpoint is not None and checkpoint.exists():
            state.restore(checkpoint, identity)
            self.curve = [tuple(row) for row in state.extra.get("curve", torch.zeros(0, 4)).tolist()]
        begun = saved = time.monotonic()
        earlier, hidden = state.seconds, not (progress and main)
        bar = tqdm(total=settings.steps, initial=state.step, unit="step", desc="train head", disable=hidden)
        with Interruption(deferred=self.accelerator.num_processes == 1) as interruption, bar:
            while state.step < settings.steps and not self._out_of_patience():
                self.step()
                bar.update()
                last, evaluates = state.step == settings.steps, state.step % settings.evaluate_every == 0
                late = interruption.asked or time.monotonic() - saved >= checkpoint_seconds
                due = checkpoint is not None and (last or evaluates or late)
                if last or evaluates or due or state.step % CHECK_EVERY == 0:
                    self.refuse_nan()
                if last or evaluates:
                    bar.set_postfix_str(self._evaluate())
                state.seconds = earlier + time.monotonic() - begun
                if due and main and checkpoint is not None:
                    state.extra["curve"] = torch.tensor(self.curve, dtype=torch.float64).reshape(-1, 4)
                    state.save(checkpoint, identity)
                    saved = time.monotonic()
                if interruption.asked:
                    raise KeyboardInterrupt
        return state.step < settings.steps

    def _out_of_patience(self) -> bool:
        losses, patience = [row[2] for row in self.curve], self.settings.patience
        return patience is not None and len(losses) - 1 - int(np.argmin(losses or [0.0])) >= patience

    def step(self) -> None:
        """One optimiser step."""
        settings, step = self.settings, self.state.step
        for group in self.state.optimizer.param_groups:
            group["lr"] = settings.rate(step)
        self.state.optimizer.zero_grad()
        stream = generator(settings.seed, "train head", step)
        picks = stream.integers(len(self.sources[0][0]), size=settings.batch_size)
        low, high = self.head.prior.indices
        n = stream.integers(low, high + 1, size=settings.batch_size)
        rows = np.arange(settings.batch_size)[self.share]
        loss = torch.zeros((), device=self.denoiser.device)
        for part, draw, posterior in self._draws(self.sources[0], picks, n, stream, rows, settings.accumulate):
            indices = torch.from_numpy(n[part])
            raw = self.network(posterior.features, self._time(indices))
            own = self.head.target.loss(self.head.output(raw, posterior, indices), draw, settings.weighting)
            own = own * (len(part) / len(rows))
            own.backward()  # type: ignore[no-untyped-call,unused-ignore]
            loss = loss + own.detach()
        self.state.optimizer.step()
        self.state.average.step(self.state.network.parameters())
        self.state.step += 1
        self._losses.append(loss)

    def _time(self, indices: torch.Tensor) -> torch.Tensor:
        return self.head.time(indices, self.denoiser.device)

    def _draws(
        self, source: Source, picks: IntArray, n: IntArray, stream: np.random.Generator, rows: IntArray, parts: int
    ) -> Any:
        """(rows, draw, posterior) of some rows of a batch, in parts; noise is drawn for all of it, so that parts fit
        together whatever the number of processes."""
        images, conditions = source
        eps = normal(stream, len(picks), *self.denoiser.shape)
        probe = torch.from_numpy(stream.integers(0, 2, eps.shape, dtype=np.int8)).float() * 2 - 1
        chosen = None if conditions is None else conditions.pick(picks, stream)
        floor = random_floors(self.denoiser.schedule, n, stream)
        for part in np.array_split(rows, min(parts, len(rows))):
            x_0 = images.take(picks[part])
            condition = None if chosen is None or conditions is None else conditions.take(chosen[part])
            indices = torch.from_numpy(n[part])
            yield (part, *self._draw(x_0, eps[part], probe[part], indices, floor[part], condition))

    def _draw(
        self,
        x_0: torch.Tensor,
        eps: torch.Tensor,
        probe: torch.Tensor,
        n: torch.Tensor,
        floor: torch.Tensor,
        condition: Any,
    ) -> tuple[Draw, Posterior]:
        """Noisy images, and the trunk's posterior without a graph."""
        device, target = self.denoiser.device, self.head.target
        x_0, eps, probe = x_0.to(device), eps.to(device), probe.to(device)
        condition = None if condition is None else condition.to(device)
        alpha, sigma = self.denoiser.coefficients(n, x_0)
        x_t = alpha * x_0 + sigma * eps
        product = None
        with torch.set_grad_enabled(target.needs_probe):
            x_t = x_t.requires_grad_(target.needs_probe)
            posterior = self.denoiser(x_t, n, condition)
            if target.needs_probe:
                product = probe, torch.autograd.grad((posterior.eps * probe).sum(), x_t)[0]
        posterior = posterior.detached()
        prior = self.head.prior
        g, gap, v = (level.to(device) for level in (prior.at(n)[0], prior.gap(n), prior.variances(n)))
        return Draw(x_0, eps, posterior, sigma, g, gap, v, floor.to(device), product), posterior

    def refuse_nan(self) -> None:
        """Look at the losses since the last look, of all processes alike."""
        losses = self.accelerator.gather(torch.stack(self._losses)[None]) if self._losses else torch.zeros(1, 0)
        bad = (~torch.isfinite(losses)).any(0).nonzero()
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

    def _evaluate(self) -> str:
        """Add an entry to the curve; a word on it for the progress bar."""
        head = self._average()
        losses = [self._loss(head, source) for source in self.sources] + [math.nan]
        entry = (float(self.state.step), losses[0], losses[1], self._bits(head))
        held_out = [row[2] for row in self.curve]
        if self.settings.patience is not None and entry[2] <= min(held_out, default=math.inf):
            best = {f"best.{i:03d}": p.detach().clone() for i, p in enumerate(head.network.parameters())}
            self.state.extra.update(best)
        self.curve.append(entry)
        names = ("train", "held_out", "bits_per_dim")
        return ", ".join(f"{k}={v:.4g}" for k, v in zip(names, entry[1:], strict=True) if not math.isnan(v))

    @torch.no_grad()
    def _loss(self, head: Head, source: Source) -> float:
        """The loss with fixed noise and indices spread evenly: comparable between steps and runs."""
        picks = np.array(spread(len(source[0]), EVALUATION_IMAGES))
        stream = generator(0, "head evaluation")
        low, high = head.prior.indices
        n = low + (np.arange(len(picks)) * (high - low + 1)) // len(picks)
        n = stream.permutation(n)
        total, rows = 0.0, np.arange(len(picks))
        parts = math.ceil(len(rows) / max(1, self.settings.batch_size // self.settings.accumulate))
        for part, draw, posterior in self._draws(source, picks, n, stream, rows, parts):
            indices = torch.from_numpy(n[part])
            predicted = head.output(head.network(posterior.features, self._time(indices)), posterior, indices)
            total += float(head.target.loss(predicted, draw, self.settings.weighting)) * len(part)
        return total / len(picks)

    def _bits(self, head: Head) -> float:
        count = min(self.settings.likelihood_images, 0 if len(self.sources) < 2 else len(self.sources[1][0]))
        if count == 0:
            return math.nan
        images, conditions = self.sources[1]
        chosen = np.array(spread(len(images), count))
        given = None if conditions is None else conditions.part(chosen)
        steps = min(self.settings.likelihood_steps, head.table.schedule.num_steps)
        bound = density_bound if self.denoiser.data_range is None or not images.quantised else bits_per_dim
        return float(bound(self.denoiser, head, images.take(chosen), steps, conditions=given))
