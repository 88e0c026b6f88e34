"""The wheel holds everything that an installed package needs, and nothing speaks of a checkout."""

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from places import ROOT


@pytest.mark.slow
def test_wheel_builds_and_is_complete(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(tmp_path), str(ROOT)]
    subprocess.run(command, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    sources = {str(p.relative_to(ROOT)) for p in (ROOT / "diffusion_var").rglob("*.py")}
    assert sources <= names
    for needed in (
        "py.typed",
        "assets/digits/unet/diffusion_pytorch_model.safetensors",
        "assets/digits/scheduler/scheduler_config.json",
        "assets/digits_features.safetensors",
        "app/compare/templates/report.html.j2",
    ):
        assert f"diffusion_var/{needed}" in names


def test_bundled_weights_are_small_enough() -> None:
    total = sum(p.stat().st_size for p in (ROOT / "diffusion_var" / "assets").rglob("*.safetensors"))
    assert total <= 3_000_000
