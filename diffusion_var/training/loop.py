"""The loop of every training: steps, looks at the loss, points of the curve, and where it was interrupted.

Every random number of a run comes from (seed, purpose, step), so that a run that is continued is the uninterrupted one.
Each process of a distributed run (Accelerate) takes its share of the step's one batch, so that a run does not depend on
their number, rounding apart. The checkpoint is written by the first process, only after a look at the loss has found it
finite; it is left in place at the end, so that a result not yet saved is not lost.
"""

from __future__ import annotations

import time
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from .. import checks
from ..progress import progress_bar
from ..resume import Checkpoint
from .interruption import Interruption
from .state import FORM, TrainingState
from .trackers import Trackers

if TYPE_CHECKING:
    from accelerate import PartialState

CHECK_EVERY = 20  # steps between looks at the loss: each look waits for the device


class Run(Protocol):
    """What is trained, between two steps.

    Attributes: `state`; `accelerator`, Accelerate's, of this run; `names`, of the numbers of a point of the curve.
    """

    state: TrainingState
    accelerator: Any
    names: tuple[str, ...]

    def step(self) -> None:
        """One optimiser step."""

    def refuse_nan(self) -> None:
        """Look at the losses since the last look, of all processes alike; NumericalError where one is not finite."""

    def evaluate(self) -> str:
        """Add a point to the curve; a word on it for the progress bar. Called in every process."""

    def is_content(self) -> bool:
        """Whether it wants to stop before its last step."""


def train(
    run: Run,
    steps: int,
    evaluate_every: int,
    checkpoint: Checkpoint,
    title: str = "train",
    progress: bool = True,
    trackers: Trackers | None = None,
) -> bool:
    """Train to the last step, from the checkpoint if it holds anything; whether it stopped early.

    Ctrl-C, SIGTERM and SIGHUP finish the step under way and keep it. Raises InputError for a checkpoint of another run
    or network.
    """
    trackers = Trackers(None) if trackers is None else trackers
    with checkpoint if run.accelerator.is_main_process else nullcontext():
        trackers.begin(run.accelerator)
        try:
            return _train(run, steps, evaluate_every, checkpoint, title, progress, trackers)
        finally:
            trackers.end()


def _train(
    run: Run,
    steps: int,
    evaluate_every: int,
    checkpoint: Checkpoint,
    title: str,
    progress: bool,
    trackers: Trackers,
) -> bool:
    state = run.state
    with checkpoint.restoring() as saved:
        if saved is not None:
            state.continue_from(*saved)
    alone, main = run.accelerator.num_processes == 1, run.accelerator.is_main_process
    begun, earlier = time.monotonic(), state.seconds
    bar = progress_bar(steps, title, "step", progress and main, initial=state.step)
    with Interruption(deferred=alone) as interruption, bar:
        while state.step < steps and not run.is_content():
            with checkpoint.naming():
                run.step()
            bar.update()
            last, evaluates = state.step == steps, state.step % evaluate_every == 0
            # Processes wait for each other in a look, so that they must look at the same steps.
            looks = last or evaluates or interruption.asked or state.step % CHECK_EVERY == 0
            due = last or evaluates or interruption.asked or ((looks or alone) and checkpoint.due())
            if looks or due:
                run.refuse_nan()
            if last or evaluates:
                bar.set_postfix_str(run.evaluate())
                if main:
                    trackers.log(dict(zip(run.names, state.curve[-1][1:], strict=True)), state.step)
            state.seconds = earlier + time.monotonic() - begun
            if due and main:
                checkpoint.save(state.kept())
            if interruption.stop is not None:
                raise interruption.stop
    return state.step < steps


def checkpoint_of(path: Path | None, identity: dict[str, Any], seconds: float) -> Checkpoint:
    """The checkpoint of a training run; `path` None: none is kept."""
    return Checkpoint(path, FORM, identity, seconds)


def processes() -> PartialState:
    """The processes of this run, as torchrun started them: on GPUs or, where there are none, on the CPU (gloo)."""
    import torch
    from accelerate import PartialState

    # Without cpu=True, Accelerate takes each process on a machine without a GPU for a run of its own.
    return PartialState(cpu=not torch.accelerator.is_available())


def share_of(batch_size: int, processes: int, process: int) -> slice:
    """The rows of a batch that a process takes; InputError for a batch that does not divide."""
    wrong = bool(batch_size % processes)
    checks.refuse(wrong, f"batch_size={batch_size} does not divide among {processes} processes; choose a multiple.")
    size = batch_size // processes
    return slice(process * size, (process + 1) * size)
