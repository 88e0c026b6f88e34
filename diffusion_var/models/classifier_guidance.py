"""Classifier guidance (Dhariwal and Nichol, arXiv:2105.05233): a classifier of noisy images, p(y|x_t), turns a denoiser
of all images into one of a class [E22],

    ε̂ − s σ_t ∇ log p(y|x_t),        x̂_0 + s (σ_t²/α_t) ∇ log p(y|x_t),

the gradient being over x_t. That is the score's form (their algorithm 2), for any steps and any η. Their DDPM sampler
(algorithm 1) moves the mean of a step by s Σ ∇ log p instead, which is the same for small steps.

The classifier is a module or function (x_t, timestep) -> logits (B, K), told the timestep that the network is told, and
shown x_t itself. Gradients are computed inside, also where the caller wants none.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch

from .. import checks
from ..errors import InputError
from ..process.level import NoiseLevel
from ..process.schedule import NoiseSchedule
from ..unwrapping import is_placed
from .conditions import as_nest, check_classes
from .fingerprint import weights_fingerprint
from .network_checks import move
from .network_use import NetworkUse, describe_place, failing
from .precision import InputPrecision


def classifier_guided(
    mean: torch.Tensor, eps: torch.Tensor, gradient: torch.Tensor, scale: float, alpha: Any, sigma: Any
) -> tuple[torch.Tensor, torch.Tensor]:
    """(x̂_0, ε̂) moved by s ∇ log p(y|x_t) [E22]; α > 0 and σ are floats or broadcast to x_t."""
    return mean + (scale * sigma * sigma / alpha) * gradient, eps - (scale * sigma) * gradient


@dataclass(frozen=True, eq=False)
class ClassifierGuidance:
    """A classifier, a scale s, and whether the network takes the labels too (`shared`)."""

    classifier: Callable[..., Any]
    scale: float
    shared: bool
    _use: NetworkUse = field(default_factory=NetworkUse, repr=False)
    _precision: InputPrecision = field(default_factory=InputPrecision, repr=False)

    def gradient(self, x_t: torch.Tensor, timestep: torch.Tensor, labels: torch.Tensor, n: Any) -> torch.Tensor:
        """∇ log p(labels|x_t), like x_t; with a graph where x_t has one that is wanted. `n`: where, for messages."""
        wanted = torch.is_grad_enabled() and x_t.requires_grad
        with torch.inference_mode(False), torch.enable_grad():
            # Clones, because what was made in inference mode cannot be differentiated.
            x = x_t if wanted else x_t.detach().clone().requires_grad_()
            logits = self._logits(x, timestep.clone(), n)
            check_classes(labels, logits.shape[1])
            log_p = logits.log_softmax(1).gather(1, labels.clone().long()[:, None]).sum()
            with failing(self.classifier, x, lambda: f"at {describe_place(n)}, in a batch of {len(x)}", _WHO):
                found: torch.Tensor = torch.autograd.grad(log_p, x, create_graph=wanted)[0]
        return found

    def _logits(self, x: torch.Tensor, timestep: torch.Tensor, n: Any) -> torch.Tensor:
        where = failing(self.classifier, x, lambda: f"at {describe_place(n)}, in a batch of {len(x)}", _WHO)
        with self._use.evaluating(self.classifier), where:
            out = self._precision.evaluate(self.classifier, lambda x, t, _: self.classifier(x, t), x, timestep, None)
        return _checked_logits(out, x)

    # ---- what it is known by ------------------------------------------------------------------------------------

    def facts(self, of_network: dict[str, Any]) -> dict[str, Any]:
        """What tells the guided model, of the facts that tell the network alone (`identity.network_facts`): digests of
        network, classifier and scale together, so that nothing made for one is taken for the other's."""
        guided = {"classifier_scale": self.scale, "network": self.digest(of_network.get("network"))}
        if "rounded" in of_network:
            guided["rounded"] = {name: self.digest(own) for name, own in of_network["rounded"].items()}
        return {**of_network, **guided}

    def digest(self, network: str | None) -> str:
        """The digest of a network and this guidance of it; of a classifier that is no module, the scale alone."""
        known = isinstance(self.classifier, torch.nn.Module)
        mine = weights_fingerprint(self.classifier) if known else None  # type: ignore[arg-type]
        return hashlib.sha256(json.dumps([network, mine, self.scale]).encode()).hexdigest()


_WHO = "the classifier"


# ---- what is refused ------------------------------------------------------------------------------------------------


def make_classifier_guidance(
    classifier: Any, scale: Any, conditional: bool | None, device: torch.device
) -> ClassifierGuidance:
    """Checked, and the classifier moved to the device; `conditional`: whether the network takes labels."""
    found = f"the class {classifier.__name__}" if isinstance(classifier, type) else f"a {type(classifier).__name__}"
    wrong = isinstance(classifier, type) or not callable(classifier)
    checks.refuse(
        wrong,
        f"classifier must be a torch module or a function of x_t and timestep that gives logits, but got {found}.",
    )
    scale = checks.number("scale", scale, "a finite number; 1 is Bayes' rule")
    shared = checks.given(
        conditional,
        "whether this network takes class labels too, or the classifier alone, is not known; make it with "
        "Denoiser(…, conditional=True) or conditional=False.",
    )
    if isinstance(classifier, torch.nn.Module) and not is_placed(classifier):
        move(classifier, device)
    return ClassifierGuidance(classifier, scale, shared)


def check_signal(schedule: NoiseSchedule, n: Any) -> None:
    """Refuse a place where x_t holds no signal: a classifier says nothing of x_0 there."""
    if isinstance(n, torch.Tensor):
        empty = schedule.zero_terminal_snr and bool((n == schedule.num_steps).any())
    else:
        levels = n if isinstance(n, list) else [n if isinstance(n, NoiseLevel) else schedule.level(n)]
        empty = any(level.alpha == 0.0 for level in levels)
    checks.refuse(
        empty,
        "n is a level without signal (alpha = 0), where a classifier's gradient says nothing about x_0; begin at a "
        "level that has some.",
    )


def checked_labels(condition: Any, batch: int, device: torch.device) -> torch.Tensor:
    """The class labels of a batch, (B,) on the device; their range is checked against the logits."""
    missing = "classifier guidance needs a class label for each image, but none was given (condition= or conditions=)."
    labels = as_nest(checks.given(condition, missing))
    if not isinstance(labels, torch.Tensor) or labels.shape != (batch,) or labels.is_floating_point():
        what = f"shape {tuple(labels.shape)} and dtype {labels.dtype}" if isinstance(labels, torch.Tensor) else "a nest"
        raise InputError(
            f"classifier guidance takes whole numbers for labels, one for each of {batch} images, but they are of "
            f"{what}."
        )
    found: torch.Tensor = labels.to(device)
    return found


def _checked_logits(out: Any, x: torch.Tensor) -> torch.Tensor:
    logits: Any = getattr(out, "logits", out)
    fits = isinstance(logits, torch.Tensor) and logits.is_floating_point() and logits.device == x.device
    if not fits or logits.ndim != 2 or len(logits) != len(x) or logits.shape[1] < 2:
        found = tuple(logits.shape) if isinstance(logits, torch.Tensor) else type(logits).__name__
        raise InputError(
            f"the classifier returned {found} for {len(x)} images; expected logits ({len(x)}, K), floats on {x.device} "
            "with K of at least 2, one for each class."
        )
    checks.refuse(
        not logits.requires_grad,
        "the classifier's logits do not depend on x_t, or were computed without gradients; take no_grad, detach and "
        "conversions to numpy out of it.",
    )
    checked: torch.Tensor = logits.to(x.dtype) if logits.dtype in (torch.float16, torch.bfloat16) else logits
    return checked
