"""The noise of a batch of images: every image has streams of its own, keyed by (seed, purpose, image index, block)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from ..randomness import Streams

#: Steps drawn at once for an image. Part of the streams' definition: another value gives other (equally good) images.
_BLOCK = 8


class ImageNoise:
    """Standard normal noise for images i of a run; image i does not depend on who else is in the batch.

    Args:
        seed: the run's seed.
        images: indices i of the images in this batch.
        shape: (C, *spatial).
        device: where the noise is wanted; it is drawn on the CPU, so that every device gets the same.
    """

    def __init__(self, seed: int, images: Sequence[int], shape: tuple[int, ...], device: torch.device) -> None:
        self.shape, self.device = shape, device
        self._seed, self._images = seed, images
        self._streams = Streams()
        self._block = torch.empty(0)
        self._used = self._beside = 0

    def prior(self) -> torch.Tensor:
        """(B, C, *spatial): the noise that the first x_t is made of."""
        out = np.empty((len(self._images), *self.shape), dtype=np.float32)
        for row, i in zip(out, self._images, strict=True):
            self._streams.at(self._seed, "sampler prior", i).standard_normal(out=row, dtype=np.float32)
        return torch.from_numpy(out).to(self.device)

    def next(self) -> torch.Tensor:
        """(B, C, *spatial): the noise of the next step that needs any."""
        place = self._used % _BLOCK
        if place == 0:
            self._block = self._draw(self._used // _BLOCK)
        self._used += 1
        return self._block[place]

    def beside(self, shape: tuple[int, ...]) -> torch.Tensor:
        """(B, *shape): noise that is not of the images' shape, of a measurement; others each time."""
        out = np.empty((len(self._images), *shape), dtype=np.float32)
        for row, i in zip(out, self._images, strict=True):
            self._streams.at(self._seed, "sampler noise beside", i, self._beside).standard_normal(
                out=row, dtype=np.float32
            )
        self._beside += 1
        return torch.from_numpy(out).to(self.device)

    def _draw(self, block: int) -> torch.Tensor:
        """(_BLOCK, B, C, *spatial): the noise of the steps of one block."""
        out = np.empty((len(self._images), _BLOCK, *self.shape), dtype=np.float32)
        for row, i in zip(out, self._images, strict=True):
            self._streams.at(self._seed, "sampler noise", i, block).standard_normal(out=row, dtype=np.float32)
        noise = torch.from_numpy(out).transpose(0, 1).contiguous()
        if self.device.type == "cuda":
            # A copy from pinned memory does not wait for the GPU: drawing overlaps with the network.
            return noise.pin_memory().to(self.device, non_blocking=True)
        return noise.to(self.device)
