"""Measurement: what it keeps, what is refused at once, and deepinv's physics."""

from typing import Any

import numpy as np
import pytest
import torch
from measurements import SHAPE, halved, masked, normal

import diffusion_var as dv
from diffusion_var.errors import InputError
from diffusion_var.process.structure import make_structure

Y = normal(3, 2, 4)


def A(x: torch.Tensor) -> torch.Tensor:
    return x


def test_what_it_is() -> None:
    found = dv.Measurement(Y, A, noise=0.2)
    assert (found.rows, found.shape) == (3, (2, 4))
    assert float(found.noise.variance or 0.0) == pytest.approx(0.04, rel=1e-12)
    assert torch.equal(found.y, Y)
    assert dv.Measurement(Y.requires_grad_(), A).y.requires_grad is False
    assert found.to("cpu").digest == found.digest
    Y.requires_grad_(False)


def test_its_digest_is_that_of_what_was_measured() -> None:
    """y, its shape and its noise; of the precision it does not speak."""
    digest = dv.Measurement(Y, A, noise=0.2).digest
    assert dv.Measurement(Y.clone(), A, noise=0.2).digest == digest
    others = [
        dv.Measurement(Y + 1e-9, A, noise=0.2),
        dv.Measurement(Y.view(3, 4, 2), A, noise=0.2),
        dv.Measurement(Y, A, noise=0.3),
        dv.Measurement(Y, A, noise=torch.full((2, 4), 0.04)),
        dv.Measurement(Y, A, noise=dv.StructuredCovariance(make_structure("isotropic", (2, 4)), torch.tensor(0.04))),
    ]
    assert len({digest, *(other.digest for other in others)}) == len(others) + 1


def test_which_elements_are_seen() -> None:
    operator = masked()
    seen = dv.Measurement(torch.zeros(2, *SHAPE), operator).seen(SHAPE, torch.float32)
    assert torch.equal(seen, operator(torch.ones(1, *SHAPE))[0] != 0)
    assert 0 < int(seen.sum()) < seen.numel()
    assert bool(dv.Measurement(torch.zeros(2, 3, 2, 3), halved).seen(SHAPE, torch.float64).all())


def test_the_adjoint_that_is_found_is_the_transpose() -> None:
    for operator in (masked(), halved):
        y = operator(normal(2, *SHAPE))
        found, x, w = dv.Measurement(y, operator).map_of(SHAPE), normal(2, *SHAPE, seed=1), normal(*y.shape, seed=2)
        with torch.inference_mode():
            back = found.adjoint(w)
        np.testing.assert_allclose(float((operator(x) * w).sum()), float((x * back).sum()), rtol=1e-12)
        assert back.dtype == torch.float64


@pytest.mark.parametrize(
    ("y", "match"),
    [
        ([[1.0, 2.0]], r"y.*tensor \(B, \*m\)"),
        (np.zeros((2, 3)), r"y.*tensor \(B, \*m\)"),
        (torch.zeros(2, 3, dtype=torch.int64), "y is torch.int64, but floats are expected; convert it"),
        (torch.zeros(2, 3, dtype=torch.complex64), "y is torch.complex64, but floats"),
        (torch.zeros(3), r"y has shape \(3,\), but \(B, \*m\) is expected"),
        (torch.zeros(0, 3), r"y has shape \(0, 3\)"),
        (torch.tensor([[1.0, float("nan")]]), "NaN or infinite values in 1 of 2 elements; .*a mask.*put 0 in y too"),
        (torch.tensor([[float("inf"), float("nan")]]), "in 2 of 2 elements"),
    ],
)
def test_y_that_is_refused(y: Any, match: str) -> None:
    with pytest.raises(InputError, match=match):
        dv.Measurement(y, A)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"A": None}, "A=None must be a function"),
        ({"A": torch.eye(3)}, "A=.*must be a function"),
        ({"adjoint": 3}, "adjoint=3 must be a function"),
        ({"through": 3}, "through=3 must be a model's codec"),
    ],
)
def test_what_is_no_function(options: dict[str, Any], match: str) -> None:
    with pytest.raises(InputError, match=match):
        dv.Measurement(Y, **{"A": A, **options})


# ---- deepinv's physics ----------------------------------------------------------------------------------------------


@pytest.fixture
def physics() -> Any:
    pytest.importorskip("deepinv")
    from deepinv import physics

    return physics


IMAGE = (1, 8, 8)


def linear_physics(p: Any) -> list[Any]:
    rng = torch.Generator().manual_seed(0)
    kernel = torch.rand(1, 1, 3, 3, generator=rng)
    noise = p.GaussianNoise(0.05)
    return [
        p.Inpainting(IMAGE, mask=0.5, rng=rng, noise_model=noise),
        p.BlurFFT(IMAGE, filter=kernel, noise_model=noise),
        p.Downsampling(IMAGE, filter="bilinear", factor=2, noise_model=noise),
        p.CompressedSensing(20, IMAGE, rng=rng, noise_model=noise),
        p.Denoising(noise_model=noise),
    ]


def test_linear_physics(physics: Any) -> None:
    """Their A, adjoint and σ are taken over, and pass what is looked at before a model uses them."""
    x = normal(2, *IMAGE).float()
    for made in linear_physics(physics):
        y = made(x)
        found = dv.Measurement.from_deepinv(made, y)
        assert float(found.noise.variance or 0.0) == pytest.approx(0.05**2, rel=1e-5)
        assert torch.equal(found.map_of(IMAGE).apply(x), made.A(x))
        seen = found.seen(IMAGE, torch.float32)
        expected = (made.A(normal(1, *IMAGE, seed=7).float()) != 0)[0]
        assert torch.equal(seen, expected)
        assert bool(found.bases) == isinstance(made, physics.DecomposablePhysics)


def test_a_float64_copy_to_solve_with(physics: Any) -> None:
    """Where there is one that does the same; the physics itself stays as it is."""
    blur = physics.BlurFFT(IMAGE, filter=torch.ones(1, 1, 3, 3) / 9.0)
    x = normal(2, *IMAGE)
    found = dv.Measurement.from_deepinv(blur, blur.A(x.float()))
    fine = found.fine_map_of(IMAGE)
    assert fine is not None
    assert fine.apply(x).dtype == fine.adjoint(x).dtype == torch.float64
    assert float((fine.apply(x) - blur.A(x.float())).abs().max()) < 1e-5
    assert blur.A(x.float()).dtype == torch.float32
    rows = physics.CompressedSensing(10, IMAGE)  # a product of matrices, which takes one type alone
    assert dv.Measurement.from_deepinv(rows, rows.A(x.float())).fine_map_of(IMAGE) is not None
    found.in_float64 = (lambda x: 1.001 * x, lambda u: 1.001 * u)
    assert found.fine_map_of(IMAGE) is None
    blur.filter = (torch.ones(3, requires_grad=True) * 2.0)[None, None, None].expand(1, 1, 3, 3) / 18.0
    kept = dv.Measurement.from_deepinv(blur, x.float())  # its graph cannot be copied
    assert kept.in_float64 is None


def test_noise_that_is_given_goes_before_the_physics_own(physics: Any) -> None:
    x = normal(2, *IMAGE).float()
    poisson = physics.Denoising(noise_model=physics.PoissonNoise(0.1))
    assert float(dv.Measurement.from_deepinv(poisson, x, noise=0.3).noise.least) == pytest.approx(0.09)
    silent = physics.Inpainting(IMAGE, mask=0.5)
    assert dv.Measurement.from_deepinv(silent, x).noise.least == 0.0


def test_physics_that_are_refused(physics: Any) -> None:
    x = normal(2, *IMAGE).float()
    blind = physics.Physics(A=lambda x, **_: x.square())
    cases = [
        (
            physics.Denoising(noise_model=physics.PoissonNoise(0.1)),
            "PoissonNoise, but Gaussian noise is expected; give",
        ),
        (physics.Denoising(noise_model=physics.UniformNoise(0.1)), "UniformNoise, but Gaussian"),
        (blind, "Physics, but a deepinv.physics.LinearPhysics is expected: .* linear measurements"),
        (lambda x: x, "function, but a deepinv.physics.LinearPhysics"),
    ]
    each = physics.Denoising(noise_model=physics.GaussianNoise(torch.tensor([0.1, 0.2])))
    cases.append((each, "one for each image; give one for all"))
    for made, match in cases:
        with pytest.raises(InputError, match=match):
            dv.Measurement.from_deepinv(made, x)


def test_without_deepinv_it_is_said_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    for name in ("deepinv", "deepinv.physics"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(InputError, match=r"pip install 'diffusion-var\[restoration\]', or give an operator of your"):
        dv.Measurement.from_deepinv(object(), Y)
