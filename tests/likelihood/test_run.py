"""A bound that is interrupted and goes on gives the same bits; conditions stay with their images."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from small_likelihoods import (
    SCHEDULE,
    SHAPE,
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
from diffusion_var import resume
from diffusion_var.likelihood import run as run_module
from diffusion_var.likelihood.running_moments import RunningMoments

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
    monkeypatch.setattr(resume, "SECONDS", -1.0)
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

    monkeypatch.setattr(run_module, "_CHUNK", 4)
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


# ---- conditions: which reaches the network with which image, in batches that mix images and indices ------------------


def perfect(x_t: torch.Tensor, timestep: torch.Tensor, condition: torch.Tensor) -> torch.Tensor:
    """Told the image itself, it predicts it: any mix-up of images and conditions costs whole bits."""
    return condition.reshape(x_t.shape)


@pytest.mark.parametrize("step_samples", [None, 2])
def test_each_image_has_its_own_condition(step_samples: int | None) -> None:
    images = pictures(11)
    x_0 = images.float() / 127.5 - 1
    denoiser = small_denoiser(perfect, prediction="sample")
    order = np.random.default_rng(1).permutation(11)
    shuffled = dv.Conditions(x_0[order].flatten(1), np.argsort(order))
    for conditions in (x_0.flatten(1), shuffled):
        found = dv.bits_per_dim(
            denoiser,
            dv.FixedSmall(),
            images,
            STEPS,
            draws=2,
            step_samples=step_samples,
            batch_size=4,
            conditions=conditions,
            decoder_variance=1e-8,
        )
        np.testing.assert_allclose(found.per_step[1:], 0.0, atol=1e-6)
    wrong = dv.bits_per_dim(
        denoiser, dv.FixedSmall(), images, STEPS, conditions=x_0.roll(1, 0).flatten(1), decoder_variance=1e-8
    )
    assert wrong.value > 1


def test_a_random_condition_stays_with_an_image_and_draw_over_its_steps() -> None:
    seen: dict[int, list[int]] = {}

    def network(x_t: torch.Tensor, timestep: torch.Tensor, condition: torch.Tensor) -> torch.Tensor:
        # The images are so far apart that x_t tells them.
        alpha = torch.tensor(SCHEDULE.alpha)[timestep.long() + 1]
        for i, label in zip(
            (x_t.double().mean((1, 2, 3)) / alpha / 1000).round().tolist(), condition.tolist(), strict=True
        ):
            seen.setdefault(int(i), []).append(label)
        return torch.zeros_like(x_t)

    images = 1000.0 * torch.arange(12)[:, None, None, None].expand(12, *SHAPE)
    denoiser = small_denoiser(network, prediction="sample", clip=None)
    conditions = dv.Conditions(torch.arange(1000))
    dv.density_bound(denoiser, dv.FixedSmall(), images, STEPS, draws=3, batch_size=5, conditions=conditions)
    labels = [sorted(found) for found in seen.values()]
    assert sorted(seen) == list(range(12))
    for found in labels:  # three draws of four steps each
        assert len(found) == 12
        assert found[0::4] == found[1::4] == found[2::4] == found[3::4]
        assert len(set(found)) == 3
    assert len({label for found in labels for label in found}) > 30


def test_conditions_of_the_wrong_number_are_refused() -> None:
    denoiser = small_denoiser(perfect, prediction="sample")
    with pytest.raises(dv.InputError, match="conditions has 4 entries for 5 images"):
        dv.bits_per_dim(denoiser, dv.FixedSmall(), pictures(5), STEPS, conditions=[0, 1, 2, 3])
    called = []
    labelled = small_denoiser(lambda x_t, *_: called.append(x_t), classes=3)
    with pytest.raises(dv.InputError, match="class labels go from 0 to 2"):  # found before the first image's turn
        dv.bits_per_dim(labelled, dv.FixedSmall(), pictures(2), STEPS, conditions=[0, 3], batch_size=1)
    assert not called


def test_a_nest_of_conditions_stays_with_its_image() -> None:
    images = pictures(9)
    x_0 = images.float() / 127.5 - 1

    def told(x_t: torch.Tensor, timestep: torch.Tensor, condition: dict[str, Any]) -> torch.Tensor:
        return (condition["flat"] + condition["rest"][0]).reshape(x_t.shape)

    denoiser, rest = small_denoiser(told, prediction="sample"), torch.full((9, 48), 0.25)
    nest = {"flat": x_0.flatten(1) - 0.25, "rest": (rest,)}
    options: dict[str, Any] = {"decoder_variance": 1e-8, "batch_size": 4, "draws": 2}
    found = dv.bits_per_dim(denoiser, dv.FixedSmall(), images, STEPS, conditions=nest, **options)
    np.testing.assert_allclose(found.per_step[1:], 0.0, atol=1e-5)
    with pytest.raises(dv.InputError, match=r"conditions\['rest'\]\[0\] has shape \(8, 48\) for 9 conditions"):
        dv.bits_per_dim(denoiser, dv.FixedSmall(), images, STEPS, conditions=nest | {"rest": (rest[:8],)})


def test_a_run_off_the_grid_goes_on_and_is_told_from_another(tmp_path: Path) -> None:
    levels = dv.steps.sigmas(SCHEDULE, [0.9, 0.4, 0.1, 0.0101])
    expected, path = run(steps=levels), tmp_path / "run.ckpt"
    with pytest.raises(KeyboardInterrupt):
        run(stop_at(6), path, steps=levels)
    with pytest.raises(dv.InputError, match=r"another run \(different steps\)"):
        run(None, path, steps=[*levels[:2], SCHEDULE.level(20), *levels[3:]])
    assert_same(run(None, path, steps=levels), expected)
