"""The processes that torchrun, `accelerate launch` or srun started: known by their environment, and joined.

A program that has joined them itself (torch.distributed) is left as it is.
"""

from __future__ import annotations

import os
import re
import socket
import sys
from collections.abc import MutableMapping
from datetime import timedelta
from typing import Any

from . import checks
from .errors import InputError

#: Seconds without progress after which a process counts as one that hangs, and the variable that sets another number.
TIMEOUT, TIMEOUT_VARIABLE = 1800.0, "DIFFUSION_VAR_TIMEOUT"
_PORT, _PORTS, _STEPS = 15000, 17000, 997  # of a SLURM job that names none, and between two of its steps


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


def rank() -> int:
    """Which of its processes this one is, by its environment."""
    environment = os.environ
    return int(environment["RANK" if "RANK" in environment else "SLURM_PROCID"]) if expected() > 1 else 0


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
    if on_cpu:
        _spread_threads()
    else:
        _require_gpus(torch.accelerator.device_count())
    try:
        # Without cpu=True, Accelerate takes each process on a machine without a GPU for a run of its own.
        PartialState(cpu=on_cpu, timeout=timedelta(seconds=timeout()), **_of_this_attempt())
    except (RuntimeError, ValueError) as error:  # what c10d raises where the others are not found
        names = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
        given = ", ".join(f"{name}={os.environ.get(name, '')}" for name in names)
        reason = (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
        raise InputError(
            f"this process could not join the others ({given}: {reason}); start all of them alike, or unset RANK and "
            "WORLD_SIZE where there is but one."
        ) from error
    checks.refuse(
        not is_joined(),
        f"this program runs in {expected()} processes, but Accelerate was set up in each of them as a run of its own, "
        "so that they cannot share work; make its Accelerator for the CPU, or after the work that they share.",
    )


def _of_this_attempt() -> dict[str, Any]:
    """What joins the processes that torchrun has started again: its store still has the addresses of those before."""
    if not (attempt := int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"))):
        return {}
    from torch.distributed.distributed_c10d import PrefixStore
    from torch.distributed.rendezvous import rendezvous

    store, number, size = next(rendezvous("env://", timeout=timedelta(seconds=timeout())))
    return {"store": PrefixStore(f"attempt {attempt}", store), "rank": number, "world_size": size}


def leave() -> None:
    """End what `join` began, where the program ends."""
    if is_joined():
        from torch import distributed

        distributed.destroy_process_group()


def local_rank() -> tuple[int, int]:
    """Which of this machine's processes this is, and of how many."""
    number = int(os.environ.get("LOCAL_RANK", "0"))
    return number, max(int(os.environ.get("LOCAL_WORLD_SIZE", "1")), number + 1)


def _require_gpus(count: int) -> None:
    """InputError, in every process of this machine alike, unless there is a GPU for each."""
    here = local_rank()[1]
    checks.refuse(
        here > count,
        f"{here} processes were started on {socket.gethostname()}, which has {count} GPU{'s' * (count > 1)}; start "
        f"{count} here, or pass device='cpu'.",
    )


def _spread_threads() -> None:
    """torchrun gives each process one thread; where a launcher gives none, they share the cores."""
    import torch

    if "OMP_NUM_THREADS" not in os.environ:
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        os.environ["OMP_NUM_THREADS"] = str(max(1, cores // local_rank()[1]))
        torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))


def of_slurm(environment: MutableMapping[str, str]) -> dict[str, str]:
    """What torchrun would have set, from what srun sets for a task."""
    # Where each task sees the GPUs of its own alone, it is the only one among them.
    apart = "SLURM_GPUS_PER_TASK" in environment or "gpu" in environment.get("SLURM_TRES_PER_TASK", "")
    here = tasks_per_node(environment.get("SLURM_STEP_TASKS_PER_NODE", "1"))
    node = int(environment.get("SLURM_NODEID", "0"))
    found = {
        "RANK": environment["SLURM_PROCID"],
        "WORLD_SIZE": environment["SLURM_STEP_NUM_TASKS"],
        "LOCAL_RANK": "0" if apart else environment.get("SLURM_LOCALID", "0"),
        "LOCAL_WORLD_SIZE": "1" if apart else str(here[min(node, len(here) - 1)]),
    }
    nodes = environment.get("SLURM_STEP_NODELIST") or environment.get("SLURM_NODELIST") or "localhost"
    job, step = (int(re.sub(r"\D", "", environment.get(f"SLURM_{name}_ID", "")) or 0) for name in ("JOB", "STEP"))
    port = _PORT + (job + _STEPS * step) % _PORTS
    address = {"MASTER_ADDR": first_node(nodes), "MASTER_PORT": str(port)}
    return found | {name: environment.get(name) or value for name, value in address.items()}


def tasks_per_node(text: str) -> list[int]:
    """SLURM's numbers of tasks, node by node: "4(x2),1" is 4, 4, 1."""
    found = []
    for part in text.split(","):
        tasks, _, times = part.rstrip(")").partition("(x")
        found += [int(tasks)] * int(times or 1)
    return found


def first_node(nodes: str) -> str:
    """The first of a SLURM list of nodes: "gpu[03-05,9]-a,login" is gpu03-a, gpu04-a, ..."""
    name, opening, rest = re.match(r"([^,\[]*)(\[?)(.*)", nodes).groups()  # type: ignore[union-attr]
    if not opening:
        return name
    numbers, _, after = rest.partition("]")
    return name + re.split(r"[-,]", numbers)[0] + first_node(after)
