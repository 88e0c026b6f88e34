"""A folder that processes of a shared work write into, each its own files: whether it is one, which all of them see."""

from __future__ import annotations

import os
import socket
import tempfile
import time
from contextlib import suppress
from pathlib import Path

from . import checks
from .errors import InputError
from .parallel import Team

_SECONDS = 5.0  # until a file of another machine is seen: network file systems remember what was not there


def require_shared(folder: Path, team: Team) -> None:
    """Refuse a folder, which the first process can write, that others do not see; all of them come here.

    Raises InputError, in every process.
    """
    if team.count == 1:
        return
    token = team.first_alone(lambda: _leave_token(folder))
    found = team.gather({}, [_sees(folder / token), socket.gethostname()])
    if team.first:
        with suppress(OSError):
            os.unlink(folder / token)
    blind = [f"rank {r} (on {host})" for r, (_, (sees, host)) in enumerate(found) if not sees]
    checks.refuse(
        bool(blind),
        f"the folder {folder} is not the same for all processes: what rank 0 (on {found[0][1][1]}) writes there is not "
        f"seen by {checks.listing(blind, 3)}; choose one on a file system that all machines share.",
    )


def _leave_token(folder: Path) -> str:
    try:
        handle, path = tempfile.mkstemp(prefix=".shared.", suffix=".tmp", dir=folder)  # a killed run's is swept
    except OSError as error:
        raise InputError(f"could not write {folder}: {error.strerror}; choose another folder.") from error
    os.close(handle)
    return os.path.basename(path)


def _sees(path: Path) -> bool:
    until = time.monotonic() + _SECONDS
    while not path.exists():
        if time.monotonic() > until:
            return False
        time.sleep(0.05)
    return True
