"""Faults put in on purpose: runs killed and carried on with, files changed and read.

    python scripts/fault_campaign.py operations                     # killed at every file operation
    python scripts/fault_campaign.py moments --kills 20             # killed at random moments, 20 times each command
    python scripts/fault_campaign.py moments --kills 10 --processes 2
    python scripts/fault_campaign.py mutants                        # files damaged, or senseless and well signed
    python scripts/fault_campaign.py mutants --only table --share 0.1

It prints how many faults were tried, how many had no consequences, and what the others came to, each with the command
that repeats it; --keep FOLDER keeps what such a kill has left. Ends with 1 where a fault had consequences. How it is
done stands in tests/support: kills.py; moments.py; damage.py and mutants.py with senseless.py, senseless_configs.py,
unsigned.py and by_command.py. results/faults.md has the figures.
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
Faults = list[tuple[int, str]]


class Report:
    """Rows of counts, printed as they come, and their sum (of times, the longest); and a command that repeats each
    fault."""

    def __init__(self, options: argparse.Namespace, *columns: str) -> None:
        self._options, self._sums, self.good = options, [0.0] * (len(columns) - 1), True
        self._columns = columns[1:]
        self._unknown = {*options.only}
        print(f"| {' | '.join(columns)} |\n|{'---|' * len(columns)}", flush=True)

    def add(self, name: str, numbers: list[float], faults: Faults) -> None:
        """A row; what went wrong goes to the standard error."""
        merged = zip(self._columns, self._sums, numbers, strict=True)
        self._sums = [
            max(a, b) if column.endswith(", s") else a + b for column, a, b in merged
        ]  # of times, the longest
        self._print(name, numbers)
        self._unknown.discard(name)
        for case, words in faults:
            self.good = False
            again = f"python scripts/fault_campaign.py {self._options.what} --only '{name}' --seed {self._options.seed}"
            more = f" --processes {self._options.processes}" if self._options.what == "moments" else ""
            print(f"{name}: {words}\n    {again} --case {case}{more}", file=sys.stderr, flush=True)

    def _print(self, name: str, numbers: list[float]) -> None:
        print(f"| {name} | {' | '.join(f'{number:.4g}' for number in numbers)} |", flush=True)

    def end(self) -> bool:
        """The row of sums; whether no fault had consequences."""
        self._print("all", self._sums)
        if self._unknown:
            print(f"nothing is called {', '.join(sorted(self._unknown))}", file=sys.stderr)
        return self.good and not self._unknown


def operations(folder: Path, options: argparse.Namespace, chosen: Callable[[int], list[int]]) -> bool:
    """Kill commands at their file operations."""
    from forks import import_everything
    from kills import commands, sweep

    import_everything()
    columns = ("file operations", "killed", "survived", "next run failed", "other files than undisturbed", "debris")
    report = Report(options, "command", *columns)
    inputs = folder / "inputs"
    inputs.mkdir()
    for name, command in commands(inputs).items():
        if is_wanted(name, options):
            found = sweep(command, folder / name.replace(" ", "-"), chosen)
            came = [found.failed, found.unlike, found.debris]
            faults = [fault for part in came for fault in part]
            survived = found.kills - len({case for case, _ in faults})
            report.add(name, [found.operations, found.kills, survived, *map(len, came)], faults)
    return report.end()


def moments(folder: Path, options: argparse.Namespace, chosen: Callable[[int], list[int]]) -> bool:
    """Kill commands at random moments."""
    from forks import import_everything
    from moments import Sweep, runs

    import_everything()
    columns = ["killed", "survived", "lost work", "ended badly", "next run failed", "other files", "debris"]
    report = Report(options, "command", "work, s", *columns, "oldest work lost, s", "last end, s")
    inputs = folder / "inputs"
    inputs.mkdir()
    for name, run in runs(inputs).items():
        if is_wanted(name, options):
            sweep = Sweep(name, run, folder / name.replace(" ", "-"), options.seed, options.processes, options.keep)
            for case in options.case or range(options.kills):
                sweep.kill(case)
            found = sweep.found
            came = [found.lost, found.ends, found.failed, found.unlike, found.debris]
            survived = found.kills - len({case for case, _ in found.faults if case >= 0})
            numbers = [found.seconds, found.kills, survived, *map(len, came), found.oldest, found.longest]
            report.add(name, numbers, found.faults)
    return report.end()


def mutants(folder: Path, options: argparse.Namespace, chosen: Callable[[int], list[int]]) -> bool:
    """Read mutants of files."""
    import logging

    import diffusion_var as dv

    warnings.simplefilter("ignore")
    warnings.simplefilter("error", dv.DiffusionVarWarning)
    warnings.filterwarnings("ignore", "the images are few")
    logging.disable(logging.WARNING)  # diffusers', of settings that it does not know
    columns = ("refused", "used, with the same meaning", "with another", "tracebacks", "written over")
    report = Report(options, "kind", "mutants", *columns)
    for name, found, wrong in outcomes(folder, options, chosen):
        faults = [*((case, f"{what}: accepted") for case, what in wrong), *found.crashed, *found.written_over]
        used = found.same + len(found.accepted) - len(wrong)
        numbers = [found.refused, used, *map(len, (wrong, found.crashed, found.written_over))]
        report.add(name, [sum(numbers[:4]), *numbers], faults)
    return report.end()


def outcomes(
    folder: Path, options: argparse.Namespace, chosen: Callable[[int], list[int]]
) -> Iterator[tuple[str, Any, Faults]]:
    """(kind, what its mutants came to, which of them were accepted with another meaning)."""
    import by_command
    import senseless
    import senseless_configs as configs
    import unsigned

    import diffusion_var as dv

    def place(name: str) -> Path:
        made = folder / "".join(c if c.isalnum() else "-" for c in name)
        made.mkdir()
        return made

    for part in (senseless, unsigned, by_command):
        for name in (name for name in part.KINDS if is_wanted(name, options)):
            found = part.outcome(name, place(name), chosen, options.random, options.seed)
            yield name, found, found.accepted
    at = place("configs")
    configs.save_schedulers(at)
    for kind in (k for k in configs.SCHEDULERS if is_wanted(f"JSON of a scheduler with {k}", options)):
        load = lambda kind=kind: dv.AnalyticScheduler.from_pretrained(at / kind)  # noqa: E731
        found = configs.outcome(at / kind / "scheduler_config.json", at / kind, load, chosen)
        yield f"JSON of a scheduler with {kind}", found, configs.senseless(found)
    configs.save_model(at / "model")
    for file in (file for file in configs.MODEL_FILES if is_wanted(f"JSON of a model: {file}", options)):
        model = at / "model"
        found = configs.outcome(model / file, model, lambda model=model: dv.Denoiser.from_pretrained(model), chosen)
        yield f"JSON of a model: {file}", found, []


def is_wanted(name: str, options: argparse.Namespace) -> bool:
    """Whether a command or kind is to be tried."""
    return not options.only or name in options.only


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    what = parser.add_subparsers(dest="what", required=True)
    for call in (operations, moments, mutants):
        part = what.add_parser(call.__name__, help=call.__doc__)
        part.set_defaults(call=call)
        part.add_argument("--only", nargs="*", default=[], help="commands or kinds, by name")
        part.add_argument("--seed", type=int, default=0, help="of every draw")
        part.add_argument("--case", type=int, nargs="*", help="of these numbers alone, as a report names them")
        if call is moments:
            part.add_argument("--kills", type=int, default=20, help="of each command")
            part.add_argument("--processes", type=int, default=1, help="of a run that is killed")
            part.add_argument("--keep", type=Path, help="folder for what kills with consequences have left")
        else:
            part.add_argument("--share", type=float, default=1.0, help="of the faults, drawn by the seed")
        if call is mutants:
            part.add_argument("--random", type=int, help="mutants of each kind that are drawn")
    options = parser.parse_args()

    def chosen(count: int) -> list[int]:
        if options.case is not None:
            return [case for case in options.case if case < count]
        size = max(1, round(options.share * count))
        return sorted(int(k) for k in np.random.default_rng(options.seed).permutation(count)[:size])

    with tempfile.TemporaryDirectory() as folder:
        return 0 if options.call(Path(folder), options, chosen) else 1


if __name__ == "__main__":
    sys.exit(main())
