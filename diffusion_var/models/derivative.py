"""The derivative of a denoiser's mean, J = ∂x̂_0/∂x_t, by products: what Cov[x_0|x_t] is made of without training,

    Cov[x_0|x_t] = (σ_t²/α_t) J                                                                          [E16]

(Tweedie's second formula: differentiate E[x_0|x_t] under the integral.) A product J v is one pass forward with a
tangent beside it (`torch.func.jvp`), for about the price of a second evaluation; the mean itself comes with it. Where
a layer has no forward derivative, a difference of two evaluations stands for it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

import torch

from .. import checks
from ..errors import InputError
from ..process.level import NoiseLevel
from .conditions import as_nest, map_leaves
from .posterior import Posterior
from .tangents import CheapTangents

if TYPE_CHECKING:
    from .denoiser import Denoiser, Place

Derivative = Literal["forward", "difference"]
#: Probes (P, C, *spatial) of a level, in pixels, for images like a tensor.
Probes = Callable[[NoiseLevel, torch.Tensor], torch.Tensor]
#: A difference's step, relative to the size of x_t: where float32's rounding and the curvature are about equal.
STEP = 1e-2


@dataclass(frozen=True)
class MeanJacobian:
    """Products with (σ²/α) J at the images of a posterior.

    Attributes:
        probed: pairs (v, (σ²/α) J v) that came with the mean, (B, C, *spatial) each.
        times: (σ²/α) J v of (B, C, *spatial), one more pass through the network.
    """

    probed: tuple[tuple[torch.Tensor, torch.Tensor], ...]
    product: Callable[[torch.Tensor, Any], torch.Tensor]
    part: Any = field(default_factory=lambda: slice(None))

    def times(self, v: torch.Tensor) -> torch.Tensor:
        """(σ²/α) J v of (B, C, *spatial): one more pass through the network."""
        return self.product(v, self.part)

    def detached(self) -> MeanJacobian:
        """The same without a graph."""
        return MeanJacobian(tuple((v, image.detach()) for v, image in self.probed), self.product, self.part)

    def rows(self, part: Any) -> MeanJacobian:
        """Of some of the images."""
        checks.refuse(self.part != slice(None), "a part of a part of a batch is not known; take the part at once.")
        return MeanJacobian(tuple((v[part], image[part]) for v, image in self.probed), self.product, part)


class Linearised:
    """Evaluates denoisers with the derivative of their mean.

    Args:
        probes: the directions whose products come with the mean; None: none.
        derivative: "forward", or "difference" where a layer has no forward derivative.
    """

    def __init__(self, probes: Probes | None, derivative: Derivative) -> None:
        self.probes = probes
        self.derivative: Derivative = checks.one_of("derivative", derivative, ("forward", "difference"))

    def __call__(self, denoiser: Denoiser, x_t: torch.Tensor, n: Place, condition: Any) -> Posterior:
        """The posterior of a denoiser, with `jacobian`; without signal in x_t it has none (J is 0 there, and α too)."""
        level = _one_level(denoiser, n)
        if level.alpha == 0.0:
            return denoiser(x_t, n, condition)
        scale = level.sigma**2 / level.alpha
        with torch.inference_mode(False):
            x = x_t.clone()
            own = None if condition is None else map_leaves(lambda leaf: leaf.clone(), as_nest(condition))
            wanted = [] if self.probes is None else list(self.probes(level, x))
            at = partial(denoiser, n=n)
            posterior, first = self._first(at, x, own, wanted[0] if wanted else None)

            def product(v: torch.Tensor, part: Any) -> torch.Tensor:
                rows = None if own is None else map_leaves(lambda leaf: leaf[part], own)
                with torch.inference_mode(False):
                    return scale * self._times(at, x[part], rows, v.clone(), posterior.mean[part])

            probed = [] if first is None else [(wanted[0].expand_as(x), scale * first)]
            probed += [(v.expand_as(x), product(v.expand_as(x), slice(None))) for v in wanted[1:]]
        jacobian = MeanJacobian(tuple(probed), product)
        return Posterior(posterior.mean, posterior.eps, posterior.range, posterior.features, jacobian)

    def _first(
        self, at: Callable[..., Posterior], x: torch.Tensor, condition: Any, v: torch.Tensor | None
    ) -> tuple[Posterior, torch.Tensor | None]:
        """The posterior at x, and J v with it."""
        if v is None or self.derivative == "difference":
            posterior = at(x, condition=condition)
            return posterior, None if v is None else self._times(at, x, condition, v.expand_as(x), posterior.mean)

        def whole(place: torch.Tensor) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
            found = at(place, condition=condition)
            extras = {"range": found.range, "features": found.features}
            return found.mean, {"eps": found.eps, **{name: t for name, t in extras.items() if t is not None}}

        mean, moved, others = self._forward(whole, x, v.expand_as(x), True)
        return Posterior(mean, **others), moved

    def _times(
        self, at: Callable[..., Posterior], x: torch.Tensor, condition: Any, v: torch.Tensor, mean: torch.Tensor
    ) -> torch.Tensor:
        """J v at x, where the mean is `mean`."""
        if self.derivative == "forward":
            moved: torch.Tensor = self._forward(lambda place: at(place, condition=condition).mean, x, v, False)[1]
            return moved
        size = STEP * x.flatten(1).norm(dim=1) / v.flatten(1).norm(dim=1).clamp_min(1e-30)
        h = size.view(-1, *(1,) * (x.ndim - 1))
        difference: torch.Tensor = (at(x + h * v, condition=condition).mean - mean) / h
        return difference

    @staticmethod
    def _forward(of: Callable[..., Any], x: torch.Tensor, v: torch.Tensor, aux: bool) -> Any:
        try:
            # Of attention's kernels the mathematical one alone has a forward derivative.
            with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH), CheapTangents():
                return torch.func.jvp(of, (x,), (v.contiguous(),), has_aux=aux)
        except Exception as error:
            cause: BaseException | None = error
            while cause is not None and "forward" not in str(cause).lower():
                cause = cause.__cause__
            if cause is None:
                raise
            raise InputError(
                f"a layer of the network has no forward derivative ({' '.join(str(cause).split())[:200]}); take "
                'derivative="difference", two evaluations in the place of one and its derivative.'
            ) from error


def _one_level(denoiser: Denoiser, n: Place) -> NoiseLevel:
    """The one level of a batch."""
    if isinstance(n, NoiseLevel):
        return n
    several = isinstance(n, list) or (isinstance(n, torch.Tensor) and n.ndim > 0)
    checks.refuse(several, "a denoiser with its derivative is evaluated at one noise level for the batch; split it.")
    return denoiser.schedule.level(denoiser.schedule.check_index(n))
