"""What a table, a head or a checkpoint belongs to: a model's identity, and the one place where two are compared.

A `ModelIdentity` holds the facts that decide a model's posteriors, as far as they are known: a table of published
arrays knows its schedule alone, a scheduler's config knows nothing of the network. Two identities are compared by the
facts that both know, with one sentence for each that differs.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch

from ..process.schedule import NoiseSchedule

#: The facts that a table must share with a model, as messages name them; the others are of checkpoints alone.
_COMPARED: dict[str, tuple[str, Callable[[Any], Any]]] = {
    "shape": ("shape", tuple),
    "prediction": ("prediction type", str),
    "clip": ("clipping", lambda clip: None if clip is None else tuple(clip)),
    "guidance_scale": ("guidance scale", float),
    "latent_scaling": ("latent scaling", tuple),
    "network": ("network fingerprint", lambda digest: digest[:12]),
}


@dataclass(frozen=True)
class ModelIdentity:
    """What is known of a model.

    Attributes:
        schedule: its noise schedule.
        facts: plain data by name: shape, prediction, clip, data_range, guidance_scale, unconditional, latent_scaling,
            autocast, sigma_data, network (SHA-256 of the weights). A name that is absent is not known.
    """

    schedule: NoiseSchedule
    facts: dict[str, Any] = field(default_factory=dict)

    def mismatch(self, other: ModelIdentity, mine: str, theirs: str) -> str:
        """In what the two differ, in words, e.g. of "the table" and "the denoiser"; empty where they fit."""
        pairs: list[tuple[str, Any, Any]] = []
        if not self.schedule.matches(other.schedule):
            pairs.append(("schedule", self.schedule, other.schedule))
        for name, (said, shown) in _COMPARED.items():
            if name in self.facts and name in other.facts:
                pairs.append((said, shown(self.facts[name]), shown(other.facts[name])))
        return "; ".join(f"{said}: {mine} has {a}, {theirs} {b}" for said, a, b in pairs if a != b)

    def plain(self) -> dict[str, Any]:
        """All of it as plain data, for what a run's checkpoint must agree on; a network without weights is None."""
        return {"network": None, **self.facts, "schedule": self.schedule.digest}


def weights_fingerprint(module: torch.nn.Module) -> str:
    """SHA-256 over a module's state dict, sorted by name; the same on every device."""
    content = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        array = tensor.detach().cpu()
        array = array.float() if array.is_floating_point() else array
        content.update(f"{name}{tuple(array.shape)}".encode())
        content.update(array.contiguous().numpy().tobytes())
    return content.hexdigest()
