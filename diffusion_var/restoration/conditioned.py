"""E[x_0|x_t, y]: a denoiser that follows a measurement y = A x_0 + n, n ~ N(0, R) [E15].

With x_0|x_t ~ N(x̂_0, Σ), Σ from a table, a head or another covariance that knows Cov[x_0|x_t],

    S = A Σ Aᵀ + R,   u = S⁻¹ (y − A x̂_0)
    type II (arXiv:2402.02149):     E = x̂_0 + Σ Aᵀ u
    type I  (ΠGDM, ICLR 2023):      E = x̂_0 + f (σ_t²/α_t) Jᵀ Aᵀ u,   J = ∂x̂_0/∂x_t, one vector-Jacobian product

and ε̂ is that of the new mean. J knows the image, a table does not: (σ²/α) J is Cov[x_0|x_t] where the mean is exact.
f ≤ 1 is the length of a step (`step_length`), 1 where Σ is right: where Σ is too small, u is too long.
Through a latent model's decoder D, A is replaced by A ∂D at x̂_0, and y − A x̂_0 by y − A D(x̂_0).
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, Literal

import torch

from .. import checks
from ..covariance.reverse import ReverseCovariance, StructuredCovariance, check_covariance, check_knows_x_0
from ..errors import NumericalError, warn
from ..models.conditions import as_nest, map_leaves
from ..models.denoiser import Denoiser, Place, check_denoiser
from ..models.derivative import Derivative, Probes
from ..models.identity import ModelIdentity
from ..models.network_use import failing
from ..models.posterior import Posterior
from ..models.prediction import eps_of_mean
from ..process.level import NoiseLevel
from ..process.per_image import dot, each
from ..process.structure import without_autocast
from .checkpointing import recomputing, unchanged
from .conditioned_mean import conditioned_mean_1, conditioned_mean_2, step_length
from .jacobian import NetworkCovariance, NetworkJacobian
from .level_groups import level_groups, merged
from .linear_map import LinearMap
from .measurement import Measurement
from .pigdm_above import ConstantAbove
from .posterior_noise import PosteriorNoise
from .rows import as_condition, has_rows, of_part, taken_apart
from .solve_counts import SolveCounts
from .solver import ConjugateGradients, CutLanczos, Solution, Solver
from .system import System
from .systems import Systems

Guidance = Literal["I", "II"]
_MOST_ELEMENTS = 4096  # of y, for a determinant of S


class ConditionedDenoiser(Denoiser):
    """A denoiser of x_0 given x_t and a measurement; a `Denoiser` like any other for samplers and solvers.

    Image i of a run has measurement i mod B. In a call of one's own with another number of images than B, `rows` of the
    measurement go with them as the condition (see `rows_condition`).

    Args:
        denoiser: the model, on the measurement's device.
        covariance: a `ReverseCovariance` that knows Cov[x_0|x_t] (Analytic of any structure, Head, LearnedRange, PiGDM,
            ExactCovariance, Jacobian; Lanczos, whose `steps` are products with S then), or a `NetworkJacobian`.
        measurement: y, A and the noise.
        guidance: "I" takes a vector-Jacobian product of the network, a step costs about three evaluations and the
            memory of a training step; "II" takes Σ for it, and with a dct covariance is the better one at ten steps
            or fewer.
        solver: "auto" (closed form where Σ and A share a basis, else conjugate gradients; through a decoder no more
            than 20 products, to 1 %), "cg", or `ConjugateGradients(tolerance, iterations)`.
        below: σ/α below which the covariance is used; above, ΠGDM's constant is (as arXiv:2402.02149 does). None:
            everywhere.
        checkpointing: whether the network recomputes its activations in the backward pass of type I: less memory, and
            a third more time; for networks of diffusers.
        damped: whether type I's correction is shortened where, by the network's own derivative, it would overshoot the
            measurement (Σ too small there); False: as published, which diverges with covariances that are.

    Attributes: `base`, the denoiser that this one is made of; `measurement`.
    Raises InputError for a covariance that says nothing of x_0 or is of another model, and a measurement that does not
    fit the model or is not linear.
    """

    def __init__(
        self,
        denoiser: Denoiser,
        covariance: ReverseCovariance | NetworkJacobian,
        measurement: Measurement,
        guidance: Guidance = "I",
        solver: Literal["auto", "cg"] | ConjugateGradients = "auto",
        below: float | None = None,
        checkpointing: bool = False,
        damped: bool = True,
    ) -> None:
        check_denoiser(denoiser, "a measurement's denoiser")
        self.guidance_type: Guidance = checks.one_of("guidance", guidance, ("I", "II"))
        self.measurement = checks.instance("measurement", measurement, Measurement, "a dv.Measurement")
        self.given_covariance, self.solver = covariance, _solver(solver, covariance, self.measurement)
        for name, value in (("checkpointing", checkpointing), ("damped", damped)):
            checks.refuse(not checks.is_bool(value), f"{name}={checks.brief(value)} must be True or False.")
        self.damped = bool(damped)
        self.below = None if below is None else checks.positive("below", below, "a positive σ/α, or None")
        base = denoiser
        if not isinstance(covariance, NetworkJacobian):
            check_knows_x_0(check_covariance(covariance))
            base = covariance.prepare(denoiser)
            covariance.check(base, [])
        self.base = base
        self.exact = base.exact
        self.__dict__.update({name: value for name, value in vars(base).items() if name not in self.__dict__})
        _check_fit(self, self.measurement)
        self._follows = _following(covariance, self.below)
        self.checkpointing = _checkpointing(base.network, checkpointing)
        self._systems = Systems(self.measurement, self.shape, self._own_dtype)
        self._counts = SolveCounts()
        self._said_cost = False

    # ---- the posterior ----------------------------------------------------------------------------------------

    def __call__(self, x_t: torch.Tensor, n: Place, condition: Any = None) -> Posterior:
        """The posterior at x_t given y as well: E[x_0|x_t, y], and the ε̂ of that mean; see `Denoiser`.

        `condition`: the model's own, or `rows_condition`. Raises NumericalError where the mean is not finite.
        """
        checks.instance("x_t", x_t, torch.Tensor, "a tensor of floats")
        rows, own = taken_apart(condition, len(x_t), self.measurement.rows)
        groups = level_groups(self.schedule, n, len(x_t))
        if len(groups) == 1:
            return self._at(x_t, groups[0][0], rows, own)
        parts = [(part, self._at(x_t[part], level, *of_part(part, rows, own))) for level, part in groups]
        return merged(parts, len(x_t))

    def _at(self, x_t: torch.Tensor, level: NoiseLevel, rows: torch.Tensor, condition: Any) -> Posterior:
        type_1 = self.guidance_type == "I" and level.alpha > 0.0  # without signal J is 0, and Σ the data's own
        with self._evaluated(x_t, level, condition, type_1) as (x, posterior):
            linear, r = self._residual(posterior, rows)
            covariance = self._covariance(posterior, level, x)
            u = self._solved(covariance, linear, r, level).u
            known, back = posterior.mean.detach(), linear.adjoint(u)
            if type_1:
                moved = (level.sigma**2 / level.alpha) * self._pull(posterior.mean, x, back, level)
                mean = conditioned_mean_1(known, moved, self._length(linear, r, u, moved))
            else:
                mean = conditioned_mean_2(known, covariance, back)
        _check_finite(mean, "E[x_0|x_t, y]", level)
        if self.clip is not None:
            mean = mean.clamp(*self.clip)
        eps = eps_of_mean(x.detach(), mean, level.alpha, level.sigma)
        return replace(posterior, mean=mean.to(x_t), eps=eps.to(x_t)).detached()

    @contextmanager
    def _evaluated(
        self, x_t: torch.Tensor, n: Place, condition: Any, graph: bool
    ) -> Iterator[tuple[torch.Tensor, Posterior]]:
        """x_t, and the model's own posterior there, with a graph from one to the other if it is wanted; in whatever
        mode the caller is."""
        graph = graph or isinstance(self.given_covariance, NetworkJacobian)
        with torch.inference_mode(False), torch.set_grad_enabled(graph), self.checkpointing():
            # In float32 or better: half precision is too coarse to solve with.
            x = x_t.detach().to(torch.promote_types(x_t.dtype, torch.float32), copy=True).requires_grad_(graph)
            own = None if condition is None else map_leaves(lambda leaf: leaf.clone(), as_nest(condition))
            posterior = self.base(x, n, own)
            # An A with parameters (a layer) would have the graph of every product kept, and autocast would round them.
            with torch.no_grad(), without_autocast(x.device):
                yield x, posterior

    def _residual(self, posterior: Posterior, rows: torch.Tensor) -> tuple[LinearMap, torch.Tensor]:
        """Of a batch: A (at x̂_0, if through a decoder), and y − A x̂_0 with 0 where nothing was measured."""
        mean = posterior.mean.detach()
        y = self.measurement.y[rows.to(self.measurement.y.device)].to(mean)
        value, linear = self._systems.at_mean(mean)
        return linear, torch.where(self._systems.seen, y - value, 0.0)

    def _covariance(self, posterior: Posterior, level: NoiseLevel, x: torch.Tensor) -> Any:
        """Σ of the batch: a `StructuredCovariance`, or a `NetworkCovariance`."""
        if isinstance(self._follows, NetworkJacobian):
            return NetworkCovariance(posterior.mean, x, level)
        return self._follows.posterior_covariance(posterior.detached(), level, self.schedule)

    def _solved(self, covariance: Any, linear: LinearMap, r: torch.Tensor, level: NoiseLevel) -> Solution:
        """S⁻¹ r, counted."""
        _check_finite(r, "y − A x̂_0", level)
        found = self._systems.of(covariance, linear).solve(r, self.solver)
        _check_finite(found.u, "S⁻¹ (y − A x̂_0)", level)
        return self.counted(found)

    def counted(self, found: Solution) -> Solution:
        """A solution, once it is in what `report` tells."""
        return self._counts.counted(found)

    def _pull(self, mean: torch.Tensor, x: torch.Tensor, back: torch.Tensor, level: NoiseLevel) -> torch.Tensor:
        """Jᵀ times `back`, detached."""
        checks.refuse(
            not mean.requires_grad,
            'the network cannot be differentiated (its output has no gradient), which guidance="I" needs; take '
            'guidance="II", or a network that does not work under no_grad.',
        )
        with failing(self.network, x, lambda: f"in the backward pass at {level.name}, in a batch of {len(x)}"):
            return torch.autograd.grad(mean, x, back)[0]

    def _length(self, linear: LinearMap, r: torch.Tensor, u: torch.Tensor, moved: torch.Tensor) -> torch.Tensor | float:
        """How much of type I's correction is taken, (B, 1, …)."""
        if not self.damped:
            return 1.0
        return each(step_length(r, u, linear.apply(moved) + self.measurement.noise.times(u)), moved)

    # ---- how well it explains the measurement ------------------------------------------------------------------

    def residual(self, x_t: torch.Tensor, n: Place, condition: Any = None) -> torch.Tensor:
        """rᵀ S⁻¹ r over the number of elements of y that A sees, (B,) float64, r = y − A x̂_0.

        Its mean over x_t ~ q(x_t|x_0) of the measured images is 1 where the covariance is right: above, it is too
        small.
        """
        return self._of_groups(x_t, n, condition, self._chi_square)

    def _chi_square(self, r: torch.Tensor, covariance: Any, linear: LinearMap, level: NoiseLevel) -> torch.Tensor:
        u = self._solved(covariance, linear, r, level).u
        return dot(r, u) / int(self._systems.seen.sum())

    def log_likelihood(self, x_t: torch.Tensor, n: Place, condition: Any = None) -> torch.Tensor:
        """log N(y; A x̂_0, S) of the elements that A sees, (B,) nats, float64: of p(y|x_t), for y of up to 4,096
        elements (S is made and factored)."""
        seen = int(self._systems.seen.sum())
        checks.refuse(
            seen > _MOST_ELEMENTS,
            f"log_likelihood factors S, and y has {seen} elements; at most {_MOST_ELEMENTS} are expected: use "
            "residual.",
        )
        return self._of_groups(x_t, n, condition, self._log_density)

    def _log_density(self, r: torch.Tensor, covariance: Any, linear: LinearMap, level: NoiseLevel) -> torch.Tensor:
        seen = r[:, self._systems.seen].double()
        factor, bad = torch.linalg.cholesky_ex(self._systems.of(covariance, linear).dense(r))
        if bool(bad.any()):
            raise NumericalError(
                f"S is not positive at {level.name}, so that y has no density there; measure with noise above 0, or "
                "take a covariance that is positive."
            )
        quadratic = torch.linalg.solve_triangular(factor, seen[..., None], upper=False).square().sum((1, 2))
        log_det = 2.0 * factor.diagonal(dim1=1, dim2=2).log().sum(1)
        density: torch.Tensor = -0.5 * (quadratic + log_det + seen.shape[1] * math.log(2.0 * math.pi))
        return density

    def _of_groups(self, x_t: torch.Tensor, n: Place, condition: Any, of: Callable[..., torch.Tensor]) -> torch.Tensor:
        checks.instance("x_t", x_t, torch.Tensor, "a tensor of floats")
        rows, of_model = taken_apart(condition, len(x_t), self.measurement.rows)
        found = torch.zeros(len(x_t), dtype=torch.float64, device=x_t.device)
        for level, part in level_groups(self.schedule, n, len(x_t)):
            own = of_part(part, rows, of_model)
            with self._evaluated(x_t[part], level, own[1], False) as (x, posterior):
                linear, r = self._residual(posterior, own[0])
                found[part] = of(r, self._covariance(posterior, level, x), linear, level).detach()
        return found

    def posterior_noise(self) -> ReverseCovariance:
        """λ² I + γ² Cov[x_0|x_t, y], to be drawn in a sampler's steps: `Sampler(den, den.posterior_noise(), …)`."""
        return PosteriorNoise(self)

    def system_at(self, posterior: Posterior, level: NoiseLevel) -> tuple[StructuredCovariance, System]:
        """Σ and S of a batch, from its posterior (this one's or the model's own)."""
        known = self._covariance(posterior, level, posterior.mean)
        return known, self._systems.of(known, self.measurement.map_of(self.shape))

    # ---- which measurement goes with which image ----------------------------------------------------------------

    def rows_condition(self, rows: Sequence[int] | torch.Tensor, condition: Any = None) -> dict[str, Any]:
        """What to call this denoiser with, as the condition, for images of these rows of y.

        `condition`: the model's own, one for each image.
        """
        return as_condition(rows, condition)

    def condition_of(self, images: Sequence[int], condition: Any) -> Any:
        if has_rows(condition):
            return condition
        return as_condition([i % self.measurement.rows for i in images], condition)

    # ---- what a denoiser is asked -------------------------------------------------------------------------------

    def identity(self, beside: ModelIdentity | None = None, keep: bool = False) -> ModelIdentity:
        """That of the model itself: a table that fits it fits here too."""
        return self.base.identity(beside, keep)

    @property
    def fingerprint(self) -> str | None:
        return self.base.fingerprint

    def conditioned_on(self) -> dict[str, Any]:
        return {
            "measurement": self.measurement.digest,
            "covariance": self.given_covariance.identity(),
            "guidance": self.guidance_type,
            "below": self.below,
            "damped": self.damped,
            "solver": None if self.solver is None else str(self.solver),
        }

    def with_guidance(self, scale: float, unconditional: Any = None) -> ConditionedDenoiser:
        return self._remade(self.base.with_guidance(scale, unconditional))

    def with_classifier(self, classifier: Callable[..., Any], scale: float = 1.0) -> ConditionedDenoiser:
        return self._remade(self.base.with_classifier(classifier, scale))

    def with_features(self, module: str | None = None) -> ConditionedDenoiser:
        return self._remade(self.base.with_features(module))

    def with_jacobian(self, probes: Probes | None = None, derivative: Derivative = "forward") -> ConditionedDenoiser:
        """The same denoiser, whose posteriors hold products with the derivative of the model's own mean."""
        return self._remade(self.base.with_jacobian(probes, derivative))

    def _remade(self, base: Denoiser) -> ConditionedDenoiser:
        if not isinstance(self.given_covariance, NetworkJacobian):
            self.given_covariance.check(base, [])
        other = copy.copy(self)
        other.__dict__.update({name: value for name, value in vars(base).items() if name in vars(self.base)})
        other.base = base
        return other

    @property
    def _own_dtype(self) -> torch.dtype:
        """What images are in."""
        return self.measurement.y.dtype if self.measurement.y.dtype == torch.float64 else torch.float32

    # ---- what is reported -----------------------------------------------------------------------------------------

    def counts(self) -> list[int]:
        """Since the last report: solves of S u = r, those that did not converge, those that met a direction in which S
        is not positive, and products with S."""
        return self._counts.new

    def add_counts(self, counts: list[int]) -> None:
        self._counts.add(counts)

    def report(self) -> None:
        solves, open_, negative, products = self._counts.report()
        if self.measurement.decoder is not None and not self._said_cost and solves:
            self._said_cost = True
            warn(
                f"through the decoder, {solves} solves of S u = y − A D(x̂_0) took {products / solves:.1f} products "
                "each, for every image and step so many passes back through it, and as many forward with derivatives; "
                "solver=dv.restoration.ConjugateGradients(tolerance, iterations) says how many are wanted."
            )
        if open_ or negative:
            more = _MORE if isinstance(self.solver, CutLanczos) else "dv.restoration.ConjugateGradients"
            warn(
                f"of {solves} solves of S u = r, {open_} did not reach their tolerance (allow more iterations, "
                f"{more}) and {negative} met a direction in which S is not positive (what "
                "was found until there was used)."
            )


def _check_finite(found: torch.Tensor, name: str, level: NoiseLevel) -> None:
    if not bool(torch.isfinite(found).all()):
        raise NumericalError(
            f"{name} is not finite at {level.name}; check the network, and the covariance and the measurement's noise "
            "there."
        )


_MORE = "dv.NetworkJacobian(iterations), dv.Lanczos(steps)"


# ---- what is refused ------------------------------------------------------------------------------------------------


def _solver(solver: Any, covariance: Any, measurement: Measurement) -> Solver | None:
    """What solves where it is not left to the system."""
    if isinstance(covariance, NetworkJacobian):
        return CutLanczos(covariance.iterations, measurement.noise.least)
    if isinstance(covariance, ReverseCovariance) and not covariance.diagonal and solver == "auto":
        return CutLanczos(covariance.products, measurement.noise.least)
    if isinstance(solver, ConjugateGradients):
        return solver
    checks.one_of("solver", solver, ("auto", "cg"), "or a dv.restoration.ConjugateGradients")
    return ConjugateGradients() if solver == "cg" else None


def _following(covariance: ReverseCovariance | NetworkJacobian, below: float | None) -> Any:
    """What gives Σ at a level."""
    jacobian = isinstance(covariance, NetworkJacobian)
    checks.refuse(jacobian and below is not None, "below= is for covariances of a table; leave it out.")
    return covariance if below is None or isinstance(covariance, NetworkJacobian) else ConstantAbove(covariance, below)


def _check_fit(denoiser: ConditionedDenoiser, measurement: Measurement) -> None:
    here, there = measurement.y.device, denoiser.device
    checks.refuse(
        here.type != there.type,
        f"y is on {here}, but the model is on {there}; move it: measurement.to({str(there)!r}).",
    )
    half = measurement.y.dtype in (torch.float16, torch.bfloat16)
    checks.refuse(half, f"y is {measurement.y.dtype}, too coarse to solve with; make it float32.")
    if measurement.decoder is not None:
        checks.refuse(
            denoiser.guidance_type == "II",
            'guidance="II" of a measurement through a decoder is not known to work; take guidance="I".',
        )


def _checkpointing(network: Any, wanted: bool) -> Callable[[], Any]:
    """A context in which the network recomputes its activations."""
    return recomputing(network) if wanted else unchanged
