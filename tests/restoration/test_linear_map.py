"""A linear map is looked at before it is used: what is none is refused with what is wrong and what to do."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from measurements import OPERATORS, SHAPE, masked, normal

from diffusion_var.errors import InputError
from diffusion_var.restoration.linear_map import checked, with_adjoint

Operator = Callable[[torch.Tensor], torch.Tensor]


def check(A: Operator, adjoint: Operator | None = None, shape: Any = SHAPE, dtype: Any = torch.float32) -> torch.Tensor:
    like = torch.zeros((), dtype=dtype)
    return checked(A, with_adjoint(A, SHAPE) if adjoint is None else adjoint, SHAPE, shape, like)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", OPERATORS)
def test_linear_maps_pass(name: str, dtype: torch.dtype) -> None:
    A = OPERATORS[name]
    shape = tuple(A(torch.zeros(1, *SHAPE)).shape[1:])
    seen = check(A, None, shape, dtype)
    assert seen.shape == shape
    assert bool(seen.all()) == (name != "mask")
    with torch.inference_mode():
        assert torch.equal(check(A, None, shape, dtype), seen)


def test_an_adjoint_by_differentiation_is_the_given_one() -> None:
    A = masked()
    u = normal(4, *SHAPE)
    with torch.inference_mode():
        given = u.clone()
        assert torch.equal(with_adjoint(A, SHAPE)(given), A(u))
    back = with_adjoint(lambda x: 3.0 * x[:, :1], SHAPE)(u[:, :1])
    assert torch.equal(back[:, 0], 3.0 * u[:, 0])
    assert float(back[:, 1:].abs().max()) == 0.0
    assert not back.requires_grad


def in_place(x: torch.Tensor) -> torch.Tensor:
    return x.mul_(2.0)


def test_a_map_may_work_in_place() -> None:
    """It gets copies."""
    assert bool(check(in_place, lambda u: 2.0 * u).all())


class Random:
    """Noise of its own at every call."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        return x + 0.1 * normal(*x.shape, seed=self.calls).to(x) * (x != 0)


def through_numpy(x: torch.Tensor) -> torch.Tensor:
    return torch.from_numpy(2.0 * x.detach().numpy())


NONE_OF_THEM = [
    (lambda x: x.square(), None, r"A is not linear: A\(2u\) differs from 2 A\(u\) by"),
    (lambda x: x.clamp(-1.0, 1.0), None, r"A is not linear: A\(2u\) differs"),
    (lambda x: x.abs(), None, r"A is not linear: A\(u \+ v\) differs from A\(u\) \+ A\(v\) by .*linearise it"),
    (lambda x: 0.0 * x, None, "A gives 0 of every image, so that nothing was measured"),
    (lambda x: x + 0.5, None, r"A is not linear: A\(0\) is .* of A\(u\); take what it adds off y"),
    (Random(), lambda u: u, "A is random: it gives another result each time .*; fix its seed"),
    (lambda x: x - x.mean(0), None, "A of one image depends on the others of the batch"),
    (lambda x: x / 0.0, None, "NaN or infinite values of finite images; check the operator"),
    (lambda x: x.roll(1, -1), lambda u: u.roll(1, -1), r"the adjoint is not A's: ⟨Au, w⟩ = .*leave it out"),
    (lambda x: 2.0 * x, lambda u: u, "the adjoint is not A's"),
    (through_numpy, None, r"A cannot be differentiated by torch \(.*\); give its adjoint="),
    (lambda x: x[:, :2], None, r"A gives \(2, 2, 4, 6\) of \(2, 3, 4, 6\), but \(2, 3, 4, 6\) is expected, as y"),
    (lambda x: None, None, "A gives NoneType"),
    (lambda x: x.double(), None, r"A gives torch.float64 on cpu of torch.float32 on cpu; it must keep both"),
    (lambda x: x.view(1, *SHAPE), None, r"A fails on a tensor of shape \(2, 3, 4, 6\) \(RuntimeError.*any size"),
    (lambda x: x @ torch.eye(6, dtype=torch.float64), None, "A fails on .*in torch.float32"),
    (lambda x: x, lambda u: u[:, :1], r"the adjoint gives \(2, 1, 4, 6\)"),
    (lambda x: x, lambda u: 1 / 0, r"the adjoint fails on .*ZeroDivisionError"),
]


@pytest.mark.parametrize(("A", "adjoint", "match"), NONE_OF_THEM, ids=[case[2][:30] for case in NONE_OF_THEM])
def test_what_is_refused(A: Any, adjoint: Any, match: str) -> None:
    with pytest.raises(InputError, match=match) as caught:
        check(A, adjoint)
    assert "\n" not in str(caught.value)


def test_a_small_departure_is_seen_in_float64_only_where_float32_cannot_tell() -> None:
    def nearly(x: torch.Tensor) -> torch.Tensor:
        return x + 1e-5 * x.square()

    assert bool(check(nearly).all())
    with pytest.raises(InputError, match="not linear"):
        check(nearly, dtype=torch.float64)
