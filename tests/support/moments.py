"""Commands killed at random moments of the clock, in one process and in several, and run again: nothing is lost, and
nothing else is there.

A moment is drawn uniformly over the time that the command works when nothing disturbs it. One process, drawn, gets
SIGKILL or SIGTERM, or all get SIGINT, as from a terminal. All must end by themselves, and say why. The next run, in
another number of processes where there were several, must end well, with the files of an undisturbed run and no others;
and it must go on: it evaluates networks no more often than what was not yet saved asks for, and what is lost is younger
than the interval between two saves, which is short here.
"""

from __future__ import annotations

import mmap
import os
import re
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
from alike import unlike
from forks import Command, all_ended, debris, is_working, orphans, ranks, start
from senseless import latents

from diffusion_var.randomness import generator

SECONDS = 0.1  # between two saves of a running checkpoint
SIGNALS = (signal.SIGKILL, signal.SIGKILL, signal.SIGKILL, signal.SIGTERM, signal.SIGINT)  # in turn
WORDS = {signal.SIGTERM: "stopped by SIGTERM", signal.SIGINT: "interrupted"}
#: What is said of a process that is gone: which, or, before they have met, that one is.
NAMES_A_RANK = re.compile(r"rank \d+ of \d+|could not join the others")
#: Seconds without progress after which a process counts as one that hangs, and those that all have to end.
HANGS, BOUND = 20.0, 90.0
_MOST_RANKS, _MOST_SAVES, _TRIES = 8, 4000, 20


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
    oldest: float = 0.0  # seconds of work that a kill took
    longest: float = 0.0  # seconds until the last process had ended
    lost: list[tuple[int, str]] = field(default_factory=list)  # work that had been saved, or that should have been
    ends: list[tuple[int, str]] = field(default_factory=list)  # the way in which a disturbed run ended
    failed: list[tuple[int, str]] = field(default_factory=list)  # the next run
    unlike: list[tuple[int, str]] = field(default_factory=list)  # other files than those of an undisturbed run
    debris: list[tuple[int, str]] = field(default_factory=list)

    @property
    def faults(self) -> list[tuple[int, str]]:
        """All of them."""
        return [*self.lost, *self.ends, *self.failed, *self.unlike, *self.debris]


class Progress:
    """How far a run has come, in memory that its processes share: images that networks were given, and how many there
    were whenever a file was put in its place."""

    def __init__(self) -> None:
        held = np.frombuffer(mmap.mmap(-1, 8 * (2 * _MOST_RANKS + 1 + 2 * _MOST_SAVES)), dtype=np.float64)
        self._counts, self._begun, rest = np.split(held, [_MOST_RANKS, 2 * _MOST_RANKS])
        self._kept, self._saves = rest[:1], rest[1:].reshape(_MOST_SAVES, 2)  # how many saves

    def watch(self, folder: Path, rank: int) -> None:
        """From now on, in this process: a batch is counted when a network has answered, and files of the folder."""
        from torch.nn.modules import module

        depth, genuine = [0], os.replace

        def before(network: Any, arguments: Any) -> None:
            depth[0] += 1

        def after(network: Any, arguments: Any, found: Any) -> None:
            depth[0] -= 1
            if depth[0] == 0:
                self._counts[rank] += next((len(a) for a in arguments if getattr(a, "ndim", 0)), 1)

        def replace(source: Any, target: Any, **options: Any) -> None:
            genuine(source, target, **options)
            if Path(target).is_relative_to(folder):
                self._saves[int(self._kept[0]) % _MOST_SAVES] = self._counts.sum(), time.monotonic()
                self._kept[0] += 1

        self._begun[rank] = 1.0
        module.register_module_forward_pre_hook(before)
        module.register_module_forward_hook(after, always_call=True)
        os.replace = replace

    def begun(self, processes: int) -> bool:
        """Whether so many processes are watched."""
        return bool(self._begun.sum() == processes)

    @property
    def evaluations(self) -> float:
        """So far, of all processes."""
        return float(self._counts.sum())

    @property
    def saves(self) -> npt.NDArray[np.float64]:
        """(S, 2) evaluations of all processes and seconds of the clock of each save."""
        return self._saves[: int(self._kept[0])].copy()


@dataclass
class Undisturbed:
    """A run to compare with: its seconds of work, and what it had evaluated at the end and at its saves."""

    seconds: float
    evaluations: float
    saves: npt.NDArray[np.float64]

    def left(self, saved: npt.NDArray[np.float64], before: int, now: int) -> float:
        """The most evaluations that a run in `now` processes may need after one in `before` with these saves, this one
        having had a single process: what each asks a network before the first file, what was not saved, and the units
        that were being saved."""
        own = float(self.saves[0, 0])
        if not len(saved):
            return self.evaluations + (now - 1) * own
        unit = float(np.diff(self.saves[:, 0], prepend=0.0, append=self.evaluations).max())
        return self.evaluations - own - (float(saved[-1, 0]) - before * own) + now * own + max(before, now) * unit

    def interval(self) -> float:
        """The longest time between two saves, in seconds."""
        return float(np.diff(self.saves[:, 1]).max(initial=0.0))


def begin(run: Run, out: Path, logs: Path, progress: Progress, processes: int = 1) -> list[int]:
    """Start a command in forks that save often; their processes."""
    out.mkdir(parents=True, exist_ok=True)

    def before(rank: int) -> None:
        from diffusion_var import resume

        resume.SECONDS = SECONDS
        progress.watch(out, rank)

    return [
        start(
            run.command(out),
            logs / f"log-{rank}",
            partial(before, rank),
            environment={"DIFFUSION_VAR_TIMEOUT": f"{HANGS}", **environment},
        )
        for rank, environment in enumerate(ranks(processes))
    ]


def said(logs: Path, processes: int) -> list[str]:
    """What each process printed."""
    return [(logs / f"log-{rank}").read_text(errors="replace") for rank in range(processes)]


def undisturbed(run: Run, out: Path, logs: Path, processes: int = 1) -> Undisturbed:
    """Carry out a command."""
    progress, began = Progress(), time.monotonic()
    codes = all_ended(begin(run, out, logs, progress, processes), BOUND)
    if any(codes):
        raise RuntimeError(f"the undisturbed run ended with {codes}: {[s[-2000:] for s in said(logs, processes)]}")
    return Undisturbed(time.monotonic() - began, progress.evaluations, progress.saves)


class Sweep:
    """Kills of one command in a folder `place`.

    Args:
        processes: of the runs that are killed; the next run has one process where that is 1, else one or three.
        name: of the command, from which with the seed and the case the moment and the process are drawn.
        kept: a folder to which that of a fault is copied as its kill has left it, if there is one.
    """

    def __init__(
        self,
        name: str,
        run: Run,
        place: Path,
        seed: int = 0,
        processes: int = 1,
        kept: Path | None = None,
    ) -> None:
        self.name, self.run, self.place, self.seed, self.processes, self.kept = name, run, place, seed, processes, kept
        self.found, self._out = Outcome(), place / "out"
        place.mkdir(parents=True, exist_ok=True)
        self._usual = self._single = undisturbed(run, self._out, place)
        self._whole = self._out.rename(place / "whole")  # with which all are compared
        if processes > 1:
            self._usual = undisturbed(run, self._out, place, processes)
            if other := unlike(self._out, self._whole, exact=False):
                self.found.unlike.append((-1, f"undisturbed, {processes} processes make others: {', '.join(other)}"))
        self.found.seconds = self._usual.seconds

    def kill(self, case: int) -> None:
        """Disturb a run, and carry on with another."""
        number, before = SIGNALS[case % len(SIGNALS)], len(self.found.faults)
        for attempt in range(_TRIES):
            shutil.rmtree(self._out, ignore_errors=True)
            progress, stream = Progress(), generator(self.seed, f"moments of {self.name}", case, attempt)
            children = begin(self.run, self._out, self.place, progress, self.processes)
            share, victim = float(stream.random()), int(stream.integers(self.processes))
            while not progress.begun(self.processes):
                time.sleep(0.001)
            began = time.monotonic()
            while (killed := time.monotonic()) < began + share * self.found.seconds and is_working(children):
                time.sleep(0.002)
            for child in children if number == signal.SIGINT else [children[victim]]:
                os.kill(child, number)
            codes = all_ended(children, BOUND)
            if any(code != 0 for code in codes):
                break
            self.found.seconds = min(killed - began, self.found.seconds)  # it had ended: this machine has more time now
        else:
            raise RuntimeError(f"the command ends before {self.found.seconds:.1f} s, again and again")
        self.found.kills += 1
        self.found.longest = max(self.found.longest, time.monotonic() - killed)
        self._look_at_ends(case, number, victim, codes, children)
        self._look_at_loss(case, progress, killed)
        left = self.place / "left"
        shutil.rmtree(left, ignore_errors=True)
        shutil.copytree(self._out, left)
        self._again(case, progress)
        if self.kept is not None and len(self.found.faults) > before:
            shutil.copytree(left, self.kept / f"{self.place.name}-{self.processes}-{case}", dirs_exist_ok=True)

    def _look_at_ends(
        self, case: int, number: signal.Signals, victim: int, codes: list[int | None], children: list[int]
    ) -> None:
        """What is wrong with the end of a run that got a signal. Whoever ended well has done the work."""
        texts = said(self.place, self.processes)
        done = 0 in codes and all(debris([name]) for name in unlike(self._out, self._whole, exact=False))
        if number == signal.SIGKILL:
            wrong = codes[victim] != -number
            others = [text for rank, text in enumerate(texts) if rank != victim]
            wrong |= bool(others) and not done and not any(NAMES_A_RANK.search(text) for text in others)
        else:
            told = [text for text in texts if WORDS[number] in text]
            wrong = not told or codes[victim] != 128 + number
        wrong |= None in codes or (0 in codes and not done)
        wrong |= any("Traceback" in text or text.count("error:") > 1 for text in texts)
        if wrong:
            lines = [f"{code}: {text[-500:]}" for code, text in zip(codes, texts, strict=True)]
            self.found.ends.append((case, f"{number.name} to rank {victim}, it ended with {lines}"))
        if live := orphans(children):
            self.found.ends.append((case, f"{number.name} to rank {victim} left {len(live)} processes"))

    def _look_at_loss(self, case: int, progress: Progress, killed: float) -> None:
        """How old the work is that was lost."""
        saves = progress.saves
        if self.run.keeps and len(saves):
            age = max(killed - float(saves[-1, 1]), 0.0)
            self.found.oldest = max(self.found.oldest, age)
            if age > SECONDS + 5.0 * self._usual.interval() + 1.0:
                words = f"the last save was {age:.1f} s old, in a run that saves every {SECONDS} s"
                self.found.lost.append((case, words))

    def _again(self, case: int, before: Progress) -> None:
        """Run the command once more, and look at what it does and leaves."""
        progress, processes = Progress(), 1 if self.processes == 1 else (1, self.processes + 1)[case % 2]
        codes = all_ended(begin(self.run, self._out, self.place, progress, processes), BOUND)
        if any(codes):
            texts = [text[-500:] for text in said(self.place, processes)]
            self.found.failed.append((case, f"the next run, of {processes}, ended with {codes}: {texts}"))
            return
        most = self._single.left(before.saves, self.processes, processes) if self.run.keeps else np.inf
        if progress.evaluations > most:
            numbers = f"{progress.evaluations:g} evaluations of {self._single.evaluations:g}, where {most:g} were left"
            self.found.lost.append((case, f"the next run, of {processes}, made {numbers}"))
        left = debris([str(path.relative_to(self._out)) for path in self._out.rglob("*") if path.is_file()])
        self.found.debris += [(case, f"it left {name}") for name in left]
        exact = self.processes == processes == 1
        if other := [name for name in unlike(self._out, self._whole, exact) if name not in left]:
            self.found.unlike.append((case, f"other files than undisturbed: {', '.join(other)}"))


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
    compare = ["compare", "--config", f"{config}"]
    indices = ["--indices", "1,100,300,500,700,1000"]
    estimate = ["estimate", *digits, "--images", images, *indices, "--tolerance"]
    sample = ["sample", *digits, "--steps", "5", "--batch-size", "4"]
    nll = ["nll", *digits, "--images", "digits:score[:32]", "--steps", "5", "--covariance", "beta_tilde"]
    head = ["train-head", *digits, "--table", f"{table}", "--images", images, "--steps", "40", "--batch-size", "6"]
    head += ["--evaluate-every", "10", "--likelihood-images", "0"]
    restore = ["restore", *digits, "--images", "digits:score[:16]", "--operator", "inpainting", "--draws", "2"]
    restore += ["--covariances", "pigdm", "--guidance", "II", "--steps", "4,8", "--batch-size", "4", "--pictures", "2"]
    stats = ["stats", "digits:score[:700]", "--features", "digits", "--batch-size", "4"]
    made = {
        "estimate": Run(lambda out: [*estimate, "0.15", "--batch-size", "16", "-o", f"{out}/t"]),
        "compare": Run(lambda out: [*compare, "--processes", "1", "-o", f"{out}/c"]),
        # Its work is not seen, in processes that are no forks of this one.
        "compare with its own": Run(lambda out: [*compare, "--processes", "2", "-o", f"{out}/c"], keeps=False),
        "nll": Run(lambda out: [*nll, "--batch-size", "4", "-o", f"{out}/nll.json"]),
        "train-head": Run(lambda out: [*head, "-o", f"{out}/h"]),
        "sample": Run(lambda out: [*sample, "--count", "48", "-o", f"{out}/s"]),
        "sample npz": Run(lambda out: [*sample, "--count", "48", "-o", f"{out}/s.npz"], keeps=False),
        "restore": Run(lambda out: [*restore, "-o", f"{out}/r"]),
        "stats": Run(lambda out: [*stats, "-o", f"{out}/s.npz"], keeps=False),
        "encode_latents": Run(lambda out: partial(_encode, out / "latents")),
    }
    measured = Run(lambda out: [*estimate, "9", "-o", str(table)])
    undisturbed(measured, inputs / "measured", inputs)
    return made


def _encode(cache: Path) -> None:
    """Latents into a cache of many files."""
    from diffusion_var.models.pretrained import encode

    encode.CHUNK = 1  # type: ignore[attr-defined]
    latents(cache / "any of them", 200)
