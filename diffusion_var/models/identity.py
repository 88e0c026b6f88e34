"""What a table, a head or a checkpoint belongs to: a model's identity, and the one place where two are compared.

A `ModelIdentity` holds the facts that decide a model's posteriors, as far as they are known: a table of published
arrays knows its schedule alone, a scheduler's config knows nothing of the network. Two identities are compared by the
facts that both know, with one sentence for each that differs.

A network is told by its weights (`fingerprint`) and by what it does (`probe`). Both are looked at whenever they are
asked for: weights are changed in ways that leave no trace (`.data`, moving averages, adapters that are fused).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from ..measured import agree
from ..process.schedule import NoiseSchedule
from .fingerprint import (
    LOW,
    fingerprints,
    precision_of,
    settings_digest,
    sha256_of_weights,
)
from .probe import probe

#: The facts that a table must share with a model, as messages name them; the others are of checkpoints alone.
_COMPARED: dict[str, tuple[str, Callable[[Any], Any]]] = {
    "shape": ("shape", tuple),
    "prediction": ("prediction type", str),
    "clip": ("clipping", lambda clip: None if clip is None else tuple(clip)),
    "guidance_scale": ("guidance scale", float),
    "evaluations_an_image": ("evaluations of the network an image", int),
    "beside": ("networks beside the network", lambda digest: digest.removeprefix("xxh3:")[:12]),
    "steered": ("guidance in the call", lambda said: dict(said)),
    "classifier_scale": ("classifier scale", float),
    "embedded_guidance": ("guidance that the network is told", float),
    "latent_scaling": ("latent scaling", lambda scaling: shown_scaling(scaling)),
}
#: What tells a network besides the digest of its weights, by the names that a table's file has.
NETWORK_FACTS = (
    "precision",
    "rounded",
    "probe",
    "classifier_scale",
    "embedded_guidance",
    "evaluations_an_image",
    "beside",
    "steered",
)


@dataclass(frozen=True)
class ModelIdentity:
    """What is known of a model.

    Attributes:
        schedule: its noise schedule.
        facts: plain data by name: shape, prediction, clip, data_range, guidance_scale, unconditional, latent_scaling,
            autocast, sigma_data, classifier_scale, embedded_guidance (a guidance scale that is an argument of the
            network), evaluations_an_image (of the network in a pipeline's loop; two with guidance), beside (the
            digest of what steers it there), steered (what else its call says of guidance), and of the network
            those of `network_facts` (its digests are of network, classifier and scale
            together where a classifier guides it). A name that is absent is not known.
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
        unlike = [f"{said}: {mine} has {a}, {theirs} {b}" for said, a, b in pairs if a != b]
        if not _same_weights(self.facts, other.facts):
            a, b = (facts["network"].removeprefix("xxh3:")[:12] for facts in (self.facts, other.facts))
            unlike.append(f"network fingerprint: {mine} has {a}, {theirs} {b}")
        elif not agree(self.facts.get("probe"), other.facts.get("probe")):
            unlike.append(
                f"what the network does: its output on fixed inputs is not the same for {mine} and {theirs}, though "
                "its weights are; something beside the weights has changed (an attribute, a buffer, its code)"
            )
        return "; ".join(unlike)

    @property
    def network_facts(self) -> dict[str, Any] | None:
        """Of the facts those that tell the network besides the digest of its weights; None without any."""
        return {name: self.facts[name] for name in NETWORK_FACTS if name in self.facts} or None

    def plain(self) -> dict[str, Any]:
        """All of it as plain data, for what a run's checkpoint must agree on; a network without weights is None."""
        names = {"settings": "settings of the network's modules", "probe": "output of the network"}
        told = {names.get(k, k): fact for k, fact in self.facts.items() if k not in ("precision", "rounded")}
        return {"network": None, **told, "schedule": self.schedule.digest}


def shown_scaling(scaling: Any) -> Any:
    """The scaling of latents, (scale, shift), as messages have it; of scales by channel a digest."""
    if not any(isinstance(part, list | tuple) for part in scaling):
        return tuple(scaling)
    numbers = [[float(x) for x in part] for part in scaling]
    digest = hashlib.sha256(json.dumps(numbers).encode()).hexdigest()[:12]
    return f"{len(numbers[0])} by channel (digest {digest}, the first {numbers[0][0]:.4g})"


def network_facts(
    network: Any,
    schedule: NoiseSchedule,
    shape: Sequence[int],
    classes: int | None = None,
    device: torch.device | None = None,
    beside: ModelIdentity | None = None,
    keep: bool = False,
) -> dict[str, Any]:
    """What tells a network: `network`, the digest of its weights; its `settings`, those of its modules; its
    `precision`; `rounded`, the digests of its weights in half precision, by which one that is loaded in it is known;
    and its `probe`.

    Args:
        classes, device: see `probe`.
        beside: what it is to be compared with, which need not know all of them, or knows them in an older form.
        keep: for what is kept, and compared with whatever comes: all of them. Otherwise the probe, which evaluates the
            network, and the roundings are left out where nobody asks for them.
    """
    if not isinstance(network, torch.nn.Module):  # a bare function has no weights, and is not called unasked
        return {}
    known = {} if beside is None else beside.facts
    precision = precision_of(network)
    low = [precision] if precision in LOW else [*LOW] if keep else [known.get("precision")]
    digest, rounded = fingerprints(network, [name for name in low if name in LOW])
    if digest != known.get("network") is not None and "precision" not in known:  # a file made before
        digest = sha256_of_weights(network)
    facts: dict[str, Any] = {"network": digest, "precision": precision, "rounded": rounded}
    if beside is None:
        facts["settings"] = settings_digest(network)
    if keep or "probe" in known:
        found = probe(network, schedule, shape, precision, classes, device)
        facts |= {} if found is None else {"probe": found}
    return facts


def _same_weights(mine: dict[str, Any], theirs: dict[str, Any]) -> bool:
    """Whether two networks have the same weights, or one has the other's in half precision."""
    if mine.get("network") is None or theirs.get("network") is None or mine["network"] == theirs["network"]:
        return True
    rounded = [facts.get("rounded", {}) for facts in (mine, theirs)]
    low = {facts.get("precision") for facts in (mine, theirs)} & {*LOW}
    return any(name in rounded[0] and rounded[0][name] == rounded[1].get(name) for name in low)
