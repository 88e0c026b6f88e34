"""R: its products, draws and least variance, of every kind; and what is no noise."""

from typing import Any

import numpy as np
import pytest
import torch
from measurements import dense, normal

import diffusion_var as dv
from diffusion_var.errors import InputError
from diffusion_var.process.structure import make_structure
from diffusion_var.restoration.noise import MeasurementNoise

SHAPE = (1, 3, 4)
EACH = torch.exp(normal(*SHAPE, seed=1))
STRUCTURE = make_structure("dct", SHAPE)
KINDS: list[tuple[Any, np.ndarray]] = [
    (0.3, 0.09 * np.eye(12)),
    (torch.tensor(0.3, dtype=torch.float64), 0.09 * np.eye(12)),
    (EACH, np.diag(EACH.flatten().numpy())),
    (EACH[:, :1], np.diag(EACH[:, :1].expand(SHAPE).flatten().numpy())),
    (dv.StructuredCovariance(STRUCTURE, EACH), dense(STRUCTURE, EACH)),
]


@pytest.mark.parametrize(("given", "R"), KINDS)
def test_products_draws_and_the_least(given: Any, R: np.ndarray) -> None:
    noise = MeasurementNoise(given, SHAPE, torch.zeros(()))
    u = normal(5, *SHAPE)
    np.testing.assert_allclose(noise.times(u).flatten(1).numpy(), u.flatten(1).numpy() @ R, rtol=0, atol=1e-12)
    assert noise.times(u.float()).dtype == torch.float32
    eye = torch.eye(12, dtype=torch.float64).view(12, *SHAPE)
    root = noise.draw(eye).flatten(1).numpy()
    np.testing.assert_allclose(root @ root.T, R, rtol=0, atol=1e-12)
    assert noise.least == pytest.approx(np.linalg.eigvalsh(R).min(), rel=1e-9)
    assert noise.is_white == (np.ptp(np.linalg.eigvalsh(R)) < 1e-12)
    moved = noise.to("cpu")
    assert torch.equal(moved.times(u), noise.times(u))
    assert moved.digest == noise.digest


def test_a_rows_draw_is_the_same_whoever_asks() -> None:
    noise = MeasurementNoise(EACH, SHAPE, torch.zeros(()))
    first = noise.of_row(3, 5, torch.zeros(()))
    assert torch.equal(first, noise.of_row(3, 5, torch.zeros(())))
    assert not torch.equal(first, noise.of_row(3, 6, torch.zeros(())))
    assert not torch.equal(first, noise.of_row(4, 5, torch.zeros(())))
    many = torch.cat([noise.of_row(3, row, torch.zeros((), dtype=torch.float64)) for row in range(2000)])
    error = EACH * np.sqrt(2.0 / 2000)
    assert float(((many.square().mean(0) - EACH) / error).abs().max()) < 4.5


@pytest.mark.parametrize(
    ("given", "match"),
    [
        (-0.1, "noise=-0.1"),
        (float("nan"), "noise=nan"),
        ("0.1", "noise='0.1'.*standard deviation"),
        (None, "noise=None"),
        (torch.tensor(-0.1), "noise=-0.1"),
        (torch.ones(5), r"noise has shape \(5,\), but variances must broadcast to y's elements, \(1, 3, 4\)"),
        (torch.ones(2, *SHAPE), r"noise has shape \(2, 1, 3, 4\)"),
        (torch.full(SHAPE, -1.0), "variances that are below 0 or not finite; elements that were not measured"),
        (torch.full(SHAPE, float("inf")), "below 0 or not finite"),
        (
            dv.StructuredCovariance(make_structure("pixel", (1, 2, 2)), torch.ones(1, 2, 2)),
            r"the noise's structure is of \(1, 2, 2\), but y's elements are \(1, 3, 4\)",
        ),
        (dv.StructuredCovariance(STRUCTURE, -EACH), "below 0"),
        (dv.StructuredCovariance(STRUCTURE, EACH.expand(2, *SHAPE)), "one for all"),
    ],
)
def test_what_is_refused(given: Any, match: str) -> None:
    with pytest.raises(InputError, match=match):
        MeasurementNoise(given, SHAPE, torch.zeros(()))
