"""A drop-in scheduler for diffusers pipelines with any reverse covariance of this package.

    pipe.scheduler = AnalyticScheduler.from_table(table, pipe.scheduler.config)

The steps are those of `Sampler`: mean of [E1] plus Σ^{1/2} noise, no noise in the step to clean data. Where
diffusers' own schedulers are wrong, this one is not: the index before a timestep is looked up in the list of timesteps
(not computed as t − N//K, which is right for "leading" spacing alone), and the last step is the one after which no
timestep is left (not the one at t = 0). A step is computed in float32, also where the network runs in half precision.

A scheduler holds a plan (which step follows which timestep) and a `VarianceSource`. Isotropic and per-channel variances
live in the config as lists of numbers, so that a pipeline is saved and loaded with plain diffusers; a table with a
pixel or dct structure, and a head, travel as a file beside the config.

η belongs to the config. `step` takes `eta=` by keyword, but does not name it: Stable Diffusion's and latent diffusion's
pipelines hand η = 0 of their own to every scheduler that names it. (DDIMPipeline hands its own η to any scheduler, and
makes a DDIMScheduler of the one it is constructed with: use DDPMPipeline, or assign the scheduler and pass eta there.)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Self, cast

import numpy as np
import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler
from diffusers.schedulers.scheduling_utils import KarrasDiffusionSchedulers, SchedulerMixin
from diffusers.utils.torch_utils import randn_tensor

from .. import checks
from ..covariance.analytic import Analytic
from ..covariance.head import Head
from ..covariance.reverse import StepCovariances, StructuredCovariance, cap_variance, check_capped_steps
from ..models.posterior import Posterior
from ..models.prediction import check_prediction, eps_of_mean, mean_and_eps
from ..models.pretrained.conventions import prediction_of
from ..process.diffusers_configs import schedule_of
from ..process.kernel import ClippedEps, ReverseKernel, check_clipped_eps, check_noise
from ..process.steps import check_spacing
from ..variance.estimators import Estimator
from ..variance.table import VarianceTable
from .compatibility import check_pipeline, config_to_fit, require_betas, require_schedule
from .config_checks import check_settings
from .holder import VarianceHolder, replacing
from .output import AnalyticSchedulerOutput, Reduction, check_previous, check_reduction, deviation, log_probability
from .plan import StepPlan, indices_of, spaced_indices, timestep_of
from .precision import outside_autocast
from .source import ConfigEntry, VarianceSource, network_of
from .step_checks import check_alike, check_covariance_of_step, check_generator, check_step, timesteps_of


class AnalyticScheduler(VarianceHolder, SchedulerMixin, ConfigMixin):  # type: ignore[misc]
    """DDPM and DDIM steps (any 0 ≤ η ≤ 1, or τ) with a fixed, learned-range, analytic or head's reverse variance.

    Its arguments are those of DDPMScheduler and DDIMScheduler, which mean the same, and these.

    Args:
        variance_type: "fixed_small" (λ²), "fixed_large" (β, η = 1), "learned_range" (2C-channel networks, η = 1),
            "analytic" (needs a table: use `from_table`) or "head" (`from_head`). Nothing falls back to anything else.
        eta: 1 (the default) is DDPM, 0 is DDIM.
        tau: instead of η [E12].
        clipped_eps: see `ReverseKernel`.
        final_noise_cap, capped_steps: see `Sampler`; a cap needs `data_range`.
        data_range: (low, high) of the samples; None for latents.
        variance: what is kept of a table or head, see `source`; filled in by `from_table` and `from_head`.

    `set_alpha_to_one` is kept of a DDIMScheduler's or PNDMScheduler's config: where it is False, the last step at η = 0
    (or τ = 0) goes to the level of timestep 0 instead of clean data, without noise, as DDIMScheduler's does. At other η
    the last step goes to clean data, as DDPMScheduler's does.

    Attribute `generator` (None: the global one): draws the noise where a pipeline hands none to `step`, as LDMPipeline
    and DiTPipeline do. Attribute `schedule`: the noise schedule, in float64.

    Raises InputError for unknown or contradicting values.
    """

    _compatibles = [kind.name for kind in KarrasDiffusionSchedulers]  # noqa: RUF012 (diffusers' own convention)
    order = 1
    init_noise_sigma = 1.0
    source_kind = VarianceSource
    # What a pipeline's model_index.json names, and diffusers looks up among the modules that are imported: the package,
    # whose names are lazy, so that `import diffusion_var` is enough to load one in a new process.
    __module__ = "diffusion_var"

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
        eta: float | None = None,
        tau: float | None = None,
        clipped_eps: str | None = None,
        final_noise_cap: float | None = None,
        data_range: list[float] | None = None,
        variance: dict[str, Any] | None = None,
        capped_steps: int = 1,
    ) -> None:
        check_settings(self._known_config)
        eta, tau = check_noise(eta, tau)
        plain: dict[str, Any] = {"eta": eta, "tau": tau}
        if trained_betas is not None:  # arrays would break saving
            plain["trained_betas"] = [float(beta) for beta in trained_betas]
        if variance is not None:
            plain["variance"] = ConfigEntry(variance)
        self.register_to_config(**plain)  # type: ignore[no-untyped-call]
        self.schedule = schedule_of(self._known_config)
        self.prediction = prediction_of(self._known_config)
        check_prediction(self.prediction, self.schedule)
        check_clipped_eps(clipped_eps)
        check_spacing(timestep_spacing)
        self.generator = None
        self._cap = cap_variance(final_noise_cap, checks.bounds("data_range", data_range))
        check_capped_steps(capped_steps, self._cap, self.schedule.num_steps)
        self._source = VarianceSource(self._known_config)
        self._use(range(1, self.schedule.num_steps + 1), None)
        self._source.check_kernel(self._plan.kernel(self.schedule.num_steps - 1, eta, tau, None))
        self.num_inference_steps: int | None = None

    # ---- from tables and heads --------------------------------------------------------------------------------

    @classmethod
    def from_table(
        cls,
        table: VarianceTable,
        config: Any,
        *,
        estimator: Estimator = "residual",
        structure: str = "isotropic",
        eta: float | None = None,
        tau: float | None = None,
        clipped_eps: ClippedEps | None = None,
        final_noise_cap: float | None = None,
        capped_steps: int | None = None,
        data_range: Sequence[float] | None = None,
        timestep_spacing: str | None = None,
        steps_offset: int | None = None,
        thresholding: bool | None = None,
        clip_sample: bool | None = None,
    ) -> Self:
        """A scheduler with a table's variances.

        Args:
            table: measured for the pipeline's network.
            config: the config of the pipeline's own scheduler (or that scheduler), for schedule, prediction type,
                clipping and spacing; or the pipeline itself, and then its network and latent scaling are checked too.
            estimator, structure: as in `Analytic`.
            eta: 1 (the default) is DDPM, 0 is DDIM.
            tau: instead of η.
            clipped_eps, final_noise_cap, …: in the config's place, where they are given. `data_range` is by default the
                table's.

        Raises InputError where table and config disagree, and for what the table does not hold.
        """
        Analytic(table, estimator, structure)  # refuses what the table cannot give
        if hasattr(config, "scheduler"):
            check_pipeline(table, config, network_of(config))
            config = config.scheduler
        options = {
            "clipped_eps": clipped_eps,
            "final_noise_cap": final_noise_cap,
            "capped_steps": capped_steps,
            "data_range": data_range,
            "timestep_spacing": timestep_spacing,
            "steps_offset": steps_offset,
            "thresholding": thresholding,
            "clip_sample": clip_sample,
        }
        made = cls._with_table(table, estimator, structure, cls._config_for(table, config, options, eta, tau))
        require_schedule(made, table)
        return made

    @classmethod
    def from_head(
        cls,
        head: Head,
        pipe: Any,
        *,
        eta: float | None = None,
        tau: float | None = None,
        clipped_eps: ClippedEps | None = None,
        final_noise_cap: float | None = None,
        capped_steps: int | None = None,
        data_range: Sequence[float] | None = None,
        timestep_spacing: str | None = None,
        steps_offset: int | None = None,
    ) -> Self:
        """A scheduler with a head's state-dependent variances; it watches the pipeline's network for its features.

            pipe.scheduler = AnalyticScheduler.from_head(head, pipe)

        Args:
            head: trained on the pipeline's network.
            pipe: the pipeline, whose own scheduler gives schedule, prediction type, clipping and spacing.
            eta, tau, …: as in `from_table`.

        A pipeline that is loaded from disk has to be watched again: `pipe.scheduler.watch(pipe)`.
        Raises InputError where head and pipeline disagree.
        """
        cls._check_head(head, pipe)
        check_pipeline(head.table, pipe, network_of(pipe))
        options = {
            "clipped_eps": clipped_eps,
            "final_noise_cap": final_noise_cap,
            "capped_steps": capped_steps,
            "data_range": data_range,
            "timestep_spacing": timestep_spacing,
            "steps_offset": steps_offset,
        }
        made = cls._with_head(head, cls._config_for(head.table, pipe.scheduler, options, eta, tau))
        require_schedule(made, head.table)
        made.watch(pipe)
        return made

    @classmethod
    def _config_for(
        cls, table: VarianceTable, config: Any, options: Mapping[str, Any], eta: float | None, tau: float | None
    ) -> dict[str, Any]:
        """The config with the options that are given, η or τ, and the table's data range."""
        chosen = {name: value for name, value in options.items() if value is not None}
        given = config_to_fit(table, config, chosen)
        if table.data_range is not None:
            given.setdefault("data_range", list(table.data_range))
        eta, tau = check_noise(eta, tau)
        return {**given, "eta": eta, "tau": tau}

    # ---- configs ----------------------------------------------------------------------------------------------

    @classmethod
    def from_config(cls, config: Any = None, return_unused_kwargs: bool = False, **options: Any) -> Any:
        """As diffusers' own, but a config of noise levels that are not given by betas is refused."""
        if isinstance(config, Mapping):
            require_betas({**config, **options})
            if config.get("variance_type", "") is None:  # how solvers without a variance save theirs
                options.setdefault("variance_type", "fixed_small")
            config = replacing(config, options)
            if "set_alpha_to_one" in options:  # no option of this class's own
                config = {**config, "set_alpha_to_one": options.pop("set_alpha_to_one")}
        return super().from_config(config, return_unused_kwargs, **options)

    # ---- the timesteps ----------------------------------------------------------------------------------------

    def set_timesteps(
        self,
        num_inference_steps: int | None = None,
        device: torch.device | str | None = None,
        timesteps: Sequence[int] | None = None,
    ) -> None:
        """Choose K steps by the config's spacing, or the timesteps themselves (descending, from 0 to N − 1)."""
        both = (num_inference_steps is None) == (timesteps is None)
        checks.refuse(both, "set_timesteps needs either num_inference_steps or timesteps, and not both.")
        if timesteps is not None:
            indices = indices_of(timesteps, self.schedule.num_steps)
        else:
            spacing, offset = self._options.timestep_spacing, self._options.steps_offset
            indices = spaced_indices(self.schedule, num_inference_steps, spacing, offset)
        check_capped_steps(self._options.capped_steps, self._cap, len(indices))
        self._use(indices, device)
        self.num_inference_steps = len(indices)

    def _use(self, indices: Sequence[int], device: torch.device | str | None) -> None:
        self._plan = StepPlan(self.schedule, indices)
        self.timesteps = self._plan.timesteps(device)
        self._forget()

    def previous_timestep(self, timestep: int | torch.Tensor) -> int:
        """The timestep that `step` goes to from this one; −1 for clean data."""
        return self._plan.index_after(timestep_of(timestep) + 1) - 1

    @property
    def _options(self) -> Any:
        """The config, with attributes."""
        return self.config

    @property
    def _known_config(self) -> dict[str, Any]:
        """The config under this class's name, which a subclass's is not."""
        return {**self.config, "_class_name": "AnalyticScheduler"}

    # ---- one step ---------------------------------------------------------------------------------------------

    @outside_autocast
    def step(
        self,
        model_output: torch.Tensor,
        timestep: int | torch.Tensor,
        sample: torch.Tensor,
        generator: torch.Generator | list[torch.Generator] | None = None,
        return_dict: bool = True,
        variance_noise: torch.Tensor | None = None,
        features: torch.Tensor | None = None,
        *,
        prev_sample: torch.Tensor | None = None,
        log_prob_reduction: Reduction = "mean",
        noise: bool = True,
        covariance: StructuredCovariance | None = None,
        **overrides: Any,
    ) -> AnalyticSchedulerOutput | tuple[torch.Tensor, torch.Tensor]:
        """x_s from x_t, and the log-probability of the step.

        Args:
            model_output: (B, C, …), with learned_range (B, 2C, …).
            timestep: of `sample`; a whole number, or a tensor holding one.
            sample: x_t, (B, C, …).
            generator: one, or one for each image.
            return_dict: False: a tuple (x_s, x̂_0).
            variance_noise: the noise to use instead of drawing it.
            features: the trunk's, of these images, for variance_type "head"; None: those that were watched.
            prev_sample: an x_s that was drawn before: nothing is drawn, and its log-probability is given.
            log_prob_reduction: "mean" over the d dimensions, or their "sum".
            noise: False: the ODE's step (η = 0 and no γ² v), which has no log-probability.
            covariance: Σ of this step, in the place of the scheduler's own: what `dv.Jacobian`, which asks the network
                for more than its output, gives of a posterior and `kernel(timestep)`; the cap is on it too.
            overrides: `eta` or `tau`, and `use_clipped_model_output` as in DDIMScheduler, for this step.

        Returns: x_s and the (clipped) x̂_0, in the sample's dtype, and what else `AnalyticSchedulerOutput` holds.
        """
        check_step(model_output, sample, variance_noise)
        check_reduction(log_prob_reduction)
        check_covariance_of_step(covariance, noise, tuple(sample.shape[1:]))
        kernel = self._kernel(timestep, **({**overrides, "eta": 0.0, "tau": None} if not noise else overrides))
        output, raw = self._source.split(model_output, sample.shape[1])
        x = sample if sample.dtype == torch.float64 else sample.float()
        mean, eps = mean_and_eps(self.prediction, output.to(x.dtype), x, kernel.alpha_t, kernel.sigma_t)
        posterior = self._source.posterior(self._bounded(mean), eps, raw, features)
        centre = self._to_timestep_0(x, posterior, kernel) if self._ends_there(kernel) else kernel.mean(x, posterior)
        if kernel.last or not noise:
            covariance = None
        elif covariance is not None:
            covariance = self._step_covariances().capped(covariance, kernel)
        else:
            self._source.check_sample(tuple(sample.shape[1:]))
            covariance = self._step_covariances().at(posterior, kernel)
        if prev_sample is not None:
            check_previous(prev_sample, sample)
            previous = prev_sample
        elif covariance is not None:
            if variance_noise is None:
                # In the network's dtype, as diffusers draws it: the same generator gives the same noise.
                how: dict[str, Any] = {"device": model_output.device, "dtype": model_output.dtype}
                generator = self.generator if generator is None else generator
                check_generator(generator, len(sample), model_output.device)
                variance_noise = randn_tensor(sample.shape, generator=generator, **how)
            previous = (centre + covariance.colour(variance_noise.to(x.dtype))).to(sample.dtype)
        else:
            previous = centre.to(sample.dtype)
        if kernel.last and self._source.covariance is not None:
            self._source.covariance.report()
        mean = posterior.mean.to(sample.dtype)
        if not return_dict:
            return previous, mean
        log_prob = log_probability(covariance, previous, centre, log_prob_reduction)
        return AnalyticSchedulerOutput(previous, centre, deviation(covariance, centre), log_prob, mean)

    def kernel(self, timestep: int | torch.Tensor, eta: float | None = None, tau: float | None = None) -> ReverseKernel:
        """The step that is taken from a timestep, for those who make its covariance themselves; η or τ in the place of
        the config's."""
        return self._kernel(timestep, eta, tau)

    def _kernel(
        self,
        timestep: int | torch.Tensor,
        eta: float | None = None,
        tau: float | None = None,
        use_clipped_model_output: bool | None = None,
    ) -> ReverseKernel:
        """The step from a timestep, with what is overridden for it."""
        clipped_eps: ClippedEps | None = self._options.clipped_eps
        if use_clipped_model_output is not None:
            clipped_eps = "rederived" if use_clipped_model_output else "network"
        given = eta is not None or tau is not None
        eta, tau = check_noise(eta, tau) if given else (self._options.eta, self._options.tau)
        return self._plan.kernel(timestep, eta, tau, clipped_eps)

    def _ends_there(self, kernel: ReverseKernel) -> bool:
        return kernel.last and 0.0 in (kernel.eta, kernel.tau) and not self.config.get("set_alpha_to_one", True)

    def _to_timestep_0(self, x: torch.Tensor, posterior: Posterior, kernel: ReverseKernel) -> torch.Tensor:
        """[E1] at λ² = 0 to timestep 0, also from there, where the step is none but for the clipping of x̂_0."""
        mean, eps, end = posterior.mean, posterior.eps, self.schedule.level(1)
        if kernel.rederives_eps:
            eps = eps_of_mean(x, mean, kernel.alpha_t, kernel.sigma_t)
        return end.alpha * mean + end.sigma * eps

    def _bounded(self, mean: torch.Tensor) -> torch.Tensor:
        if self._options.thresholding:
            thresholded: torch.Tensor = DDPMScheduler._threshold_sample(self, mean)
            return thresholded
        if not self._options.clip_sample:
            return mean
        return mean.clamp(-self._options.clip_sample_range, self._options.clip_sample_range)

    def _step_covariances(self) -> StepCovariances:
        if self._covariances is None:
            self._covariances = StepCovariances(
                self._source.attached(), self._cap, self._plan.last_levels(int(self._options.capped_steps))
            )
        return self._covariances

    # ---- what else pipelines and training loops ask of a scheduler --------------------------------------------

    def scale_model_input(self, sample: torch.Tensor, timestep: Any = None) -> torch.Tensor:
        """The sample as it is: variance-preserving networks take x_t itself."""
        return sample

    def add_noise(self, original_samples: torch.Tensor, noise: torch.Tensor, timesteps: Any) -> torch.Tensor:
        """α_t x_0 + σ_t ε at each image's timestep."""
        check_alike("noise", noise, "original_samples", original_samples)
        alpha, sigma = self._coefficients(timesteps, original_samples)
        return cast(torch.Tensor, alpha * original_samples + sigma * noise)

    def get_velocity(self, sample: torch.Tensor, noise: torch.Tensor, timesteps: Any) -> torch.Tensor:
        """v = α_t ε − σ_t x_0 at each image's timestep."""
        check_alike("noise", noise, "sample", sample)
        alpha, sigma = self._coefficients(timesteps, sample)
        return cast(torch.Tensor, alpha * noise - sigma * sample)

    def _coefficients(self, timesteps: Any, like: torch.Tensor) -> tuple[Any, Any]:
        indices = timesteps_of(timesteps, len(like), self.schedule.num_steps) + 1
        return self.schedule.coefficients(indices, like)

    @property
    def alphas_cumprod(self) -> torch.Tensor:
        """ᾱ of every timestep, (N,) float32, as diffusers' schedulers have it."""
        return torch.from_numpy(self.schedule.alpha[1:] ** 2).float()

    @property
    def betas(self) -> torch.Tensor:
        """β of every timestep, 1 − ᾱ_n/ᾱ_{n−1}, (N,) float32."""
        with np.errstate(divide="ignore"):
            log_alpha = np.log(self.schedule.alpha)
        return torch.from_numpy(-np.expm1(2.0 * np.diff(log_alpha))).float()

    @property
    def alphas(self) -> torch.Tensor:
        """1 − β of every timestep, (N,) float32."""
        return 1.0 - self.betas

    @property
    def one(self) -> torch.Tensor:
        """ᾱ of clean data."""
        return torch.tensor(1.0)

    def __len__(self) -> int:
        return self.schedule.num_steps
