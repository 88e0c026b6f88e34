"""What a network's output says of x_0 and ε, for every parametrisation, written once.

With x_t = α x_0 + σ ε and s = σ/α the network's output F stands for

    epsilon        ε̂ = F,                            x̂_0 = (x_t − σ F)/α
    sample         x̂_0 = F,                          ε̂ = (x_t − α F)/σ
    v_prediction   F = α ε − σ x_0:                   x̂_0 = (α x_t − σ F)/(α² + σ²),  ε̂ = (σ x_t + α F)/(α² + σ²)
    flow           F = ε − x_0:                       x̂_0 = (x_t − σ F)/(α + σ),      ε̂ = (x_t + α F)/(α + σ)
    flow_to_data   F = x_0 − ε:                       flow with −F (Mochi)
    score          F = ∇ log q(x_t) = −ε/σ:           ε̂ = −σ F,                       x̂_0 = (x_t + σ² F)/α
    trigflow       F = α z − (σ/σ_d) x_0 of noise z = σ_d ε, with r = σ/σ_d:
                   x̂_0 = (α x_t − r F)/(α² + r²),     ε̂ = (r x_t + α F)/(σ_d (α² + r²))
    edm            x̂_0 = c_skip x_t/α + c_out F,      c_skip = σ_d²/(s² + σ_d²),  c_out = s σ_d/√(s² + σ_d²),
                   and the network is shown c_in x_t/α, c_in = 1/√(s² + σ_d²)
    edm_v          the same with c_out negative (diffusers' EDM schedulers with prediction_type v_prediction)

Each holds for every schedule, so that an EDM network may be used on a variance-preserving grid and the reverse. One
depends on the grid that the network was trained on, and is known at its indices alone, t = n and s = n − 1 [E21]:

    previous_x     F = E[x_s|x_t] = γ x̂_0 + (c/σ_t) x_t:   x̂_0 = (F − (c/σ_t) x_t)/γ,  ε̂ = (α_s x_t − α_t F)/(σ_t γ)

Sources: v-prediction arXiv:2202.00512, rectified flow arXiv:2209.03003, score SDE arXiv:2011.13456, EDM
arXiv:2206.00364 (eq. 7 and table 1), TrigFlow arXiv:2410.11081, the mean of the index before DDPM's (arXiv:2006.11239,
eq. 7 and §3.2).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
import torch

from .. import checks
from ..errors import InputError
from ..process.kernel import ReverseKernel
from ..process.level import NoiseLevel
from ..process.schedule import NoiseSchedule

# fmt: off
Prediction = Literal[
    "epsilon", "sample", "v_prediction", "flow", "flow_to_data", "score", "trigflow", "edm", "edm_v", "previous_x"
]
# fmt: on
#: Those that networks are trained in here.
TrainedPrediction = Literal["epsilon", "v_prediction", "flow"]
#: Those that say nothing of x_0 where α = 0.
_NEED_SIGNAL: tuple[Prediction, ...] = ("epsilon", "score", "edm", "edm_v")


def check_prediction(prediction: str, schedule: NoiseSchedule) -> None:
    """Refuse an unknown prediction type, and one that cannot serve a schedule with zero terminal SNR."""
    checks.one_of("prediction", prediction, get_args(Prediction))
    if prediction in _NEED_SIGNAL and schedule.zero_terminal_snr:
        raise InputError(
            f"the schedule has zero terminal SNR (alpha[N] = 0), where the prediction type {prediction} says nothing "
            "about x_0; use a v_prediction, flow or sample network, or a schedule that ends before."
        )


def check_levels(prediction: str, n: Any, batch: int) -> None:
    """Refuse a place that a network says nothing of: clean data, a level without signal where the prediction type needs
    some, and a list of levels that is not one for each of a batch. Indices are checked by their schedule."""
    levels = n if isinstance(n, list) else [n] if isinstance(n, NoiseLevel) else []
    wrong = isinstance(n, list) and len(n) != batch
    checks.refuse(wrong, f"n is a list of {len(levels)} noise levels for {batch} images; give one, or one for each.")
    for level in levels:
        checks.instance("n", level, NoiseLevel, "an index, or a dv.NoiseLevel, such as schedule.level(500)")
        checks.refuse(level.is_clean, "n is clean data, where x_0 is x_t itself; give a noise level.")
        checks.refuse(
            level.alpha == 0.0 and prediction in _NEED_SIGNAL,
            f"n is a level without signal (alpha = 0), where the prediction type {prediction} says nothing about x_0; "
            "begin at a level that has some, or use a v_prediction, flow or sample network.",
        )


def network_input(prediction: Prediction, x_t: torch.Tensor, alpha: Any, sigma: Any, sigma_data: float) -> torch.Tensor:
    """What the network is shown of x_t: for EDM c_in x_t/α = x_t/√(σ² + α² σ_d²), else x_t itself."""
    if prediction not in ("edm", "edm_v"):
        return x_t
    scaled: torch.Tensor = x_t * (sigma * sigma + (alpha * sigma_data) ** 2) ** -0.5
    return scaled


def network_target(prediction: TrainedPrediction, x_0: torch.Tensor, eps: torch.Tensor, alpha: Any, sigma: Any) -> Any:
    """F, what a network of this prediction type should return: the image and the noise as one. See the module."""
    if prediction == "epsilon":
        return eps
    return eps - x_0 if prediction == "flow" else alpha * eps - sigma * x_0


def eps_of_mean(x_t: torch.Tensor, mean: torch.Tensor, alpha: Any, sigma: Any) -> torch.Tensor:
    """ε̂ = (x_t − α x̂_0)/σ: the noise that an estimate of x_0 stands for, e.g. after it was clipped."""
    eps: torch.Tensor = (x_t - alpha * mean) / sigma
    return eps


def mean_and_eps(
    prediction: Prediction,
    output: torch.Tensor,
    x_t: torch.Tensor,
    alpha: Any,
    sigma: Any,
    sigma_data: float = 0.5,
    before: StepBefore | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """(x̂_0, ε̂) of a network's output, both like x_t; α and σ are floats or broadcast to x_t. See the module.

    Args:
        before: `step_before`, for the prediction type previous_x.
    """
    if prediction == "previous_x":
        assert before is not None
        return before.mean_and_eps(output, x_t)
    if prediction == "epsilon":
        return (x_t - sigma * output) / alpha, output
    if prediction == "sample":
        return output, eps_of_mean(x_t, output, alpha, sigma)
    if prediction == "v_prediction":
        scale = 1.0 / (alpha * alpha + sigma * sigma)
        return (alpha * x_t - sigma * output) * scale, (sigma * x_t + alpha * output) * scale
    if prediction == "flow_to_data":
        prediction, output = "flow", -output
    if prediction == "flow":
        scale = 1.0 / (alpha + sigma)
        return (x_t - sigma * output) * scale, (x_t + alpha * output) * scale
    if prediction == "trigflow":
        ratio = sigma / sigma_data
        scale = 1.0 / (alpha * alpha + ratio * ratio)
        return (alpha * x_t - ratio * output) * scale, (ratio * x_t + alpha * output) * (scale / sigma_data)
    if prediction == "score":
        return (x_t + sigma * sigma * output) / alpha, -sigma * output
    # EDM: with α s = σ, ε̂ = (x_t − α x̂_0)/σ has no cancellation when written out.
    total = sigma * sigma + (alpha * sigma_data) ** 2
    signed = (sigma_data if prediction == "edm" else -sigma_data) * total**-0.5 * output
    return alpha * sigma_data**2 / total * x_t + sigma * signed, sigma / total * x_t - alpha * signed


# ---- the mean of the index before -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class StepBefore:
    """DDPM's step from an index n of a schedule to n − 1, as `previous_x` needs it [E21]; floats, or (B, 1, …) tensors
    like the images.

    Attributes:
        near: 1 where c/σ_t > ½ of x_t is in the network's output, else 0: their difference is taken first.
        rest: near − c/σ_t.
        alpha, fall: α_t, and α_s − α_t.
        gain, eps_gain: γ and σ_t γ.
    """

    near: Any
    rest: Any
    alpha: Any
    fall: Any
    gain: Any
    eps_gain: Any

    def mean_and_eps(self, output: torch.Tensor, x_t: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(x̂_0, ε̂) [E21], in which what the output and x_t share is gone before anything is rounded."""
        mean: torch.Tensor = (output - self.near * x_t + self.rest * x_t) / self.gain
        eps: torch.Tensor = (self.fall * x_t - self.alpha * (output - x_t)) / self.eps_gain
        return mean, eps


def step_before(schedule: NoiseSchedule, n: Any, like: torch.Tensor) -> StepBefore:
    """The steps to the indices before those of a batch like `like`, (B, …), at an index, a tensor (B,) of them, a level
    or a list of B levels; InputError for levels off the schedule's grid."""
    if isinstance(n, torch.Tensor):
        indices = schedule.check_indices(n, len(like)).tolist()
    else:
        indices = [_index_at(schedule, level) for level in (n if isinstance(n, list) else [n])]
    numbers = np.array([_numbers(ReverseKernel(schedule, t, t - 1)) for t in indices]).T
    if len(indices) == 1:
        return StepBefore(*numbers[:, 0].tolist())
    columns = torch.from_numpy(numbers).to(like.device, like.dtype)
    return StepBefore(*(column.view(-1, *(1,) * (like.ndim - 1)) for column in columns))


def _numbers(kernel: ReverseKernel) -> tuple[float, ...]:
    """The attributes of a `StepBefore`, in their order."""
    share = kernel.eps_gain / kernel.sigma_t
    near, fall = float(share > 0.5), kernel.alpha_s - kernel.alpha_t
    return near, near - share, kernel.alpha_t, fall, kernel.gain, kernel.sigma_t * kernel.gain


def _index_at(schedule: NoiseSchedule, n: Any) -> int:
    if not isinstance(n, NoiseLevel):
        return schedule.check_index(n)
    return checks.given(
        schedule.index_of(n),
        f"n is the level of {n.name}, off the schedule's grid, where a network that predicts previous_x says nothing "
        f"of x_0: it knows the mean of the index before; give indices from 1 to {schedule.num_steps}.",
    )
