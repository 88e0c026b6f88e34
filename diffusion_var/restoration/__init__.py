"""Reconstruction from measurements: E[x_0|x_t, y]. Names are imported when first used."""

from typing import TYPE_CHECKING

from ..lazy import names_of

if TYPE_CHECKING:
    from .conditioned import ConditionedDenoiser as ConditionedDenoiser
    from .jacobian import NetworkJacobian as NetworkJacobian
    from .measurement import Measurement as Measurement
    from .operators import Operator as Operator
    from .operators import open_operator as open_operator
    from .restore import Restoration as Restoration
    from .solver import ConjugateGradients as ConjugateGradients

_HOMES = {
    "ConditionedDenoiser": ".conditioned",
    "ConjugateGradients": ".solver",
    "Measurement": ".measurement",
    "NetworkJacobian": ".jacobian",
    "Operator": ".operators",
    "Restoration": ".restore",
    "open_operator": ".operators",
}
__all__ = list(_HOMES)
__getattr__, __dir__ = names_of(__name__, _HOMES)
