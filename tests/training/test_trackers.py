"""Reporting a curve: to TensorBoard, to a tracker of one's own, after an interruption, and what is refused."""

import math
import sys
from pathlib import Path
from typing import Any

import pytest
import small_heads
import small_training
import torch
from accelerate.tracking import GeneralTracker
from small_training import SETTINGS, Images, small_unet

import diffusion_var as dv
from diffusion_var.app.claims import run_identity
from diffusion_var.app.options import TrainHeadOptions
from diffusion_var.training.head import HeadTraining, train_head
from diffusion_var.training.trackers import Trackers
from diffusion_var.training.unet import UNetTraining, train_unet


class Kept(GeneralTracker):
    """Keeps what it is told."""

    name = "kept"
    requires_logging_directory = False

    def __init__(self, fails_at: int | None = None) -> None:
        super().__init__()
        self.config: dict[str, Any] = {}
        self.points: list[tuple[int, dict[str, float]]] = []
        self.finished, self.fails_at = 0, fails_at

    @property
    def tracker(self) -> Any:
        return self

    def store_init_configuration(self, values: dict[str, Any]) -> None:
        self.config = values

    def log(self, values: dict[str, float], step: int | None = None, **_: Any) -> None:
        if step == self.fails_at:
            raise ConnectionError("the server is gone.\nTry again.")
        assert step is not None
        self.points.append((step, values))

    def finish(self) -> None:
        self.finished += 1


def train(report_to: Any, logs: Path | None = None, checkpoint: Path | None = None, images: Any = None, **changes: Any):
    settings = UNetTraining(**{**SETTINGS, **changes})
    return train_unet(
        *(small_unet(), images or Images(), small_training.SCHEDULE, settings),
        held_out=Images(),
        checkpoint=checkpoint,
        checkpoint_seconds=0,
        progress=False,
        report_to=report_to,
        logs=logs,
    )


def head_settings(**changes: Any) -> HeadTraining:
    few = {"steps": 4, "batch_size": 4, "evaluate_every": 2, "likelihood_images": 2, "likelihood_steps": 2}
    return HeadTraining(**{**few, **changes})


def test_a_tracker_gets_the_curve_and_what_the_run_is_made_of() -> None:
    tracker = Kept()
    result = train(tracker)
    expected = [(step, {"train_loss": a, "held_out_loss": b}) for step, a, b in result.curve]
    assert tracker.points == expected
    assert [step for step, _ in expected] == [4, 8, 9]
    assert tracker.config["steps"] == 9
    assert tracker.config["learning_rate"] == 1e-3
    assert all(isinstance(value, bool | int | float | str) for value in tracker.config.values())
    assert tracker.finished == 1


def test_reporting_changes_nothing() -> None:
    plain, reported = train(None), train([Kept(), Kept()])
    assert plain.curve == reported.curve
    assert torch.equal(small_training.weights(plain), small_training.weights(reported))


def test_a_heads_curve_leaves_out_what_is_not_measured() -> None:
    tracker = Kept()
    given = small_heads.denoiser(), small_heads.table(), small_heads.images()
    result = train_head(*given, head_settings(), progress=False, report_to=tracker)
    assert [point for _, point in tracker.points] == [{"train_loss": point.train} for point in result.curve]
    assert tracker.config["target"] == "npr"
    held = Kept()
    result = train_head(*given, head_settings(), held_out=small_heads.images(8), progress=False, report_to=held)
    last = result.curve[-1]
    assert held.points[-1] == (
        4,
        {"train_loss": last.train, "held_out_loss": last.held_out, "bits_per_dim": last.bits_per_dim},
    )
    assert not math.isnan(last.bits_per_dim)


def test_a_joint_run_reports_its_head() -> None:
    tracker = Kept()
    result = train(tracker, head="npr", steps=4, evaluate_every=4)
    (step, point), (_, head, held_out) = tracker.points[-1], result.head_curve[-1]
    assert step == 4
    assert set(point) == {"train_loss", "held_out_loss", "head_loss", "held_out_head_loss"}
    assert (point["head_loss"], point["held_out_head_loss"]) == (head, held_out)


def test_a_run_that_goes_on_reports_what_is_new(tmp_path: Path) -> None:
    def stop(call: int) -> None:
        if call > 60:
            raise KeyboardInterrupt

    first, second = Kept(), Kept()
    with pytest.raises(KeyboardInterrupt):
        train(first, checkpoint=tmp_path / "c", images=Images(stop))
    result = train(second, checkpoint=tmp_path / "c")
    assert first.finished == second.finished == 1
    assert [step for step, _ in first.points + second.points] == [int(step) for step, *_ in result.curve]
    assert len(first.points) == 1


def test_a_tracker_that_fails_does_not_end_the_run() -> None:
    failing, other = Kept(fails_at=8), Kept()
    with pytest.warns(
        dv.DiffusionVarWarning, match=r"reported to kept \(ConnectionError: the server is gone\)"
    ) as said:
        result = train([failing, other])
    assert len(said) == 1
    assert len(result.curve) == len(other.points) == 3
    assert len(failing.points) == 1


def test_a_tracker_that_cannot_begin_is_one_sentence() -> None:
    class Broken(Kept):
        def store_init_configuration(self, values: dict[str, Any]) -> None:
            raise OSError("no space left")

    with pytest.raises(dv.InputError, match=r"report_to='kept' cannot be started \(OSError: no space left\)"):
        train(Broken())


def test_tensorboard(tmp_path: Path) -> None:
    accumulators = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    result = train("tensorboard", tmp_path / "logs")
    events = accumulators.EventAccumulator(str(tmp_path / "logs" / "diffusion_var"))
    events.Reload()
    assert set(events.Tags()["scalars"]) == {"train_loss", "held_out_loss"}
    for k, name in enumerate(("train_loss", "held_out_loss"), start=1):
        found = [(event.step, event.value) for event in events.Scalars(name)]
        assert found == [(point[0], pytest.approx(point[k])) for point in result.curve]


@pytest.mark.parametrize("given", ["tensorbord", ["all"], 5.5, ["tensorboard", "x"], {"a": 1}, [None]])
def test_what_is_unknown_is_refused_before_anything_is_done(given: Any, tmp_path: Path) -> None:
    with pytest.raises(dv.InputError, match=r"report_to=.*tensorboard.*wandb"):
        train(given, checkpoint=tmp_path / "c")
    assert not (tmp_path / "c").exists()
    with pytest.raises(dv.InputError, match="report_to="):
        train_head(small_heads.denoiser(), small_heads.table(), small_heads.images(), head_settings(), report_to=given)


def test_what_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("accelerate.tracking._available_trackers", ["tensorboard"])
    with pytest.raises(dv.InputError) as error:
        Trackers("wandb")
    assert str(error.value) == (
        "report_to='wandb' needs its package, which is not installed: pip install wandb; installed are tensorboard."
    )


def test_where_a_run_is_reported_is_no_part_of_it(tmp_path: Path) -> None:
    def identity(**changes: Any) -> str:
        given = {"model": "digits", "table": tmp_path / "t", "images": "digits:train", "out": tmp_path / "o"}
        return run_identity("train-head", TrainHeadOptions(**{**given, **changes}))

    assert identity() == identity(report_to=["tensorboard"])
    assert identity() != identity(license="mit")
    assert identity() != identity(steps=5)


def test_nothing_is_imported_where_nothing_is_reported() -> None:
    assert Trackers(None).wanted == []
    assert "wandb" not in sys.modules
