"""Kinds of signed files, and what came of their mutants: what writes one, and what reads it as a user's call does."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import small_heads
import small_likelihoods
import small_training
import torch
from damage import damaged
from mutants import mutants

import diffusion_var as dv
from diffusion_var.advice.kept import Kept
from diffusion_var.app.compare.cells import FORM as CELL
from diffusion_var.app.compare.cells import CellStore, Measured
from diffusion_var.documents import read_document
from diffusion_var.metrics.classifier import DigitsFeatures, read_features, save_features
from diffusion_var.metrics.score import Score
from diffusion_var.models.pretrained.latents import LatentCodec
from diffusion_var.randomness import generator
from diffusion_var.training.unet import train_unet

INDICES = [1, 5, 20, 50]


class Stop(Exception):
    """An interruption."""


@dataclass(frozen=True)
class Kind:
    """A kind of file: what writes one, and what reads it as a user's call does, and says what it means, or what came
    of the run that went on from it."""

    make: Callable[[Path], Any]
    read: Callable[[Path], Any]
    zero_is_fine: tuple[str, ...] = ()
    dear: bool = False
    random: int = 200  # mutants of those that are drawn, in a full sweep


def estimate(path: Path) -> Any:
    options: dict[str, Any] = {"indices": INDICES, "tolerance": 0.05, "checkpoint": path, "progress": False}
    return dv.estimate(small_heads.denoiser(), small_heads.images(), **options).digest


def interrupted_estimate(path: Path) -> None:
    denoiser = small_heads.denoiser()
    calls, forward = 0, denoiser.network.forward

    def stopping(*arguments: Any, **options: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls > 9:
            raise Stop
        return forward(*arguments, **options)

    denoiser.network.forward = stopping
    with suppress(Exception):  # as the network's own, or with a word on where it was
        dv.estimate(denoiser, small_heads.images(), indices=INDICES, tolerance=0.05, checkpoint=path, progress=False)


def bound(path: Path) -> Any:
    denoiser = dv.Denoiser(
        small_likelihoods.Network(), small_likelihoods.SCHEDULE, shape=small_likelihoods.SHAPE, clip=(-1.0, 1.0)
    )
    images = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (70, *small_likelihoods.SHAPE), dtype=np.uint8))
    options: dict[str, Any] = {"checkpoint": path, "progress": False}
    return str(dv.bits_per_dim(denoiser, dv.FixedLarge(), images, small_likelihoods.STEPS, **options).to_dict())


def flow(path: Path) -> Any:
    images = np.random.default_rng(0).standard_normal((5, *small_likelihoods.SHAPE), dtype=np.float32)
    denoiser = small_likelihoods.small_denoiser(data_range=None, clip=None)
    return str(dv.ode_likelihood(denoiser, images, 3, draws=2, checkpoint=path).to_dict())


def part_of_an_advice(path: Path) -> Any:
    drawn = np.random.default_rng(0).standard_normal((4, 3))
    return Kept(path.parent, {"network": "abc"}).get(path.stem, drawn.shape, lambda: drawn).tobytes()


def training(path: Path, hook: Callable[[int], None] = lambda call: None) -> Any:
    settings = small_training.UNetTraining(**small_training.SETTINGS)
    images = small_training.Images(hook)
    trained = train_unet(
        small_training.small_unet(), images, small_training.SCHEDULE, settings, checkpoint=path, progress=False
    )
    return small_training.weights(trained).numpy().tobytes()


def autoencoder() -> Any:
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL

    with torch.random.fork_rng():
        torch.manual_seed(0)
        return AutoencoderKL(block_out_channels=(4,), norm_num_groups=2, latent_channels=2).eval()


def latents(path: Path, count: int = 3) -> Any:
    model = dv.Denoiser(lambda x, t: x, dv.NoiseSchedule.linear(10), shape=(2, 4, 4), clip=None)
    vae = autoencoder()
    model.codec = LatentCodec(lambda: vae, dict(vae.config), torch.device("cpu"))
    images = np.random.default_rng(3).integers(0, 256, (count, 3, 4, 4), dtype=np.uint8)
    found: Any = dv.encode_latents(model, images, cache=path.parent, progress=False)
    return torch.stack([found[i] for i in range(count)]).numpy().tobytes()


def cell(path: Path) -> None:
    score = Score(3.5, {"metric": "fid", "images": 4}, 0.25, (3.0, 4.0))
    store = CellStore(path.parent, {"network": "abc"})
    store.save("name", {"seed": 1}, Measured({"fid": score}, np.ones((2, 1, 4, 4), np.uint8)))
    (written,) = store.folder.iterdir()
    written.rename(path)


def read_cell(path: Path) -> Any:
    arrays, record = read_document(path, CELL)
    return arrays["grid"].tobytes(), record.model_dump_json()


ELEMENTWISE = tuple(f"{structure}.weights" for structure in ("channel", "pixel", "dct"))
KINDS = {
    "table": Kind(lambda path: small_heads.table().save(path), lambda path: dv.VarianceTable.load(path).digest),
    "head": Kind(lambda path: small_heads.head(0.1).save(path), lambda path: dv.Head.load(path).digest),
    "checkpoint of an estimate": Kind(interrupted_estimate, estimate, (*ELEMENTWISE, "start_counts"), dear=True),
    "checkpoint of a likelihood": Kind(bound, bound, dear=True),
    "checkpoint of a flow's likelihood": Kind(flow, flow, dear=True),
    "checkpoint of a training": Kind(training, training, ("optimizer",), dear=True),
    "part of an advice": Kind(part_of_an_advice, part_of_an_advice),
    "latents": Kind(latents, latents, dear=True),
    "cell": Kind(cell, read_cell),
    "features": Kind(
        lambda path: save_features(DigitsFeatures(), path),
        lambda path: str(read_features(path).fingerprint),
        ("trunk", "head"),
    ),
}
NAMES = {"latents": "latents-000000.safetensors"}


@dataclass
class Outcome:
    """What the mutants of a file came to: refused in one sentence that names the file, or not. Each fault is (number of
    the mutant, in words)."""

    longest: int = 800  # characters of a sentence
    refused: int = 0
    same: int = 0  # accepted, and what it means is what the whole file means
    accepted: list[tuple[int, str]] = field(default_factory=list)  # of those that mean something else, or nothing
    crashed: list[tuple[int, str]] = field(default_factory=list)  # another error, or a sentence that does not help
    written_over: list[tuple[int, str]] = field(default_factory=list)

    @property
    def wrong(self) -> list[str]:
        """What should not have been."""
        return [said for _, said in self.faults]

    @property
    def faults(self) -> list[tuple[int, str]]:
        """The same, by the numbers of the mutants."""
        return [*((k, f"{name}: accepted") for k, name in self.accepted), *self.crashed, *self.written_over]

    def take(self, number: int, name: str, file: str, use: Callable[[], Any], means: Callable[[Any], bool]) -> bool:
        """Count what a call on a mutant comes to, and ask of what it gives whether it `means` what it should; whether
        it was refused."""
        try:
            found = use()
        except dv.InputError as error:
            said = str(error)
            if file in said and said.count("\n") == said.count("\n  ") and len(said) <= self.longest:
                self.refused += 1
                return True
            self.crashed.append((number, f"{name}: {said}"))
        except Exception as error:  # the kind of it is what is asked
            self.crashed.append((number, f"{name}: {type(error).__name__}: {error}"))
        else:
            if means(found):
                self.same += 1
            else:
                self.accepted.append((number, name))
        return False


def outcome(
    kind: str, folder: Path, chosen: Callable[[int], list[int]], random: int | None = None, seed: int = 0
) -> Outcome:
    """Read those of a kind's mutants that are chosen of their number, first those that break a rule, then `random` ones
    that are damaged; the file itself must be read before and after."""
    made, found = KINDS[kind], Outcome()
    path = folder / NAMES.get(kind, "it.safetensors")
    made.make(path)
    original = path.read_bytes()
    expected = made.read(path)
    path.write_bytes(original)
    every = list(mutants(path, made.zero_is_fine))
    for number in chosen(len(every) + (made.random if random is None else random)):
        if number < len(every):
            name, write = every[number]
            write(path)
        else:
            name, content = damaged("document", original, generator(seed, f"mutants of a {kind}", number))
            path.write_bytes(content)
        before, senseless = path.read_bytes(), number < len(every)
        means = (lambda it: False) if senseless else (lambda it: bool(it == expected))
        if found.take(number, name, path.name, lambda: made.read(path), means) and path.read_bytes() != before:
            found.written_over.append((number, f"{name}: written over"))
        path.write_bytes(original)
    if made.read(path) != expected:
        raise RuntimeError(f"the {kind} is not read as before")
    return found
