"""Several processes of one program, as torchrun starts them: forks of this one, which has imported everything."""

import multiprocessing
import os
import socket
import sys
import traceback
from collections.abc import Callable
from typing import Any, NamedTuple

import torch.distributed  # noqa: F401 (once, and not in every fork)
from accelerate import PartialState

_forks = multiprocessing.get_context("fork")


class End(NamedTuple):
    """How a process ended: what its function gave, or what it raised, as "Type: message"; and its exit code."""

    value: Any = None
    error: str | None = None
    code: int | None = None


class Many:
    """Starts `count` processes that call `function(*arguments)`, each as one rank.

    Attribute `processes`: by rank, with pids, to be disturbed.
    """

    def __init__(self, count: int, function: Callable[..., Any], *arguments: Any, environment: Any = None) -> None:
        self._pipes, self.processes = [], []
        for names in environments(count):
            ours, theirs = _forks.Pipe(duplex=False)
            named = {**names, **(environment or {})}
            process = _forks.Process(target=_call, args=(theirs, named, function, arguments))
            process.start()
            theirs.close()
            self._pipes.append(ours)
            self.processes.append(process)

    def ends(self, seconds: float = 120.0) -> list[End]:
        """How each ended, within some seconds; those that have not are killed, and have no code."""
        found = []
        for pipe, process in zip(self._pipes, self.processes, strict=True):
            end = End()
            try:
                if pipe.poll(seconds):
                    end = End(*pipe.recv())
            except EOFError:
                pass
            process.join(seconds)
            code = process.exitcode
            if code is None:
                process.kill()
                process.join()
            found.append(end._replace(code=code))
        return found


def many(count: int, function: Callable[..., Any], *arguments: Any, environment: Any = None) -> list[Any]:
    """What `function(*arguments)` gives in each of `count` processes; AssertionError where one raises."""
    ends = Many(count, function, *arguments, environment=environment).ends()
    assert all(end.error is None and end.code == 0 for end in ends), "\n".join(str(end) for end in ends)
    return [end.value for end in ends]


def environments(count: int) -> list[dict[str, str]]:
    """What torchrun gives the processes of one program on this machine."""
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "WORLD_SIZE": str(count)}
    shared |= {"LOCAL_WORLD_SIZE": str(count), "OMP_NUM_THREADS": "1"}
    return [{**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(count)]


def free_port() -> int:
    """A port that nobody listens at."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def _call(pipe: Any, names: dict[str, Any], function: Callable[..., Any], arguments: Any) -> None:
    os.environ.update({name: str(value) for name, value in names.items()})
    PartialState._reset_state()  # of trainings that this one's parent did by itself
    try:
        pipe.send((function(*arguments), None))
    except BaseException as error:
        if os.environ.get("MANY_TRACEBACKS"):
            traceback.print_exc()
        pipe.send((None, f"{type(error).__name__}: {error}"))
    pipe.close()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)  # what the fork has of its parent's is not this process's to end
