"""Feature networks: 8-bit images in, feature vectors out. The distance between images is measured on these.

`FeatureNetwork` is all the harness asks of one. `DigitsFeatures` is a small classifier of 8×8 grey digits whose last
hidden layer gives 64 features; its weights ship with the package, so digits are scored offline and within seconds.
A score means something only together with its network, so each has a fingerprint: the SHA-256 of its weights.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from importlib import resources
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from ..errors import InputError

ASSET = "digits_features.safetensors"


@runtime_checkable
class FeatureNetwork(Protocol):
    """Anything that maps uint8 images (B, C, H, W) to float32 features (B, dimension)."""

    @property
    def name(self) -> str: ...

    @property
    def dimension(self) -> int: ...

    @property
    def fingerprint(self) -> str: ...

    def __call__(self, images: Tensor, /) -> Tensor: ...


class DigitsFeatures(nn.Module):
    """Classifier of `size`×`size` grey images into `classes`; its 64 last hidden activations are the features.

    `forward` is the feature network: uint8 in, features out. `embed` and `logits` are the classifier's two halves for
    training: they take float images in [-1, 1], (B, 1, size, size), and are differentiable.
    The initial weights depend on `seed` alone.
    """

    name = "digits"
    dimension = 64

    def __init__(self, size: int = 8, classes: int = 10, seed: int = 0) -> None:
        super().__init__()
        self.size, self.classes = size, classes
        with torch.random.fork_rng(devices=[]):  # layers initialise from the global generator: lend it, give it back
            torch.default_generator.manual_seed(seed)
            self.trunk = nn.Sequential(
                *(nn.Conv2d(1, 32, 3, padding=1), nn.GroupNorm(8, 32), nn.SiLU()),
                *(nn.Conv2d(32, 64, 3, padding=1, stride=2), nn.GroupNorm(8, 64), nn.SiLU()),
                *(nn.Conv2d(64, 64, 3, padding=1), nn.GroupNorm(8, 64), nn.SiLU()),
                *(nn.Flatten(), nn.Dropout(0.3), nn.Linear(64 * ((size + 1) // 2) ** 2, self.dimension), nn.SiLU()),
            )
            self.head = nn.Linear(self.dimension, classes)

    def embed(self, x: Tensor) -> Tensor:
        """Features (B, 64) of float images (B, 1, size, size) in [-1, 1]."""
        features: Tensor = self.trunk(x)
        return features

    def logits(self, x: Tensor) -> Tensor:
        """Unnormalised log-probabilities (B, classes) of float images (B, 1, size, size) in [-1, 1]."""
        logits: Tensor = self.head(self.embed(x))
        return logits

    def forward(self, images: Tensor) -> Tensor:
        """Features (B, 64) float32 of uint8 images (B, 1, size, size). Raises InputError for anything else."""
        expected = (1, self.size, self.size)
        if images.dtype != torch.uint8 or tuple(images.shape[1:]) != expected:
            raise InputError(
                f"the {self.name} features got {images.dtype} images of shape {tuple(images.shape)}; expected uint8 of "
                f"shape (B, 1, {self.size}, {self.size}): convert the images or use other features."
            )
        return self.embed(images.float() / 127.5 - 1)

    @property
    def fingerprint(self) -> str:
        """The SHA-256 of the weights, see `fingerprint`."""
        return fingerprint(self.state_dict())


def fingerprint(state: Mapping[str, Tensor]) -> str:
    """SHA-256, in hex, over the names, types, shapes and bytes of a state dict, in the order of the names."""
    digest = hashlib.sha256()
    for name in sorted(state):
        tensor = state[name].detach().cpu().contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def load_features(features: str | FeatureNetwork) -> FeatureNetwork:
    """The feature network called `features` ("digits"), ready to use; a network passes through unchanged.

    Raises InputError for unknown names and for weights that are missing or damaged.
    """
    if not isinstance(features, str):
        if isinstance(features, FeatureNetwork):
            return features
        raise InputError(
            f"features is a {type(features).__name__}; expected a name or an object with name, dimension, fingerprint "
            "and a call that maps uint8 images to features."
        )
    if features == "digits":
        return _load_digits()
    if features == "inception":
        raise InputError('features="inception" is not available yet; pass features="digits" or a network of your own.')
    raise InputError(f'features is {features!r}; expected "digits" or a network of your own ("inception" is to come).')


def _load_digits() -> DigitsFeatures:
    from safetensors.torch import load

    asset = resources.files("diffusion_var") / "assets" / ASSET
    network = DigitsFeatures()
    try:
        # The file may be in half precision; load_state_dict casts to the network's float32.
        network.load_state_dict(load(asset.read_bytes()))
    except Exception as error:  # OSError, SafetensorError, RuntimeError for names or shapes that differ
        reason = getattr(error, "strerror", None) or str(error).splitlines()[0].rstrip(".:")
        raise InputError(f"the weights {asset} cannot be loaded ({reason}); install diffusion-var again.") from error
    return network.eval().requires_grad_(False)
