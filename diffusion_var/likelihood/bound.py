"""Likelihood in bits/dim: the variational upper bound of −log₂ p(x_0) for any reverse covariance and any steps.

The terms and their equations are `bound_terms`, the last of them `decoder`; this module checks what is asked and puts
the parts together. `bits_per_dim` is for quantised (8-bit) images, `density_bound` for continuous data and latents.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from ..covariance.reverse import ReverseCovariance
from ..covariance.step_covariances import StepCovariances
from ..data.fixed_images import FixedImages
from ..errors import InputError
from ..models.conditions import as_conditions
from ..models.denoiser import Denoiser, check_range
from ..process.kernel import ClippedEps, check_clipped_eps, check_eta, reverse_kernels
from ..process.schedule import is_whole
from ..process.steps import resolve
from .decoder import DecoderVariance, Range, levels_of, make_decoder
from .result import LikelihoodBound
from .run import BoundRun, run_identity
from .terms import BoundTerms, Node, refuse_point_mass


def bits_per_dim(
    denoiser: Denoiser,
    covariance: ReverseCovariance,
    images: Any,
    steps: int | Sequence[int] = 25,
    seed: int = 0,
    levels: int = 256,
    data_range: Range | None = None,
    *,
    eta: float = 1.0,
    decoder_variance: DecoderVariance | float = "beta_tilde",
    draws: int = 1,
    step_samples: int | None = None,
    clipped_eps: ClippedEps | None = None,
    conditions: Any = None,
    batch_size: int = 64,
    checkpoint: str | Path | None = None,
    progress: bool = False,
) -> LikelihoodBound:
    """An upper bound on −log₂ P(image) per dimension, for quantised images (DESIGN §2.10; DDPM eq. 5 and 13).

    Args:
        denoiser: the model.
        covariance: any reverse covariance that is nowhere zero.
        images: Dataset, tensor or array of (C, H, W): uint8, or floats that lie on the levels. For an honest number,
            neither trained on nor part of the variance table's.
        steps: number of steps K (even from 1 to N; K = 1 is [N]), or the indices, e.g. of `steps.optimal`.
        seed: of every random number; the noise of image i, draw j and index t is the same for every method.
        levels: number of values a pixel can have; 256 for 8-bit images.
        data_range: the values of the lowest and highest level; None: the denoiser's data range.
        eta: 0 < η ≤ 1.
        decoder_variance: "beta_tilde" (β̃ of the step 2 → 1, as in the published codes), "isotropic" or "pixel" (the
            table's v of the smallest index; of an `Analytic` covariance), or a number in squared data units.
        draws: noise draws for each image; two or more tell the error of the noise from that of the images.
        step_samples: evaluate this many of the K − 1 steps for each image and draw, one from each of as many
            neighbouring groups, and the decoder: unbiased and cheap for large K, but noisier. None: all.
        clipped_eps: see `ReverseKernel`.
        conditions: None, one per image, or a `Conditions`.
        batch_size: network evaluations at once.
        checkpoint: file to resume from if it exists, and to write every 30 s and on any interruption.
        progress: a progress bar over network evaluations.

    Returns: a `LikelihoodBound`; `float()` of it is the value in bits/dim.
    Raises InputError for arguments that do not fit together, images that are not quantised or outside the range, η = 0
    and a covariance that is zero somewhere; NumericalError, naming the step, where a term is NaN or infinite.
    """
    if not is_whole(levels) or levels < 2:
        raise InputError(
            f"levels={levels!r} must be a whole number of at least 2: 256 for 8-bit images. For continuous data "
            "use dv.density_bound."
        )
    run = _Request(denoiser, covariance, steps, eta, clipped_eps, decoder_variance, seed, draws, step_samples)
    return run.bound(images, int(levels), data_range, conditions, batch_size, checkpoint, progress)


def density_bound(
    denoiser: Denoiser,
    covariance: ReverseCovariance,
    data: Any,
    steps: int | Sequence[int] = 25,
    seed: int = 0,
    *,
    eta: float = 1.0,
    decoder_variance: DecoderVariance | float = "beta_tilde",
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
    "covariance": the reverse covariance's own, of any structure, in the step to 0.
    """
    run = _Request(denoiser, covariance, steps, eta, clipped_eps, decoder_variance, seed, draws, step_samples)
    return run.bound(data, None, None, conditions, batch_size, checkpoint, progress)


class _Request:
    """What is asked for, checked; the images come with `bound`."""

    def __init__(
        self,
        denoiser: Denoiser,
        covariance: ReverseCovariance,
        steps: int | Sequence[int],
        eta: float,
        clipped_eps: ClippedEps | None,
        decoder_variance: DecoderVariance | float,
        seed: int,
        draws: int,
        step_samples: int | None,
    ) -> None:
        check_choice(denoiser, covariance)
        check_eta(eta)
        refuse_point_mass(eta)
        check_clipped_eps(clipped_eps)
        self.denoiser, self.covariance = covariance.prepare(denoiser), covariance
        self.steps = resolve(denoiser.schedule, steps)
        self.kernels = reverse_kernels(denoiser.schedule, self.steps, eta, clipped_eps)
        if any(kernel.lambda2 == 0.0 for kernel in self.kernels if kernel.s > 0):
            refuse_point_mass(0.0, eta)
        self.decoder_variance, self.seed = decoder_variance, check_seed(seed)
        self.draws = check_count("draws", draws)
        self.step_samples = None if step_samples is None else check_count("step_samples", step_samples)
        if self.step_samples is not None and self.step_samples >= len(self.steps) - 1:
            self.step_samples = None  # every step it is
        self.settings = {
            "steps": self.steps,
            "eta": float(eta),
            "clipped_eps": clipped_eps,
            "covariance": covariance.identity(),
            "decoder_variance": float(decoder_variance)
            if isinstance(decoder_variance, np.number)
            else decoder_variance,
            "step_samples": self.step_samples,
            "seed": self.seed,
            "draws": self.draws,
        }

    def bound(
        self,
        images: Any,
        levels: int | None,
        data_range: Range | None,
        conditions: Any,
        batch_size: int,
        checkpoint: str | Path | None,
        progress: bool,
    ) -> LikelihoodBound:
        """Evaluate the bound on images; `levels` None for continuous data."""
        grid = self.denoiser.data_range if levels is None else self._grid(data_range)
        covariances = StepCovariances(self.covariance, self.denoiser, self.kernels)
        decoder = make_decoder(self.denoiser, self.covariance, self.steps[0], self.decoder_variance, levels, grid)
        nodes = [Node(kernel.t, ((k + 1, kernel),)) for k, kernel in enumerate(self.kernels)]
        source = FixedImages(images, self.denoiser.shape, grid)
        given = as_conditions(conditions, len(source))
        run = BoundRun(
            BoundTerms(self.denoiser, nodes, covariances, decoder),
            source,
            given,
            columns=len(nodes) + 1,
            prior=self.steps[-1],
            seed=self.seed,
            draws=self.draws,
            batch_size=check_count("batch_size", batch_size),
            step_samples=self.step_samples,
        )
        fingerprint = source.scan(None if levels is None else _LevelCheck(levels, grid))
        settings = {**self.settings, "levels": levels, "data_range": None if grid is None else list(grid)}
        run.finish(checkpoint, run_identity(run, fingerprint, settings), progress)
        self.covariance.report()
        return self._result(run, "density" if levels is None else "discrete", settings)

    def _grid(self, data_range: Range | None) -> Range:
        """The values of the lowest and the highest level."""
        found = common_range(self.denoiser, data_range)
        if found is None:
            raise InputError(
                "this denoiser's data have no range (latents, or continuous data), so that they are no 8-bit images; "
                "use dv.density_bound, or pass data_range=(low, high) if they are."
            )
        return found

    def _result(self, run: BoundRun, kind: Literal["discrete", "density"], settings: dict[str, Any]) -> LikelihoodBound:
        bits = 1.0 / (math.log(2.0) * math.prod(self.denoiser.shape))
        mean, error = run.moments.mean * bits, run.moments.standard_error * bits
        return LikelihoodBound(
            kind=kind,
            value=float(mean[-1]),
            standard_error=float(error[-1]),
            noise_error=run.noise_error * bits,
            per_step=mean[:-1],
            per_step_error=error[:-1],
            steps=tuple(self.steps),
            images=run.moments.count,
            draws=self.draws,
            evaluations=run.moments.count * run.per_image,
            settings={k: v for k, v in settings.items() if k not in ("steps", "draws")},
        )


class _LevelCheck:
    """Looks at chunks of images, in order, for values that are none of the levels."""

    def __init__(self, levels: int, data_range: Range | None) -> None:
        assert data_range is not None
        self.levels, self.data_range, self.seen = levels, data_range, 0

    def __call__(self, x: torch.Tensor) -> None:
        levels_of(x, self.levels, self.data_range, first=self.seen)
        self.seen += len(x)


def common_range(denoiser: Denoiser, data_range: Range | None) -> Range | None:
    """The range given or the denoiser's own; InputError where they differ."""
    own, given = denoiser.data_range, check_range("data_range", data_range)
    if own is not None and given is not None and own != given:
        raise InputError(f"data_range={given} is not the denoiser's data range {own}; leave it out.")
    return given or own


def check_choice(denoiser: Any, covariance: Any) -> None:
    """Refuse what is no denoiser, or no reverse covariance."""
    if not isinstance(denoiser, Denoiser):
        raise InputError(f"denoiser must be a dv.Denoiser, but got {type(denoiser).__name__}; wrap the network in one.")
    if not isinstance(covariance, ReverseCovariance):
        raise InputError(
            f"covariance must be a reverse covariance, such as dv.Analytic(table) or dv.FixedLarge(), but got "
            f"{covariance if isinstance(covariance, type) else type(covariance).__name__}."
        )


def check_seed(seed: Any) -> int:
    """A whole number."""
    if isinstance(seed, (bool, np.bool_)) or not is_whole(seed):
        raise InputError(f"seed={seed!r} must be a whole number.")
    return int(seed)


def check_count(name: str, value: Any) -> int:
    """A whole number of at least 1."""
    if isinstance(value, (bool, np.bool_)) or not is_whole(value) or value < 1:
        raise InputError(f"{name}={value!r} must be a whole number of at least 1.")
    return int(value)
