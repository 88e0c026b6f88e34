"""Images to latents, once: every image of a fixed set through a model's autoencoder, with a cache that can be resumed.

The cache is a folder of files of 256 latents each. Each file names the images and the autoencoder that it was made
from, so that a cache of other images is refused, and an interrupted run goes on with the files that are missing.
Processes share the files, and each writes those that it has made.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset

from ... import checks, parallel
from ...array_rules import ArrayRule, require_arrays
from ...data.fixed_images import CHUNK, FixedImages
from ...documents import Arrays, Form
from ...errors import InputError, NetworkError
from ...files import expanded, make_folder
from ...locks import locked, tidy
from ...parallel import Team
from ...progress import progress_bar
from ...resume import Parts, StateRecord
from ...same_folder import require_shared
from ..denoiser import Denoiser, check_denoiser
from .latents import IMAGE_RANGE, LatentCodec

_AXES = {3: ("length",), 4: ("height", "width"), 5: ("frames", "height", "width")}


def _check(arrays: Arrays, record: StateRecord) -> None:
    axes = arrays["latents"].ndim if "latents" in arrays else 4
    shape = ("latents", "channels", *_AXES.get(axes, _AXES[4]))
    require_arrays(arrays, {"latents": ArrayRule("float32", shape)})


FORM = Form("diffusion_var.latents", 1, "file of latents", StateRecord, _check)


def encode_latents(
    denoiser: Denoiser, images: Any, cache: str | Path | None = None, batch_size: int = 8, progress: bool = True
) -> Dataset[torch.Tensor] | torch.Tensor:
    """The latents of images, as `estimate` takes them.

    Args:
        denoiser: loaded from a pipeline with an autoencoder.
        images: as for `estimate`: Dataset, tensor or array of (C, H, W), uint8 or floats in [-1, 1], of the size that
            belongs to the denoiser's latents.
        cache: folder to keep the latents in, and to continue from; None: keep them in memory.
        batch_size: images at once.
        progress: a progress bar.

    Returns: (M, c, h, w) float32 without a cache, a Dataset that reads the cache with one; in every process.
    Raises InputError for a model without an autoencoder, unusable images, a cache of other images, and one that not all
    processes see; NetworkError, naming the images, where the autoencoder fails (a cache keeps the files until then).
    """
    check_denoiser(denoiser)
    codec = denoiser.codec
    if codec is None:
        raise InputError("this model has no autoencoder, so there is nothing to encode; pass the images as they are.")
    batch_size = checks.whole("batch_size", batch_size, least=1)
    source = FixedImages(images, codec.image_shape(denoiser.shape), IMAGE_RANGE)
    with parallel.sharing("encode_latents") as team:
        identity = {
            "images": source.scan(),
            "autoencoder": codec.fingerprint,
            "what the autoencoder does": codec.probe(),
            "scaling": [list(part) if isinstance(part, tuple) else part for part in codec.scaling],
            "count": len(source),
        }
        team.agree({**identity, "batch_size": batch_size, "cache": cache is not None}, "encode_latents")
        work = _Encoding(codec, source, batch_size, denoiser.shape)
        if cache is None:
            return work.in_memory(team, progress)
        files = _CacheFiles(expanded(cache), identity, denoiser.shape, team)
        work.into(files, team, progress)
        return CachedLatents(files, len(source))


class _Encoding:
    """Images that become latents of a shape, in parts of `CHUNK`."""

    def __init__(self, codec: LatentCodec, source: FixedImages, batch_size: int, shape: tuple[int, ...]) -> None:
        self._codec, self._source, self._batch_size, self._shape = codec, source, batch_size, shape
        self.parts = range(-(-len(source) // CHUNK))

    def in_memory(self, team: Team, progress: bool) -> torch.Tensor:
        """All latents, in every process."""
        with self._bar(progress) as bar, self._codec.evaluating():

            def part(k: int) -> np.ndarray[Any, Any]:
                found = self._encode(k).numpy()
                bar.update(len(found))
                return found

            team.tell_idle(len(self.parts), f"parts of {CHUNK} images")
            return torch.from_numpy(np.concatenate(team.made([len(self._positions(k)) for k in self.parts], part)))

    def into(self, files: _CacheFiles, team: Team, progress: bool) -> None:
        """The files of a cache that are not there yet."""
        with ExitStack() as held:
            missing = team.first_alone(lambda: self._missing(files, held))
            if missing:
                require_shared(files.folder, team)
                team.tell_idle(len(missing), f"files of {CHUNK} latents")
            bar = held.enter_context(self._bar(progress, missing))
            held.enter_context(self._codec.evaluating())
            for i in team.claimed(len(missing)):
                with files.naming():
                    latents = self._encode(missing[i])
                files.write(missing[i], latents)
                bar.update(len(self._positions(missing[i])))
            team.gather({})
            team.end_if_stopped()

    def _missing(self, files: _CacheFiles, held: ExitStack) -> list[int]:
        """The files that are to be made, by this run alone: the cache is locked while there are any."""
        missing = [k for k in self.parts if not files.has(k)]
        if not missing:
            tidy(files.folder)
            return missing
        # A cache is there to be shared: whoever is second waits, and finds what the first made.
        held.enter_context(locked(files.folder, folder=True, wait=True))
        return [k for k in missing if not files.has(k)]

    def _bar(self, progress: bool, missing: Sequence[int] | None = None) -> Any:
        left = sum(len(self._positions(k)) for k in (self.parts if missing is None else missing))
        return progress_bar(len(self._source), "encode", "image", progress, initial=len(self._source) - left)

    def _positions(self, k: int) -> np.ndarray[Any, Any]:
        return np.arange(k * CHUNK, min((k + 1) * CHUNK, len(self._source)))

    def _encode(self, k: int) -> torch.Tensor:
        """The latents of a part."""
        positions, parts = self._positions(k), []
        for start in range(0, len(positions), self._batch_size):
            batch = positions[start : start + self._batch_size]
            try:
                parts.append(self._codec.encode(self._source.take(batch)))
            except NetworkError as error:
                error.after = f", images {batch[0]} to {batch[-1]}"
                raise
            parallel.beat()
        latents = torch.cat(parts)
        if tuple(latents.shape[1:]) != self._shape:
            raise InputError(
                f"the autoencoder gives latents of shape {tuple(latents.shape[1:])}, but the network takes "
                f"{self._shape}; the two do not belong together."
            )
        return latents


class _CacheFiles:
    """The files of one cache folder, of `CHUNK` latents of a shape each."""

    def __init__(self, folder: Path, identity: dict[str, Any], shape: tuple[int, ...], team: Team) -> None:
        self.folder, self._shape = folder, shape
        self._parts = Parts(folder, FORM, identity)
        team.first_alone(self._open)

    def _open(self) -> None:
        make_folder(self.folder)
        for path in sorted(self.folder.glob("latents-*.safetensors"))[:1]:
            self._load(path.name)  # another cache is refused before the work, not after

    def _load(self, name: str) -> torch.Tensor | None:
        found = self._parts.load(name)
        if found is None:
            return None
        latents = torch.from_numpy(found[0]["latents"])
        checks.refuse(
            tuple(latents.shape[1:]) != self._shape,
            f"the file of latents {self._parts.folder / name} holds latents of shape {tuple(latents.shape[1:])}, but "
            f"this model's have {self._shape}; delete it, and encode the images again.",
        )
        return latents

    def has(self, number: int) -> bool:
        """Whether this file is there and whole."""
        return self._load(_name(number)) is not None

    @contextmanager
    def naming(self) -> Iterator[None]:
        """The autoencoder's failure inside says where the latents until then are kept."""
        try:
            yield
        except NetworkError as error:
            if any(self.folder.glob("latents-*.safetensors")):
                error.kept = f"; the latents until then are kept in {self.folder}, from where the same run goes on"
            raise

    def write(self, number: int, latents: torch.Tensor) -> None:
        self._parts.save(_name(number), ({"latents": latents.numpy()}, {}))

    def read(self, number: int) -> torch.Tensor:
        path = self._parts.folder / _name(number)
        return checks.given(self._load(path.name), f"the file of latents {path} is gone; encode the images again.")


def _name(number: int) -> str:
    return f"latents-{number:06d}.safetensors"


class CachedLatents(Dataset[torch.Tensor]):
    """Latents (c, h, w) by position, read from a cache; a few files are held in memory."""

    def __init__(self, files: _CacheFiles, count: int) -> None:
        self._count = count
        self._file = lru_cache(maxsize=8)(files.read)

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: int) -> torch.Tensor:
        if not 0 <= index < self._count:
            raise IndexError(index)
        return self._file(index // CHUNK)[index % CHUNK]
