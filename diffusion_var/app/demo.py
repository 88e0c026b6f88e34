"""The demo: the bundled digits model, every choice of reverse variance, one report."""

from __future__ import annotations

from ..files import require_empty_folder
from .compare import CHECKPOINT, TABLE, compare
from .options import CompareOptions
from .report import findings, score_rows, write_report


def run_demo(options: CompareOptions) -> None:
    """Measure, sample, score and write the report into `options.out`; prints the table and who wins."""
    # The checkpoint of an interrupted run is to be continued, not to be in the way.
    folder = require_empty_folder(options.out, options.overwrite, ignore=(CHECKPOINT, TABLE))
    result = compare(options, folder)
    print("3/3 writing the report")
    write_report(result, folder)
    print(score_table(options, score_rows(result)))
    if result.baseline:
        print(f"{'real images':<36s}" + f"{sum(result.baseline) / len(result.baseline):>16.2f}")
    print()
    for line in findings(result):
        print(f"- {line}")
    print(f"\nThe report is {folder / 'report.html'} (and report.md, with pictures and results.csv beside it).")


def score_table(options: CompareOptions, rows: list[tuple[str, list[tuple[str, bool]]]]) -> str:
    """The scores as text, the best of each column starred."""
    head = f"{'Fréchet distance (lower is better)':<36s}" + "".join(f"{f'K = {k}':>16s}" for k in options.steps)
    lines = [
        f"{label:<36s}" + "".join(f"{('* ' if best else '') + text:>16s}" for text, best in cells)
        for label, cells in rows
    ]
    return "\n".join(["", head, *lines])
