"""Stopped during training: the step under way is finished and kept, and the run goes on from it."""

import os
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from small_heads import denoiser, images, table
from small_training import small_unet

import diffusion_var as dv
from diffusion_var.training import HeadTraining, train_head
from diffusion_var.training.head import HeadRun
from diffusion_var.training.interruption import Interruption
from diffusion_var.training.unet import UNetTraining, _Run, train_unet

pytestmark = pytest.mark.usefixtures("usual_signals")


def head(checkpoint: Path | None) -> torch.Tensor:
    settings = HeadTraining(6, batch_size=4, learning_rate=1e-2, likelihood_images=0)
    found = train_head(
        denoiser(), table(), images(), settings, checkpoint=checkpoint, checkpoint_seconds=1e9, progress=False
    )
    return torch.cat([p.flatten() for p in found.head.network.parameters()])


def unet(checkpoint: Path | None) -> torch.Tensor:
    torch.manual_seed(0)
    found = train_unet(
        small_unet(),
        images(),
        dv.NoiseSchedule.linear(50),
        UNetTraining(steps=6, batch_size=4),
        checkpoint=checkpoint,
        checkpoint_seconds=1e9,
        progress=False,
    )
    return torch.cat([p.flatten() for p in found.network.parameters()])


@pytest.mark.parametrize(
    ("train", "run", "number"),
    [(head, HeadRun, signal.SIGINT), (unet, _Run, signal.SIGTERM), (head, HeadRun, signal.SIGHUP)],
    ids=["head", "unet", "head, SIGHUP"],
)
def test_nothing_computed_is_lost(
    train: Callable[[Path | None], torch.Tensor],
    run: Any,
    number: signal.Signals,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    whole, step, steps = train(None), run.step, []

    def interrupted(self: Any) -> None:
        steps.append(self.state.step)
        if len(steps) == 3:
            os.kill(os.getpid(), number)  # in the middle of the third step, as far as the loop can tell
        step(self)

    monkeypatch.setattr(run, "step", interrupted)
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "training.partial")
    assert steps == [0, 1, 2]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    assert [path.name for path in tmp_path.iterdir()] == ["training.partial"]
    assert torch.equal(whole, train(tmp_path / "training.partial"))
    assert steps == [0, 1, 2, 3, 4, 5]


def test_a_second_one_stops_at_once() -> None:
    with Interruption() as interruption:
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGTERM)  # a scheduler's is no second one
        assert interruption.asked
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)


def test_where_it_keeps_out() -> None:
    """Not in another thread, not where somebody else listens."""
    found: list[Any] = []

    def elsewhere() -> None:
        with Interruption():
            found.append(signal.getsignal(signal.SIGINT))

    thread = threading.Thread(target=elsewhere)
    thread.start()
    thread.join()
    assert found == [signal.default_int_handler]
    heard: list[int] = []
    before = signal.signal(signal.SIGINT, lambda number, frame: heard.append(number))
    try:
        with Interruption() as interruption:
            os.kill(os.getpid(), signal.SIGINT)
    finally:
        signal.signal(signal.SIGINT, before)
    assert heard == [signal.SIGINT]
    assert not interruption.asked
