"""A network in its own calling convention, called in this package's.

A bare function around a module would do as a network, but hide the module: then nothing puts it into evaluation mode,
moves it to a device, or tells its weights from others'. `Adapted` is the function and the module together.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from .. import checks


class Adapted(torch.nn.Module):
    """A module, and how it is called.

    Args:
        model: the network as its own code has it.
        call: (model, x_t (B, C, *spatial), timestep (B,)) -> prediction (B, C or 2C, *spatial); of a conditional
            network with the condition as fourth argument.

    Example, a flow from noise at t = 0 to data at t = 1:

        dv.Adapted(model, lambda model, x, t: -model(x, 1 - t))

    Raises InputError for what is no module or no function.
    """

    def __init__(self, model: torch.nn.Module, call: Callable[..., Any]) -> None:
        super().__init__()
        self.model = checks.instance("model", model, torch.nn.Module, "a torch module")
        checks.refuse(not callable(call), f"call={checks.brief(call)} must be a function of model, x_t and timestep.")
        self.call = call

    def forward(self, x_t: torch.Tensor, timestep: torch.Tensor, *condition: Any) -> Any:
        """What `call` makes of it."""
        return self.call(self.model, x_t, timestep, *condition)
