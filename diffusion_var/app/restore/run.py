"""The command restore: covariances × types of guidance × numbers of steps on the same measurements; their report."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ... import parallel
from ...errors import InputError
from ...files import make_folder, require_empty_folder, write_atomic
from ...json_text import parse_json
from ..cell_files import FOLDER
from ..claims import claimed_folder, run_identity
from ..outputs import require_writable
from ..terminal import say, say_lines
from .options import RestoreOptions

PARTIAL = "restore.partial"  # in the folder of a run that has not finished: which it is


def run(options: RestoreOptions) -> None:
    """Restore, score and write the report into `options.out`; prints the scores."""
    require_writable(require_empty_folder(options.out, overwrite=True))  # a file is no folder
    this = run_identity("restore", options)
    with claimed_folder(options.out, this, options.overwrite, PARTIAL) as finished:
        if not finished:
            parallel.team().first_alone(lambda: _refuse_other(options.out / PARTIAL, this, options.overwrite))
            _restore(options, this)


def _restore(options: RestoreOptions, this: str) -> None:
    from .calibration import calibrate
    from .cells import CellLoop
    from .report import text_table, write_report
    from .setting import open_setting
    from .tables import calibrated, opening

    setting = open_setting(options)
    partial = options.out / PARTIAL
    parallel.team().first_alone(lambda: _begin(partial, this))
    setting = setting.with_kept(options.out)
    found = calibrate(setting, options.out) if options.calibrate else []
    cells = CellLoop(setting, options.out).fill()
    if not parallel.is_first():
        return
    say("writing the report")
    write_report(setting, cells, found, options.out, this)
    partial.unlink(missing_ok=True)
    for k in options.steps:
        say_lines(text_table(setting, cells, k))
    say_lines("", *(f"- {line}" for line in (*opening(cells, options.steps), *calibrated(found))), "")
    say(f"written: {options.out / 'report.md'}, with pictures, results.csv and results.json beside it")


def _begin(partial: Path, this: str) -> None:
    make_folder(partial.parent)
    write_atomic(partial, (json.dumps({"run": this}) + "\n").encode())


def _refuse_other(partial: Path, this: str, overwrite: bool) -> None:
    """InputError for a folder in which another run has not finished, and has something to lose."""
    made = [file.name for file in (partial.parent / FOLDER).glob("*.safetensors")]
    if overwrite or not partial.is_file() or all(name.startswith("measurements-") for name in made):
        return
    try:
        found: Any = parse_json(partial.read_bytes())
        same = isinstance(found, dict) and found.get("run") == this
    except (OSError, ValueError):
        same = True  # cut, as it was written: cells know by themselves what they belong to
    if not same:
        raise InputError(
            f"the output folder {partial.parent} holds another run of restore that has not finished; choose another "
            "--out, or pass --overwrite to replace it."
        )
