"""What is compared: small closed networks and inputs, the same for the plain code (NumPy, float64) and for the package.

A case is plain data; `make_golden.py` works its golden numbers out with the `published_*` modules.
"""

import math

import numpy as np
from plain_draws import normal, pixels, uniform
from published_schedules import cosine_betas, cumulative, linear_betas

N = 1000
SHAPE = (1, 2, 3)
BATCH = 2
D = math.prod(SHAPE)

SCHEDULES = {"linear": linear_betas, "cosine": cosine_betas}


def alpha_bars(name):
    return cumulative(SCHEDULES[name](N))[0]


def network(x, time, tanh):
    """ε̂ of a network that is neither linear nor exact, depends on time and neighbours, and drives x̂_0 out of [−1, 1];
    `time` in [0, 1], of a number or like x; for NumPy and PyTorch, with their own tanh."""
    last = x.flip(-1) if hasattr(x, "flip") else x[..., ::-1]
    return tanh(1.4 * x) * (0.7 + 0.3 * time) + 0.1 * last - 0.05


def second_half(x, time, sin):
    """What a network with a learned range says besides: from −1.2 to 1.2."""
    return 1.2 * sin(3.0 * x + time)


def eps_of(x, n):
    """For the plain code: at index n, whose timestep is n − 1."""
    return network(x, (n - 1) / N, np.tanh)


def sde_eps_of(x, n):
    """For networks of the VP-SDE, which are told 999 n/N: in float32, if it is no whole number."""
    return network(x, float(np.float32(999.0 * (n / N))) / N, np.tanh)


def told_network(x, time):
    """For networks that are told a fraction: in float32, as networks are."""
    return network(x, float(np.float32(time)), np.tanh)


def output_of(x, n):
    return eps_of(x, n), second_half(x, (n - 1) / N, np.sin)


# ---- states -----------------------------------------------------------------------------------------------------


def noise_of(steps, seed=1):
    return [normal(100 * seed + k, BATCH, *SHAPE) for k in range(steps + 1)]


def gammas(name):
    """A published array Γ_n, n = 0…N, as measured ones are: 1 − (ᾱ/β̄) v with v rising from 0 to 0.3, and noise that
    makes some of the last exceed 1, where (1 − Γ) has to be cut at 0."""
    alpha_bar = alpha_bars(name)
    beta_bar = 1.0 - alpha_bar
    v = 0.3 * beta_bar / (0.3 * alpha_bar + beta_bar)
    noise = 2e-3 * (uniform(77, N + 1) - 0.5)
    out = np.ones(N + 1)
    out[1:] = 1.0 - alpha_bar[1:] / beta_bar[1:] * v[1:] + noise[1:] * beta_bar[1:]
    return out


def pixel_variances(steps):
    """{t: v} of every pixel, between 0 and 0.4."""
    return {t: 0.4 * uniform(500 + t, *SHAPE) * t / N for t in steps}


EVEN = [1, 201, 400, 600, 800, 1000]
UNEVEN = [3, 20, 90, 350, 990]

#: name: chain, schedule, steps and the chain's arguments. `v`: "gamma" or "pixel", which posterior variance it takes.
STATES = {
    "ddpm_large": ("ddpm", "linear", EVEN, {"choice": "large", "clip": True}),
    "ddpm_small": ("ddpm", "linear", EVEN, {"choice": "small", "clip": True}),
    "ddpm_small_free": ("ddpm", "linear", UNEVEN, {"choice": "small", "clip": False}),
    "ddpm_small_cosine": ("ddpm", "cosine", UNEVEN, {"choice": "small", "clip": True}),
    "ddpm_large_capped": ("ddpm", "linear", UNEVEN, {"choice": "large", "clip": True, "cap": 2.0}),
    "ddpm_three_capped": ("ddpm", "linear", UNEVEN, {"choice": "large", "clip": True, "cap": 2.0, "capped_steps": 3}),
    "ddim": ("ddim", "linear", EVEN, {"eta": 0.0, "clip": True, "rederive": False}),
    "ddim_half": ("ddim", "linear", UNEVEN, {"eta": 0.5, "clip": True, "rederive": False}),
    "ddim_half_rederived": ("ddim", "cosine", UNEVEN, {"eta": 0.5, "clip": True, "rederive": True}),
    "analytic_ddpm": ("ddpm", "linear", EVEN, {"choice": "optimal", "clip": True, "v": "gamma"}),
    "analytic_ddpm_capped": (
        "ddpm",
        "cosine",
        UNEVEN,
        {"choice": "optimal", "clip": True, "v": "gamma", "cap": 1.0},
    ),
    "analytic_ddim": ("ddim", "linear", EVEN, {"eta": 0.0, "clip": True, "rederive": False, "v": "gamma"}),
    "analytic_ddim_half_capped": (
        "ddim",
        "linear",
        UNEVEN,
        {"eta": 0.5, "clip": True, "rederive": False, "v": "gamma", "cap": 1.0},
    ),
    "analytic_ddpm_pixel": ("ddpm", "linear", EVEN, {"choice": "optimal", "clip": True, "v": "pixel"}),
    "analytic_ddim_pixel": (
        "ddim",
        "linear",
        UNEVEN,
        {"eta": 0.3, "clip": False, "rederive": False, "v": "pixel"},
    ),
}

#: Improved DDPM's chains on a respaced process: schedule, sections, the kind of variance, clipping.
RESPACED_STATES = {
    "improved_small": ("linear", [6], "small", True),
    "improved_large": ("linear", [3, 2], "large", True),
    "improved_range": ("cosine", [6], "range", True),
    "improved_range_free": ("linear", "ddim5", "range", False),
}

#: Of a network that says the mean of the index before: β from and to, and how many.
BEFORE_STEPS, BEFORE_BETAS = 8, (0.02, 0.4)


def before_output(x, time, tanh, sin):
    """That mean, and the log-variance."""
    return 0.93 * x + 0.07 * network(x, time, tanh), second_half(x, time, sin) - 2.0


#: A classifier of three classes, logits w_k·x, the labels of the batch, and the scale.
CLASSIFIER, LABELS, SCALE = 0.7 * normal(55, 3, *SHAPE), [2, 0], 1.5

SDE_STEPS = [10, 150, 300, 480, 700, 950]
EDM_LEVELS = 6
FLOW_TIMES = [1.0, 0.9, 0.6, 0.35, 0.1]


# ---- likelihood -------------------------------------------------------------------------------------------------


def images():
    """(BATCH, *SHAPE) uint8 and the same in [−1, 1]."""
    raw = pixels(40, BATCH, *SHAPE)
    raw[0, 0, 0, 0], raw[1, 0, 1, 2] = 0, 255
    return raw, raw / 127.5 - 1.0


#: name: schedule, steps, what the variance is, clipping.
TERMS = {
    "large": ("linear", EVEN, "large", True),
    "small": ("linear", UNEVEN, "small", True),
    "optimal": ("cosine", UNEVEN, "optimal", True),
    "optimal_free": ("linear", EVEN, "optimal", False),
}
RESPACED_TERMS = {
    "improved_small": ("linear", [5], "small", True),
    "improved_large": ("cosine", [5], "large", True),
    "improved_range": ("linear", [3, 3], "range", True),
}

#: Of a decoder alone: images of one row whose mean is off by so many standard deviations.
DECODER_STDS = [0.002, 0.01, 0.05, 0.3]
DECODER_SHIFTS = [-6.0, -3.0, -1.0, 0.0, 0.4, 2.0, 5.0]
DECODER_LEVELS = [0, 1, 100, 254, 255]


# ---- paths ------------------------------------------------------------------------------------------------------

PATH_N = 14


def path_problem():
    """ᾱ, Γ, E‖x_0 − x̂_0‖² and decoder terms of a short process; Γ such that the variances rise."""
    alpha_bar, beta_bar = cumulative(linear_betas(PATH_N, 0.001, 0.35))
    snr = alpha_bar / np.where(beta_bar > 0, beta_bar, 1.0)
    v = np.array([0.0] + [0.25 / (1.0 + 0.25 * snr[n]) * (0.4 + 0.6 * n / PATH_N) for n in range(1, PATH_N + 1)])
    gamma = 1.0 - alpha_bar / np.where(beta_bar > 0, beta_bar, 1.0) * v
    errors = D * v * (1.0 + 0.2 * uniform(9, PATH_N + 1))
    decoder = D * (0.5 + 4.0 * v + 0.3 * uniform(10, PATH_N + 1))
    return alpha_bar, gamma, v, errors, decoder


# ---- moments and heads ------------------------------------------------------------------------------------------

MOMENT_INDICES = [5, 300, 900]
DRAWS = 256


def population():
    raw = pixels(60, 10, *SHAPE)
    return raw, raw / 127.5 - 1.0


def picks_of(n, shard):
    return [min(int(9.999999 * u), 9) for u in uniform(7000 + 31 * n + shard, 16)]


def noise_of_shard(n, shard):
    return normal(90000 + 31 * n + shard, 16, *SHAPE)


def draws_of(n):
    """Images and noise of all draws of an index."""
    shards = range(DRAWS // 16)
    return [p for s in shards for p in picks_of(n, s)], [e for s in shards for e in noise_of_shard(n, s)]


HEAD_STEPS = [(900, 700, 1.0), (400, 200, 1.0), (400, 200, 0.5), (20, 3, 1.0)]
HEADS = ("sn", "npr", "ocm")


def head_output(kind, n):
    """A head's raw output for x_t of `head_input`: mostly sensible, in part negative, or too large."""
    rough = 0.9 * normal(800 + n + len(kind), BATCH, *SHAPE)
    if kind == "sn":
        return head_eps(n) ** 2 + 0.3 + rough
    return (0.4 + rough) if kind == "npr" else (-0.5 + rough)


def head_input(n):
    return normal(300 + n, BATCH, *SHAPE)


def head_eps(n):
    return eps_of(head_input(n), n)


# ---- steps and features -----------------------------------------------------------------------------------------

RESPACINGS = [
    (1000, [10]),
    (1000, [25]),
    (1000, [50]),
    (4000, [25]),
    (1000, [1]),
    (300, [10, 15, 20]),
    (1000, [3, 2]),
    (100, [7, 1, 4]),
    (11, [2, 2, 2]),
    (1000, "ddim25"),
    (1000, "ddim50"),
    (50, "ddim7"),
]
STEP_LISTS = [(1000, 5), (1000, 10), (1000, 25), (1000, 50), (4000, 25), (100, 37)]


def features():
    """Reals and fakes of two sizes, correlated, and fakes of the reals' size."""
    mix = normal(21, 5, 5)
    real = normal(22, 40, 5) @ mix + 1.0
    fake = 1.3 * normal(23, 33, 5) @ mix + 0.5 * normal(24, 33, 5) + 1.2
    fake[7:12] = real[3:8]  # copies, which lie on the rim of the balls that reach to their originals
    return real, fake, 1.1 * normal(25, 40, 5) @ mix + 2.0
