"""Pixels as features: in which unit, that floats stay what they are, and distances whose value is known."""

import numpy as np
import pytest
import torch

import diffusion_var as dv
from diffusion_var.data.images import save_images, to_float
from diffusion_var.errors import InputError
from diffusion_var.metrics import FeatureStatistics, collect, evaluate, fid, frechet_distance, load_features
from diffusion_var.metrics.pixels import PixelFeatures

SHAPE = (3, 2, 4)
IMAGES = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (50, *SHAPE), dtype=np.uint8))


def test_eight_bit_images_and_their_floats_are_the_same_pixels() -> None:
    whole = collect(IMAGES, load_features("pixels"), keep=True)
    assert whole.features is not None
    np.testing.assert_allclose(whole.features, to_float(IMAGES).flatten(1), atol=1e-6)
    for floats, data_range in ((to_float(IMAGES), (-1.0, 1.0)), (to_float(IMAGES, (0.0, 2.0)), (0.0, 2.0))):
        other = collect(floats, PixelFeatures(), keep=True, data_range=data_range, batch_size=7)
        np.testing.assert_allclose(other.features, whole.features, atol=1e-6)
        assert other.origin["features"] == "pixels"
        assert other.origin["number_format"] == whole.origin["number_format"]
        assert "neither rounded nor clamped" in other.origin["number_format"]


def test_floats_beyond_the_range_are_not_clamped() -> None:
    floats = 3.0 * torch.from_numpy(np.random.default_rng(1).standard_normal((40, *SHAPE), dtype=np.float32))
    sample = collect(floats, load_features("pixels"), keep=True)
    np.testing.assert_array_equal(sample.features, floats.flatten(1).numpy())
    np.testing.assert_allclose(sample.statistics.covariance, np.cov(floats.flatten(1).numpy().T), rtol=1e-5, atol=1e-6)


def test_the_distance_to_a_mixture_s_moments_is_that_of_the_gaussians() -> None:
    """Samples of a Gaussian against moments moved by 0.5 a pixel: d² = 0.25 d and what finite samples add."""
    d = int(np.prod(SHAPE))
    mixture = dv.oracles.MixtureDenoiser(dv.NoiseSchedule.linear(50), np.full((1, *SHAPE), 0.5), 0.04)
    mean, covariance = mixture.moments()
    samples = mixture.sample(20_000, seed=1) - 0.5
    score = fid(samples, FeatureStatistics.from_moments(mean, covariance), features="pixels")
    assert float(score) == pytest.approx(0.25 * d, rel=0.01)
    assert score.protocol["features"] == "pixels"
    own = collect(samples + 0.5, load_features("pixels")).statistics
    assert frechet_distance(own, mixture.moments()) == pytest.approx(0, abs=0.01)


def test_every_metric_takes_them() -> None:
    scores = evaluate(IMAGES[:25], IMAGES[25:], ("fid", "kid", "precision", "coverage"), features="pixels")
    assert all(np.isfinite(float(score)) for score in scores.values())


def test_a_file_of_statistics_is_of_pixels_and_of_no_other_features(tmp_path) -> None:
    sample = collect(IMAGES, load_features("pixels"))
    sample.statistics.save(tmp_path / "pixels.npz")
    assert float(fid(IMAGES, tmp_path / "pixels.npz", features="pixels")) == pytest.approx(0, abs=1e-9)
    save_images(IMAGES, tmp_path / "folder")
    assert float(fid(tmp_path / "folder", tmp_path / "pixels.npz", features="pixels")) == pytest.approx(0, abs=1e-9)
    with pytest.raises(InputError, match="pixels"):
        fid(IMAGES, tmp_path / "pixels.npz", features="inception")


def test_images_too_large_for_a_covariance_and_nan_are_refused() -> None:
    with pytest.raises(InputError, match=r"images of shape \(3, 37, 37\) are 4107 numbers"):
        collect(torch.zeros(2, 3, 37, 37), load_features("pixels"))
    with pytest.raises(InputError, match="NaN"):
        collect(torch.full((2, *SHAPE), float("nan")), load_features("pixels"))
