"""Processes that a launcher started, by their environment: SLURM's values as they look, devices, refusals."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from many import free_port, many

from diffusion_var import InputError, launch, parallel
from diffusion_var.app import model

#: As srun sets them for the task 5 of 7, on the second of three nodes.
TASK = {
    "SLURM_JOB_ID": "4711042",
    "SLURM_STEP_ID": "0",
    "SLURM_PROCID": "5",
    "SLURM_LOCALID": "2",
    "SLURM_NODEID": "1",
    "SLURM_STEP_NUM_TASKS": "7",
    "SLURM_NTASKS": "7",
    "SLURM_STEP_TASKS_PER_NODE": "3(x2),1",
    "SLURM_STEP_NODELIST": "gpu[03-05,9]",
    "SLURM_NODELIST": "gpu[03-05,9]",
}


@pytest.fixture(autouse=True)
def bare(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in os.environ:
        if name.startswith("SLURM_") or name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE"):
            monkeypatch.delenv(name)


def test_a_task_of_slurms_is_one_of_many(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in TASK.items():
        monkeypatch.setenv(name, value)
    assert (launch.expected(), launch.rank()) == (7, 5)
    found = launch.of_slurm(dict(TASK))
    assert found["MASTER_ADDR"] == "gpu03"
    assert 15000 <= int(found.pop("MASTER_PORT")) < 32000
    assert {name: found[name] for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")} == {
        "RANK": "5",
        "WORLD_SIZE": "7",
        "LOCAL_RANK": "2",
        "LOCAL_WORLD_SIZE": "3",
    }
    ports = {launch.of_slurm({**TASK, "SLURM_STEP_ID": str(step)})["MASTER_PORT"] for step in range(9)}
    assert len(ports) == 9  # steps of one job run beside each other
    chosen = launch.of_slurm({**TASK, "MASTER_ADDR": "login1", "MASTER_PORT": "1234"})
    assert (chosen["MASTER_ADDR"], chosen["MASTER_PORT"]) == ("login1", "1234")
    own = launch.of_slurm({**TASK, "SLURM_TRES_PER_TASK": "cpu=4,gres/gpu=1"})
    assert (own["LOCAL_RANK"], own["LOCAL_WORLD_SIZE"]) == ("0", "1")  # each task sees one GPU


@pytest.mark.parametrize(
    ("nodes", "first"),
    [
        ("gpu[03-05,9]", "gpu03"),
        ("n1", "n1"),
        ("a7,a9", "a7"),
        ("rack[2-3]-gpu[01-08],login", "rack2-gpu01"),
        ("tux[0]-ib", "tux0-ib"),
    ],
)
def test_the_first_of_slurms_nodes(nodes: str, first: str) -> None:
    assert launch.first_node(nodes) == first


def test_tasks_of_nodes() -> None:
    assert launch.tasks_per_node("4(x2),1") == [4, 4, 1]
    assert launch.tasks_per_node("8") == [8]


def test_shells_of_slurm_are_no_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """salloc's and sbatch's, whose job has many tasks, of which they are none."""
    for name in ("SLURM_JOB_ID", "SLURM_NTASKS", "SLURM_PROCID", "SLURM_NODELIST"):
        monkeypatch.setenv(name, TASK[name])
    assert launch.expected() == 1


def summed() -> list[float]:
    with parallel.sharing("sums") as team:
        return [float(arrays["own"].sum()) for arrays, _ in team.gather({"own": np.full(3, team.rank + 1.0)})]


def of_slurm_alone(job: int) -> list[float]:
    rank = os.environ["RANK"]
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        del os.environ[name]
    here = {"SLURM_PROCID": rank, "SLURM_LOCALID": rank, "SLURM_STEP_NUM_TASKS": "2", "SLURM_STEP_TASKS_PER_NODE": "2"}
    os.environ.update({**here, "SLURM_STEP_NODELIST": "localhost", "SLURM_JOB_ID": str(job)})
    return summed()


def test_two_tasks_that_have_but_slurms_variables_share() -> None:
    assert many(2, of_slurm_alone, os.getpid()) == [[3.0, 6.0]] * 2


def test_more_processes_than_gpus_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    with pytest.raises(InputError, match=r"^4 processes were started on .*, which has 2 GPUs; start 2 here, or pass"):
        launch._require_gpus(2)
    launch._require_gpus(4)


def test_each_process_has_the_gpu_of_its_number(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []
    monkeypatch.setattr(launch, "is_joined", lambda: True)
    monkeypatch.setitem(model._DEVICES, "cuda", lambda: 4)
    monkeypatch.setattr(torch, "empty", lambda *size, device: asked.append(str(device)))
    monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    assert str(model.open_device("cuda")) == "cuda:1"
    assert str(model.open_device("cpu")) == "cpu"
    with pytest.raises(InputError, match="the device cuda:0 is one, but 2 processes of this machine would share it"):
        model.open_device("cuda:0")
    monkeypatch.setenv("LOCAL_RANK", "0")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "1")
    assert str(model.open_device("cuda:3")) == "cuda:3"
    assert asked == ["cuda:1", "cpu", "cuda:3"]


def test_what_cannot_join_says_where_and_why() -> None:
    code = "from diffusion_var import launch\nlaunch.join(cpu=True)"
    environment = {**os.environ, "RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1", "MASTER_ADDR": "localhost"}
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**environment, "MASTER_PORT": str(free_port()), "DIFFUSION_VAR_TIMEOUT": "2"},
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert "InputError: this process could not join the others (RANK=1, WORLD_SIZE=2, MASTER_ADDR=loc" in done.stderr


RESTARTED = """
import os, signal, sys
import numpy as np
from diffusion_var import parallel
with parallel.sharing("sums") as team:
    found = [float(arrays["own"][0]) for arrays, _ in team.gather({"own": np.full(1, team.rank + 1.0)})]
    if team.rank == 1 and os.environ["TORCHELASTIC_RESTART_COUNT"] == "0":
        os.kill(os.getpid(), signal.SIGKILL)
    team.gather({})
    print(found) if team.first else None
"""


def test_torchrun_starts_again(tmp_path: Path) -> None:
    """Its store still has what the processes before wrote there."""
    (tmp_path / "run.py").write_text(RESTARTED)
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    done = subprocess.run(
        [*launcher, "--max-restarts", "1", str(tmp_path / "run.py")],
        env={**os.environ, "CUDA_VISIBLE_DEVICES": "", "DIFFUSION_VAR_TIMEOUT": "60"},
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == "[1.0, 2.0]\n"
