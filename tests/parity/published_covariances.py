"""Moments, estimators and image-dependent covariances as published, element by element.

Sources: Analytic-DPM (arXiv:2201.06503, eq. 8 and 9), Extended-Analytic-DPM (arXiv:2206.07309, eq. 10 to 15), optimal
covariance matching (arXiv:2406.10808).
"""

import math

import numpy as np


def draw_moments(eps_of, alpha, sigma, n, data, picks, noise, clip):
    """Over draws x_t = α x_0 + σ ε: Γ = E‖ε̂‖²/d, E‖x̂_0 − μ‖²/d, E‖x_0 − x̂_0‖²/d, and per pixel E (x_0 − x̂_0)².

    `data` (M, …) is the population, `picks` which image each draw is of, `noise` its ε.
    """
    d, mean = data[0].size, sum(data) / len(data)
    gamma = spread = error = 0.0
    pixel = np.zeros(data[0].shape)
    for pick, eps in zip(picks, noise, strict=True):
        x_t = alpha * data[pick] + sigma * eps
        predicted = eps_of(x_t[None], n)[0]
        x_0 = (x_t - sigma * predicted) / alpha
        if clip:
            x_0 = np.clip(x_0, -1.0, 1.0)
        gamma += sum(float(e) ** 2 for e in predicted.ravel()) / d
        spread += sum(float(e) ** 2 for e in (x_0 - mean).ravel()) / d
        error += sum(float(e) ** 2 for e in (data[pick] - x_0).ravel()) / d
        pixel += (data[pick] - x_0) ** 2
    count = len(picks)
    return {"gamma": gamma / count, "spread": spread / count, "error": error / count, "pixel": (pixel / count).tolist()}


def data_variance(data):
    """E‖x_0 − μ‖²/d of the population."""
    mean = sum(data) / len(data)
    return sum(float(e) ** 2 for x in data for e in (x - mean).ravel()) / data.size


def posterior_variance(gamma, alpha_bar, clipped=True):
    """(β̄/ᾱ)(1 − Γ) (Analytic-DPM, eq. 8), clipped to [0, 1] as for data in [−1, 1]."""
    found = (1.0 - alpha_bar) / alpha_bar * (1.0 - gamma)
    return min(max(found, 0.0), 1.0) if clipped else found


def head_variance(kind, output, eps, alpha_bar):
    """Var[x_0 | x_t] of each pixel from what a head says, clipped to [0, 1].

    sn: h = E[ε²|x_t], (β̄/ᾱ)(h − ε̂²); npr: h = E[(ε − ε̂)²|x_t], (β̄/ᾱ) h; ocm: h = −σ × the Jacobian's diagonal,
    (β̄/ᾱ)(1 + h); eps: without a head, (β̄/ᾱ)(1 − ε̂²), a heuristic of the authors' code.
    """
    scale = (1.0 - alpha_bar) / alpha_bar
    out = np.empty(eps.shape)
    for place in np.ndindex(eps.shape):
        h, e = float(output[place]), float(eps[place])
        of_eps = {"sn": h - e**2, "npr": h, "ocm": 1.0 + h, "eps": 1.0 - e**2}[kind]
        out[place] = min(max(scale * of_eps, 0.0), 1.0)
    return out


def mean_head_variance(eps, alpha_bar):
    """One number an image from (β̄/ᾱ)(1 − ε̂²): its mean over the elements, and then the cut to [0, 1] (`avg_cov` of the
    authors' code)."""
    out = []
    for image in eps:
        mean = sum(1.0 - float(e) ** 2 for e in image.ravel()) / image.size
        out.append(min(max((1.0 - alpha_bar) / alpha_bar * mean, 0.0), 1.0))
    return np.array(out)


def reverse_variance(alpha_bar, t, s, eta, v):
    """λ² + (α_s − √(β̄_s − λ²) α_t/σ_t)² v, λ² = η² β̃ (Extended-Analytic-DPM, eq. 10, for DDIM's family)."""
    beta = 1.0 - alpha_bar[t] / alpha_bar[s]
    lambda2 = eta**2 * beta * (1.0 - alpha_bar[s]) / (1.0 - alpha_bar[t])
    c = math.sqrt(1.0 - alpha_bar[s] - lambda2)
    return lambda2 + (math.sqrt(alpha_bar[s]) - c * math.sqrt(alpha_bar[t] / (1.0 - alpha_bar[t]))) ** 2 * v


def step_error(eps_of, alpha_bar, t, s, eta, data, picks, noise):
    """What the noise of a clipped step has to be where ε̂ is the network's own: λ² plus the mean square of what its mean
    is wrong by, α_s (x_0 − x̂_0) + √(β̄_s − λ²) (ε − ε̂), over all pixels and draws."""
    beta = 1.0 - alpha_bar[t] / alpha_bar[s]
    lambda2 = eta**2 * beta * (1.0 - alpha_bar[s]) / (1.0 - alpha_bar[t])
    c, total = math.sqrt(1.0 - alpha_bar[s] - lambda2), 0.0
    for pick, eps in zip(picks, noise, strict=True):
        x_t = math.sqrt(alpha_bar[t]) * data[pick] + math.sqrt(1.0 - alpha_bar[t]) * eps
        predicted = eps_of(x_t[None], t)[0]
        x_0 = np.clip((x_t - math.sqrt(1.0 - alpha_bar[t]) * predicted) / math.sqrt(alpha_bar[t]), -1.0, 1.0)
        wrong = math.sqrt(alpha_bar[s]) * (data[pick] - x_0) + c * (eps - predicted)
        total += sum(float(e) ** 2 for e in wrong.ravel()) / wrong.size
    return lambda2 + total / len(picks)
