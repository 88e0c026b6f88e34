"""Training: covariance heads on a frozen trunk, UNets, feature classifiers. Names are imported when first used."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .heads import HeadResult as HeadResult
    from .heads import HeadTraining as HeadTraining
    from .heads import train_head as train_head
    from .unet import UNetTraining as UNetTraining
    from .unet import train_unet as train_unet

_HOMES = {
    "HeadResult": "heads",
    "HeadTraining": "heads",
    "UNetTraining": "unet",
    "train_head": "heads",
    "train_unet": "unet",
}
__all__ = list(_HOMES)


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(f".{_HOMES[name]}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
