"""Where the points of a training curve are reported to, besides the curve: TensorBoard, Weights & Biases, trackio, ….

The trackers are Accelerate's. What goes wrong in one while a run is under way (a network, a full disk) is said once,
and does not end the run: its curve is kept in its own files.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .. import checks
from ..errors import InputError, warn
from ..files import expanded

PROJECT = "diffusion_var"


class Trackers:
    """The trackers of one run.

    Args:
        report_to: a name ("tensorboard", "wandb", "trackio" or another of Accelerate's), a tracker (an
            `accelerate.tracking.GeneralTracker`), a list of these, or None for none.
        folder: for what they write themselves; None: ./logs.
        config: what the run is made of, which they show.

    Raises InputError for a name that is unknown, and for one whose package is not installed.
    """

    def __init__(
        self, report_to: Any, folder: str | Path | None = None, config: Mapping[str, Any] | None = None
    ) -> None:
        given = [] if report_to is None else [*report_to] if isinstance(report_to, list | tuple) else [report_to]
        self.wanted = [_checked(each) for each in given]
        self.folder = Path("logs") if folder is None else expanded(folder)
        held = {} if config is None else config
        self._config = {key: v if isinstance(v, bool | int | float | str) else str(v) for key, v in held.items()}
        self._running: list[Any] = []

    def begin(self, accelerator: Any) -> None:
        """Start them; of several processes the first one does."""
        if not self.wanted:
            return
        accelerator.project_configuration.set_directories(str(self.folder))
        accelerator.log_with = self.wanted
        try:
            accelerator.init_trackers(PROJECT, config=self._config)
        except Exception as error:  # each tracker raises whatever its package does
            raise InputError(f"report_to={self.names!r} cannot be started ({_reason(error)}); leave it out.") from error
        self._running = list(accelerator.trackers)

    def log(self, values: Mapping[str, float], step: int) -> None:
        """Report a point; what is not known of it (nan) is left out."""
        known = {name: value for name, value in values.items() if not math.isnan(value)}
        self._each("log", known, step=step)

    def end(self) -> None:
        """Let them finish what they write."""
        self._each("finish")
        self._running = []

    @property
    def names(self) -> str:
        """As messages have them."""
        return ",".join(getattr(each, "name", str(each)) for each in self.wanted)

    def _each(self, what: str, *given: Any, **options: Any) -> None:
        for tracker in [*self._running]:
            try:
                getattr(tracker, what)(*given, **options)
            except Exception as error:
                self._running.remove(tracker)
                warn(
                    f"nothing more is reported to {getattr(tracker, 'name', tracker)} ({_reason(error)}); the run goes "
                    "on, and its curve is kept."
                )


def _checked(report_to: Any) -> Any:
    """A tracker, or the name of one that can be started."""
    from accelerate.tracking import LOGGER_TYPE_TO_CLASS, get_available_trackers

    if hasattr(report_to, "store_init_configuration"):
        return report_to
    known = sorted(str(name) for name in LOGGER_TYPE_TO_CLASS)
    name = checks.one_of("report_to", report_to, tuple(known))
    installed = sorted(str(each) for each in get_available_trackers())
    if name not in installed:
        others = f"; installed are {', '.join(installed)}" if installed else ""
        raise InputError(f"report_to={name!r} needs its package, which is not installed: pip install {name}{others}.")
    return name


def _reason(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return type(error).__name__ + (f": {lines[0][:200].rstrip('. ')}" if lines else "")
