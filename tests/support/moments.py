"""Commands killed at random moments of the clock, and run again: nothing is lost, and nothing else is there.

A moment is drawn uniformly over the time that the command works when nothing disturbs it. It is killed by SIGKILL, or
told to end by SIGTERM or SIGINT. The next run must end well, with the files of an undisturbed run and no others; and it
must go on: it evaluates networks no more often than what was not yet saved asks for, and what is lost is younger than
the interval between two saves, which is short here.
"""

from __future__ import annotations

import mmap
import os
import shutil
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from forks import Command, debris, ended, start, tree
from senseless import latents

SECONDS = 0.1  # between two saves of a running checkpoint
SIGNALS = (signal.SIGKILL, signal.SIGKILL, signal.SIGKILL, signal.SIGTERM, signal.SIGINT)  # in turn
WORDS = {signal.SIGTERM: "stopped by SIGTERM", signal.SIGINT: "interrupted"}
_MOST_SAVES, _TRIES = 4000, 20


@dataclass(frozen=True)
class Run:
    """A command that writes into the folder that it is given; whether it keeps what it has done before it ends."""

    command: Callable[[Path], Command]
    keeps: bool = True


@dataclass
class Outcome:
    """What the kills of one command came to; each fault is (case, in words)."""

    seconds: float = 0.0  # of work, undisturbed
    kills: int = 0
    by: dict[str, int] = field(default_factory=dict)
    oldest: float = 0.0  # seconds of work that a kill took
    lost: list[tuple[int, str]] = field(default_factory=list)  # work that had been saved, or that should have been
    failed: list[tuple[int, str]] = field(default_factory=list)  # the next run, or the way in which a run ended
    unlike: list[tuple[int, str]] = field(default_factory=list)  # other files than those of an undisturbed run
    debris: list[tuple[int, str]] = field(default_factory=list)

    @property
    def faults(self) -> list[tuple[int, str]]:
        """All of them."""
        return [*self.lost, *self.failed, *self.unlike, *self.debris]


class Progress:
    """How far a run has come, in memory that its processes share: images that networks were given, and how many there
    were whenever a file was put in its place."""

    def __init__(self) -> None:
        held = np.frombuffer(mmap.mmap(-1, 8 * (2 + 2 * _MOST_SAVES)), dtype=np.float64)
        self._counts: npt.NDArray[np.float64] = held[:2]  # evaluations, saves
        self._saves: npt.NDArray[np.float64] = held[2:].reshape(_MOST_SAVES, 2)

    def watch(self, folder: Path) -> None:
        """From now on, in this process: a batch is counted when a network has answered, and files of the folder."""
        from torch.nn.modules import module

        depth, genuine = [0], os.replace

        def before(network: Any, arguments: Any) -> None:
            depth[0] += 1

        def after(network: Any, arguments: Any, found: Any) -> None:
            depth[0] -= 1
            if depth[0] == 0:
                self._counts[0] += next((len(a) for a in arguments if getattr(a, "ndim", 0)), 1)

        def replace(source: Any, target: Any, **options: Any) -> None:
            genuine(source, target, **options)
            if Path(target).is_relative_to(folder):
                self._saves[int(self._counts[1]) % _MOST_SAVES] = self._counts[0], time.monotonic()
                self._counts[1] += 1

        module.register_module_forward_pre_hook(before)
        module.register_module_forward_hook(after, always_call=True)
        os.replace = replace

    @property
    def evaluations(self) -> float:
        """So far."""
        return float(self._counts[0])

    @property
    def saves(self) -> npt.NDArray[np.float64]:
        """(S, 2) evaluations and seconds of the clock of each."""
        return self._saves[: int(self._counts[1])].copy()


@dataclass
class Undisturbed:
    """A run to compare with: its files, its seconds of work, and what it had evaluated at the end and at its saves."""

    files: dict[str, str]
    seconds: float
    evaluations: float
    saves: npt.NDArray[np.float64]

    def left(self, saved: npt.NDArray[np.float64]) -> float:
        """The most evaluations that a run may need after one with these saves: what it asks a network before its first
        file, what was not saved, and the unit that was being saved."""
        if not len(saved):
            return self.evaluations
        units = np.diff(self.saves[:, 0], prepend=0.0, append=self.evaluations)
        return float(self.saves[0, 0] + self.evaluations - saved[-1, 0] + units.max())

    def interval(self) -> float:
        """The longest time between two saves, in seconds."""
        return float(np.diff(self.saves[:, 1]).max(initial=0.0))


def begin(run: Run, out: Path, log: Path, progress: Progress) -> int:
    """Start a command in a fork that saves often; its process."""

    def before() -> None:
        from diffusion_var import resume

        resume.SECONDS = SECONDS
        progress.watch(out)

    return start(run.command(out), log, before)


def undisturbed(run: Run, out: Path, log: Path) -> Undisturbed:
    """Carry out a command."""
    progress, began = Progress(), time.monotonic()
    code = ended(begin(run, out, log, progress))
    if code != 0:
        raise RuntimeError(f"the undisturbed run ended with {code}: {log.read_text()[-2000:]}")
    return Undisturbed(tree(out), time.monotonic() - began, progress.evaluations, progress.saves)


def sweep(run: Run, place: Path, cases: list[int], stream: Callable[[int, int], np.random.Generator]) -> Outcome:
    """Kill a command at the moments of the cases, drawn by the stream of (case, attempt); with a folder `kept`, that of
    a fault as its kill has left it stays there."""
    log, out = place / "log", place / "out"
    expected, found = undisturbed(run, _fresh(out), log), Outcome()
    found.seconds = expected.seconds
    for case in cases:
        number = SIGNALS[case % len(SIGNALS)]
        for attempt in range(_TRIES):
            progress = Progress()
            child = begin(run, _fresh(out), log, progress)
            time.sleep(0.01 + float(stream(case, attempt).random()) * expected.seconds)
            killed = time.monotonic()
            os.kill(child, number)
            code = ended(child)
            if code != 0:  # it had not ended before
                break
        else:
            raise RuntimeError(f"the command is quicker than {expected.seconds:.1f} s: {log.read_text()[-2000:]}")
        found.kills += 1
        found.by[number.name] = found.by.get(number.name, 0) + 1
        if wrong := _ended_badly(number, code, log.read_text()):
            found.failed.append((case, wrong))
        _look(found, case, run, expected, progress, killed)
        _again(found, case, run, expected, progress, out, log)
    return found


def _fresh(out: Path) -> Path:
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    return out


def _ended_badly(number: signal.Signals, code: int, said: str) -> str:
    """What is wrong with the end of a run that got a signal, in words."""
    if number == signal.SIGKILL:
        return "" if code == -number else f"killed, it ended with {code}: {said[-300:]}"
    if code != 128 + number or WORDS[number] not in said or "Traceback" in said:
        return f"told to end by {number.name}, it ended with {code}: {said[-300:]}"
    return ""


def _look(found: Outcome, case: int, run: Run, expected: Undisturbed, progress: Progress, killed: float) -> None:
    """How old the work is that was lost."""
    saves = progress.saves
    if run.keeps and len(saves):
        age = max(killed - float(saves[-1, 1]), 0.0)
        found.oldest = max(found.oldest, age)
        if age > SECONDS + 5.0 * expected.interval() + 1.0:
            found.lost.append((case, f"the last save was {age:.1f} s old, in a run that saves every {SECONDS} s"))


def _again(found: Outcome, case: int, run: Run, expected: Undisturbed, before: Progress, out: Path, log: Path) -> None:
    """Run the command once more, and look at what it does and leaves."""
    progress = Progress()
    code = ended(begin(run, out, log, progress))
    if code != 0:
        found.failed.append((case, f"the next run ended with {code}: {log.read_text()[-300:]}"))
    most = expected.left(before.saves) if run.keeps else expected.evaluations
    if progress.evaluations > most:
        numbers = f"{progress.evaluations:g} evaluations of {expected.evaluations:g}, where {most:g} were left"
        found.lost.append((case, f"the next run made {numbers}"))
    files = tree(out)
    left = debris([*files])
    found.debris += [(case, f"it left {name}") for name in left]
    if {name: digest for name, digest in files.items() if name not in left} != expected.files:
        other = sorted(n for n in {**files, **expected.files} if files.get(n) != expected.files.get(n))
        found.unlike.append((case, f"other files than undisturbed: {', '.join(other)}"))


def runs(inputs: Path) -> dict[str, Run]:
    """The commands that take long, on inputs that are made here, each with a second or two of work in many units."""
    table = inputs / "table.safetensors"
    digits, images = ["--model", "digits"], "digits:table[:64]"
    config = inputs / "compare.yaml"
    config.write_text(
        "model: digits\nsteps: [2, 3]\nseeds: [0, 1]\ncount: 8\nbaseline: null\nfeatures: digits\n"
        "reference: digits:score[:40]\nmetrics: [fid, bits_per_dim]\nlikelihood_images: 'digits:score[:4]'\n"
        f"methods: [{{covariance: beta_tilde}}, {{covariance: analytic}}]\ntable: {table}\n"
    )
    indices = ["--indices", "1,100,300,500,700,1000"]
    estimate = ["estimate", *digits, "--images", images, *indices, "--tolerance"]
    sample = ["sample", *digits, "--steps", "5", "--batch-size", "4"]
    nll = ["nll", *digits, "--images", "digits:score[:48]", "--steps", "5", "--covariance", "beta_tilde"]
    head = ["train-head", *digits, "--table", f"{table}", "--images", images, "--steps", "60", "--batch-size", "8"]
    head += ["--evaluate-every", "10", "--likelihood-images", "0"]
    stats = ["stats", "digits:score[:700]", "--features", "digits", "--batch-size", "4"]
    made = {
        "estimate": Run(lambda out: [*estimate, "0.1", "--batch-size", "16", "-o", f"{out}/t"]),
        "compare": Run(lambda out: ["compare", "--config", f"{config}", "-o", f"{out}/c"]),
        "nll": Run(lambda out: [*nll, "--batch-size", "4", "-o", f"{out}/nll.json"]),
        "train-head": Run(lambda out: [*head, "-o", f"{out}/h"]),
        "sample": Run(lambda out: [*sample, "--count", "80", "-o", f"{out}/s"]),
        "sample npz": Run(lambda out: [*sample, "--count", "80", "-o", f"{out}/s.npz"], keeps=False),
        "stats": Run(lambda out: [*stats, "-o", f"{out}/s.npz"], keeps=False),
        "encode_latents": Run(lambda out: partial(_encode, out / "latents")),
    }
    measured = Run(lambda out: [*estimate, "9", "-o", str(table)])
    undisturbed(measured, inputs / "measured", inputs / "log")
    return made


def _encode(cache: Path) -> None:
    """Latents into a cache of many files."""
    from diffusion_var.models.pretrained import encode

    encode.CHUNK = 1  # type: ignore[attr-defined]
    latents(cache / "any of them", 200)
