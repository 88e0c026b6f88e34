"""Faults put in on purpose have no consequences: a share of what results/faults.md has in full."""

import subprocess
import sys

import pytest
from places import ROOT


@pytest.mark.slow
def test_a_command_that_is_killed_at_a_file_operation_ends_well_when_it_is_run_again() -> None:
    """In a process of its own: forks of one that has computed something hang in its threads."""
    command = [sys.executable, str(ROOT / "scripts" / "fault_sweep.py"), "--kills", "--share", "0.04", "--seed", "1"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, cwd=ROOT)
    assert done.returncode == 0, done.stdout + done.stderr
    name, operations, killed, failed, unlike, debris = (
        part.strip() for part in done.stdout.strip().splitlines()[-1].strip("|").split("|")
    )
    assert name == "all"
    assert int(operations) > 250
    assert int(killed) >= 11
    assert (failed, unlike, debris) == ("0", "0", "0")
