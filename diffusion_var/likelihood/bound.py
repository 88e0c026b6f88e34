"""Likelihood in bits/dim: the variational upper bound of −log₂ p(x_0) for any reverse covariance and any steps [E10].

The terms and their equations are `terms`, the last of them `decoder`, the pass over images is `run`; a `Bound` puts the
parts together as a `Sampler` does for images. `bits_per_dim` is for quantised (8-bit) images, `density_bound` for
continuous data and latents.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from .. import checks, parallel
from ..covariance.reverse import ReverseCovariance, StepCovariances, check_covariance, report_of_all
from ..data.fixed_images import FixedImages
from ..models.conditions import as_conditions
from ..models.denoiser import Denoiser, check_denoiser
from ..process.kernel import ClippedEps, reverse_kernels
from ..process.level import NoiseLevel
from ..process.steps import describe, resolve
from ..resume import Checkpoint
from .decoder import Range, levels_of, make_decoder
from .decoder_variance import DecoderVariance
from .paths import decoder_of_path
from .result import LikelihoodBound
from .run import FORM, BoundRun
from .terms import BoundTerms, Evaluation, check_noise_of_bound


class Bound:
    """Bounds the likelihood of images under a denoiser with a reverse covariance; the sibling of `Sampler`.

    Args:
        denoiser: the model.
        covariance: any reverse covariance that is nowhere zero.
        steps: number of steps K (even from 1 to N; K = 1 is [N]), the indices, ascending, e.g. of `steps.optimal`, or
            noise levels, the noisiest first.
        eta: 0 < η ≤ 1; 1 by default.
        decoder_variance: of the step to clean data, from the least noisy level t. None: what an optimal path brings
            with it, else "beta_tilde". "beta_tilde": β̃ of the step 2 → 1, as in the published codes; "respaced": β̃ of
            the step before the last, Improved DDPM's default; "sigma2": σ_t²/α_t²; "table": the table's v_t of an
            `Analytic` covariance, in its structure where that is diagonal in pixels, else isotropic; "isotropic" and
            "pixel": the table's, whatever the structure; "covariance": the reverse covariance's own (a head's, a
            learned range's; for images diagonal in pixels, for densities of any structure); or a number, or an array
            that broadcasts to an image, in squared data units.
        levels: number of values a pixel can have; None: a density of continuous data.
        data_range: the values of the lowest and highest level; None: the denoiser's data range.
        clipped_eps: see `ReverseKernel`.
        tau: instead of η, τ > 0 [E12].

    Raises InputError for arguments that do not fit together, η = 0, and a covariance that does not fit.
    """

    def __init__(
        self,
        denoiser: Denoiser,
        covariance: ReverseCovariance,
        steps: int | Sequence[int] | Sequence[NoiseLevel] = 25,
        eta: float | None = None,
        decoder_variance: DecoderVariance | float | npt.ArrayLike | None = None,
        *,
        levels: int | None = 256,
        data_range: Range | None = None,
        clipped_eps: ClippedEps | None = None,
        tau: float | None = None,
    ) -> None:
        check_denoiser(denoiser, "a likelihood bound")
        self.denoiser, self.covariance = check_covariance(covariance).prepare(denoiser), covariance
        self.levels = None if levels is None else checks.whole("levels", levels, 2, hint=_LEVELS)
        self.grid = common_range(denoiser, data_range)
        checks.refuse(self.levels is not None and self.grid is None, _NO_RANGE)
        self.steps = resolve(denoiser.schedule, steps)
        self.kernels = reverse_kernels(denoiser.schedule, self.steps, eta, clipped_eps, tau)
        check_noise_of_bound(self.kernels)
        covariance.check(self.denoiser, self.kernels)
        choice = decoder_of_path(steps) if decoder_variance is None else decoder_variance
        decoder = make_decoder(self.denoiser, covariance, self.kernels, choice, self.levels, self.grid)
        *middle, last = [*enumerate(self.kernels, start=1)]
        evaluations = [Evaluation(kernel.level_t, ((column, kernel),)) for column, kernel in middle]
        evaluations.append(Evaluation(last[1].level_t, decoders=((*last, decoder),)))
        self.terms = BoundTerms(self.denoiser, evaluations, StepCovariances(covariance))
        self.settings: dict[str, Any] = {
            "steps": describe(self.steps),
            **noise_settings(self.kernels[0].eta, self.kernels[0].tau),
            "clipped_eps": clipped_eps,
            "covariance": covariance.identity(),
            "decoder_variance": plain_variance(choice),
            "levels": self.levels,
            "data_range": None if self.grid is None else list(self.grid),
        }

    def evaluate(
        self,
        images: Any,
        seed: int = 0,
        draws: int = 1,
        step_samples: int | None = None,
        *,
        conditions: Any = None,
        batch_size: int = 64,
        checkpoint: str | Path | None = None,
        progress: bool = False,
    ) -> LikelihoodBound:
        """The bound on images; see `bits_per_dim` for the arguments and errors."""
        draws = checks.whole("draws", draws, least=1)
        if step_samples is not None:
            step_samples = checks.whole("step_samples", step_samples, least=1)
            step_samples = None if step_samples >= len(self.kernels) - 1 else step_samples  # every step it is
        source = FixedImages(images, self.denoiser.shape, self.grid)
        run = BoundRun(
            self.terms,
            source,
            as_conditions(conditions, len(source)),
            columns=len(self.kernels) + 1,
            prior=self.kernels[0].level_t,
            seed=checks.seed(seed),
            draws=draws,
            batch_size=checks.whole("batch_size", batch_size, least=1),
            step_samples=step_samples,
        )
        settings = {**self.settings, "step_samples": step_samples, "seed": run.seed, "draws": draws}
        with parallel.sharing("Bound.evaluate"):
            finish(run, source.scan(level_check(self.levels, self.grid)), settings, checkpoint, progress)
        return self._result(run, settings)

    def _result(self, run: BoundRun, settings: dict[str, Any]) -> LikelihoodBound:
        bits = 1.0 / (math.log(2.0) * math.prod(self.denoiser.shape))
        mean, error = run.moments.mean * bits, run.moments.standard_error * bits
        return LikelihoodBound(
            kind="density" if self.levels is None else "discrete",
            value=float(mean[-1]),
            standard_error=float(error[-1]),
            noise_error=run.noise_error * bits,
            per_step=mean[:-1],
            per_step_error=error[:-1],
            steps=tuple(self.steps),  # type: ignore[arg-type]
            images=run.moments.count,
            draws=run.draws,
            evaluations=run.moments.count * run.per_image,
            settings={k: v for k, v in settings.items() if k not in ("steps", "draws")},
        )


def bits_per_dim(
    denoiser: Denoiser,
    covariance: ReverseCovariance,
    images: Any,
    steps: int | Sequence[int] | Sequence[NoiseLevel] = 25,
    seed: int = 0,
    *,
    levels: int = 256,
    data_range: Range | None = None,
    eta: float | None = None,
    tau: float | None = None,
    decoder_variance: DecoderVariance | float | npt.ArrayLike | None = None,
    draws: int = 1,
    step_samples: int | None = None,
    clipped_eps: ClippedEps | None = None,
    conditions: Any = None,
    batch_size: int = 64,
    checkpoint: str | Path | None = None,
    progress: bool = False,
) -> LikelihoodBound:
    """An upper bound on −log₂ P(image) per dimension, for quantised images ([E10]; DDPM eq. 5 and 13).

    Args:
        denoiser, covariance, steps, eta, tau, decoder_variance, levels, data_range, clipped_eps: see `Bound`.
        images: Dataset, tensor or array of (C, *spatial): uint8, or floats that lie on the levels. For an honest
            number, neither trained on nor part of the variance table's.
        seed: of every random number; the noise of image i, draw j and index t is the same for every method.
        draws: noise draws for each image; two or more tell the error of the noise from that of the images.
        step_samples: evaluate this many of the K − 1 steps for each image and draw, one from each of as many
            neighbouring groups, and the decoder: unbiased and cheap for large K, but noisier. None: all.
        conditions: None, one per image, or a `Conditions`.
        batch_size: network evaluations at once.
        checkpoint: file to resume from if it exists, and to write every 30 s and on any interruption.
        progress: a progress bar over network evaluations.

    Returns: a `LikelihoodBound`; `float()` of it is the value in bits/dim.
    Raises InputError for arguments that do not fit together, images that are not quantised or outside the range, η = 0
    and a covariance that is zero somewhere; NumericalError, naming the step, where a term is NaN or infinite.
    """
    checks.refuse(levels is None, f"levels=None must be a whole number of at least 2; {_LEVELS}.")
    how: dict[str, Any] = {"levels": levels, "data_range": data_range, "clipped_eps": clipped_eps, "tau": tau}
    run: dict[str, Any] = {"conditions": conditions, "batch_size": batch_size, "progress": progress}
    bound = Bound(denoiser, covariance, steps, eta, decoder_variance, **how)
    return bound.evaluate(images, seed, draws, step_samples, checkpoint=checkpoint, **run)


def density_bound(
    denoiser: Denoiser,
    covariance: ReverseCovariance,
    data: Any,
    steps: int | Sequence[int] | Sequence[NoiseLevel] = 25,
    seed: int = 0,
    *,
    eta: float | None = None,
    tau: float | None = None,
    decoder_variance: DecoderVariance | float | npt.ArrayLike | None = None,
    draws: int = 1,
    step_samples: int | None = None,
    clipped_eps: ClippedEps | None = None,
    conditions: Any = None,
    batch_size: int = 64,
    checkpoint: str | Path | None = None,
    progress: bool = False,
) -> LikelihoodBound:
    """An upper bound on −log₂ p(x_0) per dimension, p a density: for latents and other continuous data.

    As `bits_per_dim`, but the decoder is a Gaussian density and not discretised. The number depends on the data's unit
    and may be negative; it is not to be compared with bits/dim of 8-bit images. `decoder_variance` may also be
    "covariance": the reverse covariance's own, of any structure, in the step to clean data.
    """
    run: dict[str, Any] = {"conditions": conditions, "batch_size": batch_size, "progress": progress}
    bound = Bound(denoiser, covariance, steps, eta, decoder_variance, levels=None, clipped_eps=clipped_eps, tau=tau)
    return bound.evaluate(data, seed, draws, step_samples, checkpoint=checkpoint, **run)


def finish(
    run: BoundRun, scanned: str, settings: dict[str, Any], checkpoint: str | Path | None, progress: bool
) -> None:
    """Run to the end, in all processes of a shared work; `scanned` is the fingerprint of the images, `settings` what
    else a checkpoint must agree on, and the processes."""
    denoiser, conditions = run.terms.denoiser, run.conditions

    @cache
    def identity() -> dict[str, Any]:  # what tells the network takes time
        of_images = {"images": scanned, "conditions": None if conditions is None else conditions.fingerprint}
        return {**denoiser.identity().plain(), **settings, **of_images}

    with (
        parallel.sharing("the likelihood", lambda: {**identity(), "batch_size": run.batch_size}),
        Checkpoint(checkpoint, FORM, {} if checkpoint is None else identity()) as kept,
    ):
        run.finish(kept, progress)
        report_of_all(run.terms.covariances.covariance)


def level_check(levels: int | None, data_range: Range | None) -> _LevelCheck | None:
    """What looks at images for values that are none of the levels; None for continuous data."""
    return None if levels is None else _LevelCheck(levels, data_range)


class _LevelCheck:
    """Looks at chunks of images, in order, for values that are none of the levels."""

    def __init__(self, levels: int, data_range: Range | None) -> None:
        assert data_range is not None
        self.levels, self.data_range, self.seen = levels, data_range, 0

    def __call__(self, x: torch.Tensor) -> None:
        levels_of(x, self.levels, self.data_range, first=self.seen)
        self.seen += len(x)


def noise_settings(eta: float | None, tau: float | None) -> dict[str, float]:
    """The forward process as plain data: η, or τ where it is given."""
    return {"eta": float(eta)} if eta is not None else {"tau": float(tau or 0.0)}


def plain_variance(choice: Any) -> Any:
    """A `decoder_variance` as plain data: its name, a number, or of an array what tells it from others."""
    if isinstance(choice, str):
        return choice
    array = np.asarray(choice, dtype=np.float64)
    if array.ndim == 0:
        return float(array)
    digest = hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest()
    return {"shape": list(array.shape), "mean": float(array.mean()), "sha256": digest}


def common_range(denoiser: Denoiser, data_range: Range | None) -> Range | None:
    """The range given or the denoiser's own; InputError where they differ."""
    own, given = denoiser.data_range, checks.bounds("data_range", data_range)
    differ = own is not None and given is not None and own != given
    checks.refuse(differ, f"data_range={given} is not the denoiser's data range {own}; leave it out.")
    return given or own


_LEVELS = "256 for 8-bit images; for continuous data use dv.density_bound"
_NO_RANGE = (
    "this denoiser's data have no range (latents, or continuous data), so that they are no 8-bit images; use "
    "dv.density_bound, or pass data_range=(low, high) if they are."
)
