"""The benchmark of optimal trajectories checks what it times."""

import subprocess
import sys

from places import SCRIPTS


def test_the_trajectory_benchmark_checks_itself() -> None:
    command = [sys.executable, str(SCRIPTS / "bench_trajectory.py"), "--num-steps", "60", "--rounds", "1"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-800:]
    assert "costs equal to the last bit" in done.stdout
