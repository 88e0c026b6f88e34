"""Images to latents, once: every image of a fixed set through a model's autoencoder, with a cache that can be resumed.

The cache is a folder of files of 256 latents each. Each file names the images and the autoencoder that it was made
from, so that a cache of other images is refused, and an interrupted run goes on with the files that are missing.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset

from ... import checks
from ...array_rules import ArrayRule, require_arrays
from ...data.fixed_images import CHUNK, FixedImages
from ...documents import Arrays, Form
from ...errors import InputError, NetworkError
from ...files import expanded, make_folder
from ...locks import locked, tidy
from ...progress import progress_bar
from ...resume import Parts, StateRecord
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

    Returns: (M, c, h, w) float32 without a cache, a Dataset that reads the cache with one.
    Raises InputError for a model without an autoencoder, unusable images, and a cache of other images; NetworkError,
    naming the images, where the autoencoder fails (a cache keeps the files until then).
    """
    check_denoiser(denoiser)
    codec = denoiser.codec
    if codec is None:
        raise InputError("this model has no autoencoder, so there is nothing to encode; pass the images as they are.")
    batch_size = checks.whole("batch_size", batch_size, least=1)
    source = FixedImages(images, codec.image_shape(denoiser.shape), IMAGE_RANGE)
    identity = {
        "images": source.scan(),
        "autoencoder": codec.fingerprint,
        "what the autoencoder does": codec.probe(),
        "scaling": [list(part) if isinstance(part, tuple) else part for part in codec.scaling],
        "count": len(source),
    }
    files = None if cache is None else _CacheFiles(expanded(cache), identity, denoiser.shape)
    encoded, alone = [], False
    with ExitStack() as held, codec.evaluating(), progress_bar(len(source), "encode", "image", progress) as bar:
        for start in range(0, len(source), CHUNK):
            positions = np.arange(start, min(start + CHUNK, len(source)))
            if files is None:
                encoded.append(_encode(codec, source, positions, batch_size, denoiser.shape))
            elif not files.has(start // CHUNK):
                if not alone:  # a cache is there to be shared: whoever is second waits, and finds what the first made
                    held.enter_context(locked(files.folder, folder=True, wait=True))
                    alone = True
                if not files.has(start // CHUNK):
                    with files.naming():
                        latents = _encode(codec, source, positions, batch_size, denoiser.shape)
                    files.write(start // CHUNK, latents)
            bar.update(len(positions))
    if files is not None and not alone:
        tidy(files.folder)
    return torch.cat(encoded) if files is None else CachedLatents(files, len(source))


def _encode(
    codec: LatentCodec, source: FixedImages, positions: np.ndarray[Any, Any], batch_size: int, shape: tuple[int, ...]
) -> torch.Tensor:
    parts = []
    for k in range(0, len(positions), batch_size):
        batch = positions[k : k + batch_size]
        try:
            parts.append(codec.encode(source.take(batch)))
        except NetworkError as error:
            error.after = f", images {batch[0]} to {batch[-1]}"
            raise
    latents = torch.cat(parts)
    if tuple(latents.shape[1:]) != shape:
        raise InputError(
            f"the autoencoder gives latents of shape {tuple(latents.shape[1:])}, but the network takes {shape}; the "
            "two do not belong together."
        )
    return latents


class _CacheFiles:
    """The files of one cache folder, of `CHUNK` latents of a shape each."""

    def __init__(self, folder: Path, identity: dict[str, Any], shape: tuple[int, ...]) -> None:
        self.folder, self._shape = folder, shape
        self._parts = Parts(make_folder(folder), FORM, identity)
        for path in sorted(folder.glob("latents-*.safetensors"))[:1]:
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
