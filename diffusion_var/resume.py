"""Interruption and resume, once for everything that takes long.

A run hands its state over as arrays and plain data, and says who it is (its identity: all that must agree for the state
to be continued). `Checkpoint` is one file for a run whose state changes as it goes: it is written when it is due, at
the end, and on whatever stops the run (Ctrl-C, SIGTERM, an error), unless the state is half changed just then; one run
at a time enters it. Of processes that share a run the first one writes and reads it, and tells the others what it has
read; how many they are is no part of the state. `Parts` is a folder of finished parts, one file each, of which a later
run makes those that are missing.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Self

from pydantic import JsonValue

from . import checks, parallel
from .array_rules import Rules, require_arrays
from .documents import Arrays, Form, Record, making, read_document, write_document
from .errors import InputError, NetworkError, warn
from .files import expanded, make_folder
from .locks import locked
from .measured import agree, is_measured, shown
from .stopping import keeping

State = tuple[Arrays, dict[str, Any]]
Identity = dict[str, Any]


class StateRecord(Record):
    """The plain data of a state in its file; a form adds the state's own fields."""

    identity: dict[str, JsonValue]


ANEW = "delete it to start anew"  # what mends a damaged checkpoint
SECONDS = 30.0  # between two saves of a running checkpoint


class Checkpoint:
    """A file that one run writes and the same run, started again, continues from.

    Of processes that share the run (`parallel`), each has one, made while the work is shared; all of them enter it, and
    come to `restoring` together.

    Args:
        path: the file, which need not exist; None: nothing is kept, and every method does nothing.
        form: of the document; its metadata is a `StateRecord`.
        identity: of the run; plain data. Its entry "network", if there is one, is None where it cannot be told.
        seconds: between two saves; None: `SECONDS`.
    """

    def __init__(
        self,
        path: str | Path | None,
        form: Form,
        identity: Identity,
        seconds: float | None = None,
    ) -> None:
        self.path = None if path is None else expanded(path)
        self.identity = _as_json(identity)
        self._form = form
        self._team = parallel.team()
        self._writes = self.path is not None and self._team.first
        self._seconds = SECONDS if seconds is None else seconds
        self._saved = time.monotonic()
        self._changing = False
        self._held = ExitStack()

    def __enter__(self) -> Self:
        """The file is this run's alone until the block ends; InputError while another run writes it."""
        if self._writes and self.path is not None:
            self._held.enter_context(locked(self.path))
            self._held.enter_context(keeping())
        return self

    def __exit__(self, *error: object) -> None:
        self._held.close()

    @contextmanager
    def restoring(self, rules: Rules | None = None) -> Iterator[tuple[Arrays, Any] | None]:
        """The saved arrays and the form's record, if there are any; InputError if they belong to another run.

        `rules` are those of this run's arrays. What the caller refuses of them in the block is refused of the file.
        """
        arrays, plain = self._team.gather(*self._read())[0]
        if plain is None:
            yield None
            return
        record = self._form.metadata.model_validate_json(json.dumps(plain))
        with making(str(self.path), self._form):
            if rules is not None:
                require_arrays(arrays, rules)
            yield arrays, record

    def _read(self) -> tuple[Arrays, Any]:
        """The file's arrays, and its record as plain data: None where there is no file, or others read it."""
        if not self._writes or self.path is None or not self.path.exists():
            return {}, None
        arrays, record = read_document(self.path, self._form)
        _require_same_run(self.path, self.identity, record.identity)
        return arrays, record.model_dump(mode="json")

    def due(self) -> bool:
        """Whether it is time to save. Of processes that share the run each has a clock: the first may have nothing more
        to do until it is called."""
        return self.path is not None and time.monotonic() - self._saved > self._seconds

    def save(self, state: State) -> None:
        """Write a state, atomically; in processes other than the first note that it is done."""
        if self._writes and self.path is not None:
            arrays, plain = state
            write_document(self.path, self._form, arrays, {"identity": self.identity, **plain})
        self._saved = time.monotonic()

    @contextmanager
    def changing(self) -> Iterator[None]:
        """While the state is half changed; whatever stops the run in here keeps the last file."""
        self._changing = True
        yield
        self._changing = False

    @contextmanager
    def naming(self) -> Iterator[None]:
        """A network's failure inside says where the work until then is kept."""
        try:
            yield
        except NetworkError as error:
            if self.path is not None and (not self._team.first or self.path.exists()):  # or on the first's machine
                error.kept = f"; the work until then is kept in {self.path}, from where the same run goes on"
            raise

    @contextmanager
    def keeping(self, state: Callable[[], State]) -> Iterator[None]:
        """Save now (an unwritable path is found before the work), and once more when the block ends or is stopped."""
        if self._writes:
            self.save(state())
        try:
            with self.naming():
                yield
        finally:
            if self._writes and not self._changing:
                try:
                    self.save(state())
                except (InputError, MemoryError) as error:  # it must hide neither the result nor what stopped the run
                    warn(f"the checkpoint is not up to date: {error}")


class Parts:
    """A folder of finished parts of a work, one document each.

    Args:
        folder: made when the first part is saved.
        form: of the documents; its metadata is a `StateRecord`.
        identity: what all parts belong to; plain data.
    """

    def __init__(self, folder: Path, form: Form, identity: Identity) -> None:
        self.folder, self.identity, self._form = expanded(folder), _as_json(identity), form

    def load(self, name: str, rules: Rules | None = None) -> tuple[Arrays, Any] | None:
        """A part's arrays and record, if it is there; InputError if it is damaged, belongs to something else, or breaks
        the `rules` of its arrays."""
        path = self.folder / name
        if not path.is_file():
            return None
        arrays, record = read_document(path, self._form)
        unlike = _differences(self.identity, record.identity)
        checks.refuse(
            bool(unlike),
            f"the {self._form.noun} {path} was made from something else (different {', '.join(unlike)}); delete "
            f"{self.folder} or choose another folder.",
        )
        if rules is not None:
            with making(path, self._form):
                require_arrays(arrays, rules)
        return arrays, record

    def save(self, name: str, state: State) -> None:
        """Write a part, atomically."""
        arrays, plain = state
        path = make_folder(self.folder) / name
        write_document(path, self._form, arrays, {"identity": self.identity, **plain})


def _as_json(identity: Identity) -> Identity:
    """As a file has it: JSON knows no tuples."""
    found: Identity = json.loads(json.dumps(identity))
    return found


def _differences(mine: Identity, found: Identity) -> list[str]:
    """The entries that differ; of measured ones, which follow from the others, where nothing else does. What an older
    version did not write is not compared."""
    unlike = [key for key in {**mine, **found} if key in found and not agree(found[key], mine.get(key))]
    return [key for key in unlike if not is_measured(found[key])] or unlike


def _require_same_run(path: Path, mine: Identity, found: Identity) -> None:
    if different := _differences(mine, found):
        key = different[0]
        raise InputError(
            f"the checkpoint {path} belongs to another run (different {', '.join(different)}): its {key} is "
            f"{shown(found[key])}, but this run's is {shown(mine.get(key))}; delete it to start anew, "
            "choose another path, or restore the option."
        )
    if "network" in mine and mine["network"] is None:
        warn(
            f"the network has no weights to tell it by, so the checkpoint {path} is continued on trust; delete it if "
            "it was made with another network."
        )
