"""The loop of every training: steps, looks at the loss, points of the curve, and where it was interrupted.

Every random number of a run comes from (seed, purpose, step), so that a run that is continued is the uninterrupted one.
Each process takes its share of the step's one batch and averages its gradients with the others'
(DistributedDataParallel), so that a run does not depend on their number, rounding apart. Processes meet where they look
at the loss, and there alone they stop or save, at one step. The checkpoint is written by the first process, only after
a look at the loss has found it finite; it is left in place at the end, so that a result not yet saved is not lost.
"""

from __future__ import annotations

import time
from datetime import timedelta
from pathlib import Path
from typing import Any, Protocol

import torch

from .. import checks, launch
from ..parallel import team
from ..progress import progress_bar
from ..resume import Checkpoint
from ..stopping import Stopped
from .interruption import Interruption
from .state import FORM, TrainingState
from .trackers import Trackers

CHECK_EVERY = 20  # most steps between looks at the loss: each look waits for the device
MEET_EVERY = 1.0  # seconds between them where processes meet in them, if steps take that long


class Run(Protocol):
    """What is trained, between two steps.

    Attributes: `state`; `names`, of the numbers of a point of the curve.
    """

    state: TrainingState
    names: tuple[str, ...]

    def step(self) -> None:
        """One optimiser step."""

    def refuse_nan(self) -> None:
        """Look at the losses since the last look, of all processes alike; NumericalError where one is not finite."""

    def evaluate(self) -> str:
        """Add a point to the curve, the same in every process; a word on it for the progress bar."""

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
    with checkpoint:
        if team().first and trackers.wanted:
            trackers.begin(_accelerator())
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
    state, processes = run.state, team()
    with checkpoint.restoring() as saved:
        if saved is not None:
            state.continue_from(*saved)
    begun, earlier = time.monotonic(), state.seconds
    bar = progress_bar(steps, title, "step", progress, initial=state.step)

    def save() -> None:
        state.seconds = earlier + time.monotonic() - begun
        if processes.first:
            checkpoint.save(state.kept())

    def lacks_point() -> bool:
        wanted = state.step == steps or (state.step % evaluate_every == 0 and state.step > 0)
        return wanted and not (state.curve and state.curve[-1][0] == state.step)

    def add_point() -> None:
        try:
            bar.set_postfix_str(run.evaluate())
        except Stopped:  # of processes that share an evaluation; the run that goes on makes the point
            save()
            raise
        trackers.log(dict(zip(run.names, state.curve[-1][1:], strict=True)), state.step)

    with Interruption() as interruption, bar:
        if lacks_point():
            add_point()
        look_at, looked, looked_at = state.step + 1, time.monotonic(), state.step
        while state.step < steps and not run.is_content():
            with checkpoint.naming():
                run.step()
            pressing = processes.count == 1 and (interruption.asked or checkpoint.due())
            if lacks_point() or pressing or state.step == look_at:
                run.refuse_nan()
                pace = (state.step - looked_at) / max(time.monotonic() - looked, 1e-9)
                due, pause = processes.first_alone(lambda: (checkpoint.due(), _pause(pace)))  # noqa: B023
                looked, looked_at, look_at = time.monotonic(), state.step, state.step + pause
                stop = interruption.stop or processes.stop
                if lacks_point():
                    add_point()
                    due = True
                if due or stop is not None:
                    save()
                if stop is not None:
                    raise stop
            bar.update(int(processes.first))  # all take the same step
    return state.step < steps


def _pause(pace: float) -> int:
    """Steps until the next look, at so many steps a second."""
    return max(1, min(CHECK_EVERY, int(pace * MEET_EVERY)))


def own_device() -> torch.device:
    """The device that Accelerate finds for this process."""
    if launch.expected() == 1 or launch.is_joined():
        return torch.device(_accelerator().device)
    here = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    return torch.device("cpu") if here is None else torch.device(here.type, launch.local_rank()[0])


def _accelerator() -> Any:
    """Accelerate's, of this process. Its settings (a file, the environment) must not add their precision to a run's."""
    from accelerate import Accelerator

    checks.refuse(
        launch.expected() > 1 and not launch.is_joined(),
        "report_to= needs Accelerate, which would wait for all processes of this program, but this one trains alone; "
        "leave it out.",
    )
    return Accelerator(mixed_precision="no")


def averaging(network: torch.nn.Module, device: torch.device) -> torch.nn.Module:
    """The network, in a form whose gradients are the mean of all processes'."""
    processes = team()
    if processes.count == 1:
        return network
    from torch import distributed
    from torch.nn.parallel import DistributedDataParallel

    with processes.waiting():  # a network on the CPU needs gloo, whatever the program's other groups are of
        gloo = device.type == "cpu"
        group = distributed.new_group(backend="gloo", timeout=timedelta(seconds=launch.timeout())) if gloo else None
        return DistributedDataParallel(network, process_group=group)


def checkpoint_of(path: Path | None, identity: dict[str, Any], seconds: float) -> Checkpoint:
    """The checkpoint of a training run; `path` None: none is kept."""
    return Checkpoint(path, FORM, identity, seconds)


def share_of(batch_size: int, processes: int, process: int) -> slice:
    """The rows of a batch that a process takes; InputError for a batch that does not divide."""
    wrong = bool(batch_size % processes)
    checks.refuse(wrong, f"batch_size={batch_size} does not divide among {processes} processes; choose a multiple.")
    size = batch_size // processes
    return slice(process * size, (process + 1) * size)
