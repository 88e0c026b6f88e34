"""What the schedulers share: variances of a table or head, kept in the config or in a file beside it, and found again.

`VarianceHolder` comes before diffusers' own classes among a scheduler's bases; the scheduler says where its variances
come from (`source_kind`) and makes its `_source` when it is made.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Self, cast

import torch
from diffusers.configuration_utils import ConfigMixin

from .. import checks
from ..covariance.head import Head
from ..covariance.reverse import StepCovariances
from ..errors import InputError, printable
from ..files import expanded
from ..variance.estimators import Estimator
from ..variance.table import VarianceTable
from .compatibility import find_beside
from .source import VarianceSource


class VarianceHolder(ConfigMixin):
    """A scheduler with a `VarianceSource`.

    Attribute `generator` (None: the global one): draws the noise where a pipeline hands none to `step`.
    """

    #: Which variances it has, and how they are kept.
    source_kind: ClassVar[type[VarianceSource]]
    generator: torch.Generator | None
    _source: VarianceSource
    _covariances: StepCovariances | None

    # ---- tables and heads -------------------------------------------------------------------------------------

    @classmethod
    def _with_table(cls, table: VarianceTable, estimator: Estimator, structure: str, given: Mapping[str, Any]) -> Self:
        """A scheduler of this config with a table's variances."""
        plain: Any = cls.from_config({**given, "variance_type": "fixed_small", "variance": None})
        entry, beside = cls.source_kind.entry_of_table(table, estimator, structure, plain.config)
        made: Any = cls.from_config({**given, "variance_type": "analytic", "variance": entry})
        if beside is not None:
            made.attach(beside)
        return cast(Self, made)

    @classmethod
    def _with_head(cls, head: Head, given: Mapping[str, Any]) -> Self:
        """A scheduler of this config with a head's variances."""
        entry = cls.source_kind.entry_of_head(head)
        made: Any = cls.from_config({**given, "variance_type": "head", "variance": entry})
        made.attach_head(head)
        return cast(Self, made)

    @classmethod
    def _check_head(cls, head: Any, pipe: Any) -> None:
        """Refuse what is no head, and what is no pipeline, whose network a head reads."""
        checks.instance("head", head, Head, "a dv.Head (dv.Head.load(path) reads one)")
        checks.refuse(
            not hasattr(pipe, "scheduler"),
            f"a head needs the pipeline, whose network it reads, but got {type(pipe).__name__}; use "
            f"{cls.source_kind.scheduler}.from_head(head, pipe).",
        )

    @property
    def table(self) -> VarianceTable | None:
        """The table that lies beside the config (pixel and dct structures), once it is attached."""
        return self._source.held if isinstance(self._source.held, VarianceTable) else None

    @property
    def head(self) -> Head | None:
        """The head that lies beside the config, once it is attached."""
        return self._source.held if isinstance(self._source.held, Head) else None

    def attach(self, table: VarianceTable) -> None:
        """Give the scheduler the table that its config names (pixel and dct structures)."""
        self._source.attach(table)
        self._forget()

    def attach_head(self, head: Head) -> None:
        """Give the scheduler the head that its config names."""
        self._source.attach(head)
        self._forget()

    def watch(self, source: Any) -> None:
        """Read the features of a pipeline's (or a bare) network at every evaluation, for `step` to use."""
        self._source.watch(source)

    def _forget(self) -> None:
        """Covariances kept so far were of other steps, or of another table."""
        self._covariances = None

    # ---- files ------------------------------------------------------------------------------------------------

    def save_config(self, save_directory: str | os.PathLike[str], push_to_hub: bool = False, **options: Any) -> None:
        """Write the config, and beside it the table or head where there is one; `save_pretrained` calls this."""
        folder = Path(save_directory)
        if not folder.parent.is_dir():  # diffusers' pipelines know no home folder: they may have made one called ~
            folder = expanded(folder)
        self._source.save(folder)
        super().save_config(folder, push_to_hub, **options)

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | os.PathLike[str] | None = None,
        subfolder: str | None = None,
        return_unused_kwargs: bool = False,
        **options: Any,
    ) -> Any:
        """Load from a folder or the hub; a table or head that the config names is found beside it."""
        if (where := str(pretrained_model_name_or_path)).startswith("~") and not Path(where).exists():
            pretrained_model_name_or_path = where = str(expanded(where))
        own: Any = super()  # diffusers' own, of the class that comes next
        try:
            loaded = own.from_pretrained(pretrained_model_name_or_path, subfolder, return_unused_kwargs, **options)
            scheduler: Any = loaded[0] if isinstance(loaded, tuple) else loaded
            scheduler._source.load(partial(find_beside, where=where, subfolder=subfolder, options=options))
        except InputError as error:
            raise InputError(f"the scheduler in {where} cannot be used: {error}") from error
        except (OSError, ValueError, TypeError, KeyError, AttributeError, OverflowError, RecursionError) as error:
            raise InputError(
                f"the scheduler in {where} cannot be read ({printable(str(error), 200)}); check the path, or save it "
                "again."
            ) from error
        return loaded

    @classmethod
    def load_config(cls, *where: Any, **options: Any) -> Any:
        """As diffusers' own, but refuse JSON that is text, which diffusers takes for the name of a model on the hub."""
        loaded = super().load_config(*where, **options)
        config = loaded[0] if isinstance(loaded, tuple) else loaded
        checks.refuse(
            not isinstance(config, Mapping),
            f"its config is a {type(config).__name__}, but names and values are needed; save the scheduler again.",
        )
        return loaded


def replacing(config: Mapping[str, Any], options: dict[str, Any]) -> dict[str, Any]:
    """A config without what the options replace: η by τ and the reverse, and variances that another type has not."""
    config = dict(config)
    if {"eta", "tau"} & {*options}:  # one in the other's place
        config |= {"eta": None, "tau": None}
    if options.get("variance_type") not in (None, "analytic", "head"):  # not those that the config keeps
        config |= {"variance": None}
    return config
