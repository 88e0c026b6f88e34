"""A denoiser: any pretrained network seen as an estimate of E[x_0|x_t].

Foreign networks become a `Denoiser` here and only here: what the network predicts, what it is told as its timestep,
guidance, clipping and the second half of a 2C-channel output are settled once (the formulas are in `prediction` and
`guidance`), and the rest of the package sees a `Posterior`.

Clipping bounds x̂_0 and leaves ε̂ as the network gave it; which ε̂ a step then uses is the step's business
(`ReverseKernel.clipped_eps`).
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch

from .. import checks
from ..errors import InputError
from ..process.level import NoiseLevel
from ..process.schedule import NoiseSchedule, as_schedule
from ..unwrapping import device_of, is_placed
from .classifier_guidance import (
    ClassifierGuidance,
    check_signal,
    checked_labels,
    classifier_guided,
    make_classifier_guidance,
)
from .conditions import as_nest, batch_of, check_classes, digest_of, map_leaves
from .derivative import Derivative, Linearised, Probes
from .features import FeatureTap
from .fingerprint import weights_fingerprint
from .guidance import Guidance, make_guidance, network_output
from .identity import ModelIdentity, network_facts
from .network_checks import check_autocast, check_conditional, check_convention, check_network, checked_device, move
from .network_use import NetworkUse, placed
from .posterior import Posterior
from .precision import InputPrecision, leading_dtype
from .prediction import Prediction, check_levels, check_prediction, mean_and_eps, network_input, step_before

if TYPE_CHECKING:
    from .pretrained.latents import LatentCodec
    from .pretrained.prompt_record import PipelinePrompts
    from .pretrained.prompts import PromptEncoder

Range = checks.Range
Network = Callable[..., Any]
#: Where on the schedule a batch is: one index or level for all of it, or one for each image.
Place = int | torch.Tensor | NoiseLevel | list[NoiseLevel]


class Denoiser:
    """A network, its schedule and its conventions.

    Args:
        network: any callable (x_t (B, C, *spatial), timestep (B,)) -> tensor (B, C or 2C, *spatial), or an object with
            a `.sample` attribute holding it; with a condition it is called with that as third argument. A module is
            moved to `device`; it is evaluated in evaluation mode, and left in its own.
        schedule: the noise schedule that the network was trained with; a diffusers scheduler (or its config) stands for
            its own.
        prediction: "epsilon", "sample", "v_prediction", "flow", "flow_to_data", "score", "trigflow", "edm", "edm_v", or
            "previous_x" at the indices of `schedule` alone (see `models.prediction`).
        shape: (C, *spatial) of one image: (C, H, W), or (C,) of vectors, (C, L) of signals, (C, F, H, W) of videos.
        clip: bounds for x̂_0, or None for no clipping.
        data_range: the range of the data: "clip" (same as `clip`), a pair, or None for unbounded data
            (no range check, no range bound on the variance, no conversion from uint8).
        device: where the network runs; None: where its parameters are, else the CPU.
        autocast: torch.bfloat16 or torch.float16 to run the network under autocast; everything else stays float32.
        sigma_data: σ_d of EDM and TrigFlow networks.
        guidance_scale: w of classifier-free guidance; 1: the conditional prediction itself.
        unconditional: the condition that stands for none, of one image (a tensor, or a nest of them); wanted where
            guidance_scale is not 1.
        conditional: whether the network needs a condition (then a missing one is refused before the network runs), or
            takes none (False); None: not known.
        classes: how many class labels the network knows, the one for none included; None: it takes no labels.

    Attributes `codec` and `prompts` are what a pretrained pipeline brings along: how images become latents and prompts
    become conditions; None otherwise.

    Raises InputError for arguments that do not fit together.
    """

    #: Whether the posterior is a closed form, which needs no network and no doubts about one.
    exact = False

    def __init__(
        self,
        network: Network,
        schedule: NoiseSchedule,
        prediction: Prediction = "epsilon",
        shape: Sequence[int] = (3, 32, 32),
        clip: Range | None = (-1.0, 1.0),
        data_range: Range | Literal["clip"] | None = "clip",
        *,
        device: torch.device | str | None = None,
        autocast: torch.dtype | None = None,
        sigma_data: float = 0.5,
        guidance_scale: float = 1.0,
        unconditional: Any = None,
        conditional: bool | None = None,
        classes: int | None = None,
    ) -> None:
        check_network(network)
        self.network = network
        self.schedule = as_schedule(schedule)
        check_prediction(prediction, self.schedule)
        check_convention(network, prediction, self.schedule)
        self.prediction: Prediction = prediction
        self.shape = checks.shape("shape", shape)
        self.clip = checks.bounds("clip", clip)
        self.data_range = self.clip if data_range == "clip" else checks.bounds("data_range", data_range)
        self.autocast = check_autocast(autocast)
        self.sigma_data = checks.positive("sigma_data", sigma_data, "positive")
        self.conditional = check_conditional(conditional)
        self.classes = None if classes is None else checks.whole("classes", classes, least=1)
        self.unconditional = unconditional
        self.guidance = self._guidance(guidance_scale, unconditional)
        self.classifier: ClassifierGuidance | None = None
        self.codec: LatentCodec | None = None
        self.prompts: PromptEncoder | PipelinePrompts | None = None
        self._tap: FeatureTap | None = None
        self._linearised: Linearised | None = None
        self.use = NetworkUse()
        self._precision = InputPrecision()
        self.device = device_of(network) if device is None else checked_device(device)
        if isinstance(network, torch.nn.Module) and not is_placed(network):
            move(network, self.device)

    @classmethod
    def from_pretrained(
        cls,
        path: str | Path,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        variant: str | None = None,
        revision: str | None = None,
        autocast: torch.dtype | None = None,
        guidance_scale: float | None = None,
        unconditional: Any = None,
        allow_pickle: bool = False,
        call: Mapping[str, Any] | None = None,
    ) -> Denoiser:
        """A diffusers pipeline, or a network with its scheduler, in a folder or on the hub.

        Args:
            path: a local folder as `save_pretrained` writes it, a hub id, or "digits" or "photographs", the small
                bundled models.
            device: where to run; None: the GPU if there is one, else the CPU.
            dtype: of the weights, e.g. torch.float16; None: float32. Results have the dtype of x_t.
            variant: of the weight files, e.g. "fp16".
            revision: branch, tag or commit of a hub repository.
            autocast: see `Denoiser`.
            guidance_scale: see `Denoiser`, of whole pipelines `from_pipeline`; None: no classifier-free guidance where
                `call` has no scale, and of a network that is told a scale (FLUX.1-dev) its pipeline's own.
            unconditional: the condition that stands for none; by default the empty prompt's embedding, or DiT's null
                label.
            allow_pickle: read .bin weights where there are no safetensors (with torch's weights_only=True).
            call: arguments of the pipeline's call, such as height, width, num_frames and negative_prompt; see
                `from_pipeline`, which whole pipelines are loaded through.

        Raises InputError for a missing folder or file, an unsupported network or scheduler, and configs that contradict
        each other.
        """
        from .pretrained.load import load  # which makes denoisers: one of the two circles that stay

        options = (device, dtype, variant, revision, autocast, guidance_scale, unconditional, allow_pickle, call)
        return load(path, *options)

    @classmethod
    def from_pipeline(
        cls,
        pipe: Any,
        *,
        guidance_scale: float | None = None,
        device: torch.device | str | None = None,
        autocast: torch.dtype | None = None,
        layout: Any = None,
        **call: Any,
    ) -> Denoiser:
        """A loaded diffusers pipeline, run by its own code: its prompts, its packing of latents, its guidance, what it
        tells its network. Its model output is what its loop computes, also of pipelines that are not known here.

        Args:
            pipe: the pipeline, with its scheduler. It is not changed, but its network goes to `device`, and its text
                encoders to the CPU once prompts are encoded (not where accelerate's hooks place them).
            guidance_scale: of classifier-free guidance, by the pipeline's own convention; of a network that is told a
                guidance scale (FLUX.1-dev), that one, which is no such guidance. None: the pipeline's default.
            device: where to run; None: where the network is.
            autocast: see `Denoiser`.
            layout: how samples become images (C, *spatial), e.g. "tokens_2x2"; None: known by the pipeline's class.
            call: others of the pipeline's call: height=, width=, num_frames=, negative_prompt=, true_cfg_scale=, …

        `denoiser.prompts.encode([…])` makes the conditions; of UNets that take an image beside the noisy one
        (inpainting) they are {"prompt": …, "concatenated": (B, c, h, w)}. Raises InputError, with what is missing, for
        a pipeline that cannot be run so.
        """
        from .pretrained.load import load_pipeline  # which makes denoisers

        return load_pipeline(pipe, guidance_scale, device, autocast, layout, call)

    @classmethod
    def from_openai(
        cls,
        path: str | Path,
        hyperparameters: Mapping[str, Any],
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        autocast: torch.dtype | None = None,
        clip: Range | None = (-1.0, 1.0),
    ) -> Denoiser:
        """A checkpoint of OpenAI's improved-diffusion or guided-diffusion, in diffusers' `UNet2DModel`.

        Args:
            path: the state dict, a .pt file (read with torch's weights_only=True) or safetensors.
            hyperparameters: by the names of the repositories' flags, e.g. {"image_size": 64, "num_heads": 4,
                "diffusion_steps": 4000, "noise_schedule": "cosine", "rescale_timesteps": True}, see
                `models.pretrained.openai.OpenAIFlags`. Those that shapes tell may be left out, and are compared.
            device: where to run; None: the GPU if there is one, else the CPU.
            dtype: of the weights; None: float32.
            autocast: see `Denoiser`.
            clip: bounds for x̂_0. (OpenAI's samplers do not clip the mean of a step where that is what is predicted.)

        Networks that learned their variances have 2C channels: see `LearnedRange`, and for their LEARNED
        `LearnedVariance`. Raises InputError for a file that is none, and for weights of another architecture, naming
        the first key that does not fit.
        """
        from .pretrained.openai import read_openai

        model = read_openai(path, hyperparameters, dtype)
        device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        return cls(**model, clip=clip, data_range=(-1.0, 1.0), device=device, autocast=autocast)

    def with_guidance(self, scale: float, unconditional: Any = None) -> Denoiser:
        """The same denoiser with another guidance scale, 1 for none; `unconditional` None keeps the present one."""
        other = copy.copy(self)
        if hasattr(self.network, "features_in_order"):  # a pipeline's loop, which guides itself
            checks.refuse(
                unconditional is not None,
                "this denoiser is run by its pipeline's own loop, which makes what stands for none of a negative "
                "prompt; leave unconditional out, and give negative_prompt in the pipeline's call.",
            )
            loop: Any = self.network
            other.network = loop = loop.with_guidance(scale, self.device)
            other.prompts, other.guidance = loop.prompts(self.device), loop.guidance
            return other
        other.unconditional = self.unconditional if unconditional is None else unconditional
        if other.unconditional is None and scale != 1 and self.prompts is not None:
            other.unconditional = map_leaves(lambda leaf: leaf[0], self.prompts.encode([""]))
        other.guidance = self._guidance(scale, other.unconditional)
        return other

    def with_classifier(self, classifier: Callable[..., Any], scale: float = 1.0) -> Denoiser:
        """The same denoiser guided by a classifier of noisy images [E22], which takes class labels as conditions; after
        classifier-free guidance, and before clipping.

        Args:
            classifier: a module, or a function, (x_t (B, C, *spatial), timestep (B,)) -> logits (B, K); told the
                timestep that the network is told. A module is moved to the denoiser's device, and evaluated in
                evaluation mode.
            scale: s; 1 is Bayes' rule.

        The network gets the labels too if it is conditional; of one that is not, the classifier alone gets them.
        Source: Dhariwal and Nichol, arXiv:2105.05233. Raises InputError for what is no classifier, and a network of
        which it is not known whether it takes labels.
        """
        other = copy.copy(self)
        known = self.classifier.shared if self.classifier is not None else self.conditional
        shared = False if self.exact else known
        other.classifier = make_classifier_guidance(classifier, scale, shared, self.device)
        other.conditional = True
        return other

    def with_features(self, module: str | None = None) -> Denoiser:
        """The same denoiser, whose posteriors hold the trunk's last activations; see `features.FeatureTap`."""
        other = copy.copy(self)
        other._tap = FeatureTap(self.network, module, spatial_axes=len(self.shape) - 1)
        other.network = other._tap.network
        return other

    def with_jacobian(self, probes: Probes | None = None, derivative: Derivative = "forward") -> Denoiser:
        """The same denoiser, whose posteriors hold products with the mean's derivative; see `derivative.Linearised`."""
        other = copy.copy(self)
        other._linearised = Linearised(probes, derivative)
        return other

    def without_jacobian(self) -> Denoiser:
        """The same denoiser, whose posteriors are the mean's alone."""
        other = copy.copy(self)
        other._linearised = None
        return other

    def _guidance(self, scale: float, unconditional: Any) -> Guidance | None:
        guidance = make_guidance(scale, unconditional)
        if guidance is not None and self.classes is not None:
            check_classes(map_leaves(lambda null: null.reshape(-1), guidance.unconditional), self.classes)
        return guidance

    @property
    def guidance_scale(self) -> float:
        """w of classifier-free guidance; 1 without."""
        return 1.0 if self.guidance is None else self.guidance.scale

    @property
    def guided_by(self) -> float | None:
        """The scale of guidance that makes the mean another than the posterior's: classifier-free, or by a classifier;
        None without."""
        if self.guidance is not None:  # also at 1, where a pipeline that guides from 0 on is guided
            return self.guidance.scale
        return None if self.classifier is None or self.classifier.scale == 1 else self.classifier.scale

    @property
    def in_half_precision(self) -> bool:
        """Whether the network computes in less than float32."""
        return self.autocast is not None or leading_dtype(self.network) in (torch.float16, torch.bfloat16)

    # ---- the posterior ----------------------------------------------------------------------------------------

    def __call__(self, x_t: torch.Tensor, n: Place, condition: Any = None) -> Posterior:
        """The posterior at x_t.

        Args:
            x_t: (B, C, *spatial) on the denoiser's device.
            n: one index in 1…N or `NoiseLevel` for the batch, a (B,) integer tensor (on the CPU) of indices, or a list
                of B levels.
            condition: (B, …) class labels or embeddings, or a nest of such, the network's third argument; None for
                networks without.
        """
        checks.instance("x_t", x_t, torch.Tensor, "a tensor of floats")
        checks.refuse(not x_t.is_floating_point(), f"x_t is {x_t.dtype}, but floats are expected.")
        if tuple(x_t.shape[1:]) != self.shape:
            raise InputError(
                f"x_t has shape {tuple(x_t.shape)}, but this denoiser takes (B, {', '.join(map(str, self.shape))})."
            )
        self._check_device(x_t)
        if self._linearised is not None:
            return self._linearised(self.without_jacobian(), x_t, n, condition)
        check_levels(self.prediction, n, len(x_t))
        alpha, sigma = self.schedule.coefficients(n, x_t)
        before = step_before(self.schedule, n, x_t) if self.prediction == "previous_x" else None
        labels = self._labels(condition, n, len(x_t))
        with self.use.evaluating(self.network):
            if self._tap is None:
                features, (prediction, extra) = None, self._predict(x_t, n, condition)
            else:
                with self._tap.reading() as seen:
                    prediction, extra = self._predict(x_t, n, condition)
                in_order: Any = getattr(self.network, "features_in_order", None)  # of a pipeline's loop
                features = self._tap.features(seen if in_order is None else in_order(seen), len(x_t))
        mean, eps = mean_and_eps(self.prediction, prediction, x_t, alpha, sigma, self.sigma_data, before)
        if self.classifier is not None and labels is not None:
            gradient = self.classifier.gradient(x_t, self.schedule.timesteps(n, len(x_t), x_t.device), labels, n)
            mean, eps = classifier_guided(mean, eps, gradient, self.classifier.scale, alpha, sigma)
        if self.clip is not None:
            mean = mean.clamp(*self.clip)
        return Posterior(mean, eps, extra, features)

    def _predict(self, x_t: torch.Tensor, n: Place, condition: Any) -> tuple[torch.Tensor, torch.Tensor | None]:
        """The network's raw prediction and, for 2C channels, its second half. Exact denoisers override this."""
        timestep = self.schedule.timesteps(n, len(x_t), x_t.device)
        shown = network_input(self.prediction, x_t, *self.schedule.coefficients(n, x_t), self.sigma_data)
        with placed(self.network, n, x_t):
            return self.raw_output(shown, timestep, condition)

    def raw_output(
        self, shown: torch.Tensor, timestep: torch.Tensor, condition: Any = None
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """The network's output for what it is shown (B, C, *spatial) and told (B,), guided, whatever it may mean; and
        of 2C channels the second half."""
        out = network_output(self._run(shown, timestep, condition), shown)
        out = out.to(shown.dtype, copy=True)  # the network may use its own memory again
        channels = self.shape[0]
        if out.shape[1] == channels:
            return out, None
        if out.shape[1] == 2 * channels:
            return out[:, :channels], out[:, channels:]
        raise InputError(
            f"the network returned {out.shape[1]} channels, but images have {channels}; expected {channels} or "
            f"{2 * channels}."
        )

    def _run(self, x: torch.Tensor, timestep: torch.Tensor, condition: Any) -> Any:
        """The network itself, guided if asked for, in its own precision, and on copies: it may write into them."""
        condition = self._check_condition(condition, len(x))
        autocast = (
            contextlib.nullcontext() if self.autocast is None else torch.autocast(x.device.type, dtype=self.autocast)
        )
        with autocast:
            return self._precision.evaluate(self.network, self._evaluate, x, timestep, condition)

    def _evaluate(self, x: torch.Tensor, timestep: torch.Tensor, condition: Any) -> Any:
        if condition is None:
            return self.network(x, timestep)
        if self.guidance is None:
            return self.network(x, timestep, condition)
        return self.guidance.predict(self.network, x, timestep, condition)

    def _check_condition(self, condition: Any, batch: int) -> Any:
        """The condition of a batch on the device, or None."""
        if self.classifier is not None and not self.classifier.shared:
            return None
        if condition is None:
            self.require_condition()
            return None
        checks.refuse(self.conditional is False, "this network takes no condition, but one was given; leave it out.")
        condition = as_nest(condition)
        if self.classes is not None:
            check_classes(condition, self.classes)
        condition = map_leaves(lambda leaf: leaf.to(self.device), condition)
        batch_of(condition, batch)
        return condition

    def _labels(self, condition: Any, n: Place, batch: int) -> torch.Tensor | None:
        """The labels that a batch is guided to by a classifier; None without one."""
        if self.classifier is None:
            return None
        check_signal(self.schedule, n)
        return checked_labels(condition, batch, self.device)

    def _check_device(self, x_t: torch.Tensor) -> None:
        if isinstance(self.network, torch.nn.Module) and x_t.device.type != self.device.type:
            raise InputError(f"x_t is on {x_t.device}, but this denoiser runs on {self.device}; move it there.")

    def require_condition(self) -> None:
        """Refuse to go without a condition where the network, or its guidance, needs one."""
        checks.refuse(
            bool(self.conditional) or self.guidance is not None,
            "this network needs a condition, but none was given; pass class labels or prompt embeddings, one for each "
            "image (condition= or conditions=).",
        )

    def require_condition_of(self, conditions: Any, name: str) -> None:
        """Refuse data called `name` that have no conditions where the model needs some."""
        checks.refuse(
            conditions is None and (bool(self.conditional) or self.guidance is not None),
            f"this model is conditional, but {name} have no conditions; pass their labels or embeddings.",
        )

    # ---- what a table remembers of it -------------------------------------------------------------------------

    def identity(self, beside: ModelIdentity | None = None, keep: bool = False) -> ModelIdentity:
        """All that decides its posteriors, the network as it is now; see `identity.network_facts` for the arguments."""
        null = None if self.guidance is None else digest_of(self.guidance.unconditional)
        facts: dict[str, Any] = {
            "shape": list(self.shape),
            "prediction": self.prediction,
            "clip": None if self.clip is None else list(self.clip),
            "data_range": None if self.data_range is None else list(self.data_range),
            "guidance_scale": self.guidance_scale,
            "unconditional": null,
            "autocast": None if self.autocast is None else str(self.autocast),
            "sigma_data": self.sigma_data if self.prediction in ("trigflow", "edm", "edm_v") else None,
        }
        if self.codec is not None and self.codec.common_scaling is not None:
            scaling = self.codec.common_scaling
            facts["latent_scaling"] = [list(part) if isinstance(part, tuple) else part for part in scaling]
        facts |= getattr(self.network, "facts", {})
        of_network = self._network_facts(beside, keep)
        facts |= of_network if self.classifier is None else self.classifier.facts(of_network)
        return ModelIdentity(self.schedule, facts)

    def _network_facts(self, beside: ModelIdentity | None, keep: bool) -> dict[str, Any]:
        """What tells the network from others. Exact denoisers override this."""
        return network_facts(self.network, self.schedule, self.shape, self.classes, self.device, beside, keep)

    def conditioned_on(self) -> dict[str, Any]:
        """What its mean follows beside x_t and the condition (a measurement), as plain data; nothing for E[x_0|x_t]."""
        return {}

    def condition_of(self, images: Sequence[int], condition: Any) -> Any:
        """The condition of a batch of a run's images, by their indices, where it is more than what the caller gave."""
        return condition

    def counts(self) -> list[int]:
        """What `report` tells of, as numbers that can be added: of what processes did that share a run."""
        return []

    def add_counts(self, counts: list[int]) -> None:
        """Take what another process has counted, its `counts`, for this one's own."""

    def report(self) -> None:
        """Warn of what went wrong without ending the run, since the last report; called at the end of one."""

    @property
    def fingerprint(self) -> str | None:
        """The digest of the network's weights (names, shapes, float values) as they are now, see `fingerprint`; None
        where it has none to read. With a classifier, of both and the scale. It is taken anew each time: ask when it
        matters, not at every step."""
        return self._own_fingerprint if self.classifier is None else self.classifier.digest(self._own_fingerprint)

    @property
    def _own_fingerprint(self) -> str | None:
        """That of the network alone. Exact denoisers override this."""
        return weights_fingerprint(self.network) if isinstance(self.network, torch.nn.Module) else None


def check_denoiser(denoiser: Any, unconditioned: str | None = None) -> None:
    """Refuse what is no denoiser: a bare network, a pipeline, a path, the class itself; and, for what is about
    E[x_0|x_t] alone (its name is `unconditioned`), one that follows a measurement."""
    hint = "; read one with dv.Denoiser.from_pretrained(path)" if isinstance(denoiser, str | Path) else ""
    checks.instance("denoiser", denoiser, Denoiser, f"a dv.Denoiser{hint or _WRAP}")
    if unconditioned is not None and denoiser.conditioned_on():
        raise InputError(
            f"{unconditioned} is about E[x_0|x_t], but this denoiser is conditioned on a measurement, whose errors are "
            "of another question; pass the denoiser that it was made of (its .base)."
        )


_WRAP = "; wrap the network in one (dv.Denoiser(network, schedule, …))"
