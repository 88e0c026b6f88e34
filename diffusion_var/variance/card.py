"""Variance tables on the hub: a repository with one table file and a model card that says what was measured."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import InputError
from ..files import make_folder, write_atomic

if TYPE_CHECKING:
    from .table import VarianceTable

FILE = "variance_table.safetensors"


def model_card(table: VarianceTable, model: str | None = None, data: str | None = None) -> str:
    """The card (Markdown): model, schedule, data, counts and errors, and how the table is used.

    Args:
        model: hub id of the model that was measured, if it has one.
        data: name of the data set, if it has one.
    """
    schedule = table.schedule
    facts = [
        ("model", f"`{model}`" if model else "not named"),
        ("network (SHA-256 of its weights)", f"`{table.network}`" if table.network else "unknown"),
        ("shape, prediction, clipping", f"{table.shape}, {table.prediction}, {table.clip}"),
        ("schedule", f"N = {schedule.num_steps}, log-SNR {schedule.log_snr[1]:.4g} to {schedule.log_snr[-1]:.4g}"),
        ("guidance scale", f"{table.guidance_scale:g}" if table.guidance_scale != 1.0 else "none"),
        ("latents", "none" if table.latent_scaling is None else f"scaled by {table.latent_scaling[0]:g}"),
        ("data", _data(table, data)),
        ("conditions", _conditions(table)),
        ("network evaluations", f"{table.evaluations:,} at {len(table.indices)} indices, seed {table.seed}"),
        ("structures", ", ".join(table.structures)),
        ("relative standard error (isotropic)", _errors(table)),
        ("digest of the table", f"`{table.digest}`"),
    ]
    rows = "\n".join(f"| {name} | {value} |" for name, value in facts)
    front = ["---", "library_name: diffusion_var", "tags: [diffusion, variance, analytic-dpm]"]
    front += [f"base_model: {model}"] if model else []
    return f"""{chr(10).join([*front, "---"])}

# Reverse-variance table{f" of {model}" if model else ""}

Measured optimal reverse variances of a diffusion model (Analytic-DPM, arXiv:2201.06503; Extended-Analytic-DPM,
arXiv:2206.07309), for use with `diffusion_var` or inside a diffusers pipeline:

```python
import diffusion_var as dv

table = dv.VarianceTable.from_hub("OWNER/NAME")
pipe.scheduler = dv.AnalyticScheduler.from_table(table, pipe.scheduler.config)
```

| | |
|---|---|
{rows}

## Summary

```
{table.summary()}
```
"""


def _data(table: VarianceTable, name: str | None) -> str:
    if table.data is None:
        return "published moments"
    called = f"{name}, " if name else ""
    return f"{called}{table.data.count:,} images, fingerprint `{table.data.fingerprint[:12]}`"


def _conditions(table: VarianceTable) -> str:
    found = table.details.get("conditions")
    return "none" if found is None else f"{found['count']:,}, {found['how']}, fingerprint `{found['fingerprint'][:12]}`"


def _errors(table: VarianceTable) -> str:
    if table.data is None:
        return "unknown"
    errors = [table.relative_error(int(n)) for n in table.indices]
    return f"at most {max(errors):.2%} (tolerance {table.tolerance:g})"


def write_repository(
    table: VarianceTable, folder: str | Path, model: str | None = None, data: str | None = None
) -> Path:
    """The files of a repository, table and card, in a local folder (made if absent)."""
    target = make_folder(folder)
    table.save(target / FILE)
    write_atomic(target / "README.md", model_card(table, model, data).encode())
    return target


def push_table(
    table: VarianceTable,
    repo_id: str,
    *,
    model: str | None = None,
    data: str | None = None,
    private: bool | None = None,
    revision: str | None = None,
    token: str | bool | None = None,
) -> str:
    """Upload a table and its card to the hub (made if absent) in one commit.

    Args:
        repo_id: "owner/name".
        model, data: for the card.
        private: whether a new repository is private.
        revision: branch to commit to.
        token: of the hub; None: the one that `hf auth login` stored.

    Returns: the address of the commit. Raises InputError where the hub refuses or cannot be reached.
    """
    from huggingface_hub import HfApi

    api = HfApi(token=token)
    with tempfile.TemporaryDirectory() as folder:
        write_repository(table, folder, model, data)
        try:
            api.create_repo(repo_id, private=private, exist_ok=True)
            commit = api.upload_folder(
                repo_id=repo_id, folder_path=folder, revision=revision, commit_message="Add a variance table"
            )
        except Exception as error:  # the transport's own errors are no OSErrors, and differ from version to version
            raise InputError(
                f"the table could not be pushed to {repo_id} ({type(error).__name__}: {_first_line(error)}); check the "
                "name, the network and `hf auth login`."
            ) from error
    return str(commit)


def fetch_table(
    repo_id: str | Path,
    *,
    revision: str | None = None,
    token: str | bool | None = None,
    filename: str = FILE,
    **options: Any,
) -> VarianceTable:
    """The table of a hub repository, by way of the hub's cache, or of a local folder.

    Args:
        repo_id: "owner/name", or a folder.
        revision: branch, tag or commit.
        token: of the hub.
        filename: of the table in the repository.
        options: passed on to `huggingface_hub.hf_hub_download`, e.g. `cache_dir`.

    Raises InputError where it cannot be had, or is no table.
    """
    from .table import VarianceTable

    if Path(repo_id).is_dir():
        return VarianceTable.load(Path(repo_id) / filename)
    from huggingface_hub import hf_hub_download

    try:
        path = hf_hub_download(str(repo_id), filename, revision=revision, token=token, **options)
    except Exception as error:  # as above
        raise InputError(
            f"there is no folder {repo_id}, and {filename} of {repo_id} could not be had from the hub "
            f"({type(error).__name__}); download the file and use VarianceTable.load."
        ) from error
    return VarianceTable.load(path)


def _first_line(error: Exception) -> str:
    return (str(error).strip() or "no reason given").splitlines()[0]
