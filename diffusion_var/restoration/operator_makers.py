"""What makes the operators that have names: deepinv's constructors, with what they need to know of the images.

A maker is called with the shape (C, *spatial), the seed and a torch generator of that seed, and with the arguments that
the name has; it gives one of deepinv's operators, on the CPU.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch

from .. import checks
from ..randomness import generator
from .deepinv_physics import deepinv_module

Maker = Callable[..., Any]
_GIVEN = ("shape", "seed", "stream")


def deepinv_classes() -> tuple[dict[str, type[Any]], set[str]]:
    """deepinv's linear operators on images that can be made of literals, and the names of those that are not linear."""
    physics = deepinv_module("deepinv.physics")
    kinds = {name: kind for name in dir(physics) if inspect.isclass(kind := getattr(physics, name))}
    every = {name: kind for name, kind in kinds.items() if issubclass(kind, physics.Physics)}
    linear = {name: kind for name, kind in every.items() if issubclass(kind, physics.LinearPhysics)}
    plain = {name: kind for name, kind in linear.items() if not {"physics", "physics_list"} & {*_parameters(kind)}}
    return plain, {*every} - {*linear}


def _parameters(made: Callable[..., Any]) -> dict[str, inspect.Parameter]:
    return dict(inspect.signature(made).parameters)


def by_class(kind: type[Any]) -> Maker:
    """A class of deepinv's, with what it needs to know of the images."""

    def make(shape: tuple[int, ...], seed: int, stream: torch.Generator, **arguments: Any) -> Any:
        checks.refuse(
            "noise_model" in arguments,
            f"{kind.__name__} takes no noise_model here: the noise is Gaussian, and its standard deviation is given "
            "apart from the operator; leave it out.",
        )
        known = {"img_size": shape, "img_width": shape[-1], "channels": shape[0], "rng": stream}
        return kind(**{**{name: known[name] for name in known if name in _parameters(kind)}, **arguments})

    return make


def _inpainting(shape: tuple[int, ...], seed: int, stream: Any, mask: Any = 0.5) -> Any:
    share = checks.interval("mask", mask, 0.0, 1.0, "give the share of the pixels that are seen")
    pixels = shape[1] * shape[2]
    seen = generator(seed, "mask of pixels").permutation(pixels) < round(share * pixels)
    return _masked(shape, torch.from_numpy(seen).reshape(shape[1:]))


def _box(shape: tuple[int, ...], seed: int, stream: Any, size: Any = None) -> Any:
    least = min(shape[1:])
    size = checks.whole("size", max(least // 2, 1) if size is None else size, 1, least, "the square's side in pixels")
    top, left = (shape[1] - size) // 2, (shape[2] - size) // 2
    seen = torch.ones(shape[1:], dtype=torch.bool)
    seen[top : top + size, left : left + size] = False
    return _masked(shape, seen)


def _masked(shape: tuple[int, ...], seen: torch.Tensor) -> Any:
    return deepinv_module("deepinv.physics").Inpainting(img_size=shape, mask=seen.float().expand(shape).clone())


def _blur(shape: tuple[int, ...], seed: int, stream: Any, sigma: Any = 1.5, angle: Any = 0.0) -> Any:
    sigma = tuple(sigma) if isinstance(sigma, tuple) else checks.positive("sigma", sigma, "a positive number of pixels")
    physics = deepinv_module("deepinv.physics")
    return physics.BlurFFT(img_size=shape, filter=physics.blur.gaussian_blur(sigma=sigma, angle=angle))


def _super_resolution(shape: tuple[int, ...], seed: int, stream: Any, factor: Any = 2, filter: Any = "bicubic") -> Any:
    factor = checks.whole("factor", factor, 2, hint="how many times fewer pixels a side has")
    unlike = [side for side in shape[1:] if side % factor]
    checks.refuse(
        bool(unlike), f"its factor {factor} does not divide the images' sides {shape[1:]}; choose another one."
    )
    return deepinv_module("deepinv.physics").Downsampling(img_size=shape, filter=filter, factor=factor)


def _compressed_sensing(shape: tuple[int, ...], seed: int, stream: Any, m: Any = 0.25) -> Any:
    d = torch.Size(shape).numel()
    count = checks.whole("m", m if checks.is_whole(m) and m > 1 else max(round(_share(m) * d), 1), 1, d)
    return deepinv_module("deepinv.physics").CompressedSensing(m=count, img_size=shape, rng=stream)


def _share(m: Any) -> float:
    return checks.interval("m", m, 0.0, 1.0, "give the number of projections, or their share of the image's numbers")


#: Those with names of their own.
OWN: dict[str, Maker] = {
    "inpainting": _inpainting,
    "box": _box,
    "blur": _blur,
    "super-resolution": _super_resolution,
    "compressed-sensing": _compressed_sensing,
}


def arguments_of(maker: Maker) -> list[str]:
    """The arguments that a name may have."""
    return [name for name in _parameters(maker) if name not in _GIVEN]
