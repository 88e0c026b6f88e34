"""Bands of frequency: every coefficient in one, the mean of a channel alone, equal frequencies together."""

import math

import numpy as np
import pytest
import torch

from diffusion_var.errors import InputError
from diffusion_var.process.bands import Bands, frequencies

SHAPES = [(1, 8, 8), (3, 8, 8), (3, 6, 10), (2, 16), (1, 3, 4, 5)]


def test_frequencies_are_those_of_the_cosines() -> None:
    """Coefficient k of L has k half-waves in L pixels; axes add as the sides of a right angle do."""
    found = frequencies((4, 6))
    for i in range(4):
        for j in range(6):
            assert found[i, j] == pytest.approx(math.hypot(i / 4, j / 6))
    assert frequencies((5,)) == pytest.approx(np.arange(5) / 5)


@pytest.mark.parametrize("count", [1, 2, 4, 7])
@pytest.mark.parametrize("shape", SHAPES)
def test_bands_part_the_coefficients_of_each_channel(shape: tuple[int, ...], count: int) -> None:
    bands = Bands(shape, count)
    assert bands.index.shape == shape
    assert bands.count == shape[0] * bands.each
    assert bands.each <= count
    assert sorted(set(bands.index.flatten().tolist())) == list(range(bands.count)), "no band is empty"
    assert bands.sizes.tolist() == torch.bincount(bands.index.flatten()).tolist()
    radius = frequencies(shape[1:])
    for channel in range(shape[0]):
        own = bands.index[channel].numpy() - channel * bands.each
        assert own.min() == 0
        assert own.max() == bands.each - 1
        order = np.argsort(radius, axis=None, kind="stable")
        assert (np.diff(own.flatten()[order]) >= 0).all(), "bands follow each other in frequency"
        for band in range(bands.each):
            inside, outside = radius[own == band], radius[own != band]
            assert not np.isin(inside.round(12), outside.round(12)).any(), "equal frequencies are together"


def test_the_mean_of_a_channel_is_a_band_of_its_own_and_others_are_octaves_at_most() -> None:
    bands = Bands((3, 16, 16), 8)
    for channel in range(3):
        assert bands.sizes[bands.index[channel, 0, 0]] == 1
    radius = frequencies((16, 16))
    widths = [np.ptp(np.log(radius[(bands.index[0] == band).numpy()])) for band in range(1, bands.each)]
    assert max(widths) <= math.log(math.sqrt(2) * 15) / 7 + 1e-9


def test_one_band_is_the_whole_channel() -> None:
    bands = Bands((3, 4, 4), 1)
    assert bands.sizes.tolist() == [16, 16, 16]


def test_sums_and_values_of_bands() -> None:
    bands = Bands((2, 4, 6), 3)
    values = torch.from_numpy(np.random.default_rng(0).standard_normal((5, 2, 4, 6)))
    sums = bands.sum(values)
    assert sums.shape == (5, bands.count)
    for band in range(bands.count):
        inside = bands.index == band
        torch.testing.assert_close(sums[:, band], values[:, inside].sum(1), rtol=1e-12, atol=1e-12)
        assert bool((bands.spread(sums)[:, inside] == sums[:, band, None]).all())
    assert bands.sum(values.float()).dtype == torch.float64
    torch.testing.assert_close(bands.sum(values[0]), sums[0], rtol=1e-12, atol=1e-12)


def test_small_bands_are_told_of_by_their_neighbours() -> None:
    bands = Bands((2, 8, 8), 6)
    near = bands.neighbours(8.0)
    for band in range(bands.count):
        which = near[band].nonzero().flatten().tolist()
        assert band in which
        assert len({other // bands.each for other in which}) == 1, "of the same channel"
        assert which == list(range(which[0], which[-1] + 1))
        whole = [other for other in range(bands.count) if other // bands.each == band // bands.each]
        enough = float((bands.sizes[which] - 1).sum()) >= 8.0
        assert enough or which == whole
        if bands.sizes[band] >= 9:
            assert which == [band]
    assert Bands((1, 2, 2), 2).neighbours(8.0).tolist() == [[1, 1], [1, 1]], "as far as the channel goes"


@pytest.mark.parametrize("count", [0, -1, 1.5, "4", True])
def test_refuses_what_is_no_number_of_bands(count: object) -> None:
    with pytest.raises(InputError, match="bands="):
        Bands((1, 8, 8), count)  # type: ignore[arg-type]


def test_refuses_more_bands_than_frequencies() -> None:
    assert Bands((3, 2, 2), 3).each == 3
    with pytest.raises(InputError, match=r"bands=4 is more than there are frequencies in images \(3, 2, 2\), which"):
        Bands((3, 2, 2), 4)
    with pytest.raises(InputError, match="have 1; take at most 1"):
        Bands((4,), 2)
