"""deepinv's own restorers, unmodified, on this package's denoisers: what conditioned denoisers are compared with.

deepinv (0.5, BSD-3) knows images in [0, 1] and denoisers D(x_0 + σ z, σ). A `Denoiser` is told a noise level of its own
schedule instead: that of σ/α = (b − a) σ for data in [a, b], on the grid or between its indices, and shown α times the
image. Measurements are affine in the images' range: y of images in [a, b] is (b − a) y' + a A(1).

    dps      Chung et al., arXiv:2209.14687      gradient of ‖y − A x̂_0‖, a weight           any A
    diffpir  Zhu et al., arXiv:2305.08995        proximal step after x̂_0, λ and ζ           any linear A
    ddrm     Kawar et al., arXiv:2201.11793      by singular values, η and η_b               `DecomposablePhysics`
    pigdm    Song et al., ICLR 2023              E[x_0|x_t,y] for Cov = σ²/(1 + σ²), a weight  any linear A
    mmps     Rozet et al., arXiv:2405.13712      the same for Cov = σ² J, conjugate gradients  any linear A

An evaluation is one run of the network; `AsDeepinv` counts them. dps and pigdm differentiate through each once, mmps
once more for every step of its conjugate gradients.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from typing import Any

import deepinv
import numpy as np
import torch
from deepinv.optim.data_fidelity import L2
from deepinv.sampling import DDRM, DPS, DDPMSolver, DiffPIR, PosteriorDiffusion, VariancePreservingDiffusion
from deepinv.sampling.noisy_datafidelity import MomentMatchingDataFidelity, PiGDMDataFidelity

import diffusion_var as dv

#: Settings that are tried on other images than those of the comparison, the first being deepinv's defaults.
GRIDS: dict[str, list[dict[str, Any]]] = {
    "dps": [
        *({"weight": weight} for weight in (1.0, 10.0, 30.0, 100.0)),
        *({"weight": weight, "guidance": "annealed"} for weight in (1.0, 2.0, 3.0, 5.0, 10.0)),
    ],
    "diffpir": [
        {"lambda_": 7.0, "zeta": 0.1},
        *({"lambda_": lambda_, "zeta": zeta} for zeta in (0.5, 1.0) for lambda_ in (1.0, 3.0, 7.0, 15.0)),
    ],
    "ddrm": [
        {"eta": eta, "etab": 1.0, "levels": levels} for levels in ("linear", "schedule") for eta in (0.85, 0.7, 1.0)
    ],
    "pigdm": [{"weight": weight} for weight in (1.0, 0.6, 1.5, 2.0, 3.0)],
    "mmps": [{"iterations": iterations} for iterations in (3, 1)],
}


class AsDeepinv(deepinv.models.Denoiser):
    """A `Denoiser` as deepinv calls one: D(x (B, C, *spatial) in [0, 1], σ) -> x̂_0 in [0, 1]. Attribute `evaluations`.

    A σ outside the schedule is told as the nearest level.
    """

    def __init__(self, denoiser: dv.Denoiser) -> None:
        super().__init__()
        self.denoiser, (low, high) = denoiser, data_range(denoiser)
        self.low, self.width = low, high - low
        self.evaluations = 0

    def forward(self, x: torch.Tensor, sigma: Any, **_: Any) -> torch.Tensor:
        self.evaluations += 1
        images = self.low + self.width * x.to(torch.float32)
        level = self.level(sigma)
        mean = self.denoiser(level.alpha * images, level).mean
        return ((mean - self.low) / self.width).to(x.dtype)

    def level(self, sigma: Any) -> dv.NoiseLevel:
        """The level of a noise of standard deviation `sigma` in [0, 1], one for the batch."""
        values = torch.as_tensor(sigma, dtype=torch.float64).flatten()
        one = float(values[0])
        if not bool((values == one).all()):
            raise ValueError(f"one noise level a batch is expected, but got {values.tolist()}")
        grid = self.denoiser.schedule.log_snr[1:]
        log_snr = -2.0 * math.log(self.width * one) if one > 0.0 else math.inf
        return self.denoiser.schedule.level_at(float(np.clip(log_snr, grid[-1], grid[0])))


def data_range(denoiser: dv.Denoiser) -> tuple[float, float]:
    """(a, b) of the images; [−1, 1] of a denoiser whose data have no range, as mixtures fitted to images."""
    return denoiser.data_range or (-1.0, 1.0)


def in_unit_range(physics: Any, y: torch.Tensor, span: tuple[float, float], shape: Sequence[int]) -> tuple[Any, Any]:
    """The same measurement of images in [0, 1]: the physics with its noise in that range, and y."""
    low, width = span[0], span[1] - span[0]
    other = copy.deepcopy(physics)
    other.noise_model = deepinv.physics.GaussianNoise(float(physics.noise_model.sigma) / width)
    return other, (y - low * physics.A(torch.ones(1, *shape))) / width


def restore(
    name: str, denoiser: dv.Denoiser, physics: Any, y: torch.Tensor, evaluations: int, seed: int = 0, **settings: Any
) -> tuple[torch.Tensor, int]:
    """Images restored by one of deepinv's methods, (B, C, *spatial) in the data's range, and evaluations of an image.

    Args:
        name: "dps", "diffpir", "ddrm", "pigdm" or "mmps".
        physics: deepinv's, linear, of images in the data's range, with Gaussian noise.
        y: (B, *m).
        evaluations: of the network, for each image.
        settings: as in `GRIDS`.
    """
    model, span = AsDeepinv(denoiser), data_range(denoiser)
    unit, measured = in_unit_range(physics, y, span, denoiser.shape)
    # deepinv draws from torch's generator, which is left as it was.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        found = METHODS[name](model, unit, measured, evaluations, **settings)
    return (span[0] + (span[1] - span[0]) * found).float().detach(), model.evaluations


def fits(name: str, physics: Any) -> bool:
    """Whether a method can be used: DDRM wants a singular value decomposition."""
    return name != "ddrm" or isinstance(physics, deepinv.physics.DecomposablePhysics)


def _dps(
    model: AsDeepinv, physics: Any, y: torch.Tensor, evaluations: int, weight: float, guidance: str = "norm"
) -> torch.Tensor:
    rng = torch.Generator().manual_seed(torch.initial_seed())
    sampler = DPS(model, num_steps=evaluations + 1, weight=weight, guidance=guidance, rng=rng)
    return sampler(y, physics, x_init=(len(y), *model.denoiser.shape))


def _posterior(model: AsDeepinv, physics: Any, y: torch.Tensor, evaluations: int, fidelity: Any) -> torch.Tensor:
    """DDPM's steps on the VP schedule, with one of deepinv's approximations of the gradient of log p(y|x_t)."""
    rng = torch.Generator().manual_seed(torch.initial_seed())
    solver = DDPMSolver(timesteps=torch.linspace(1, 0, evaluations + 1, dtype=torch.float64), rng=rng)
    sampler = PosteriorDiffusion(fidelity, model, VariancePreservingDiffusion(alpha=1.0), solver)
    return sampler(y, physics, x_init=(len(y), *model.denoiser.shape))


def _pigdm(model: AsDeepinv, physics: Any, y: torch.Tensor, evaluations: int, weight: float) -> torch.Tensor:
    return _posterior(model, physics, y, evaluations, PiGDMDataFidelity(weight=weight, cg_max_iter=20))


def _mmps(model: AsDeepinv, physics: Any, y: torch.Tensor, evaluations: int, iterations: int) -> torch.Tensor:
    return _posterior(model, physics, y, evaluations, MomentMatchingDataFidelity(cg_max_iter=iterations))


def _diffpir(
    model: AsDeepinv, physics: Any, y: torch.Tensor, evaluations: int, lambda_: float, zeta: float
) -> torch.Tensor:
    sigma = float(physics.noise_model.sigma)
    sampler = DiffPIR(model, L2(), sigma=sigma, max_iter=evaluations, zeta=zeta, lambda_=lambda_)
    return sampler(y, physics)


def _ddrm(
    model: AsDeepinv, physics: Any, y: torch.Tensor, evaluations: int, eta: float, etab: float, levels: str
) -> torch.Tensor:
    sigmas = np.linspace(1.0, 0.0, evaluations)  # deepinv's own
    if levels == "schedule":  # the paper's: even steps of the schedule that the network was trained with
        schedule = model.denoiser.schedule
        n = np.linspace(schedule.num_steps, 1, evaluations).round().astype(int)
        sigmas = schedule.sigma[n] / schedule.alpha[n] / model.width
        sigmas[-1] = 0.0
    sampler = DDRM(model, sigmas=sigmas, eta=eta, etab=etab)
    return sampler(y, physics)


METHODS: dict[str, Callable[..., torch.Tensor]] = {
    "dps": _dps,
    "diffpir": _diffpir,
    "ddrm": _ddrm,
    "pigdm": _pigdm,
    "mmps": _mmps,
}
