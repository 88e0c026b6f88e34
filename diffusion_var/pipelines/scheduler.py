"""A drop-in scheduler for diffusers pipelines with any reverse covariance of this package.

    pipe.scheduler = AnalyticScheduler.from_table(table, pipe.scheduler.config)

The steps are those of `Sampler`: mean of eq. (1) plus Σ^{1/2} noise, no noise in the step to clean data. Where
diffusers' own schedulers are wrong, this one is not: the index before a timestep is looked up in the list of timesteps
(not computed as t − N//K, which is right for "leading" spacing alone), and the last step is the one after which no
timestep is left (not the one at t = 0). A step is computed in float32, also where the network runs in half precision.

Isotropic and per-channel variances live in the config as lists of numbers, so that a pipeline is saved and loaded with
plain diffusers; a table with a pixel or dct structure travels as `variance_table.safetensors` beside the config.

η belongs to the config. `step` takes `eta=` by keyword, but does not name it: Stable Diffusion's and latent diffusion's
pipelines hand η = 0 of their own to every scheduler that names it. (DDIMPipeline hands its own η to any scheduler, and
makes a DDIMScheduler of the one it is constructed with: use DDPMPipeline, or assign the scheduler and pass eta there.)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler
from diffusers.schedulers.scheduling_utils import KarrasDiffusionSchedulers, SchedulerMixin
from diffusers.utils.outputs import BaseOutput
from diffusers.utils.torch_utils import randn_tensor

from ..covariance.head import Head
from ..covariance.reverse import StructuredCovariance
from ..errors import InputError
from ..models.denoiser import check_range
from ..models.features import Watch
from ..models.posterior import Posterior
from ..models.prediction import check_prediction, mean_and_eps
from ..models.pretrained.conventions import prediction_of
from ..process import steps as step_lists
from ..process.diffusers_configs import schedule_of
from ..process.kernel import ClippedEps, ReverseKernel, check_clipped_eps, check_eta
from ..sampling.sampler import cap_variance
from ..variance.table import VarianceTable
from .compatibility import check_sample
from .forward import ForwardProcess
from .plan import StepPlan, indices_of
from .scheduler_files import SchedulerFiles
from .scheduler_sources import SchedulerSources
from .source import chosen_covariance, split_output


@dataclass
class AnalyticSchedulerOutput(BaseOutput):
    """x_s, and x̂_0 as it was used (clipped), both like the sample."""

    prev_sample: torch.Tensor
    pred_original_sample: torch.Tensor


class AnalyticScheduler(ForwardProcess, SchedulerSources, SchedulerFiles, SchedulerMixin, ConfigMixin):  # type: ignore[misc]
    """DDPM and DDIM steps (any 0 ≤ η ≤ 1) with a fixed, learned-range or analytic reverse variance.

    Args (besides those of DDPMScheduler and DDIMScheduler, which mean the same):
        variance_type: "fixed_small" (η²β̃), "fixed_large" (β, η = 1), "learned_range" (2C-channel networks, η = 1) or
            "analytic" (needs a table: use `from_table`) or "head" (`from_head`). Nothing falls back to anything else.
        eta: 1 is DDPM, 0 is DDIM.
        clipped_eps: see `ReverseKernel`.
        final_noise_cap: see `Sampler`; needs `data_range`.
        data_range: (low, high) of the samples; None for latents.
        posterior_variance, clipping_cross, clipping_shift: see `VarianceLists`; filled in by `from_table`.
        structure, estimator, table_shape, table_file, table_digest: of the table, which may lie beside the config.
        head_file, head_digest: of the head, which lies beside the config.

    Attribute `generator` (None: the global one): draws the noise where a pipeline hands none to `step`, as LDMPipeline
    and DiTPipeline do.

    Raises InputError for unknown or contradicting values.
    """

    _compatibles = [kind.name for kind in KarrasDiffusionSchedulers]  # noqa: RUF012 (diffusers' own convention)
    order = 1
    init_noise_sigma = 1.0

    @register_to_config  # type: ignore[untyped-decorator]
    def __init__(
        self,
        num_train_timesteps: int = 1000,
        beta_start: float = 0.0001,
        beta_end: float = 0.02,
        beta_schedule: str = "linear",
        trained_betas: list[float] | None = None,
        variance_type: str = "fixed_small",
        clip_sample: bool = True,
        prediction_type: str = "epsilon",
        thresholding: bool = False,
        dynamic_thresholding_ratio: float = 0.995,
        clip_sample_range: float = 1.0,
        sample_max_value: float = 1.0,
        timestep_spacing: str = "leading",
        steps_offset: int = 0,
        rescale_betas_zero_snr: bool = False,
        eta: float = 1.0,
        clipped_eps: str | None = None,
        final_noise_cap: float | None = None,
        data_range: list[float] | None = None,
        posterior_variance: list[float] | list[list[float]] | None = None,
        clipping_cross: list[float] | list[list[float]] | None = None,
        clipping_shift: list[float] | list[list[float]] | None = None,
        structure: str = "isotropic",
        estimator: str = "residual",
        table_shape: list[int] | None = None,
        table_file: str | None = None,
        table_digest: str | None = None,
        head_file: str | None = None,
        head_digest: str | None = None,
    ) -> None:
        if trained_betas is not None:  # arrays would break saving
            self.register_to_config(  # type: ignore[no-untyped-call]
                trained_betas=[float(beta) for beta in trained_betas]
            )
        self.schedule = schedule_of(self._known_config)
        self.prediction = prediction_of(self._known_config)
        check_prediction(self.prediction, self.schedule)
        check_eta(eta)
        check_clipped_eps(clipped_eps)
        step_lists.check_spacing(timestep_spacing)
        self.table: VarianceTable | None = None
        self.head: Head | None = None
        self._watch: Watch | None = None
        self.generator: torch.Generator | None = None
        self._covariance = chosen_covariance(self._options, self.schedule)
        self._cap = cap_variance(final_noise_cap, check_range("data_range", cast(Any, data_range)))
        self._use(range(1, self.schedule.num_steps + 1), None)
        self.num_inference_steps: int | None = None

    # ---- the timesteps ----------------------------------------------------------------------------------------

    def set_timesteps(
        self,
        num_inference_steps: int | None = None,
        device: torch.device | str | None = None,
        timesteps: Sequence[int] | None = None,
    ) -> None:
        """Choose K steps by the config's spacing, or the timesteps themselves (descending, from 0 to N − 1)."""
        if (num_inference_steps is None) == (timesteps is None):
            raise InputError("set_timesteps needs either num_inference_steps or timesteps, and not both.")
        N, options = self.schedule.num_steps, self._options
        if timesteps is not None:
            indices = indices_of(timesteps, N)
        else:
            spaced = step_lists.spaced(self.schedule, cast(int, num_inference_steps), options.timestep_spacing)
            offset = options.steps_offset if options.timestep_spacing == "leading" else 0
            indices = [n + offset for n in spaced]
            if not 1 <= indices[0] <= indices[-1] <= N:
                raise InputError(
                    f"steps_offset={offset} moves {num_inference_steps} steps to timesteps {indices[0] - 1} to "
                    f"{indices[-1] - 1}, outside 0 to {N - 1}; take fewer steps, or steps_offset=0."
                )
        self._use(indices, device)
        self.num_inference_steps = len(indices)

    def _use(self, indices: Sequence[int], device: torch.device | str | None) -> None:
        self._plan = StepPlan(self.schedule, indices)
        self.timesteps = self._plan.timesteps(device)
        self._covariances: dict[tuple[Any, ...], StructuredCovariance | None] = {}

    @property
    def _options(self) -> Any:
        """The config, with attributes."""
        return self.config

    @property
    def _known_config(self) -> dict[str, Any]:
        """The config under this class's name, which a subclass's is not."""
        return {**self.config, "_class_name": "AnalyticScheduler"}

    # ---- one step ---------------------------------------------------------------------------------------------

    def step(
        self,
        model_output: torch.Tensor,
        timestep: int | torch.Tensor,
        sample: torch.Tensor,
        generator: torch.Generator | list[torch.Generator] | None = None,
        return_dict: bool = True,
        variance_noise: torch.Tensor | None = None,
        features: torch.Tensor | None = None,
        **overrides: Any,
    ) -> AnalyticSchedulerOutput | tuple[torch.Tensor, torch.Tensor]:
        """x_s from x_t.

        Args:
            model_output: (B, C, H, W), with learned_range (B, 2C, H, W).
            timestep: of `sample`; a whole number, or a tensor holding one.
            sample: x_t, (B, C, H, W).
            generator: one, or one for each image.
            return_dict: False: a tuple (x_s, x̂_0).
            variance_noise: the noise to use instead of drawing it.
            features: the trunk's, of these images, for variance_type "head"; None: those that were watched.
            overrides: `eta`, and `use_clipped_model_output` as in DDIMScheduler, for this step.

        Returns: x_s and the (clipped) x̂_0, in the sample's dtype.
        """
        kernel = self._plan.kernel(timestep, *self._overridden(**overrides))
        output, raw = split_output(model_output, sample.shape[1], self._options.variance_type)
        x = sample if sample.dtype == torch.float64 else sample.float()
        output = output.to(x.dtype)
        mean, eps = mean_and_eps(self.prediction, output, x, kernel.alpha_t, kernel.sigma_t)
        found = self._features(features, len(x)) if self._options.variance_type == "head" else None
        posterior = Posterior(self._bounded(mean), eps, None if raw is None else raw.to(x.dtype), found)
        previous = kernel.mean(x, posterior)
        if kernel.s > 0 and (covariance := self._covariance_of(kernel, posterior)) is not None:
            if variance_noise is None:
                # In the network's dtype, as diffusers draws it: the same generator gives the same noise.
                variance_noise = randn_tensor(
                    sample.shape,
                    generator=generator or self.generator,
                    device=model_output.device,
                    dtype=model_output.dtype,
                )
            previous = previous + covariance.colour(variance_noise.to(x.dtype))
        if kernel.s == 0 and self._covariance is not None:
            self._covariance.report()
        previous, mean = previous.to(sample.dtype), posterior.mean.to(sample.dtype)
        return AnalyticSchedulerOutput(previous, mean) if return_dict else (previous, mean)

    def _overridden(
        self, eta: float | None = None, use_clipped_model_output: bool | None = None
    ) -> tuple[float, ClippedEps | None]:
        clipped_eps: ClippedEps | None = self._options.clipped_eps
        if use_clipped_model_output is not None:
            clipped_eps = "rederived" if use_clipped_model_output else "network"
        return (self._options.eta if eta is None else eta), clipped_eps

    def _bounded(self, mean: torch.Tensor) -> torch.Tensor:
        if self._options.thresholding:
            thresholded: torch.Tensor = DDPMScheduler._threshold_sample(self, mean)
            return thresholded
        if not self._options.clip_sample:
            return mean
        return mean.clamp(-self._options.clip_sample_range, self._options.clip_sample_range)

    def _covariance_of(self, kernel: ReverseKernel, posterior: Posterior) -> StructuredCovariance | None:
        if self._covariance is None:
            kind, call = (
                ("head", "attach_head(head)") if self._options.variance_type == "head" else ("table", "attach(table)")
            )
            raise InputError(
                f"the scheduler's {kind} ({self._options[f'{kind}_file']}) is not attached; load the scheduler with "
                f"AnalyticScheduler.from_pretrained, or call scheduler.{call}."
            )
        mean = posterior.mean
        key = (kernel.t, kernel.s, kernel.eta, kernel.rederives_eps, mean.shape[1:], mean.dtype, mean.device)
        if key in self._covariances:
            return self._covariances[key]
        check_sample(tuple(mean.shape[1:]), self._options.table_shape, self._options.structure)
        covariance: StructuredCovariance | None = self._covariance(posterior, kernel)
        if covariance is not None and self._cap is not None and kernel.s == self._plan.indices[0]:
            covariance = covariance.capped(self._cap)
        if not self._covariance.depends_on_image:
            self._covariances[key] = covariance
        return covariance

    # ---- what else pipelines ask of a scheduler ---------------------------------------------------------------

    def scale_model_input(self, sample: torch.Tensor, timestep: Any = None) -> torch.Tensor:
        """The sample as it is: variance-preserving networks take x_t itself."""
        return sample

    def __len__(self) -> int:
        return self.schedule.num_steps
