"""A bound that is interrupted and continued: the same numbers to the last bit, wherever it stopped."""

import shutil
from pathlib import Path
from typing import Any

import pytest
from small_likelihoods import (
    STEPS,
    Interrupted,
    assert_same,
    calls,
    measured,
    pictures,
    run,
    small_denoiser,
    stop_at,
)

import diffusion_var as dv
from diffusion_var.likelihood import run as bound_run
from diffusion_var.likelihood.run import RunningMoments

# ---- the same to the last bit -------------------------------------------------------------------------------------


@pytest.mark.parametrize("step_samples", [None, 3])
@pytest.mark.parametrize("draws", [1, 2])
def test_interrupted_anywhere_and_resumed(tmp_path: Path, draws: int, step_samples: int | None) -> None:
    options = {"draws": draws, "step_samples": step_samples}
    expected, total = run(**options), calls(**options)
    for m in sorted({0, 1, 2, total // 3, total // 2, total - 2, total - 1}):
        path = tmp_path / f"{m}.ckpt"
        with pytest.raises(KeyboardInterrupt):
            run(stop_at(m), path, **options)
        rest = Interrupted(lambda _: None)
        assert_same(run(rest, path, **options), expected)
        assert rest.calls == total - m  # nothing is done twice


def test_interrupted_again_and_again(tmp_path: Path) -> None:
    expected, total = run(), calls()
    path, left = tmp_path / "run.ckpt", total
    while left > 5:
        with pytest.raises(KeyboardInterrupt):
            run(stop_at(5), path)
        left -= 5
    assert_same(run(None, path), expected)


@pytest.mark.parametrize("m", [1, 7, 20, 34])
def test_killed_outright(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, m: int) -> None:
    """No last save: what counts is the file as it lay there when the process was gone."""
    monkeypatch.setattr(bound_run, "_CHECKPOINT_SECONDS", -1.0)
    path, left = tmp_path / "run.ckpt", tmp_path / "left.ckpt"

    def keep(number: int) -> None:
        if number == m:
            shutil.copy(path, left)

    expected = run(Interrupted(keep), path)
    rest = Interrupted(lambda _: None)
    assert_same(run(rest, left), expected)
    assert rest.calls == calls() - m


def test_every_covariance_and_the_density(tmp_path: Path) -> None:
    table = measured(small_denoiser())
    for k, covariance in enumerate([dv.FixedSmall(), dv.Analytic(table, structure="dct")]):
        for name, call in (("discrete", dv.bits_per_dim), ("density", dv.density_bound)):
            path = tmp_path / f"{name}{k}.ckpt"
            expected = call(small_denoiser(), covariance, pictures(10), STEPS, batch_size=4)
            with pytest.raises(KeyboardInterrupt):
                call(small_denoiser(stop_at(6)), covariance, pictures(10), STEPS, batch_size=4, checkpoint=path)
            assert_same(
                call(small_denoiser(), covariance, pictures(10), STEPS, batch_size=4, checkpoint=path), expected
            )


def test_interrupted_while_sums_are_half_changed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is saved then: the last whole checkpoint counts."""
    path, add, merged = tmp_path / "run.ckpt", RunningMoments.add, []

    def adds_and_stops(moments: RunningMoments, rows: Any) -> None:
        add(moments, rows)
        merged.append(len(rows))
        if len(merged) == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(bound_run, "_CHUNK", 4)
    whole = run()
    monkeypatch.setattr(RunningMoments, "add", adds_and_stops)
    with pytest.raises(KeyboardInterrupt):
        run(None, path)
    monkeypatch.setattr(RunningMoments, "add", add)
    assert merged == [4, 4]
    assert_same(run(None, path), whole)


def test_another_batch_size_goes_on(tmp_path: Path) -> None:
    """After running out of memory, say."""
    path = tmp_path / "run.ckpt"
    with pytest.raises(KeyboardInterrupt):
        run(stop_at(9), path)
    found = run(None, path, batch_size=3)
    assert found.value == pytest.approx(run().value, rel=1e-6)


def test_errors_leave_a_checkpoint_too(tmp_path: Path) -> None:
    path = tmp_path / "run.ckpt"
    with pytest.raises(RuntimeError):
        run(stop_at(9, RuntimeError), path)
    rest = Interrupted(lambda _: None)
    assert_same(run(rest, path), run())
    assert rest.calls == calls() - 9


def test_a_finished_run_is_not_done_again(tmp_path: Path) -> None:
    path = tmp_path / "run.ckpt"
    expected = run(None, path)
    untouched = Interrupted(lambda _: None)
    assert_same(run(untouched, path), expected)
    assert untouched.calls == 0
