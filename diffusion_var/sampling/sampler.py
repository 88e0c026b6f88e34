"""The sampler: from noise to images in K reverse steps, with any reverse covariance and any noise, η or τ.

    x_N ~ N(0, prior_std² I)
    for t → s in the step list, then the smallest level → clean data:
        x_s = mean of [E1] at the posterior  +  Σ^{1/2} noise        (no noise in the step to clean data)

At the smallest s > 0, or the few smallest, the noise may be capped so that E|noise| ≤ y/255 of the data range [E8]
(Analytic-DPM, arXiv:2201.06503, appendix F.2). η = 1 with β̃ or β is DDPM, η = 0 with no covariance is DDIM; the
network may run under autocast, the state is float32.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch

from .. import checks, parallel
from ..covariance.reverse import (
    ReverseCovariance,
    StepCovariances,
    cap_variance,
    check_capped_steps,
    check_covariance,
    report_of_all,
)
from ..data.fixed_images import FixedImages
from ..errors import NumericalError, warn
from ..models.conditions import as_nest, map_leaves
from ..models.denoiser import Denoiser, check_denoiser
from ..models.network_run import NetworkRun
from ..models.network_use import not_finite
from ..models.posterior import Posterior
from ..models.product_cost import ProductCost
from ..process.kernel import ClippedEps, ReverseKernel, reverse_kernels
from ..process.level import NoiseLevel
from ..process.steps import describe, resolve
from ..progress import progress_bar
from .conditions import check_conditions, facts_of
from .inversion import check_invertible, invert_batch
from .noise import ImageNoise

if TYPE_CHECKING:
    from tqdm import tqdm

#: Nats per dimension between data and noise at the first step from which a run is warned of: an SNR of 0.22. The steps
#: in use begin below that: the quadratic ones at 0.8 N, the cosine schedule's among them, at 0.05.
FAR_FROM_NOISE = 0.1


class Sampler:
    """Draws images from a denoiser.

    Args:
        denoiser: the model.
        covariance: `FixedSmall()`, `FixedLarge()`, `Analytic(table, …)`, or another `ReverseCovariance`.
        steps: number of steps K (even from 1 to N; K = 1 is [N]), the indices themselves, ascending, or noise levels,
            the noisiest first (`steps.karras`, `steps.sigmas`, …).
        eta: 1 (the default) is DDPM, 0 is DDIM.
        final_noise_cap: y of "E|noise| ≤ y/255 of the data range" at the smallest s > 0; None: no cap. Published: 2 for
            DDPM on CIFAR10 (linear schedule) and CelebA, 1 elsewhere. Helps imperfect networks, harms near-exact ones.
        clipped_eps: see `ReverseKernel`.
        tau: instead of η: 1 is DDPM, 0 the ODE's step, more than 1 re-noises [E12].
        capped_steps: how many of the last noises are capped, those at the smallest s > 0 (`clip_sigma_idx` in the
            published codes, which have 1 wherever they cap).
        low_start: whether it is meant that the noisiest step still holds much of the signal, which pure noise lacks;
            otherwise sampling from there is warned of.

    Attributes: `steps`, as they were resolved, `kernels`, the steps themselves, and `evaluations` of the network for an
    image.
    Raises InputError for unusable steps, η, τ or cap, and for a covariance that does not fit the model or the steps.
    """

    def __init__(
        self,
        denoiser: Denoiser,
        covariance: ReverseCovariance,
        steps: int | Sequence[int] | Sequence[NoiseLevel],
        eta: float | None = None,
        final_noise_cap: float | None = None,
        clipped_eps: ClippedEps | None = None,
        tau: float | None = None,
        low_start: bool = False,
        capped_steps: int = 1,
    ) -> None:
        check_denoiser(denoiser)
        self.denoiser, self.covariance = check_covariance(covariance).prepare(denoiser), covariance
        self.steps = resolve(denoiser.schedule, steps)
        self.kernels = reverse_kernels(denoiser.schedule, self.steps, eta, clipped_eps, tau)
        self.low_start = low_start
        self.eta, self.tau = self.kernels[0].eta, self.kernels[0].tau
        self.cap_variance = cap_variance(final_noise_cap, denoiser.data_range)
        self.capped_steps = check_capped_steps(capped_steps, self.cap_variance, len(self.kernels))
        covariance.check(self.denoiser, self.kernels)
        capped = [kernel.level_t for kernel in self.kernels[-self.capped_steps :]]
        self._covariances = StepCovariances(covariance, self.cap_variance, capped)

    @property
    def evaluations(self) -> int:
        """How often the network is evaluated for an image: once a step."""
        return len(self.kernels)

    def equivalents(self, cost: ProductCost) -> float:
        """Evaluations of the network for an image, its Jacobian-vector products among them at their price (of
        products made as the covariance makes them, forward or by differences): those of the steps that draw from a
        covariance, where x_t still has signal."""
        checks.instance(
            "cost", cost, ProductCost, "a dv.ProductCost (dv.product_cost(denoiser), ProductCost.forward(1.4))"
        )
        drawn = sum(not kernel.last and kernel.alpha_t > 0.0 for kernel in self.kernels)
        each = cost.of_step(self.covariance.products, self.covariance.products_with_mean)
        return self.evaluations + drawn * each

    # ---- images -----------------------------------------------------------------------------------------------

    def sample(
        self, count: int, seed: int = 0, batch_size: int = 64, conditions: Any = None, progress: bool = False
    ) -> torch.Tensor:
        """`count` images, (count, C, *spatial) float32 in the data range, on the CPU. See `stream` for the arguments.

        Processes share the batches, and each gets all images.
        """
        wrong = not checks.is_whole(count) or count < 1
        checks.refuse(wrong, f"the number of images is {count}, but it must be at least 1.")
        seed = checks.seed(seed)

        def make(run: NetworkRun, part: range, condition: Any, bar: Any) -> torch.Tensor:
            return self._batch(run, part, seed, condition, bar, None)

        facts, each = {"seed": seed}, self.evaluations
        with parallel.sharing("Sampler.sample"):  # here, so that one process warns for all
            self._check_start()
            return self._made(int(count), make, batch_size, conditions, progress, "sample", each, facts)

    def stream(
        self,
        images: Sequence[int],
        seed: int = 0,
        batch_size: int = 64,
        conditions: Any = None,
        progress: bool | tqdm[Any] = False,
        visit: Callable[[ReverseKernel, torch.Tensor], None] | None = None,
    ) -> Iterator[torch.Tensor]:
        """Images in batches, in constant memory, made by this process alone, whatever the others do.

        Machines that know nothing of each other share work by index ranges: the k-th of M takes `range(k, count, M)`.
        Where they do know (torchrun, `parallel`), `sample` shares by itself.

        Args:
            images: indices of the images to make, e.g. `range(0, 50000)`. Image i of a seed is the same (to float
                tolerance) whatever the batch size and the range it is made in.
            seed: of every random number.
            batch_size: images at once.
            conditions: None, or one condition per image of `images` (a tensor, array or list, a nest of such, or
                whatever gives nests by slices), passed to the network.
            progress: a progress bar over network evaluations; or one that is there, which is moved: whoever has it also
                asks the covariance for its report at the end.
            visit: called after every step of every batch with its kernel and x_s, (B, C, *spatial) on the device.

        Yields: (B, C, *spatial) float32 on the CPU, in the data range. Raises NumericalError for NaN or Inf.
        """
        batch_size, seed = checks.whole("batch_size", batch_size, least=1), checks.seed(seed)
        _check_images(images)
        wrong = visit is not None and not callable(visit)
        checks.refuse(wrong, f"visit={checks.brief(visit)} must be a function of a kernel and x_s, or None.")
        self._check_start()
        if conditions is not None:
            conditions = check_conditions(conditions, len(images), self.denoiser.classes)
        return self._stream(images, seed, batch_size, conditions, progress, visit)

    def _stream(
        self,
        images: Sequence[int],
        seed: int,
        batch_size: int,
        conditions: Any,
        progress: bool | tqdm[Any],
        visit: Callable[[ReverseKernel, torch.Tensor], None] | None,
    ) -> Iterator[torch.Tensor]:
        run, total = NetworkRun(self.denoiser), len(images) * self.evaluations
        own = progress_bar(total, "sample", "eval", progress) if isinstance(progress, bool) else None
        with nullcontext(progress) if own is None else own as bar:
            for start in range(0, len(images), batch_size):
                part = [checks.index("image index", i) for i in images[start : start + batch_size]]
                condition = self._condition(conditions, slice(start, start + batch_size))
                # The copy is made outside inference mode, so that the user may change it and differentiate through it.
                with run:  # and not while the user has the images: the network is theirs then
                    found = self._batch(run, part, seed, condition, bar, visit)
                yield found.clone()
        if own is not None:
            self.covariance.report()
            self.denoiser.report()

    def _condition(self, conditions: Any, part: slice) -> Any:
        """The conditions of a batch, on the device."""
        if conditions is None:
            return None
        return map_leaves(lambda leaf: leaf.to(self.denoiser.device), as_nest(conditions[part]))

    def mean(self, kernel: ReverseKernel, x_t: torch.Tensor, posterior: Posterior) -> torch.Tensor:
        """The mean of x_s given x_t, (B, C, *spatial)."""
        return kernel.mean(x_t, posterior)

    def step_mean(
        self,
        kernel: ReverseKernel,
        x_t: torch.Tensor,
        posterior: Posterior,
        before: tuple[ReverseKernel, torch.Tensor] | None,
    ) -> torch.Tensor:
        """The mean of x_s where the step before, and its x̂_0, are known too (`before`; None: there was none)."""
        return self.mean(kernel, x_t, posterior)

    @torch.inference_mode()
    def _batch(
        self,
        run: NetworkRun,
        images: Sequence[int],
        seed: int,
        condition: Any,
        bar: Any,
        visit: Callable[[ReverseKernel, torch.Tensor], None] | None,
        x: torch.Tensor | None = None,
    ) -> torch.Tensor:
        denoiser = self.denoiser
        condition = denoiser.condition_of(images, condition)
        noise = ImageNoise(seed, images, denoiser.shape, denoiser.device)
        x = self._prior(noise) if x is None else x
        sums, before = [], None
        for kernel in self.kernels:
            posterior = run(x, kernel.level_t, condition, without_jacobian=kernel.last)
            x = self.step_mean(kernel, x, posterior, before)
            before = kernel, posterior.mean
            # The sum of ε̂ is finite only if all of it is; looked at after the last step, so that no step waits for it.
            sums.append(posterior.eps.sum(dtype=torch.float32))
            if not kernel.last and (covariance := self._covariances.at(posterior, kernel)) is not None:
                x = x + covariance.draw(noise)
            if visit is not None:
                visit(kernel, x)
            bar.update(len(images))
        return self._finished(x, sums, [kernel.level_t for kernel in self.kernels], images)

    def _prior(self, noise: ImageNoise) -> torch.Tensor:
        """What a run begins with, (B, C, *spatial) on the device."""
        return self.denoiser.schedule.prior_std_at(self.kernels[0].level_t) * noise.prior()

    def _finished(
        self, x: torch.Tensor, sums: list[torch.Tensor], levels: Sequence[NoiseLevel], images: Sequence[int]
    ) -> torch.Tensor:
        """The images of a batch, in the data range and on the CPU; `sums` of what the network gave at `levels`."""
        bad = (~torch.isfinite(torch.stack(sums))).nonzero()
        if len(bad):
            level = levels[int(bad[0])]
            raise NumericalError(
                f"the network gave NaN or infinite values at {_where(level)}, in the batch of images {images[0]} to "
                f"{images[-1]}; {not_finite(level)}."
            )
        if self.denoiser.data_range is not None:
            x = x.clamp(*self.denoiser.data_range)
        return x.float().cpu()

    # ---- from given noise, and back ---------------------------------------------------------------------------

    def from_noise(
        self, x: Any, seed: int = 0, batch_size: int = 64, conditions: Any = None, progress: bool = False
    ) -> torch.Tensor:
        """The images that the steps make of x at their noisiest level, e.g. of what `invert` found.

        Args:
            x: (M, C, *spatial) floats, as they are there: a run of its own begins with `prior_std` times normal noise.
            seed: of the steps' noise, where they have any: row i has that of image i.
            batch_size, conditions, progress: see `stream`.

        Returns: (M, C, *spatial) float32 on the CPU, in the data range.
        """
        source = FixedImages(x, self.denoiser.shape, None)
        scanned = source.scan()
        seed = checks.seed(seed)

        def make(run: NetworkRun, part: range, condition: Any, bar: Any) -> torch.Tensor:
            return self._batch(run, part, seed, condition, bar, None, self._given(source, part))

        facts = {"x": scanned, "seed": seed}
        return self._made(len(source), make, batch_size, conditions, progress, "sample", self.evaluations, facts)

    def invert(
        self, images: Any, iterations: int = 1, batch_size: int = 64, conditions: Any = None, progress: bool = False
    ) -> torch.Tensor:
        """The noise that the steps make these images of: DDIM inversion, for η = 0; see `inversion`.

        Args:
            images: Dataset, tensor or array of (C, *spatial): uint8, or floats in the data range.
            iterations: for each step. With 1, `from_noise` comes back with an error of first order in the steps, and
                each more raises the order by one. Where x̂_0 is clipped, the clipping is not undone.
            batch_size, conditions, progress: see `stream`.

        Returns: (M, C, *spatial) float32 on the CPU, x at the noisiest level.
        Raises InputError for η or τ above 0, and a covariance that adds noise.
        """
        check_invertible(self.kernels, self.covariance)
        iterations = checks.whole("iterations", iterations, least=1)
        source = FixedImages(images, self.denoiser.shape, self.denoiser.data_range)
        facts = {"images": source.scan(), "iterations": iterations}

        def make(run: NetworkRun, part: range, condition: Any, bar: Any) -> torch.Tensor:
            condition = self.denoiser.condition_of(part, condition)
            x = invert_batch(run, self.kernels, self._given(source, part), condition, iterations)
            if not bool(torch.isfinite(x).all()):
                raise NumericalError(
                    f"the inversion of the images {part[0]} to {part[-1]} gave NaN or infinite values; check the "
                    "network, or take fewer iterations or more steps."
                )
            bar.update(len(x) * len(self.kernels) * iterations)
            return x.float().cpu()

        each = len(self.kernels) * iterations
        return self._made(len(source), make, batch_size, conditions, progress, "invert", each, facts)

    def _given(self, source: FixedImages, part: range) -> torch.Tensor:
        """Images that were given, on the device."""
        return source.take(np.arange(part.start, part.stop)).to(self.denoiser.device)

    def _check_start(self) -> None:
        """Warn of a run from pure noise that begins below the noisiest level, where data are far from noise [E10]."""
        schedule, start = self.denoiser.schedule, self.kernels[0].level_t
        far = 0.5 * float(np.logaddexp(0.0, start.log_snr))  # KL(q(x_t|x_0) ‖ prior) per dimension, data of unit size
        if not self.low_start and far > FAR_FROM_NOISE and start.log_snr > schedule.log_snr[-1] + 1e-9:
            warn(
                f"sampling begins with pure noise at {start.name}, where x_t still is much of the signal (alpha "
                f"{start.alpha:.3g}, sigma {start.sigma:.3g}), so that the images will not look like the data; let the "
                f"steps begin at or near index {schedule.num_steps}."
            )

    # ---- in many processes ------------------------------------------------------------------------------------

    def _made(
        self,
        count: int,
        make: Callable[[NetworkRun, range, Any, Any], torch.Tensor],
        batch_size: int,
        conditions: Any,
        progress: bool,
        what: str,
        evaluations: int,
        facts: dict[str, Any],
    ) -> torch.Tensor:
        """What is made of `count` images, batch by batch, each batch by one process; in order, in all of them.

        Args:
            make: gives what a batch is made of, on the CPU.
            evaluations: of the network for an image.
            facts: what the processes must agree on, beside the model, the steps, and all of the batches.
        """
        batch_size = checks.whole("batch_size", batch_size, least=1)
        if conditions is not None:
            conditions = check_conditions(conditions, count, self.denoiser.classes)
        parts = [range(start, min(start + batch_size, count)) for start in range(0, count, batch_size)]
        facts = {**facts, "count": count, "batch_size": batch_size}
        told = parallel.sharing(f"Sampler.{what}", lambda: {**facts, **self.facts(), **facts_of(conditions)})
        with told as team, progress_bar(count * evaluations, what, "eval", progress) as bar:
            team.tell_idle(len(parts), "batches of images")
            run = NetworkRun(self.denoiser)

            def batch(k: int) -> npt.NDArray[Any]:
                condition = self._condition(conditions, slice(parts[k].start, parts[k].stop))
                found: npt.NDArray[Any] = make(run, parts[k], condition, bar).numpy()
                return found

            with run, torch.inference_mode():
                batches = team.made([len(part) for part in parts], batch)
            report_of_all(self.covariance, self.denoiser)
        return torch.from_numpy(np.concatenate(batches))

    def facts(self) -> dict[str, Any]:
        """What tells this sampler from others, as plain data."""
        return {
            "sampler": type(self).__name__,
            "steps": describe(self.steps),
            "eta": self.eta,
            "tau": self.tau,
            "cap of the last noises": [self.cap_variance, self.capped_steps],
            "clipped_eps": self.kernels[0].rederives_eps,
            "covariance": self.covariance.identity(),
            "conditioned on": self.denoiser.conditioned_on(),
            **self.denoiser.identity().plain(),
        }


def _check_images(images: Any) -> None:
    """Refuse what has no order or no length: the indices of images are taken in slices."""
    has = all(hasattr(images, name) for name in ("__len__", "__getitem__")) and getattr(images, "ndim", 1) == 1
    wrong = not has or isinstance(images, str | bytes | dict)
    checks.refuse(wrong, f"images must be a sequence of indices, such as range(64), but got {checks.brief(images)}.")


def _where(level: NoiseLevel) -> str:
    return str(level) if level.index is None else f"index n={level.index}"
