"""Files: written whole or not at all, and folders that are looked at before work."""

import errno
import os
import socket
import stat
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

import pytest

import diffusion_var as dv
from diffusion_var import InputError
from diffusion_var.files import (
    beginning,
    lock_handle,
    make_folder,
    regular_file,
    require_empty_folder,
    write_atomic,
    write_together,
)
from diffusion_var.locks import locked


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


@pytest.mark.parametrize("name", ["a" * 255, "猫" * 85])
def test_the_longest_names_can_be_written_and_locked(name: str, tmp_path: Path) -> None:
    write_atomic(tmp_path / name, b"whole")
    left = tmp_path / f".{beginning(name)}.abc.tmp"
    left.write_bytes(b"half")
    with locked(tmp_path / name):
        write_atomic(tmp_path / name, b"new")
    assert os.listdir(tmp_path) == [name]
    assert (tmp_path / name).read_bytes() == b"new"


@pytest.mark.parametrize(
    ("name", "said"), [("a" * 256, "is longer than"), ("a/" * 3000, "is longer than"), ("a\0b", "null")]
)
@pytest.mark.parametrize(
    "door",
    [
        dv.VarianceTable.load,
        dv.Denoiser.from_pretrained,
        dv.data.read_images,
        dv.data.open_images,
        dv.metrics.FeatureStatistics.load,
        make_folder,
        regular_file,
        lambda path: write_atomic(path, b""),
        lambda path: require_empty_folder(path, overwrite=True),
        lambda path: dv.metrics.fid(path, "digits:score", features="digits"),
    ],
)
def test_what_no_path_can_be_is_refused(door: Callable[[str], Any], name: str, said: str) -> None:
    with pytest.raises(InputError, match=said) as error:
        door(name)
    assert str(error.value).isprintable()


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
    assert len(synced) == 1  # of the file: the folder is untouched
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


# ---- files that are replaced ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", [0o600, 0o640, 0o664, 0o444])
def test_a_file_that_is_replaced_keeps_its_permissions(mode: int, tmp_path: Path) -> None:
    target = tmp_path / "table.bin"
    target.write_bytes(b"old")
    target.chmod(mode)
    write_atomic(target, b"new")
    assert target.read_bytes() == b"new"
    assert target.stat().st_mode & 0o7777 == mode


def test_a_link_stays_and_what_it_leads_to_is_written(tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    for name, exists in (("there", True), ("dangling", False)):
        target, link = tmp_path / "disk" / name, tmp_path / f"link to {name}"
        if exists:
            target.write_bytes(b"old")
            target.chmod(0o600)
        link.symlink_to(target)
        write_atomic(link, b"new")
        assert link.is_symlink()
        assert target.read_bytes() == b"new"
        assert not exists or target.stat().st_mode & 0o777 == 0o600
    assert sorted(os.listdir(tmp_path / "disk")) == ["dangling", "there"]


def test_another_name_of_a_file_keeps_the_old_content(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"old")
    (tmp_path / "snapshot").hardlink_to(tmp_path / "a")
    write_atomic(tmp_path / "a", b"new")
    assert (tmp_path / "snapshot").read_bytes() == b"old"


def test_pipes_and_devices_are_not_replaced(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to("/dev/null")
    for name, said in (("pipe", "a named pipe"), ("link", "a device")):
        with pytest.raises(InputError, match=f"{name} is {said}, which is not replaced"):
            write_atomic(tmp_path / name, b"new")
    assert sorted(os.listdir(tmp_path)) == ["link", "pipe"]


def test_names_are_on_the_disk_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A rename is durable once the folder is."""
    done: list[str] = []
    waits, renames = os.fsync, os.replace
    kinds = {True: "folder", False: "file"}
    monkeypatch.setattr(os, "fsync", lambda h: (done.append(kinds[stat.S_ISDIR(os.fstat(h).st_mode)]), waits(h)))
    monkeypatch.setattr(os, "replace", lambda old, new: (done.append("rename"), renames(old, new)))
    write_atomic(tmp_path / "a", b"x")
    assert done == ["file", "rename", "folder"]


def test_what_killed_writers_left_of_a_file_is_removed_by_the_next(tmp_path: Path) -> None:
    for name in (".a.xyz.tmp", ".b.xyz.tmp"):
        (tmp_path / name).write_bytes(b"half")
    with open(tmp_path / ".a.alive.tmp", "wb") as alive:
        assert lock_handle(alive.fileno())
        write_atomic(tmp_path / "a", b"x")
    assert sorted(os.listdir(tmp_path)) == [".a.alive.tmp", ".b.xyz.tmp", "a"]


def test_many_files_are_written_each_whole(tmp_path: Path) -> None:
    contents: dict[Path, Any] = {tmp_path / f"{i}": f"{i}".encode() for i in range(150)}
    write_together(contents)
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == contents
    with pytest.raises(InputError, match="No space left"):
        write_together({tmp_path / "x": b"x", tmp_path / "y": full_disk})
    assert len(os.listdir(tmp_path)) == 150


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


def test_only_regular_files_and_links_to_them_are_opened(tmp_path: Path) -> None:
    (tmp_path / "table.bin").write_bytes(b"x")
    (tmp_path / "link").symlink_to("table.bin")
    for whole in ("table.bin", "link"):
        assert regular_file(str(tmp_path / whole)) == tmp_path / whole
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "to a pipe").symlink_to("pipe")
    listener = socket.socket(socket.AF_UNIX)
    here = os.getcwd()
    os.chdir(tmp_path)  # the path of a socket must be short
    try:
        listener.bind("socket")
    finally:
        os.chdir(here)
    for place, found in {
        tmp_path / "pipe": "is a named pipe, but a regular file is needed",
        tmp_path / "to a pipe": "is a named pipe",
        tmp_path / "socket": "is a socket",
        tmp_path: "is a folder",
        Path("/dev/zero"): "is a device",
        tmp_path / "nowhere": "there is no config",
        tmp_path / "table.bin" / "below": "there is no config",
        tmp_path / "loop": "cannot be looked at",
        Path("null\0byte"): "cannot be one",
    }.items():
        with pytest.raises(InputError, match=found):
            regular_file(place, "config")
    listener.close()
