"""The folder of a comparison: it holds one experiment, whose report may grow by methods, steps and seeds.

What the experiment is stands in a record beside the report. Another one is refused, before its model is loaded, unless
it is to replace the report that is there.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ... import checks
from ...errors import InputError
from ...files import make_folder, regular_file, require_empty_folder, write_atomic
from ...json_text import parse_json
from ...manifest import NAME as MANIFEST
from ..cell_files import FOLDER
from ..claims import recorded
from ..outputs import require_writable
from .options import CompareOptions

RECORD = "comparison.json"
TABLE = "table.safetensors"
# What a report may have more of, and what decides no number.
_GROWS = ("methods", "steps", "seeds", "metrics")
_SAID = ("part", "title", "text", "remarks", "floor")  # of a part of the demo
_IDLE = (*_SAID, "out", "overwrite", "device", "batch_size", "download", "latents", "skip_corrupt", "processes")
_REPORT = ("results.*", "report.*", "figure.png", "variance*.png", "scores_*.png", "samples_*.png", MANIFEST)


class ComparisonFolder:
    """The output folder of some options; refused if it holds anything else."""

    def __init__(self, options: CompareOptions) -> None:
        self.path = require_writable(options.out)
        self._own = _experiment(options)
        self._table_is_own = options.table is None
        self._found = _read(self.path / RECORD)
        known = self._found is not None or (self.path / FOLDER).is_dir()
        require_empty_folder(self.path, options.overwrite or known, ignore=[TABLE])
        self._may_replace = options.overwrite or not known
        self._refuse_other(self._own)

    def begin(self, network: str | None) -> None:
        """Make the folder this experiment's, of this network: the report of another one is removed."""
        own = {**self._own, "network": network}
        self._refuse_other(own)
        if self._found is not None and self._found != own:
            remove_report(self.path)
            if self._found.get("table") is None and self._table_is_own:
                (self.path / TABLE).unlink(missing_ok=True)
        make_folder(self.path)
        write_atomic(self.path / RECORD, (json.dumps(own, indent=2) + "\n").encode())
        self._found = own

    def _refuse_other(self, own: dict[str, Any]) -> None:
        if self._may_replace:
            return
        found = self._found or {}
        different = [key for key in own if found.get(key) != own[key] and (key in found or key == "model")]
        if different:
            key = different[0]
            there = checks.brief(found[key]) if key in found else "not known"
            raise InputError(
                f"the output folder {self.path} holds another comparison, whose {key} is {there} and not "
                f"{checks.brief(own[key])}; choose another --out, or pass --overwrite to replace its report."
            )


def remove_report(folder: Path, but: frozenset[str] = frozenset()) -> None:
    """Remove what a report consists of, except some of its files."""
    for pattern in _REPORT:
        for file in folder.glob(pattern):
            if file.name not in but and file.is_file():
                file.unlink()


def _experiment(options: CompareOptions) -> dict[str, Any]:
    content = {key: value for key, value in recorded(options).items() if key not in (*_GROWS, *_IDLE)}
    plain: dict[str, Any] = json.loads(json.dumps(content, default=str))
    return plain


def _read(path: Path) -> dict[str, Any] | None:
    if not path.exists():
        return None
    try:
        content = parse_json(regular_file(path).read_bytes())
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}
