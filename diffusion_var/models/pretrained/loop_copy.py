"""The copy of a pipeline that runs one evaluation: what it does otherwise than the pipeline itself; see `loop`."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch

from ... import checks


class Stop(Exception):
    """The run has come to where it should end."""


@dataclass
class Task:
    """What one run is given, and what it found: the step's model output and sample, the latents that were prepared, and
    the shape that they had before they were packed."""

    device: torch.device
    latents: torch.Tensor | None = None
    timestep: float | None = None
    said: Iterator[Any] | None = None
    encodes: list[Any] | None = None
    output: torch.Tensor | None = None
    sample: torch.Tensor | None = None
    unpacked: list[tuple[int, ...]] = field(default_factory=list)

    def stop_if_encoded(self) -> None:
        if self.encodes is not None:
            raise Stop


def as_latents(output: torch.Tensor, shape: torch.Size) -> torch.Tensor:
    """A model output like the latents (B, …); pipelines that step a video's frames one by one have (B·F, C, H, W)."""
    if output.shape == shape or len(shape) != 5 or output.ndim != 4:
        return output
    return output.reshape(shape[0], shape[2], -1, *shape[3:]).movedim(2, 1)


class _Scheduler:
    """A scheduler with one timestep, whose step is the end."""

    task: Task
    timesteps: torch.Tensor
    sigmas: torch.Tensor
    config: Any
    num_inference_steps: int
    order = property(lambda self: 1)
    init_noise_sigma = property(lambda self: 1.0)  # x_t comes as the network sees it

    def set_timesteps(
        self,
        num_inference_steps: Any = None,
        device: Any = None,
        timesteps: Any = None,
        sigmas: Any = None,
        mu: Any = None,
        **_: Any,
    ) -> None:
        self.task.stop_if_encoded()
        told, now = self.timesteps, self.task.timestep
        assert now is not None
        whole = not told.is_floating_point() and now == int(now)
        self.timesteps = torch.tensor([now], dtype=told.dtype if whole else torch.float32, device=self.task.device)
        # Of flow models, whose pipelines may ask for them.
        self.sigmas = torch.tensor([now / self.config.get("num_train_timesteps", 1000), 0.0])
        self.num_inference_steps = 1

    def scale_model_input(self, sample: torch.Tensor, *_: Any, **__: Any) -> torch.Tensor:
        return sample

    def step(self, *args: Any, **kwargs: Any) -> Any:
        given = inspect.signature(super().step).bind(*args, **kwargs).arguments  # type: ignore[misc]
        self.task.output, self.task.sample = given["model_output"], given["sample"]
        raise Stop


class _Pipeline:
    """A pipeline that is handed its latents and what its text encoders said."""

    task: Task
    _execution_device = property(lambda self: self.task.device)
    device = property(lambda self: self.task.device)

    def encode_prompt(self, *args: Any, **kwargs: Any) -> Any:
        if self.task.said is not None:
            return next(self.task.said)
        said = super().encode_prompt(*args, **kwargs)  # type: ignore[misc]
        assert self.task.encodes is not None
        self.task.encodes.append(said)
        return said

    def prepare_latents(self, *args: Any, **kwargs: Any) -> Any:
        self.task.stop_if_encoded()
        made = super().prepare_latents(*args, **kwargs)  # type: ignore[misc]
        first = made[0] if isinstance(made, tuple) else made
        if self.task.latents is None:
            self.task.latents = first
            return made
        checks.refuse(
            first.shape != self.task.latents.shape,
            f"the pipeline prepares latents of shape {tuple(first.shape)} now, but they were "
            f"{tuple(self.task.latents.shape)} when the denoiser was made; make it again.",
        )
        mine = self.task.latents.to(first.device, first.dtype)
        return (mine, *made[1:]) if isinstance(made, tuple) else mine

    def _pack_latents(self, latents: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        self.task.unpacked.append(tuple(latents.shape))
        return super()._pack_latents(latents, *args, **kwargs)  # type: ignore[misc]


def copy_class(kind: type) -> type:
    """The class of a pipeline's copy, of the same name."""
    return type(kind.__name__, (_Pipeline, kind), {"__module__": kind.__module__})


def stand_in(scheduler: Any) -> type:
    """The class of what stands for a scheduler, of the same name."""
    kind = type(scheduler)
    return type(kind.__name__, (_Scheduler, kind), {"__module__": kind.__module__})
