"""Training in many processes: what one trains; stopped and continued by any number; how a failure of one ends all."""

import os
import signal
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from many import Many, many
from small_heads import denoiser, images, table
from small_training import small_unet

import diffusion_var as dv
from diffusion_var import parallel
from diffusion_var.stopping import Stopped
from diffusion_var.training import HeadTraining, train_head
from diffusion_var.training.head import HeadRun
from diffusion_var.training.unet import UNetTraining, _Run, train_unet

STEPS = 6


def head(checkpoint: Path | None = None, **changes: Any) -> tuple[np.ndarray, list[Any]]:
    """Weights and curve of a head; accumulated, and with a likelihood that processes share."""
    given = {"batch_size": 8, "accumulate": 2, "evaluate_every": 4, "likelihood_images": 4, "likelihood_steps": 2}
    found = train_head(
        *(denoiser(), table(), images(), HeadTraining(**{"steps": STEPS, "learning_rate": 1e-2, **given, **changes})),
        held_out=images(6),
        checkpoint=checkpoint,
        checkpoint_seconds=1e9,
        progress=False,
    )
    return flat(found.head.network), [vars(point) for point in found.curve]


def unet(checkpoint: Path | None = None) -> tuple[np.ndarray, list[Any]]:
    torch.manual_seed(0)
    found = train_unet(
        *(small_unet(), images(), dv.NoiseSchedule.linear(50), UNetTraining(STEPS, batch_size=8, evaluate_every=4)),
        checkpoint=checkpoint,
        checkpoint_seconds=1e9,
        progress=False,
    )
    return flat(found.network), [list(point) for point in found.curve]


def flat(network: torch.nn.Module) -> np.ndarray:
    return np.concatenate([p.detach().numpy().ravel() for p in network.parameters()])


TRAININGS = {"head": (head, HeadRun), "unet": (unet, _Run)}


def told_to_stop(kind: str, checkpoint: Path) -> str:
    """Rank 1 is told to stop in its third step; how it ends."""
    train, run = TRAININGS[kind]
    step, steps = run.step, []

    def disturbed(self: Any) -> None:
        steps.append(self.state.step)
        if len(steps) == 3 and parallel.team().rank == 1:
            os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0.3)
        step(self)

    run.step = disturbed  # type: ignore[method-assign]
    try:
        train(checkpoint)
    except Stopped as stop:
        return f"{stop.number} {stop.rank} after {len(steps)} steps"
    return "not stopped"


@pytest.mark.filterwarnings("ignore::diffusion_var.errors.DiffusionVarWarning")
@pytest.mark.parametrize("kind", TRAININGS)
def test_many_train_what_one_trains_and_go_on_in_any_number(kind: str, tmp_path: Path) -> None:
    table()
    train, checkpoint = TRAININGS[kind][0], tmp_path / "training.partial"
    weights, curve = train()
    two = many(2, train)
    assert all(np.array_equal(two[0][0], other) for other, _ in two)
    assert str(two[0][1]) == str(two[1][1])
    ended = many(2, told_to_stop, kind, checkpoint)
    assert ended[0].partition(" after")[0] == "15 1"
    assert ended[1].partition(" after")[0] == "15 None"
    assert ended[0].partition(" after")[2] == ended[1].partition(" after")[2]  # all at one step, before the last
    assert ended[0] != f"15 1 after {STEPS} steps"
    again = train(checkpoint)
    for found, points in (two[0], again):
        # Adam divides by the gradients' size, rounding errors of vanishing ones included: the norms are compared.
        assert np.linalg.norm(found - weights) < 3e-4 * np.linalg.norm(weights)
        for a, b in zip(points, curve, strict=True):
            np.testing.assert_allclose(numbers(a), numbers(b), rtol=2e-3)


def numbers(point: Any) -> list[float]:
    return [float(value) for value in (point.values() if isinstance(point, dict) else point)]


def ends_badly(how: str) -> None:
    step = HeadRun.step

    def disturbed(self: Any) -> None:
        if self.state.step == 2 and parallel.team().rank == 1:
            if how == "nan":
                self.head.network.out.bias.data.fill_(float("nan"))
            elif how == "raises":
                raise ValueError("a spoilt picture")
            elif how == "is killed":
                os.kill(os.getpid(), signal.SIGKILL)
            else:
                time.sleep(9.0)
        step(self)

    HeadRun.step = disturbed  # type: ignore[method-assign]
    head()


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ("raises", "RankError: rank 1 of 2 failed: ValueError: a spoilt picture."),
        ("is killed", "RankError: rank 1 of 2 was killed, or ended without a word"),
        ("hangs", r"RankError: rank 1 of 2 has made no progress for 3 s"),
        ("nan", "NumericalError: the head's loss is nan at step 2"),
    ],
)
def test_a_process_that_ends_ends_all(how: str, said: str) -> None:
    table()
    run = Many(2, ends_badly, how, environment={"DIFFUSION_VAR_TIMEOUT": 3 if how == "hangs" else 60})
    assert str(run.ends(30.0)[0].error).startswith(said)


def differs() -> None:
    head(learning_rate=1e-2 + parallel_rank())


def parallel_rank() -> int:
    return int(os.environ["RANK"])


def previews() -> list[float]:
    """The first process alone trains; the others do not."""
    if parallel_rank() == 0:
        with dv.alone():
            return head()[0].tolist()
    return []


def test_settings_must_agree_and_one_may_train_alone() -> None:
    table()
    for end in Many(2, differs).ends():
        assert str(end.error).startswith("InputError: the processes differ in learning_rate (the learning_rate of rank")
    alone = many(2, previews)
    np.testing.assert_array_equal(alone[0], head()[0])
