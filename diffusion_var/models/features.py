"""The trunk's last activations: what enters the last layers of a network, read by one forward hook while it runs.

    diffusers UNets       the input of `conv_norm_out`, (B, F, H, W)
    diffusers' DiT        the input of `norm_out`, tokens (B, T, F)
    any other network     the input of the module that is named: (B, F, *spatial), or tokens (B, T, F)

A head on these features (arXiv:2206.07309, §5) costs no second evaluation of the trunk. Compiled code calls no hooks,
so a compiled network runs as it is written while its features are read.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from ..errors import InputError
from ..unwrapping import eagerly, stay_eager, unwrapped, wrappings

#: The first layer behind the trunk, by the names that diffusers gives it.
KNOWN_MODULES = ("conv_norm_out", "norm_out")
_CANDIDATES = 12


class FeatureTap:
    """Reads what enters one module of a network.

    Args:
        network: any module.
        module: name of the module (as in `network.named_modules()`) whose first input the features are; None: found
            for diffusers UNets and DiT.
        spatial_axes: of the images: 2; 0 for vectors, 1 for signals, 3 for videos.

    Attributes: `name` of the module, and `network`, the module beneath all wrappers, which is the one to run: a network
    on several devices has several copies of its layers. Raises InputError, with the candidates, where the module cannot
    be found.
    """

    def __init__(self, network: Any, module: str | None = None, spatial_axes: int = 2) -> None:
        if not isinstance(network, torch.nn.Module):
            raise InputError(
                f"a head reads the features of a torch module, but the network is a {type(network).__name__}; wrap it "
                "in a torch.nn.Module whose last layer is a module of its own."
            )
        self.spatial_axes = spatial_axes
        bare = unwrapped(network)
        modules = dict(bare.named_modules())
        found = module if module is not None else next((name for name in KNOWN_MODULES if name in modules), None)
        if found is None or not found or found not in modules:
            missing = "its last layer is not known by name" if module is None else f"it has no module {module!r}"
            last = [name for name in modules if name][-_CANDIDATES:]
            raise InputError(
                f"the features of {type(bare).__name__} cannot be found: {missing}; name the module whose input "
                f"they are (features=), one of its last being {', '.join(last) or '(none: it has no modules)'}."
            )
        self.name = found
        self._module = modules[found]
        #: A pipeline's loop is around its network, and runs it.
        self.network: torch.nn.Module = network if hasattr(type(network), "wraps") else bare
        parts = found.split(".")
        #: All that the module is a part of, whose compiled code would not call its hooks.
        self._around = [*wrappings(network), *(modules[".".join(parts[:k])] for k in range(1, len(parts) + 1))]

    @contextmanager
    def reading(self) -> Iterator[list[torch.Tensor]]:
        """A list that receives the features of each evaluation inside, in which a compiled network runs as written."""
        seen: list[torch.Tensor] = []

        def keep(_: Any, given: tuple[Any, ...], __: Any) -> None:
            seen.extend(given[:1])

        handle = self._module.register_forward_hook(keep)
        try:
            with eagerly(self._around):
                yield seen
        finally:
            handle.remove()

    def watch(self) -> Watch:
        """Reads every evaluation from now on."""
        return Watch(self)

    def features(self, seen: list[torch.Tensor], batch: int, last: bool = False) -> torch.Tensor:
        """Of `batch` images, (B, F, *spatial) or (B, T, F), float32 where the network runs in less. With guidance there
        are twice as many, of which the conditional ones come first here, and last in diffusers' pipelines."""
        axes = {2 + self.spatial_axes, *([3] if self.spatial_axes > 0 else [])}
        if not seen or not isinstance(seen[-1], torch.Tensor) or seen[-1].ndim not in axes or len(seen[-1]) < batch:
            what = "was not called" if not seen else f"was given {_described(seen[-1])}"
            expected = {0: "(B, F)", 1: "(B, F, L) or (B, T, F)", 2: "(B, F, H, W) or (B, T, F)"}
            raise InputError(
                f"the module {self.name!r} has no features to read: it {what}, but a tensor "
                f"{expected.get(self.spatial_axes, '(B, F, *spatial) or (B, T, F)')} is expected; name another module "
                "(features=)."
            )
        found = seen[-1][-batch:] if last else seen[-1][:batch]
        return found if found.dtype == torch.float64 else found.float()


class Watch:
    """A hook that stays, and keeps the features of the last evaluation until they are taken.

    A copy of a watch watches nothing: it belongs to no network.
    """

    def __init__(self, tap: FeatureTap) -> None:
        self._tap: FeatureTap | None = tap
        self._seen: list[torch.Tensor] = []
        #: How many evaluations there were since the features were last taken.
        self.evaluations = 0
        self._handle: Any = tap._module.register_forward_hook(self._keep)
        self._end: Any = stay_eager(tap._around)

    def _keep(self, _: Any, given: tuple[Any, ...], __: Any) -> None:
        self._seen = list(given[:1])
        self.evaluations += 1

    def forget(self) -> None:
        """As if there had been no evaluation."""
        self._seen, self.evaluations = [], 0

    def take(self, batch: int) -> tuple[torch.Tensor, bool] | None:
        """The features of `batch` images, and whether there were twice as many (guidance); None if the network has not
        been evaluated since the last time."""
        seen = self._seen
        self.forget()
        if not seen or self._tap is None:
            return None
        return self._tap.features(seen, batch, last=True), len(seen[-1]) == 2 * batch

    def remove(self) -> None:
        """Watch no longer."""
        if self._handle is not None:
            self._handle.remove()
            self._end()

    def __deepcopy__(self, memo: Any) -> Watch:
        return self._unattached()

    def __reduce__(self) -> Any:
        return (_no_watch, ())

    @classmethod
    def _unattached(cls) -> Watch:
        made = cls.__new__(cls)
        made._tap, made._handle, made._end = None, None, None
        made.forget()
        return made


def _no_watch() -> Watch:
    return Watch._unattached()


def _described(value: Any) -> str:
    return f"a tensor of shape {tuple(value.shape)}" if isinstance(value, torch.Tensor) else f"a {type(value).__name__}"
