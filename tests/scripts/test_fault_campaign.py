"""Faults put in on purpose have no consequences: a share of what results/faults.md has in full."""

import subprocess
import sys

import pytest
from places import ROOT

#: Each writes in its own way, and quickly.
WRITERS = ["sample", "nll", "train-unet", "encode_latents"]
KINDS = ["manifest", "result of a run", "config", "statistics", "scheduler's config with lists", "model's config"]


def sums(*arguments: str) -> list[float]:
    """The last row of the table that the script prints. In a process of its own: forks of one that has computed
    something hang in its threads."""
    command = [sys.executable, str(ROOT / "scripts" / "fault_campaign.py"), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, cwd=ROOT)
    assert done.returncode == 0, done.stdout + done.stderr
    name, *numbers = (part.strip() for part in done.stdout.strip().splitlines()[-1].strip("|").split("|"))
    assert name == "all"
    return [float(number) for number in numbers]


@pytest.mark.slow
def test_a_command_that_is_killed_at_a_file_operation_ends_well_when_it_is_run_again() -> None:
    operations, killed, survived, *faults = sums("operations", "--share", "0.01", "--seed", "1", "--only", *WRITERS)
    assert operations > 150
    assert killed == survived >= len(WRITERS)
    assert faults == [0, 0, 0]


@pytest.mark.slow
@pytest.mark.parametrize("processes", [1, 2])
def test_a_command_that_is_killed_at_any_moment_goes_on_when_it_is_run_again(processes: int) -> None:
    _, killed, survived, *faults = sums("moments", "--processes", str(processes), "--kills", "1", "--only", "sample")
    assert killed == survived == 1
    assert faults[:5] == [0, 0, 0, 0, 0]


def test_damaged_files_are_refused_or_mean_what_they_say() -> None:
    mutants, refused, used, *faults = sums("mutants", "--random", "30", "--only", *KINDS)
    assert mutants == refused + used == 30 * len(KINDS)
    assert refused > mutants / 2
    assert faults == [0, 0, 0]
