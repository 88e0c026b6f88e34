"""Scores of images against their own truths, image by image: PSNR, SSIM and LPIPS, as restoration reports them.

    PSNR  = 10 log₁₀ ((b − a)² / mean (x − x_0)²), in dB, for images in [a, b]; higher is better
    SSIM    local means, variances and covariances under a Gaussian window of σ 1.5 and 11 pixels, reflected at edges
            (Wang et al. 2004); 1 is equal
    LPIPS   distance of AlexNet's, VGG's or SqueezeNet's features (Zhang et al. 2018, arXiv:1801.03924); lower is better

Nothing is rounded, and nothing averaged: the mean over images, and its error, are the caller's, and so are differences
of two methods on the same images, whose error is far smaller than that of either. SSIM and LPIPS are torchmetrics', in
float64 and float32; it is optional: pip install 'diffusion-var[restoration]'.

*Weights of LPIPS.* torchvision's of the backbone, from PyTorch's cache ($TORCH_HOME/hub/checkpoints), known by their
published hash; they are never downloaded. Those of the distance come with torchmetrics.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .. import checks
from ..errors import InputError

Range = checks.Range
#: The smallest side that each of the networks of LPIPS takes, and the file of its weights, whose hash is in its name.
_BACKBONES = {
    "alex": (32, "alexnet-owt-7be5be79.pth"),
    "vgg": (16, "vgg16-397923af.pth"),
    "squeeze": (17, "squeezenet1_1-b8a52dc0.pth"),
}
SSIM_SIDE = 6  # the least: its window is reflected at the edges
_AT_ONCE = 256  # images that LPIPS looks at


def psnr(images: Tensor, truth: Tensor, data_range: Range = (-1.0, 1.0)) -> Tensor:
    """Peak signal-to-noise ratio of each image, in dB.

    Args:
        images, truth: (B, C, *spatial) floats in the data range.
        data_range: what black and white are.

    Returns: (B,) float64 on the CPU; infinite where an image is its truth. Raises InputError for other shapes, NaN and
    Inf.
    """
    images, truth, width = _checked(images, truth, data_range)
    return 10.0 * (width**2 / (images - truth).square().flatten(1).mean(1)).log10()


def ssim(images: Tensor, truth: Tensor, data_range: Range = (-1.0, 1.0)) -> Tensor:
    """Structural similarity of each image, at most 1; (B,) float64 on the CPU, see `psnr` for the arguments.

    Raises InputError for images that are neither (C, H, W) nor videos, or have a side of fewer than 6 pixels.
    """
    images, truth, width = _checked(images, truth, data_range)
    wrong = images.ndim not in (4, 5) or min(images.shape[2:]) < SSIM_SIDE
    checks.refuse(
        wrong,
        f"images have shape {tuple(images.shape[1:])}, but SSIM's window needs (C, H, W) or (C, F, H, W) with sides of "
        f"at least {SSIM_SIDE}; leave SSIM out.",
    )
    found: Tensor = _function("structural_similarity_index_measure")(images, truth, data_range=width, reduction="none")
    return found


def lpips(images: Tensor, truth: Tensor, data_range: Range = (-1.0, 1.0), network: str = "alex") -> Tensor:
    """Learned perceptual distance of each image, 0 for the truth; (B,) float64 on the CPU, see `psnr` for the rest.

    Args:
        network: "alex" (what is usually reported), "vgg" or "squeeze".

    Grey images are shown as RGB. Raises InputError for images that are too small for the network, and where its weights
    are not at hand (`why_no_lpips` says so without raising).
    """
    images, truth, _ = _checked(images, truth, data_range)
    if (reason := why_no_lpips(tuple(images.shape[1:]), network)) is not None:
        raise InputError(f"{reason}; bring what is missing, or leave LPIPS out.")
    low, high = data_range
    shown = [
        ((part - low) / (high - low) * 2.0 - 1.0).clamp(-1.0, 1.0).float().expand(-1, 3, -1, -1)
        for part in (images, truth)
    ]
    distance, found = _function("lpips.learned_perceptual_image_patch_similarity"), []
    with torch.random.fork_rng(devices=[]), torch.no_grad():  # layers initialise from the global generator, in vain
        for start in range(0, len(images), _AT_ONCE):
            mine, theirs = (part[start : start + _AT_ONCE] for part in shown)
            found.append(distance(mine, theirs, net_type=network, reduction="none").reshape(-1).double())
    return torch.cat(found)


def why_no_lpips(shape: tuple[int, ...], network: str = "alex") -> str | None:
    """Why LPIPS cannot be had of images (C, H, W), in words; None where it can."""
    least, file = _BACKBONES[checks.one_of("network", network, _BACKBONES)]
    if len(shape) != 3 or shape[0] not in (1, 3) or min(shape[1:]) < least:
        return (
            f"LPIPS by the network {network} needs images (1, H, W) or (3, H, W) with sides of at least {least}, but "
            f"these are {shape}"
        )
    path = Path(torch.hub.get_dir()) / "checkpoints" / file
    if not path.is_file():
        return f"LPIPS needs torchvision's file of weights {path}, which is not there"
    if not _file_sha256(path).startswith(path.stem.rpartition("-")[2]):
        return f"LPIPS needs torchvision's file of weights {path}, but by its SHA-256 this is another one"
    return None


def _file_sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _checked(images: Any, truth: Any, data_range: Any) -> tuple[Tensor, Tensor, float]:
    """Both in float64 on the CPU, and the width of the data range."""
    low, high = checks.given(checks.bounds("data_range", data_range), "data_range is None; give (low, high).")
    for name, given in (("images", images), ("truth", truth)):
        checks.instance(name, given, Tensor, "a tensor (B, C, *spatial) of floats")
        wrong = not given.is_floating_point() or given.ndim < 2 or len(given) == 0
        checks.refuse(
            wrong,
            f"{name} are {given.dtype} of shape {tuple(given.shape)}; expected floats (B, C, *spatial) in the data "
            "range: convert 8-bit images with dv.metrics.to_float.",
        )
        checks.refuse(not bool(torch.isfinite(given).all()), f"{name} hold NaN or Inf; look at what made them.")
    checks.refuse(
        images.shape != truth.shape,
        f"images have shape {tuple(images.shape)}, but truth has {tuple(truth.shape)}; give each image its own truth.",
    )
    return images.detach().double().cpu(), truth.detach().double().cpu(), high - low


def _function(name: str) -> Callable[..., Any]:
    """A function of torchmetrics', by its name in `torchmetrics.functional.image`."""
    module, _, function = f"torchmetrics.functional.image.{name}".rpartition(".")
    try:
        found: Callable[..., Any] = getattr(import_module(module), function)
    except ImportError as error:
        raise InputError(
            f"SSIM and LPIPS are torchmetrics', which cannot be imported ({error}); install it: "
            "pip install 'diffusion-var[restoration]'."
        ) from error
    return found
