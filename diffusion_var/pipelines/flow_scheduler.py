"""A drop-in scheduler for the flow-matching pipelines of diffusers, with any reverse covariance of this package.

    pipe.scheduler = AnalyticFlowScheduler.from_table(table, pipe)

A flow's level is t = σ, x_t = (1 − σ) x_0 + σ ε, and the network says F ≈ ε − x_0. A step goes from one σ of the list
to the next: mean [E1] plus Σ^{1/2} noise [E2], with as much noise as η or τ say [E12]; η = 0 without a variance is
Euler's step. All that concerns the list (shifts, Karras, exponential and beta σ, where a run begins) is
FlowMatchEulerDiscreteScheduler's own.

What a table says of x_0 is a function of log SNR alone [E14], so that one serves every shift and every list. Variances
by channel, place or frequency, and heads, need to know where a number of a sample stands: its `layout`.

A step is affine in x_t and F, with two numbers for coefficients, which are [E1] itself at (1, 0) and (0, 1).

Most flow pipelines hand no generator to `step`: `scheduler.generator` draws then. `step` takes `eta=` and `tau=` by
keyword, but does not name them: some pipelines hand an η of their own to every scheduler that names it.
"""

from __future__ import annotations

import copy
import inspect
import math
from collections.abc import Mapping
from typing import Any, Self, cast

import torch
from diffusers.configuration_utils import register_to_config
from diffusers.schedulers.scheduling_flow_match_euler_discrete import FlowMatchEulerDiscreteScheduler
from diffusers.utils.torch_utils import randn_tensor

from .. import checks
from ..covariance.analytic import Analytic
from ..covariance.head import Head
from ..covariance.reverse import StepCovariances, StructuredCovariance
from ..errors import InputError, printable
from ..models.posterior import Posterior
from ..models.prediction import mean_and_eps
from ..models.pretrained.layout import Layout, layout_of
from ..process.kernel import ReverseKernel, check_noise
from ..variance.estimators import Estimator
from ..variance.table import VarianceTable
from .compatibility import check_pipeline, check_sound, flow_config_to_fit, require_flow, with_shift
from .flow_source import FlowSource
from .holder import VarianceHolder, replacing
from .output import AnalyticSchedulerOutput, Reduction, check_previous, check_reduction, deviation, log_probability
from .precision import outside_autocast
from .source import ConfigEntry, require_network
from .step_checks import check_alike, check_covariance_of_step, check_generator, check_step, check_unused, one_timestep


class AnalyticFlowScheduler(VarianceHolder, FlowMatchEulerDiscreteScheduler):  # type: ignore[misc]
    """Steps of a flow (any 0 ≤ η ≤ 1, or τ ≥ 0) with λ², an analytic or a head's reverse variance.

    Its arguments are those of FlowMatchEulerDiscreteScheduler, which mean the same, and these.

    Args:
        variance_type: "fixed_small" (λ² alone), "analytic" (needs a table: use `from_table`) or "head" (`from_head`).
        eta: 1 (the default) is the noise of DDPM, 0 the ODE's step.
        tau: instead of η [E12].
        variance: what is kept of a table or head, see `flow_source`; filled in by `from_table` and `from_head`.
        layout: in which order a sample's numbers stand, see `models.pretrained.layout`; None: plain.

    `stochastic_sampling` is τ = ∞, which is the default where it is set.

    Attribute `generator` (None: the global one): draws the noise where a pipeline hands none to `step`.
    Raises InputError for unknown or contradicting values.
    """

    # What a pipeline's model_index.json names: see AnalyticScheduler.
    __module__ = "diffusion_var"
    source_kind = FlowSource
    _source: FlowSource
    _step_index: Any

    @register_to_config  # type: ignore[untyped-decorator]
    def __init__(
        self,
        num_train_timesteps: int = 1000,
        shift: float = 1.0,
        use_dynamic_shifting: bool = False,
        base_shift: float | None = 0.5,
        max_shift: float | None = 1.15,
        base_image_seq_len: int = 256,
        max_image_seq_len: int = 4096,
        invert_sigmas: bool = False,
        shift_terminal: float | None = None,
        use_karras_sigmas: bool = False,
        use_exponential_sigmas: bool = False,
        use_beta_sigmas: bool = False,
        time_shift_type: str = "exponential",
        stochastic_sampling: bool = False,
        variance_type: str = "fixed_small",
        eta: float | None = None,
        tau: float | None = None,
        variance: dict[str, Any] | None = None,
        layout: str | None = None,
    ) -> None:
        checks.whole("num_train_timesteps", num_train_timesteps, least=1)
        own = inspect.signature(FlowMatchEulerDiscreteScheduler.__init__).parameters
        super().__init__(**{name: self.config[name] for name in own if name != "self"})
        eta, tau = _noise_of(self.config, eta, tau)
        plain: dict[str, Any] = {"eta": eta, "tau": tau}
        if variance is not None:
            plain["variance"] = ConfigEntry(variance)
        self.register_to_config(**plain)  # type: ignore[no-untyped-call]
        self._noise = check_noise(eta, math.inf if eta is None and tau is None else tau)
        self._layout = Layout(layout or "plain")
        self.generator: torch.Generator | None = None
        self._source = FlowSource({**self.config, "_class_name": "AnalyticFlowScheduler"})
        self._source.check_layout(self._layout)
        self._steps: dict[Any, tuple[ReverseKernel, list[float], list[float]]] = {}
        self._read: tuple[Any, int, list[float]] = (None, -1, [])
        self._forget()

    # ---- from tables and heads --------------------------------------------------------------------------------

    @classmethod
    def from_table(
        cls,
        table: VarianceTable,
        pipe: Any,
        *,
        structure: str = "isotropic",
        estimator: Estimator = "residual",
        eta: float | None = None,
        tau: float | None = None,
        layout: str | None = None,
    ) -> Self:
        """A scheduler with a table's variances.

        Args:
            table: measured for the pipeline's network, on any grid of levels.
            pipe: the pipeline, whose network and latent scaling are checked; or its scheduler, or that one's config.
            structure, estimator: as in `Analytic`.
            eta: 1 (the default) is the noise of DDPM, 0 the ODE's.
            tau: instead of η.
            layout: of the pipeline's samples; None: by the pipeline's class, and plain without a pipeline.

        Raises InputError where table and pipeline disagree, and for what the table does not hold.
        """
        Analytic(table, estimator, structure)  # refuses what the table cannot give
        config = pipe
        if hasattr(pipe, "scheduler"):
            config = pipe.scheduler
            flow_config_to_fit(table, config)
            check_sound(pipe)
            check_pipeline(table, pipe, require_network(pipe))
            layout = layout if structure == "isotropic" or layout is not None else layout_of(pipe).name
        given = flow_config_to_fit(table, config)
        eta, tau = _noise_of(given, eta, tau)
        return cls._with_table(table, estimator, structure, {**given, "eta": eta, "tau": tau, "layout": layout})

    @classmethod
    def from_head(
        cls, head: Head, pipe: Any, *, eta: float | None = None, tau: float | None = None, layout: str | None = None
    ) -> Self:
        """A scheduler with a head's state-dependent variances; it watches the pipeline's network for its features.

        Args:
            head: trained on the pipeline's network.
            pipe: the pipeline.
            eta, tau, layout: as in `from_table`.

        A pipeline that is loaded from disk has to be watched again: `pipe.scheduler.watch(pipe)`.
        Raises InputError where head and pipeline disagree.
        """
        cls._check_head(head, pipe)
        given = flow_config_to_fit(head.table, pipe.scheduler)
        check_sound(pipe)
        check_pipeline(head.table, pipe, require_network(pipe))
        eta, tau = _noise_of(given, eta, tau)
        layout = layout_of(pipe).name if layout is None else layout
        made = cls._with_head(head, {**given, "eta": eta, "tau": tau, "layout": layout})
        made.watch(pipe)
        return made

    @classmethod
    def from_config(cls, config: Any = None, return_unused_kwargs: bool = False, **options: Any) -> Any:
        """As diffusers' own, but a config of noise levels that are not a flow's is refused, and the `flow_shift` of a
        solver of flows is the `shift`."""
        if isinstance(config, Mapping):
            require_flow({**config, **options})
            config = replacing(with_shift(config), options)
        return super().from_config(config, return_unused_kwargs, **options)

    # ---- one step ---------------------------------------------------------------------------------------------

    @outside_autocast
    def step(  # type: ignore[override]
        self,
        model_output: torch.Tensor,
        timestep: float | torch.Tensor,
        sample: torch.Tensor,
        s_churn: float = 0.0,
        s_tmin: float = 0.0,
        s_tmax: float = float("inf"),
        s_noise: float = 1.0,
        generator: torch.Generator | list[torch.Generator] | None = None,
        per_token_timesteps: torch.Tensor | None = None,
        return_dict: bool = True,
        *,
        prev_sample: torch.Tensor | None = None,
        log_prob_reduction: Reduction = "mean",
        noise: bool = True,
        variance_noise: torch.Tensor | None = None,
        features: torch.Tensor | None = None,
        covariance: StructuredCovariance | None = None,
        **overrides: Any,
    ) -> AnalyticSchedulerOutput | tuple[torch.Tensor]:
        """x_s from x_t, and the log-probability of the step.

        Args:
            model_output: F, (B, …).
            timestep: of `sample`, one of `timesteps`.
            sample: x_t, like F.
            s_churn, s_tmin, s_tmax, s_noise: Euler's, of which nothing but the defaults is known here.
            generator: one, or one for each image.
            per_token_timesteps: Euler's, for η = 0 without a variance alone.
            return_dict: False: a tuple (x_s,).
            prev_sample: an x_s that was drawn before: nothing is drawn, its log-probability is given, and the run's
                `step_index` stays where it is.
            log_prob_reduction: "mean" over the d dimensions, or their "sum".
            noise: False: the ODE's step (η = 0 and no γ² v), which has no log-probability.
            variance_noise: the noise to use instead of drawing it.
            features: the trunk's, of these images, for variance_type "head"; None: those that were watched.
            covariance: Σ of this step, in the place of the scheduler's own: what `dv.Jacobian`, which asks the network
                for more than its output, gives of a posterior and `kernel(timestep)`, of images.
            overrides: `eta` or `tau`, for this step.

        Returns: x_s and x̂_0 in the network's dtype, and what else `AnalyticSchedulerOutput` holds.
        """
        check_unused(s_churn, s_tmin, s_tmax, s_noise)
        if per_token_timesteps is not None:
            return self._per_token(model_output, timestep, sample, per_token_timesteps, return_dict)
        check_step(model_output, sample, variance_noise)
        check_alike("model_output", model_output, "sample", sample)
        check_reduction(log_prob_reduction)
        place = self._place(timestep, stays=prev_sample is not None)
        kernel, of_mean, of_data = self._step_at(place, noise, **overrides)
        x = sample if sample.dtype == torch.float64 else sample.float()
        output = model_output.to(x.dtype)
        centre = torch.add(of_mean[0] * x, output, alpha=of_mean[1])
        layout, given = self._layout, covariance
        covariance = None
        if given is not None:
            layout = self._source.layout(self._layout.name, tuple(x.shape[1:]))
            check_covariance_of_step(given, noise, tuple(layout.images(x).shape[1:]))
            covariance = None if kernel.last else given
        elif noise and not kernel.last:
            layout, covariance = self._covariance(kernel, x, output, features)
        if prev_sample is not None:
            check_previous(prev_sample, sample)
            previous = prev_sample
        elif covariance is not None:
            if variance_noise is None:
                generator = self.generator if generator is None else generator
                check_generator(generator, len(x), x.device)
                variance_noise = randn_tensor(x.shape, generator=generator, device=x.device, dtype=x.dtype)
            drawn = layout.samples(covariance.colour(layout.images(variance_noise.to(x.dtype))))
            previous = (centre + drawn).to(model_output.dtype)
        else:
            previous = centre.to(model_output.dtype)
        if kernel.last and self._source.covariance is not None:
            self._source.covariance.report()
        if prev_sample is None:
            self._step_index = place + 1
        if not return_dict:
            return (previous,)
        log_prob = None
        if covariance is not None:
            log_prob = log_probability(covariance, layout.images(previous), layout.images(centre), log_prob_reduction)
        mean = torch.add(of_data[0] * x, output, alpha=of_data[1]).to(model_output.dtype)
        return AnalyticSchedulerOutput(previous, centre, deviation(covariance, centre), log_prob, mean)

    def kernel(
        self, timestep: float | torch.Tensor, eta: float | None = None, tau: float | None = None
    ) -> ReverseKernel:
        """The step that is taken from a timestep, for those who make its covariance themselves; η or τ in the place of
        the config's."""
        return self._step_at(self._place(timestep, stays=True), True, eta, tau)[0]

    def _place(self, timestep: float | torch.Tensor, stays: bool) -> int:
        """The index of the step in the list of σ; `stays`: by the timestep alone, whatever step the run is at."""
        place = self.index_for_timestep(timestep) if stays else self.step_index
        if place is None:
            self._init_step_index(one_timestep(timestep))
            place = self.step_index
        checks.refuse(
            not 0 <= place < len(self.sigmas) - 1,
            f"the run has taken all of its {len(self.sigmas) - 1} steps; call set_timesteps before another one.",
        )
        return int(place)

    def _step_at(
        self, place: int, noise: bool, eta: float | None = None, tau: float | None = None
    ) -> tuple[ReverseKernel, list[float], list[float]]:
        """The step from one σ of the list to the next, with what is overridden for it, and what its mean and x̂_0 weigh
        x_t and F by."""
        given = eta is not None or tau is not None
        eta, tau = (0.0, None) if not noise else check_noise(eta, tau) if given else self._noise
        t, s = self._times()[place : place + 2]
        key = t, s, eta, tau
        if key not in self._steps:
            kernel = ReverseKernel.between(self._source.level(t), self._source.level(s), eta, tau)
            x, output = torch.eye(2, dtype=torch.float64)
            posterior = self._posterior(kernel, x, output)
            self._steps[key] = kernel, kernel.mean(x, posterior).tolist(), posterior.mean.tolist()
        return self._steps[key]

    def _times(self) -> list[float]:
        """t of every σ of the list, from noise to data, as Python's numbers: they are read from the device once."""
        # Tensors of inference mode count no changes.
        state = self.sigmas, -1 if self.sigmas.is_inference() else self.sigmas._version
        if self._read[0] is not state[0] or self._read[1] != state[1]:
            sigmas = [float(sigma) for sigma in self.sigmas.tolist()]
            times = [1.0 - sigma for sigma in sigmas] if self._options.invert_sigmas else sigmas
            self._read = (*state, times)
            self._forget()
        found: list[float] = self._read[2]
        return found

    def _forget(self) -> None:
        """Steps, too: their levels may be ends of what the table measured."""
        super()._forget()
        self._steps.clear()

    def _posterior(self, kernel: ReverseKernel, x: torch.Tensor, output: torch.Tensor) -> Posterior:
        """x̂_0 and ε̂; with `invert_sigmas` the network says x_0 − ε."""
        signed = -output if self._options.invert_sigmas else output
        return Posterior(*mean_and_eps("flow", signed, x, kernel.alpha_t, kernel.sigma_t))

    def _covariance(
        self, kernel: ReverseKernel, x: torch.Tensor, output: torch.Tensor, features: torch.Tensor | None
    ) -> tuple[Layout, StructuredCovariance | None]:
        """Σ of the step, and the layout in which it finds a sample."""
        covariance, layout = self._source.attached(), self._source.layout(self._layout.name, tuple(x.shape[1:]))
        like = layout.images(x)
        self._source.check_sample(tuple(like.shape[1:]))
        if covariance.depends_on_image:
            found = self._posterior(kernel, x, output)
            posterior = self._source.posterior(layout.images(found.mean), layout.images(found.eps), None, features)
        else:
            posterior = Posterior(like, like)  # of it the shape, type and device alone are asked
        if self._covariances is None:
            self._covariances = StepCovariances(covariance)
        return layout, self._covariances.at(posterior, kernel)

    def _per_token(
        self, model_output: torch.Tensor, timestep: Any, sample: torch.Tensor, times: torch.Tensor, return_dict: bool
    ) -> AnalyticSchedulerOutput | tuple[torch.Tensor]:
        """Euler's step with a level for each token."""
        checks.refuse(
            self._source.kind != "fixed_small" or 0.0 not in self._noise,
            "per_token_timesteps are known for the ODE's step alone; use eta=0 and variance_type='fixed_small', or "
            "give all tokens one timestep.",
        )
        own: Any = super()
        (previous,) = own.step(model_output, timestep, sample, per_token_timesteps=times, return_dict=False)
        return AnalyticSchedulerOutput(previous) if return_dict else (previous,)

    # ---- the list of σ ----------------------------------------------------------------------------------------

    def set_timesteps(
        self,
        num_inference_steps: int | None = None,
        device: str | torch.device | None = None,
        sigmas: Any = None,
        mu: float | None = None,
        timesteps: Any = None,
    ) -> None:
        """Choose the list of σ: as FlowMatchEulerDiscreteScheduler does, which has the arguments explained."""
        if num_inference_steps is not None:
            num_inference_steps = checks.whole("num_inference_steps", num_inference_steps, least=1)
        empty = any(given is not None and getattr(given, "__len__", lambda: 1)() == 0 for given in (sigmas, timesteps))
        checks.refuse(
            empty or (num_inference_steps is None and sigmas is None and timesteps is None),
            "set_timesteps needs num_inference_steps, sigmas or timesteps, of one step at least.",
        )
        try:
            cast(Any, super()).set_timesteps(num_inference_steps, device, sigmas, mu, timesteps)
        except (ValueError, TypeError, IndexError) as error:
            raise InputError(
                f"these sigmas or timesteps make no list ({printable(str(error), 200)}); mend them."
            ) from None
        self._source.begin()
        least, most = float(self.sigmas.min()), float(self.sigmas.max())
        checks.refuse(
            not 0.0 <= least <= most <= 1.0,
            f"the list of sigmas goes from {least:.4g} to {most:.4g}, but a flow's lie between 0 and 1; for pipelines "
            "that give this scheduler sigma/alpha of another process, keep their own.",
        )

    def index_for_timestep(self, timestep: float | torch.Tensor, schedule_timesteps: torch.Tensor | None = None) -> int:
        """The index of a timestep in the list (of two that are equal, the second, as diffusers takes it)."""
        known: Any = self.timesteps if schedule_timesteps is None else schedule_timesteps
        one, own = one_timestep(timestep), cast(Any, super())
        try:
            return int(own.index_for_timestep(one.to(known.device) if isinstance(one, torch.Tensor) else one, known))
        except IndexError:
            raise InputError(
                f"timestep={checks.brief(float(one))} is none of the {len(known)} of this run; give one of "
                "scheduler.timesteps."
            ) from None

    # ---- what else pipelines ask of a scheduler ---------------------------------------------------------------

    def scale_model_input(self, sample: torch.Tensor, timestep: Any = None) -> torch.Tensor:
        """The sample as it is: a flow's network takes x_t itself."""
        return sample

    def add_noise(self, original_samples: torch.Tensor, noise: torch.Tensor, timesteps: torch.Tensor) -> torch.Tensor:
        """`scale_noise` by the name and in the order of other schedulers: (1 − σ) x_0 + σ ε."""
        noisy: torch.Tensor = cast(Any, self).scale_noise(original_samples, timesteps, noise)
        return noisy

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        """A scheduler with a list of its own and the same generator: a copy of that would draw the same noise again for
        what a pipeline denoises beside (the sound of a video)."""
        made = type(self).__new__(type(self))
        memo |= {id(self): made, id(self.generator): self.generator}
        made.__dict__.update(copy.deepcopy(self.__dict__, memo))
        return made

    @property
    def _options(self) -> Any:
        """The config, with attributes."""
        return self.config


def _noise_of(config: Mapping[str, Any], eta: float | None, tau: float | None) -> tuple[float | None, float | None]:
    """(η, τ), checked; both None where the config's own, τ = ∞, is meant."""
    if eta is None and tau is None and config.get("stochastic_sampling"):
        return None, None
    return check_noise(eta, tau)
