"""Files that are well signed and senseless: every reader refuses every mutant, in one sentence that names the file."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import small_heads
import small_likelihoods
import small_training
import torch
from mutants import mutants
from signed import contents, sign

import diffusion_var as dv
from diffusion_var.app.compare.cells import FORM as CELL
from diffusion_var.app.compare.cells import CellStore, Measured
from diffusion_var.documents import read_document
from diffusion_var.metrics.classifier import DigitsFeatures, read_features, save_features
from diffusion_var.metrics.score import Score
from diffusion_var.models.pretrained.latents import LatentCodec
from diffusion_var.randomness import generator
from diffusion_var.training.unet import train_unet

INDICES = [1, 5, 20, 50]
WEIGHTS = ("channel.weights", "pixel.weights", "dct.weights")


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
    with pytest.raises(Exception):  # noqa: B017, PT011 (as the network's own, or with a word on where it was)
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


@pytest.mark.parametrize("kind", KINDS)
def test_mutants_are_refused_in_one_sentence(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = KINDS[kind]
    path = tmp_path / "folder" / NAMES.get(kind, "it.safetensors")
    path.parent.mkdir()
    made.make(path)
    original = path.read_bytes()
    wrong, count = [], 0
    chosen = list(mutants(path, made.zero_is_fine))
    if made.dear:  # each is a run; all of them: scripts/fault_sweep.py
        chosen = [chosen[k] for k in sorted(generator(0, "mutants").permutation(len(chosen))[:40])]
    for name, write in chosen:
        write(path)
        before, count = path.read_bytes(), count + 1
        try:
            made.read(path)
            wrong.append(f"{name}: accepted")
        except dv.InputError as error:
            said = str(error)
            if path.name not in said or "\n" in said or len(said) > 800:
                wrong.append(f"{name}: {said}")
        except Exception as error:  # the kind of it is what is asked
            wrong.append(f"{name}: {type(error).__name__}: {error}")
        if path.read_bytes() != before:
            wrong.append(f"{name}: written over")
        path.write_bytes(original)
    assert not wrong, f"{len(wrong)} of {count}:\n" + "\n".join(wrong)
    assert count > 20
    made.read(path)


def test_headers_that_nest_without_end_and_numbers_without_end(tmp_path: Path) -> None:
    path = tmp_path / "t.safetensors"
    small_heads.table().save(path)
    arrays, _ = contents(path)
    import safetensors.numpy

    deep = "[" * 200_000 + "]" * 200_000
    for text in (
        deep,
        '{"a":' * 50_000 + "1" + "}" * 50_000,
        "9" * 5000,
        '{"digest": ' + deep + "}",
        "null",
        '"x"',
        "{",
    ):
        path.write_bytes(safetensors.numpy.save(arrays, {"diffusion_var": text}))
        with pytest.raises(dv.InputError, match=r"t\.safetensors is (not a readable|a safetensors file but not a)"):
            dv.VarianceTable.load(path)


def test_types_that_numpy_does_not_know(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    save_file({"a": torch.zeros(2, dtype=torch.bfloat16)}, tmp_path / "t", {"diffusion_var": json.dumps({"a": 1})})
    with pytest.raises(dv.InputError, match=r"not a (readable )?variance table"):
        dv.VarianceTable.load(tmp_path / "t")


def test_draws_that_do_not_add_up(tmp_path: Path) -> None:
    """Each number is one that a table may have, but not beside the others."""
    path = tmp_path / "t.safetensors"
    small_heads.table().save(path)
    arrays, metadata = contents(path)

    def said(changed: dict[str, Any], **facts: Any) -> str:
        sign(path, {**arrays, **changed}, {**metadata, **facts})
        with pytest.raises(dv.InputError) as error:
            dv.VarianceTable.load(path)
        return str(error.value)

    counts, means = arrays["counts"], arrays["isotropic.means"]
    spent = int(counts.sum())
    assert f"it says that {spent + 16} evaluations were spent, but its draws are {spent}" in said(
        {}, evaluations=spent + 16
    )
    assert "has mean square" in said({"isotropic.means": 1.5 * means})
    assert "pixel.means are not of the draws" in said({"pixel.means": 1.5 * arrays["pixel.means"]})
    spectrum = 2.0 * arrays["data.spectrum"]
    assert "in the dct basis" in said({"data.spectrum": spectrum})
    assert "indices end at 51" in said({"indices": np.array([1, 5, 20, 51])})
    assert "negative eigenvalue" in said({"isotropic.covariances": _crossed(arrays["isotropic.covariances"])})
    assert "no rotation" in said({"data.rotation": 2.0 * arrays["data.rotation"]})
    assert "not the one of its digest" in said({"schedule.alpha": arrays["schedule.alpha"] ** 1.01})


def _crossed(covariances: Any) -> Any:
    """Symmetric, with a covariance larger than its variances allow."""
    changed = covariances.copy()
    largest = np.sqrt(changed[:, 0, 0] * changed[:, 5, 5])
    changed[:, 0, 5] = changed[:, 5, 0] = 2 * largest
    return changed
