"""What the processes of a program know of each other: who works, who waits, who failed, who was told to stop.

They tell it each other through the program's key-value store, from a thread in each that looks every half second.
Nothing here blocks: the main thread reads what the thread has found. A process counts as lost where it is gone from
this machine, or has not been heard of for `SILENT` seconds; as one that hangs where its work has not moved for
`launch.timeout()` seconds while another waits for it.
"""

from __future__ import annotations

import json
import os
import socket
import threading
import time
from typing import Any

from .errors import InputError, RankError, leave_unsaid

SILENT = 120.0
LOOK = 0.5  # seconds between two looks
GRACE = 12.0  # seconds after a stop that the processes have to meet: schedulers kill after 30
_STOOD_STILL = 10.0  # seconds between two looks after which this very process was stopped (Ctrl-Z), or swapped out
_LEAVE = 25.0  # seconds that the main thread has to end after a failure, where it is guarded
_WORDS = ("failed", "stop", "call")


class Peers:
    """The processes of one block of shared work, seen from one of them.

    Args:
        store: torch.distributed's, for this block alone.
        rank, count: which process this is, and of how many.
        hangs: seconds without progress after which a process hangs.
        guard: whether to end this process where its main thread cannot, after another has failed.

    Attributes: `failed`, the `RankError` of what ended the work, if anything did; `stop`, (rank, signal) of the first
    that was told to stop; `called`, the number of the last meeting that somebody called.
    """

    def __init__(self, store: Any, rank: int, count: int, hangs: float, guard: bool = False) -> None:
        self.rank, self.count, self.hangs, self._guard = rank, count, hangs, guard
        self.failed: RankError | None = None
        self.stop: tuple[int, int] | None = None
        self.called = 0
        #: What this process tells of itself: steps of its work, whether it waits, its progress bar and what is done.
        self.steps, self.waits, self.bar, self.done = 0, False, 0, 0
        self._store = store
        self._looks, self._looked = 0, time.monotonic()
        self._told: dict[int, list[int]] = {r: [0, 0, 0, 0, 0] for r in range(count)}
        self._heard = dict.fromkeys(range(count), time.monotonic())
        self._moved = dict.fromkeys(range(count), time.monotonic())
        self._without_store_since: float | None = None
        self._leaving = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="diffusion_var peers", daemon=True)
        self._pids: dict[int, int] = {}

    # ---- arriving and leaving ---------------------------------------------------------------------------------

    def arrive(self, what: str) -> None:
        """This process has come to the work `what`."""
        for word in _WORDS:  # unless it is there: who has come before may have failed since
            self._store.compare_set(word, "", "")
        self._store.set(f"beat/{self.rank}", self._beat())
        self._store.set(f"here/{self.rank}", json.dumps([what, _here(), os.getpid()]))

    def missing(self, key: str) -> list[int]:
        """The processes that have not set their key of this name."""
        return [r for r in range(self.count) if not self._store.check([f"{key}/{r}"])]

    def begin(self, what: str) -> None:
        """All have arrived: look after each other from now on. InputError where they came to different works."""
        found = [json.loads(self._store.get(f"here/{r}")) for r in range(self.count)]
        unlike = next((r for r, (other, *_) in enumerate(found) if other != what), None)
        if unlike is not None:
            raise InputError(
                f"rank {unlike} of {self.count} has come to {found[unlike][0]}, but rank {self.rank} to {what}; all "
                "of them make the same calls, in one order, or what one makes alone stands in `with dv.alone():`."
            )
        here = _here()
        self._pids = {r: pid for r, (_, where, pid) in enumerate(found) if where == here and r != self.rank}
        now = time.monotonic()
        self._heard, self._moved = (dict.fromkeys(range(self.count), now) for _ in range(2))
        self._thread.start()

    def end(self, error: BaseException | None, said: str | None, code: int) -> None:
        """This process leaves, well or by an error, of which the others are told; the first waits for them a while,
        since it may be the one that keeps the store."""
        try:
            if error is not None and said is not None:
                self.fail(self.rank, said, code)
                first = self.failed
                if first is not None and first.rank != self.rank and first.said == said:
                    leave_unsaid(error)
            self._store.set(f"left/{self.rank}", "1")
            until = time.monotonic() + (10.0 if error is None else 5.0)
            while self.rank == 0 and time.monotonic() < until and self._lingers():
                time.sleep(0.01)
        except RuntimeError:  # the store is gone with its process
            pass
        finally:
            self._leaving.set()
            if self._thread.is_alive():
                self._thread.join(5.0)

    def _lingers(self) -> bool:
        return any(r not in self._gone() for r in self.missing("left"))

    # ---- telling ----------------------------------------------------------------------------------------------

    def fail(self, rank: int, said: str, code: int = 1) -> None:
        """All are to end since a process failed; of several, the first counts."""
        record = json.dumps({"rank": rank, "said": said, "code": code})
        self._read_failure(self._store.compare_set("failed", "", record))

    def hear_failure(self) -> None:
        """Look whether a process has failed, where the thread does not look yet."""
        self._read_failure(self._store.get("failed"))

    def ask(self, signal: int) -> None:
        """This process was told to stop (the thread tells the others)."""
        self.stop = self.stop or (self.rank, signal)

    def call(self, meeting: int) -> None:
        """Call all to a meeting."""
        if self.called < meeting:
            self.called = meeting
            self._store.set("call", str(meeting))

    def others_done(self, bar: int) -> int:
        """What the others have done of a progress bar."""
        return sum(told[4] for r, told in self._told.items() if r != self.rank and told[3] == bar)

    def note_done(self, every: list[tuple[int, int]]) -> None:
        """What each process has done of which progress bar, as they said when they met."""
        for r, (bar, done) in enumerate(every):
            self._told[r] = [*self._told[r][:3], bar, done]

    # ---- the thread -------------------------------------------------------------------------------------------

    def _watch(self) -> None:
        failed_at = None
        while not self._leaving.wait(LOOK):
            try:
                if self._without_store_since is None:
                    self._look()
            except RuntimeError:  # its process has ended, or is about to
                self._without_store_since = time.monotonic()
            self._mind_lost_store()
            if self.failed is not None and self._guard:
                failed_at = failed_at or time.monotonic()
                if time.monotonic() - failed_at > _LEAVE and not self._leaving.is_set():
                    os.write(2, f"error: {self.failed}\n".encode())
                    os._exit(self.failed.code)

    def _look(self) -> None:
        self._looks += 1
        self._store.set(f"beat/{self.rank}", self._beat())
        if self.stop is not None and self.stop[0] == self.rank:
            self._store.compare_set("stop", "", json.dumps(self.stop))
        keys = [*_WORDS, *(f"beat/{r}" for r in range(self.count))]
        failed, stop, called, *beats = _get(self._store, keys)
        self._read_failure(failed)
        if stop and self.stop is None:
            rank, signal = json.loads(stop)
            self.stop = rank, signal
        self.called = max(self.called, int(called or 0))
        now, before = time.monotonic(), self._looked
        self._looked = now
        if now - before > _STOOD_STILL:  # nobody else is to blame for what was not heard meanwhile
            self._heard, self._moved = (dict.fromkeys(range(self.count), now) for _ in range(2))
        for r, text in enumerate(beats):
            told = [int(number) for number in text.split()]
            if told[0] != self._told[r][0]:
                self._heard[r] = now
            if told[1] != self._told[r][1] or told[2]:
                self._moved[r] = now
            self._told[r] = told
        if self.failed is None:
            self._judge(now)

    def _judge(self, now: float) -> None:
        left = [r for r in self._gone() if r in self.missing("left")]
        if left:
            self.fail(left[0], "was killed, or ended without a word (for want of memory, perhaps)")
        for r in range(self.count):
            silent = now - self._heard[r] > SILENT
            if silent and r != self.rank and r in self.missing("left"):
                self.fail(r, f"has not been heard of for {SILENT:g} s: its machine, or the way to it, may be gone")
            quiet = now - self._heard[r] > _STOOD_STILL and r != self.rank and self.stop is None
            if self.waits and quiet and r not in self.missing("left"):
                self.fail(r, "has left the work before its end")
            if self.waits and now - self._moved[r] > self.hangs and r in self.missing("left"):
                self.fail(r, f"has made no progress for {self.hangs:g} s (DIFFUSION_VAR_TIMEOUT)")

    def _gone(self) -> list[int]:
        """The processes of this machine that are there no more."""
        return [r for r, pid in self._pids.items() if not _is_alive(pid)]

    def _mind_lost_store(self) -> None:
        """Without the store nothing can be shared: whoever kept it is gone, and seldom had time to say why."""
        since = self._without_store_since
        if since is None or self.failed is not None or time.monotonic() - since < 2 * LOOK:
            return
        self.lose_store()

    def lose_store(self) -> None:
        """The process that kept the store is gone, or else another one of this machine that is."""
        gone = min(self._gone(), default=0)
        self.failed = RankError(gone, self.count, "was killed, or ended without a word (the way to it is gone)")

    def _read_failure(self, text: Any) -> None:
        text = text.decode() if isinstance(text, bytes) else text
        if text and self.failed is None:
            found = json.loads(text)
            self.failed = RankError(found["rank"], self.count, found["said"], found["code"])

    def _beat(self) -> str:
        return f"{self._looks} {self.steps} {int(self.waits)} {self.bar} {self.done}"


def _get(store: Any, keys: list[str]) -> list[str]:
    """Values that are there."""
    values = store.multi_get(keys) if store.has_extended_api() else [store.get(key) for key in keys]
    return [value.decode() for value in values]


def _here() -> str:
    """Where process numbers are the same: a machine, and on it a container, which may have the machine's name."""
    try:
        with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
            return f"{socket.gethostname()} {file.read().strip()} {os.stat('/proc/self/ns/pid').st_ino}"
    except OSError:  # no Linux
        return socket.gethostname()


def _is_alive(pid: int) -> bool:
    """Whether a process of this machine lives; one that ended and was not waited for does not."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as file:
            return file.read().rpartition(")")[2].split()[0] not in ("Z", "X")
    except (OSError, IndexError):  # no Linux
        return True
