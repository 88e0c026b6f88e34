"""Faults put in on purpose: every file operation of every command killed once, and the command run again.

    python scripts/fault_sweep.py --kills                  # all of them, as in results/faults.md
    python scripts/fault_sweep.py --kills --share 0.1      # one in ten, drawn by the seed, as the tests do

How it is done stands in tests/support/kills.py. Ends with 1 where a fault had consequences.
"""

import argparse
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests" / "support"))


def kills(share: float, seed: int, only: list[str]) -> bool:
    """Print a table of commands: operations, kills, and what came of them; whether nothing did."""
    import numpy as np
    from kills import commands, import_everything, sweep

    def chosen(count: int) -> list[int]:
        size = max(1, round(share * count))
        return sorted(1 + int(k) for k in generator.permutation(count)[:size])

    generator, good, totals = np.random.default_rng(seed), True, [0, 0, 0, 0, 0]
    import_everything()
    print("| command | file operations | killed | next run failed | other files than undisturbed | debris |")
    print("|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        inputs = Path(folder) / "inputs"
        inputs.mkdir()
        for name, command in commands(inputs).items():
            if only and name not in only:
                continue
            found = sweep(command, Path(folder) / name.replace(" ", "-"), chosen)
            numbers = [found.operations, found.kills, len(found.failed), len(found.unlike), len(found.debris)]
            totals = [a + b for a, b in zip(totals, numbers, strict=True)]
            print(f"| {name} | {' | '.join(map(str, numbers))} |", flush=True)
            for line in [*found.failed, *found.unlike, *found.debris]:
                print(f"{name}, operation {line}", file=sys.stderr)
            good = good and not any(numbers[2:])
    print(f"| all | {' | '.join(map(str, totals))} |")
    return good


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", action="store_true", help="kill file operations")
    parser.add_argument("--share", type=float, default=1.0, help="share of the faults, drawn by the seed")
    parser.add_argument("--only", nargs="*", default=[], help="commands, by name")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    if not options.kills:
        parser.error("nothing to do; pass --kills")
    sys.exit(0 if kills(options.share, options.seed, options.only) else 1)
