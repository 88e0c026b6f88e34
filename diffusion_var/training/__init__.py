"""Training: covariance heads on a frozen trunk, UNets, feature classifiers. Names are imported when first used."""

from typing import TYPE_CHECKING

from ..lazy import names_of

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
    "HeadResult": ".head",
    "HeadRun": ".head",
    "HeadTraining": ".head",
    "Source": ".head_draws",
    "UNetTraining": ".unet",
    "accuracy": ".classifier",
    "new_head": ".head",
    "train_classifier": ".classifier",
    "train_head": ".head",
    "train_unet": ".unet",
}
__all__ = list(_HOMES)
__getattr__, __dir__ = names_of(__name__, _HOMES)
