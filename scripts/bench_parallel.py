"""What many processes gain: on this machine, and with a network that sleeps in place of many devices.

    python scripts/bench_parallel.py machine     # two processes of one thread against one: estimate, sample, nll
    python scripts/bench_parallel.py sleeping    # estimate in 2, 8 and 32 processes that sleep
    python scripts/bench_parallel.py large       # a model of 10 billion parameters on 64 GPUs, predicted and simulated

1. The same call in one process of one thread and shared by two, in alternation; medians, and their ratio.
2. The bundled digits, and as the network the exact mean of a mixture fitted to them, which is cheap, and sleeps for
   each image that it is given, as long as a device would take. So the rounds, and who waits for whom, are those of a
   real run. Of each round: its draws, and the efficiency that sharing whole indices alone would have. Of each number of
   processes: a perfect share of one process's time, over the time taken. What the processes compute themselves (their
   CPU seconds) they have to do on this machine's few cores, and not each on its own: it must be small.
3. The same for what such a model takes, made `--factor` times shorter.

Processes are forks of this one, which talk by way of 127.0.0.1, as those of torchrun do on one machine.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import socket
import statistics
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

import diffusion_var as dv

Work = Callable[[], Any]
_forks = multiprocessing.get_context("fork")


# ---- many processes -------------------------------------------------------------------------------------------------


def shared(count: int, work: Work) -> tuple[float, list[Any]]:
    """Seconds that `count` processes take for a work that they share, begun once all are there; what each returns."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    pipes, processes = [], []
    for rank in range(count):
        ours, theirs = _forks.Pipe(duplex=False)
        names = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": count, "LOCAL_WORLD_SIZE": count}
        environment = {name: str(value) for name, value in names.items()}
        environment |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        process = _forks.Process(target=_call, args=(theirs, environment, work))
        process.start()
        theirs.close()
        pipes.append(ours)
        processes.append(process)
    found = [pipe.recv() for pipe in pipes]
    for process in processes:
        process.join()
    begun, ended, given = zip(*found, strict=True)
    return max(ended) - max(begun), list(given)


def _call(pipe: Any, environment: dict[str, str], work: Work) -> None:
    os.environ.update(environment)
    warnings.simplefilter("ignore")
    # The first call joins the processes, which a run of hours does not notice.
    still = dv.Denoiser(lambda x, t: 0.5 * x, dv.NoiseSchedule.linear(10), shape=(1, 4, 4))
    dv.estimate(still, torch.zeros(4, 1, 4, 4), 1e9, indices=[5], structures=(), progress=False)
    begun = time.monotonic()  # one clock for all processes of a machine
    given = work()
    pipe.send((begun, time.monotonic(), given))
    pipe.close()
    os._exit(0)


# ---- on this machine ------------------------------------------------------------------------------------------------


def on_this_machine(repeats: int) -> None:
    """Print part 1."""
    denoiser = dv.Denoiser.from_pretrained("digits")
    images, scored = dv.data.open_images("digits:table"), dv.data.open_images("digits:score[:128]")
    table = dv.estimate(denoiser, images, 9.0, indices=[1, 300, 700, 1000], structures=(), progress=False)
    covariance = dv.Analytic(table, structure="isotropic")
    few = [50, 150, 250, 350, 450, 550, 650, 750]
    works: dict[str, Work] = {
        "estimate": lambda: dv.estimate(denoiser, images, indices=few, progress=False).evaluations,
        "sample": lambda: len(dv.Sampler(denoiser, covariance, 25).sample(512, batch_size=64)),
        "nll": lambda: dv.bits_per_dim(denoiser, covariance, scored, 50, progress=False).value,
    }
    print(f"{'':10s}{'one process':>13s}{'two':>9s}{'ratio':>8s}   (seconds, medians of {repeats}; one thread each)")
    for name, work in works.items():
        pairs = []
        for repeat in range(repeats):  # the order changes, so that drift cancels
            order = (1, 2) if repeat % 2 else (2, 1)
            times = {count: shared(count, work)[0] for count in order}
            pairs.append((times[1], times[2]))
        one, two = (statistics.median(times) for times in zip(*pairs, strict=True))
        ratio = statistics.median(a / b for a, b in pairs)
        print(f"{name:10s}{one:>13.2f}{two:>9.2f}{ratio:>8.2f}", flush=True)


# ---- a network that sleeps ------------------------------------------------------------------------------------------


class Sleeping:
    """The exact ε̂ of a mixture, and `seconds` of sleep for each image.

    Attribute `seen`: the timestep and the number of images of each call, in order.
    """

    def __init__(self, mixture: dv.oracles.MixtureDenoiser, seconds: float) -> None:
        self.mixture, self.seconds = mixture, seconds
        self.seen: list[Any] = []

    def __call__(self, x: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
        until = time.monotonic() + self.seconds * len(x)
        self.seen.append(timestep.numpy().copy())
        found = self.mixture(x, timestep.long() + 1).eps
        time.sleep(max(until - time.monotonic(), 0.0))
        return found


class Run:
    """`estimate` of the digits with the default indices and tolerance, by a network that sleeps."""

    def __init__(self, batch_size: int, structures: Sequence[str] = ("isotropic", "channel", "pixel", "dct")) -> None:
        self.images = dv.data.digits_splits().table.images
        self.mixture = dv.oracles.fit_mixture(self.images, 10)
        self.batch_size, self.structures = batch_size, structures

    def __call__(self, seconds: float) -> tuple[dv.VarianceTable, Sleeping]:
        network = Sleeping(self.mixture, seconds)
        denoiser = dv.Denoiser(network, self.mixture.schedule, shape=self.mixture.shape)
        given: dict[str, Any] = {"batch_size": self.batch_size, "progress": False, "structures": self.structures}
        return dv.estimate(denoiser, self.images, **given), network

    def alone(self) -> tuple[float, dv.VarianceTable, list[dict[int, int]]]:
        """Without sleep, in this process: seconds, the table, and the draws of each index in each round."""
        begun = time.monotonic()
        table, network = self(0.0)
        return time.monotonic() - begun, table, rounds_of(network)

    def together(self, count: int, seconds: float) -> tuple[float, list[int], float]:
        """Shared: seconds, the evaluations of each process, and the CPU seconds of all."""

        def work() -> tuple[int, float]:
            begun = time.process_time()
            return sum(map(len, self(seconds)[1].seen)), time.process_time() - begun

        took, found = shared(count, work)
        return took, [evaluations for evaluations, _ in found], sum(cpu for _, cpu in found)


def rounds_of(network: Sleeping) -> list[dict[int, int]]:
    """The draws of each round by timestep: one process goes through the indices of a round in their order."""
    rounds: list[dict[int, int]] = [{}]
    last = -1.0
    for timestep in np.concatenate(network.seen).tolist():
        if timestep < last:
            rounds.append({})
        rounds[-1][timestep] = rounds[-1].get(timestep, 0) + 1
        last = timestep
    return rounds


def of_wholes(draws: list[int], count: int) -> float:
    """Efficiency of sharing indices as wholes, the dearest first to whoever has least."""
    loads = [0] * count
    for cost in sorted(draws, reverse=True):
        loads[loads.index(min(loads))] += cost
    return sum(draws) / count / max(loads)


def traffic() -> int:
    """Bytes that went over the loopback device so far, of all programs of this machine."""
    line = next(line for line in Path("/proc/net/dev").read_text().splitlines() if line.strip().startswith("lo:"))
    return int(line.split(":")[1].split()[0])


def sleeping(counts: list[int], seconds: float, batch_size: int) -> None:
    """Print part 2. `seconds`: of an evaluation, times the number of processes, so that each run takes as long; longer
    where there are more than 8, which have much to do on few cores."""
    run = Run(batch_size)
    own, table, rounds = run.alone()
    evaluations = table.evaluations
    print(f"{evaluations:,} evaluations in {len(rounds)} rounds; without sleep {own:.1f} s in one process\n")
    print(f"{'round':>5s}{'indices':>9s}{'draws':>8s}{'most':>7s}   efficiency if indices were shared as wholes alone")
    for number, draws in enumerate(rounds):
        wholes = "".join(f"{f'{count}: {of_wholes([*draws.values()], count):.2f}':>11s}" for count in counts)
        print(f"{number:>5d}{len(draws):>9d}{sum(draws.values()):>8d}{max(draws.values()):>7d}{wholes}")
    every = {c: sum(sum(d.values()) / of_wholes([*d.values()], c) for d in rounds) for c in counts}
    print(f"{'all':>5s}{'':>24s}" + "".join(f"{f'{c}: {evaluations / every[c]:.2f}':>11s}" for c in counts))
    print(
        f"\n{'processes':>9s}{'s/eval':>9s}{'seconds':>9s}{'linear':>9s}{'efficiency':>12s}{'most/mean':>11s}{'MB':>8s}"
        f"{'CPU s':>8s}"
    )
    for count in counts:
        each, before = seconds * count * max(1.0, count / 8), traffic()
        took, shares, cpu = run.together(count, each)
        linear = (own + evaluations * each) / count
        balance = max(shares) / (sum(shares) / count)
        sent = (traffic() - before) / 1e6
        print(
            f"{count:>9d}{each:>9.4f}{took:>9.1f}{linear:>9.1f}{linear / took:>12.3f}{balance:>11.3f}{sent:>8.0f}"
            f"{cpu:>8.1f}",
            flush=True,
        )


# ---- a large model --------------------------------------------------------------------------------------------------


def bytes_of_index(elements: int, channels: int) -> int:
    """What is told of an index at a meeting: eight float64 sums for each element of pixel and dct, and of channels;
    covariances of eight by eight for four structures, those of eight folds, and a thousand draws of 24 bytes."""
    return 8 * 8 * (2 * elements + channels + 1) + 4 * 8 * 64 + 8 * 8 * 72 + 24 * 1024


def large(count: int, factor: float, batch_size: int) -> None:
    """Print part 3."""
    tokens, parameters, flops, share = 4096, 10e9, 989e12, 0.4
    each = 2 * 2 * parameters * tokens / (flops * share)
    print(
        f"an evaluation: guided, 2 × 2 × {parameters:.0g} parameters × {tokens} tokens at {share:.0%} of "
        f"{flops:.3g} flop/s: {each:.3f} s; simulated {each / factor:.4f} s, {factor:g} times shorter"
    )
    run = Run(batch_size, ["isotropic"])  # 64 processes have enough to do on few cores
    _, table, rounds = run.alone()
    ideal, waits = table.evaluations * each / count, len(rounds) * batch_size * each / 2
    told = 64 * bytes_of_index(16 * 128 * 128, 16)
    print(
        f"{table.evaluations:,} evaluations in {len(rounds)} rounds, batches of {batch_size}, {count} processes\n"
        f"predicted: {ideal:.0f} s, and {waits:.0f} s of waiting for half a batch at each round's end: "
        f"{ideal + waits:.0f} s, efficiency {ideal / (ideal + waits):.2f}; simulated {(ideal + waits) / factor:.1f} s\n"
        f"a meeting of 64 indices of 16×128×128 latents, with all structures: {told / 1e9:.2f} GB, "
        f"{told / 1e9:.1f} s at 1 GB/s, for each round and each save (not simulated)",
        flush=True,
    )
    took, shares, cpu = run.together(count, each / factor)
    print(
        f"taken: {took:.1f} s, which stands for {took * factor:.0f} s; efficiency {ideal / factor / took:.3f}, "
        f"most/mean {max(shares) * count / sum(shares):.3f}, {cpu:.1f} s of CPU"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=("machine", "sleeping", "large"))
    parser.add_argument("--repeats", type=int, default=5, help="of machine")
    parser.add_argument("--processes", type=int, nargs="+", default=[2, 8, 32], help="of sleeping")
    parser.add_argument("--seconds", type=float, default=8e-4, help="of sleeping: an evaluation, times the processes")
    parser.add_argument("--factor", type=float, default=2.0, help="of large: how much shorter than the model")
    parser.add_argument("--batch-size", type=int, help="64 in sleeping, 16 in large")
    args = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore", dv.DiffusionVarWarning)
    if args.part == "machine":
        on_this_machine(args.repeats)
    elif args.part == "sleeping":
        sleeping(args.processes, args.seconds, args.batch_size or 64)
    else:
        large(64, args.factor, args.batch_size or 16)


if __name__ == "__main__":
    main()
