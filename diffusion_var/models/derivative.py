"""The derivative of a denoiser's mean, J = ∂x̂_0/∂x_t, by products: what Cov[x_0|x_t] is made of without training,

    Cov[x_0|x_t] = (σ_t²/α_t) J                                                                          [E16]

(Tweedie's second formula: differentiate E[x_0|x_t] under the integral; Manor and Michaeli, arXiv:2309.13598, take
moments of the posterior so). A product J v is one pass forward with a tangent beside it (`torch.func.jvp`), for about
the price of a second evaluation; the mean itself comes with it. Where a layer has no forward derivative, a difference
of two evaluations stands for it,

    J v ≈ (x̂_0(x_t + h v) − x̂_0(x_t))/h,        h √(mean v²) = 0.001 σ_t,

for x̂_0 is a function of x_t/σ_t: a step much below this is lost in float32's rounding, a longer one in the curvature.
From the forward derivative it differs, of the bundled digits' network, by 0.1 to 0.4 % of its size where n ≤ 500 and by
1 to 2 % in more noise; of the photographs' by 0.2 to 3 %, and by 6 % in pure noise.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache, partial
from types import TracebackType
from typing import Any, Literal, Protocol, get_args

import torch

from .. import checks
from ..errors import InputError, NumericalError
from ..process.level import NoiseLevel
from ..process.schedule import NoiseSchedule
from .conditions import as_nest, map_leaves
from .mean_jacobian import MeanJacobian
from .network_use import is_of_device
from .posterior import Posterior
from .tangents import CheapTangents

Derivative = Literal["forward", "difference"]
DERIVATIVES = get_args(Derivative)
#: Probes (P, C, *spatial) of a level, in pixels, for images like a tensor.
Probes = Callable[[NoiseLevel, torch.Tensor], torch.Tensor]
#: A difference's step, root mean square, in units of σ.
STEP = 1e-3


class Differentiable(Protocol):
    """What is differentiated: a `Denoiser`."""

    exact: bool
    network: Any
    schedule: NoiseSchedule
    autocast: torch.dtype | None
    classifier: Any

    @property
    def in_half_precision(self) -> bool: ...
    def __call__(self, x_t: torch.Tensor, n: Any, condition: Any = None) -> Posterior: ...


class Linearised:
    """Evaluates a denoiser with the derivative of its mean.

    Args:
        probes: the directions whose products come with the mean; None: none.
        derivative: "forward", or "difference" where a layer has no forward derivative.

    Raises InputError for probes that are no function, and when it is called, for probes of another shape, a network
    under autocast, one that has no forward derivative or keeps it to itself, and a difference in half precision.
    """

    def __init__(self, probes: Probes | None, derivative: Derivative) -> None:
        checks.refuse(
            not (probes is None or callable(probes)),
            f"probes={checks.brief(probes)} must be a function (level, images) -> (P, C, *spatial), or None.",
        )
        self.probes = probes
        self.derivative: Derivative = checks.one_of("derivative", derivative, DERIVATIVES)
        self._looked = False

    def __call__(self, denoiser: Differentiable, x_t: torch.Tensor, n: Any, condition: Any) -> Posterior:
        """The posterior of a denoiser, with `jacobian`, in whatever mode the caller is; without signal in any of x_t it
        has none.

        Where gradients are wanted the mean has its graph, and the products, which never have one, are made apart.
        """
        _check_differentiable(denoiser, self.derivative)
        levels = denoiser.schedule.levels(n, len(x_t))
        if all(level.alpha == 0.0 for level in levels):
            return denoiser(x_t, n, condition)
        graph = torch.is_grad_enabled()
        # No forward derivatives are known in inference mode, and its tensors may not be used outside of it.
        with torch.inference_mode(False), torch.set_grad_enabled(graph):
            x = x_t.clone()
            own = None if condition is None else map_leaves(lambda leaf: leaf.clone(), as_nest(condition))
            # Indices of each image are read as numbers, which a tensor inside of a derivative has none of.
            batch = _Batch(denoiser, x, levels, levels if len(levels) > 1 else n, own, self.derivative)
            wanted = [] if self.probes is None else list(_probes(self.probes, levels, x.detach()))
            together = bool(wanted) and self.derivative == "forward" and not graph
            posterior, first = batch.with_product(wanted[0]) if together else (batch.posterior(), None)
            batch.mean = posterior.mean.detach()
            if first is not None:
                self._look(batch, wanted[0], first)
            everywhere = torch.arange(len(x))
            probed = [(v, batch.times(v, everywhere)) for v in wanted[together:]]
            if first is not None:
                probed.insert(0, (wanted[0], batch.scale * first))
        return replace(posterior, jacobian=MeanJacobian(tuple(probed), batch.times, everywhere))

    def _look(self, batch: _Batch, v: torch.Tensor, moved: torch.Tensor) -> None:
        """Refuse, at the first batch, a network that keeps its derivative to itself (`detach`, `.data`, an inference
        mode of its own): nothing fails then, and J v is a multiple of v, or 0."""
        if self._looked or batch.denoiser.exact or batch.denoiser.in_half_precision:
            return
        self._looked = True
        seen = moved != 0.0  # where x̂_0 is clipped, it is 0
        ratio = (moved / torch.where(v == 0.0, 1.0, v))[seen & (v != 0.0)]
        if ratio.numel() and bool((ratio - ratio.mean()).abs().max() > 1e-3 * ratio.abs().max()):
            return
        expected = batch.difference(v, torch.arange(len(v)))
        lost = float((moved - expected).norm()) > 0.05 * float(expected.norm())
        checks.refuse(
            lost,
            "the network keeps its derivative to itself (by detach, .data or an inference mode of its own), so that "
            f"its forward derivative is that of a constant; {_REMEDY}",
        )


class _Batch:
    """Images at which a denoiser is differentiated: their levels, and the mean once it is known."""

    mean: torch.Tensor

    def __init__(
        self,
        denoiser: Differentiable,
        x: torch.Tensor,
        levels: Sequence[NoiseLevel],
        n: Any,
        condition: Any,
        derivative: Derivative,
    ) -> None:
        self.denoiser, self.x, self.n, self.condition, self.derivative = denoiser, x, n, condition, derivative
        sigma = torch.tensor([level.sigma for level in levels], dtype=torch.float64)
        alpha = torch.tensor([level.alpha for level in levels], dtype=torch.float64)
        column = (-1, *(1,) * (x.ndim - 1))
        scale = torch.where(alpha > 0.0, sigma**2 / alpha.clamp_min(1e-300), 0.0)
        self.scale, self.sigma = (c.to(x).view(column).expand(len(x), *column[1:]) for c in (scale, sigma))

    def posterior(self) -> Posterior:
        """The posterior, with a graph if gradients are wanted."""
        return self.denoiser(self.x, self.n, self.condition)

    def with_product(self, v: torch.Tensor) -> tuple[Posterior, torch.Tensor]:
        """The posterior, and J v (B, C, *spatial) with it."""

        def whole(place: torch.Tensor) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
            found = self.denoiser(place, self.n, self.condition)
            extras = {"range": found.range, "features": found.features}
            return found.mean, {"eps": found.eps, **{name: t for name, t in extras.items() if t is not None}}

        mean, moved, others = self._forward(whole, self.x, v, True)
        return Posterior(mean, **others), moved

    def times(self, v: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
        """(σ²/α) J v for the images at some places."""
        wanted = (len(places), *self.x.shape[1:])
        checks.refuse(
            tuple(v.shape) != wanted,
            f"v has shape {tuple(v.shape)}, but this posterior's products are of {wanted}, a vector for each image.",
        )
        with torch.inference_mode(False), torch.no_grad():
            v = v.detach().to(self.x, copy=True)
            if self.derivative == "difference":
                moved = self.difference(v, places)
            else:
                at, x = self._at(places)
                moved = self._forward(lambda place: at(place).mean, x, v, False)[1]
            return self.scale[places.to(v.device)] * moved

    def difference(self, v: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
        """J v for the images at some places, by a difference."""
        at, x = self._at(places)
        size = v.double().square().flatten(1).mean(1).sqrt().view(-1, *(1,) * (v.ndim - 1))
        h = torch.where(size > 0.0, STEP / size.clamp_min(1e-300), 0.0).to(v) * self.sigma[places.to(v.device)]
        moved: torch.Tensor = (at(x + h * v).mean - self.mean[places.to(v.device)]) / torch.where(h > 0.0, h, 1.0)
        return moved

    def _at(self, places: torch.Tensor) -> tuple[Callable[[torch.Tensor], Posterior], torch.Tensor]:
        """The denoiser at the levels and conditions of some images, and these."""
        if len(places) == len(self.x) and bool((places == torch.arange(len(places))).all()):
            return partial(self.denoiser, n=self.n, condition=self.condition), self.x.detach()
        n, condition = self.n, self.condition
        if isinstance(n, list):
            n = [n[i] for i in places.tolist()]
        if condition is not None:
            condition = map_leaves(lambda leaf: leaf[places.to(leaf.device)], condition)
        return partial(self.denoiser, n=n, condition=condition), self.x.detach()[places.to(self.x.device)]

    def _forward(self, of: Callable[..., Any], x: torch.Tensor, v: torch.Tensor, aux: bool) -> Any:
        _load_rules()
        try:
            # Of attention's kernels the mathematical one alone has a forward derivative.
            with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH), CheapTangents():
                return torch.func.jvp(of, (x,), (v.contiguous(),), has_aux=aux)
        except (InputError, NumericalError):
            raise
        except Exception as error:
            if is_of_device(error.__cause__ or error):
                raise
            of(x)  # what fails without a derivative too fails here, in its own words
            raise InputError(
                f"the network has no forward derivative: {_layer(self.denoiser.network, error)}; {_REMEDY}"
            ) from error


@cache
def _load_rules() -> None:
    """Torch loads rules of derivatives with the first, and warns of code of its own that is deprecated."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.func.jvp(torch.square, (torch.ones(()),), (torch.ones(()),))


_REMEDY = 'take derivative="difference", where a product is a second evaluation of the network.'


def _check_differentiable(denoiser: Differentiable, derivative: Derivative) -> None:
    checks.refuse(
        derivative == "forward" and denoiser.classifier is not None,
        f"a classifier's guidance is a gradient, which is not differentiated once more here; {_REMEDY}",
    )
    checks.refuse(
        denoiser.autocast is not None,
        "a network has no derivative under autocast, which rounds its weights on the way; leave autocast out, or load "
        "the weights themselves in half precision (dtype=).",
    )
    checks.refuse(
        derivative == "difference" and denoiser.in_half_precision,
        'derivative="difference" would be a difference of rounding errors, for the network computes in half precision; '
        'take derivative="forward", or the weights in float32.',
    )


def _probes(probes: Probes, levels: Sequence[NoiseLevel], x: torch.Tensor) -> torch.Tensor:
    """The probes of each image, (P, B, C, *spatial): those of its level."""
    of_level = {level: probes(level, x).to(x) for level in dict.fromkeys(levels)}
    wrong = next((tuple(v.shape) for v in of_level.values() if v.shape[1:] != x.shape[1:]), None)
    checks.refuse(
        wrong is not None,
        f"probes have shape {wrong}, but (P, {', '.join(map(str, x.shape[1:]))}) is expected: P directions.",
    )
    found = torch.stack([of_level[level] for level in levels], dim=1)
    return found.expand(-1, len(x), *found.shape[2:])


def _layer(network: Any, error: BaseException) -> str:
    """Which of a network's modules an error was raised in, and what it says."""
    cause: BaseException = error
    while cause.__cause__ is not None:
        cause = cause.__cause__
    said = " ".join(str(cause).split(". ")[0].split())[:200].rstrip(".") or type(cause).__name__
    names = {id(module): name for name, module in network.named_modules()} if hasattr(network, "named_modules") else {}
    where, step = "", cause.__traceback__
    while step is not None:
        where, step = _named(step, names) or where, step.tb_next
    return f"{where} says: {said}" if where else f"it says: {said}"


def _named(step: TracebackType, names: dict[int, str]) -> str:
    """The module whose method a step of a traceback is in; nothing for other steps."""
    own = step.tb_frame.f_locals.get("self")
    name = names.get(id(own)) if isinstance(own, torch.nn.Module) else None
    return f"its layer {name} ({type(own).__name__})" if name else ""
