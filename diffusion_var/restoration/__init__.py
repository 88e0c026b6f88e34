"""Reconstruction from measurements: E[x_0|x_t, y]. What is most used is in `diffusion_var` itself.

Names are imported when first used.
"""

from typing import TYPE_CHECKING

from ..lazy import names_of

if TYPE_CHECKING:
    from .operators import Operator as Operator
    from .operators import open_operator as open_operator
    from .solver import ConjugateGradients as ConjugateGradients

_HOMES = {
    "ConjugateGradients": ".solver",
    "Operator": ".operators",
    "open_operator": ".operators",
}
__all__ = list(_HOMES)
__getattr__, __dir__ = names_of(__name__, _HOMES)
