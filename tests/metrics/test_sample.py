"""Collecting features: what is kept, what is remembered of the images, and what it costs in memory."""

import weakref

import numpy as np
import pytest
import torch
from pictures import Colours, Pixels, blobs, pixels_hash
from torch.utils.data import DataLoader, Subset

from diffusion_var.data.images import read_images, save_images, save_npz, to_float
from diffusion_var.errors import DiffusionVarWarning, InputError
from diffusion_var.metrics.networks import CallableFeatures
from diffusion_var.metrics.sample import NUMBER_FORMAT, collect

A = blobs(300, 1)


def flat(images):
    return images.flatten(1).numpy().astype(np.float64) / 255


class TestWhatIsCollected:
    def test_features_in_order_and_their_moments(self):
        sample = collect(A, Pixels(), keep=True, batch_size=64)
        assert sample.features.dtype == np.float32
        np.testing.assert_allclose(sample.features, flat(A), atol=1e-7)
        np.testing.assert_allclose(sample.statistics.mean, flat(A).mean(axis=0), rtol=1e-6)
        np.testing.assert_allclose(sample.statistics.covariance, np.cov(flat(A), rowvar=False), atol=1e-8)
        assert collect(A, Pixels()).features is None

    def test_the_origin_tells_how(self):
        sample = collect(A, Pixels(), name="mine")
        assert sample.origin == {
            "name": "mine",
            "sha256": pixels_hash(A),
            "count": 300,
            "shape": [1, 4, 4],
            "colour": "as given",
            "features": "pixels",
            "features_sha256": "0" * 64,
            "resize": "none",
            "number_format": NUMBER_FORMAT,
        }
        assert sample.statistics.origin == sample.origin
        assert collect(blobs(9, 0, channels=3), Colours()).origin["resize"] == "not at all"

    def test_the_dimension_may_be_known_late(self):
        def halves(images):
            return images.flatten(1)[:, ::2].float()

        assert collect(A, CallableFeatures(halves, fingerprint="x")).statistics.dimension == 8

    @pytest.mark.parametrize("order", [">f4", "<f4", ">f8"])
    def test_arrays_of_any_byte_order(self, order):
        floats = to_float(A).numpy().astype(order)
        for images in (floats, list(floats), [floats[:100], floats[100:]]):
            assert collect(images, Pixels()).origin["sha256"] == pixels_hash(A)
        with pytest.raises(InputError, match="complex"):
            collect(floats.astype(np.complex64), Pixels())
        with pytest.raises(InputError, match="object"):
            collect([np.array([[[{}]]])], Pixels())


class TestPixelHash:
    def test_is_of_the_pixels_however_they_come(self, tmp_path):
        save_images(A, tmp_path / "folder")
        save_npz(A, tmp_path / "a.npz")
        whole = read_images(tmp_path / "folder")
        ways = {
            "tensor": A,
            "array": A.numpy(),
            "floats": to_float(A),
            "images": list(A),
            "batches": A.split(7),
            "loader": DataLoader(whole, batch_size=13),
            "folder": tmp_path / "folder",
            "npz": str(tmp_path / "a.npz"),
            "part": Subset(whole, range(300)),
        }
        for batch_size in (1, 7, 256):
            for name, images in ways.items():
                assert collect(images, Pixels(), batch_size=batch_size).origin["sha256"] == pixels_hash(A), name

    def test_differs_where_anything_differs(self):
        pixel = A.clone()
        pixel[299, 0, 3, 3] ^= 1
        others = [pixel, A.flip(0), A[:299], A.reshape(300, 1, 2, 8), A.transpose(2, 3).contiguous()]
        hashes = {collect(images, Pixels()).origin["sha256"] for images in [A, *others]}
        assert len(hashes) == len(others) + 1

    def test_names_by_default(self, tmp_path):
        save_images(A[:5], tmp_path / "folder")
        folder = read_images(tmp_path / "folder")
        for images, name in (
            (tmp_path / "folder", str(tmp_path / "folder")),
            (folder, str(tmp_path / "folder")),
            (Subset(folder, [0, 1, 2]), f"part of {tmp_path / 'folder'}"),
            (A, "Tensor"),
        ):
            assert collect(images, Pixels()).origin["name"] == name


@pytest.mark.parametrize("batch_size", [1, 7, 300])
def test_moments_do_not_depend_on_batches_or_their_order(batch_size):
    expected = collect(A, Pixels()).statistics
    for images in (A, A.flip(0), [*A.split(50)][::-1]):
        found = collect(images, Pixels(), batch_size=batch_size).statistics
        np.testing.assert_allclose(found.mean, expected.mean, rtol=1e-12)
        assert np.abs(found.covariance - expected.covariance).max() < 1e-10 * np.abs(expected.covariance).max()


def test_streams_without_holding_what_it_has_seen():
    alive, most = weakref.WeakSet(), []

    class Batch(torch.Tensor):
        pass

    def stream():
        for seed in range(50):
            batch = to_float(blobs(20, seed)).as_subclass(Batch)
            alive.add(batch)
            yield batch
            del batch
            most.append(len(alive))

    assert collect(stream(), Pixels()).statistics.count == 1000
    assert max(most) <= 3


class TestColour:
    def test_grey_is_repeated_for_a_network_of_rgb_and_said(self):
        with pytest.warns(DiffusionVarWarning, match=r"mine are grey .* wants RGB") as warned:
            sample = collect(A, Colours(), keep=True, batch_size=50, name="mine")
        assert len(warned) == 1
        assert sample.origin["colour"] == "grey repeated to RGB"
        assert sample.origin["shape"] == [1, 4, 4]
        assert sample.origin["sha256"] == pixels_hash(A)
        np.testing.assert_allclose(sample.features, np.tile(flat(A), 3), atol=1e-7)

    def test_rgb_stays_as_it_is(self):
        images = blobs(9, 0, channels=3)
        sample = collect(images, Colours(), keep=True)
        assert sample.origin["colour"] == "as given"
        np.testing.assert_allclose(sample.features, flat(images), atol=1e-7)


class TestBadInput:
    def test_identical_images_are_said_and_give_no_nan(self):
        same = A[:1].repeat(20, 1, 1, 1)
        for images in (same, same.split(6)):
            with pytest.warns(DiffusionVarWarning, match="all 20 images of mine are identical"):
                sample = collect(images, Pixels(), name="mine")
            assert np.array_equal(sample.statistics.covariance, np.zeros((16, 16)))
        same[13, 0, 0, 0] ^= 1
        collect(same.split(6), Pixels())  # a warning would be an error
        collect(A[:1], Pixels())

    def test_nan_features(self):
        class Broken(Pixels):
            def __call__(self, images):
                features = super().__call__(images)
                features[-1, 3] = torch.nan
                return features

        with pytest.raises(InputError, match="features hold NaN"):
            collect(A, Broken())

    def test_a_network_that_loses_images(self):
        class Broken(Pixels):
            def __call__(self, images):
                return super().__call__(images)[1:]

        with pytest.raises(InputError, match="299 features for 300 images"):
            collect(A, Broken(), batch_size=300)

    def test_batches_of_several_shapes(self):
        with pytest.raises(InputError, match=r"\(1, 4, 4\) and \(1, 2, 8\)"):
            collect([A[:5], A[5:].reshape(-1, 1, 2, 8)], Pixels())

    def test_no_images(self):
        for none in ([], A[:0], [A[:0]]):
            with pytest.raises(InputError, match="no images"):
                collect(none, Pixels())

    def test_skipped_files_are_counted(self, tmp_path):
        save_images(A[:5], tmp_path)
        (tmp_path / "000002.png").write_bytes(b"broken")
        with pytest.warns(DiffusionVarWarning, match="skipped"):
            images = read_images(tmp_path, skip_corrupt=True)
        for given in (images, Subset(images, range(4))):
            sample = collect(given, Pixels())
            assert (sample.origin["skipped"], sample.statistics.count) == (1, 4)
        assert sample.origin["sha256"] == pixels_hash(A[[0, 1, 3, 4]])
