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
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch

from ..errors import InputError
from ..process.schedule import NoiseSchedule, is_whole
from .features import FeatureTap
from .guidance import Guidance, check_classes, condition_tensor, make_guidance, network_output
from .identity import weights_fingerprint
from .posterior import Posterior
from .prediction import Prediction, check_prediction, mean_and_eps, network_input

if TYPE_CHECKING:
    from .pretrained.latents import LatentCodec
    from .pretrained.prompts import PromptEncoder

Range = tuple[float, float]
Network = Callable[..., Any]


class Denoiser:
    """A network, its schedule and its conventions.

    Args:
        network: any callable (x_t (B, C, H, W), timestep (B,)) -> tensor (B, C or 2C, H, W), or an object with a
            `.sample` attribute holding it; with a condition it is called with that as third argument. A module is
            moved to `device` and put into evaluation mode.
        schedule: the noise schedule that the network was trained with.
        prediction: "epsilon", "sample", "v_prediction", "flow", "score", "edm" or "edm_v" (see `models.prediction`).
        shape: (C, H, W) of one image.
        clip: bounds for x̂_0, or None for no clipping.
        data_range: the range of the data: "clip" (same as `clip`), a pair, or None for unbounded data
            (no range check, no range bound on the variance, no conversion from uint8).
        device: where the network runs; None: where its parameters are, else the CPU.
        autocast: torch.bfloat16 or torch.float16 to run the network under autocast; everything else stays float32.
        sigma_data: σ_d of EDM networks.
        guidance_scale: w of classifier-free guidance; 1: the conditional prediction itself.
        unconditional: the condition that stands for none, of one image; wanted where guidance_scale is not 1.
        conditional: whether the network needs a condition (then a missing one is refused before the network runs), or
            takes none (False); None: not known.
        classes: how many class labels the network knows, the one for none included; None: it takes no labels.

    Attributes `codec` and `prompts` are what a pretrained pipeline brings along: how images become latents and prompts
    become conditions; None otherwise.

    Raises InputError for arguments that do not fit together.
    """

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
        check_prediction(prediction, schedule)
        if not sigma_data > 0:
            raise InputError(f"sigma_data={sigma_data} must be positive.")
        if len(shape) != 3 or any(not is_whole(n) or n < 1 for n in shape):
            raise InputError(f"shape must be (C, H, W) with positive integers, but it is {tuple(shape)}.")
        self.network = network
        self.schedule = schedule
        self.prediction: Prediction = prediction
        self.shape = (int(shape[0]), int(shape[1]), int(shape[2]))
        self.clip = check_range("clip", clip)
        self.data_range = self.clip if data_range == "clip" else check_range("data_range", data_range)
        self.autocast = autocast
        self.sigma_data = float(sigma_data)
        self.conditional, self.classes, self.unconditional = conditional, classes, unconditional
        self.guidance = self._guidance(guidance_scale, unconditional)
        self.codec: LatentCodec | None = None
        self.prompts: PromptEncoder | None = None
        self._fingerprint: tuple[Any, str] | None = None
        self._tap: FeatureTap | None = None
        self.device = torch.device(device) if device is not None else _device_of(network)
        if isinstance(network, torch.nn.Module):
            network.to(self.device).eval()  # dropout would make the posterior random
        timestep = schedule.timestep[1:]
        # Networks with an embedding table want integers; all others take them as well.
        self._timestep_dtype = torch.int64 if np.array_equal(timestep, timestep.round()) else torch.float32

    @classmethod
    def from_pretrained(cls, path: str | Path, **options: Any) -> Denoiser:
        """A diffusers pipeline, or UNet and scheduler, in a folder or on the hub. See `models.pretrained.load`."""
        from .pretrained.load import load

        return load(path, **options)

    def with_guidance(self, scale: float, unconditional: Any = None) -> Denoiser:
        """The same denoiser with another guidance scale; `unconditional` None keeps the present one."""
        other = copy.copy(self)
        other.unconditional = self.unconditional if unconditional is None else unconditional
        if other.unconditional is None and scale != 1 and self.prompts is not None:
            other.unconditional = self.prompts.encode([""])[0]
        other.guidance = self._guidance(scale, other.unconditional)
        return other

    def with_features(self, module: str | None = None) -> Denoiser:
        """The same denoiser, whose posteriors hold the trunk's last activations; see `features.FeatureTap`."""
        other = copy.copy(self)
        other._tap = FeatureTap(self.network, module)
        return other

    def _guidance(self, scale: float, unconditional: Any) -> Guidance | None:
        guidance = make_guidance(scale, unconditional)
        if guidance is not None and self.classes is not None:
            check_classes(guidance.unconditional.reshape(-1), self.classes)
        return guidance

    @property
    def guidance_scale(self) -> float:
        """w of classifier-free guidance; 1 without."""
        return 1.0 if self.guidance is None else self.guidance.scale

    # ---- the posterior ----------------------------------------------------------------------------------------

    def __call__(self, x_t: torch.Tensor, n: int | torch.Tensor, condition: Any = None) -> Posterior:
        """The posterior at x_t.

        Args:
            x_t: (B, C, H, W) on the denoiser's device.
            n: one index in 1…N for the batch, or a (B,) integer tensor (on the CPU) of them.
            condition: (B, …) class labels or embeddings, the network's third argument; None for networks without.
        """
        if tuple(x_t.shape[1:]) != self.shape:
            raise InputError(
                f"x_t has shape {tuple(x_t.shape)}, but this denoiser takes (B, {', '.join(map(str, self.shape))})."
            )
        alpha, sigma = self.coefficients(n, x_t)
        if self._tap is None:
            features, (prediction, extra) = None, self._predict(x_t, n, condition)
        else:
            with self._tap.reading() as seen:
                prediction, extra = self._predict(x_t, n, condition)
            features = self._tap.features(seen, len(x_t))
        mean, eps = mean_and_eps(self.prediction, prediction, x_t, alpha, sigma, self.sigma_data)
        if self.clip is not None:
            mean = mean.clamp(*self.clip)
        return Posterior(mean, eps, extra, features)

    def coefficients(self, n: int | torch.Tensor, x_t: torch.Tensor) -> tuple[Any, Any]:
        """(α_n, σ_n), floats for one index, else tensors (B, 1, 1, 1) like x_t; float64 until this cast."""
        if not isinstance(n, torch.Tensor):
            n = self.schedule.check_index(n)
            return float(self.schedule.alpha[n]), float(self.schedule.sigma[n])
        indices = self._check_indices(n, len(x_t))
        alpha, sigma = (
            torch.from_numpy(array[indices]).to(x_t.device, x_t.dtype)[:, None, None, None]
            for array in (self.schedule.alpha, self.schedule.sigma)
        )
        return alpha, sigma

    def _check_indices(self, n: torch.Tensor, batch: int) -> np.ndarray[Any, np.dtype[np.int64]]:
        indices = n.cpu().numpy()
        if (
            indices.shape != (batch,)
            or indices.dtype.kind not in "iu"
            or (indices < 1).any()
            or (indices > self.schedule.num_steps).any()
        ):
            raise InputError(
                f"n must be an integer or a ({batch},) tensor of integers from 1 to {self.schedule.num_steps}, "
                f"but it is {n}."
            )
        return indices

    def _predict(
        self, x_t: torch.Tensor, n: int | torch.Tensor, condition: Any
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """The network's raw prediction and, for 2C channels, its second half. Exact denoisers override this."""
        if isinstance(n, torch.Tensor):
            timestep = torch.from_numpy(self.schedule.timestep[self._check_indices(n, len(x_t))]).to(
                x_t.device, self._timestep_dtype
            )
        else:
            timestep = torch.full((len(x_t),), float(self.schedule.timestep[n]), device=x_t.device).to(
                self._timestep_dtype
            )
        out = self._run(
            network_input(self.prediction, x_t, *self.coefficients(n, x_t), self.sigma_data), timestep, condition
        )
        out = network_output(out, x_t).to(x_t.dtype)
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
        """The network itself, guided if asked for, in its own precision."""
        condition = self._check_condition(condition, len(x))
        if isinstance(self.network, torch.nn.Module) and (low := _half_precision(self.network)) is not None:
            x = x.to(low)
            if isinstance(condition, torch.Tensor) and condition.is_floating_point():
                condition = condition.to(low)
        autocast = (
            contextlib.nullcontext() if self.autocast is None else torch.autocast(x.device.type, dtype=self.autocast)
        )
        with autocast:
            if condition is None:
                out = self.network(x, timestep)
            elif self.guidance is None:
                out = self.network(x, timestep, condition)
            else:
                out = self.guidance.predict(self.network, x, timestep, condition)
        return out

    def _check_condition(self, condition: Any, batch: int) -> Any:
        if condition is None:
            if self.conditional or self.guidance is not None:
                raise InputError(
                    "this network needs a condition, but none was given; pass class labels or prompt embeddings, one "
                    "for each image (condition= or conditions=)."
                )
            return None
        if self.conditional is False:
            raise InputError("this network takes no condition, but one was given; leave it out.")
        if isinstance(condition, Mapping) and self.guidance is None:
            return condition  # a network of the user's own, which knows what to do with it
        condition = condition_tensor(condition)
        if self.classes is not None:
            check_classes(condition, self.classes)
        condition = condition.to(self.device)
        if condition.ndim == 0 or len(condition) != batch:
            raise InputError(f"condition has shape {tuple(condition.shape)} for {batch} images; give one for each.")
        return condition

    # ---- what a table remembers of it -------------------------------------------------------------------------

    @property
    def fingerprint(self) -> str | None:
        """SHA-256 over the network's weights (names, shapes, float values), or None where it has none to read."""
        if not isinstance(self.network, torch.nn.Module):
            return None
        try:  # weights may be swapped or trained on; their version counters tell, at no cost
            stamp = tuple((t.data_ptr(), t._version) for t in self.network.state_dict().values())
        except RuntimeError:  # tensors made in inference mode have none
            return weights_fingerprint(self.network)
        if self._fingerprint is None or self._fingerprint[0] != stamp:
            self._fingerprint = stamp, weights_fingerprint(self.network)
        return self._fingerprint[1]


def check_range(name: str, bounds: Range | None) -> Range | None:
    if bounds is None:
        return None
    try:
        low, high = (float(bound) for bound in bounds)
    except (TypeError, ValueError):
        low = high = math.nan
    if not (math.isfinite(low) and math.isfinite(high) and low < high):
        raise InputError(f"{name}={bounds!r} must be a pair of finite numbers, low < high, or None.")
    return low, high


def _device_of(network: Network) -> torch.device:
    if isinstance(network, torch.nn.Module):
        for parameter in network.parameters():
            return parameter.device
    return torch.device("cpu")


def _half_precision(network: torch.nn.Module) -> torch.dtype | None:
    """The dtype of a network in half precision; None in others, where inputs are passed on as they are."""
    for parameter in network.parameters():
        if parameter.is_floating_point():
            return parameter.dtype if parameter.dtype in (torch.float16, torch.bfloat16) else None
    return None
