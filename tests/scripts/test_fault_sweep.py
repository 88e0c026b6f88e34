"""Faults put in on purpose have no consequences: a share of what results/faults.md has in full."""

import subprocess
import sys

import pytest
from places import ROOT

#: Each writes in its own way, and quickly; the others are in results/faults.md.
COMMANDS = ["estimate", "sample", "sample npz", "nll", "stats", "train-features", "train-unet", "encode_latents"]


def sums(*arguments: str) -> list[int]:
    """The last row of the table that the script prints. In a process of its own: forks of one that has computed
    something hang in its threads."""
    command = [sys.executable, str(ROOT / "scripts" / "fault_sweep.py"), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, cwd=ROOT)
    assert done.returncode == 0, done.stdout + done.stderr
    name, *numbers = (part.strip() for part in done.stdout.strip().splitlines()[-1].strip("|").split("|"))
    assert name == "all"
    return [int(number) for number in numbers]


@pytest.mark.slow
def test_a_command_that_is_killed_at_a_file_operation_ends_well_when_it_is_run_again() -> None:
    operations, killed, *consequences = sums("--kills", "--share", "0.03", "--seed", "1", "--only", *COMMANDS)
    assert operations > 200
    assert killed >= len(COMMANDS)
    assert consequences == [0, 0, 0]


def test_kinds_of_files_are_counted() -> None:
    """The tests of each kind are elsewhere; here it is the script's own counting."""
    mutants, refused, used, changed, *others = sums("--mutants", "--share", "0.2", "--only", "cell", "features")
    assert mutants == refused > 20
    assert [used, changed, *others] == [0, 0, 0, 0]
