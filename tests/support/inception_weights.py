"""Inception weights of the published layout with random numbers, so that nothing is downloaded and none are shipped.

The layout is the published one: the 566 names, shapes and types of torch-fidelity's file, of which pytorch-fid's is a
copy. Convolutions are He-scaled, variance 2/fan-in, and every batch norm has a mean, a variance, a scale and a shift of
its own, so that activations stay of order 1 through all layers and no parameter can be left out unseen.
"""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import torch
from torch import Tensor


def random_weights(seed: int = 0) -> dict[str, Tensor]:
    """The state dict: 566 tensors, float32, but for the int64 batch counts."""
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    stream = torch.Generator().manual_seed(seed)
    return {name: _random(name, like, stream) for name, like in _layout(FeatureExtractorInceptionV3).items()}


def write_random_weights(path: Path, seed: int = 0) -> Path:
    """Write them as `torch.save` or, by the suffix, as safetensors; returns the path."""
    from safetensors.torch import save_file

    state = random_weights(seed)
    if path.suffix == ".safetensors":
        save_file(state, path)
    else:
        torch.save(state, path)
    return path


def _layout(extractor: Any) -> dict[str, Tensor]:
    """Names and shapes, from the network itself; it insists on loading weights, so it is caught while it does."""
    caught: dict[str, Tensor] = {}

    class Layout(extractor):  # type: ignore[misc]
        def load_state_dict(self, state: Any, *args: Any, **kwargs: Any) -> None:
            caught.update(self.state_dict())

    buffer = io.BytesIO()
    torch.save({}, buffer)
    buffer.seek(0)
    with torch.device("meta"):
        Layout("layout", ["2048"], feature_extractor_weights_path=buffer)
    return caught


def _random(name: str, like: Tensor, stream: torch.Generator) -> Tensor:
    shape = tuple(like.shape)
    if name.endswith("num_batches_tracked"):
        return torch.zeros(shape, dtype=torch.int64)
    if len(shape) > 1:
        fan_in = int(torch.Size(shape[1:]).numel())
        return torch.randn(shape, generator=stream) * (2 / fan_in) ** 0.5
    if name.endswith("running_var"):
        return 0.5 + torch.rand(shape, generator=stream)
    if name.endswith("bn.weight"):
        return 0.75 + 0.4 * torch.rand(shape, generator=stream)
    return 0.1 * torch.randn(shape, generator=stream)
