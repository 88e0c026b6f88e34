"""What `small_families` is made of: the list that families enter, and what several of them share."""

from collections.abc import Callable
from functools import cache
from typing import Any

import diffusers
import torch
from small_pipelines import CODEC, SCHEDULER

BETAS = {**SCHEDULER, "num_train_timesteps": 1000, "beta_start": 1e-4, "beta_end": 0.02}
STEPS = 3
PICTURE = {"prompt": "a cat", "height": 16, "width": 16, "output_type": "latent"}

FAMILIES: dict[str, Callable[[], Any]] = {}
CALLS: dict[str, dict[str, Any]] = {}


def family(name: str, **call: Any) -> Callable[[Callable[[], Any]], Callable[[], Any]]:
    """Enter a function that gives (pipeline's class, its scheduler, its other arguments) under a name."""

    def enter(make: Callable[[], Any]) -> Callable[[], Any]:
        made = cache(make)

        def new() -> Any:
            kind, scheduler, parts = made()
            pipe = kind(scheduler=type(scheduler).from_config(scheduler.config), **parts)
            pipe.set_progress_bar_config(disable=True)
            return pipe

        FAMILIES[name] = new
        CALLS[name] = {"num_inference_steps": STEPS, **call}
        return make

    return enter


def seeded(make: Callable[..., Any], **config: Any) -> Any:
    """A network of random weights, the same every time, and none of whose layers gives zero."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = make(**config).eval().requires_grad_(False)
        for parameter in network.parameters():
            if parameter.ndim > 1 and not parameter.any():
                torch.nn.init.normal_(parameter, std=0.2)
        return network


@cache
def codec(channels: int = 4, **config: Any) -> Any:
    """An AutoencoderKL that halves a picture's sides (`blocks` = 4: an eighth)."""
    blocks = config.pop("blocks", 2)
    sizes = {
        "block_out_channels": (4,) * (blocks - 1) + (8,),
        "down_block_types": ("DownEncoderBlock2D",) * blocks,
        "up_block_types": ("UpDecoderBlock2D",) * blocks,
    }
    return seeded(diffusers.AutoencoderKL, **{**CODEC, **sizes}, latent_channels=channels, sample_size=16, **config)


def picture(batch: int = 1, size: int = 16) -> torch.Tensor:
    """Pictures to begin with (B, 3, size, size), in [0, 1]."""
    return torch.rand((batch, 3, size, size), generator=torch.Generator().manual_seed(7))


def mask(size: int = 16) -> torch.Tensor:
    """What is to be painted: the right half (1, 1, size, size)."""
    return (torch.arange(size) >= size // 2).float().expand(1, 1, size, size).clone()
