"""A small imperfect model with 8-bit images, and its bound worked out image by image, step by step."""

import math
from collections.abc import Callable
from dataclasses import fields
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from scipy.fft import dctn
from scipy.stats import norm

import diffusion_var as dv
from diffusion_var.randomness import generator

SHAPE = (3, 4, 4)
D = math.prod(SHAPE)
SCHEDULE = dv.NoiseSchedule.linear(100)
STEPS = [1, 12, 40, 100]


class Network(torch.nn.Module):
    """Neither linear nor exact; with weights, so that checkpoints know it. With 2C channels it has a learned range."""

    def __init__(self, doubled: bool = False) -> None:
        super().__init__()
        self.gain = torch.nn.Parameter(torch.tensor(0.5))
        self.doubled = doubled
        self.rows = 0

    def forward(self, x_t: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
        self.rows += len(x_t)
        level = timestep[:, None, None, None].to(x_t.dtype) / 100
        out = torch.tanh((self.gain + level) * x_t) + 0.1 * x_t.flip(-1)
        return torch.cat([out, torch.sin(5 * x_t)], 1) if self.doubled else out


def small_denoiser(network: Any = None, **options: Any) -> dv.Denoiser:
    return dv.Denoiser(Network() if network is None else network, SCHEDULE, **{"shape": SHAPE, **options})


def pictures(count: int, seed: int = 0) -> torch.Tensor:
    """(count, C, H, W) uint8, of contrasts that differ from image to image."""
    stream = np.random.default_rng(seed)
    contrast = stream.uniform(3, 110, (count, 1, 1, 1))
    return torch.from_numpy((127.5 + contrast * stream.standard_normal((count, *SHAPE))).clip(0, 255).astype(np.uint8))


def measured(denoiser: dv.Denoiser, indices: Any = (1, 12, 40, 100)) -> dv.VarianceTable:
    return dv.estimate(denoiser, pictures(60, seed=9), 1e3, indices=indices, progress=False)


def step_by_step(
    denoiser: dv.Denoiser,
    images: torch.Tensor,
    steps: list[int],
    variances: Any,
    decoder: npt.ArrayLike,
    *,
    seed: int = 0,
    draw: int = 0,
    eta: float = 1.0,
    clipped_eps: Any = None,
    dct: bool = False,
) -> npt.NDArray[np.float64]:
    """(images, K + 1) bits/dim of uint8 images in [−1, 1]: one image and step after the other, in float64, from the
    equations alone; `variances(kernel, raw second half)` are Σ's, in the dct basis if asked for."""
    rows = []
    for i, image in enumerate(images):
        x_0 = image.numpy() / 127.5 - 1.0
        alpha, sigma = SCHEDULE.alpha[steps[-1]], SCHEDULE.sigma[steps[-1]]
        terms = [0.5 * (alpha**2 * np.square(x_0).sum() + D * (sigma**2 - 1 - math.log(sigma**2)))]
        for t, s in pairwise([*steps[::-1], 0]):
            eps = generator(seed, "likelihood noise", i, draw, t).standard_normal(SHAPE, dtype=np.float32)
            alpha, sigma = SCHEDULE.alpha[t], SCHEDULE.sigma[t]
            x_t = alpha * x_0 + sigma * eps
            out = denoiser.network(torch.from_numpy(x_t)[None], torch.tensor([t - 1]))[0].detach().numpy()
            eps_hat, raw = out[: SHAPE[0]], out[SHAPE[0] :]
            mean = (x_t - sigma * eps_hat) / alpha
            if denoiser.clip is not None:
                mean = mean.clip(*denoiser.clip)
            if clipped_eps == "rederived" or (clipped_eps is None and eta == 1.0):
                eps_hat = (x_t - alpha * mean) / sigma
            if s == 0:
                std = np.sqrt(decoder)
                upper = np.where(image == 255, math.inf, (x_0 + 1 / 255 - mean) / std)
                lower = np.where(image == 0, -math.inf, (x_0 - 1 / 255 - mean) / std)
                # Above the mean both are nearly 1, and the survival function is the one with digits.
                p = np.where(lower > 0, norm.sf(lower) - norm.sf(upper), norm.cdf(upper) - norm.cdf(lower))
                terms.append(float(-np.log(p).sum()))
                continue
            kernel = dv.ReverseKernel(SCHEDULE, t, s, eta)
            c = math.sqrt(kernel.sigma_s**2 - kernel.lambda2)
            error = kernel.alpha_s * (x_0 - mean) + c * (eps - eps_hat)
            if dct:
                error = dctn(error, norm="ortho")
            variance = np.broadcast_to(variances(kernel, raw), SHAPE)
            ratio = kernel.lambda2 / variance
            terms.append(0.5 * float((ratio - 1 - np.log(ratio) + np.square(error) / variance).sum()))
        rows.append(terms)
    return np.array(rows) / (D * math.log(2))


# ---- runs that are interrupted ------------------------------------------------------------------------------------

RUN: dict[str, Any] = {"steps": 12, "seed": 4, "draws": 2, "batch_size": 4, "decoder_variance": 0.01}


class Interrupted(Network):
    """Calls `hook` before every call, with the number of calls so far."""

    def __init__(self, hook: Callable[[int], None]) -> None:
        super().__init__()
        self.calls, self.hook = 0, hook

    def forward(self, x_t: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
        self.hook(self.calls)
        self.calls += 1
        return super().forward(x_t, timestep)


def run(network: Any = None, checkpoint: Path | None = None, **options: Any) -> dv.LikelihoodBound:
    options = {**RUN, **options}
    return dv.bits_per_dim(
        small_denoiser(network),
        options.pop("covariance", dv.FixedLarge()),
        pictures(10),
        checkpoint=checkpoint,
        **options,
    )


def calls(**options: Any) -> int:
    network = Interrupted(lambda _: None)
    run(network, **options)
    return network.calls


def stop_at(m: int, error: type[BaseException] = KeyboardInterrupt) -> Interrupted:
    def hook(number: int) -> None:
        if number == m:
            raise error

    return Interrupted(hook)


def assert_same(found: dv.LikelihoodBound, expected: dv.LikelihoodBound) -> None:
    for each in fields(dv.LikelihoodBound):
        mine, other = getattr(found, each.name), getattr(expected, each.name)
        if isinstance(mine, np.ndarray):
            assert np.array_equal(mine, other, equal_nan=True), each.name
        else:
            assert mine == other or (math.isnan(mine) and math.isnan(other)), each.name
