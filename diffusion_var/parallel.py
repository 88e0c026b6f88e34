"""Work that many processes share: who does what, what they tell each other, and how all end when one does.

    with sharing("estimate", facts) as team:      # every process comes here, with the same facts
        mine = team.share(costs)                  # whole units, balanced
        ...                                       # `beat` where there is progress; `team.called` ends a stretch of work
        found = team.gather(arrays, plain)        # everybody's, in the order of ranks, on every process
        team.end_if_stopped()

In one process, and inside `alone`, a team is of one and all of this does nothing. Elsewhere the processes are those of
torch.distributed, which torchrun, `accelerate launch` or srun started (`launch`). What they do not say through
gathers, they know through `peers`. A process that raises makes all raise `RankError`, which names it; a signal to stop,
to any of them, makes all stop together where they meet next.
"""

from __future__ import annotations

import heapq
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar
from importlib.metadata import version
from typing import TYPE_CHECKING, Any, TypeVar

from . import checks, launch, stopping
from .errors import InputError, RankError, hear_warnings, issue, warn
from .exchange import Exchange
from .measured import agree, shown
from .peers import GRACE, Peers
from .stopping import Stopped, TakenOver

if TYPE_CHECKING:
    import numpy.typing as npt

    Arrays = Mapping[str, npt.NDArray[Any]]

T = TypeVar("T")
_COMPLAIN = 30.0  # seconds of waiting for processes that have not come, before a word on it

_alone: ContextVar[bool] = ContextVar("alone", default=False)
_team: ContextVar[Team | None] = ContextVar("team", default=None)
_blocks = 0  # of shared work begun by this program


@contextmanager
def alone() -> Iterator[None]:
    """Inside, this process shares nothing with the others of its program: it does all the work that it asks for.

    For what one process does and the others do not, or do otherwise: previews of the first one in a training, samples
    of each with a seed of its own.
    """
    token, outer = _alone.set(True), _team.set(None)
    try:
        yield
    finally:
        _alone.reset(token)
        _team.reset(outer)


def team() -> Team:
    """The team of the shared work under way; outside of any, and inside `alone`, this process by itself."""
    return _team.get() or Team(None)


def beat(done: int = 0) -> None:
    """There was progress. Raises RankError where another process has ended the work, Stopped where this one was told to
    and has not come to a place to stop at within some seconds."""
    if _running is not None:
        _running.beat(done)


def is_first() -> bool:
    """Whether this process is the one that writes and speaks, in a work that is shared."""
    return _running is None or _running.rank == 0


def is_shared() -> bool:
    """Whether processes share work just now, though perhaps not this part of it."""
    return _running is not None


@contextmanager
def sharing(what: str, facts: Callable[[], Mapping[str, Any]] | None = None, guard: bool = False) -> Iterator[Team]:
    """Work that all processes of the program come to together; a team of one where there is one process.

    Args:
        what: the work, for messages: a function's or command's name.
        facts: what all must agree on, as plain data (`measured` numbers within their tolerances).
        guard: at a command's edge: whether a process whose main thread cannot end is ended after a failure.

    Raises InputError, in every process, where the facts differ; RankError where another process fails.
    """
    elsewhere = _running is not None and _team.get() is None  # in a thread of a program that shares something else
    if _alone.get() or elsewhere:
        yield Team(None)
        return
    if (outer := _team.get()) is not None:  # the same processes, at a part of the same work
        outer.agree({"call": what, **({} if facts is None else facts())}, what)
        yield outer
        return
    launch.join()
    if not launch.is_joined():
        yield Team(None)
        return
    from torch import distributed

    if distributed.get_world_size() == 1:
        yield Team(None)
        return
    with _block(what, facts, guard) as shared:
        yield shared


_running: Team | None = None


@contextmanager
def _block(what: str, facts: Callable[[], Mapping[str, Any]] | None, guard: bool) -> Iterator[Team]:
    global _running, _blocks
    from torch import distributed

    _blocks += 1
    rank, count = distributed.get_rank(), distributed.get_world_size()
    peers = Peers(_store(f"block {_blocks}"), rank, count, launch.timeout(), guard)
    shared, error = Team(peers), None
    with ExitStack() as stack:
        token = _team.set(shared)
        stack.callback(_team.reset, token)
        stack.enter_context(TakenOver(lambda number, frame: shared.ask(number)))
        stack.enter_context(hear_warnings(shared.hear))
        _running = shared
        try:
            peers.arrive(what)
            shared.wait("arrived", what)
            peers.begin(what)
            shared.agree({**_versions(), **({} if facts is None else facts())}, what)
            yield shared
            shared.finish()
        except BaseException as raised:
            error = shared.reason(raised)
            if error is raised:
                raise
            raise error from raised
        finally:
            _running = None
            said, code = _told(error)
            peers.end(error, said, code)
            shared.close(error is None)


def _told(error: BaseException | None) -> tuple[str | None, int]:
    """What the others are told of an error of this process, and its exit code."""
    if error is None or isinstance(error, RankError):
        return None, 0
    if isinstance(error, KeyboardInterrupt):
        together = isinstance(error, Stopped) and error.together
        return (None, 0) if together else (f"was {stopping.word(error)}", stopping.exit_code(error))
    said = str(error).strip() or type(error).__name__
    ours = type(error).__module__.startswith("diffusion_var")
    return (f"failed: {said}" if ours else f"failed: {type(error).__name__}: {said}"), 2 if ours else 1


def _versions() -> dict[str, str]:
    return {f"version of {name}": version(name) for name in ("diffusion-var", "torch", "numpy", "diffusers")}


def _store(name: str) -> Any:
    """A part of the program's store, by a connection of its own: one that torch waits in lets nobody else ask."""
    from torch.distributed.distributed_c10d import PrefixStore, _get_default_store

    store = _get_default_store()
    return PrefixStore(f"diffusion_var {name}", store.clone() if hasattr(store, "clone") else store)


class Team:
    """The processes of a shared work, seen from one of them; of one process, if `peers` is None.

    Attributes: `rank` and `count`; `first`, whether this is the one that writes and speaks; `warnings`, of
    this process.
    """

    def __init__(self, peers: Peers | None) -> None:
        self._peers = peers
        self.rank, self.count = (0, 1) if peers is None else (peers.rank, peers.count)
        self.warnings: list[str] = []
        self._asked: float | None = None  # when this process came to know of a stop
        self._meeting = self._claims = self._bars = self._beats_since_asked = 0
        self._agreed: tuple[int, int] | None = None  # the stop that all know of since the last gather
        self._waiting_bar: Callable[[], None] | None = None
        self._exchanges = None if peers is None else Exchange(peers.rank, peers.count, lambda: peers.failed)

    @property
    def first(self) -> bool:
        """Whether this process writes and speaks."""
        return self.rank == 0

    # ---- sharing ----------------------------------------------------------------------------------------------

    def share(self, costs: Sequence[float]) -> list[int]:
        """The positions of the units that this process takes, ascending: the dearest first to whoever has least."""
        shares: list[list[int]] = [[] for _ in range(self.count)]
        loads = [(0.0, r) for r in range(self.count)]
        for i in sorted(range(len(costs)), key=lambda i: (-costs[i], i)):
            load, r = loads[0]
            heapq.heapreplace(loads, (load + costs[i], r))
            shares[r].append(i)
        return sorted(shares[self.rank])

    def claimed(self, count: int) -> Iterator[int]:
        """Numbers below `count`, each in one process: the next one to whoever is free. Ends early where the work is to
        stop, and for all alike (`end_if_stopped`)."""
        self._claims += 1
        key, k = f"claims {self._claims}", -1
        while not self.called or self._peers is None:
            k = k + 1 if self._peers is None else int(self._store.add(key, 1)) - 1
            if k >= count:
                break
            yield k
            beat()

    def made(self, costs: Sequence[float], make: Callable[[int], npt.NDArray[Any]]) -> list[npt.NDArray[Any]]:
        """What `make` gives of each unit, made by one process, in the order of the units, in every process."""
        mine = {}
        for k in self.share(costs):
            mine[str(k)] = make(k)
            beat()
            if self.called:  # to stop: nobody calls for anything else
                break
        told = self.gather(mine)
        self.end_if_stopped()
        every = {name: array for arrays, _ in told for name, array in arrays.items()}
        return [every[str(k)] for k in range(len(costs))]

    def first_alone(self, call: Callable[[], T]) -> T:
        """What `call` gives in the first process, plain data, in every one."""
        if self._peers is None:
            return call()
        with alone():  # what is shared in it would be met by others at this gather
            own = call() if self.first else None
        found: T = self.gather({}, own)[0][1]
        return found

    def tell_idle(self, units: int, of: str) -> None:
        """Say, once, that there are more processes than units of work."""
        if 0 < units < self.count and self.first:
            smaller = ", or make the batches smaller" * of.startswith("batches")
            warn(
                f"there are more processes ({self.count}) than {of} ({units}) to share between them; those left over "
                f"wait: start fewer{smaller}."
            )

    # ---- telling ----------------------------------------------------------------------------------------------

    def gather(self, arrays: Arrays, plain: Any = None, to_first: bool = False) -> list[tuple[dict[str, Any], Any]]:
        """Everybody's arrays and plain data, in the order of ranks: a meeting, to which every process comes.

        Args:
            to_first: whether the first process alone needs them; the others get an empty list.
        """
        if self._peers is None:
            return [(dict(arrays), plain)]
        import numpy as np
        from safetensors.numpy import load, save

        mine = save(
            {name: np.asarray(array, order="C") for name, array in arrays.items()}, {"plain": json.dumps(plain)}
        )
        self._meeting += 1
        self.wait(f"meeting {self._meeting}")
        return [(load(text), json.loads(_plain_of(text))) for text in self._exchange(mine, to_first)]

    @property
    def called(self) -> bool:
        """Whether this process shall come to the next `gather` now: somebody has called, or is told to stop."""
        if self._peers is None:
            return False
        self._note_stop()
        return self._peers.called > self._meeting or self._peers.stop is not None

    def call(self) -> None:
        """Call everybody to the next `gather`: where a state is to be saved."""
        if self._peers is not None:
            self._peers.call(self._meeting + 1)

    def agree(self, facts: Mapping[str, Any], what: str) -> None:
        """InputError, in every process, unless all have the same facts."""
        if self._peers is None:
            return
        found = [theirs for _, theirs in self.gather({}, json.loads(json.dumps(facts, default=str)))]
        unlike: dict[str, int] = {}
        for r, theirs in enumerate(found):
            for key in {**found[0], **theirs}:
                if not agree(found[0].get(key), theirs.get(key)):
                    unlike.setdefault(key, r)
        if unlike:
            key, r = next(iter(unlike.items()))
            raise InputError(
                f"the processes differ in {checks.listing([*unlike], 6)} (the {key} of rank 0 is "
                f"{_fact(found[0], key)}, of rank {r} {_fact(found[r], key)}), but {what} is shared by all: "
                "give all of them the same, or what is not shared stands in `with dv.alone():`."
            )

    # ---- stopping ---------------------------------------------------------------------------------------------

    def ask(self, signal: int) -> None:
        """This process was told to stop by a signal; a second Ctrl-C, after a second, means at once."""
        again = self._asked is not None and time.monotonic() - self._asked > 1.0
        if again and signal == 2:
            raise Stopped(signal)
        self._asked = self._asked or time.monotonic()
        if self._peers is not None:
            self._peers.ask(signal)

    @property
    def stop(self) -> Stopped | None:
        """What ends all processes, where one was told to stop before the last `gather`: all know of it alike."""
        if self._agreed is None:
            return None
        return self._stopped_by(*self._agreed)

    def end_if_stopped(self) -> None:
        """Raise `stop`, if there is any."""
        if (stop := self.stop) is not None:
            raise stop

    def beat(self, done: int = 0) -> None:
        """See the function `beat`."""
        if self._peers is None:
            return
        self._peers.steps += 1
        self._peers.done += done
        self._beats_since_asked += self._asked is not None
        self._raise_if_over()

    def _raise_if_over(self, waits_since: float = 0.0) -> None:
        assert self._peers is not None
        failed = self._peers.failed
        if failed is not None and failed.rank != self.rank:
            raise failed
        if failed is not None:  # another process says so of this one: it hung, and moves again
            raise RankError(self.rank, self.count, failed.said, failed.code)
        self._note_stop()
        since = max(self._asked or 0.0, waits_since)  # who comes late, from a long step, still meets the others
        # The first beat after a long step is not the last: what comes next may be the place to meet.
        due = self._beats_since_asked > 1 or bool(waits_since)
        if due and self._asked is not None and time.monotonic() - since > GRACE and self._peers.stop is not None:
            raise self._stopped_by(*self._peers.stop)

    def _stopped_by(self, rank: int, signal: int) -> Stopped:
        return Stopped(signal, together=True, rank=None if rank == self.rank else rank)

    def _note_stop(self) -> None:
        assert self._peers is not None
        if self._peers.stop is not None and self._asked is None:
            self._asked = time.monotonic()

    def reason(self, error: BaseException) -> BaseException:
        """What ends this process: of an exchange that broke, what broke it."""
        ours = type(error).__module__.startswith("diffusion_var")  # a network's may speak of connections, too
        if self._peers is None or not isinstance(error, RuntimeError) or ours:
            return error
        if not any(word in f"{type(error).__name__} {error}".lower() for word in _BROKEN):
            return error
        until, self._peers.waits = time.monotonic() + 5.0, True  # where it took too long, it is seen for whom
        while self._peers.failed is None and time.monotonic() < until:
            time.sleep(0.05)
        if self._peers.failed is None and not self.first and any(word in str(error).lower() for word in _CUT):
            self._peers.lose_store()  # before the work had begun, from when on it is watched
        return self._peers.failed or error

    # ---- waiting and exchanging -------------------------------------------------------------------------------

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """While this process waits for the others in an exchange of somebody else's (DistributedDataParallel's)."""
        if self._peers is None:
            yield
            return
        self._peers.waits = True
        try:
            yield
        finally:
            self._peers.waits = False
        self._peers.steps += 1

    @property
    def _store(self) -> Any:
        assert self._peers is not None
        return self._peers._store

    def wait(self, key: str, what: str | None = None) -> None:
        """Until every process has come to `key`; after a while, with `what`, a word on who has not."""
        assert self._peers is not None
        peers, begun, pause, complained = self._peers, time.monotonic(), 1e-3, False
        self._store.add(key, 1)
        peers.waits = True
        try:
            while int(self._store.add(key, 0)) < self.count:
                if what is not None:
                    peers.hear_failure()
                if what is None or peers.failed is not None:
                    self._raise_if_over(begun)
                if what is not None and self._asked is not None:
                    raise Stopped(peers.stop[1] if peers.stop else 2)
                waited = time.monotonic() - begun
                if what is not None and waited > peers.hangs:
                    peers.fail(next(iter(peers.missing("here")), 0), f"has not come to {what} for {peers.hangs:g} s")
                if what is not None and waited > _COMPLAIN and not complained:
                    _complain(peers.missing("here"), self.count, self.rank, what)
                    complained = True
                if self._waiting_bar is not None:
                    self._waiting_bar()
                time.sleep(pause)
                pause = min(2 * pause, 0.02)
        finally:
            peers.waits = False
        peers.steps += 1

    def _exchange(self, mine: bytes, to_first: bool) -> list[bytes]:
        """Everybody's bytes; and with their sizes, what they know of a stop and have done of a bar."""
        assert self._peers is not None
        assert self._exchanges is not None
        own = [len(mine), *(self._peers.stop or (-1, -1)), self._peers.bar, self._peers.done]
        told = self._exchanges.numbers(own)
        self._peers.note_done([(bar, done) for *_, bar, done in told])
        stops = [(r, number) for _, r, number, *_ in told if r >= 0]
        self._agreed = self._agreed or (stops[0] if stops else None)
        return self._exchanges.contents(mine, [size for size, *_ in told], to_first)

    def hear(self, warning: str) -> None:
        """A warning of this process, which the first one issues for all: each text once."""
        if self.first and warning not in self.warnings:
            issue(warning)
        self.warnings.append(warning)

    def finish(self) -> None:
        """The end of the work, to which all come."""
        for _, said in self.gather({}, self.warnings, to_first=True)[1:]:
            for warning in said:
                self.hear(warning)
        self.end_if_stopped()

    def close(self, well: bool) -> None:
        """The work is over, well or not."""
        if self._exchanges is not None:
            self._exchanges.close(well)

    # ---- progress ---------------------------------------------------------------------------------------------

    def new_bar(self, pull: Callable[[], None] | None) -> int:
        """The number of a progress bar that all show together; `pull` is called while this process waits."""
        self._bars += 1
        if self._peers is not None:
            self._peers.bar, self._peers.done = self._bars, 0
        self._waiting_bar = pull
        return self._bars

    def others_done(self, bar: int) -> int:
        """What the other processes have done of a bar."""
        return 0 if self._peers is None else self._peers.others_done(bar)


def _fact(facts: Mapping[str, Any], key: str) -> str:
    return shown(facts[key]) if key in facts else "missing"


#: What is said where an exchange broke, or a store is gone.
_CUT = ("connection", "broken pipe", "failed to recv", "client socket")
_BROKEN = ("gloo", "nccl", "connection", "disterror", "distbackend", "distnetwork", "store", "socket", "broken pipe")


def _complain(missing: list[int], count: int, rank: int, what: str) -> None:
    named = checks.listing([f"rank {r}" for r in missing], 4)
    warn(
        f"rank {rank} of {count} has waited for {named} in {what} for {_COMPLAIN:g} s; every "
        "process makes the call, or one makes it alone, in `with dv.alone():`."
    )


def _plain_of(text: bytes) -> str:
    """The plain data in a message."""
    size = int.from_bytes(text[:8], "little")
    return str(json.loads(text[8 : 8 + size])["__metadata__"]["plain"])
