"""Training: covariance heads on a frozen trunk, UNets, feature classifiers. Names are imported when first used."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .head import HeadResult as HeadResult
    from .head import HeadTraining as HeadTraining
    from .head import train_head as train_head
    from .unet import UNetTraining as UNetTraining
    from .unet import train_unet as train_unet

_HOMES = {
    "HeadResult": "head",
    "HeadTraining": "head",
    "UNetTraining": "unet",
    "train_head": "head",
    "train_unet": "unet",
}
__all__ = list(_HOMES)


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(f".{_HOMES[name]}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
