"""What a product with the mean's derivative costs, in plain evaluations of the network: the unit that methods are
compared in.

A pass forward with a tangent (`models.derivative`) is timed beside a plain evaluation of the same batch, on the device
where the network is, in turns, so that drift cancels; r is the median of the rounds' ratios. Then

    forward      a product that comes with the mean costs r − 1, and one by itself r (its pass makes the mean anew)
    difference   every product is an evaluation more: nothing is measured

Guidance and a classifier are part of an evaluation, and of its derivative.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from .. import checks
from ..randomness import generator, normal
from .conditions import as_nest, map_leaves
from .denoiser import Denoiser, check_denoiser
from .derivative import DERIVATIVES, Derivative
from .posterior import Posterior


@dataclass(frozen=True)
class ProductCost:
    """The price of a Jacobian-vector product in evaluations of the network.

    Attributes:
        with_mean: of a product that comes with the mean, beside the evaluation of the mean itself.
        alone: of a product by itself.
        derivative: "forward" or "difference".
        seconds: of a plain evaluation of a batch, and of one with a tangent, medians; None where nothing was timed.
    """

    with_mean: float
    alone: float
    derivative: Derivative = "forward"
    seconds: tuple[float, float] | None = None

    @classmethod
    def forward(cls, product: float, seconds: tuple[float, float] | None = None) -> ProductCost:
        """Of forward mode, where a product that comes with the mean costs so many evaluations."""
        product = checks.number("product_cost", product, "a number of evaluations, at least 0", least=0.0)
        return cls(product, 1.0 + product, "forward", seconds)

    @classmethod
    def difference(cls) -> ProductCost:
        """Of differences: an evaluation each."""
        return cls(1.0, 1.0, "difference")

    def of_step(self, products: int, with_mean: int) -> float:
        """Evaluations that a step takes beside that of its mean: so many products, of which some come with the mean."""
        products = checks.whole("products", products, least=0)
        with_mean = min(checks.whole("with_mean", with_mean, least=0), products)
        return with_mean * self.with_mean + (products - with_mean) * self.alone

    def steps_within(self, evaluations: float, products: int, with_mean: int) -> int:
        """The largest number of steps, at least 1, that takes at most so many evaluations of the network, the products
        among them: of K steps K − 1 draw."""
        evaluations = checks.positive("evaluations", evaluations)
        each = self.of_step(products, with_mean)
        return max(1, int((evaluations + each) / (1.0 + each) + 1e-9))


def product_cost(
    denoiser: Denoiser,
    derivative: Derivative = "forward",
    batch_size: int = 64,
    condition: Any = None,
    rounds: int = 9,
) -> ProductCost:
    """Measure what a Jacobian-vector product of a network costs, on its device.

    Args:
        denoiser: the model, with its guidance.
        derivative: as the covariance has it ("difference" takes no measuring).
        batch_size: images at once.
        condition: of a batch, (B, …) or a nest of such, where the model needs one.
        rounds: of which the median is taken; of each three, about, are the price of one product.

    Raises InputError for a network that has no forward derivative.
    """
    check_denoiser(denoiser)
    checks.one_of("derivative", derivative, DERIVATIVES)
    batch_size = checks.whole("batch_size", batch_size, least=1)
    rounds = checks.whole("rounds", rounds, least=1)
    if derivative == "difference":
        return ProductCost.difference()
    # In the middle of the schedule: what a network does takes as long at every level.
    level = denoiser.schedule.level(max(1, denoiser.schedule.num_steps // 2))
    stream = generator(0, "product cost")
    x_t, probe = (normal(stream, batch_size, *denoiser.shape).to(denoiser.device) for _ in range(2))
    own = None if condition is None else map_leaves(lambda leaf: leaf.to(denoiser.device), as_nest(condition))
    with_tangent = denoiser.with_jacobian(lambda _level, _like: probe[:1], "forward")
    plain: list[float] = []
    pushed: list[float] = []
    with torch.inference_mode():
        for of in (denoiser, with_tangent):
            of(x_t, level, own)  # kernels are chosen, memory is taken
        for turn in range(rounds):
            for of, seconds in ((denoiser, plain), (with_tangent, pushed))[:: -1 if turn % 2 else 1]:
                seconds.append(_seconds(partial(of, x_t, level, own), denoiser.device))
    ratio = statistics.median(b / a for a, b in zip(plain, pushed, strict=True))
    return ProductCost.forward(max(ratio - 1.0, 0.0), (statistics.median(plain), statistics.median(pushed)))


def _seconds(evaluate: Callable[[], Posterior], device: torch.device) -> float:
    """Of one evaluation. On a single thread the processor's own time: others on the machine do not lengthen it much."""
    now = time.process_time if device.type == "cpu" and torch.get_num_threads() == 1 else time.perf_counter
    _wait(device)
    start = now()
    evaluate()
    _wait(device)
    return now() - start


def _wait(device: torch.device) -> None:
    if device.type != "cpu":
        torch.accelerator.synchronize(device)
