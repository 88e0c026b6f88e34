"""Processes that a command starts for itself, one thread each, where there is no GPU.

Small networks gain little from threads, and lose much where another program keeps a core busy: the threads wait for
each other at every layer, spinning. Processes wait at cells alone. What is started are the command line's own words
again, as torchrun would start them; the first of the processes is the one that is heard, and this one waits, hands
signals on and ends as they do. They end with it, however it ends (`watch_starter`).
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from pathlib import Path
from typing import IO, Any

from .. import checks, launch
from ..stopping import TakenOver
from .terminal import complain

PROGRAM = [sys.executable, "-m", "diffusion_var"]
STARTED = "DIFFUSION_VAR_STARTED"  # set in processes that are started here
_PATIENCE = 60.0  # seconds that the others have to end after one has failed
_BASE, _UNKNOWN = 1 << 30, 4 << 30  # bytes of memory: of a process without its model; of a model that is not here yet
_COPIES = 3  # of a model's files in memory: as read, as used, and what flows through
_own_words: ContextVar[tuple[str, ...] | None] = ContextVar("own_words", default=None)


@contextmanager
def starting(words: Sequence[str]) -> Iterator[None]:
    """Inside, a command may start this program again with the words that it was started with."""
    token = _own_words.set(tuple(words))
    try:
        yield
    finally:
        _own_words.reset(token)


def carried_out(options: Any) -> int | None:
    """The exit code of processes that carried the command out; None: it is left to this one.

    Args:
        options: with `processes` (0: as many as suit the machine and the cells that are left), `device` and
            `cells_left`; other options have no processes of their own.
    """
    words = _own_words.get()
    if words is None or not hasattr(options, "processes"):
        return None
    count = wanted(options)
    return None if count == 1 else Started(words, count, options.device).ended()


def wanted(options: Any) -> int:
    """How many processes are to carry a command out."""
    given = checks.whole("processes", options.processes, least=0)
    if launch.expected() > 1 or "RANK" in os.environ:  # somebody else has decided
        return 1
    if given:
        return given
    if os.name != "posix" or cores() == 1 or not _on_cpu(options.device):
        return 1
    return int(max(min(cores(), options.cells_left(), _fitting(options)), 1))


def cores() -> int:
    """How many cores this process may use: those it is bound to, and no more than its share of the machine."""
    bound = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(int(min([bound, *shares()])), 1)


def shares(root: Path = Path("/sys/fs/cgroup"), own: Path = Path("/proc/self/cgroup")) -> Iterator[float]:
    """Cores' worth of time that control groups allow, by every group that this process is in."""
    with suppress(OSError, ValueError):
        for line in own.read_text().splitlines():
            _, kinds, path = line.split(":", 2)
            innermost = root / kinds / path.lstrip("/")
            for group in (innermost, *innermost.parents):
                if group == root.parent:
                    break
                yield from _share(group)


def _share(group: Path) -> Iterator[float]:
    with suppress(OSError, ValueError):
        quota, period = (group / "cpu.max").read_text().split()
        if quota != "max":
            yield int(quota) / int(period)
    with suppress(OSError, ValueError):
        micros = [int((group / f"cpu.cfs_{name}_us").read_text()) for name in ("quota", "period")]
        if micros[0] > 0:
            yield micros[0] / micros[1]


def _on_cpu(device: str | None) -> bool:
    if device is not None:
        return device.partition(":")[0] == "cpu"
    import torch

    return not torch.cuda.is_available()


def _fitting(options: Any) -> int:
    """How many processes have room in memory, each with a model of its own."""
    free = _free_memory()
    return cores() if free is None else free // (_BASE + _COPIES * _size(str(getattr(options, "model", ""))))


def _free_memory() -> int | None:
    """Bytes that programs may still take, where the system says it."""
    with suppress(OSError, ValueError, KeyError):
        lines = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text().splitlines())
        return int(lines["MemAvailable"].split()[0]) << 10
    return None


def _size(model: str) -> int:
    """Bytes of a model's files."""
    place = Path(model)
    if model and place.exists():
        return sum(file.stat().st_size for file in [place, *place.rglob("*")] if file.is_file())
    return _UNKNOWN if "/" in model else 0  # or it is one of the package's own, which are small


class Started:
    """The processes, from their start to their end.

    Args:
        words: of the command line.
        count: how many.
        device: that was asked for.
    """

    def __init__(self, words: tuple[str, ...], count: int, device: str | None) -> None:
        # What the others say the first one has said: it is kept for the case that the first could not.
        heard = range(count if "--debug" in words else 1)
        self._kept = [None if rank in heard else _file() for rank in range(count)]
        self._children: list[subprocess.Popen[bytes]] = []
        self._told: list[int] = []
        shared = {**os.environ, **_common(count, device)}
        with TakenOver(self._hand_on), self._suspended_together():
            for rank, kept in enumerate(self._kept):
                self._children.append(
                    subprocess.Popen(
                        [*PROGRAM, *words],
                        env={**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)},
                        stdin=subprocess.PIPE,  # never written to: it ends when this process does
                        stdout=subprocess.DEVNULL if rank else None,
                        stderr=kept,
                        process_group=0,  # Ctrl-C reaches them once, through this process
                    )
                )
            for number in self._told:  # while not all were there
                self._hand_on(number)
            self._wait()

    def ended(self) -> int:
        """The exit code of whoever says why the work ended; what it has said is shown."""
        codes = [child.returncode for child in self._children]
        if codes[0] > 0 or not any(codes):
            return codes[0]
        for code, kept in zip(codes, self._kept, strict=True):
            if kept is not None and code > 0:
                kept.seek(0)
                complain(kept.read().decode(errors="backslashreplace").strip(), most=None)
                return code
        worst = min(codes)
        complain(f"error: all {len(codes)} processes were killed (signal {-worst}); for want of memory, perhaps.")
        return 128 - worst

    def _wait(self) -> None:
        failed_at = None
        while any(child.poll() is None for child in self._children):
            if failed_at is None and any(child.returncode for child in self._children):
                failed_at = time.monotonic()
            if failed_at is not None and time.monotonic() - failed_at > _PATIENCE:
                self._hand_on(signal.SIGKILL)
            time.sleep(0.02)

    @contextmanager
    def _suspended_together(self) -> Iterator[None]:
        """Ctrl-Z stops them before this process, and they go on after it."""

        def stop(number: int, frame: Any) -> None:
            self._send(signal.SIGSTOP)
            os.kill(os.getpid(), signal.SIGSTOP)
            self._send(signal.SIGCONT)

        usual = signal.getsignal(signal.SIGTSTP) == signal.SIG_DFL
        if not usual or threading.current_thread() is not threading.main_thread():
            yield
            return
        signal.signal(signal.SIGTSTP, stop)
        try:
            yield
        finally:
            signal.signal(signal.SIGTSTP, signal.SIG_DFL)

    def _hand_on(self, number: int, frame: Any = None) -> None:
        self._told.append(number)
        self._send(number)

    def _send(self, number: int) -> None:
        for child in self._children:
            if child.poll() is None:
                child.send_signal(number)


def _file() -> IO[bytes]:
    return tempfile.TemporaryFile()  # it has no name, and is gone with the process


def _common(count: int, device: str | None) -> dict[str, str]:
    """The environment of all of them: torchrun's, and one thread each."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    found = {"WORLD_SIZE": count, "LOCAL_WORLD_SIZE": count, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    found |= {"OMP_NUM_THREADS": 1, STARTED: 1}
    if sys.platform == "linux" and "GLOO_SOCKET_IFNAME" not in os.environ:
        found["GLOO_SOCKET_IFNAME"] = "lo"  # they talk on this machine alone, whatever its name resolves to
    if device is not None and device.partition(":")[0] == "cpu":
        found["CUDA_VISIBLE_DEVICES"] = ""
    return {name: str(value) for name, value in found.items()}


def speaks_for_all() -> bool:
    """Whether this is the one that is heard, of processes that were started here: as if there were no others."""
    return STARTED in os.environ and os.environ.get("RANK") == "0"


def watch_starter() -> None:
    """In a process that was started here: end it with whoever started it."""

    def wait() -> None:
        with suppress(OSError):
            while os.read(0, 1):
                pass
        os.kill(os.getpid(), signal.SIGKILL)

    if STARTED in os.environ:
        signal.signal(signal.SIGTTOU, signal.SIG_IGN)  # they may write to the terminal that is another's
        threading.Thread(target=wait, name="diffusion_var starter", daemon=True).start()
