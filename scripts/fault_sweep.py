"""Faults put in on purpose: file operations killed and commands run again, files changed, signed again and read.

    python scripts/fault_sweep.py --kills            # all of them, as in results/faults.md
    python scripts/fault_sweep.py --mutants          # all of them, as in results/faults.md
    python scripts/fault_sweep.py --kills --share 0.1  # one in ten, drawn by the seed

How it is done stands in tests/support: kills.py, and mutants.py with senseless.py and senseless_configs.py. Ends with 1
where a fault had consequences.
"""

import argparse
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests" / "support"))
Chosen = Callable[[int], list[int]]


class Table:
    """Rows of counts, printed as they come, and their sum."""

    def __init__(self, *columns: str) -> None:
        self._sums = [0] * (len(columns) - 1)
        print(f"| {' | '.join(columns)} |\n|{'---|' * len(columns)}", flush=True)

    def add(self, name: str, numbers: list[int], faults: list[str]) -> None:
        """A row; what went wrong goes to the standard error."""
        self._sums = [a + b for a, b in zip(self._sums, numbers, strict=True)]
        print(f"| {name} | {' | '.join(map(str, numbers))} |", flush=True)
        for line in faults:
            print(f"{name}: {line}", file=sys.stderr)

    def end(self) -> None:
        """The row of sums."""
        print(f"| all | {' | '.join(map(str, self._sums))} |")


def kills(folder: Path, chosen: Chosen, wanted: Callable[[str], bool]) -> bool:
    """Print a table of commands: operations, kills, and what came of them; whether nothing did."""
    from forks import import_everything
    from kills import commands, sweep

    import_everything()
    table = Table("command", "file operations", "killed", "next run failed", "other files than undisturbed", "debris")
    faults: list[str] = []
    inputs = folder / "inputs"
    inputs.mkdir()
    for name, command in commands(inputs).items():
        if wanted(name):
            found = sweep(command, folder / name.replace(" ", "-"), chosen)
            came = [found.failed, found.unlike, found.debris]
            faults += (lines := [f"operation {line}" for part in came for line in part])
            table.add(name, [found.operations, found.kills, *map(len, came)], lines)
    table.end()
    return not faults


def mutants(folder: Path, chosen: Chosen, wanted: Callable[[str], bool]) -> bool:
    """Print a table of kinds of files: mutants, and what their readers made of them; whether all was refused that must
    be, in one sentence that names the file."""
    import diffusion_var as dv

    warnings.simplefilter("ignore")
    warnings.simplefilter("error", dv.DiffusionVarWarning)
    warnings.filterwarnings("ignore", "the images are few")
    table = Table("kind", "mutants", "refused", "used", "of these with another meaning", "tracebacks", "written over")
    faults: list[str] = []
    for name, found, wrong in _outcomes(folder, chosen, wanted):
        count = found.refused + len(found.accepted) + len(found.crashed)
        counts = [count, found.refused, *map(len, (found.accepted, wrong, found.crashed, found.written_over))]
        faults += (lines := [*(f"{line}: accepted" for line in wrong), *found.crashed, *found.written_over])
        table.add(name, counts, lines)
    table.end()
    return not faults


def _outcomes(folder: Path, chosen: Chosen, wanted: Callable[[str], bool]) -> Iterator[tuple[str, Any, list[str]]]:
    """(kind, what its mutants came to, which of them were accepted with another meaning)."""
    import senseless
    import senseless_configs as configs

    import diffusion_var as dv

    for name in filter(wanted, senseless.KINDS):
        place = folder / name.replace(" ", "-")
        place.mkdir()
        found = senseless.outcome(name, place, chosen)
        yield name, found, found.accepted
    configs.save_schedulers(folder)
    for kind in (k for k in configs.SCHEDULERS if wanted(f"scheduler with {k}")):
        place = folder / kind
        load = lambda place=place: dv.AnalyticScheduler.from_pretrained(place)  # noqa: E731
        found = configs.outcome(place / "scheduler_config.json", place, load, chosen)
        yield f"scheduler with {kind}", found, configs.senseless(found)
    configs.save_model(folder / "model")
    for file in filter(wanted, configs.MODEL_FILES):
        place = folder / "model"
        found = configs.outcome(place / file, place, lambda place=place: dv.Denoiser.from_pretrained(place), chosen)
        yield file, found, []


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--kills", action="store_true", help="kill file operations")
    what.add_argument("--mutants", action="store_true", help="read files that are well signed and senseless")
    parser.add_argument("--share", type=float, default=1.0, help="share of the faults, drawn by the seed")
    parser.add_argument("--only", nargs="*", default=[], help="commands or kinds, by name")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    generator = np.random.default_rng(options.seed)

    def chosen(count: int) -> list[int]:
        size = max(1, round(options.share * count))
        return sorted(int(k) for k in generator.permutation(count)[:size])

    with tempfile.TemporaryDirectory() as folder:
        sweep = kills if options.kills else mutants
        good = sweep(Path(folder), chosen, lambda name: not options.only or name in options.only)
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
