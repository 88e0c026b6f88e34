"""Floats outside the data range: one rule at every function that reads images."""

import numpy as np
import pytest
import torch

import diffusion_var as dv
from diffusion_var.data.ranges import ROUNDED, SLACK, outside_range

DIGITS = dv.Denoiser.from_pretrained("digits")
X = torch.from_numpy(np.random.default_rng(5).integers(0, 256, (12, 1, 8, 8), dtype=np.uint8))
FLOATS = dv.data.to_float(X)
HOW = {"steps": 2}


def from_file(read):
    def door(images, folder):
        np.save(folder / "images.npy", images.numpy())
        return read(folder / "images.npy")

    return door


def fid(images):
    return dv.metrics.fid(images, X, "digits")


def estimate(images):
    return dv.estimate(DIGITS, images, 0.5, indices=[1000], structures=[], max_evaluations=512, progress=False)


DOORS = {
    "fid": lambda images, _: fid(images),
    "fid of batches": lambda images, _: fid(images.split(5)),
    "fid of single images": lambda images, _: fid(list(images)),
    "fid of a file": from_file(fid),
    "reference": lambda images, _: dv.metrics.fid(X, images, "digits"),
    "evaluate": lambda images, _: dv.metrics.evaluate(images, X, ("kid", "precision", "density"), "digits"),
    "collect": lambda images, _: dv.metrics.collect(images, dv.metrics.load_features("digits")),
    "feature_statistics": lambda images, _: dv.metrics.feature_statistics(images, "digits"),
    "estimate": lambda images, _: estimate(images),
    "estimate of a data set": lambda images, _: estimate(torch.utils.data.TensorDataset(images)),
    "estimate of a file": from_file(estimate),
    "bits_per_dim": lambda images, _: dv.bits_per_dim(DIGITS, dv.FixedSmall(), images, **HOW),
    "density_bound": lambda images, _: dv.density_bound(DIGITS, dv.FixedSmall(), images, **HOW),
    "step_costs": lambda images, _: dv.step_costs(DIGITS, dv.FixedSmall(), images, [1, 1000]),
}
OTHER_RANGES = {
    "normalised": 2 * FLOATS,
    "[0, 255]": X.float(),
    "a little larger": 1.02 * FLOATS,
    "one value": torch.where(torch.arange(FLOATS.numel()).view_as(FLOATS) == 700, 1.1, FLOATS),
}


@pytest.mark.parametrize("door", DOORS)
@pytest.mark.parametrize("kind", OTHER_RANGES)
def test_another_range_is_refused(kind, door, tmp_path):
    with pytest.raises(dv.InputError, match=r"values from .* the data range (is )?\[-1, 1\]"):
        DOORS[door](OTHER_RANGES[kind], tmp_path)


def test_rounding_is_no_offence():
    close = FLOATS.clone()
    close[3, 0, 0, 0], close[3, 0, 0, 1] = 1 + 1.9 * SLACK, -1 - 1.9 * SLACK
    assert outside_range(close, (-1.0, 1.0)) is None
    half = FLOATS.clone()
    half[0, 0, 0, 0], half[0, 0, 0, 1] = 1 + 0.9 / 255, -1 - 0.9 / 255
    assert outside_range(half, (-1.0, 1.0)) is not None
    assert outside_range(half, (-1.0, 1.0), ROUNDED) is None
    assert fid(half).value == fid(half.clamp(-1, 1)).value


@pytest.mark.parametrize("data_range", [(-1.0, 1.0), (0.0, 1.0), (-3.0, 5.0)])
def test_what_is_outside_is_told(data_range):
    low, high = data_range
    images = dv.data.to_float(X, data_range)
    assert outside_range(images, data_range) is None
    assert outside_range(images[:0], data_range) is None
    assert outside_range(torch.full((2, 1), float("nan")), data_range) is None
    images[7, 0, 1, 1], images[9, 0, 0, 0] = high + (high - low), low - 1
    found = outside_range(images, data_range)
    assert (found.index, found.most) == (7, high + (high - low))
    assert found.share == pytest.approx(2 / images.numel())


def test_samples_of_the_package_are_never_refused():
    table = dv.VarianceTable.from_moments(DIGITS.schedule, eps_square=np.full(DIGITS.schedule.num_steps + 1, 0.9))
    for covariance in (dv.FixedLarge(), dv.Analytic(table, estimator="score_norm")):
        images = dv.Sampler(DIGITS, covariance, steps=3, eta=1.0).sample(8, seed=0)
        assert fid(images).value > 0
        assert dv.data.to_uint8(images).dtype == torch.uint8  # a warning would be an error
