"""The tables of results/parity.md: `python tests/parity/report.py` runs the suite and prints, of every group of
comparisons, the largest difference."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def rows():
    """(group, numbers, largest difference, tolerance) of every comparison."""
    command = [sys.executable, "-m", "pytest", "tests/parity", "-s", "-q", "-p", "no:cacheprovider"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        sys.exit(done.stdout + done.stderr)
    for line in done.stdout.splitlines():
        if line.startswith("| "):
            what, count, found, tolerance = (cell.strip() for cell in line.strip("| ").split(" | "))
            yield what.split(":")[0], int(count), float(found), tolerance


def main():
    groups = {}
    for what, count, found, tolerance in rows():
        cases, numbers, worst, held = groups.get(what, (0, 0, 0.0, tolerance))
        widest = max(held, tolerance, key=lambda text: float(text.split()[-1]))
        groups[what] = (cases + 1, numbers + count, max(worst, found), widest)
    for title, mark in (("agree", False), ("differ, as they should", True)):
        print(f"\n| What must {title} | Cases | Numbers | Largest difference | {'Held in' if mark else 'Held below'} |")
        print("|---|---|---|---|---|")
        for what, (cases, numbers, worst, tolerance) in sorted(groups.items()):
            if what.startswith("(differs) ") is mark:
                name = what.removeprefix("(differs) ")
                print(f"| {name} | {cases} | {numbers} | {worst:.1e} | {tolerance} |")


if __name__ == "__main__":
    main()
