"""Conditions: what a network is told besides the noisy image, and which of them goes with which draw.

A condition of a batch is a tensor (B, …) of class labels or embeddings, or any nest of such tensors (dict, tuple): the
network gets it as it is, as its third argument. Here is all that is done to nests, by PyTorch's own tree functions.

A conditional network's mean depends on its condition, so that the variance is an average over conditions too: over the
images' own (labels, captions), or over a list of them drawn at random beside the images. With a list, image and
condition are independent: the right average only where the condition says little of the image, and for guided
text-to-image models without captions the best that can be had.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch.utils import _pytree as pytree

from .. import checks
from ..errors import InputError

# ---- nests ----------------------------------------------------------------------------------------------------------


def as_nest(condition: Any) -> Any:
    """Conditions with tensors for leaves: labels as int64, embeddings in their own floating-point type.

    A leaf is a tensor, an array, or a list (or tuple) of numbers. Raises InputError, naming the leaf, for any other.
    """
    if isinstance(condition, torch.Tensor):
        return condition
    return pytree.tree_map_with_path(lambda path, leaf: _tensor(leaf, _named(path)), condition, is_leaf=_is_leaf)


def map_leaves(function: Callable[[torch.Tensor], torch.Tensor], nest: Any) -> Any:
    """The nest with a function of each tensor in its place."""
    return function(nest) if isinstance(nest, torch.Tensor) else pytree.tree_map(function, nest)


def leaves(nest: Any) -> list[tuple[str, torch.Tensor]]:
    """The tensors of a nest, with their places as messages name them ("" for a bare tensor)."""
    return [(_named(path), leaf) for path, leaf in pytree.tree_leaves_with_path(nest)]


def batch_of(nest: Any, expected: int | None = None, what: str = "condition") -> int:
    """How many conditions a nest holds; InputError, naming the leaf, where two differ, or one from `expected`."""
    found = leaves(nest)
    checks.refuse(not found, f"{what} holds no tensor; give class labels or embeddings, one for each image.")
    lengths = [len(leaf) if leaf.ndim else 0 for _, leaf in found]
    count = lengths[0] if expected is None else expected
    for (name, leaf), length in zip(found, lengths, strict=True):
        if length != count or leaf.ndim == 0:
            wanted = f"{count} conditions, as {found[0][0]} has" if expected is None else f"{count} images"
            raise InputError(f"{what}{name} has shape {tuple(leaf.shape)} for {wanted}; give one for each.")
    return count


def rows_of(nest: Any, part: slice) -> Any:
    """The conditions of some of a batch's images."""
    return map_leaves(lambda leaf: leaf[part], nest)


def concatenate(first: Any, second: Any) -> Any:
    """Two nests of one kind, one batch after the other."""
    if isinstance(first, torch.Tensor):
        return torch.cat([first, second])
    return pytree.tree_map(lambda a, b: torch.cat([a, b]), first, second)


def digest_of(nest: Any) -> str:
    """SHA-256 over the tensors of a nest (of their float values) and their places; a bare tensor's over its values."""
    content = hashlib.sha256()
    for name, leaf in leaves(nest):
        content.update(name.encode() + leaf.detach().cpu().double().contiguous().numpy().tobytes())
    return content.hexdigest()


def check_classes(labels: Any, classes: int) -> None:
    """Refuse class labels that are not whole numbers, one per image, below `classes`."""
    if not isinstance(labels, torch.Tensor):
        raise InputError(f"this network takes class labels, one per image, but got a {type(labels).__name__}.")
    if labels.ndim != 1 or labels.is_floating_point():
        raise InputError(
            f"class labels must be whole numbers, one per image, but they have shape {tuple(labels.shape)} and dtype "
            f"{labels.dtype}."
        )
    # On the GPU the look would wait for it.
    if labels.device.type == "cpu" and len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) < classes:
        raise InputError(
            f"class labels go from 0 to {classes - 1} for this network, but they are from {int(labels.min())} to "
            f"{int(labels.max())}."
        )


def _is_leaf(value: Any) -> bool:
    # A list is one of numbers (labels); a tuple may be a nest.
    return isinstance(value, list) or (isinstance(value, tuple) and all(map(checks.is_number, value)))


def _named(path: Any) -> str:
    return str(pytree.keystr(path))


def _tensor(value: Any, name: str) -> torch.Tensor:
    if isinstance(value, torch.Tensor):
        return value
    try:
        array = np.asarray(value)
    except ValueError:
        raise InputError(f"conditions{name} must be of one shape, but they are a ragged list; pad them.") from None
    if array.dtype.kind not in "iufb":
        raise InputError(
            f"conditions{name} must be numbers (class labels or embeddings), but they are {array.dtype}; embed prompts "
            "first (denoiser.prompts.encode)."
        )
    return torch.from_numpy(array.astype(np.int64) if array.dtype.kind in "iub" else array.astype(np.float32))


# ---- which goes with which image ------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Conditions:
    """A list of conditions, and which of them each image has.

    Args:
        values: (P, …) class labels (whole numbers) or embeddings, or a nest of such, as the network takes them.
        of_image: (M,) position in `values` of each image's condition; None: drawn at random for every draw.

    Raises InputError for an empty list, leaves of different lengths, and positions outside it.
    """

    values: Any
    of_image: Any = None

    def __post_init__(self) -> None:
        values = map_leaves(_kept, as_nest(self.values))
        _check_values(values)
        object.__setattr__(self, "values", values)
        if self.of_image is not None:
            object.__setattr__(self, "of_image", _checked_positions(self.of_image, len(self)))

    def __len__(self) -> int:
        """P, how many conditions there are."""
        return len(leaves(self.values)[0][1])

    def pick(self, images: npt.NDArray[np.int64], stream: np.random.Generator) -> npt.NDArray[np.int64]:
        """Positions of the conditions for these draws; `stream` is used only where they are drawn at random."""
        if self.of_image is None:
            return stream.integers(len(self), size=len(images))
        picked: npt.NDArray[np.int64] = self.of_image[images]
        return picked

    def part(self, images: npt.NDArray[np.int64]) -> Conditions:
        """Those of some of the images, in their order."""
        return Conditions(self.values, None if self.of_image is None else self.of_image[images])

    def take(self, positions: npt.NDArray[np.int64], device: torch.device | str = "cpu") -> Any:
        """(len, …) conditions."""
        index = torch.from_numpy(positions)
        return map_leaves(lambda leaf: leaf[index].to(device), self.values)

    def check(self, classes: int | None) -> None:
        """Refuse labels that are none of so many classes; None: nothing is known."""
        if classes is not None:
            check_classes(self.values, classes)

    def origin(self) -> dict[str, Any]:
        """What a table remembers of its conditions."""
        used = self._used()
        how = "drawn at random" if self.of_image is None else "each image's own"
        return {"count": len(set(used)), "how": how, "fingerprint": self.fingerprint}

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the conditions in the images' order (or of the list that they are drawn from): the same however
        they are given."""
        kind = b"random" if self.of_image is None else b"own"
        return hashlib.sha256(kind + b"".join(self._used())).hexdigest()

    def _used(self) -> list[bytes]:
        """A digest of each image's condition, or of each in the list."""
        contents = [hashlib.sha256() for _ in range(len(self))]
        for name, leaf in leaves(self.values):
            for content, value in zip(contents, leaf.float() if leaf.is_floating_point() else leaf, strict=True):
                content.update(name.encode() + np.ascontiguousarray(value.numpy()).tobytes())
        each = [content.digest() for content in contents]
        return each if self.of_image is None else [each[i] for i in self.of_image]


def as_conditions(conditions: Any, images: int) -> Conditions | None:
    """None, a `Conditions`, or one condition per image as a tensor, an array, a list or a nest of them; checked against
    the number of images."""
    if conditions is None:
        return None
    if isinstance(conditions, Conditions):
        given = conditions
    else:
        listed = Conditions(conditions)
        given = Conditions(listed.values, np.arange(len(listed)))
    if given.of_image is not None and len(given.of_image) != images:
        raise InputError(f"conditions has {len(given.of_image)} entries for {images} images; give one for each.")
    return given


def _kept(leaf: torch.Tensor) -> torch.Tensor:
    kept = leaf.detach().cpu()
    return kept if kept.is_floating_point() else kept.long()


def _check_values(values: Any) -> None:
    for name, leaf in leaves(values):
        shape = tuple(leaf.shape)
        wrong = leaf.ndim == 0 or len(leaf) == 0
        checks.refuse(wrong, f"conditions{name} have shape {shape}, but a list of at least one is expected.")
        wrong = leaf.is_floating_point() and not bool(torch.isfinite(leaf).all())
        checks.refuse(wrong, f"conditions{name} hold NaN or infinite values.")
    batch_of(values, what="conditions")


def _checked_positions(of_image: Any, count: int) -> npt.NDArray[np.int64]:
    positions = np.asarray(of_image)
    if positions.ndim != 1 or positions.dtype.kind not in "iu":
        raise InputError(
            f"of_image must be one whole number per image, but it has shape {positions.shape} and dtype "
            f"{positions.dtype}."
        )
    if len(positions) and not 0 <= positions.min() <= positions.max() < count:
        raise InputError(
            f"of_image holds positions from {positions.min()} to {positions.max()}, but there are {count} conditions."
        )
    return positions.astype(np.int64)
