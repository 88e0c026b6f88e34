"""The demo: a few comparisons, one report.

Each part lies in a folder of its own below the report's, and goes on where it was interrupted.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import asdict

from ... import parallel
from ...files import make_folder, require_empty_folder, write_atomic
from ..claims import run_identity
from ..compare.folder import ComparisonFolder
from ..compare.report import Part, advice, opening, text_table, write_report
from ..compare.run import compare, held_folder
from ..outputs import require_writable
from ..terminal import say, say_lines
from .options import DemoOptions, PartOptions, demo_parts

RECORD = "demo.json"
TITLE = "What a measured variance does"


def run(options: DemoOptions) -> None:
    """Run all parts, or what is left of them, and write the report into `options.out`; prints scores and advice."""
    require_writable(require_empty_folder(options.out, overwrite=True))  # a file is no folder
    with parallel.sharing("demo"), held_folder(options.out) as first:
        _run(options, first)


def _run(options: DemoOptions, first: bool) -> None:
    started = time.monotonic()
    parts = demo_parts(options)
    if first:
        require_empty_folder(options.out, options.overwrite or (options.out / RECORD).exists())
    folders = [ComparisonFolder(part) for part in parts if first]  # refused before the first is computed
    measured: list[Part] = []
    for i, part in enumerate(parts):
        say(f"part {i + 1} of {len(parts)}: {part.title}")
        if first and i == 0:
            _begin(options)
        measured.append(_measured(part, folders[i].begin if first else None))
    if first:
        _report(measured, options, started)


def _report(measured: list[Part], options: DemoOptions, started: float) -> None:
    write_report(measured, options.out, run_identity("demo", options), TITLE)
    for held in measured:
        say_lines("", held.title, text_table(held.result, held.result.options.metrics[0], held.floor))
    say_lines("", *(line for one in measured for line in opening(one)))
    for held in measured:
        say_lines("", f"{held.title}: which variance?", *(f"- {line}" for line in advice(held)))
    say_lines("")
    minutes, seconds = divmod(round(time.monotonic() - started), 60)
    say(f"The report is {options.out / 'report.html'} (and report.md); this took {minutes} min {seconds} s.")


def _begin(options: DemoOptions) -> None:
    make_folder(options.out)
    record = {key: value for key, value in asdict(options).items() if key not in ("out", "overwrite", "processes")}
    write_atomic(options.out / RECORD, (json.dumps(record, indent=2, default=str) + "\n").encode())


def _measured(part: PartOptions, begin: Callable[[str | None], None] | None) -> Part:
    result = compare(part, part.out, begin=begin)
    return Part(result, part.part, part.title, part.text, part.remarks, part.floor)
