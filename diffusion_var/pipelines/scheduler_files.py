"""Where schedulers come from and go to: configs of other classes, and folders with a table beside the config."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from diffusers.configuration_utils import ConfigMixin
from diffusers.schedulers.scheduling_utils import SchedulerMixin

from ..covariance.head import Head
from ..errors import InputError
from ..variance.table import VarianceTable
from .compatibility import find_beside, require_betas


class SchedulerFiles(SchedulerMixin, ConfigMixin):  # type: ignore[misc]
    """`from_config`, `from_pretrained` and `save_config` of a scheduler with a `table` or a `head`."""

    table: Any
    head: Any

    @classmethod
    def from_config(cls, config: Any = None, return_unused_kwargs: bool = False, **options: Any) -> Any:
        """As diffusers' own, but a config of noise levels that are not given by betas is refused."""
        if isinstance(config, Mapping):
            require_betas({**config, **options})
            if config.get("variance_type", "") is None:  # how solvers without a variance save theirs
                options.setdefault("variance_type", "fixed_small")
        return super().from_config(config, return_unused_kwargs, **options)

    def save_config(self, save_directory: str | os.PathLike[str], push_to_hub: bool = False, **options: Any) -> None:
        """Write the config, and beside it the table or head where there is one; `save_pretrained` calls this."""
        config: Any = self.config
        if self.table is not None:
            Path(save_directory).mkdir(parents=True, exist_ok=True)
            self.table.save(Path(save_directory) / config.table_file)
        elif self.head is not None:
            Path(save_directory).mkdir(parents=True, exist_ok=True)
            self.head.save(Path(save_directory) / config.head_file)
        elif config.variance_type == "head":
            raise InputError(
                f"the scheduler's head ({config.head_file}) is not attached, so that it cannot be saved; call "
                "scheduler.attach_head(head) first."
            )
        elif config.table_file is not None and config.variance_type == "analytic":
            raise InputError(
                f"the scheduler's table ({config.table_file}) is not attached, so that it cannot be saved; call "
                "scheduler.attach(table) first."
            )
        super().save_config(save_directory, push_to_hub, **options)

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | os.PathLike[str] | None = None,
        subfolder: str | None = None,
        return_unused_kwargs: bool = False,
        **options: Any,
    ) -> Any:
        """Load from a folder or the hub; a table or head that the config names is found beside it."""
        loaded = super().from_pretrained(pretrained_model_name_or_path, subfolder, return_unused_kwargs, **options)
        scheduler: Any = loaded[0] if isinstance(loaded, tuple) else loaded
        name, where = scheduler.config.table_file, str(pretrained_model_name_or_path)
        if name is not None and scheduler.config.variance_type == "analytic":
            scheduler.attach(VarianceTable.load(find_beside("table", where, subfolder, name, options)))
        if scheduler.config.variance_type == "head":
            file = find_beside("head", where, subfolder, scheduler.config.head_file, options)
            scheduler.attach_head(Head.load(file))
        return loaded
