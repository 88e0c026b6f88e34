"""Reverse chains as published, step by step, in float64 NumPy.

A chain gets what the network says of ε (`eps_of(x, n)`, n the index), the noise, one array a step (the first makes
x_N), and gives the states after every step, the last of them the image. Sources: DDPM (arXiv:2006.11239, eq. 7 and
algorithm 2), DDIM (arXiv:2010.02502, eq. 12 and 16), Analytic-DPM (arXiv:2201.06503, theorem 1 and appendix F.2),
Improved DDPM (arXiv:2102.09672, eq. 15), EDM (arXiv:2206.00364, algorithm 1), rectified flow (arXiv:2209.03003).
"""

import math

import numpy as np


def capped(variance, cap):
    """Noise of a mean size E|ω| of at most cap/255 of the range [−1, 1] (Analytic-DPM, appendix F.2)."""
    return np.minimum(variance, (cap * 2.0 / 255.0 * math.sqrt(math.pi / 2.0)) ** 2)


def pairs(steps):
    """(t, s) from the noisiest down, the last to 0; `steps` ascend."""
    lower = [0, *steps[:-1]]
    return list(zip(steps, lower, strict=True))[::-1]


def step_numbers(alpha_bar, t, s):
    """β_{t|s} and β̃_{t|s} from ᾱ."""
    beta = 1.0 - alpha_bar[t] / alpha_bar[s]
    return beta, beta * (1.0 - alpha_bar[s]) / (1.0 - alpha_bar[t])


def ddpm(eps_of, alpha_bar, steps, noise, choice, clip, posterior_variance=None, cap=None, capped_steps=1):
    """DDPM's chain: x̂_0 clipped or not, the mean of q(x_s|x_t, x̂_0), and noise of variance β ("large"), β̃ ("small") or
    the optimal one β̃ + ᾱ_s β²/β̄_t² v_t ("optimal", v_t = posterior_variance[t], one or per pixel).

    The last noise may be capped, or that of the last `capped_steps` noisy steps.
    """
    x, states = noise[0], []
    for k, (t, s) in enumerate(pairs(steps), start=1):
        beta, beta_tilde = step_numbers(alpha_bar, t, s)
        x_0 = (x - math.sqrt(1.0 - alpha_bar[t]) * eps_of(x, t)) / math.sqrt(alpha_bar[t])
        if clip:
            x_0 = np.clip(x_0, -1.0, 1.0)
        of_x_0 = beta * math.sqrt(alpha_bar[s]) / (1.0 - alpha_bar[t])
        of_x_t = math.sqrt(1.0 - beta) * (1.0 - alpha_bar[s]) / (1.0 - alpha_bar[t])
        x = of_x_0 * x_0 + of_x_t * x
        if s > 0:
            if choice == "optimal":
                weight = alpha_bar[s] * beta**2 / (1.0 - alpha_bar[t]) ** 2
                variance = beta_tilde + weight * posterior_variance[t]
            else:
                variance = beta if choice == "large" else beta_tilde
            if cap is not None and s in steps[:capped_steps]:
                variance = capped(variance, cap)
            x = x + np.sqrt(variance) * noise[k]
        states.append(x)
    return states


def ddim(eps_of, alpha_bar, steps, noise, eta, clip, rederive, posterior_variance=None, cap=None):
    """DDIM's chain: α_s x̂_0 + √(β̄_s − λ²) ε̂ with λ² = η² β̃, and noise of variance λ², or the optimal one
    λ² + (α_s − √(β̄_s − λ²) α_t/σ_t)² v_t.

    `rederive`: ε̂ anew from the clipped x̂_0 (Improved DDPM's code) instead of the network's own (Analytic-DPM's code).
    """
    x, states = noise[0], []
    for k, (t, s) in enumerate(pairs(steps), start=1):
        _, beta_tilde = step_numbers(alpha_bar, t, s)
        lambda2 = eta**2 * beta_tilde
        eps = eps_of(x, t)
        x_0 = (x - math.sqrt(1.0 - alpha_bar[t]) * eps) / math.sqrt(alpha_bar[t])
        if clip:
            x_0 = np.clip(x_0, -1.0, 1.0)
        if rederive:
            eps = (x / math.sqrt(alpha_bar[t]) - x_0) / math.sqrt(1.0 / alpha_bar[t] - 1.0)
        c = math.sqrt(1.0 - alpha_bar[s] - lambda2)
        x = math.sqrt(alpha_bar[s]) * x_0 + c * eps
        if s > 0:
            variance = np.float64(lambda2)
            if posterior_variance is not None:
                gain = math.sqrt(alpha_bar[s]) - c * math.sqrt(alpha_bar[t] / (1.0 - alpha_bar[t]))
                variance = lambda2 + gain**2 * posterior_variance[t]
            if cap is not None and s == steps[0]:
                variance = capped(variance, cap)
            x = x + np.sqrt(variance) * noise[k]
        states.append(x)
    return states


def guided(eps_of, alpha_bar, gradient_of, scale):
    """ε̂ less scale σ_t ∇ log p(y|x_t) (Dhariwal and Nichol, arXiv:2105.05233, algorithm 2)."""
    return lambda x, n: eps_of(x, n) - scale * math.sqrt(1.0 - alpha_bar[n]) * gradient_of(x)


def softmax_gradient(weights, x, labels):
    """∇ log p(y|x) of a classifier with logits w_k·x: w_y − Σ_k p_k w_k, image by image."""
    out = np.empty(x.shape)
    for i, (image, y) in enumerate(zip(x, labels, strict=True)):
        logits = [float((w * image).sum()) for w in weights]
        share = np.exp(np.array(logits) - max(logits))
        share /= share.sum()
        out[i] = weights[y] - sum(p * w for p, w in zip(share, weights, strict=True))
    return out


# ---- Improved DDPM ----------------------------------------------------------------------------------------------


class Respaced:
    """Improved DDPM's process on some of the timesteps: new β from the ratios of ᾱ, and everything from these.

    Arrays have an entry for every kept timestep, the least noisy first; `log_small` is log β̃ with the second entry in
    the place of the first, which is −∞.
    """

    def __init__(self, alpha_bar, kept):
        self.kept, self.betas, before = kept, [], 1.0
        for timestep in kept:
            self.betas.append(1.0 - alpha_bar[timestep + 1] / before)
            before = alpha_bar[timestep + 1]
        self.alpha_bar, product = [], 1.0
        for beta in self.betas:
            product *= 1.0 - beta
            self.alpha_bar.append(product)
        self.before = [1.0, *self.alpha_bar[:-1]]
        entries = zip(self.alpha_bar, self.betas, self.before, strict=True)
        self.small = [beta * (1.0 - before) / (1.0 - kept) for kept, beta, before in entries]
        self.log_small = [math.log(v) for v in [self.small[1], *self.small[1:]]]

    def log_variance(self, i, kind, raw):
        """Of "small" β̃, "large" β (the first entry is β̃'s too), or "range": between the two by (raw + 1)/2 (eq. 15)."""
        if kind == "small":
            return self.log_small[i]
        if kind == "large":
            return math.log(self.small[1] if i == 0 else self.betas[i])
        fraction = (raw + 1.0) / 2.0
        return fraction * math.log(self.betas[i]) + (1.0 - fraction) * self.log_small[i]

    def x_0(self, x, i, eps, clip):
        """The prediction of x_0 from that of ε."""
        found = math.sqrt(1.0 / self.alpha_bar[i]) * x - math.sqrt(1.0 / self.alpha_bar[i] - 1.0) * eps
        return np.clip(found, -1.0, 1.0) if clip else found

    def mean(self, x_0, x, i):
        """Of q(x_{i−1} | x_i, x_0)."""
        of_x_0 = self.betas[i] * math.sqrt(self.before[i]) / (1.0 - self.alpha_bar[i])
        of_x_t = (1.0 - self.before[i]) * math.sqrt(1.0 - self.betas[i]) / (1.0 - self.alpha_bar[i])
        return of_x_0 * x_0 + of_x_t * x

    def sample(self, output_of, noise, kind, clip):
        """`output_of(x, n)`: (ε̂, the second half of the network's output) at index n."""
        x, states = noise[0], []
        for k, i in enumerate(reversed(range(len(self.kept))), start=1):
            eps, raw = output_of(x, self.kept[i] + 1)
            mean = self.mean(self.x_0(x, i, eps, clip), x, i)
            x = mean if i == 0 else mean + np.exp(0.5 * self.log_variance(i, kind, raw)) * noise[k]
            states.append(x)
        return states

    def sample_before(self, output_of, noise):
        """With a network that says the mean of x_{i−1} itself and its log-variance (PREVIOUS_X and LEARNED); no x̂_0 is
        clipped, since none is used."""
        x, states = noise[0], []
        for k, i in enumerate(reversed(range(len(self.kept))), start=1):
            mean, log_variance = output_of(x, self.kept[i] + 1)
            x = mean if i == 0 else mean + np.exp(0.5 * log_variance) * noise[k]
            states.append(x)
        return states


# ---- the reverse SDE --------------------------------------------------------------------------------------------


def vp_euler_maruyama(eps_of, N, steps, noise, low=0.1, high=20.0):
    """Euler–Maruyama of the VP-SDE's time reversal (score SDE, arXiv:2011.13456, eq. 6 and 32): with
    β(t) = low + t (high − low), t = n/N, and the score −ε̂/σ,

        x − h (−½ β x − β score) + √(β h) z,

    a step of h = (n_t − n_s)/N; from the least of `steps` to clean data x̂_0."""
    x, states = noise[0], []
    for k, (t, s) in enumerate(pairs(steps), start=1):
        time = t / N
        log_alpha = -0.25 * time**2 * (high - low) - 0.5 * time * low
        alpha, sigma = math.exp(log_alpha), math.sqrt(1.0 - math.exp(2.0 * log_alpha))
        eps = eps_of(x, t)
        if s == 0:
            x = (x - sigma * eps) / alpha
        else:
            beta, h = low + time * (high - low), (t - s) / N
            x = x + h * (0.5 * beta * x - beta * eps / sigma) + math.sqrt(beta * h) * noise[k]
        states.append(x)
    return states


# ---- deterministic ----------------------------------------------------------------------------------------------


def edm_euler(denoise, sigmas, noise):
    """EDM's algorithm 1 without its second-order part, σ falling, to 0 at the end."""
    x, states = sigmas[0] * noise, []
    for sigma, after in zip(sigmas, [*sigmas[1:], 0.0], strict=True):
        d = (x - denoise(x, sigma)) / sigma
        x = x + (after - sigma) * d
        states.append(x)
    return states


def edm_denoised(network, x, sigma, sigma_data=0.5):
    """D(x; σ) = c_skip x + c_out F(c_in x; ln(σ)/4) (EDM, eq. 7 and table 1)."""
    total = sigma**2 + sigma_data**2
    c_skip, c_out, c_in = sigma_data**2 / total, sigma * sigma_data / math.sqrt(total), 1.0 / math.sqrt(total)
    return c_skip * x + c_out * network(c_in * x, math.log(sigma) / 4.0)


def flow_euler(velocity, times, noise):
    """dx/dt = F(x, t) from the first time down to 0, by Euler's method."""
    x, states = noise, []
    for t, after in zip(times, [*times[1:], 0.0], strict=True):
        x = x + (after - t) * velocity(x, t)
        states.append(x)
    return states
