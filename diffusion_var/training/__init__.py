"""Training: covariance heads on a frozen trunk, UNets, feature classifiers. Names are imported when first used."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .classifier import accuracy as accuracy
    from .classifier import train_classifier as train_classifier
    from .head import HeadResult as HeadResult
    from .head import HeadRun as HeadRun
    from .head import HeadTraining as HeadTraining
    from .head import new_head as new_head
    from .head import train_head as train_head
    from .head_draws import Source as Source
    from .unet import UNetTraining as UNetTraining
    from .unet import train_unet as train_unet

_HOMES = {
    "HeadResult": "head",
    "HeadRun": "head",
    "HeadTraining": "head",
    "Source": "head_draws",
    "UNetTraining": "unet",
    "accuracy": "classifier",
    "new_head": "head",
    "train_classifier": "classifier",
    "train_head": "head",
    "train_unet": "unet",
}
__all__ = list(_HOMES)


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(f".{_HOMES[name]}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
