"""What an `AnalyticScheduler` is made of: a variance table or a trained head, and the pipeline it is for."""

from __future__ import annotations

import inspect
from collections.abc import Container
from typing import Any, Self, cast

import torch

from ..covariance.head import Head
from ..covariance.lists import STRUCTURES as LISTED
from ..covariance.lists import VarianceLists
from ..covariance.reverse import Analytic
from ..errors import InputError
from ..models.features import FeatureTap, Watch
from ..variance.estimators import Estimator
from ..variance.table import VarianceTable
from .compatibility import HEAD_FILE, TABLE_FILE, check_pipeline, check_table, config_to_fit
from .source import settings_digest


class SchedulerSources:
    """`from_table` and `from_head`, and how tables, heads and networks are attached to a scheduler."""

    table: VarianceTable | None
    head: Head | None
    _watch: Watch | None
    _covariance: Any
    _covariances: dict[Any, Any]
    _options: Any
    _known_config: Any
    from_config: Any

    # ---- tables -----------------------------------------------------------------------------------------------

    @classmethod
    def from_table(
        cls,
        table: VarianceTable,
        config: Any,
        *,
        estimator: Estimator = "residual",
        structure: str = "isotropic",
        eta: float = 1.0,
        **options: Any,
    ) -> Self:
        """A scheduler with a table's variances.

        Args:
            table: measured for the pipeline's network.
            config: the config of the pipeline's own scheduler (or that scheduler), for schedule, prediction type,
                clipping and spacing; or the pipeline itself, and then its network and latent scaling are checked too.
            estimator, structure: as in `Analytic`.
            eta: 1 is DDPM, 0 is DDIM.
            options: anything else of the class, e.g. `timestep_spacing` or `final_noise_cap`.

        Raises InputError where table and config disagree, and for what the table does not hold.
        """
        Analytic(table, estimator, structure)  # refuses what the table cannot give
        parameters = inspect.signature(cls.__init__).parameters
        _refuse_unknown(options, parameters)
        if hasattr(config, "scheduler"):
            check_pipeline(table, config)
            config = config.scheduler
        given = config_to_fit(table, config, options)
        options |= {"table_shape": None if table.shape is None else list(table.shape)}
        options |= {"variance_type": "analytic", "eta": eta, "estimator": estimator, "structure": structure}
        if table.data_range is not None:
            options.setdefault("data_range", list(table.data_range))
        if structure in LISTED:
            lists: dict[str, Any] = VarianceLists.from_table(table, estimator, structure).lists()
            known = {name: parameter.default for name, parameter in parameters.items()}
            digest = settings_digest({**known, **given, **options})
            scheduler = cls.from_config(given, **options, **lists, table_digest=digest)
        else:
            kept = table.subset([structure])
            scheduler = cls.from_config(given, **options, table_file=TABLE_FILE, table_digest=kept.digest)
            scheduler.attach(kept)
        _require_schedule(scheduler, table)
        return cast(Self, scheduler)

    def attach(self, table: VarianceTable) -> None:
        """Give the scheduler the table that its config names (pixel and dct structures)."""
        if self._options.table_file is None:
            raise InputError("the scheduler's config names no table; use AnalyticScheduler.from_table to give it one.")
        if self._options.table_digest not in (None, table.digest):
            raise InputError(
                f"this table (digest {table.digest[:12]}) is not the one that the scheduler was made with "
                f"({self._options.table_digest[:12]}); use AnalyticScheduler.from_table for another."
            )
        check_table(table, self._known_config)
        self.table = table
        self._covariance = Analytic(table, self._options.estimator, self._options.structure)
        self._covariances.clear()

    # ---- heads ------------------------------------------------------------------------------------------------

    @classmethod
    def from_head(cls, head: Head, pipe: Any, *, eta: float = 1.0, **options: Any) -> Self:
        """A scheduler with a head's state-dependent variances; it watches the pipeline's network for its features.

            pipe.scheduler = AnalyticScheduler.from_head(head, pipe)

        Args:
            head: trained on the pipeline's network.
            pipe: the pipeline, whose own scheduler gives schedule, prediction type, clipping and spacing.
            eta, options: as in `from_table`.

        A pipeline that is loaded from disk has to be watched again: `pipe.scheduler.watch(pipe)`.
        Raises InputError where head and pipeline disagree.
        """
        if not isinstance(head, Head):
            raise InputError(
                f"head must be a dv.Head, but got {type(head).__name__}; load one with dv.Head.load(path)."
            )
        parameters: Any = inspect.signature(cls.__init__).parameters
        _refuse_unknown(options, parameters)
        if not hasattr(pipe, "scheduler"):
            raise InputError(
                f"a head needs the pipeline, whose network it reads, but got {type(pipe).__name__}; use "
                "AnalyticScheduler.from_head(head, pipe)."
            )
        check_pipeline(head.table, pipe)
        given = config_to_fit(head.table, pipe.scheduler, options)
        options |= {"variance_type": "head", "eta": eta, "head_file": HEAD_FILE, "head_digest": head.digest}
        options |= {"table_shape": list(head.prior.shape)}
        if head.table.data_range is not None:
            options.setdefault("data_range", list(head.table.data_range))
        scheduler = cls.from_config(given, **options)
        scheduler.attach_head(head)
        _require_schedule(scheduler, head.table)
        scheduler.watch(pipe)
        return cast(Self, scheduler)

    def attach_head(self, head: Head) -> None:
        """Give the scheduler the head that its config names."""
        if self._options.variance_type != "head":
            raise InputError("the scheduler's config names no head; use AnalyticScheduler.from_head to give it one.")
        if self._options.head_digest not in (None, head.digest):
            raise InputError(
                f"this head (digest {head.digest[:12]}) is not the one that the scheduler was made with "
                f"({self._options.head_digest[:12]}); use AnalyticScheduler.from_head for another."
            )
        check_table(head.table, self._known_config)
        self.head = self._covariance = head

    def watch(self, source: Any) -> None:
        """Read the features of a pipeline's (or a bare) network at every evaluation, for `step` to use."""
        if self.head is None:
            raise InputError(
                "the scheduler has no head, so that it needs no features; use AnalyticScheduler.from_head."
            )
        network = getattr(source, "unet", None) or getattr(source, "transformer", None) or source
        tap = FeatureTap(network, self.head.spec.module)
        if self._watch is not None:
            self._watch.remove()
        self._watch = tap.watch()

    def _features(self, given: torch.Tensor | None, batch: int) -> torch.Tensor:
        """The features of a step's images: those given, or those of the network's last evaluation, which serve once."""
        watched = None if self._watch is None else self._watch.take(batch)
        if given is not None:
            return given
        if watched is None:
            raise InputError(
                "a head needs the features of the network's evaluation at this step, but none was seen since the last "
                "step; call scheduler.watch(pipe) (again after loading a pipeline), or pass features= to step."
            )
        features, guided = watched
        if guided and self.head is not None and not self.head.target.any_mean:
            raise InputError(
                f"the network was evaluated with guidance, but the head's target {self.head.spec.target!r} takes its "
                "mean for E[x_0|x_t]; use a head of target 'npr' or 'factor', trained with that guidance."
            )
        return features


def _refuse_unknown(options: dict[str, Any], known: Container[str]) -> None:
    if unknown := sorted(name for name in options if name not in known):
        raise InputError(f"{unknown[0]} is no option of AnalyticScheduler; check its spelling.")


def _require_schedule(scheduler: Any, table: VarianceTable) -> None:
    if not scheduler.schedule.matches(table.schedule):
        raise InputError(
            "AnalyticScheduler knows schedules that are given by betas, with timesteps 0 to N - 1, but this table "
            "has another (flow, EDM, VE, continuous timesteps); use Sampler(denoiser, Analytic(table), steps)."
        )
