"""The whole covariance of each image, untrained, by products with the derivative of the mean: Σ = λ² I + γ² S.

S is the symmetric half of (σ²/α) J, which is Cov[x_0|x_t] where the mean is exact [E16]. arXiv:2605.22723 draws so, by
Lanczos steps from the noise. Here a table's own variances l = λ² + γ² v in the dct basis are taken for a preconditioner
(`krylov_covariance`): what is left to find is near the identity, and one step is the table's draw, scaled by what the
image's Σ has along it. And they say what to expect: a network's derivative, which is neither symmetric nor positive, is
drawn towards them by how far it is from both, and what is negative then is cut (`krylov`). That is not a detail: of a
network that predicts ε, S is (σ²/α²) (I − σ ∂ε̂/∂x_t), a small difference times a large number next to pure noise, where
the digits' network has 30 times the table's variance.

Measured with the exact mean of a mixture of photographs (16×16×3) and η = 0, from level to level: the divergence
KL(N(0, Σ) ‖ the draw's covariance) is 0.09 to 1.2 nats a dimension for the table's own draws, and 0.08 to 0.5, up to
0.1 and up to 0.03 for 1, 3 and 5 steps; without a table 3 steps leave 0.1 to 1.

A draw of few steps is not quite Gaussian, since M^{1/2} depends on z then; likelihoods are those of the Gaussian that
it is near to. They take as many products as they need, with a network for a look at few images; they are bounds where
J is symmetric, as an exact mean's is. Where a network's is not, every vector finds a slightly other Σ, and they are
estimates.
"""

from __future__ import annotations

import math
from typing import Any

import torch

from .. import checks
from ..errors import InputError, warn
from ..models.denoiser import Denoiser
from ..models.derivative import DERIVATIVES, Derivative
from ..models.posterior import Posterior
from ..process.kernel import ReverseKernel
from ..process.level import NoiseLevel
from ..process.linear import linear_mmse
from ..process.structure import Isotropic, Structure
from ..variance.table import VarianceTable
from .analytic import Analytic
from .krylov import Product
from .krylov_counts import PARTS, KrylovCounts
from .krylov_covariance import MOST_PRODUCTS, TOLERANCE, KrylovCovariance
from .level_signs import level_signs
from .reverse import ReverseCovariance, StructuredCovariance, image_shape, noisy, variance_tensor


class Lanczos(ReverseCovariance):
    """The optimal covariance of each image, whole, from Jacobian-vector products.

    Args:
        table: a measured table of the model, with the structure "dct", for few steps to be enough; None: none.
        steps: products an image and step, each for about the price of another evaluation. None of them comes with the
            mean: they begin at the noise, which is drawn when the mean is known.
        clamp: whether a network's derivative that is no covariance is made one: drawn towards the table, and negative
            directions cut at 0, and counted; False: negative directions are refused, and nothing is changed.
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
        self.derivative: Derivative = checks.one_of("derivative", derivative, DERIVATIVES)
        self._counts = KrylovCounts()

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
            structure, scale = plain.structure, torch.maximum(plain.variance, _LEAST * plain.variance.max())
        return KrylovCovariance(
            structure,
            scale,
            kernel,
            self._times(posterior),
            self.steps,
            self.clamp,
            lambda: self._signs(posterior, kernel.level_t),
            self._counts,
            expected=self.clamp and self.analytic is not None,
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
        common = level_signs(self.seed, "probes of a log-determinant", level, self.probes, 1, *image_shape(posterior))
        own = torch.where(posterior.eps < 0, -1.0, 1.0).to(posterior.mean)
        return common.to(own) * own

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
        *_, count, squares, _, _ = self._counts.total
        return math.sqrt(squares / count) / PARTS if count and self.probes > 1 else math.nan

    @property
    def weight(self) -> float:
        """How much of the draws so far was the derivative's own, and not the table's: mean p²/(p² + τ²) of `krylov`,
        1 where it is symmetric and positive; nan before there are any."""
        *_, spaces, weights = self._counts.total
        return weights / PARTS / spaces if spaces else math.nan

    def counts(self) -> list[int]:
        return self._counts.new

    def add_counts(self, counts: list[int]) -> None:
        self._counts.add(counts)

    def report(self) -> None:
        negative, total, unsolved, solves, log_dets, squares, spaces, weights = self._counts.report()
        if self.analytic is None and negative > _MANY * total:
            warn(
                f"of {total} eigenvalues of (σ²/α) J, {negative} were negative and cut at 0: the network's derivative "
                "is far from a covariance there; give a table, which such images are drawn towards."
            )
        if weights < _LITTLE * PARTS * spaces:
            warn(
                f"the network's derivative is so far from a covariance (not symmetric, or not positive) that the noise "
                f"of {self.name} was {1.0 - weights / PARTS / spaces:.0%} the table's own; take dv.Jacobian, "
                "whose bands average such errors out, or dv.Analytic."
            )
        if unsolved:
            warn(
                f"of {solves} solves with {self.name}, {unsolved} did not reach a residual of {TOLERANCE:g} in "
                f"{MOST_PRODUCTS} products, so that the likelihoods are not quite those of one Gaussian; give a table."
            )
        error = math.sqrt(squares / max(log_dets, 1)) / PARTS / math.log(2.0) / 2.0
        if error > _LOUD:
            warn(
                f"log-determinants by {self.probes} probes add {error:.2g} bits/dim of noise to the term of every "
                "image and step (their share of the bound's standard error); for less, take more probes."
            )

    # ---- what is refused ----------------------------------------------------------------------------------------

    def check(self, denoiser: Denoiser, kernels: list[ReverseKernel]) -> None:
        d = math.prod(denoiser.shape)
        checks.refuse(
            self.steps > d, f"Lanczos(steps={self.steps}) is more than the {d} dimensions of an image; take fewer."
        )
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


#: The least l, relative to the greatest; shares of cut values, weights and of λ², and bits/dim that are worth a word.
_LEAST, _MANY, _LITTLE, _DOMINATES, _LOUD = 1e-8, 0.05, 0.5, 0.99, 0.1
