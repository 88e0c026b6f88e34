"""What a network does: its output on a few fixed inputs, as a few numbers.

Weights are not all that decides a function: buffers that are not saved, attributes that `forward` reads, a config of
other activations, code that has changed. So the network is evaluated on fixed noise, at two noise levels, and of each
output eight products with fixed vectors of random signs are kept, which move as much as the output does. A network in
half precision, or on another machine, agrees within a tolerance; see `measured`.

The first input is given twice: a network whose answers differ has no function to tell it by. All are one batch, for a
large network takes as long to read as to evaluate; where the memory does not suffice for three images, one at a time.
"""

from __future__ import annotations

import copy
import hashlib
import json
import math
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import chain
from typing import Any

import torch

from ..measured import Plain, agree, measured
from ..process.schedule import NoiseSchedule
from ..randomness import generator, normal
from ..unwrapping import device_of, is_placed, unwrapped
from .network_use import keeping_modes
from .precision import InputPrecision

#: How far two evaluations of one network may be apart, relative to its output: by its weights' precision. GPUs use
#: TF32 for float32's convolutions.
WITHIN = {"float32": 2e-3, "float16": 2e-2, "bfloat16": 5e-2}
_PRODUCTS = 8
_TOKENS = 8  # of a made-up prompt


def probe(
    network: torch.nn.Module,
    schedule: NoiseSchedule,
    shape: Sequence[int],
    precision: str,
    classes: int | None = None,
    device: torch.device | None = None,
) -> Plain | None:
    """What a denoising network does, as `measured` numbers; None where it cannot be told.

    Args:
        network: (x_t, timestep[, condition]) -> output, as `Denoiser` takes it.
        schedule: whose timesteps it is told.
        shape: (C, *spatial) of one image.
        precision: of its weights, a key of `WITHIN`.
        classes: how many labels it knows, where it does and its config does not say so.
        device: where it takes its input; None: where its parameters are.
    """
    module, takes = _stand_in(unwrapped(network)), InputPrecision()
    given, device = _condition(module, classes), device_of(module) if device is None else device
    indices = sorted({max(1, round(schedule.num_steps * part)) for part in (0.1, 0.5)})

    def run(x: torch.Tensor, timestep: torch.Tensor, condition: Any) -> Any:
        return module(x, timestep) if condition is None else module(x, timestep, condition)

    def output(places: Sequence[int]) -> torch.Tensor:
        x = torch.cat([normal(generator(0, "probe", n), 1, *shape) for n in places]).to(device)
        timestep = schedule.timesteps(torch.tensor(places), len(x), x.device)
        condition = None if given is None else torch.cat([given] * len(x)).to(device)
        out = takes.evaluate(module, run, x, timestep, condition)
        found: torch.Tensor = getattr(out, "sample", out)
        return found

    of = [list(shape), [float(schedule.timestep[n]) for n in indices]]
    return probed(
        module, output, indices, [*of, None if given is None else [str(given.dtype), *given.shape]], precision
    )


def probed(
    module: torch.nn.Module,
    output: Callable[[Sequence[int]], torch.Tensor],
    inputs: Sequence[int],
    of: Any,
    precision: str,
    hooks: bool = True,
) -> Plain | None:
    """The outputs of a module for some inputs, as `measured` numbers; None where they cannot be had, or not twice.

    Args:
        module: which is in evaluation mode meanwhile.
        output: (B, …) of the inputs of these B numbers.
        of: what the inputs are, as plain data.
        hooks: whether the user's hooks on its layers are called.
    """
    try:
        with keeping_modes(module), _hooks(module, hooks), torch.no_grad():
            module.eval()
            found = _in_one_batch(output, (*inputs, inputs[0])).detach().double().cpu().flatten(1)
    except Exception:  # it wants other inputs, or cannot be run here: whoever uses it will hear of that from itself
        return None
    if len(found) != len(inputs) + 1 or not found.numel() or not found.isfinite().all():
        return None
    d = found.shape[1]
    signs = torch.from_numpy(generator(0, "probe signs").integers(0, 2, (_PRODUCTS, d)) * 2.0 - 1.0)
    values = (found @ signs.T / math.sqrt(d)).tolist()
    name, within = hashlib.sha256(json.dumps(of).encode()).hexdigest()[:16], WITHIN[precision]
    first, again = measured(values[0], within, name), measured(values[-1], within, name)
    return measured([x for out in values[:-1] for x in out], within, name) if agree(first, again) else None


def _in_one_batch(output: Callable[[Sequence[int]], torch.Tensor], inputs: Sequence[int]) -> torch.Tensor:
    try:
        return output(inputs)
    except torch.OutOfMemoryError:
        return torch.cat([output([k]) for k in inputs])


def _condition(module: Any, classes: int | None) -> torch.Tensor | None:
    """A condition of one image such as the network takes: a label, a made-up prompt, or none."""
    config = dict(getattr(module, "config", None) or {})
    labels = classes or config.get("num_class_embeds") or config.get("num_embeds_ada_norm")
    if labels:
        return torch.zeros(1, dtype=torch.int64)
    width = config.get("cross_attention_dim")
    return normal(generator(0, "probe prompt"), 1, _TOKENS, width) if isinstance(width, int) else None


def _stand_in(module: torch.nn.Module) -> torch.nn.Module:
    """A copy that shares the weights: evaluated in its place, it leaves no trace in the module itself (counters,
    caches, what hooks have seen); the module, where it cannot be copied."""
    if is_placed(module):
        return module
    shared: dict[int, Any] = {id(tensor): tensor for tensor in chain(module.parameters(), module.buffers())}
    try:
        return copy.deepcopy(module, shared)
    except Exception:  # it holds what has no copy: a handle, a lock, a tensor with a graph
        return module


@contextmanager
def _hooks(module: torch.nn.Module, wanted: bool) -> Iterator[None]:
    """The module's hooks as they are, or none inside."""
    before = [(m, m._forward_hooks, m._forward_pre_hooks) for m in module.modules()]
    try:
        for m, *_ in before if not wanted else []:
            m._forward_hooks, m._forward_pre_hooks = OrderedDict(), OrderedDict()
        yield
    finally:
        for m, after, ahead in before:
            m._forward_hooks, m._forward_pre_hooks = after, ahead
