"""Bands of spatial frequency: which coefficients of the dct basis are pooled [E16].

Coefficient k of the DCT along axes of lengths L has the frequency √Σ_a (k_a/L_a)², in half cycles a pixel; a band is
the coefficients of one rotated channel between two frequencies. What is left unknown of natural images depends little
on the direction of a frequency, their spectra being nearly isotropic, and falls with a power of it: so bands are of
equal width in its logarithm. The coefficient of frequency 0, the mean of the channel, is a band of its own: it may
vary by a hundred times what its neighbours do.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch

from .. import checks


def frequencies(spatial: Sequence[int]) -> npt.NDArray[np.float64]:
    """√Σ_a (k_a/L_a)² of every coefficient, (*spatial); 0 without axes."""
    squares = np.zeros(tuple(spatial))
    for axis, length in enumerate(spatial):
        k = np.arange(length) / length
        squares = squares + (k**2).reshape(-1, *(1,) * (len(spatial) - 1 - axis))
    return np.asarray(np.sqrt(squares))


def band_of_frequencies(radius: npt.NDArray[np.float64], count: int) -> npt.NDArray[np.int64]:
    """The band of each frequency, from 0 on, of at most `count`: frequency 0, and equal intervals of the logarithm of
    the others, of which the empty ones are left out. With 1, all frequencies are one band."""
    if count == 1 or radius.max() == 0.0:
        return np.zeros(radius.shape, dtype=np.int64)
    least, most = radius[radius > 0].min(), radius.max()
    # The ends are moved a little, so that rounding puts neither the least nor the greatest frequency outside.
    edges = np.geomspace(least * (1 - 1e-9), most * (1 + 1e-9), count)[:-1]
    band = np.digitize(radius, edges)
    return np.asarray(np.unique(band, return_inverse=True)[1].reshape(radius.shape), dtype=np.int64)


class Bands:
    """The bands of images (C, *spatial).

    Args:
        shape: (C, *spatial).
        count: bands of each channel; fewer where some would be empty.

    Attributes: `index`, (C, *spatial) int64, the band of each coefficient, counted through all channels; `sizes`, (L,)
    float64, how many coefficients each has; `each`, the bands of a channel.
    Raises InputError for more bands than there are frequencies.
    """

    def __init__(self, shape: Sequence[int], count: int) -> None:
        shape, count = checks.shape("an image shape", shape), checks.whole("bands", count, least=1)
        radius = frequencies(shape[1:])
        distinct = len(np.unique(np.round(radius, 12)))
        checks.refuse(
            count > distinct,
            f"bands={count} is more than there are frequencies in images {tuple(shape)}, which have {distinct}; take "
            f"at most {distinct}.",
        )
        own = band_of_frequencies(radius, count)
        self.each = int(own.max()) + 1
        index = own + self.each * np.arange(shape[0]).reshape(-1, *(1,) * (len(shape) - 1))
        self.index = torch.from_numpy(np.broadcast_to(index, tuple(shape)).copy()).long()
        self.sizes = torch.bincount(self.index.flatten()).double()

    @property
    def count(self) -> int:
        """L, over all channels."""
        return len(self.sizes)

    def sum(self, elementwise: torch.Tensor) -> torch.Tensor:
        """Sums over each band, (…, C, *spatial) to (…, L) float64."""
        rows = elementwise.double().flatten(-self.index.ndim)
        found = torch.zeros(*rows.shape[:-1], self.count, dtype=torch.float64, device=rows.device)
        return found.index_add_(-1, self.index.flatten().to(rows.device), rows)

    def spread(self, values: torch.Tensor) -> torch.Tensor:
        """A value of each band, (…, L), at each of its coefficients: (…, C, *spatial)."""
        return values[..., self.index.to(values.device)]

    def neighbours(self, freedom: float) -> torch.Tensor:
        """Which bands tell what an estimate of a band is worth: itself and, where it has too few coefficients, those
        next to it in its channel, until Σ (size − 1) is at least `freedom` or the channel ends; (L, L) of 0 and 1,
        float64."""
        found = torch.zeros(self.count, self.count, dtype=torch.float64)
        for band in range(self.count):
            start = band // self.each * self.each
            for reach in range(self.each):
                part = slice(max(start, band - reach), min(start + self.each, band + reach + 1))
                if float((self.sizes[part] - 1.0).sum()) >= freedom:
                    break
            found[band, part] = 1.0
        return found
