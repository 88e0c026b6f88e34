"""Bounds from shared evaluations are the bounds themselves."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import diffusion_var as dv
from diffusion_var.advice.likelihoods import evaluations_of, shared_bits

SPLITS = dv.data.digits_splits()


@pytest.fixture(scope="module")
def denoiser() -> dv.Denoiser:
    return dv.Denoiser.from_pretrained("digits", device="cpu")


@pytest.fixture(scope="module")
def table(denoiser: dv.Denoiser) -> dv.VarianceTable:
    indices = [1, 20, 100, 300, 600, 1000]
    structures = ["isotropic", "dct"]
    return dv.estimate(denoiser, SPLITS.table.images, 9.0, indices=indices, structures=structures, progress=False)


def test_several_bounds_are_each_their_own(denoiser: dv.Denoiser, table: dv.VarianceTable) -> None:
    bounds = [
        dv.Bound(denoiser, dv.FixedSmall(), 4),
        dv.Bound(denoiser, dv.Analytic(table, structure="dct"), 4, decoder_variance=0.01),
        dv.Bound(denoiser, dv.Analytic(table), [20, 300, 1000], decoder_variance="table"),
    ]
    images = SPLITS.score.images[:12].float() / 127.5 - 1
    assert evaluations_of(bounds) == 6  # 1, 334, 667 and 1000 for two of them; 20 and 300
    told: list[int] = []
    whole = shared_bits(denoiser, bounds, images, None, 1, 0, 5, (-1.0, 1.0), told.append)
    assert whole[0] == pytest.approx([bound.evaluate(images).value for bound in bounds], rel=1e-5)
    assert told == [72]
    groups = shared_bits(denoiser, bounds, images, None, 3, 2, 64, (-1.0, 1.0), told.append)
    first = [bound.evaluate(images[torch.arange(0, 12, 3)], seed=6).value for bound in bounds]
    assert groups.shape == (3, 3)
    assert groups[0] == pytest.approx(first, rel=1e-5)
    assert not np.allclose(groups[1], groups[0])
