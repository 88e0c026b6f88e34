"""Locks: one run at a time writes an output, the second is told who the first is, a killed one is in nobody's way."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from diffusion_var import InputError, files
from diffusion_var.locks import locked, tidy

HOLDER = """
import sys, time
from diffusion_var.locks import locked
with locked(sys.argv[1], folder=sys.argv[2] == "folder"):
    open(sys.argv[3], "wb").close()
    print("held", flush=True)
    time.sleep(float(sys.argv[4]))
"""


def holder(output: Path, kind: str, touch: Path, seconds: float = 600) -> subprocess.Popen[str]:
    """A process that holds the lock of an output."""
    command = [sys.executable, "-c", HOLDER, str(output), kind, str(touch), str(seconds)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    return process


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_the_second_is_told_who_the_first_is_and_a_killed_one_is_in_nobodys_way(kind: str, tmp_path: Path) -> None:
    output, folder = tmp_path / "out", kind == "folder"
    process = holder(output, kind, tmp_path / "touched")
    said = (
        rf"{output} is being written by process {process.pid} on .* \(since 2.*\); wait for it, or choose another path"
    )
    with pytest.raises(InputError, match=said), locked(output, folder):
        pytest.fail("two hold it")
    process.send_signal(signal.SIGKILL)
    process.wait()
    with locked(output, folder), pytest.raises(InputError, match=f"process {os.getpid()} "), locked(output, folder):
        pytest.fail("two hold it")
    assert [path.name for path in tmp_path.rglob("*") if path.name != "touched"] == (["out"] if folder else [])


def test_a_cache_is_waited_for(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    process = holder(tmp_path, "folder", tmp_path / "touched", 0.5)
    with locked(tmp_path, folder=True, wait=True):
        assert process.wait(timeout=10) == 0
    assert f"waiting for process {process.pid}" in capsys.readouterr().out


def test_whoever_enters_removes_what_killed_writers_left_and_nothing_else(tmp_path: Path) -> None:
    for name in (".out.abc.tmp", ".other.abc.tmp", "out.tmp", ".out.txt"):
        (tmp_path / name).write_bytes(b"half")
    with open(tmp_path / ".out.alive.tmp", "wb") as alive:
        assert files.lock_handle(alive.fileno())
        with locked(tmp_path / "out"):
            pass
    left = [".other.abc.tmp", ".out.alive.tmp", ".out.txt", "out.tmp"]
    assert sorted(path.name for path in tmp_path.iterdir()) == left
    with locked(tmp_path, folder=True):
        pass
    assert sorted(path.name for path in tmp_path.iterdir()) == [".out.txt", "out.tmp"]


def test_a_folder_that_was_made_for_nothing_is_removed(tmp_path: Path) -> None:
    with pytest.raises(KeyError), locked(tmp_path / "a" / "b", folder=True):
        raise KeyError
    assert list(tmp_path.iterdir()) == []
    with locked(tmp_path / "a" / "b", folder=True):
        (tmp_path / "a" / "b" / "image.png").write_bytes(b"x")
    assert os.listdir(tmp_path / "a" / "b") == ["image.png"]


def test_refusals(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"x")
    for output, folder in (
        (tmp_path / "none" / "x", False),
        (tmp_path / "file", True),
        (tmp_path / "file" / "x", True),
    ):
        with (
            pytest.raises(InputError, match=f"could not write {output}: (No such|Not a|File exists)"),
            locked(output, folder),
        ):
            pass


def test_where_no_folder_can_be_made_it_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where the system says it by "no such file", as of /proc; what is removed meanwhile is made again."""
    make, times = Path.mkdir, []

    def removed_twice(self: Path, *rest: object, **options: object) -> None:
        times.append(self)
        if len(times) > 2:
            make(self, *rest, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(Path, "mkdir", removed_twice)
    with locked(tmp_path / "new", folder=True):
        assert len(times) == 3

    def never(self: Path, *_: object, **__: object) -> None:
        raise FileNotFoundError(2, "No such file or directory")

    monkeypatch.setattr(Path, "mkdir", never)
    with (
        pytest.raises(InputError, match=r"could not write .*other: No such file or directory"),
        locked(tmp_path / "other", folder=True),
    ):
        pass


@pytest.mark.parametrize(
    ("machine", "process", "free"), [("own", "dead", True), ("own", "alive", False), ("other", "dead", False)]
)
def test_where_files_cannot_be_locked_the_named_process_counts(
    machine: str, process: str, free: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import platform

    monkeypatch.setattr("diffusion_var.locks.lock_handle", lambda handle: None)
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    number = ended.pid if process == "dead" else os.getppid()
    name = platform.node() if machine == "own" else "elsewhere"
    (tmp_path / ".out.lock").write_text(f"{number}\n{name}\n2026-01-01 00:00:00\n")
    if free:
        with locked(tmp_path / "out"):
            pass
        assert list(tmp_path.iterdir()) == []
        return
    with pytest.raises(InputError, match=f"process {number} on {name}"), locked(tmp_path / "out"):
        pass


def test_what_a_killed_run_left_in_a_finished_folder_is_removed_and_what_is_held_is_not(tmp_path: Path) -> None:
    (tmp_path / ".lock").write_text("1\n")
    (tmp_path / ".a.x.tmp").touch()
    tidy(tmp_path)
    assert list(tmp_path.iterdir()) == []
    with locked(tmp_path, folder=True):
        tidy(tmp_path)
        assert (tmp_path / ".lock").exists()
    tidy(tmp_path / "nowhere")
