"""What a pipeline must have to be run by its own loop, and what is said of one that lacks it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from ... import checks
from ...errors import InputError, printable
from ...unwrapping import has_hook
from .loop_copy import Task, as_latents

#: Where a pipeline keeps its network.
NETWORKS = ("transformer", "unet", "prior", "decoder")
WRAP = "wrap its network by hand (dv.Denoiser(callable, schedule, …))"
_PROMPT_PARTS = ("text_encoder", "tokenizer")
_BY_STEP = ("cfg_trunc_ratio", "skip_guidance_layers", "control_guidance_start", "control_guidance_end")
# Arguments of calls that the loop gives itself.
_OURS = (
    *("prompt_embeds", "negative_prompt_embeds", "pooled_prompt_embeds", "negative_pooled_prompt_embeds", "latents"),
    *("prompt", "timesteps", "sigmas", "output_type", "return_dict", "generator", "callback", "callback_on_step_end"),
    *("num_images_per_prompt", "num_videos_per_prompt", "num_waveforms_per_prompt", "batch_size", "strength"),
)


def network_name(pipe: Any) -> str:
    """The attribute that is a pipeline's denoising network; InputError for a pipeline without one."""
    found = next((name for name in NETWORKS if isinstance(getattr(pipe, name, None), torch.nn.Module)), None)
    return checks.given(
        found,
        f"the pipeline, a {type(pipe).__name__}, has no network: none of {', '.join(NETWORKS)} is one; load it with "
        f"its network, or {WRAP}.",
    )


def networks_of(pipe: Any, names: Sequence[str] = NETWORKS) -> torch.nn.Module | None:
    """The denoising network of a pipeline; of one with a network for each part of the noise levels (Wan 2.2:
    transformer and transformer_2) both, as one module; None without."""
    name = next((name for name in names if isinstance(getattr(pipe, name, None), torch.nn.Module)), None)
    if name is None:
        return None
    first: torch.nn.Module = getattr(pipe, name)
    second = getattr(pipe, f"{name}_2", None)
    return torch.nn.ModuleDict({name: first, f"{name}_2": second}) if isinstance(second, torch.nn.Module) else first


def modules_of(pipe: Any) -> dict[str, torch.nn.Module]:
    """The networks of a pipeline by name."""
    return {name: part for name, part in vars(pipe).items() if isinstance(part, torch.nn.Module)}


@contextmanager
def first_time(pipe: Any) -> Iterator[None]:
    """Whatever a pipeline raises where it is tried is about what it was given, or lacks."""
    try:
        yield
    except InputError:
        raise
    except torch.OutOfMemoryError as error:
        raise InputError(
            f"{type(pipe).__name__} does not fit into memory ({_reason(error)}); offload parts of it."
        ) from error
    except Exception as error:
        parts = {name: part for name, part in vars(pipe).items() if name.startswith(_PROMPT_PARTS)}
        absent = [
            name
            for name, part in parts.items()
            if part is None and name not in getattr(pipe, "_optional_components", ())
        ]
        hint = f"; its {', '.join(absent)} is None" if absent else ""
        raise InputError(
            f"{type(pipe).__name__} cannot be called with these arguments ({_reason(error)}){hint}; give what its "
            f"__call__ needs here, or {WRAP}."
        ) from error


def _reason(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return type(error).__name__ + (f": {printable(lines[0], 200).rstrip('. ')}" if lines else "")


def _is_empty(part: torch.nn.Module) -> bool:
    """Whether some of its weights are on the meta device and nowhere else."""
    return any(p.device.type == "meta" for p in part.parameters()) and not any(map(has_hook, part.modules()))


def check_weights(pipe: Any) -> None:
    """Refuse a pipeline whose weights are nowhere."""
    empty = [k for k, m in modules_of(pipe).items() if k in NETWORKS or k.startswith(_PROMPT_PARTS) if _is_empty(m)]
    checks.refuse(
        bool(empty),
        f"the weights of the {', '.join(empty)} of {type(pipe).__name__} are on the meta device, without values, "
        "and no hook of accelerate's holds them; load them, or offload them by pipe.enable_model_cpu_offload().",
    )


def check_pipeline(pipe: Any, parameters: Mapping[str, Any]) -> None:
    """Refuse a pipeline without what it is run by; `parameters` are those of its call."""
    missing = [name for name in ("prepare_latents",) if not hasattr(type(pipe), name)]
    if "prompt" in parameters and not hasattr(type(pipe), "encode_prompt"):
        missing.append("encode_prompt")
    if not hasattr(pipe.scheduler, "step"):
        missing.append("scheduler.step")
    if "prompt" not in parameters and "batch_size" not in parameters:
        missing.append("argument prompt or batch_size")
    checks.refuse(
        bool(missing),
        f"the pipeline {type(pipe).__name__} has no {' and no '.join(missing)}, which its loop is run by; {WRAP}.",
    )
    config: dict[str, Any] = dict(getattr(pipe.scheduler, "config", {}))
    most: Any = config.get("sigma_max")
    checks.refuse(
        "shift" in config and checks.is_number(most) and most > 1,
        f"the noise levels of {type(pipe).__name__} are sigma/alpha up to {most}, though its scheduler is a flow's, "
        f"whose lie between 0 and 1; {WRAP}.",
    )


def check_sample(task: Task, name: str) -> None:
    """Refuse a pipeline that steps something else than the latents that it prepares, or hands its scheduler an output
    of another shape."""
    assert task.latents is not None
    assert task.sample is not None
    assert task.output is not None
    given, seen = task.latents, as_latents(task.sample, task.latents.shape)
    same = seen.shape == given.shape and torch.allclose(seen.float(), given.float(), rtol=1e-2, atol=1e-4)
    checks.refuse(
        not same or task.output.shape != task.sample.shape,
        f"{name} does not step the latents that it prepares as they are (a model output {tuple(task.output.shape)} of "
        f"a sample {tuple(task.sample.shape)}, for latents {tuple(given.shape)}); {WRAP}.",
    )


def check_call(pipe: Any, call: Mapping[str, Any], parameters: Mapping[str, Any]) -> None:
    """Refuse arguments that a pipeline's call does not have, or that are given to it here."""
    unknown = [name for name in call if name not in parameters]
    checks.refuse(
        bool(unknown),
        f"{type(pipe).__name__} takes no {', '.join(unknown)}; give arguments of its __call__, such as "
        f"{checks.listing([name for name in parameters if name not in ('self', *_OURS)], 8)}.",
    )
    by_step = [name for name in call if name in _BY_STEP]
    checks.refuse(
        bool(by_step),
        f"{', '.join(by_step)} of {type(pipe).__name__} goes by the number of a step, of which a noise level knows "
        "nothing; leave it out.",
    )
    ours = [name for name in call if name in _OURS]
    checks.refuse(
        bool(ours),
        f"{', '.join(ours)} cannot be given here, where every image has its own; leave it out, and give prompts as "
        "conditions (denoiser.prompts.encode).",
    )
