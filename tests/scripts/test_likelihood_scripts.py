"""The scripts about likelihoods, end to end: the API's numbers, cells that are kept, a benchmark that checks."""

import subprocess
import sys
from pathlib import Path

import pytest
from places import SCRIPTS

import diffusion_var as dv
from diffusion_var.app.model import open_model
from diffusion_var.app.options import ModelOptions
from diffusion_var.data.digits import digits_splits


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A coarse table of the digits."""
    folder = tmp_path_factory.mktemp("likelihoods")
    table = dv.estimate(
        open_model("digits", ModelOptions()).denoiser,
        digits_splits().table.images,
        9.0,
        indices=[1, 30, 300, 1000],
        structures=["isotropic", "dct"],
        progress=False,
    )
    table.save(folder / "table.safetensors")
    return folder


def compare(folder: Path) -> str:
    command = [sys.executable, str(SCRIPTS / "compare_likelihoods.py"), "--out", str(folder / "cells")]
    command += ["--table", str(folder / "table.safetensors"), "--images", "digits:score[:6]", "--steps", "2,4"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr[-800:]
    return done.stdout


@pytest.mark.slow
def test_compare_likelihoods_prints_what_the_api_gives_and_keeps_its_cells(folder: Path) -> None:
    said = compare(folder)
    table = dv.VarianceTable.load(folder / "table.safetensors")
    denoiser = open_model("digits", ModelOptions()).denoiser
    images = digits_splits().score.images[:6]
    for structure in ("isotropic", "dct"):
        covariance = dv.Analytic(table, structure=structure)
        values = [dv.bits_per_dim(denoiser, covariance, images, steps, batch_size=100) for steps in (2, 4)]
        cells = " | ".join(f"{v.value:.4f} ± {v.standard_error:.4f}" for v in values)
        assert f"| analytic {structure} | even | {cells} |" in said
    cell = folder / "cells" / "dct-optimal-4.safetensors"
    (folder / "cells" / "beta-even-2.safetensors").unlink()
    before = cell.read_bytes()
    assert compare(folder) == said
    assert cell.read_bytes() == before


def test_the_trajectory_benchmark_checks_itself() -> None:
    command = [sys.executable, str(SCRIPTS / "bench_trajectory.py"), "--num-steps", "60", "--rounds", "1"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-800:]
    assert "costs equal to the last bit" in done.stdout
