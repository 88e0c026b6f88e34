"""What the rooms stand on: atomic files, random streams, the order of the rooms, and a quick import."""

import errno
import os
import subprocess
import sys
from pathlib import Path
from typing import IO

import numpy as np
import pytest
import torch
from places import ROOT

import diffusion_var
from diffusion_var import InputError
from diffusion_var.files import make_folder, require_empty_folder, write_atomic
from diffusion_var.randomness import Streams, generator, normal

# ---- files ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("existing", [None, b"the old file"])
def test_write_atomic_writes_bytes_or_what_a_function_writes(existing: bytes | None, tmp_path: Path) -> None:
    target = tmp_path / "table.bin"
    for content in (b"whole new", lambda file: file.write(b"whole new")):
        if existing is not None:
            target.write_bytes(existing)
        write_atomic(target, content)
        assert target.read_bytes() == b"whole new"
        assert os.listdir(tmp_path) == ["table.bin"]
        target.unlink()
    write_atomic(str(target), b"")
    assert target.read_bytes() == b""


def full_disk(file: IO[bytes]) -> None:
    file.write(b"half of the new")
    file.flush()
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def bug(file: IO[bytes]) -> None:
    file.write(b"half of the new")
    raise KeyError("a bug in the writer")


@pytest.mark.parametrize("existing", [True, False])
@pytest.mark.parametrize(("writer", "raised"), [(full_disk, InputError), (bug, KeyError)])
def test_write_atomic_keeps_the_old_file_when_the_writer_fails(
    existing: bool, writer: object, raised: type[Exception], tmp_path: Path
) -> None:
    target = tmp_path / "table.bin"
    if existing:
        target.write_bytes(b"the old file")
    with pytest.raises(raised) as caught:
        write_atomic(target, writer)
    if raised is InputError:
        assert str(caught.value) == f"could not write {target}: No space left on device; nothing was changed there."
    assert os.listdir(tmp_path) == (["table.bin"] if existing else [])
    if existing:
        assert target.read_bytes() == b"the old file"


def test_write_atomic_keeps_the_old_file_when_syncing_fails(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    target = tmp_path / "table.bin"
    target.write_bytes(b"the old file")
    synced: list[int] = []

    def fail(handle: int) -> None:
        synced.append(handle)
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(InputError, match="Input/output error"):
        write_atomic(target, b"the new file")
    assert len(synced) == 1
    assert target.read_bytes() == b"the old file"
    assert os.listdir(tmp_path) == ["table.bin"]


@pytest.mark.parametrize("mask", [0o022, 0o077, 0o002])
def test_write_atomic_honours_the_umask(mask: int, tmp_path: Path) -> None:
    before = os.umask(mask)
    try:
        write_atomic(tmp_path / "table.bin", b"x")
        (tmp_path / "opened.bin").write_bytes(b"x")
        left = os.umask(mask)
    finally:
        os.umask(before)
    assert (tmp_path / "table.bin").stat().st_mode & 0o777 == 0o666 & ~mask
    assert (tmp_path / "table.bin").stat().st_mode == (tmp_path / "opened.bin").stat().st_mode
    assert left == mask  # reading the mask leaves it as it was


def test_write_atomic_refuses_what_the_system_refuses(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="No such file or directory"):
        write_atomic(tmp_path / "no folder" / "table.bin", b"x")
    (tmp_path / "folder").mkdir()
    with pytest.raises(InputError, match="Is a directory"):
        write_atomic(tmp_path / "folder", b"x")
    assert os.listdir(tmp_path) == ["folder"]


def test_require_empty_folder(tmp_path: Path) -> None:
    new = tmp_path / "a" / "b"
    assert require_empty_folder(new, overwrite=False) == new
    assert not (tmp_path / "a").exists()  # it only looks
    assert make_folder(new) == new
    assert new.is_dir()
    assert require_empty_folder(str(new), overwrite=False) == new  # still empty
    (new / "image.png").write_bytes(b"x")
    with pytest.raises(InputError, match="is not empty"):
        require_empty_folder(new, overwrite=False, ignore=("other.png",))
    assert require_empty_folder(new, overwrite=False, ignore=("image.png",)) == new
    assert require_empty_folder(new, overwrite=True) == new
    assert (new / "image.png").read_bytes() == b"x"
    for overwrite in (False, True):
        with pytest.raises(InputError, match="is a file, but a folder is needed"):
            require_empty_folder(new / "image.png", overwrite)
    with pytest.raises(InputError, match=r"could not make the output folder .*: Not a directory"):
        make_folder(new / "image.png" / "c")


def test_stream_indices_are_integers_of_any_kind() -> None:
    """Image 3 is image 3, whether Python, NumPy or PyTorch says so."""
    expected = generator(0, "test", 3).standard_normal(4).tolist()
    for three in (np.int64(3), torch.tensor(3)):
        assert generator(0, "test", three).standard_normal(4).tolist() == expected  # type: ignore[arg-type]
    with pytest.raises(TypeError):
        generator(0, "test", 3.0)  # type: ignore[arg-type]


# ---- random numbers -------------------------------------------------------------------------------------------


def test_streams_are_told_apart_by_seed_purpose_and_index_alone() -> None:
    names = [
        (0, "estimate"),
        (1, "estimate"),
        (0, "sample"),
        (0, "estimate", 0),
        (0, "estimate", 1),
        (0, "estimate", 1, 1),
        (0, "estimate", 11),
        (0, "estimate", 1, 11),
        (0, "estimate", 11, 1),
        (-1, "estimate", 1),
    ]
    draws = {name: tuple(generator(*name).standard_normal(4)) for name in names}
    assert len(set(draws.values())) == len(names)
    for name in reversed(names):  # the order of work does not matter
        assert tuple(generator(*name).standard_normal(4)) == draws[name]


def test_a_moved_generator_gives_the_numbers_of_fresh_ones() -> None:
    """Also when it was left in the middle of a draw, with half of a 64-bit word unused."""
    streams = Streams()
    for name in ((0, "a", 1), (0, "a", 2), (5, "b"), (0, "a", 1)):
        moved, fresh = streams.at(*name), generator(*name)
        assert np.array_equal(moved.integers(0, 7, 5, dtype=np.int32), fresh.integers(0, 7, 5, dtype=np.int32))
        assert np.array_equal(moved.standard_normal(9, dtype=np.float32), fresh.standard_normal(9, dtype=np.float32))


def test_streams_look_independent() -> None:
    count, length = 200, 500
    rows = np.stack([generator(0, "test", i).standard_normal(length) for i in range(count)])
    correlations = np.corrcoef(rows)[np.triu_indices(count, 1)]
    assert np.abs(correlations).max() < 6 / np.sqrt(length)
    assert abs(correlations.std() * np.sqrt(length) - 1) < 0.05
    assert abs(rows.mean()) < 4 / np.sqrt(rows.size)


def test_a_stream_is_the_same_on_every_machine() -> None:
    """Philox keyed by a hash is fixed for good: these numbers must not change between versions of the package."""
    first = generator(0, "pinned", 1, 2).integers(0, 2**32, 3).tolist()
    assert first == [2127750886, 767045397, 1116049564]


def test_normal_is_single_precision_on_the_cpu_and_follows_its_stream() -> None:
    x = normal(generator(0, "test"), 2000, 3, 4)
    assert x.shape == (2000, 3, 4)
    assert x.dtype == torch.float32
    assert x.device.type == "cpu"
    assert torch.equal(x, normal(generator(0, "test"), 2000, 3, 4))
    assert abs(float(x.mean())) < 4 / x.numel() ** 0.5
    assert abs(float(x.var()) - 1) < 4 * (2 / x.numel()) ** 0.5


def test_no_global_generator_is_read_or_written() -> None:
    draws = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        np.random.seed(seed)  # noqa: NPY002
        torch_before, numpy_before = torch.get_rng_state(), np.random.get_state()  # noqa: NPY002
        draws.append(normal(generator(7, "test", 3), 50))
        assert torch.equal(torch.get_rng_state(), torch_before)
        numpy_after = np.random.get_state()  # noqa: NPY002
        assert all(np.array_equal(a, b) for a, b in zip(numpy_before, numpy_after, strict=True))
    assert torch.equal(*draws)


# ---- the house ------------------------------------------------------------------------------------------------


def test_a_room_imports_only_from_the_rooms_above_it() -> None:
    command = [str(Path(sys.executable).parent / "lint-imports"), "--config", "pyproject.toml", "--no-cache"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "0 broken" in done.stdout


def test_importing_the_package_imports_nothing_heavy() -> None:
    heavy = ("torch", "numpy", "scipy", "diffusers", "matplotlib")
    code = f"import sys, diffusion_var; print([name for name in {heavy} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.stdout.strip() == "[]", done.stdout + done.stderr


def test_every_public_name_is_there() -> None:
    assert len(set(diffusion_var.__all__)) == len(diffusion_var.__all__)
    for name in diffusion_var.__all__:
        assert getattr(diffusion_var, name) is not None
    assert set(diffusion_var.__all__) == set(dir(diffusion_var))
    with pytest.raises(AttributeError, match="no_such_name"):
        diffusion_var.no_such_name  # noqa: B018
