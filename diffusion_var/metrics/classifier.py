"""Features from a small classifier of the very images that are scored: its last hidden layer.

    image ─> conv(w) ─> S × [conv stride 2, conv] ─> dropout ─> linear(D) ─> SiLU = features ─> linear = logits

Pixels are scaled to [-1, 1]. Each convolution is 3×3 and followed by group norm (8 groups) and SiLU. There are as many
stages S, at least one, as bring the longer side to 7 pixels or fewer; they have 2w, then 4w channels. Fréchet distances
on such features are comparable only to those of the same weights, as all are, but they need no download, take seconds,
and see what matters in images, such as digits, of which a network for photographs knows nothing.

*File.* The weights and what is said of them, in one checked safetensors file (see `documents.py`).
"""

from __future__ import annotations

import os
from importlib import resources
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor, nn

from .. import checks
from ..array_rules import ArrayRule, require_arrays
from ..documents import Form, Record, read_document, write_document
from ..errors import InputError
from ..files import expanded
from .weights import fingerprint

ASSET = "digits_features.safetensors"


class FeaturesRecord(Record):
    """A feature network's metadata; the numbers are checked where the network is made."""

    name: Annotated[str, Field(min_length=1, max_length=256)]
    channels: int
    size: Annotated[tuple[int, ...], Field(min_length=1, max_length=2)]
    classes: int
    width: int
    dimension: int
    held_out_accuracy: Annotated[float, Field(ge=0, le=1)] | None
    training_images: str | None
    run: Annotated[str, Field(min_length=1, max_length=256)] | None = None


FORM = Form("diffusion_var features", 1, "feature file", FeaturesRecord)
SMALLEST = 7  # pixels; stages are added until no side is longer
_LIMITS = {
    "channels": (1, 64),
    "height": (2, 4096),
    "width of the images": (2, 4096),
    "classes": (1, 100_000),
    "dimension": (1, 65_536),
}


class ClassifierFeatures(nn.Module):
    """Classifier of images (`channels`, *`size`) into `classes`; its `dimension` last hidden activations are features.

    `forward` is the feature network: uint8 in, features out. `embed` and `logits` are the classifier's two halves for
    training: they take float images in [-1, 1], (B, channels, *size), and are differentiable.
    The initial weights depend on `seed` alone. `accuracy` (on held-out images, 0 to 1), `images` (the name of the
    training images) and `run` (of the run that trained it) are notes that are saved with the weights.

    Raises InputError for numbers that make no network.
    """

    resize = "none"

    def __init__(
        self,
        channels: int,
        size: int | tuple[int, int],
        classes: int,
        width: int = 32,
        dimension: int = 64,
        *,
        name: str = "classifier",
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.channels, self.classes, self.width, self.dimension, self.name = channels, classes, width, dimension, name
        self.size = (size, size) if isinstance(size, int) else (int(size[0]), int(size[1]))
        self.accuracy: float | None = None
        self.images: str | None = None
        self.run: str | None = None
        _check(channels, *self.size, classes, dimension, width)
        with torch.random.fork_rng(devices=[]):  # layers initialise from the global generator: lend it, give it back
            torch.default_generator.manual_seed(seed)
            self.trunk = nn.Sequential(*_trunk(channels, self.size, width, dimension))
            self.head = nn.Linear(dimension, classes)

    def embed(self, x: Tensor) -> Tensor:
        """Features (B, dimension) of float images (B, channels, *size) in [-1, 1]."""
        features: Tensor = self.trunk(x)
        return features

    def logits(self, x: Tensor) -> Tensor:
        """Unnormalised log-probabilities (B, classes) of float images (B, channels, *size) in [-1, 1]."""
        logits: Tensor = self.head(self.embed(x))
        return logits

    def forward(self, images: Tensor) -> Tensor:
        """Features (B, dimension) float32 of uint8 images (B, channels, *size). Raises InputError for anything else."""
        expected = (self.channels, *self.size)
        if images.dtype != torch.uint8 or tuple(images.shape[1:]) != expected:
            raise InputError(
                f"the {self.name} features got {images.dtype} images of shape {tuple(images.shape)}; expected uint8 of "
                f"shape (B, {', '.join(map(str, expected))}): convert the images or use other features."
            )
        with torch.autocast(images.device.type, enabled=False):  # a score does not depend on where it is asked for
            return self.embed(images.float() / 127.5 - 1)

    @property
    def fingerprint(self) -> str:
        """The SHA-256 of the weights, see `weights.fingerprint`."""
        return fingerprint(self.state_dict())


class DigitsFeatures(ClassifierFeatures):
    """The network of the bundled features: 8×8 grey digits, 64 features."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__(1, 8, 10, name="digits", seed=seed)


def _trunk(channels: int, size: tuple[int, int], width: int, dimension: int) -> list[nn.Module]:
    def convolution(inside: int, outside: int, stride: int) -> list[nn.Module]:
        return [nn.Conv2d(inside, outside, 3, padding=1, stride=stride), nn.GroupNorm(8, outside), nn.SiLU()]

    layers, inside, (height, long) = convolution(channels, width, 1), width, size
    while inside == width or max(height, long) > SMALLEST:
        outside = min(2 * inside, 4 * width)
        layers += [*convolution(inside, outside, 2), *convolution(outside, outside, 1)]
        inside, height, long = outside, (height + 1) // 2, (long + 1) // 2
    return [*layers, nn.Flatten(), nn.Dropout(0.3), nn.Linear(inside * height * long, dimension), nn.SiLU()]


def _check(channels: int, height: int, long: int, classes: int, dimension: int, width: int) -> None:
    numbers = (channels, height, long, classes, dimension)
    for (what, (least, largest)), number in zip(_LIMITS.items(), numbers, strict=True):
        if not checks.is_whole(number) or not least <= number <= largest:
            raise InputError(f"the {what} of a feature classifier is {number!r}; expected {least} to {largest}.")
    if not checks.is_whole(width) or width % 8 or not 8 <= width <= 1024:
        raise InputError(f"the width of a feature classifier is {width!r}; expected a multiple of 8 from 8 to 1024.")


def save_features(network: ClassifierFeatures, path: str | os.PathLike[str]) -> None:
    """Write the network to a `.safetensors` file, atomically; the same network gives the same bytes."""
    path = expanded(path)
    if path.suffix.lower() != ".safetensors":
        raise InputError(f"{path} does not end in .safetensors; give the feature file that suffix.")
    record = {
        "name": network.name,
        "channels": network.channels,
        "size": list(network.size),
        "classes": network.classes,
        "width": network.width,
        "dimension": network.dimension,
        "held_out_accuracy": network.accuracy,
        "training_images": network.images,
    }
    if network.run is not None:
        record["run"] = network.run
    write_document(path, FORM, {key: value.cpu().numpy() for key, value in network.state_dict().items()}, record)


def read_features(path: str | os.PathLike[str]) -> ClassifierFeatures:
    """The network that `save_features` wrote, in evaluation mode.

    Raises InputError for a file that is missing, damaged, not of this kind or of a newer format.
    """
    arrays, record = read_document(path, FORM)
    try:
        rules = {key: ArrayRule("float32", None) for key in arrays}
        require_arrays(arrays, rules)  # all of them finite
        shape = (record.channels, record.size, record.classes, record.width, record.dimension)
        with torch.device("meta"):  # no memory and no random numbers: the weights of the file take these places
            network = ClassifierFeatures(*shape, name=record.name)
        # Clones, which begin where PyTorch puts tensors itself: by that some kernels round.
        network.load_state_dict({key: torch.from_numpy(value).clone() for key, value in arrays.items()}, assign=True)
        network.accuracy, network.images = record.held_out_accuracy, record.training_images
        network.run = record.run
    except Exception as error:  # KeyError, TypeError, InputError, RuntimeError for names or shapes that differ
        raise InputError(f"the feature file {path} describes no network ({_reason(error)}); make it again.") from error
    return network.eval().requires_grad_(False)


def read_digits() -> DigitsFeatures:
    """The bundled features of 8×8 grey digits. Raises InputError where the weights are missing or damaged."""
    from safetensors.torch import load

    asset = resources.files("diffusion_var") / "assets" / ASSET
    network = DigitsFeatures()
    try:
        # The file may be in half precision; load_state_dict casts to the network's float32.
        network.load_state_dict(load(asset.read_bytes()))
    except Exception as error:  # OSError, SafetensorError, RuntimeError for names or shapes that differ
        raise InputError(
            f"the weights {asset} cannot be loaded ({_reason(error)}); install diffusion-var again."
        ) from error
    return network.eval().requires_grad_(False)


def _reason(error: Exception) -> str:
    lines = str(error).splitlines() or [type(error).__name__]
    return getattr(error, "strerror", None) or lines[0].rstrip(".:")
