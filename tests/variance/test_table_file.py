"""The table's file: what is saved is loaded, and anything else is refused in one sentence."""

import copy
import dataclasses
import errno
import json
import os
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
from crooked import IMAGES, SCHEDULE, crooked_denoiser
from signed import contents, sign

import diffusion_var as dv
from diffusion_var.variance import table_file as tablefile

VERSION_1_KEYS = {
    *("schedule", "structures", "shape", "prediction", "clip", "data_range", "network", "data"),
    *("seed", "tolerance", "evaluations", "details"),
}
CHANGED: dict[str, Any] = {
    "shape": (2, 4, 1),
    "prediction": "sample",
    "clip": None,
    "data_range": None,
    "network": "0",
    "guidance_scale": 2.0,
    "latent_scaling": (1.0, 0.0),
    "seed": 6,
    "tolerance": 0.5,
    "evaluations": 1,
}


@pytest.fixture(scope="module")
def table():
    denoiser = crooked_denoiser(clip=(-2.5, 2.5), data_range=(-3.0, 3.0))
    return dv.estimate(denoiser, IMAGES, 1e3, seed=np.int64(5), indices=[20, 300], progress=False)


@pytest.fixture
def path(table, tmp_path):
    table.save(tmp_path / "t.safetensors")
    return tmp_path / "t.safetensors"


def same(a, b):
    """Deep equality of fields, arrays bit for bit."""
    if isinstance(a, np.ndarray):
        return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()
    if isinstance(a, dict):
        return set(a) == set(b) and all(same(a[k], b[k]) for k in a)
    if dataclasses.is_dataclass(a):
        return type(a) is type(b) and all(same(getattr(a, f.name), getattr(b, f.name)) for f in dataclasses.fields(a))
    return type(a) is type(b) and a == b


def test_round_trip(table, path):
    loaded = dv.VarianceTable.load(path)
    assert same(loaded, table)
    for structure in table.structures:
        for estimator in ("residual", "score_norm", "data_variance"):
            for n in (20, 100, 300):
                a, b = (t.posterior_variance(n, estimator, structure) for t in (table, loaded))
                assert np.array_equal(a, b)
    assert loaded.summary() == table.summary()
    # `same` can tell: one changed number is seen
    loaded.moments["dct"].means[1, 2, 0, 1, 1] += 1e-6
    assert not same(loaded, table)


def test_round_trip_of_published_arrays(tmp_path):
    table = dv.VarianceTable.from_moments(dv.NoiseSchedule.vp_sde(30), eps_square=np.linspace(0.1, 1, 30))
    table.save(tmp_path / "t")
    assert same(dv.VarianceTable.load(tmp_path / "t"), table)


def test_the_same_table_gives_the_same_bytes(table, path, tmp_path):
    dv.VarianceTable.load(path).save(tmp_path / "again")
    assert (tmp_path / "again").read_bytes() == path.read_bytes()


def test_the_digest_is_of_everything_that_is_saved(table: dv.VarianceTable, path: Path) -> None:
    assert dv.VarianceTable.load(path).digest == table.digest
    with safetensors.safe_open(str(path), "numpy") as file:
        assert json.loads(file.metadata()["diffusion_var"])["digest"] == table.digest
    moments = copy.deepcopy(table.moments)
    moments["pixel"].means[1, 0, 0, 0, 0] += 1e-6
    changes: list[dict[str, Any]] = [
        {"moments": moments},
        {"counts": table.counts + 16},
        {"schedule": dv.NoiseSchedule(SCHEDULE.alpha, SCHEDULE.sigma, SCHEDULE.timestep, prior_std=2.0)},
        {"data": dataclasses.replace(table.data, fingerprint="0")},
        {"details": {**table.details, "note": "x"}},
        *({name: value} for name, value in CHANGED.items()),
    ]
    digests = [dataclasses.replace(table, **change).digest for change in changes]
    assert len({table.digest, *digests}) == 1 + len(changes)
    assert dataclasses.replace(table).digest == table.digest


@pytest.mark.parametrize("kept", [["pixel"], ["dct", "channel"], ["isotropic"], []])
def test_a_subset_of_the_structures(table: dv.VarianceTable, path: Path, kept: list[str]) -> None:
    small = table.subset(kept)
    assert set(small.structures) == {"isotropic", *kept}
    for name in small.structures:
        assert np.array_equal(
            small.posterior_variance(100, structure=name), table.posterior_variance(100, structure=name)
        )
    for name in {"channel", "pixel", "dct"} - {*kept}:
        with pytest.raises(dv.InputError, match=f"this table has no structure '{name}'"):
            small.posterior_variance(100, structure=name)
    small.save(path.with_name("small"))
    assert path.with_name("small").stat().st_size < path.stat().st_size
    assert same(dv.VarianceTable.load(path.with_name("small")), small)
    assert set(table.structures) == {"isotropic", "channel", "pixel", "dct"}  # the whole one is left as it was


def test_a_subset_of_what_is_not_there(table: dv.VarianceTable) -> None:
    with pytest.raises(dv.InputError, match="structure 'wavelet' is not known"):
        table.subset(["pixel", "wavelet"])
    with pytest.raises(dv.InputError, match="has no structure 'pixel'"):
        table.subset(["dct"]).subset(["pixel"])
    published = dv.VarianceTable.from_moments(dv.NoiseSchedule.vp_sde(30), eps_square=np.linspace(0.1, 1, 30))
    assert same(published.subset(["isotropic"]), published)


def test_one_metadata_key_and_no_pickle(path):
    with safetensors.safe_open(str(path), "numpy") as file:
        assert list(file.metadata()) == ["diffusion_var"]
        content = json.loads(file.metadata()["diffusion_var"])
        assert file.get_tensor("pixel.means").dtype == np.float32
        assert file.get_tensor("isotropic.means").dtype == np.float64
    assert content["format"] == "diffusion_var.variance_table"
    assert content["seed"] == 5
    assert set(content["details"]["versions"]) == {"diffusion-var", "torch", "numpy"}


# ---- damage -------------------------------------------------------------------------------------------------------


def refusal(path):
    with pytest.raises(dv.InputError) as error:
        dv.VarianceTable.load(path)
    message = str(error.value)
    assert "\n" not in message
    assert message.endswith(".")
    assert str(path) in message
    return message


def test_a_missing_file(tmp_path):
    assert "there is no variance table at" in refusal(tmp_path / "none")
    assert "there is no variance table at" in refusal(tmp_path)


def test_truncated_files(path):
    content = path.read_bytes()
    for length in [0, 1, 7, 8, 9, 100, len(content) // 2, len(content) - 8, len(content) - 1]:
        path.write_bytes(content[:length])
        assert "damaged" in refusal(path)
    path.write_bytes(content + b"\0")
    assert "damaged" in refusal(path)


def test_flipped_bits(table, path):
    content = path.read_bytes()
    header = 8 + int.from_bytes(content[:8], "little")
    positions = [*range(0, header, 13), *range(header, len(content), max(1, (len(content) - header) // 150))]
    refused = 0
    for k, position in enumerate(positions):
        damaged = bytearray(content)
        damaged[position] ^= 1 << (k % 8)
        path.write_bytes(damaged)
        try:
            loaded = dv.VarianceTable.load(path)
        except dv.InputError:
            refused += 1
        else:  # e.g. the e of 1e-05 and E are one number: nothing was damaged then
            assert same(loaded, table)
    assert len(positions) > 300
    assert refused >= len(positions) - 2


def rewritten(path, change):
    """The file with its metadata changed and its checksum as it was."""
    with safetensors.safe_open(str(path), "numpy") as file:
        arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
        metadata = json.loads(file.metadata()["diffusion_var"])
    change(metadata, arrays)
    path.write_bytes(safetensors.numpy.save(arrays, {"diffusion_var": json.dumps(metadata)}))


def test_a_newer_format_is_named_as_such(path):
    rewritten(path, lambda metadata, arrays: metadata.update(format_version=tablefile.FORM.version + 1))
    message = refusal(path)
    assert "format version 3, but this version of diffusion_var reads up to 2; update" in message


def test_a_file_of_format_version_1_is_read(table: dv.VarianceTable, path: Path, tmp_path: Path) -> None:
    """Version 1 knew of no guidance and of no latents."""
    arrays, metadata = contents(path)
    for key in ("guidance_scale", "latent_scaling"):
        del metadata[key]
    assert set(metadata) - {"format", "format_version"} == VERSION_1_KEYS
    sign(tmp_path / "old", arrays, {**metadata, "format_version": 1})
    loaded = dv.VarianceTable.load(tmp_path / "old")
    assert (loaded.guidance_scale, loaded.latent_scaling) == (1.0, None)
    assert same(loaded, table)
    loaded.check(crooked_denoiser(clip=(-2.5, 2.5), data_range=(-3.0, 3.0)))
    # Saved again, it is a file of today.
    loaded.save(tmp_path / "new")
    assert (tmp_path / "new").read_bytes() == path.read_bytes()


def test_changed_contents_fail_the_checksum(path):
    rewritten(path, lambda metadata, arrays: metadata.update(seed=6))
    assert "do not match their checksum" in refusal(path)


def test_swapped_arrays_fail_the_checksum(path):
    def swap(metadata, arrays):
        arrays["pixel.means"], arrays["dct.means"] = arrays["dct.means"], arrays["pixel.means"]

    rewritten(path, swap)
    assert "do not match their checksum" in refusal(path)


def test_files_of_another_kind(path, tmp_path):
    other = tmp_path / "weights.safetensors"
    other.write_bytes(safetensors.numpy.save({"w": np.zeros(3)}, {"format": "pt"}))
    assert "is a safetensors file but not a variance table" in refusal(other)
    other.write_bytes(safetensors.numpy.save({"w": np.zeros(3)}))
    assert "not a variance table" in refusal(other)
    other.write_bytes(safetensors.numpy.save({"w": np.zeros(3)}, {"diffusion_var": "[1]"}))
    assert "not a variance table" in refusal(other)
    other.write_bytes(safetensors.numpy.save({"w": np.zeros(3)}, {"diffusion_var": "{"}))
    assert "damaged or of another kind" in refusal(other)
    other.write_text("n,variance\n1,0.5\n")
    assert "damaged or of another kind" in refusal(other)
    # a checkpoint of the estimator is written by the same hand, and is no table
    dv.estimate(crooked_denoiser(), IMAGES, 1e3, indices=[20], checkpoint=tmp_path / "c", progress=False)
    assert "not a variance table" in refusal(tmp_path / "c")


# ---- writing ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mask", [0o022, 0o027, 0o002])
def test_the_mode_honours_the_umask(table, tmp_path, mask):
    old = os.umask(mask)
    try:
        table.save(tmp_path / "t")
    finally:
        os.umask(old)
    assert (tmp_path / "t").stat().st_mode & 0o777 == 0o666 & ~mask


@pytest.mark.parametrize("function", ["fsync", "replace"])
def test_a_full_disk_leaves_the_old_file_and_nothing_else(table, path, monkeypatch, function):
    before = path.read_bytes()

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    table = dataclasses.replace(table, seed=99)
    monkeypatch.setattr(os, function, full)
    message = rf"could not write {re.escape(str(path))}: No space left on device; nothing was changed there\."
    with pytest.raises(dv.InputError, match=message):
        table.save(path)
    assert path.read_bytes() == before
    assert [p.name for p in path.parent.iterdir()] == [path.name]
    monkeypatch.undo()
    table.save(path)
    assert dv.VarianceTable.load(path).seed == 99
    assert [p.name for p in path.parent.iterdir()] == [path.name]


def test_no_folder_to_write_to(table, tmp_path):
    with pytest.raises(dv.InputError, match=r"could not write .*nowhere"):
        table.save(tmp_path / "nowhere" / "t")


def test_schedule_survives(path):
    assert dv.VarianceTable.load(path).schedule == SCHEDULE
