"""The sampler: from noise to images in K reverse steps, with any reverse covariance and any 0 ≤ η ≤ 1.

    x_N ~ N(0, prior_std² I)
    for t → s in the step list, then the smallest index → 0:
        x_s = mean of eq. (1) at the posterior  +  Σ^{1/2} noise     (no noise in the step to s = 0)

At the smallest s > 0 the noise may be capped so that E|noise| ≤ y/255 of the data range (Analytic-DPM,
arXiv:2201.06503, appendix F.2). η = 1 with β̃ or β is DDPM, η = 0 with no covariance is DDIM; the network may run
under autocast, the state is float32.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from ..covariance.reverse import ReverseCovariance, StructuredCovariance
from ..covariance.step_covariances import StepCovariances
from ..errors import InputError, NumericalError
from ..models.denoiser import Denoiser
from ..models.guidance import check_classes, condition_tensor
from ..models.posterior import Posterior
from ..process.kernel import ClippedEps, ReverseKernel, check_clipped_eps, check_eta, reverse_kernels
from ..process.steps import resolve
from .noise import ImageNoise


def noise_cap_variance(cap: float, data_range: tuple[float, float]) -> float:
    """The largest variance with E|noise| ≤ cap/255 of the data range: E|N(0, σ²)| = σ √(2/π)."""
    return math.pi / 2 * (cap / 255.0 * (data_range[1] - data_range[0])) ** 2


def cap_variance(cap: float | None, data_range: tuple[float, float] | None) -> float | None:
    """The largest variance of the last noise for a `final_noise_cap`, or None for no cap; InputError for others."""
    if cap is None:
        return None
    if not isinstance(cap, (int, float, np.number)) or not (math.isfinite(cap) and cap > 0):
        raise InputError(f"final_noise_cap={cap!r} must be a positive number of 255ths of the data range, or None.")
    if data_range is None:
        raise InputError(
            "final_noise_cap needs a data range, which is None (unbounded data, such as latents); leave the cap out."
        )
    return noise_cap_variance(cap, data_range)


class Sampler:
    """Draws images from a denoiser.

    Args:
        denoiser: the model.
        covariance: `FixedSmall()`, `FixedLarge()`, `Analytic(table, …)`, or another `ReverseCovariance`.
        steps: number of steps K (even from 1 to N; K = 1 is [N]), or the indices themselves, ascending.
        eta: 1 is DDPM, 0 is DDIM.
        final_noise_cap: y of "E|noise| ≤ y/255 of the data range" at the smallest s > 0; None: no cap. Published: 2 for
            DDPM on CIFAR10 (linear schedule) and CelebA, 1 elsewhere. Helps imperfect networks, harms near-exact ones.
        clipped_eps: see `ReverseKernel`.

    Raises InputError for unusable steps, η or cap, and for a covariance that does not fit the model or the steps.
    """

    def __init__(
        self,
        denoiser: Denoiser,
        covariance: ReverseCovariance,
        steps: int | Sequence[int],
        eta: float = 1.0,
        final_noise_cap: float | None = None,
        clipped_eps: ClippedEps | None = None,
    ) -> None:
        check_eta(eta)
        check_clipped_eps(clipped_eps)
        self.denoiser, self.covariance, self.eta = covariance.prepare(denoiser), covariance, eta
        self.steps = resolve(denoiser.schedule, steps)
        self.kernels = reverse_kernels(denoiser.schedule, self.steps, eta, clipped_eps)
        self.cap_variance = cap_variance(final_noise_cap, denoiser.data_range)
        self._covariances = StepCovariances(covariance, self.denoiser, self.kernels)

    # ---- images -----------------------------------------------------------------------------------------------

    def sample(
        self, count: int, seed: int = 0, batch_size: int = 64, conditions: Any = None, progress: bool = False
    ) -> torch.Tensor:
        """`count` images, (count, C, H, W) float32 in the data range, on the CPU. See `stream`."""
        if count < 1:
            raise InputError(f"the number of images is {count}, but it must be at least 1.")
        return torch.cat(list(self.stream(range(count), seed, batch_size, conditions, progress)))

    def stream(
        self,
        images: Sequence[int],
        seed: int = 0,
        batch_size: int = 64,
        conditions: Any = None,
        progress: bool = False,
        visit: Callable[[ReverseKernel, torch.Tensor], None] | None = None,
    ) -> Iterator[torch.Tensor]:
        """Images in batches, in constant memory; index ranges are how machines share work.

        Args:
            images: indices of the images to make, e.g. `range(0, 50000)`. Image i of a seed is the same (to float
                tolerance) whatever the batch size and the range it is made in.
            seed: of every random number.
            batch_size: images at once.
            conditions: None, or one condition per image of `images`, passed to the network.
            progress: a progress bar over network evaluations.
            visit: called after every step of every batch with its kernel and x_s, (B, C, H, W) on the device.

        Yields: (B, C, H, W) float32 on the CPU, in the data range. Raises NumericalError for NaN or Inf.
        """
        if batch_size < 1:
            raise InputError(f"batch_size={batch_size} must be at least 1.")
        if conditions is not None:
            conditions = self._check_conditions(conditions, len(images))
        return self._stream(images, seed, batch_size, conditions, progress, visit)

    def _check_conditions(self, conditions: Any, images: int) -> Any:
        if not hasattr(conditions, "__len__") or not hasattr(conditions, "__getitem__"):
            raise InputError(
                f"conditions must hold one condition for each image (a tensor, array or list), but got "
                f"{type(conditions).__name__}."
            )
        if len(conditions) != images:
            raise InputError(f"conditions has {len(conditions)} entries for {images} images; give one for each.")
        if isinstance(conditions, (np.ndarray, list, tuple, torch.Tensor)):
            conditions = condition_tensor(conditions)
            if self.denoiser.classes is not None:  # here, where the look waits for no GPU
                check_classes(conditions.cpu(), self.denoiser.classes)
        return conditions

    def _stream(
        self,
        images: Sequence[int],
        seed: int,
        batch_size: int,
        conditions: Any,
        progress: bool,
        visit: Callable[[ReverseKernel, torch.Tensor], None] | None,
    ) -> Iterator[torch.Tensor]:
        with tqdm(total=len(images) * len(self.steps), unit="eval", desc="sample", disable=not progress) as bar:
            for start in range(0, len(images), batch_size):
                part = [_image_index(i) for i in images[start : start + batch_size]]
                condition = None if conditions is None else conditions[start : start + batch_size]
                if isinstance(condition, torch.Tensor):
                    condition = condition.to(self.denoiser.device)
                # The copy is made outside inference mode, so that the user may change it and differentiate through it.
                yield self._batch(part, seed, condition, bar, visit).clone()
        self.covariance.report()

    @torch.inference_mode()
    def _batch(
        self,
        images: Sequence[int],
        seed: int,
        condition: Any,
        bar: Any,
        visit: Callable[[ReverseKernel, torch.Tensor], None] | None,
    ) -> torch.Tensor:
        denoiser = self.denoiser
        noise = ImageNoise(seed, images, denoiser.shape, denoiser.device)
        x = denoiser.schedule.prior_std * noise.prior()
        checks = []
        for k, kernel in enumerate(self.kernels):
            posterior = denoiser(x, kernel.t, condition)
            x = kernel.mean(x, posterior)
            # The sum of ε̂ is finite only if all of it is; looked at after the last step, so that no step waits for it.
            checks.append(posterior.eps.sum(dtype=torch.float32))
            if kernel.s > 0 and (covariance := self._covariance(k, posterior)) is not None:
                x = x + covariance.colour(noise.next())
            if visit is not None:
                visit(kernel, x)
            bar.update(len(images))
        self._refuse_nan(torch.stack(checks), images)
        if denoiser.data_range is not None:
            x = x.clamp(*denoiser.data_range)
        return x.float().cpu()

    def _covariance(self, k: int, posterior: Posterior) -> StructuredCovariance | None:
        covariance = self._covariances.at(posterior, self.kernels[k])
        if covariance is not None and self.cap_variance is not None and k == len(self.kernels) - 2:
            return covariance.capped(self.cap_variance)
        return covariance

    def _refuse_nan(self, checks: torch.Tensor, images: Sequence[int]) -> None:
        bad = (~torch.isfinite(checks)).nonzero()
        if len(bad):
            raise NumericalError(
                f"the network gave NaN or infinite values at index n={self.kernels[int(bad[0])].t}, in the batch of "
                f"images {images[0]} to {images[-1]}; check its weights and precision."
            )


def _image_index(i: Any) -> int:
    try:
        return operator.index(i)
    except TypeError:
        raise InputError(f"image index {i!r} is not an integer; give indices such as range(64).") from None
