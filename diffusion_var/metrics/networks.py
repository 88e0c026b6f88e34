"""Feature networks: 8-bit images in, feature vectors out. The distance between images is measured on these.

`FeatureNetwork` is all the harness asks of one. Four kinds come with it, a fifth is the user's own:

| `features=` | network | for |
|---|---|---|
| "inception" | Inception-v3 of the published FIDs, 2048 features (`inception.py`) | numbers to compare with papers |
| "digits" | small classifier of 8×8 grey digits, bundled, 64 features (`classifier.py`) | offline, quick |
| "pixels" | none: the image itself (`pixels.py`) | known moments, small images |
| "FILE.safetensors" | the same kind, made by `scripts/train_features.py` from labelled images | MNIST and others |
| an object | anything with the protocol, an `nn.Module`, or `CallableFeatures(function, ...)` | everything else |

A score means something only together with its network, so each has a fingerprint: the SHA-256 of its weights.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from torch import Tensor, nn

from ..errors import InputError
from ..files import expanded
from ..unwrapping import unwrapped
from .classifier import DigitsFeatures, read_digits, read_features
from .pixels import PixelFeatures
from .weights import file_hash, fingerprint

__all__ = ["CallableFeatures", "DigitsFeatures", "FeatureNetwork", "fingerprint", "load_features"]


@runtime_checkable
class FeatureNetwork(Protocol):
    """Anything that maps uint8 images (B, C, H, W) to float32 features (B, dimension).

    Two more properties are read where there are any: `resize`, a sentence that says how images are resized ("none"),
    and `channels`, 1 or 3 where only such images are taken (None: any).
    """

    @property
    def name(self) -> str: ...

    @property
    def dimension(self) -> int: ...

    @property
    def fingerprint(self) -> str: ...

    def __call__(self, images: Tensor, /) -> Tensor: ...


class CallableFeatures(nn.Module):
    """Any function or module as a feature network.

    Args:
        function: images (B, C, H, W) -> features (B, D); uint8 images, unless `data_range` is given.
        name: stands in the protocol of scores; by default the function's or the module's class's own.
        fingerprint: what tells this function from others; by default the SHA-256 of the module's weights. Needed where
            there are no weights.
        dimension: D; where it is not given it is known after the first call.
        data_range: give the function float32 images in this range, e.g. (-1, 1), instead of uint8.
        resize: how the function resizes its images, in words.
        channels: 1 or 3 where the function takes only such images.

    A module must be in evaluation mode. Raises InputError for a function without a fingerprint, and for features that
    are not (B, D).
    """

    def __init__(
        self,
        function: Callable[[Tensor], Tensor],
        *,
        name: str | None = None,
        fingerprint: str | None = None,
        dimension: int | None = None,
        data_range: tuple[float, float] | None = None,
        resize: str = "none",
        channels: int | None = None,
    ) -> None:
        super().__init__()
        own = getattr(function, "__name__", type(function).__name__)
        self.name, self.resize, self.channels, self.data_range = name or own, resize, channels, data_range
        self.function = function
        self._dimension, self._fingerprint = dimension, fingerprint
        self.training = False  # of this wrapper; the module's own mode is left as it is, and looked at in each call
        if fingerprint is None and not (isinstance(function, nn.Module) and function.state_dict()):
            raise InputError(
                f"the features {self.name} have no weights to tell them by; pass CallableFeatures(function, name=..., "
                "fingerprint=...), with a fingerprint that changes whenever the function does."
            )

    @property
    def dimension(self) -> int:
        """The number of features D; 0 as long as it is not known."""
        return self._dimension or 0

    @property
    def fingerprint(self) -> str:
        """As given, else the SHA-256 of the weights (and of `data_range`, if one is given)."""
        if self._fingerprint is not None:
            return self._fingerprint
        assert isinstance(self.function, nn.Module)
        weights = fingerprint(unwrapped(self.function).state_dict())
        return weights if self.data_range is None else file_hash(f"{weights} {self.data_range}".encode())

    def forward(self, images: Tensor) -> Tensor:
        """Features (B, D) float32 of uint8 images (B, C, H, W)."""
        if any(module.training for module in self.modules()):
            raise InputError(f"the feature network {self.name} is in training mode; call its eval() first.")
        x = images
        if self.data_range is not None:
            low, high = self.data_range
            x = images.float() / 255 * (high - low) + low
        try:
            features: Any = self.function(x)
        except RuntimeError as error:  # torch's, for types and shapes that do not fit
            raise InputError(
                f"the features {self.name} fail on {x.dtype} images of shape {tuple(x.shape)} "
                f"({str(error).splitlines()[0].rstrip('.')}); for a network of floats pass "
                "CallableFeatures(network, data_range=(-1, 1))."
            ) from error
        if not _fits(features, len(images), self._dimension):
            found = tuple(features.shape) if isinstance(features, Tensor) else type(features).__name__
            expected = "D" if self._dimension is None else self._dimension
            raise InputError(
                f"the features {self.name} of {len(images)} images are {found}; expected a tensor of shape "
                f"({len(images)}, {expected}): flatten or pool them."
            )
        self._dimension = features.shape[1]
        numbers: Tensor = features.float()
        return numbers


def _fits(features: Any, count: int, dimension: int | None) -> bool:
    return (
        isinstance(features, Tensor)
        and features.ndim == 2
        and len(features) == count
        and dimension in (None, features.shape[1])
    )


def load_features(
    features: str | os.PathLike[str] | FeatureNetwork | nn.Module | Callable[[Tensor], Tensor],
    *,
    inception_weights: str | os.PathLike[str] | None = None,
    accept_weights: str | None = None,
) -> FeatureNetwork:
    """The feature network called `features`, ready to use; an object with the protocol passes through unchanged.

    Args:
        features: "inception", "digits", "pixels", the path of a `.safetensors` file, or an object; see the module
            docstring.
        inception_weights: the file of Inception's weights; by default the one in PyTorch's cache, or a download.
        accept_weights: SHA-256 of an Inception weights file, other than the published one, that is to be trusted.

    Raises InputError for unknown names and for weights that are missing, damaged or not accepted.
    """
    if isinstance(features, str | os.PathLike):
        return _by_name(os.fspath(features), inception_weights, accept_weights)
    if isinstance(features, FeatureNetwork):
        return features
    if callable(features):
        return CallableFeatures(features)
    raise InputError(
        f"features is a {type(features).__name__}; expected a name, a module or function that maps uint8 images to "
        "features, or an object with name, dimension, fingerprint and such a call."
    )


def _by_name(name: str, inception_weights: str | os.PathLike[str] | None, accept_weights: str | None) -> FeatureNetwork:
    if name == "inception":
        from .inception import InceptionFeatures, find_weights

        path = find_weights() if inception_weights is None else expanded(inception_weights)
        return InceptionFeatures(path, accept_weights)
    if inception_weights is not None or accept_weights is not None:
        raise InputError(
            f'weights of Inception are given, but features is {name!r}; pass features="inception" or leave them out.'
        )
    if name == "digits":
        return read_digits()
    if name == "pixels":
        return PixelFeatures()
    if Path(name).suffix.lower() == ".safetensors":
        return read_features(name)
    raise InputError(
        f'features is {name!r}; expected "inception", "digits", "pixels", the path of a .safetensors file made by '
        "`diffusion-var train-features`, or a network of your own."
    )
