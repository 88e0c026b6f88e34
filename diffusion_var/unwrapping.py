"""One network in its many clothes: the module beneath its wrappers, and its weights wherever they lie.

    torch.compile, DataParallel, DistributedDataParallel, FSDP, AveragedModel    a module around the module
    a pipeline's loop (`models.pretrained.loop`)                                 a module that names what it is around
    accelerate's offload                                                         weights on the meta device, the true
                                                                                 ones in a hook's map
    FSDP2                                                                        weights in shards (DTensor)

Whoever asks what a network is (its weights, config, layers) asks `unwrapped` first; whoever runs it, runs what was
given.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch

from .errors import InputError

#: The names under which wrappers hold what they wrap: torch.compile's, FSDP's; "module" is one in these classes only.
_OWN_NAMES = ("_orig_mod", "_fsdp_wrapped_module")
_PARALLEL = (
    torch.nn.DataParallel,
    torch.nn.parallel.DistributedDataParallel,
    torch.optim.swa_utils.AveragedModel,
)


def unwrapped(network: Any) -> Any:
    """The module beneath all wrappers; whatever else is given, as it is."""
    return wrappings(network)[-1]


def wrappings(network: Any) -> list[Any]:
    """A network and what it wraps, from the outside to the module beneath."""
    found = [network]
    while (name := _wrapped_name(found[-1])) is not None:
        found.append(getattr(found[-1], name))
    return found


def _wrapped_name(network: Any) -> str | None:
    if not isinstance(network, torch.nn.Module):
        return None
    if isinstance(network, _PARALLEL):
        return "module"
    around: str | None = getattr(type(network), "wraps", None)
    return around or next((name for name in _OWN_NAMES if name in network._modules), None)


def state_of(network: torch.nn.Module) -> dict[str, Callable[[], torch.Tensor]]:
    """A network's state dict under the names that the bare network has, each tensor read when it is asked for.

    The state of DataParallel, compiled (also in parts), offloaded and sharded forms is that of the network itself.
    InputError for weights that are nowhere (a network on the meta device).
    """
    module = unwrapped(network)
    inner = {
        f"{path}.{name}.": f"{path}."
        for path, child in module.named_modules()
        if path and (name := _wrapped_name(child)) is not None
    }
    found: dict[str, Callable[[], torch.Tensor]] = {}
    for name, value in module.state_dict().items():
        if isinstance(value, torch.Tensor):  # extra state, which is none, has no values to compare
            found[_renamed(name, inner)] = _reader(module, name, value)
    return found


def _renamed(name: str, inner: Mapping[str, str]) -> str:
    for wrapped in sorted(inner, key=len, reverse=True):  # the innermost first: the outer names stay as they are
        if name.startswith(wrapped):
            name = inner[wrapped] + name[len(wrapped) :]
    return name


def _reader(module: torch.nn.Module, name: str, value: torch.Tensor) -> Callable[[], torch.Tensor]:
    """What gives one tensor of a state dict, whole and with its values."""
    value = value.detach()
    if hasattr(value, "full_tensor"):
        whole: Callable[[], torch.Tensor] = value.full_tensor
        return whole
    if value.device.type != "meta":
        return lambda: value
    owner, _, local = name.rpartition(".")
    for hook in _hooks(module.get_submodule(owner)):
        weights = getattr(hook, "weights_map", None)
        if weights is not None and local in weights:
            return lambda: torch.as_tensor(weights[local])
    raise InputError(
        f"the network's weight {name!r} is on the meta device, without values; load the weights before it is used."
    )


# ---- where it runs ----------------------------------------------------------------------------------------------


def device_of(network: Any) -> torch.device:
    """Where a network takes its input: where its hooks or its parameters are, else the CPU."""
    if not isinstance(network, torch.nn.Module):
        return torch.device("cpu")
    module = unwrapped(network)
    for child in module.modules():
        for hook in _hooks(child):
            if (device := getattr(hook, "execution_device", None)) is not None:
                return torch.device(device)
    return next((parameter.device for parameter in module.parameters()), torch.device("cpu"))


def is_placed(network: torch.nn.Module) -> bool:
    """Whether accelerate's hooks bring the weights to where they are needed, so that nobody else may move them."""
    module = unwrapped(network)
    for part in (module, *module.children()):  # a pipeline may have two networks, which are one here
        if any(type(hook).__name__ == "CpuOffload" for hook in _hooks(part)) or _is_group_offloaded(part):
            return True
    if len({*(getattr(unwrapped(network), "hf_device_map", None) or {}).values()}) > 1:
        return True
    return any(parameter.device.type == "meta" for parameter in network.parameters())


def has_hook(module: torch.nn.Module) -> bool:
    """Whether one of accelerate's hooks is on it, which may hold its weights."""
    return next(_hooks(module), None) is not None


def _is_group_offloaded(module: torch.nn.Module) -> bool:
    """Whether diffusers' hooks bring its layers to the device in turn."""
    offloading = sys.modules.get("diffusers.hooks.group_offloading")
    return offloading is not None and bool(offloading._is_group_offload_enabled(module))


def _hooks(module: torch.nn.Module) -> Iterator[Any]:
    """The hooks that accelerate has put on a module."""
    hook = getattr(module, "_hf_hook", None)
    if hook is not None:
        yield from getattr(hook, "hooks", (hook,))


# ---- compiled networks -------------------------------------------------------------------------------------------


@contextmanager
def eagerly(modules: Iterable[torch.nn.Module]) -> Iterator[None]:
    """While hooks on a layer are wanted, of whose surroundings these are all: compiled code does not call them, so that
    where one of them is compiled (by torch.compile, or by its own `compile`), it runs as it is written."""
    if not any(_is_compiled(module) for module in modules):
        yield
        return
    with torch.compiler.set_stance("force_eager"):
        yield


def stay_eager(modules: Iterable[torch.nn.Module]) -> Callable[[], None]:
    """As `eagerly`, from now on, for whoever calls them; returns what ends it."""
    ends: list[Callable[[], Any]] = []
    for module in modules:
        if module._compiled_call_impl is not None:
            ends.append(partial(setattr, module, "_compiled_call_impl", module._compiled_call_impl))
            module._compiled_call_impl = None
        if _is_compiled(module):
            stack = ExitStack()
            before = module.register_forward_pre_hook(partial(_enter, stack))
            after = module.register_forward_hook(partial(_leave, stack), always_call=True)
            ends += [before.remove, after.remove]

    def end() -> None:
        for each in ends:
            each()

    return end


def _enter(stack: ExitStack, module: torch.nn.Module, given: Any) -> None:
    stack.enter_context(eagerly([module]))


def _leave(stack: ExitStack, *_: Any) -> None:
    stack.close()


def _is_compiled(module: torch.nn.Module) -> bool:
    return "_orig_mod" in module._modules or module._compiled_call_impl is not None
