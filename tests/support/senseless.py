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
from mutants import mutants

import diffusion_var as dv
from diffusion_var.app.compare.cells import FORM as CELL
from diffusion_var.app.compare.cells import CellStore, Measured
from diffusion_var.documents import read_document
from diffusion_var.metrics.classifier import DigitsFeatures, read_features, save_features
from diffusion_var.metrics.score import Score
from diffusion_var.models.pretrained.latents import LatentCodec
from diffusion_var.training.unet import train_unet

INDICES = [1, 5, 20, 50]


class Stop(Exception):
    """An interruption."""


@dataclass(frozen=True)
class Kind:
    """A kind of file: what writes one, and what reads it as a user's call does."""

    make: Callable[[Path], Any]
    read: Callable[[Path], Any]
    zero_is_fine: tuple[str, ...] = ()
    dear: bool = False


def estimate(path: Path) -> Any:
    return dv.estimate(
        small_heads.denoiser(),
        small_heads.images(),
        indices=INDICES,
        tolerance=0.05,
        checkpoint=path,
        progress=False,
    )


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
    return dv.bits_per_dim(denoiser, dv.FixedLarge(), images, small_likelihoods.STEPS, checkpoint=path, progress=False)


def training(path: Path, hook: Callable[[int], None] = lambda call: None) -> Any:
    settings = small_training.UNetTraining(**small_training.SETTINGS)
    images = small_training.Images(hook)
    return train_unet(
        small_training.small_unet(), images, small_training.SCHEDULE, settings, checkpoint=path, progress=False
    )


def autoencoder() -> Any:
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL

    with torch.random.fork_rng():
        torch.manual_seed(0)
        return AutoencoderKL(block_out_channels=(4,), norm_num_groups=2, latent_channels=2).eval()


def latents(path: Path) -> Any:
    model = dv.Denoiser(lambda x, t: x, dv.NoiseSchedule.linear(10), shape=(2, 4, 4), clip=None)
    vae = autoencoder()
    model.codec = LatentCodec(lambda: vae, dict(vae.config), torch.device("cpu"))
    images = np.random.default_rng(3).integers(0, 256, (3, 3, 4, 4), dtype=np.uint8)
    found: Any = dv.encode_latents(model, images, cache=path.parent, progress=False)
    return found[0]


def cell(path: Path) -> None:
    score = Score(3.5, {"metric": "fid", "images": 4}, 0.25, (3.0, 4.0))
    store = CellStore(path.parent, {"network": "abc"})
    store.save("name", {"seed": 1}, Measured({"fid": score}, np.ones((2, 1, 4, 4), np.uint8)))
    (written,) = store.folder.iterdir()
    written.rename(path)


KINDS = {
    "table": Kind(lambda path: small_heads.table().save(path), dv.VarianceTable.load),
    "head": Kind(lambda path: small_heads.head(0.1).save(path), dv.Head.load),
    "checkpoint of an estimate": Kind(
        interrupted_estimate,
        estimate,
        (*(f"{s}.weights" for s in ("channel", "pixel", "dct")), "start_counts"),
        dear=True,
    ),
    "checkpoint of a likelihood": Kind(bound, bound, dear=True),
    "checkpoint of a training": Kind(training, training, ("optimizer",), dear=True),
    "latents": Kind(latents, latents, dear=True),
    "cell": Kind(cell, lambda path: read_document(path, CELL)),
    "features": Kind(lambda path: save_features(DigitsFeatures(), path), read_features, ("trunk", "head")),
}
NAMES = {"latents": "latents-000000.safetensors"}


@dataclass
class Outcome:
    """What the mutants of a file came to: refused in one sentence that names the file, or not."""

    longest: int = 800  # characters of a sentence
    refused: int = 0
    accepted: list[str] = field(default_factory=list)
    crashed: list[str] = field(default_factory=list)  # another error than ours, or a sentence that does not help
    written_over: list[str] = field(default_factory=list)

    @property
    def wrong(self) -> list[str]:
        """What should not have been."""
        return [f"{name}: accepted" for name in self.accepted] + self.crashed + self.written_over

    def take(self, name: str, file: str, use: Callable[[], Any]) -> None:
        """Count what a call on a mutant comes to."""
        try:
            use()
            self.accepted.append(name)
        except dv.InputError as error:
            said = str(error)
            if file in said and "\n" not in said and len(said) <= self.longest:
                self.refused += 1
            else:
                self.crashed.append(f"{name}: {said}")
        except Exception as error:  # the kind of it is what is asked
            self.crashed.append(f"{name}: {type(error).__name__}: {error}")


def outcome(kind: str, folder: Path, chosen: Callable[[int], list[int]]) -> Outcome:
    """Read those of a kind's mutants that are chosen of their number; the file itself must be read before and after."""
    made, found = KINDS[kind], Outcome()
    path = folder / NAMES.get(kind, "it.safetensors")
    made.make(path)
    original = path.read_bytes()
    every = list(mutants(path, made.zero_is_fine))
    for name, write in [every[k] for k in chosen(len(every))]:
        write(path)
        before = path.read_bytes()
        found.take(name, path.name, lambda: made.read(path))
        if path.read_bytes() != before:
            found.written_over.append(f"{name}: written over")
        path.write_bytes(original)
    made.read(path)
    return found
