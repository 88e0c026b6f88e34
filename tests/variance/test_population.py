"""The data as a fixed population: what is read, what is known of it, and what is refused."""

import numpy as np
import pytest
import scipy.fft
import torch
from torch.utils.data import Dataset, TensorDataset

import diffusion_var as dv
from diffusion_var.data import fixed_images as module
from diffusion_var.randomness import generator
from diffusion_var.variance.population import Population

SHAPE = (3, 4, 5)


def floats(count=300, shape=SHAPE, dtype=np.float32):
    return np.tanh(generator(1, "images").normal(0.1, 0.6, (count, *shape))).astype(dtype)


class Items(Dataset):
    def __init__(self, items, change=lambda item, i: item):
        self.items, self.change, self.reads = items, change, 0

    def __len__(self):
        return len(self.items)

    def __getitem__(self, i):
        self.reads += 1
        return self.change(self.items[i], i)


# ---- reading ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("data_range", [(-1.0, 1.0), (0.0, 1.0), (-3.0, 5.0)])
def test_uint8_is_mapped_to_the_data_range(data_range):
    raw = np.arange(256, dtype=np.uint8).reshape(4, 1, 8, 8)
    got = Population(raw, (1, 8, 8), data_range).take(np.array([3, 0])).double().numpy()
    low, high = data_range
    expected = low + raw[[3, 0]] / 255 * (high - low)
    assert got.shape == (2, 1, 8, 8)
    assert np.abs(got - expected).max() < 1e-6


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_floats_of_any_kind_are_read(dtype):
    images = torch.from_numpy(floats()).to(dtype)
    got = Population(images, SHAPE, (-1, 1)).take(np.array([5, 5, 2]))
    assert got.dtype == torch.float32
    assert torch.equal(got, images[[5, 5, 2]].float())


def test_arrays_datasets_lists_and_tuples_are_the_same_population():
    images = floats(40)
    sources = [
        images,
        torch.from_numpy(images),
        list(images),
        TensorDataset(torch.from_numpy(images), torch.arange(40)),
        Items(images, lambda item, i: (torch.from_numpy(item), f"label {i}")),
        Items(images, lambda item, i: [item, i]),
        images[:, :, :, ::-1].copy()[:, :, :, ::-1],  # negative strides
    ]
    read_only = images.copy()
    read_only.setflags(write=False)
    populations = [Population(source, SHAPE, (-1, 1)) for source in [*sources, read_only]]
    for population in populations:
        assert len(population) == population.statistics.count == 40
        assert torch.equal(population.take(np.arange(40)), torch.from_numpy(images))
        assert population.statistics.fingerprint == populations[0].statistics.fingerprint


def test_large_datasets_are_read_again_when_needed(monkeypatch):
    images = floats(30)
    small = Population(Items(images), SHAPE, (-1, 1))
    monkeypatch.setattr(module, "_IN_MEMORY_BYTES", images.nbytes - 1)
    source = Items(images)
    large = Population(source, SHAPE, (-1, 1))
    before = source.reads
    assert torch.equal(large.take(np.array([7, 7, 3])), torch.from_numpy(images[[7, 7, 3]]))
    assert source.reads == before + 3
    assert large._memory is None
    assert large.statistics.fingerprint == small.statistics.fingerprint
    assert np.array_equal(large.statistics.spectrum, small.statistics.spectrum)


# ---- statistics ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("channels", [1, 3])
def test_statistics_against_numpy_and_scipy(channels):
    images = floats(300, (channels, 4, 5), np.float64)  # more than one chunk
    found = Population(images, (channels, 4, 5), (-1, 1)).statistics
    images = images.astype(np.float32).astype(np.float64)
    assert np.abs(found.mean - images.mean(0)).max() < 1e-12
    assert np.abs(found.pixel_variance - images.var(0)).max() < 1e-12
    spectrum = scipy.fft.dctn(images, axes=(1, 2, 3), norm="ortho").var(0)
    assert np.abs(found.spectrum - spectrum).max() < 1e-12
    assert np.abs(found.rotation - scipy.fft.dct(np.eye(channels), axis=0, norm="ortho")).max() < 1e-12
    assert found.element_variance("isotropic") is found.element_variance("dct") is found.spectrum
    assert found.element_variance("channel") is found.element_variance("pixel") is found.pixel_variance


def test_rotation_of_four_channels_diagonalises_their_covariance():
    mix = generator(2, "mix").normal(size=(4, 4))
    images = np.einsum("cd,mdhw->mchw", mix, generator(3, "latents").normal(size=(200, 4, 3, 3)))
    found = Population(images, (4, 3, 3), None).statistics
    images = images.astype(np.float32).astype(np.float64)
    rotated = np.einsum("cd,mdhw->mchw", found.rotation, images - images.mean(0))
    covariance = np.einsum("mchw,mdhw->cd", rotated, rotated) / (200 * 9)
    assert np.abs(covariance - np.diag(np.diag(covariance))).max() < 1e-10 * covariance.max()
    assert (np.diff(np.diag(covariance)) < 0).all()
    spectrum = scipy.fft.dctn(rotated, axes=(2, 3), norm="ortho").var(0)
    assert np.abs(found.spectrum - spectrum).max() < 1e-10 * spectrum.max()


def test_fingerprint_tells_data_apart():
    images = floats(20)
    changed = images.copy()
    changed[19, 2, 3, 4] += 1e-4
    prints = {
        Population(data, SHAPE, (-1, 1)).statistics.fingerprint
        for data in (images, changed, images[::-1].copy(), images[:19], images.astype(np.float64))
    }
    assert len(prints) == 5


# ---- refusals -----------------------------------------------------------------------------------------------------


def with_value(value, at=(3, 0, 1, 1)):
    images = floats(6)
    images[at] = value
    return images


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (np.zeros((0, *SHAPE), np.float32), "images is empty"),
        ([], "images is empty"),
        (iter([]), "with a length, but got list_iterator"),
        (floats(4)[0], r"must have shape \(M, C, H, W\), but the array has shape \(3, 4, 5\)"),
        (floats(4, (3, 5, 4)), r"image 0 has shape \(3, 5, 4\), but the denoiser expects \(3, 4, 5\)"),
        (floats(4).transpose(0, 2, 3, 1), r"image 0 has shape \(4, 5, 3\)"),
        (list(floats(4)) + list(floats(1, (3, 4, 4))), r"image 4 has shape \(3, 4, 4\)"),
        (np.zeros((4, *SHAPE), np.int64), "dtype torch.int64, but uint8 or a floating-point type"),
        (np.zeros((4, *SHAPE), bool), "dtype torch.bool, but"),
        (np.zeros((4, *SHAPE), complex), "dtype torch.complex128, but"),
        (np.full((4, *SHAPE), "a"), "images have dtype <U1, but uint8 or"),
        ([b"png"] * 4, "item 0 of images is a bytes"),
        (with_value(np.nan), "image 3 holds NaN or infinite values"),
        (with_value(np.inf), "image 3 holds NaN or infinite values"),
        (with_value(1.01), r"image 3 has values from .* to 1.01, outside the data range \[-1, 1\]"),
        (with_value(-1.01), r"image 3 has values from -1.01 to .*, outside"),
    ],
)
def test_unusable_images_are_refused(images, message):
    with pytest.raises(dv.InputError, match=message):
        Population(images, SHAPE, (-1.0, 1.0))


def test_unbounded_data_has_no_range_check_but_no_uint8():
    population = Population(with_value(37.0), SHAPE, None)
    assert population.take(np.array([3]))[0, 0, 1, 1] == 37.0
    with pytest.raises(dv.InputError, match="holds NaN"):
        Population(with_value(np.nan), SHAPE, None)
    with pytest.raises(dv.InputError, match="uint8, but the denoiser has no data range"):
        Population(np.zeros((4, *SHAPE), np.uint8), SHAPE, None)


def test_rounding_at_the_edge_of_the_range_is_no_offence():
    Population(with_value(np.nextafter(np.float32(1), np.float32(2))), SHAPE, (-1, 1))


def test_random_augmentation_is_refused():
    stream = generator(5, "flips")
    flips = Items(floats(50), lambda item, i: item[:, :, ::-1].copy() if stream.random() < 0.5 else item)
    with pytest.raises(dv.InputError, match=r"two reads of image \d+ differ, so the data set augments at random"):
        Population(flips, SHAPE, (-1, 1))
    # a fixed change of every other image is no augmentation
    Population(Items(floats(50), lambda item, i: item[:, :, ::-1].copy() if i % 2 else item), SHAPE, (-1, 1))


def test_images_in_half_the_range_are_warned_of():
    half = (floats(10) + 1) / 2
    with pytest.warns(dv.DiffusionVarWarning, match=r"all image values lie between .* the data range is \[-1, 1\]"):
        Population(half, SHAPE, (-1.0, 1.0))
    # no warning (an error here): the range is theirs, or is not known
    Population(half, SHAPE, (0.0, 1.0))
    Population(half, SHAPE, None)
    Population(floats(10), SHAPE, (-1.0, 1.0))
