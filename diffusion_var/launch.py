"""The processes that torchrun, `accelerate launch` or srun started: known by their environment, and joined.

A program that has joined them itself (torch.distributed) is left as it is.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import MutableMapping
from datetime import timedelta

from . import checks

#: Seconds without progress after which a process counts as one that hangs, and the variable that sets another number.
TIMEOUT, TIMEOUT_VARIABLE = 1800.0, "DIFFUSION_VAR_TIMEOUT"
_PORT, _PORTS = 15000, 20000  # of a SLURM job that names none


def timeout() -> float:
    """Seconds without progress after which a process counts as one that hangs."""
    text = os.environ.get(TIMEOUT_VARIABLE)
    try:
        seconds = TIMEOUT if text is None else float(text)
    except ValueError:
        seconds = 0.0
    wrong = f"{TIMEOUT_VARIABLE}={text} must be a positive number of seconds; correct it, or leave it out."
    checks.refuse(not seconds > 0.0, wrong)
    return seconds


def expected() -> int:
    """How many processes this program was started in, by its environment."""
    environment = os.environ
    size = environment.get("WORLD_SIZE") if "RANK" in environment else None
    if size is None and "SLURM_PROCID" in environment:  # salloc's and sbatch's own shells are no step of many tasks
        size = environment.get("SLURM_STEP_NUM_TASKS")
    return int(size) if size is not None and size.isdecimal() else 1


def is_joined() -> bool:
    """Whether this program's processes are joined, by whomever."""
    if "torch.distributed" not in sys.modules:  # then nobody has
        return False
    from torch import distributed

    return distributed.is_available() and distributed.is_initialized()


def join(cpu: bool = False) -> None:
    """Join the processes that this program was started in, unless that is done: nccl on GPUs, gloo where there are none
    or `cpu` asks for it. InputError for more processes on a machine than it has GPUs."""
    if is_joined() or expected() == 1:
        return
    import torch
    from accelerate import PartialState

    if "RANK" not in os.environ:
        os.environ.update(of_slurm(os.environ))
    on_cpu = cpu or not torch.accelerator.is_available()
    if not on_cpu:
        local, count = int(os.environ.get("LOCAL_RANK", "0")), torch.accelerator.device_count()
        checks.refuse(
            local >= count,
            f"process {local} of this machine has no GPU: it has {count} (0 to {count - 1}); start {count} processes "
            f"here (--nproc_per_node {count}), or pass --device cpu.",
        )
    # Without cpu=True, Accelerate takes each process on a machine without a GPU for a run of its own.
    PartialState(cpu=on_cpu, timeout=timedelta(seconds=timeout()))
    checks.refuse(
        not is_joined(),
        f"this program runs in {expected()} processes, but Accelerate was set up in each of them as a run of its own, "
        "so that they cannot share work; make its Accelerator with cpu=True, or after the work that they share.",
    )


def of_slurm(environment: MutableMapping[str, str]) -> dict[str, str]:
    """What torchrun would have set, from what srun sets for a task."""
    found = {
        "RANK": environment["SLURM_PROCID"],
        "WORLD_SIZE": environment["SLURM_STEP_NUM_TASKS"],
        "LOCAL_RANK": environment.get("SLURM_LOCALID", "0"),
        "LOCAL_WORLD_SIZE": environment.get("SLURM_STEP_TASKS_PER_NODE", "1").partition("(")[0].partition(",")[0],
    }
    nodes = environment.get("SLURM_STEP_NODELIST") or environment.get("SLURM_NODELIST") or "localhost"
    job = re.sub(r"\D", "", environment.get("SLURM_JOB_ID", "")) or "0"
    address = {"MASTER_ADDR": first_node(nodes), "MASTER_PORT": str(_PORT + int(job) % _PORTS)}
    return found | {name: environment.get(name) or value for name, value in address.items()}


def first_node(nodes: str) -> str:
    """The first of a SLURM list of nodes: "gpu[03-05,9]-a,login" is gpu03-a, gpu04-a, ..."""
    name, opening, rest = re.match(r"([^,\[]*)(\[?)(.*)", nodes).groups()  # type: ignore[union-attr]
    if not opening:
        return name
    numbers, _, after = rest.partition("]")
    return name + re.split(r"[-,]", numbers)[0] + first_node(after)
