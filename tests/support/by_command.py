"""Damaged files at the command line: exit code 2, one sentence and no traceback, or what the whole file leads to."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import json
import re
import shutil
import sys
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from damage import damaged
from forks import tree
from senseless import Outcome

import diffusion_var as dv
from diffusion_var.app.cli import main
from diffusion_var.progress import quiet
from diffusion_var.randomness import generator

DIGITS = ["--model", "digits"]
TABLE = ["estimate", *DIGITS, "--images", "digits:table[:16]", "--indices", "1,500,1000", "--tolerance", "9"]
HEAD = ["train-head", *DIGITS, "--images", "digits:table[:16]", "--batch-size", "4"]
HEAD += ["--evaluate-every", "2", "--likelihood-images", "0"]
SAMPLE = ["sample", *DIGITS, "--steps", "2", "--count", "3"]
RESTORE = ["restore", *DIGITS, "--operator", "inpainting", "--covariances", "pigdm", "--guidance", "II"]
RESTORE += ["--steps", "2", "--draws", "1", "--overwrite"]
COMPARE: dict[str, Any] = {
    "model": "digits",
    "steps": [2],
    "seeds": [0],
    "count": 4,
    "baseline": None,
    "features": "digits",
    "reference": "digits:score[:40]",
    "methods": [{"covariance": "beta_tilde"}],
}


@dataclasses.dataclass(frozen=True)
class Kind:
    """A kind of file at a command.

    Attributes:
        file: that is damaged, in the folder that `make` fills.
        form: of the damage (see damage.py).
        arguments: of the command that reads it, given the folder.
        means: what came of the command, from the folder and what it printed.
    """

    file: str
    form: str
    make: Callable[[Path], Any]
    arguments: Callable[[Path], list[str]]
    means: Callable[[Path, str], Any] = lambda folder, printed: printed
    random: int = 40


def call(arguments: list[str]) -> str:
    """What a command prints where it ends well; InputError, as it says it, where it ends with code 2."""
    out, error = io.StringIO(), io.StringIO()
    before, code = sys.argv, 0
    sys.argv = ["diffusion-var", *arguments]
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(out), contextlib.redirect_stderr(error), quiet():
            warnings.simplefilter("default")
            main()
    except SystemExit as end:
        code = int(end.code or 0)
    finally:
        sys.argv = before
    if code == 0:
        return out.getvalue()
    said = error.getvalue().strip()
    if code == 2 and said.count("error: ") == 1 and "Traceback" not in said:
        raise dv.InputError(said.rpartition("error: ")[2].partition("\n")[0])
    raise RuntimeError(f"it ended with {code}: {said[-800:]}")


def outcome(
    kind: str, folder: Path, chosen: Callable[[int], list[int]], random: int | None = None, seed: int = 0
) -> Outcome:
    """Give those of `random` mutants of a kind that are chosen to its command, each beside the files that were made
    with it."""
    made, found = KINDS[kind], Outcome(longest=1000)
    whole, place = folder / "whole", folder / "used"
    place.mkdir()
    made.make(place)  # in the folder in which it is used: runs know their inputs by their paths
    shutil.copytree(place, whole)
    original = (whole / made.file).read_bytes()

    def use(content: bytes) -> Any:
        shutil.rmtree(place)
        shutil.copytree(whole, place)
        (place / made.file).write_bytes(content)
        return made.means(place, call(made.arguments(place)))

    expected = use(original)
    for number in chosen(made.random if random is None else random):
        name, content = damaged(made.form, original, generator(seed, f"mutants of a {kind}", number))
        refused = found.take(number, name, place.name, partial(use, content), lambda it: bool(it == expected))
        if refused and (place / made.file).read_bytes() != content:
            found.written_over.append((number, f"{name}: written over"))
    return found


# ---- what makes the files, and what is seen of the commands ----------------------------------------------------------


def _table(folder: Path) -> None:
    call([*TABLE, "-o", f"{folder / 'table.safetensors'}"])


def _head(folder: Path) -> None:
    _table(folder)
    call([*HEAD, "--steps", "4", "--table", f"{folder / 'table.safetensors'}", "-o", f"{folder / 'head'}"])


def _stopped(arguments: list[str], checkpoint: str, folder: Path) -> None:
    """Interrupt a command when its networks have been called some times."""
    from torch.nn.modules import module

    calls: Iterator[int] = iter(range(10**9))

    def stop(network: Any, given: Any) -> None:
        if next(calls) > 2500:
            raise KeyboardInterrupt

    hook = module.register_module_forward_pre_hook(stop)
    try:
        with contextlib.suppress(RuntimeError):  # it ends with 130
            call(arguments)
    finally:
        hook.remove()
    assert (folder / checkpoint).is_file()


def _estimate(folder: Path) -> list[str]:
    return [*TABLE[:-1], "0.2", "--batch-size", "16", "-o", f"{folder / 'table.safetensors'}"]


def _likelihood(folder: Path) -> list[str]:
    nll = ["nll", *DIGITS, "--images", "digits:score[:12]", "--steps", "4", "--covariance", "beta_tilde"]
    return [*nll, "--batch-size", "2", "-o", f"{folder / 'nll.json'}"]


def _training(folder: Path) -> list[str]:
    more = ["--steps", "40", "--table", f"{folder / 'table.safetensors'}", "-o", f"{folder / 'head'}"]
    return [*HEAD, *more]


def _interrupted_training(folder: Path) -> None:
    _table(folder)
    _stopped(_training(folder), "head/training.partial", folder)


def _statistics(folder: Path) -> None:
    call(["stats", "digits:score[:40]", "--features", "digits", "-o", f"{folder / 'it.npz'}"])


def _compare(folder: Path) -> list[str]:
    (folder / "compare.yaml").write_text(yaml.safe_dump(COMPARE))
    return ["compare", "--config", f"{folder / 'compare.yaml'}", "-o", f"{folder / 'c'}"]


def _compared(folder: Path) -> None:
    call(_compare(folder))
    (cell,) = (folder / "c" / "cells").glob("DDPM*")
    cell.rename(cell.with_name(re.sub(r".*-", "it-", cell.name)))
    (folder / "c" / "cells" / "it").symlink_to(next((folder / "c" / "cells").glob("it-*")).name)


def _restore(folder: Path) -> list[str]:
    return [*RESTORE, "--measurements", f"{folder / 'y.npz'}", "-o", f"{folder / 'r'}"]


def _measured(folder: Path) -> None:
    np.savez(folder / "y.npz", y=generator(0, "measurements").standard_normal((2, 1, 8, 8), dtype=np.float32))


def _restored(folder: Path) -> None:
    _measured(folder)
    call(_restore(folder))
    (cell,) = (folder / "r" / "cells").iterdir()
    cell.rename(cell.with_name(re.sub(r".*-", "it-", cell.name)))
    (folder / "r" / "cells" / "it").symlink_to(next((folder / "r" / "cells").glob("it-*")).name)


def _results(folder: Path, printed: str) -> Any:
    return (folder / "c" / "results.json").read_bytes()


def _sampled(folder: Path) -> None:
    call([*SAMPLE, "-o", f"{folder / 's'}"])


def _folder(folder: Path, printed: str) -> Any:
    images = {name: digest for name, digest in tree(folder / "s").items() if name.endswith(".png")}
    return images, json.loads((folder / "s" / "sampling.json").read_bytes())


def _npz(folder: Path, printed: str) -> Any:
    with np.load(folder / "s.npz") as content:
        return {name: content[name].tobytes() for name in content.files if name != "run"}


def _file(name: str) -> Callable[[Path, str], Any]:
    return lambda folder, printed: (folder / name).read_bytes()


def _table_digest(folder: Path, printed: str) -> Any:
    return dv.VarianceTable.load(folder / "table.safetensors").digest


KINDS = {
    "table, at show": Kind("table.safetensors", "document", _table, lambda f: ["show", f"{f / 'table.safetensors'}"]),
    "table, at sample": Kind(
        "table.safetensors",
        "document",
        _table,
        lambda f: [*SAMPLE, "--table", f"{f / 'table.safetensors'}", "-o", f"{f / 's.npz'}"],
        _npz,
    ),
    "head, at sample": Kind(
        "head/head.safetensors",
        "document",
        _head,
        lambda f: [*SAMPLE, "--head", f"{f / 'head' / 'head.safetensors'}", "-o", f"{f / 's.npz'}"],
        _npz,
    ),
    "statistics, at fid": Kind(
        "it.npz",
        "npz",
        _statistics,
        lambda f: ["fid", "digits:table[:40]", f"{f / 'it.npz'}", "--features", "digits"],
        lambda f, printed: re.findall(r"fid\s+\S+|FID\s+\S+", printed),
    ),
    "checkpoint, at estimate": Kind(
        "table.safetensors.partial",
        "document",
        lambda f: _stopped(_estimate(f), "table.safetensors.partial", f),
        _estimate,
        _table_digest,
    ),
    "checkpoint, at nll": Kind(
        "nll.json.partial",
        "document",
        lambda f: _stopped(_likelihood(f), "nll.json.partial", f),
        _likelihood,
        _file("nll.json"),
    ),
    "checkpoint, at train-head": Kind(
        "head/training.partial",
        "document",
        _interrupted_training,
        _training,
        _file("head/head.safetensors"),
    ),
    "cell, at compare": Kind("c/cells/it", "document", _compared, _compare, _results, 20),
    "record, at compare": Kind("c/comparison.json", "json", _compared, _compare, _results, 20),
    "measurements, at restore": Kind("y.npz", "npz", _measured, _restore, _file("r/results.json"), 20),
    "cell, at restore": Kind("r/cells/it", "document", _restored, _restore, _file("r/results.json"), 20),
    "manifest, at sample": Kind("s/SHA256SUMS", "lines", _sampled, lambda f: [*SAMPLE, "-o", f"{f / 's'}"], _folder),
    "settings, at sample": Kind("s/sampling.json", "json", _sampled, lambda f: [*SAMPLE, "-o", f"{f / 's'}"], _folder),
    "images, at sample": Kind("s/000001.png", "any", _sampled, lambda f: [*SAMPLE, "-o", f"{f / 's'}"], _folder),
}
