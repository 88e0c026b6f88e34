"""Where a flow scheduler's variances come from: like `source`, with curves over log SNR in place of lists by timestep.

They belong to no grid of timesteps: one table serves every shift and every list of σ [E14].
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, ClassVar

import torch

from .. import checks
from ..covariance.curve import VarianceCurve
from ..covariance.fixed import FixedSmall
from ..covariance.head import Head
from ..covariance.reverse import ReverseCovariance
from ..models.pretrained.layout import Layout
from ..process.level import NoiseLevel
from ..variance.estimators import Estimator
from ..variance.table import VarianceTable
from .compatibility import check_flow_table
from .source import VarianceSource

_CURVE = ("log_snr", "ratio", "data_variance", "without_signal")
_FLOAT32 = 2.0**-22  # twice what σ is rounded to, relative


class FlowSource(VarianceSource):
    """The variances of one flow scheduler; arguments and errors as of `VarianceSource`."""

    scheduler: ClassVar[str] = "AnalyticFlowScheduler"
    unmeasured: ClassVar[dict[str, Callable[[], ReverseCovariance]]] = {"fixed_small": FixedSmall}

    @classmethod
    def lists_of(cls, table: VarianceTable, estimator: Estimator, structure: str) -> dict[str, Any]:
        return VarianceCurve.from_table(table, estimator, structure).lists()

    @classmethod
    def settings_digest(cls, config: Mapping[str, Any], entry: Mapping[str, Any]) -> str:
        facts = {name: entry.get(name) for name in ("estimator", "structure", *_CURVE)}
        return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()

    def check_table(self, table: VarianceTable) -> None:
        check_flow_table(table, self._config)

    def _listed(self, entry: Mapping[str, Any]) -> ReverseCovariance:
        refused = "make the scheduler with AnalyticFlowScheduler.from_table."
        given: dict[str, Any] = {name: entry.get(name) for name in _CURVE}
        checks.refuse(None in (given[name] for name in _CURVE[:3]), f"the config's variance is no curve; {refused}")
        checks.refuse(
            entry.get("digest") not in (None, self.settings_digest(self._config, entry)),
            "the variances in the config are of another estimator or structure than it says, or hold other numbers "
            f"than were written; {refused}",
        )
        return VarianceCurve(**given)

    # ---- what a step asks -------------------------------------------------------------------------------------

    def level(self, t: float) -> NoiseLevel:
        """The flow's level at t = σ; the end of what was measured where it is that end but for float32's rounding."""
        level, ends = NoiseLevel.flow(t), self._ends
        if ends is None or level.is_clean or level.alpha == 0.0:
            return level
        near = _FLOAT32 / (level.alpha * level.sigma)
        for end in ends:
            if 0.0 < abs(level.log_snr - end) <= near:
                return replace(level, log_snr=end)
        return level

    @property
    def _ends(self) -> tuple[float, float] | None:
        """The least and the greatest log SNR that were measured; None where nothing was, or it is not attached."""
        if isinstance(self.covariance, VarianceCurve):
            return self.covariance.ends
        table = self.held.table if isinstance(self.held, Head) else self.held
        if table is None:
            return None
        last, first = (float(table.schedule.log_snr[table.indices[k]]) for k in (-1, 0))
        return last, first

    def features(self, given: torch.Tensor | None, batch: int) -> torch.Tensor | None:
        """As `VarianceSource.features`; where the network was evaluated several times for one step, as pipelines do
        that guide by calls of their own and gradient checkpointing do, it is not known which of them is meant."""
        count = 0 if self._watch is None else self._watch.evaluations
        checks.refuse(
            given is None and count > 1,
            f"the network was evaluated {count} times since the last step, as for guidance by calls of its own or "
            "again in the backward pass of gradient checkpointing, and which of them had the step's sample and "
            "condition is not known; pass features= of that one to step.",
        )
        return super().features(given, batch)

    def begin(self) -> None:
        """A new run: what was evaluated before it is none of its own."""
        if self._watch is not None:
            self._watch.forget()

    @property
    def structure(self) -> str | None:
        """Which variances are kept; None for those of one number a step, and for heads by place."""
        return None if self.entry is None else self.entry.get("structure")

    def check_layout(self, layout: Layout) -> None:
        """Refuse a layout that images of the measured shape cannot have."""
        shape = None if self.entry is None or self.structure == "isotropic" else self.entry.get("shape")
        if shape is not None:
            layout.of(shape)

    def check_sample(self, shape: tuple[int, ...]) -> None:
        """Refuse images that were not measured; where one number serves all, a sample may be packed in any way."""
        if self.structure != "isotropic":
            super().check_sample(shape)

    def layout(self, name: str, sample: tuple[int, ...]) -> Layout:
        """In which order the variances find a sample (without its batch): as it is for one number a step."""
        if self.entry is None or (self.kind == "analytic" and self.structure in (None, "isotropic")):
            return Layout("plain")
        layout = Layout(name)
        shape = checks.given(
            self.entry.get("shape"), "the config's variance does not say of which images it is; make it anew."
        )
        if self.structure == "channel" and self.kind == "analytic":
            return layout.by_channel(int(shape[0]), sample)
        return layout if layout.is_plain else layout.of(shape)
