"""What a Jacobian-vector product costs is measured, and a sampler counts it."""

from typing import Any

import pytest
import torch
from torch import nn

import diffusion_var as dv

SHAPE = (1, 8, 8)
SCHEDULE = dv.NoiseSchedule.linear(100, 1e-3, 0.1)


class Counting(nn.Module):
    """A network of two convolutions that counts its evaluations, and those with a tangent."""

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.layers = nn.Sequential(nn.Conv2d(1, 32, 3, padding=1), nn.SiLU(), nn.Conv2d(32, 1, 3, padding=1))
        self.plain = self.pushed = 0

    def forward(self, x: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
        if torch._C._functorch.is_gradtrackingtensor(x) or torch.autograd.forward_ad._current_level >= 0:
            self.pushed += 1
        else:
            self.plain += 1
        out: torch.Tensor = self.layers(x)
        return out


class Products(dv.FixedSmall):
    """β̃, which says that it takes products."""

    def __init__(self, products: int, with_mean: int) -> None:
        super().__init__()
        self.products, self.products_with_mean = products, with_mean


def test_evaluations_and_products_are_timed_in_turns() -> None:
    network = Counting()
    cost = dv.product_cost(dv.Denoiser(network, SCHEDULE, shape=SHAPE), batch_size=16, rounds=5)
    assert (network.plain, network.pushed) == (6, 6)  # one of each to begin with
    assert cost.seconds is not None
    plain, pushed = cost.seconds
    assert 0 < plain < pushed
    # A tangent through convolutions is as much work again; far from 0 and from 10 even on a busy machine.
    assert 0.2 < cost.with_mean < 6.0
    assert cost.alone == 1.0 + cost.with_mean


def test_a_difference_is_an_evaluation_and_takes_no_measuring() -> None:
    network = Counting()
    cost = dv.product_cost(dv.Denoiser(network, SCHEDULE, shape=SHAPE), "difference")
    assert network.plain == network.pushed == 0
    assert (cost.with_mean, cost.alone, cost.seconds) == (1.0, 1.0, None)


@pytest.mark.parametrize(
    ("plain", "pushed", "product"),
    [
        ([1.0, 1.0, 1.0], [2.5, 2.5, 2.5], 1.5),
        ([1.0, 2.0, 1.0], [3.0, 8.0, 2.0], 2.0),  # the median of 3, 4 and 2 is 3
        ([1.0, 1.0, 1.0], [0.9, 0.8, 0.9], 0.0),  # by an accident of timing; no product is cheaper than nothing
    ],
)
def test_a_product_costs_what_its_pass_takes_beside_a_plain_one(
    plain: list[float], pushed: list[float], product: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    times = {False: iter(plain), True: iter(pushed)}
    monkeypatch.setattr(
        "diffusion_var.models.product_cost._seconds",
        lambda evaluate, _: next(times[evaluate().jacobian is not None]),
    )
    cost = dv.product_cost(dv.Denoiser(Counting(), SCHEDULE, shape=SHAPE), batch_size=2, rounds=3)
    assert cost.with_mean == pytest.approx(product)
    assert cost.alone == pytest.approx(1.0 + product)
    assert cost.seconds == (sorted(plain)[1], sorted(pushed)[1])


def test_each_round_begins_with_the_other_of_the_two(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that a machine which gets slower, or faster, favours neither."""
    seen: list[bool] = []

    def timed(evaluate: Any, _: Any) -> float:
        seen.append(evaluate().jacobian is not None)
        return 1.0

    monkeypatch.setattr("diffusion_var.models.product_cost._seconds", timed)
    dv.product_cost(dv.Denoiser(Counting(), SCHEDULE, shape=SHAPE), batch_size=2, rounds=4)
    assert seen == 2 * [False, True, True, False]


@pytest.mark.parametrize("product", [0.1, 0.7, 1.1, 1.24, 1.3, 2.2])
@pytest.mark.parametrize("with_mean", [0, 1])
def test_so_many_evaluations_hold_the_steps_that_take_just_as_many(product: float, with_mean: int) -> None:
    """K steps take K + (K − 1) times a product's price, and rounding leaves none of them out."""
    cost = dv.ProductCost.forward(product)
    for products in (1, 3):
        each = cost.of_step(products, with_mean)
        for k in range(1, 60):
            assert cost.steps_within(k + (k - 1) * each, products, with_mean) == k
            assert cost.steps_within(k + (k - 1) * each - 0.01, products, with_mean) == max(1, k - 1)


def test_conditions_are_passed_on() -> None:
    seen = []

    def network(x: torch.Tensor, timestep: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        seen.append(labels.tolist())
        return torch.tanh(x)

    denoiser = dv.Denoiser(network, SCHEDULE, shape=SHAPE, conditional=True)
    dv.product_cost(denoiser, batch_size=2, condition=torch.tensor([3, 4]), rounds=1)
    assert seen == [[3, 4]] * 4
    with pytest.raises(dv.InputError, match="needs a condition"):
        dv.product_cost(denoiser, batch_size=2, rounds=1)


def test_a_network_without_a_forward_derivative_is_refused() -> None:
    class Opaque(torch.autograd.Function):
        @staticmethod
        def forward(x: torch.Tensor) -> torch.Tensor:
            return 0.5 * x

        @staticmethod
        def setup_context(ctx: object, inputs: object, output: object) -> None:
            pass

    denoiser = dv.Denoiser(lambda x, timestep: Opaque.apply(x), SCHEDULE, shape=SHAPE)
    with pytest.raises(dv.InputError, match='derivative="difference"'):
        dv.product_cost(denoiser, batch_size=2, rounds=1)


def test_a_sampler_counts_the_products_of_steps_that_draw() -> None:
    denoiser = dv.Denoiser(Counting(), SCHEDULE, shape=SHAPE)
    cost = dv.ProductCost.forward(1.25)
    assert dv.Sampler(denoiser, dv.FixedSmall(), 10).equivalents(cost) == 10
    for products, with_mean, each in ((1, 1, 1.25), (3, 1, 1.25 + 2 * 2.25), (3, 0, 3 * 2.25)):
        sampler = dv.Sampler(denoiser, Products(products, with_mean), 10)
        assert sampler.evaluations == 10
        assert sampler.equivalents(cost) == pytest.approx(10 + 9 * each)  # the last step draws nothing
    scaled = dv.Sampler(denoiser, dv.Scaled(Products(2, 1), 2.0), 10)
    assert scaled.equivalents(dv.ProductCost.difference()) == 10 + 9 * 2
    assert scaled.equivalents(cost) == pytest.approx(10 + 9 * (1.25 + 2.25)), "one of the two comes with the mean"


def test_a_level_without_signal_takes_no_product() -> None:
    betas = dv.NoiseSchedule.linear(100, 1e-3, 0.1)
    alpha, sigma = betas.alpha.copy(), betas.sigma.copy()
    alpha[-1], sigma[-1] = 0.0, 1.0
    schedule = dv.NoiseSchedule(alpha, sigma, betas.timestep)
    denoiser = dv.Denoiser(Counting(), schedule, "sample", SHAPE)
    sampler = dv.Sampler(denoiser, Products(1, 1), 4)
    assert sampler.equivalents(dv.ProductCost.forward(1.0)) == 4 + 2


def test_numbers_that_are_none_are_refused() -> None:
    cost, sampler = (
        dv.ProductCost.forward(1.0),
        dv.Sampler(dv.Denoiser(Counting(), SCHEDULE, shape=SHAPE), dv.FixedSmall(), 4),
    )
    said = {
        (0, 1, 1): "evaluations=0 must be a positive number",
        ("ten", 1, 1): "evaluations='ten' must be a positive number",
        (10, -1, 0): "products=-1 must be a whole number",
        (10, 1, 0.5): "with_mean=0.5 must be a whole number",
    }
    for given, sentence in said.items():
        arguments: Any = given
        with pytest.raises(dv.InputError, match=sentence):
            cost.steps_within(*arguments)
    assert cost.of_step(0, 1) == 0.0, "no more products come with the mean than there are"
    with pytest.raises(dv.InputError, match=r"cost must be a dv\.ProductCost .*, but got float"):
        sampler.equivalents(1.0)  # type: ignore[arg-type]
