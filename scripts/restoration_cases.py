"""What `restoration.py` restores: held-out images, the models of them, and five linear operators of deepinv's.

    photographs-exact    16×16 RGB patches, the mixture of six Gaussians fitted to others (its mean is a closed form)
    photographs-trained  the same patches, the bundled network `photographs`
    digits               8×8 grey, the bundled network `digits`
    mnist                28×28 grey, a network of configs/mnist.yaml, given as --model

Images are in [−1, 1], and so is σ_y. The first images of the score part are compared, the next ones choose the rivals'
settings; tables are of another part.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import deepinv
import numpy as np
import torch

import diffusion_var as dv
from diffusion_var.data import digits_splits, open_images, photographs_part, to_float

DATA = ("photographs-exact", "photographs-trained", "digits", "mnist", "mnist-mixture")
OPERATORS = ("inpainting", "box", "super-resolution", "blur", "compressed sensing")
#: Standard deviation of the Gaussian blur in pixels, by the side of the images.
BLURS = {8: 0.7, 16: 1.0, 28: 1.5}


@dataclass(frozen=True)
class Case:
    """One data set: its model, the images that are compared, those that choose settings, and those of the table."""

    name: str
    denoiser: dv.Denoiser
    images: torch.Tensor
    others: torch.Tensor
    table_images: torch.Tensor


def load_case(name: str, count: int, others: int, model: str | None = None, mnist: str = "mnist.npz") -> Case:
    """The data set `name`, `count` images of it to compare and `others` to choose settings."""
    if name == "digits":
        parts = digits_splits()
        denoiser = dv.Denoiser.from_pretrained(model or "digits")
        score, table = parts.score.images, parts.table.images
    elif name in ("mnist", "mnist-mixture"):
        if name == "mnist" and model is None:
            raise SystemExit(
                "no network of MNIST is bundled; train one with configs/mnist.yaml and give it as --model, or take a "
                "mixture of Gaussians, --data mnist-mixture"
            )
        score, table, fit = (
            torch.stack([torch.as_tensor(image) for image in open_images(f"{mnist}:{part}")])
            for part in (f"test_x[:{count + others}]", "train_x[shuffled:50000:55000]", "train_x[shuffled:0:10000]")
        )
        denoiser = dv.oracles.fit_mixture(fit, 10) if model is None else dv.Denoiser.from_pretrained(model)
    else:
        score = photographs_part("score", 16, count + others).images
        table = photographs_part("table", 16).images
        if name == "photographs-exact":
            denoiser = dv.oracles.fit_mixture(photographs_part("fit", 16, 20_000).images, 6)
        else:
            denoiser = dv.Denoiser.from_pretrained(model or "photographs")
    images = to_float(score[: count + others])
    return Case(name, denoiser, images[:count], images[count:], to_float(table))


def table_of(case: Case, folder: Path) -> dv.VarianceTable:
    """The variance table of a case's model, measured once and kept in `folder`."""
    path = folder / f"{case.name}.safetensors"
    if path.exists():
        return dv.VarianceTable.load(path)
    folder.mkdir(parents=True, exist_ok=True)
    structures = ("isotropic", "pixel", "dct")
    table = dv.estimate(case.denoiser, case.table_images, 0.01, structures=structures, max_evaluations=65_536)
    table.save(path)
    return table


def make_physics(operator: str, shape: tuple[int, ...], sigma: float) -> Any:
    """One of `OPERATORS` for images (C, H, W), with Gaussian noise; the same in every run."""
    channels, side = shape[0], shape[-1]
    noise = deepinv.physics.GaussianNoise(sigma)
    if operator == "inpainting":  # half of the pixels, all channels of each
        kept = torch.from_numpy(np.random.default_rng(side).random((1, side, side)) < 0.5)
        return deepinv.physics.Inpainting(shape, kept.float().repeat(channels, 1, 1), noise_model=noise)
    if operator == "box":  # without the middle half of rows and columns
        mask = torch.ones(shape)
        mask[:, side // 4 : side - side // 4, side // 4 : side - side // 4] = 0.0
        return deepinv.physics.Inpainting(shape, mask, noise_model=noise)
    if operator == "super-resolution":
        return deepinv.physics.Downsampling(shape, filter="bicubic", factor=2, noise_model=noise)
    if operator == "blur":
        kernel = deepinv.physics.functional.gaussian_blur(sigma=(BLURS[side],) * 2)
        return deepinv.physics.BlurFFT(shape, kernel, noise_model=noise)
    rng = torch.Generator().manual_seed(0)  # a quarter as many numbers as the image has
    return deepinv.physics.CompressedSensing(math.prod(shape) // 4, shape, rng=rng, noise_model=noise)


def measured(physics: Any, images: torch.Tensor, first: int = 0) -> torch.Tensor:
    """y = A x_0 + σ_y n of images (B, C, H, W), with the noise of image `first` + i for the i-th."""
    clean = physics.A(images)
    streams = [np.random.default_rng([0, first + i]) for i in range(len(images))]
    noise = np.stack([stream.standard_normal(clean.shape[1:], dtype=np.float32) for stream in streams])
    y = clean + float(physics.noise_model.sigma) * torch.from_numpy(noise)
    return y * physics.mask if isinstance(physics, deepinv.physics.Inpainting) else y  # what is missing is zero


def matrix_of(A: Callable[[torch.Tensor], torch.Tensor], shape: tuple[int, ...]) -> torch.Tensor:
    """A as a matrix (m, d) in float64, from the images of the unit vectors."""
    unit = torch.eye(math.prod(shape)).view(-1, *shape)
    return A(unit).flatten(1).T.double()


def exact_posterior(
    mixture: dv.oracles.MixtureDenoiser, A: torch.Tensor, y: torch.Tensor, sigma: float, seed: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """E[x_0|y], and one draw of x_0|y, of a mixture of full-covariance Gaussians, (B, C, *spatial).

    Of each component m_j + C_j Aᵀ S_j⁻¹ (y − A m_j), S_j = A C_j Aᵀ + σ² I, weighed by w_j N(y; A m_j, S_j). A draw is
    that of Matheron's rule: x + C_j Aᵀ S_j⁻¹ (y − A x − σ n) with x ~ N(m_j, C_j).
    """
    kept = A.abs().sum(1) > 0.0  # a mask's missing numbers are no measurements
    A, values = A[kept], y.flatten(1).double()[:, kept]
    stream = np.random.default_rng(seed)
    means, draws, scores = [], [], []
    parts: Any = mixture.components
    for mean, basis, variances, weight in zip(
        mixture.means.flatten(1), parts.bases, parts.values, mixture.log_weights, strict=True
    ):
        root = basis * variances.sqrt()
        covariance = root @ root.T
        S = A @ covariance @ A.T + sigma**2 * torch.eye(len(A), dtype=torch.float64)
        factor = torch.linalg.cholesky(S)
        r = values - A @ mean
        gain = covariance @ A.T
        means.append(mean + torch.cholesky_solve(r.T, factor).T @ gain.T)
        half = torch.linalg.solve_triangular(factor, r.T, upper=False)
        scores.append(weight - 0.5 * half.square().sum(0) - factor.diagonal().log().sum())
        x = mean + torch.from_numpy(stream.standard_normal((len(values), len(mean)))) @ root.T
        noise = sigma * torch.from_numpy(stream.standard_normal(values.shape))
        draws.append(x + torch.cholesky_solve((values - x @ A.T - noise).T, factor).T @ gain.T)
    r = torch.stack(scores, 1).softmax(1)
    chosen = torch.multinomial(r, 1, generator=torch.Generator().manual_seed(seed))[:, 0]
    drawn = torch.stack(draws, 1)[torch.arange(len(values)), chosen]
    mean = (r[..., None] * torch.stack(means, 1)).sum(1)
    shape = (len(values), *mixture.shape)
    return mean.view(shape).float(), drawn.view(shape).float()
