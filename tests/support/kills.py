"""Every file operation of a command, killed once: the process ends there, as by SIGKILL, and the command is run again.

Each run is a fork (see forks.py). A killed one ends before its k-th operation (opening for writing, renaming,
removing, making a folder, ...), or, at an fsync, after half of what was written since the last one is lost. The next
run must end well, with the files of an undisturbed run and no others.
"""

import builtins
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from forks import Command, debris, ended, start, tree
from senseless import latents

KILLED = 137
_OPERATIONS = (
    "open",
    "fsync",
    "replace",
    "rename",
    "unlink",
    "remove",
    "rmdir",
    "mkdir",
    "fchmod",
    "ftruncate",
    "pwrite",
)


@dataclass
class Outcome:
    """What the kills of one command came to; each fault is (operation, in words)."""

    operations: int = 0
    kills: int = 0
    failed: list[tuple[int, str]] = field(default_factory=list)  # the next run did not end well
    unlike: list[tuple[int, str]] = field(default_factory=list)  # it made other files than an undisturbed run
    debris: list[tuple[int, str]] = field(default_factory=list)  # it left temporary files or locks


class Killer:
    """Counts file operations, and ends the process at one of them."""

    def __init__(self, last: int | None) -> None:
        self.count, self.last = 0, last
        self._genuine = {name: getattr(os, name) for name in _OPERATIONS}
        self._open = builtins.open

    def install(self) -> None:
        """From now on."""
        for name in _OPERATIONS:
            setattr(os, name, self._counting(name))
        builtins.open = self._opening  # type: ignore[assignment]

    def _counting(self, name: str) -> Callable[..., Any]:
        genuine = self._genuine[name]

        def operation(*arguments: Any, **named: Any) -> Any:
            if name != "open" or arguments[1] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
                self._step(arguments[0] if name == "fsync" else None)
            return genuine(*arguments, **named)

        return operation

    def _opening(self, file: Any, mode: str = "r", *rest: Any, **named: Any) -> Any:
        if set(mode) & set("wax+"):
            self._step(None)
        return self._open(file, mode, *rest, **named)

    def _step(self, written: int | None) -> None:
        self.count += 1
        if self.count != self.last:
            return
        if written is not None and os.path.isfile(f"/proc/self/fd/{written}"):
            size, path = os.fstat(written).st_size, os.readlink(f"/proc/self/fd/{written}")
            os.truncate(path, size // 2 if ".tmp" in path else max(size - 7, 0))  # one that grows has an old part
        os._exit(KILLED)


def run(command: Command, log: Path, last: int | None = None) -> tuple[int, int]:
    """Run a command in a fork, killed at operation `last`; its exit code and number of operations."""
    read, write = os.pipe()
    killer = Killer(last)

    def begin() -> None:
        os.close(read)
        killer.install()

    child = start(command, log, begin, lambda: os.write(write, str(killer.count).encode()))
    os.close(write)
    with os.fdopen(read) as pipe:
        told = pipe.read()
    return ended(child), int(told or -1)


def sweep(command: Callable[[Path], Command], place: Path, chosen: Callable[[int], list[int]]) -> Outcome:
    """Kill a command, which writes into the folder that it is given, at those of its operations that are chosen."""
    log, out = place / "log", place / "out"
    outcome = Outcome()

    def fresh() -> None:
        shutil.rmtree(out, ignore_errors=True)
        out.mkdir(parents=True)

    fresh()
    code, outcome.operations = run(command(out), log)
    if code != 0:
        raise RuntimeError(f"the undisturbed run of {command(out)} ended with {code}: {log.read_text()[-2000:]}")
    expected = tree(out)
    for case in chosen(outcome.operations):
        fresh()
        code, _ = run(command(out), log, case + 1)
        if code != KILLED:
            raise RuntimeError(f"operation {case} was not reached: {log.read_text()[-2000:]}")
        outcome.kills += 1
        code, _ = run(command(out), log)
        found = tree(out)
        if code != 0:
            outcome.failed.append((case, log.read_text()[-300:]))
        left = debris([*found])
        outcome.debris += [(case, f"it left {name}") for name in left]
        if {n: d for n, d in found.items() if n not in left} != expected:
            other = sorted(name for name in {**found, **expected} if found.get(name) != expected.get(name))
            outcome.unlike.append((case, f"other files than undisturbed: {', '.join(other)}"))
    return outcome


def _encode(cache: Path) -> None:
    """Latents into a cache of several files."""
    from diffusion_var.models.pretrained import encode

    encode.CHUNK = 1  # type: ignore[attr-defined]
    latents(cache / "any of them")


def commands(inputs: Path) -> dict[str, Callable[[Path], Command]]:
    """Small runs of all commands that write files, and of calls that do, on inputs that are made here."""
    table = inputs / "table.safetensors"
    few, images = "digits:table[:16]", inputs / "images.npz"
    pixels = np.random.default_rng(0).integers(0, 256, (24, 1, 8, 8), dtype=np.uint8)
    np.savez(images, images=pixels, labels=np.arange(24) % 2)
    unet = "{layers_per_block: 1, block_out_channels: [8, 8], down_block_types: [DownBlock2D, DownBlock2D], "
    unet += "up_block_types: [UpBlock2D, UpBlock2D], norm_num_groups: 4}"
    config = inputs / "compare.yaml"
    config.write_text(
        "model: digits\nsteps: [2]\nseeds: [0]\ncount: 4\nbaseline: null\nfeatures: digits\n"
        "reference: digits:score[:40]\n"
        f"methods: [{{covariance: beta_tilde}}, {{covariance: analytic}}]\ntable: {table}\n"
    )
    estimate = ["estimate", "--model", "digits", "--images", few, "--indices", "500", "--tolerance", "9"]
    training = ["--steps", "2", "--batch-size", "2", "--evaluate-every", "1"]
    digits = ["--model", "digits"]
    sample = ["sample", *digits, "--steps", "2"]
    restore = ["restore", *digits, "--images", "digits:score[:2]", "--operator", "inpainting", "--covariances", "pigdm"]
    restore += ["--steps", "1,2", "--draws", "2", "--guidance", "II"]
    nll = ["nll", *digits, "--images", "digits:score[:3]", "--steps", "2", "--covariance", "beta_tilde"]
    made: dict[str, Callable[[Path], Command]] = {
        "estimate": lambda out: [*estimate, "-o", f"{out}/t"],
        "show": lambda out: ["show", f"{table}", "--plot", f"{out}/v.png"],
        "sample": lambda out: [*sample, "--count", "5", "--batch-size", "2", "-o", f"{out}/s"],
        "sample npz": lambda out: [*sample, "--count", "3", "-o", f"{out}/s.npz"],
        "nll": lambda out: [*nll, "-o", f"{out}/nll.json"],
        "steps": lambda out: ["steps", f"{table}", "--steps", "2,3", "--plot", f"{out}/s.png"],
        "stats": lambda out: ["stats", "digits:score[:40]", "--features", "digits", "-o", f"{out}/s.npz"],
        "fid": lambda out: ["fid", "digits:score[:40]", "digits:table[:40]", "--features", "digits"],
        "train-features": lambda out: [
            "train-features",
            f"{images}:images",
            "--labels",
            f"{images}:labels",
            "--epochs",
            "1",
            "-o",
            f"{out}/f.safetensors",
        ],
        "train-unet": lambda out: [
            "train-unet",
            "--images",
            f"{images}:images",
            "--unet",
            unet,
            *training,
            "-o",
            f"{out}/u",
        ],
        "train-head": lambda out: [
            "train-head",
            *digits,
            "--table",
            f"{table}",
            "--images",
            few,
            *training,
            "--likelihood-images",
            "0",
            "-o",
            f"{out}/h",
        ],
        "encode_latents": lambda out: partial(_encode, out / "latents"),
        "compare": lambda out: ["compare", "--config", f"{config}", "-o", f"{out}/c"],
        "restore": lambda out: [*restore, "--calibrate", "--levels", "2", "-o", f"{out}/r"],
    }
    measured = [*estimate[:-4], "--indices", "1,100,300,500,700,1000", "--tolerance", "9", "-o", str(table)]
    if run(measured, inputs / "log")[0] != 0:
        raise RuntimeError((inputs / "log").read_text())
    return made
