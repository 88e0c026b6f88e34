"""The terms of the likelihood bound as published, pixel by pixel, in nats; and shortest paths by plain loops.

Sources: DDPM (arXiv:2006.11239, eq. 5 and 13), Improved DDPM (arXiv:2102.09672), Analytic-DPM (arXiv:2201.06503, §4
and appendix), Watson et al. (arXiv:2106.03802).
"""

import math

import numpy as np


def normal_kl(mean_q, variance_q, mean_p, variance_p):
    """KL(N(mean_q, variance_q) ‖ N(mean_p, variance_p)) of two numbers."""
    ratio = variance_q / variance_p
    return 0.5 * (ratio - 1.0 - math.log(ratio) + (mean_q - mean_p) ** 2 / variance_p)


def kl_sum(mean_q, variance_q, mean_p, variance_p):
    """Over the pixels of each image of a batch (B, …); variances are numbers or arrays."""
    arrays = np.broadcast_arrays(mean_q, variance_q, mean_p, variance_p)
    return [
        sum(normal_kl(*map(float, row)) for row in zip(*(array[i].ravel() for array in arrays), strict=True))
        for i in range(len(arrays[0]))
    ]


def exact_cdf(x):
    return 0.5 * math.erfc(-x / math.sqrt(2.0))


def approximate_cdf(x):
    """The published codes' ½ (1 + tanh(√(2/π) (x + 0.044715 x³)))."""
    return 0.5 * (1.0 + math.tanh(math.sqrt(2.0 / math.pi) * (x + 0.044715 * x**3)))


def log_mass(x, mean, std, published):
    """log of the mass that N(mean, std²) has in a pixel's interval, x ± 1/255, the outermost reaching to ∓∞.

    `published`: with their approximate cdf and no mass below 1e-12.
    """
    low, high = (x - 1 / 255 - mean) / std, (x + 1 / 255 - mean) / std
    if published:
        below = 0.0 if x < -0.999 else approximate_cdf(low)
        above = 1.0 if x > 0.999 else approximate_cdf(high)
        return math.log(max(above - below, 1e-12))
    low, high = -math.inf if x < -0.999 else low, math.inf if x > 0.999 else high
    if low > 0:  # both near 1: taken from above, where the digits are
        low, high = -high, -low
    return math.log(exact_cdf(high) - exact_cdf(low))


def decoder_sum(x_0, mean, variance, published=False):
    """−log p(x_0 | x_1) of each image of a batch."""
    x_0, mean, variance = np.broadcast_arrays(x_0, mean, variance)
    return [
        -sum(
            log_mass(float(x), float(m), math.sqrt(v), published)
            for x, m, v in zip(x_0[i].ravel(), mean[i].ravel(), variance[i].ravel(), strict=True)
        )
        for i in range(len(x_0))
    ]


def prior_sum(x_0, alpha_bar_N):
    """KL(q(x_N|x_0) ‖ N(0, 1)) of each image."""
    return kl_sum(math.sqrt(alpha_bar_N) * x_0, 1.0 - alpha_bar_N, 0.0 * x_0, 1.0)


def step_terms(eps_of, alpha_bar, steps, x_0, noise, choice, clip, posterior_variance=None):
    """KL terms of Analytic-DPM's bound, the noisiest first: a list of the images' values for each step but the last.
    noise[k] makes the x_t of step k."""
    out = []
    lower = [0, *steps[:-1]]
    for k, (t, s) in enumerate(list(zip(steps, lower, strict=True))[::-1]):
        if s == 0:
            break
        x_t = math.sqrt(alpha_bar[t]) * x_0 + math.sqrt(1.0 - alpha_bar[t]) * noise[k]
        beta = 1.0 - alpha_bar[t] / alpha_bar[s]
        beta_tilde = beta * (1.0 - alpha_bar[s]) / (1.0 - alpha_bar[t])
        of_x_0 = beta * math.sqrt(alpha_bar[s]) / (1.0 - alpha_bar[t])
        of_x_t = math.sqrt(1.0 - beta) * (1.0 - alpha_bar[s]) / (1.0 - alpha_bar[t])
        variance = beta if choice == "large" else beta_tilde
        if choice == "optimal":
            weight = alpha_bar[s] * beta**2 / (1.0 - alpha_bar[t]) ** 2
            variance = beta_tilde + weight * posterior_variance[t]
        mean_p = of_x_0 * predicted(eps_of, alpha_bar, t, x_t, clip) + of_x_t * x_t
        out.append(kl_sum(of_x_0 * x_0 + of_x_t * x_t, beta_tilde, mean_p, variance))
    return out


def predicted(eps_of, alpha_bar, t, x_t, clip):
    """x̂_0 at index t."""
    x_0 = (x_t - math.sqrt(1.0 - alpha_bar[t]) * eps_of(x_t, t)) / math.sqrt(alpha_bar[t])
    return np.clip(x_0, -1.0, 1.0) if clip else x_0


def respaced_terms(process, output_of, x_0, noise, kind, clip, published=False):
    """Improved DDPM's terms on a respaced process (`published_samplers.Respaced`), the noisiest first, the last of them
    the decoder's; noise[k] makes the x_t of step k."""
    out = []
    for k, i in enumerate(reversed(range(len(process.kept)))):
        x_t = math.sqrt(process.alpha_bar[i]) * x_0 + math.sqrt(1.0 - process.alpha_bar[i]) * noise[k]
        eps, raw = output_of(x_t, process.kept[i] + 1)
        variance = np.exp(process.log_variance(i, kind, raw))
        mean = process.mean(process.x_0(x_t, i, eps, clip), x_t, i)
        if i == 0:
            out.append(decoder_sum(x_0, mean, variance, published))
        else:
            out.append(kl_sum(process.mean(x_0, x_t, i), process.small[i], mean, variance))
    return out


# ---- which path -------------------------------------------------------------------------------------------------


def analytic_costs(alpha_bar, gamma):
    """Analytic-DPM's cost of a step from t down to s ≥ 1, log(1 − β_{t|s} Γ_t/β̄_t); (N + 1, N + 1), inf elsewhere.
    It is log(σ²/(β_{t|s}/α_{t|s})), and so less than log(σ²/β̃) by log(SNR_s/SNR_t), the same for every path."""
    N = len(alpha_bar) - 1
    costs = np.full((N + 1, N + 1), math.inf)
    for s in range(1, N):
        for t in range(s + 1, N + 1):
            beta = 1.0 - alpha_bar[t] / alpha_bar[s]
            costs[s, t] = math.log(1.0 - beta * gamma[t] / (1.0 - alpha_bar[t]))
    return costs


def measured_costs(alpha_bar, errors, decoder, d):
    """Analytic-DPM's `nll_terms` for σ² = β: costs[s, t] in nats from E‖x_0 − x̂_0‖² at every t, and costs[0, t] the
    decoder's; inf elsewhere."""
    N = len(alpha_bar) - 1
    costs = np.full((N + 1, N + 1), math.inf)
    for t in range(1, N + 1):
        costs[0, t] = decoder[t]
        for s in range(1, t):
            beta = 1.0 - alpha_bar[t] / alpha_bar[s]
            ratio = (1.0 - alpha_bar[s]) / (1.0 - alpha_bar[t])  # β̃/β
            weight = alpha_bar[s] * beta / (1.0 - alpha_bar[t]) ** 2
            costs[s, t] = 0.5 * (d * (ratio - math.log(ratio) - 1.0) + weight * errors[t])
    return costs


def shortest(costs, first, last, steps):
    """The least cost and the path of `steps` steps from node `first` to node `last`, by the plain recursion
    C_k(t) = min over s of C_{k−1}(s) + cost(s, t)."""
    nodes = range(len(costs))
    best = {(0, first): 0.0}
    came = {}
    for k in range(1, steps + 1):
        for t in nodes:
            for s in nodes:
                if (k - 1, s) in best and s < t and costs[s, t] < math.inf:
                    cost = best[k - 1, s] + costs[s, t]
                    if cost < best.get((k, t), math.inf):
                        best[k, t], came[k, t] = cost, s
    path = [last]
    for k in range(steps, 0, -1):
        path.append(came[k, path[-1]])
    return best[steps, last], path[::-1]
