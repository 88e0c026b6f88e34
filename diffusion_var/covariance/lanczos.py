"""The whole covariance of each image, untrained, by products with the derivative of the mean: Σ = λ² I + γ² S.

S is the symmetric half of (σ²/α) J, which is Cov[x_0|x_t] where the mean is exact [E16]; its negative directions, which
a network's derivative may have, are cut. Products with J are all that is known of it. With L = Bᵀ diag(√l) B from a
table's own variances l = λ² + γ² v, what is left to find is near the identity,

    M = L⁻¹ Σ L⁻¹ = λ² L⁻² + γ² L⁻¹ S L⁻¹

and a few Krylov steps know its functions (`krylov`; arXiv:2605.22723 has the idea, without a table):

    a draw          L M^{1/2} z        from the space of z itself: one step is the table's noise, scaled by what the
                                       image has of it along z, and each more bends it towards the image's own
    xᵀ Σ⁻¹ x        bᵀ M⁻¹ b,  b = L⁻¹ x
    log det Σ       2 log det L + tr log M,  the trace by probes of random signs (stochastic Lanczos quadrature,
                                       Ubaru, Chen and Saad 2017)
    tr Σ⁻¹          tr L⁻² + tr L⁻² (M⁻¹ − I),  with the same probes and spaces

Draws take `steps` products. The others are sums that have to be right, and go on until they are (a residual of 10⁻³, or
64 products): with a network they are for a look at few images. A draw of few steps is not quite Gaussian, since M^{1/2}
depends on z then; likelihoods are those of the Gaussian that it is near to. They are bounds where J is symmetric, as an
exact mean's is; where a network's is not, every vector finds a slightly other Σ, and they are estimates.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch

from .. import checks
from ..errors import InputError, NumericalError, warn
from ..models.denoiser import Denoiser
from ..models.derivative import Derivative
from ..models.posterior import Posterior
from ..process.kernel import ReverseKernel
from ..process.level import NoiseLevel
from ..process.linear import linear_mmse
from ..process.structure import Isotropic, Structure
from ..randomness import generator
from ..variance.table import VarianceTable
from .analytic import Analytic
from .krylov import KrylovSpace, Product
from .reverse import ReverseCovariance, StructuredCovariance, image_shape, noisy, variance_tensor


class LanczosCounts:
    """What the spaces of a run came to, in numbers that add up: eigenvalues cut, of how many; solves that did not
    converge, of how many; log-determinants, and their squared errors, in (1e-6 nats a dimension)²."""

    def __init__(self) -> None:
        self._counted, self._reported = torch.zeros(6, dtype=torch.int64), [0] * 6

    def add(self, counts: torch.Tensor) -> None:
        """Integers, (6,); they stay on their device, so that no step waits for them."""
        self._counted = self._counted.to(counts.device) + counts

    def of_space(self, space: KrylovSpace) -> None:
        """The eigenvalues of a space."""
        self.add(_six(space.cut.sum(), space.counted.sum()))

    def of_solve(self, space: KrylovSpace) -> None:
        """A space that was to solve something."""
        self.of_space(space)
        self.add(_six(0, 0, space.open(TOLERANCE).sum(), len(space.size)))

    def of_log_det(self, error: torch.Tensor, d: int) -> None:
        """The standard errors of log-determinants, (B,) nats."""
        squares = (error / d * _PER_NAT).square().nan_to_num(0.0, 0.0).sum().round().long()
        self.add(_six(0, 0, 0, 0, len(error), squares))

    @property
    def total(self) -> list[int]:
        """Since they were made."""
        return [int(count) for count in self._counted]

    @property
    def new(self) -> list[int]:
        """Since they were last reported."""
        return [now - before for now, before in zip(self.total, self._reported, strict=True)]

    def report(self) -> list[int]:
        """The new ones, which are old from now on."""
        found, self._reported = self.new, self.total
        return found


@dataclass(frozen=True)
class LanczosCovariance(StructuredCovariance):
    """λ² I + γ² S of a batch, by products; `structure` and `variance` are those of L² alone.

    Attributes:
        kernel: the step.
        times: S's products, (σ²/α) J x of (B, C, *spatial).
        steps: products that a draw takes.
        clamp: whether negative directions of S are cut, else refused.
        signs: probes of log det Σ, (P, B, C, *spatial) coefficients of ±1.
        counts: where what was cut is counted.
        most: no variance is above it; then L is a number.
    """

    diagonal = False

    kernel: ReverseKernel
    times: Product
    steps: int
    clamp: bool
    signs: Callable[[], torch.Tensor]
    counts: LanczosCounts
    most: float | None = None

    def colour(self, noise: torch.Tensor) -> torch.Tensor:
        """About Σ^{1/2} noise: L M^{1/2} noise, in `steps` products."""
        space = self._space(self.structure.forward(noise)).grow(self.steps)
        self.counts.of_space(self._sound(space))
        return self.structure.inverse(self.variance.sqrt() * space.times(torch.sqrt))

    def matvec(self, x: torch.Tensor) -> torch.Tensor:
        """Σ x, with (σ²/α) J itself for S: a product with one vector can be neither made symmetric nor cut."""
        return self.kernel.lambda2 * x + self.kernel.gain**2 * self.times(x)

    def solve(self, x: torch.Tensor) -> torch.Tensor:
        """Σ⁻¹ x, (B, C, *spatial)."""
        space = self._solved(self.structure.forward(x) / self.variance.sqrt())
        return self.structure.inverse(space.times(torch.reciprocal) / self.variance.sqrt())

    def quadratic(self, x: torch.Tensor) -> torch.Tensor:
        """xᵀ Σ⁻¹ x of each image, (B,) float64."""
        return self._solved(self.structure.forward(x) / self.variance.sqrt()).form(torch.reciprocal)

    def log_det(self) -> torch.Tensor:
        """log det Σ in nats, (B,) float64, about as well as `log_det_error` says."""
        found, error, _ = self._traces
        self.counts.of_log_det(error, self.structure.d)
        return found

    @property
    def log_det_error(self) -> torch.Tensor:
        """The standard error of `log_det` of each image, (B,) nats, from the spread of its probes; nan of one probe."""
        return self._traces[1]

    def inverse_trace(self) -> torch.Tensor:
        """tr Σ⁻¹, (B,) float64, by the probes of `log_det`."""
        return self._traces[2]

    def capped(self, limit: float) -> StructuredCovariance:
        """No eigenvalue above `limit`, and so no pixel's variance: by spaces without the table, in which M is Σ."""
        structure = Isotropic(self.structure.shape)
        one = self.variance.new_tensor(limit)
        own = (self.kernel, self.times, self.steps, self.clamp, self.signs, self.counts)
        return LanczosCovariance(structure, one, *own, most=1.0)

    # ---- M's spaces -----------------------------------------------------------------------------------------------

    def _space(self, start: torch.Tensor) -> KrylovSpace:
        """That of coefficients, (B, C, *spatial)."""
        root = self.variance.sqrt()

        def product(v: torch.Tensor) -> torch.Tensor:
            return self.kernel.gain**2 * self.structure.forward(self.times(self.structure.inverse(v / root))) / root

        return KrylovSpace(start, self.kernel.lambda2 / self.variance, product, self.most)

    def _solved(self, start: torch.Tensor) -> KrylovSpace:
        """One in which M x = start is solved."""
        space, room = self._space(start), min(MOST_PRODUCTS, self.structure.d)
        while space.columns < room:
            space.grow(min(_AT_ONCE, room - space.columns))
            if not bool(space.open(TOLERANCE).any()):
                break
        self.counts.of_solve(self._sound(space))
        return space

    @cached_property
    def _traces(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """log det Σ, its standard error, and tr Σ⁻¹, (B,) float64 each."""
        logs, traces, inverse = [], [], 1.0 / self.variance.double()
        for z in self.signs():
            space = self._solved(z)
            logs.append(space.form(torch.log))
            more = space.times(torch.reciprocal).double() - z
            traces.append((z * inverse * more).flatten(1).sum(1))
        found, count = torch.stack(logs), len(logs)
        error = found.std(0) / math.sqrt(count) if count > 1 else torch.full_like(found[0], math.nan)
        log_det = self.structure.log_det(self.variance) + found.mean(0)
        return log_det, error, self.structure.inverse_trace(self.variance) + torch.stack(traces).mean(0)

    def _sound(self, space: KrylovSpace) -> KrylovSpace:
        """A space, refused if something had to be cut and nothing may be."""
        if not self.clamp and bool((space.cut > 0).any()):
            raise NumericalError(
                f"(σ²/α) J has negative directions in the step {self.kernel}, in {int((space.cut > 0).sum())} of "
                f"{len(space.size)} images, so that it is no covariance there; take clamp=True, which cuts them at 0."
            )
        return space


class Lanczos(ReverseCovariance):
    """The optimal covariance of each image, whole, from Jacobian-vector products.

    Args:
        table: a measured table of the model, with the structure "dct", for few steps to be enough; None: none.
        steps: products an image and step, each for about the price of another evaluation. None of them comes with the
            mean: they begin at the noise, which is drawn when the mean is known.
        clamp: whether negative directions of a network's derivative are cut at 0 (and counted), or refused.
        derivative: "forward", or "difference" where a layer of the network has no forward derivative.
        probes: of a log-determinant; its error falls with their root, and one probe does not know its error.
        seed: of the probes.

    Where x̂_0 is clipped and a step uses the network's own ε̂, the table's l is that of [E3], and Σ is λ² I + γ² S all
    the same. `final_noise_cap` is kept by cutting eigenvalues, without the table. Raises InputError for a table that is
    of lists or lacks the dct, one of another model, more steps than dimensions, and without a table for levels without
    signal; NumericalError, naming the step, for negative directions with clamp=False.
    """

    depends_on_image, diagonal = True, False

    def __init__(
        self,
        table: VarianceTable | None = None,
        steps: int = 3,
        clamp: bool = True,
        *,
        derivative: Derivative = "forward",
        probes: int = 2,
        seed: int = 0,
    ) -> None:
        if table is not None:
            checks.instance("table", table, VarianceTable, "a VarianceTable (VarianceTable.load(path)), or None")
        self.analytic = None if table is None else Analytic(table, structure="dct")
        lists = self.analytic is not None and self.analytic.table.shape is None
        checks.refuse(lists, "Lanczos needs a measured table (dv.estimate), but this is of lists; leave it out.")
        self.steps, self.probes = checks.whole("steps", steps, least=1), checks.whole("probes", probes, least=1)
        checks.refuse(not checks.is_bool(clamp), f"clamp={checks.brief(clamp)} must be True or False.")
        self.clamp, self.seed = bool(clamp), checks.seed(seed)
        self.derivative: Derivative = checks.one_of("derivative", derivative, ("forward", "difference"))
        self._counts = LanczosCounts()

    @property
    def products(self) -> int:  # type: ignore[override]
        return self.steps

    @property
    def name(self) -> str:
        return f"lanczos-{self.steps}" + ", no table" * (self.analytic is None)

    def identity(self) -> dict[str, Any]:
        own = {"steps": self.steps, "clamp": self.clamp, "derivative": self.derivative}
        of_table = None if self.analytic is None else self.analytic.table.digest
        return {"name": self.name, "table": of_table, **own, "probes": self.probes, "seed": self.seed}

    def prepare(self, denoiser: Denoiser) -> Denoiser:
        return denoiser.with_jacobian(None, self.derivative)

    def __call__(self, posterior: Posterior | None, kernel: ReverseKernel) -> StructuredCovariance:
        posterior = checks.given(posterior, f"{self.name} follows the image, so that it needs a posterior.")
        if self.analytic is None:
            _refuse_without_signal(self.name, kernel.level_t)
            structure: Structure = Isotropic(image_shape(posterior))
            scale = variance_tensor(_scale(kernel), posterior)
        else:
            plain = self.analytic(posterior, kernel)
            if kernel.level_t.alpha == 0.0:  # then Cov[x_0|x_t] is the data's own, for all images
                return plain
            structure, scale = plain.structure, plain.variance.clamp_min(_LEAST * float(plain.variance.max()))
        return LanczosCovariance(
            structure,
            scale,
            kernel,
            self._times(posterior),
            self.steps,
            self.clamp,
            lambda: self._signs(posterior, kernel.level_t),
            self._counts,
        )

    def _times(self, posterior: Posterior) -> Product:
        jacobian = posterior.jacobian
        if jacobian is None:
            raise InputError(
                f"{self.name} needs the mean's derivative, but this posterior has none; use covariance.prepare("
                "denoiser), as Sampler and bits_per_dim do."
            )
        dtype = posterior.mean.dtype
        return lambda x: jacobian.times(x.to(dtype)).to(x.dtype)

    def _signs(self, posterior: Posterior, level: NoiseLevel) -> torch.Tensor:
        """Probes of the level's and of each image's own, (P, B, C, *spatial): with one probe for all, the errors of all
        images would be the same one. Signs of the image's noise tell it from others wherever it stands in a batch."""
        place = round((level.log_snr + 1000.0) * 1e6)
        drawn = generator(self.seed, "probes of a log-determinant", place)
        common = 2.0 * drawn.integers(0, 2, (self.probes, 1, *posterior.mean.shape[1:])) - 1.0
        own = torch.where(posterior.eps < 0, -1.0, 1.0).to(posterior.mean)
        return torch.from_numpy(common).to(own) * own

    # ---- what is reported ---------------------------------------------------------------------------------------

    @property
    def cut(self) -> tuple[int, int]:
        """How many eigenvalues were negative and cut, and of how many, since it was made."""
        negative, total, *_ = self._counts.total
        return negative, total

    @property
    def log_det_error(self) -> float:
        """The standard error of its log-determinants so far, from the spread of their probes: root mean square, in nats
        a dimension; nan before there are any, and of one probe."""
        *_, count, squares = self._counts.total
        return math.sqrt(squares / count) / _PER_NAT if count and self.probes > 1 else math.nan

    def counts(self) -> list[int]:
        return self._counts.new

    def add_counts(self, counts: list[int]) -> None:
        self._counts.add(torch.tensor(counts))

    def report(self) -> None:
        negative, total, unsolved, solves, log_dets, squares = self._counts.report()
        if negative > _MANY * total:
            warn(
                f"of {total} eigenvalues of (σ²/α) J, {negative} were negative and cut at 0: the network's derivative "
                "is far from a covariance there; take the table's own, dv.Analytic."
            )
        if unsolved:
            warn(
                f"of {solves} solves with {self.name}, {unsolved} did not reach a residual of {TOLERANCE:g} in "
                f"{MOST_PRODUCTS} products, so that the likelihoods are not quite those of one Gaussian; give a table."
            )
        error = math.sqrt(squares / max(log_dets, 1)) / _PER_NAT / math.log(2.0) / 2.0
        if error > _LOUD:
            warn(
                f"log-determinants by {self.probes} probes add {error:.2g} bits/dim of noise to the term of every "
                "image and step (their share of the bound's standard error); for less, take more probes."
            )

    # ---- what is refused ----------------------------------------------------------------------------------------

    def check(self, denoiser: Denoiser, kernels: list[ReverseKernel]) -> None:
        d = math.prod(denoiser.shape)
        checks.refuse(self.steps > d, f"steps={self.steps} is more than the {d} dimensions of an image; take fewer.")
        if self.analytic is not None:
            self.analytic.check(denoiser, kernels)
        else:
            for kernel in noisy(kernels):
                _refuse_without_signal(self.name, kernel.level_t)
        shares = [kernel.lambda2 / self._mean_variance(kernel) for kernel in noisy(kernels)]
        if shares and min(shares) > _DOMINATES:
            warn(
                f"λ² is more than {_DOMINATES:.0%} of the noise of every step, so that what {self.name} says of the "
                "image hardly matters; take fewer steps, a smaller eta, or dv.Analytic, which costs no products."
            )

    def _mean_variance(self, kernel: ReverseKernel) -> float:
        """Of the table's noise, or what it can be for data of variance 1."""
        return _scale(kernel) if self.analytic is None else float(self.analytic.variance(kernel).mean())


def _scale(kernel: ReverseKernel) -> float:
    """λ² + γ² v of data of variance 1 [E5]: without a table, a scale for L, which draws do not depend on."""
    return kernel.lambda2 + kernel.gain**2 * float(linear_mmse(1.0, kernel.alpha_t, kernel.sigma_t))


def _refuse_without_signal(name: str, level: NoiseLevel) -> None:
    checks.refuse(
        level.alpha == 0.0,
        f"the mean's derivative says nothing at {level.name}, where x_t holds no signal, so that {name} has no "
        "covariance there; give a table, or start below it.",
    )


def _six(*counts: Any) -> torch.Tensor:
    """Counts as integers, (6,), 0 for those that are left out, on the device of those that are tensors."""
    device = next((count.device for count in counts if isinstance(count, torch.Tensor)), None)
    filled = [*counts, *[0] * (6 - len(counts))]
    return torch.stack([torch.as_tensor(count, dtype=torch.int64, device=device) for count in filled])


#: The residual that solves go to, relative to the start, in so many products at most, and so many between two looks.
TOLERANCE, MOST_PRODUCTS, _AT_ONCE = 1e-3, 64, 4
#: The least l, relative to the greatest; the share of cut values, of λ², and the bits/dim that are worth a word.
_LEAST, _MANY, _DOMINATES, _LOUD = 1e-8, 0.05, 0.99, 0.02
_PER_NAT = 1e6
