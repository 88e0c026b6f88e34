"""Whose checkpoint a bound may be continued from, and files that are none: each refusal is one sentence."""

from pathlib import Path
from typing import Any

import pytest
import torch
from small_likelihoods import (
    RUN,
    SCHEDULE,
    STEPS,
    Interrupted,
    Network,
    assert_same,
    measured,
    pictures,
    run,
    small_denoiser,
    stop_at,
)

import diffusion_var as dv
from diffusion_var import resume

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
    with pytest.raises(
        dv.InputError, match=rf"belongs to another run \(different {named}\): its .* but this run\'s is .*; delete it"
    ):
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
        dv.bits_per_dim(denoiser, dv.FixedLarge(), change.get("images", pictures(10)), checkpoint=path, **RUN)


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


def test_another_guidance_is_another_run(tmp_path: Path) -> None:
    """The same scale, but away from another condition."""
    path, labels = tmp_path / "run.ckpt", torch.tensor([1, 2])

    def guided(null: int) -> dv.Denoiser:
        network = Network()
        return dv.Denoiser(
            lambda x, t, label: network(x, t) + 0.01 * label[:, None, None, None],
            SCHEDULE,
            shape=pictures(1).shape[1:],
            guidance_scale=2.0,
            unconditional=torch.tensor(null),
        )

    dv.bits_per_dim(guided(0), dv.FixedLarge(), pictures(2), STEPS, conditions=labels, checkpoint=path)
    with pytest.raises(dv.InputError, match=r"different unconditional\)"):
        dv.bits_per_dim(guided(3), dv.FixedLarge(), pictures(2), STEPS, conditions=labels, checkpoint=path)


def test_another_precision_is_another_run(tmp_path: Path) -> None:
    path = tmp_path / "run.ckpt"
    dv.bits_per_dim(small_denoiser(), dv.FixedLarge(), pictures(2), STEPS, checkpoint=path)
    half = small_denoiser(autocast=torch.bfloat16)
    with pytest.raises(dv.InputError, match="different autocast"):
        dv.bits_per_dim(half, dv.FixedLarge(), pictures(2), STEPS, checkpoint=path)


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
    write = resume.write_document
    full = False

    def failing(*arguments: Any) -> None:
        if full:
            raise dv.InputError("could not write: no space left")
        write(*arguments)

    def fill(_: int) -> None:
        nonlocal full
        full = True

    monkeypatch.setattr(resume, "write_document", failing)
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
