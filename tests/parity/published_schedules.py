"""Noise schedules and step lists as published, in plain loops.

Indices are the papers' n = 1…N; entry 0 of every array is clean data. Sources: DDPM (arXiv:2006.11239), Improved DDPM
(arXiv:2102.09672, also its respacing), latent diffusion (arXiv:2112.10752), score SDE (arXiv:2011.13456, appendix C),
EDM (arXiv:2206.00364, eq. 5), DDIM (arXiv:2010.02502, appendix D.2), Analytic-DPM (arXiv:2201.06503, appendix F).
"""

import math
from decimal import Decimal, localcontext

import numpy as np


def linear_betas(N, first=1e-4, last=0.02):
    """β_1…β_N, evenly from `first` to `last` (DDPM)."""
    return np.array([first + (last - first) * k / (N - 1) for k in range(N)])


def scaled_linear_betas(N, first=0.00085, last=0.012):
    """√β evenly (latent diffusion)."""
    low, high = math.sqrt(first), math.sqrt(last)
    return np.array([(low + (high - low) * k / (N - 1)) ** 2 for k in range(N)])


def cosine_betas(N, offset=0.008, most=0.999):
    """1 − f(n/N)/f((n−1)/N) with f(u) = cos²((u + offset)/(1 + offset) π/2), at most `most` (Improved DDPM, eq. 17)."""

    def f(u):
        return math.cos((u + offset) / (1 + offset) * math.pi / 2) ** 2

    return np.array([min(1 - f((k + 1) / N) / f(k / N), most) for k in range(N)])


def cumulative(betas):
    """(ᾱ, β̄) at n = 0…N as the published codes have them: a running product, and 1 less it."""
    product, out = 1.0, [1.0]
    for beta in betas:
        product *= 1.0 - beta
        out.append(product)
    return np.array(out), 1.0 - np.array(out)


def exact_cumulative(betas):
    """The same with 60 digits, rounded once."""
    with localcontext() as context:
        context.prec = 60
        product, kept, lost = Decimal(1), [1.0], [0.0]
        for beta in betas:
            product *= 1 - Decimal(float(beta))
            kept.append(float(product))
            lost.append(float(1 - product))
    return np.array(kept), np.array(lost)


def float32_beta_bar(betas):
    """β̄ of codes that keep ᾱ in float32, as diffusers' schedulers do."""
    product, out = np.float32(1.0), [0.0]
    for beta in betas:
        product = np.float32(product * (np.float32(1.0) - np.float32(beta)))
        out.append(float(np.float32(1.0) - product))
    return np.array(out)


def vp_sde(N, low=0.1, high=20.0):
    """(α, σ) at t = n/N: log α = −t² (high − low)/4 − t low/2, σ² = 1 − α² (score SDE, eq. 33)."""
    alpha, sigma = [1.0], [0.0]
    for n in range(1, N + 1):
        t = n / N
        log_alpha = -0.25 * t**2 * (high - low) - 0.5 * t * low
        alpha.append(math.exp(log_alpha))
        sigma.append(math.sqrt(1.0 - math.exp(2.0 * log_alpha)))
    return np.array(alpha), np.array(sigma)


def edm_sigmas(K, least=0.002, most=80.0, rho=7.0):
    """The K noise levels from the greatest down (EDM, eq. 5, without the final 0)."""
    high, low = most ** (1 / rho), least ** (1 / rho)
    return np.array([(high + i / (K - 1) * (low - high)) ** rho for i in range(K)])


# ---- which steps ------------------------------------------------------------------------------------------------


def respaced(N, sections):
    """Improved DDPM's respacing: the process is cut into as many parts of (nearly) equal length as there are numbers in
    `sections`, and each part gets that many steps, evenly by a stride that is added up and rounded. Timesteps 0…N − 1.
    "ddimK": the least whole stride that gives K of them."""
    if isinstance(sections, str):
        wanted = int(sections.removeprefix("ddim"))
        for stride in range(1, N):
            found = list(range(0, N, stride))
            if len(found) == wanted:
                return found
        raise ValueError(f"no stride gives {wanted} steps")
    parts, chosen, start = len(sections), [], 0
    for i, count in enumerate(sections):
        length = N // parts + (1 if i < N % parts else 0)
        stride = 1.0 if count <= 1 else (length - 1) / (count - 1)
        place = 0.0
        for _ in range(count):
            chosen.append(start + round(place))
            place += stride
        start += length
    return sorted(set(chosen))


def analytic_linear(N, K):
    """Analytic-DPM's even steps, indices 1…N: a stride that is added up and rounded, from 1."""
    place, out = 1.0, []
    for _ in range(K):
        out.append(round(place))
        place += (N - 1) / (K - 1)
    return out


def analytic_power(N, K, power):
    """Analytic-DPM's power-k steps: x = 1 − y^(1/k) for y evenly from 1 to 0, at index 1 + (N − 1) x, rounded; what
    repeats is moved up by one."""
    out, before = [], -1
    for k in range(K):
        y = (K - 1 - k) / (K - 1)
        n = round((N - 1) * (1.0 - y ** (1.0 / power)) + 1)
        before = before + 1 if n <= before else n
        out.append(before)
    return out


def ddim_quadratic(N, K):
    """DDIM's quadratic steps, indices: 1 + ⌊(k √(0.8 N)/(K − 1))²⌋."""
    return [1 + int((k * math.sqrt(0.8 * N) / (K - 1)) ** 2) for k in range(K)]
