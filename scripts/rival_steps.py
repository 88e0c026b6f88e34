"""Steps of a flow as the known codes of reinforcement learning take them, each from its published formula.

With x_t = (1 − t) x_0 + t ε, the network says F = ε̂ − x̂_0, so that x̂_0 = x_t − t F and ε̂ = x_t + (1 − t) F. A step
t → s is affine in x_t and F, plus white noise, whose size `a` is set by hand:

    ode         x_t + (s − t) F
    flow_grpo   Euler–Maruyama of dx = [F + g²/(2t) ε̂] dt + g dw with g = a √(t/(1 − t))     arXiv:2505.05470
                (at t = 1 the next level stands in the root, as in its code); MixGRPO takes the same step in its window
    dance_grpo  the same with g = a                                                          arXiv:2505.07818
    cps         (1 − s) x̂_0 + √(s² − λ²) ε̂ + λ z,  λ = s sin(aπ/2)                           arXiv:2509.05952
    precise     the same with λ² = s² (1 − exp(a²Δ/2)), Δ = log SNR_t − log SNR_s            arXiv:2605.23522

None of them has the γ² Cov[x_0|x_t] of the optimal step.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

#: Values of `a`: the defaults of Flow-GRPO's and DanceGRPO's codes, and chosen ones of the other two.
USUAL = {"ode": 0.0, "flow_grpo": 0.7, "dance_grpo": 0.3, "cps": 0.8, "precise": 1.0}


@dataclass(frozen=True)
class AffineStep:
    """x_s = of_x · x_t + of_flow · F + deviation · z, z ~ N(0, I)."""

    of_x: float
    of_flow: float
    deviation: float


def rival_step(rule: str, t: float, s: float, a: float) -> AffineStep:
    """The step t → s, 1 ≥ t > s ≥ 0, of one of the rules above."""
    if rule == "ode":
        return AffineStep(1.0, s - t, 0.0)
    if rule in ("flow_grpo", "dance_grpo"):
        g = a if rule == "dance_grpo" else a * math.sqrt(t / (1.0 - (t if t < 1.0 else s)))
        push = 0.5 * g * g / t * (s - t)  # of ε̂
        return AffineStep(1.0 + push, (s - t) + push * (1.0 - t), g * math.sqrt(t - s))
    if rule == "cps":
        deviation = s * math.sin(0.5 * math.pi * a)
    else:
        kept = 0.0 if t == 1.0 or s == 0.0 else ((1.0 - t) * s / (t * (1.0 - s))) ** (a * a)  # exp(a²Δ/2)
        deviation = s * math.sqrt(1.0 - kept)
    c = math.sqrt(s * s - deviation * deviation)
    return AffineStep((1.0 - s) + c, c * (1.0 - t) - (1.0 - s) * t, deviation)
