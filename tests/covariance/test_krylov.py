"""Functions of matrices that are known by their products: against those of dense ones, and what is cut."""

import pytest
import torch
from small_krylov import noise

from diffusion_var.covariance.krylov import KrylovSpace


@pytest.mark.parametrize("columns", [3, 8, 11])
def test_a_space_as_large_as_it_can_be_knows_every_function(columns: int) -> None:
    """f(M) b and bᵀ f(M) b of dense matrices; beyond d = 8 the space is spent, and nothing changes."""
    d, known = 8, torch.linspace(0.5, 2.0, 8, dtype=torch.float64)
    roots = noise(3, d, d)
    P = roots @ roots.mT
    b = noise(3, d, seed=5)
    b[2] = 0.0
    space = KrylovSpace(b, known, lambda v: (P @ v[..., None])[..., 0]).grow(columns)
    M = torch.diag(known) + P
    values, vectors = torch.linalg.eigh(M)
    for f in (torch.sqrt, torch.log, torch.reciprocal):
        expected = (vectors * f(values)[:, None]) @ vectors.mT @ b[..., None]
        found, form = space.times(f), space.form(f)
        if columns >= d:
            torch.testing.assert_close(found, expected[..., 0], rtol=1e-9, atol=1e-9)
            torch.testing.assert_close(form, (b * expected[..., 0]).sum(1), rtol=1e-9, atol=1e-9)
        else:
            assert float((found - expected[..., 0]).norm()) > 1e-3
        assert not bool(found[2].any())
    assert space.open(1e-6).tolist() == [columns < d, columns < d, False]
    assert space.counted.tolist() == [min(columns, d)] * 2 + [0]
    assert not bool(space.cut.any())


def test_what_cuts_take_is_nearest_in_the_metric_and_leaves_the_known_part() -> None:
    """P with negative eigenvalues and an antisymmetric part: T is G and the positive part of P's symmetric half."""
    d = 6
    known, P, b = torch.linspace(0.0, 1.0, d, dtype=torch.float64), noise(4, d, d), noise(4, d, seed=5)
    values, vectors = torch.linalg.eigh(0.5 * (P + P.mT))
    expected = torch.diag(known) + (vectors * values.clamp_min(0.0)[:, None]) @ vectors.mT
    space = KrylovSpace(b, known, lambda v: (P @ v[..., None])[..., 0]).grow(d)
    torch.testing.assert_close(space.times(lambda x: x), (expected @ b[..., None])[..., 0], rtol=1e-9, atol=1e-9)
    assert space.cut.tolist() == (values < 0).sum(1).tolist()
    few = KrylovSpace(b, known, lambda v: (P @ v[..., None])[..., 0]).grow(3)
    own = KrylovSpace(b, known, lambda v: 0.0 * v).grow(3)
    for f in (torch.sqrt, torch.log1p):  # nowhere below what is known
        assert bool((few.form(f) >= (b.square() * f(known)).sum(1).clamp_max(own.form(f)) - 1e-9).all())


def test_products_that_are_no_numbers_are_seen_in_the_end() -> None:
    b = noise(3, 6)

    def product(v: torch.Tensor) -> torch.Tensor:
        out = 2.0 * v + v.roll(1, -1)
        out[1] = torch.nan
        return out

    found = KrylovSpace(b, torch.tensor(1.0), product).grow(3).times(torch.sqrt)
    assert torch.isfinite(found).flatten(1).all(1).tolist() == [True, False, True]
