"""Processes that a command starts for itself: how many, and how they end, with a small program in the place of ours."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from diffusion_var.app import processes
from diffusion_var.app.compare.options import CompareOptions
from diffusion_var.app.config import load_options
from diffusion_var.app.demo.options import DemoOptions
from diffusion_var.errors import InputError
from diffusion_var.files import make_folder

PROGRAM = """
import os, signal, sys, time
from pathlib import Path
from diffusion_var.app.processes import watch_starter
rank, folder = int(os.environ["RANK"]), Path(sys.argv[1])
signals = []
for number in (signal.SIGINT, signal.SIGTERM):
    signal.signal(number, lambda number, frame: signals.append(number))
watch_starter()
told = [os.environ[name] for name in ("WORLD_SIZE", "LOCAL_RANK", "OMP_NUM_THREADS", "MASTER_ADDR")]
(folder / f"{rank}.tmp").write_text(f"{os.getpid()} {' '.join(told)}")
(folder / f"{rank}.tmp").rename(folder / str(rank))
print(f"rank {rank} prints", flush=True)
print(f"error: rank {rank} complains", file=sys.stderr, flush=True)
mode = sys.argv[2]
if mode.startswith("exit"):
    sys.exit(int(mode.split(",")[1 + rank]))
while not signals:
    if mode == "dies" and rank:  # it sees that the first is gone
        try:
            os.kill(int((folder / "0").read_text().split()[0]), 0)
        except (FileNotFoundError, ProcessLookupError):
            sys.exit(1)
    time.sleep(0.01)
time.sleep(0.2)
(folder / f"{rank} signals").write_text(" ".join(map(str, signals)))
sys.exit(128 + signals[0])
"""
STARTER = """
import signal, sys
from diffusion_var.app import processes
from diffusion_var.stopping import StopSignals, unwinding
signal.signal(signal.SIGINT, signal.default_int_handler)  # which shells have the background ignore
processes.PROGRAM = [sys.executable, sys.argv[1]]
with StopSignals(), unwinding():
    sys.exit(processes.Started(tuple(sys.argv[2:]), 2, None).ended())
"""


@pytest.fixture
def programs(tmp_path: Path) -> list[str]:
    (tmp_path / "program.py").write_text(PROGRAM)
    (tmp_path / "starter.py").write_text(STARTER)
    return [sys.executable, str(tmp_path / "starter.py"), str(tmp_path / "program.py"), str(tmp_path)]


def begun(programs: list[str], mode: str) -> tuple[subprocess.Popen[str], list[int]]:
    """The starter, and the pids of those that it has started."""
    starter = subprocess.Popen([*programs, mode], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    files = [Path(programs[-1]) / str(rank) for rank in range(2)]
    until(lambda: all(file.exists() for file in files))
    return starter, [int(file.read_text().split()[0]) for file in files]


def until(condition: Any) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def is_there(pid: int) -> bool:
    return state(pid) not in ("", "Z", "X")


def state(pid: int) -> str:
    """What a process does, by a letter of the system's; nothing where it is gone."""
    try:
        return (Path("/proc") / str(pid) / "stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return ""


@pytest.mark.parametrize(
    ("codes", "code", "said"),
    [
        ("0,0", 0, "error: rank 0 complains\n"),
        ("3,1", 3, "error: rank 0 complains\n"),
        ("0,2", 2, "error: rank 0 complains\nerror: rank 1 complains\n"),
    ],
)
def test_the_first_one_speaks_and_they_end_alike(programs: list[str], codes: str, code: int, said: str) -> None:
    done = subprocess.run([*programs, f"exit,{codes}"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (code, "rank 0 prints\n", said)
    found = [(Path(programs[-1]) / str(rank)).read_text().split()[1:] for rank in range(2)]
    assert found == [["2", "0", "1", "127.0.0.1"], ["2", "1", "1", "127.0.0.1"]]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_reaches_each_of_them_once(programs: list[str], number: int) -> None:
    starter, pids = begun(programs, "waits")
    os.kill(starter.pid, number)
    assert starter.wait(30) == 128 + number
    assert [(Path(programs[-1]) / f"{rank} signals").read_text() for rank in range(2)] == [f"{int(number)}"] * 2
    assert not any(map(is_there, pids))


def test_they_are_suspended_with_it_and_go_on_with_it(programs: list[str]) -> None:
    starter, pids = begun(programs, "waits")
    os.kill(starter.pid, signal.SIGTSTP)
    until(lambda: {state(pid) for pid in (starter.pid, *pids)} == {"T"})
    os.kill(starter.pid, signal.SIGCONT)
    until(lambda: "T" not in {state(pid) for pid in (starter.pid, *pids)})
    os.kill(starter.pid, signal.SIGTERM)
    assert starter.wait(30) == 128 + signal.SIGTERM


def test_of_a_first_one_that_was_killed_another_one_tells(programs: list[str]) -> None:
    starter, pids = begun(programs, "dies")
    os.kill(pids[0], signal.SIGKILL)
    _, said = starter.communicate(timeout=30)
    assert starter.returncode == 1
    assert said == "error: rank 0 complains\nerror: rank 1 complains\n"


def test_they_end_with_whoever_started_them_however_it_ends(programs: list[str]) -> None:
    starter, pids = begun(programs, "waits")
    starter.kill()
    starter.wait(30)
    until(lambda: not any(map(is_there, pids)))


# ---- how many ------------------------------------------------------------------------------------------------------


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """Eight cores, no GPU, room for many."""
    for name in ("RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(processes, "cores", lambda: 8)
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr(processes, "_free_memory", lambda: 1 << 40)
    return monkeypatch


def options(**changes: Any) -> Any:
    return SimpleNamespace(**{"processes": 0, "device": None, "model": "digits", "cells_left": lambda: 100, **changes})


def test_as_many_as_cores_and_at_most_the_cells(machine: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert processes.wanted(options()) == 8
    assert processes.wanted(options(cells_left=lambda: 3)) == 3
    assert processes.wanted(options(cells_left=lambda: 0)) == 1
    assert processes.wanted(options(processes=3)) == 3
    assert processes.wanted(options(device="cuda:0")) == 1
    with pytest.raises(InputError, match=r"processes=-1 must be a whole number"):
        processes.wanted(options(processes=-1))
    machine.setattr("torch.cuda.is_available", lambda: True)
    assert processes.wanted(options()) == 1
    assert processes.wanted(options(device="cpu")) == 8
    machine.setenv("RANK", "0")
    assert processes.wanted(options(device="cpu", processes=3)) == 1


def test_each_has_room_for_a_model_of_its_own(machine: pytest.MonkeyPatch, tmp_path: Path) -> None:
    machine.setattr(processes, "_free_memory", lambda: 9 << 30)
    assert processes.wanted(options()) == 8
    with (tmp_path / "weights").open("wb") as file:
        file.truncate(1 << 30)
    assert processes.wanted(options(model=str(tmp_path))) == 2
    assert processes.wanted(options(model="somebody/model")) == 1


def test_without_a_command_line_of_its_own_nothing_is_started(machine: pytest.MonkeyPatch) -> None:
    assert processes.carried_out(options(processes=2)) is None
    with processes.starting(["show"]):
        assert processes.carried_out(SimpleNamespace()) is None
        assert processes.carried_out(options(processes=1)) is None


def test_cores_are_those_that_a_control_group_allows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(16)), raising=False)
    for name, content in {
        "a/cpu.max": "max 100000\n",
        "a/b/cpu.max": "350000 100000\n",
        "a/b/c/cpu.max": "800000 100000\n",
        "cpu/cpu.cfs_quota_us": "250000\n",
        "cpu/cpu.cfs_period_us": "100000\n",
        "old/cpu.cfs_quota_us": "-1\n",
        "old/cpu.cfs_period_us": "100000\n",
    }.items():
        make_folder((tmp_path / name).parent)
        (tmp_path / name).write_text(content)
    for line, shares in {
        "0::/a/b/c": [8.0, 3.5],
        "0::/a": [],
        "4:cpu:/elsewhere/of/the/host": [2.5],
        "4:old:/": [],
        "nonsense": [],
    }.items():
        (tmp_path / "own").write_text(f"{line}\n")
        assert [*processes.shares(tmp_path, tmp_path / "own")] == shares, line
    monkeypatch.setattr(processes, "shares", lambda: iter([8.0, 3.5]))
    assert processes.cores() == 3
    monkeypatch.setattr(processes, "shares", lambda: iter([0.4]))
    assert processes.cores() == 1
    monkeypatch.setattr(processes, "shares", lambda: iter([]))
    assert processes.cores() == 16


def test_cells_that_are_there_are_not_left(tmp_path: Path) -> None:
    settings = {"steps": [2, 3], "seeds": [0, 1], "metrics": ["fid", "bits_per_dim"], "out": tmp_path}
    settings["methods"] = [{"covariance": "beta"}, {"covariance": "beta_tilde", "eta": 0}]
    found = load_options(CompareOptions, settings)
    assert found.cells_left() == (2 + 1) * 2 * 2  # DDIM has no likelihood
    make_folder(tmp_path / "cells")
    for name in ("DDPM_β_K=2_seed=0", "DDPM_K=2_seed=0", "DDIM_K=3_seed=1"):
        for digit in "ab":
            (tmp_path / "cells" / f"{name.replace('β_', '')}-{digit * 24}.safetensors").touch()
    assert found.cells_left() == (2 + 1) * 2 * 2 - 3
    assert DemoOptions(out=tmp_path / "demo").cells_left() == 6 * 3 * 5
