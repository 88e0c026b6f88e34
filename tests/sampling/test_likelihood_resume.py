"""A bound that is interrupted and continued: the same numbers to the last bit, and no checkpoint of another run."""

import math
import shutil
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from small_likelihoods import SCHEDULE, STEPS, Network, measured, pictures, small_denoiser

import diffusion_var as dv
from diffusion_var.sampling import bound_run
from diffusion_var.sampling.bound import RunningMoments

OPTIONS: dict[str, Any] = {"steps": 12, "seed": 4, "draws": 2, "batch_size": 4, "decoder_variance": 0.01}


class Interrupted(Network):
    """Calls `hook` before every call, with the number of calls so far."""

    def __init__(self, hook: Callable[[int], None]) -> None:
        super().__init__()
        self.calls, self.hook = 0, hook

    def forward(self, x_t: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
        self.hook(self.calls)
        self.calls += 1
        return super().forward(x_t, timestep)


def run(network: Any = None, checkpoint: Path | None = None, **options: Any) -> dv.LikelihoodBound:
    options = {**OPTIONS, **options}
    return dv.bits_per_dim(
        small_denoiser(network),
        options.pop("covariance", dv.FixedLarge()),
        pictures(10),
        checkpoint=checkpoint,
        **options,
    )


def calls(**options: Any) -> int:
    network = Interrupted(lambda _: None)
    run(network, **options)
    return network.calls


def stop_at(m: int, error: type[BaseException] = KeyboardInterrupt) -> Interrupted:
    def hook(number: int) -> None:
        if number == m:
            raise error

    return Interrupted(hook)


def assert_same(found: dv.LikelihoodBound, expected: dv.LikelihoodBound) -> None:
    for each in fields(dv.LikelihoodBound):
        mine, other = getattr(found, each.name), getattr(expected, each.name)
        if isinstance(mine, np.ndarray):
            assert np.array_equal(mine, other, equal_nan=True), each.name
        else:
            assert mine == other or (math.isnan(mine) and math.isnan(other)), each.name


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


def test_another_precision_is_another_run(tmp_path: Path) -> None:
    path = tmp_path / "run.ckpt"
    dv.bits_per_dim(small_denoiser(), dv.FixedLarge(), pictures(2), STEPS, checkpoint=path)
    half = small_denoiser(autocast=torch.bfloat16)
    with pytest.raises(dv.InputError, match="different autocast"):
        dv.bits_per_dim(half, dv.FixedLarge(), pictures(2), STEPS, checkpoint=path)


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


# ---- other runs' checkpoints --------------------------------------------------------------------------------------


def scaled() -> Network:
    network = Network()
    with torch.no_grad():
        network.gain += 1e-3
    return network


@pytest.mark.parametrize(
    ("difference", "named"),
    [
        ({"seed": 5}, "seed"),
        ({"steps": 11}, "steps"),
        ({"draws": 3}, "draws"),
        ({"eta": 0.5, "covariance": dv.FixedSmall()}, "eta, covariance"),
        ({"covariance": dv.FixedSmall()}, "covariance"),
        ({"decoder_variance": 0.02}, "decoder_variance"),
        ({"decoder_variance": "beta_tilde"}, "decoder_variance"),
        ({"step_samples": 4}, "step_samples"),
        ({"clipped_eps": "network"}, "clipped_eps"),
    ],
)
def test_other_settings_are_refused_by_name(tmp_path: Path, difference: dict[str, Any], named: str) -> None:
    path = tmp_path / "run.ckpt"
    run(None, path)
    before = path.read_bytes()
    with pytest.raises(dv.InputError, match=rf"belongs to another run \(different {named}\); delete it"):
        run(None, path, **difference)
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"network": scaled()}, "network"),
        ({"denoiser": {"prediction": "sample"}}, "prediction"),
        ({"denoiser": {"clip": (-0.5, 0.5), "data_range": (-1.0, 1.0)}}, "clip"),
        ({"images": pictures(10, seed=1)}, "images"),
        ({"images": pictures(9)}, "images"),
        ({"schedule": dv.NoiseSchedule.cosine(100)}, "schedule"),
    ],
)
def test_other_models_and_images_are_refused_by_name(tmp_path: Path, change: dict[str, Any], named: str) -> None:
    path = tmp_path / "run.ckpt"
    run(None, path)
    denoiser = small_denoiser(change.get("network"), **change.get("denoiser", {}))
    denoiser.schedule = change.get("schedule", SCHEDULE)
    with pytest.raises(dv.InputError, match=rf"another run \(different {named}\)"):
        dv.bits_per_dim(denoiser, dv.FixedLarge(), change.get("images", pictures(10)), checkpoint=path, **OPTIONS)


def test_other_tables_conditions_and_kinds_are_refused_by_name(tmp_path: Path) -> None:
    path, options = tmp_path / "run.ckpt", {"steps": STEPS, "batch_size": 4}
    denoiser, images = small_denoiser(), pictures(10)
    first, second = measured(denoiser), measured(denoiser, [1, 12, 30, 40, 100])
    dv.bits_per_dim(denoiser, dv.Analytic(first), images, checkpoint=path, **options)
    for covariance in (dv.Analytic(second), dv.Analytic(first, structure="dct"), dv.Analytic(first, bounded=True)):
        with pytest.raises(dv.InputError, match=r"\(different covariance\)"):
            dv.bits_per_dim(denoiser, covariance, images, checkpoint=path, **options)
    with pytest.raises(dv.InputError, match=r"\(different levels\)"):
        dv.density_bound(denoiser, dv.Analytic(first), images, checkpoint=path, **options)
    with pytest.raises(dv.InputError, match=r"\(different conditions\)"):
        dv.bits_per_dim(denoiser, dv.Analytic(first), images, checkpoint=path, conditions=[0] * 10, **options)


def test_a_network_without_weights_is_continued_on_trust(tmp_path: Path) -> None:
    path, network = tmp_path / "run.ckpt", Network()
    with torch.inference_mode():
        expected = run(lambda x, t: network(x, t), path)
        with pytest.warns(dv.DiffusionVarWarning, match="no weights to tell it by"):
            assert_same(run(lambda x, t: network(x, t), path), expected)


# ---- files that are no checkpoint ---------------------------------------------------------------------------------


def test_damaged_files_are_refused_in_a_sentence(tmp_path: Path) -> None:
    path = tmp_path / "run.ckpt"
    with pytest.raises(KeyboardInterrupt):
        run(stop_at(9), path)
    whole = path.read_bytes()
    flipped = bytearray(whole)
    flipped[-3] ^= 1
    for content in (b"", b"hello", whole[: len(whole) // 2], whole[:-1], bytes(flipped)):
        path.write_bytes(content)
        with pytest.raises(dv.InputError, match=r"damaged|not a readable likelihood checkpoint"):
            run(None, path)
        assert path.read_bytes() == content  # nothing is written over it


def test_another_kind_of_file_is_refused(tmp_path: Path) -> None:
    table = measured(small_denoiser())
    table.save(tmp_path / "table.safetensors")
    with pytest.raises(dv.InputError, match="not a likelihood checkpoint"):
        run(None, tmp_path / "table.safetensors")


def test_an_unwritable_path_is_found_before_the_work(tmp_path: Path) -> None:
    network = Interrupted(lambda _: None)
    with pytest.raises(dv.InputError, match="could not write"):
        run(network, tmp_path / "missing" / "run.ckpt")
    assert network.calls == 0


def test_a_full_disk_hides_neither_the_result_nor_what_stopped_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = bound_run.write_document
    full = False

    def failing(*arguments: Any) -> None:
        if full:
            raise dv.InputError("could not write: no space left")
        write(*arguments)

    def fill(_: int) -> None:
        nonlocal full
        full = True

    monkeypatch.setattr(bound_run, "write_document", failing)
    with pytest.warns(dv.DiffusionVarWarning, match="the checkpoint is not up to date: .*no space left"):
        found = run(Interrupted(fill), tmp_path / "run.ckpt")
    full = False
    assert_same(found, run())

    def fill_and_stop(number: int) -> None:
        fill(number)
        if number == 3:
            raise KeyboardInterrupt

    with (
        pytest.warns(dv.DiffusionVarWarning, match="not up to date"),
        pytest.raises(KeyboardInterrupt),
    ):
        run(Interrupted(fill_and_stop), tmp_path / "other.ckpt")
