"""What tells a network's weights: a digest of names, shapes and values, the same on every device and in all clothes.

    up to 2²⁸ numbers    SHA-256 over the values as float32
    more                 "xxh3:" and XXH3-128 over the same bytes: thirteen times as fast, for a billion of them

What a module keeps beside its weights and uses is digested with them, where there is any: the strengths of the adapters
that are at work, FreeU's and IP-Adapter's. Adapters that are not at work (disabled, of strength 0, or fused into the
weights) do not count, so that a network whose adapters are switched off is the network without them.
"""

from __future__ import annotations

import hashlib
import json
import math
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
import xxhash

from ..unwrapping import state_of, unwrapped

State = dict[str, Callable[[], torch.Tensor]]
#: The most numbers that SHA-256 is used for; it takes about a second for as many.
LARGEST = 2**28
LOW = {"float16": torch.float16, "bfloat16": torch.bfloat16}
_PIECE = 2**16  # numbers hashed at once: they and their roundings stay in the processor's cache


def weights_fingerprint(module: torch.nn.Module) -> str:
    """The digest of a network's weights, and of what it uses beside them."""
    return fingerprints(module, ())[0]


def fingerprints(module: torch.nn.Module, low: Iterable[str]) -> tuple[str, dict[str, str]]:
    """`weights_fingerprint`, and from the same reading of the weights their digests as they are when they are loaded in
    the half precisions `low`, keys of `LOW`."""
    state, beside = _in_use(unwrapped(module))
    large = _numbers(module) > LARGEST
    whole: Any = xxhash.xxh3_128() if large else hashlib.sha256()
    rounded = {name: xxhash.xxh3_128() for name in low}
    _digest(state, [(whole, torch.float32), *((content, LOW[name]) for name, content in rounded.items())])
    found = f"xxh3:{whole.hexdigest()}" if large else whole.hexdigest()
    if beside:
        found = hashlib.sha256(json.dumps([found, beside], sort_keys=True).encode()).hexdigest()
    return found, {name: content.hexdigest() for name, content in rounded.items()}


def sha256_of_weights(network: torch.nn.Module) -> str:
    """SHA-256 over all of a state dict, sorted by name: what files made before had for networks of every size."""
    content = hashlib.sha256()
    _digest(state_of(network), [(content, torch.float32)])
    return content.hexdigest()


def settings_digest(module: torch.nn.Module) -> str:
    """SHA-256 of what a network's modules hold beside the state dict that a function may depend on: numbers with a
    fraction (a scale, an eps, a slope) and buffers that are not saved.

    It is exact, and follows the libraries' code: for runs that one machine goes on with, not for what is passed on.
    """
    bare = unwrapped(module)
    content, saved = hashlib.sha256(), bare.state_dict().keys()
    for name, child in bare.named_modules():
        found = {key: numbers for key, value in vars(child).items() if (numbers := _fractions(value)) is not None}
        content.update(json.dumps([name, found], sort_keys=True).encode())
    for name, buffer in bare.named_buffers():
        if name not in saved and buffer.device.type != "meta":
            _digest({name: buffer.detach}, [(content, torch.float32)])
    return content.hexdigest()


def precision_of(module: torch.nn.Module) -> str:
    """The lowest precision of a network's weights: float16, bfloat16, or float32 for all others."""
    kinds = {parameter.dtype for parameter in module.parameters()}
    return next((name for name, dtype in LOW.items() if dtype in kinds), "float32")


def _numbers(module: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def _digest(state: State, contents: Sequence[tuple[Any, torch.dtype]]) -> None:
    """Add a state to hashes, its floating values in the dtype of each."""
    rounding = {dtype: _Rounding(dtype) for _, dtype in contents}
    for name, read in sorted(state.items()):
        tensor = read()
        flat = tensor.cpu().contiguous().reshape(-1)
        own = {dtype for dtype in rounding if dtype == flat.dtype or not flat.is_floating_point()}
        as_is = flat.view(torch.uint8).numpy() if own else np.empty(0, np.uint8)
        for content, _ in contents:
            content.update(f"{name}{tuple(tensor.shape)}".encode())
        for start in range(0, len(flat), _PIECE):
            piece, width = flat[start : start + _PIECE], flat.itemsize
            for content, dtype in contents:
                raw = as_is[start * width : (start + _PIECE) * width] if dtype in own else rounding[dtype](piece)
                content.update(raw)


class _Rounding:
    """The bytes of at most `_PIECE` numbers in another dtype, always in the same place."""

    def __init__(self, dtype: torch.dtype) -> None:
        self._numbers = torch.empty(_PIECE, dtype=dtype)
        self._bytes = self._numbers.view(torch.uint8).numpy()

    def __call__(self, piece: torch.Tensor) -> np.ndarray[Any, Any]:
        if len(piece) == _PIECE:
            self._numbers.copy_(piece)
            return self._bytes
        self._numbers[: len(piece)].copy_(piece)
        return self._bytes[: len(piece) * self._numbers.itemsize]


# ---- what is beside the weights ------------------------------------------------------------------------------------


def _in_use(module: torch.nn.Module) -> tuple[State, dict[str, Any]]:
    """The weights that a network uses, and what it uses beside them, by the module that has it."""
    state, beside = state_of(module), {}
    for name, layer in _adapted(module):
        state = _without_idle(state, name + "." if name else "", layer)
    for name, child in module.named_modules():
        found = dict(_adapters(child)) | _switches(child)
        if found:
            beside[name] = found
    return state, beside


def _adapted(module: torch.nn.Module) -> Iterator[tuple[str, Any]]:
    """PEFT's layers. There are none where peft has not been imported."""
    tuners = sys.modules.get("peft.tuners.tuners_utils")
    if tuners is not None:
        yield from ((name, child) for name, child in module.named_modules() if isinstance(child, tuners.BaseTunerLayer))


def _adapters(layer: Any) -> Iterator[tuple[str, Any]]:
    """(adapter, strength) of those at work in a layer of PEFT's; merged ones are in its weights already."""
    tuners = sys.modules.get("peft.tuners.tuners_utils")
    if tuners is None or not isinstance(layer, tuners.BaseTunerLayer) or layer.disable_adapters or layer.merged:
        return
    strengths = getattr(layer, "scaling", {})
    for adapter in layer.active_adapters:
        has_weights = any(adapter in getattr(layer, part, {}) for part in layer.adapter_layer_names)
        if has_weights and (strength := float(strengths.get(adapter, 1.0))) != 0:
            yield adapter, strength


def _without_idle(state: State, prefix: str, layer: Any) -> State:
    """A state without the adapters of one layer that are not at work; with none left, under the plain layer's names."""
    active = {adapter for adapter, _ in _adapters(layer)}
    parts = [prefix + part + "." for part in layer.adapter_layer_names]
    base = prefix + "base_layer."
    kept: State = {}
    for name, read in state.items():
        part = next((part for part in parts if name.startswith(part)), None)
        if part is not None and name.removeprefix(part).split(".")[0] not in active:
            continue
        kept[prefix + name.removeprefix(base) if not active and name.startswith(base) else name] = read
    return kept


def _switches(module: torch.nn.Module) -> dict[str, Any]:
    """FreeU's factors of a block and IP-Adapter's strengths of an attention layer, where they are at work."""
    freeu = {name: getattr(module, name, None) for name in ("s1", "s2", "b1", "b2")}
    found = freeu if all(isinstance(value, int | float) and value for value in freeu.values()) else {}
    processor = getattr(module, "processor", None)
    if "IPAdapter" in type(processor).__name__:
        found = {**found, "ip_adapter": _plain(getattr(processor, "scale", None))}
    return found


def _fractions(value: Any) -> Any:
    """A float, or a nest of lists, tuples and dicts that hold some, as plain data; None for all else."""
    if isinstance(value, float):
        return repr(value)
    if type(value) in (list, tuple):
        found = [_fractions(entry) for entry in value]
        return found if any(entry is not None for entry in found) else None
    if type(value) is dict:
        kept = {str(key): numbers for key, entry in value.items() if (numbers := _fractions(entry)) is not None}
        return kept or None
    return None


def _plain(value: Any) -> Any:
    if isinstance(value, list | tuple):
        return [_plain(entry) for entry in value]
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else str(value)
