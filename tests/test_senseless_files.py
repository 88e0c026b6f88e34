"""Files that are well signed and senseless: every reader refuses every mutant, in one sentence that names the file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import small_heads
import torch
from senseless import KINDS, outcome
from signed import contents, sign

import diffusion_var as dv
from diffusion_var.randomness import generator


@pytest.mark.parametrize("kind", KINDS)
def test_mutants_are_refused_in_one_sentence(kind: str, tmp_path: Path) -> None:
    def chosen(count: int) -> list[int]:  # where each is a run, some; all of them: scripts/fault_campaign.py mutants
        drawn = generator(0, "mutants").permutation(count)
        return sorted(int(k) for k in (drawn[:40] if KINDS[kind].dear else drawn))

    found = outcome(kind, tmp_path, chosen)
    assert not found.wrong, "\n".join(found.wrong)
    assert found.refused > 20


def test_headers_that_nest_without_end_and_numbers_without_end(tmp_path: Path) -> None:
    path = tmp_path / "t.safetensors"
    small_heads.table().save(path)
    arrays, _ = contents(path)
    import safetensors.numpy

    deep = "[" * 200_000 + "]" * 200_000
    for text in (
        deep,
        '{"a":' * 50_000 + "1" + "}" * 50_000,
        "9" * 5000,
        '{"digest": ' + deep + "}",
        "null",
        '"x"',
        "{",
    ):
        path.write_bytes(safetensors.numpy.save(arrays, {"diffusion_var": text}))
        with pytest.raises(dv.InputError, match=r"t\.safetensors is (not a readable|a safetensors file but not a)"):
            dv.VarianceTable.load(path)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2])
def test_types_that_numpy_does_not_know(tmp_path: Path, dtype: torch.dtype) -> None:
    from safetensors.torch import save_file

    save_file({"a": torch.zeros(2).to(dtype)}, tmp_path / "t", {"diffusion_var": json.dumps({"a": 1})})
    with pytest.raises(dv.InputError, match=r"not a (readable )?variance table"):
        dv.VarianceTable.load(tmp_path / "t")


def test_draws_that_do_not_add_up(tmp_path: Path) -> None:
    """Each number is one that a table may have, but not beside the others."""
    path = tmp_path / "t.safetensors"
    small_heads.table().save(path)
    arrays, metadata = contents(path)

    def said(changed: dict[str, Any], **facts: Any) -> str:
        sign(path, {**arrays, **changed}, {**metadata, **facts})
        with pytest.raises(dv.InputError) as error:
            dv.VarianceTable.load(path)
        return str(error.value)

    counts, means = arrays["counts"], arrays["isotropic.means"]
    spent = int(counts.sum())
    assert f"it says that {spent + 16} evaluations were spent, but its draws are {spent}" in said(
        {}, evaluations=spent + 16
    )
    assert "has mean square" in said({"isotropic.means": 1.5 * means})
    assert "pixel.means are not of the draws" in said({"pixel.means": 1.5 * arrays["pixel.means"]})
    spectrum = 2.0 * arrays["data.spectrum"]
    assert "in the dct basis" in said({"data.spectrum": spectrum})
    assert "indices end at 51" in said({"indices": np.array([1, 5, 20, 51])})
    assert "negative eigenvalue" in said({"isotropic.covariances": _crossed(arrays["isotropic.covariances"])})
    assert "no rotation" in said({"data.rotation": 2.0 * arrays["data.rotation"]})
    assert "not the one of its digest" in said({"schedule.alpha": arrays["schedule.alpha"] ** 1.01})


def _crossed(covariances: Any) -> Any:
    """Symmetric, with a covariance larger than its variances allow."""
    changed = covariances.copy()
    largest = np.sqrt(changed[:, 0, 0] * changed[:, 5, 5])
    changed[:, 0, 5] = changed[:, 5, 0] = 2 * largest
    return changed
