"""Commands in forks of a process that has imported everything and computed nothing: each starts in no time, and may be
killed as a process of its own. And what they leave: files, and debris."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import sys
import time
from collections.abc import Callable, Mapping
from importlib import import_module
from pathlib import Path
from types import MappingProxyType

from many import environments

Command = list[str] | Callable[[], object]  # arguments of the command line, or calls

_OF_RESTORE = ("deepinv.physics", "torchmetrics.functional.image")
TIMED = "training.json"  # it tells how many seconds a training took


def import_everything() -> None:
    """What the forks need."""
    for name in (
        "matplotlib.figure",
        "diffusers.training_utils",
        "diffusers.pipelines.ddpm.pipeline_ddpm",
        *_OF_RESTORE,
    ):
        import_module(name)
    from diffusion_var.app.cli import COMMANDS

    for _kind, home in COMMANDS.values():
        import_module(f"diffusion_var.app.{home}")


def start(
    command: Command,
    log: Path,
    before: Callable[[], object],
    after: Callable[[], object] = lambda: None,
    environment: Mapping[str, str] = MappingProxyType({}),
) -> int:
    """Begin a command in a fork, whose output goes to `log`; the process. The two calls are made in it, the
    first when it listens to signals."""
    child = os.fork()
    if child == 0:
        os.setpgid(0, 0)  # so that what it starts in its turn is found
        signal.signal(signal.SIGINT, signal.default_int_handler)  # which shells have the background ignore
        output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(output, 1)
        os.dup2(output, 2)
        os.environ.update(environment)
        code = _call(command, before)
        after()
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        os._exit(code)
    return child


def ended(child: int) -> int:
    """Wait for the end of a fork; its exit code, negative for a signal."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def all_ended(children: list[int], seconds: float) -> list[int | None]:
    """Wait for the ends of forks, and kill those that have not ended within some seconds, which have no code."""
    until = time.monotonic() + seconds
    codes: dict[int, int | None] = dict.fromkeys(children)
    while None in codes.values() and time.monotonic() < until:
        for child in [c for c in children if codes[c] is None]:
            found, status = os.waitpid(child, os.WNOHANG)
            if found:
                codes[child] = os.waitstatus_to_exitcode(status)
        time.sleep(0.005)
    for child in [c for c in children if codes[c] is None]:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    return [codes[child] for child in children]


def is_working(children: list[int]) -> bool:
    """Whether one of some forks has not ended; they are waited for later."""
    ended = os.WEXITED | os.WNOHANG | os.WNOWAIT
    return any(os.waitid(os.P_PID, child, ended) is None for child in children)


def orphans(children: list[int]) -> list[int]:
    """Forks of which processes that they have started live after some seconds; those are killed."""
    until, left = time.monotonic() + 10.0, [child for child in children if _group_lives(child)]
    while left and time.monotonic() < until:
        time.sleep(0.1)
        left = [child for child in left if _group_lives(child)]
    for child in left:
        os.killpg(child, signal.SIGKILL)
    return left


def _group_lives(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


def _call(command: Command, before: Callable[[], object]) -> int:
    from diffusion_var.__main__ import main
    from diffusion_var.errors import InputError, RankError
    from diffusion_var.stopping import StopSignals, exit_code, unwinding, word

    try:
        with StopSignals():
            before()
            if callable(command):
                with unwinding():
                    command()
            else:
                sys.argv = ["diffusion-var", *command]
                main()
    except SystemExit as end:
        return int(end.code or 0)
    except KeyboardInterrupt as stop:
        print(word(stop), file=sys.stderr)
        return exit_code(stop)
    except (InputError, RankError) as error:  # of a call
        print(f"error: {error}", file=sys.stderr)
        return 2
    except BaseException:
        import traceback

        traceback.print_exc()
        return 1
    return 0


def ranks(count: int) -> list[dict[str, str]]:
    """The environments of a program's processes; of one that nobody started together with others, nothing."""
    return [{}] if count == 1 else environments(count)


def tree(folder: Path) -> dict[str, str]:
    """The files below a folder by their content, seconds apart."""
    found = {}
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        content = path.read_bytes()
        if path.name == TIMED:
            content = json.dumps({**json.loads(content), "seconds": None}).encode()
        elif path.name == "SHA256SUMS":  # lines in any order; that of the record has its seconds
            lines = [line for line in content.decode().splitlines() if not line.endswith(TIMED)]
            content = "\n".join(sorted(set(lines))).encode()
        found[str(path.relative_to(folder))] = hashlib.sha256(content).hexdigest()
    return found


def debris(names: list[str]) -> list[str]:
    """Of the files that a finished run left, those that it must not leave."""
    return [n for n in names if (name := Path(n).name).endswith((".tmp", ".lock", ".partial")) or name[0] == "."]
