"""Variance tables on the hub: a repository with one table file and a model card that says what was measured.

Tables are typed `Any` here: `table` builds on this file, and not the other way round.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from ..cards import CARD, card_text, facts_table
from ..files import expanded, make_folder, write_atomic
from ..hub import fetch_file, push_folder
from .summary import scale_text

FILE = "variance_table.safetensors"


def model_card(table: Any, model: str | None = None, data: str | None = None, license: str | None = None) -> str:
    """The card (Markdown): model, schedule, data, counts and errors, and how the table is used.

    Args:
        model: hub id of the model that was measured, if it has one.
        data: name of the data set, if it has one.
        license: of the table, e.g. "mit"; None: not stated.
    """
    schedule = table.schedule
    facts = {
        "model": f"`{model}`" if model else "not named",
        "network (SHA-256 of its weights)": f"`{table.network}`" if table.network else "unknown",
        "shape, prediction, clipping": f"{table.shape}, {table.prediction}, {table.clip}",
        "schedule": f"N = {schedule.num_steps}, log-SNR {schedule.log_snr[1]:.4g} to {schedule.log_snr[-1]:.4g}",
        "guidance scale": f"{table.guidance_scale:g}" if table.guidance_scale != 1.0 else "none",
        "latents": "none" if table.latent_scaling is None else f"scaled by {scale_text(table.latent_scaling)}",
        "data": _data(table, data),
        "conditions": _conditions(table),
        "network evaluations": f"{table.evaluations:,} at {len(table.indices)} indices, seed {table.seed}",
        "structures": ", ".join(table.structures),
        "relative standard error (isotropic)": _errors(table),
        "digest of the table": f"`{table.digest}`",
    }
    body = f"""Measured optimal reverse variances of a diffusion model (Analytic-DPM, arXiv:2201.06503;
Extended-Analytic-DPM, arXiv:2206.07309), for use with `diffusion_var` or inside a diffusers pipeline:

```python
import diffusion_var as dv

table = dv.VarianceTable.from_hub("OWNER/NAME")
pipe.scheduler = dv.AnalyticScheduler.from_table(table, pipe.scheduler.config)
```

{facts_table(facts)}

## Summary

```
{table.summary()}
```
"""
    title = f"Reverse-variance table{f' of {model}' if model else ''}"
    return card_text(title, body, tags=["diffusion", "variance", "analytic-dpm"], license=license, base_model=model)


def _data(table: Any, name: str | None) -> str:
    if table.data is None:
        return "published moments"
    called = f"{name}, " if name else ""
    return f"{called}{table.data.count:,} images, fingerprint `{table.data.fingerprint[:12]}`"


def _conditions(table: Any) -> str:
    found = table.details.get("conditions")
    return "none" if found is None else f"{found['count']:,}, {found['how']}, fingerprint `{found['fingerprint'][:12]}`"


def _errors(table: Any) -> str:
    if table.data is None:
        return "unknown"
    errors = [table.relative_error(int(n)) for n in table.indices]
    return f"at most {max(errors):.2%} (tolerance {table.tolerance:g})"


def write_repository(
    table: Any, folder: str | Path, model: str | None = None, data: str | None = None, license: str | None = None
) -> Path:
    """The files of a repository, table and card, in a local folder (made if absent)."""
    target = make_folder(folder)
    table.save(target / FILE)
    write_atomic(target / CARD, model_card(table, model, data, license).encode())
    return target


def push_repository(
    table: Any,
    repo_id: str,
    model: str | None,
    data: str | None,
    private: bool | None,
    revision: str | None,
    token: str | bool | None,
    license: str | None = None,
) -> str:
    """See `VarianceTable.push_to_hub`."""

    def failed(reason: str) -> str:
        return (
            f"the table could not be pushed to {repo_id} ({reason}); check the name, the network and `hf auth login`."
        )

    with tempfile.TemporaryDirectory() as folder:
        write_repository(table, folder, model, data, license)
        options: dict[str, Any] = {"private": private, "revision": revision, "token": token}
        return push_folder(repo_id, folder, "Add a variance table", failed, **options)


def fetch_table_file(
    repo_id: str | Path,
    revision: str | None,
    token: str | bool | None,
    filename: str | None,
    cache_dir: str | Path | None,
) -> Path:
    """The file of a table in a local folder, or in the hub's cache; see `VarianceTable.from_hub`."""
    name = filename or FILE
    if expanded(repo_id).is_dir():
        return expanded(repo_id) / name

    def failed(reason: str) -> str:
        return (
            f"there is no folder {repo_id}, and {name} of {repo_id} could not be had from the hub ({reason}); download "
            "the file and use VarianceTable.load."
        )

    return fetch_file(str(repo_id), name, failed, revision=revision, token=token, cache_dir=cache_dir)
