"""The estimator's checkpoint: all sums and the place reached, written atomically at batch boundaries."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..documents import read_document, write_document
from ..errors import DiffusionVarWarning, InputError

if TYPE_CHECKING:
    from .estimate import _Run

FORMAT = "diffusion_var.estimate_checkpoint"
FORMAT_VERSION = 1


class Checkpoint:
    """A file that one run writes and the same run, started again, continues from.

    Args:
        path: the file; need not exist.
        identity: what must agree for the sums to be continued (network, data, schedule, seed, indices, structures).
    """

    def __init__(self, path: str | Path, identity: dict[str, Any]) -> None:
        self.path, self.identity = Path(path), identity

    def restore(self, run: _Run) -> None:
        """Put the saved state into `run`, if there is any; InputError if it belongs to another run."""
        if not self.path.exists():
            return
        arrays, metadata = read_document(self.path, FORMAT, FORMAT_VERSION, "estimator checkpoint")
        require_same_run(self.path, self.identity, metadata["identity"])
        for name, sums in run.sums.items():
            sums.restore({key: arrays[f"{name}.{key}"] for key in sums.arrays()})
        run.targets, run.start_counts = arrays["targets"].copy(), arrays["start_counts"].copy()
        run.round_number, run.done_in_round = metadata["round_number"], metadata["done_in_round"]

    def save(self, run: _Run) -> None:
        """Write the state of `run`."""
        arrays = {
            f"{name}.{key}": np.asarray(value)
            for name, sums in run.sums.items()
            for key, value in sums.arrays().items()
        }
        arrays |= {"targets": run.targets, "start_counts": run.start_counts}
        place = {"round_number": run.round_number, "done_in_round": run.done_in_round}
        write_document(self.path, FORMAT, FORMAT_VERSION, arrays, {"identity": self.identity, **place})


def require_same_run(path: Path, mine: dict[str, Any], found: dict[str, Any]) -> None:
    """Refuse the checkpoint of another run; warn where the network cannot be told from others."""
    different = [key for key, value in mine.items() if found.get(key) != value]
    if different:
        raise InputError(
            f"the checkpoint {path} belongs to another run (different {', '.join(different)}); "
            "delete it or choose another path."
        )
    if mine.get("network") is None:
        warnings.warn(
            f"the network has no weights to tell it by, so the checkpoint {path} is continued on trust; "
            "delete it if it was made with another network.",
            DiffusionVarWarning,
            stacklevel=5,
        )
