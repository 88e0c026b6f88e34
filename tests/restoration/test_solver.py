"""Conjugate gradients and the cut Lanczos against dense solves, image by image, and what they say of themselves."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from measurements import normal
from naive_restoration import conjugate_gradients as naive

from diffusion_var.errors import InputError
from diffusion_var.restoration import ConjugateGradients
from diffusion_var.restoration.solver import Solution, conjugate_gradients, cut_lanczos

M = 12


def matrices(count: int = 4, least: float = 0.05, most: float = 3.0) -> torch.Tensor:
    """(B, M, M) positive, with eigenvalues from `least` to `most`, each image its own."""
    bases = torch.linalg.qr(normal(count, M, M, seed=1))[0]
    values = torch.linspace(least, most, M, dtype=torch.float64)
    return bases @ (values[:, None] * bases.mT)


def product(S: torch.Tensor) -> Callable[[torch.Tensor], torch.Tensor]:
    return lambda u: (S.to(u) @ u.flatten(1)[..., None])[..., 0].view_as(u)


def right_hand_side(count: int = 4) -> torch.Tensor:
    return normal(count, 3, 4, seed=2)


def error(found: Solution, S: torch.Tensor, r: torch.Tensor) -> float:
    expected = torch.linalg.solve(S, r.flatten(1)).view_as(r)
    return float((found.u.double() - expected).abs().max())


# ---- conjugate gradients --------------------------------------------------------------------------------------------


def test_equals_a_dense_solve() -> None:
    S, r = matrices(), right_hand_side()
    found = ConjugateGradients(1e-12, 50)(product(S), r)
    assert error(found, S, r) < 1e-10
    assert bool(found.converged.all())
    assert bool(found.positive.all())
    single = ConjugateGradients(1e-6, 50)(product(S), r.float())
    assert single.u.dtype == torch.float32
    assert error(single, S, r) < 1e-4


@pytest.mark.parametrize("tolerance", [1e-1, 1e-3, 1e-10])
def test_is_the_textbooks_for_each_image(tolerance: float) -> None:
    """Its iterates, its stopping, and its number of products, whatever the others of the batch need."""
    S, r = matrices(), right_hand_side()
    S[1] = 2.0 * torch.eye(M)  # done after one product
    r[2] = torch.linalg.eigh(S[2])[1][:, :2].sum(1).view(3, 4)  # after two
    found = ConjugateGradients(tolerance, 50)(product(S), r)
    counts = []
    for i in range(4):
        u, products = naive(S[i].numpy(), r[i].flatten().numpy(), tolerance)
        counts.append(products)
        np.testing.assert_allclose(found.u[i].flatten().numpy(), u, rtol=0, atol=1e-9)
    assert found.products.tolist() == counts
    assert counts[1:3] == ([1, 1] if tolerance == 1e-1 and counts[2] == 1 else [1, 2])


def test_nothing_to_solve() -> None:
    r = right_hand_side()
    r[1] = 0.0
    found = ConjugateGradients()(product(matrices()), r)
    assert float(found.u[1].abs().max()) == 0.0
    assert bool(found.converged.all())
    assert int(found.products[1]) == 0


def test_not_converged_is_said_of_the_image() -> None:
    S, r = matrices(), right_hand_side()
    S[1] = torch.eye(M)
    found = ConjugateGradients(1e-8, 3)(product(S), r)
    assert found.converged.tolist() == [False, True, False, False]
    assert bool(found.positive.all())
    assert found.products.tolist() == [3, 1, 3, 3]
    assert bool(torch.isfinite(found.u).all())


def test_not_positive_is_said_of_the_image_and_its_u_is_what_was_found_until_there() -> None:
    S, r = matrices(), right_hand_side()
    values, vectors = torch.linalg.eigh(S[2])
    values[0] = -4.0
    S[2] = vectors @ (values[:, None] * vectors.T)
    r[2] = (vectors[:, 0] + 0.1 * vectors[:, 5]).view(3, 4)  # rᵀ S r < 0
    found = ConjugateGradients(1e-10, 50)(product(S), r)
    assert found.positive.tolist() == [True, True, False, True]
    assert found.converged.tolist() == [True, True, False, True]
    assert float(found.u[2].abs().max()) == 0.0
    others = [0, 1, 3]
    alone = Solution(found.u[others], *found[1:])
    assert error(alone, S[others], r[others]) < 1e-8


def test_a_singular_system_that_can_be_solved() -> None:
    """No noise, and measurements that say the same twice: r is in the range of S, and the u of least norm is found."""
    half = normal(4, M, 5, seed=3)
    S, r = half @ half.mT, (half @ normal(4, 5, 1, seed=4))[..., 0].view(4, 3, 4)
    found = ConjugateGradients(1e-10, 50)(product(S), r)
    assert bool(found.converged.all())
    expected = (torch.linalg.pinv(S, rtol=1e-10) @ r.flatten(1)[..., None])[..., 0].view_as(r)
    assert float((found.u - expected).abs().max()) < 1e-7


def test_a_good_preconditioner_saves_products() -> None:
    S, r = matrices(least=1e-3), right_hand_side()
    scale = torch.exp(2.0 * normal(4, M, seed=5))
    S = scale[:, :, None] * S * scale[:, None, :]
    r = (scale * r.flatten(1)).view_as(r)

    def inverse(u: torch.Tensor) -> torch.Tensor:
        return (u.flatten(1) / scale**2).view_as(u)

    plain = conjugate_gradients(product(S), r, None, 1e-6, 500)
    helped = conjugate_gradients(product(S), r, inverse, 1e-6, 500)
    assert bool((helped.products < plain.products).all())
    exact = conjugate_gradients(product(S), r, product(torch.linalg.inv(S)), 1e-6, 500)
    assert int(exact.products.max()) <= 2
    assert error(conjugate_gradients(product(S), r, inverse, 1e-12, 500), S, r) < 1e-5 * float(r.abs().max()) / 1e-3


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"tolerance": 0.0}, "tolerance"),
        ({"tolerance": float("nan")}, "tolerance"),
        ({"iterations": 0}, "iterations"),
        ({"iterations": 2.5}, "iterations"),
    ],
)
def test_settings_that_are_refused(options: dict[str, float], match: str) -> None:
    with pytest.raises(InputError, match=match):
        ConjugateGradients(**options)


# ---- Lanczos, cut ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("steps", [1, 3, 7, M])
def test_is_conjugate_gradients_where_nothing_is_cut(steps: int) -> None:
    S, r = matrices(), right_hand_side()
    found = cut_lanczos(product(S), r, steps, 0.01)
    expected = conjugate_gradients(product(S), r, None, 1e-300, steps)
    assert float((found.u - expected.u).abs().max()) < 1e-9
    assert bool(found.positive.all())
    assert found.products.tolist() == [steps] * 4


def test_of_all_steps_is_a_dense_solve_and_says_that_it_converged() -> None:
    S, r = matrices(), right_hand_side()
    assert error(cut_lanczos(product(S), r, M, 0.01), S, r) < 1e-10
    assert bool(cut_lanczos(product(S), r, M, 0.01).converged.all())
    assert not bool(cut_lanczos(product(S), r, 2, 0.01).converged.any())
    # Of no more than the Krylov space holds: rounding is no direction.
    S[:] = 2.0 * torch.eye(M)
    for dtype in (torch.float64, torch.float32):
        found = cut_lanczos(product(S), r.to(dtype), 6, 0.01)
        assert error(found, S, r) < (1e-12 if dtype == torch.float64 else 1e-6)
        assert bool(found.converged.all())
        assert bool(found.positive.all())


def test_raises_negative_eigenvalues_to_the_least() -> None:
    S, r = matrices(), right_hand_side()
    values, vectors = torch.linalg.eigh(S)
    values[:2, :3] -= 2.0
    S = vectors @ (values[..., None] * vectors.mT)
    found = cut_lanczos(product(S), r, M, 0.02)
    raised = vectors @ (values.clamp_min(0.02)[..., None] * vectors.mT)
    assert error(found, raised, r) < 1e-8
    assert found.positive.tolist() == [False, False, True, True]


def test_without_noise_what_is_not_positive_is_left_out() -> None:
    S, r = matrices(), right_hand_side()
    values, vectors = torch.linalg.eigh(S)
    values[:, :3] -= 2.0
    found = cut_lanczos(product(vectors @ (values[..., None] * vectors.mT)), r, M, 0.0)
    kept = torch.where(values > 0, 1.0 / values, 0.0)
    expected = (vectors @ (kept[..., None] * (vectors.mT @ r.flatten(1)[..., None])))[..., 0].view_as(r)
    assert float((found.u - expected).abs().max()) < 1e-8
    assert not bool(found.positive.any())


def test_nothing_to_cut() -> None:
    r = right_hand_side()
    r[1] = 0.0
    found = cut_lanczos(product(matrices()), r, 4, 0.01)
    assert float(found.u[1].abs().max()) == 0.0
    assert bool(found.converged[1])
    assert bool(found.positive[1])
