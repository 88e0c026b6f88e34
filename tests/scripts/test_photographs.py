"""The script behind results/photographs.md, on small patches and a small untrained network: its tables have the shape
that they should, bounds lie above the exact value, and no mean is better than the exact one."""

import re
import runpy
import sys

import pytest
import torch
from diffusers.models.unets.unet_2d import UNet2DModel
from diffusers.pipelines.ddpm.pipeline_ddpm import DDPMPipeline
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler
from places import ROOT

SMALL = ("--size", "4", "--components", "2", "--fit-images", "400")


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A pipeline of 4×4 patches, 20 levels."""
    folder = tmp_path_factory.mktemp("model")
    blocks = {"down_block_types": ("DownBlock2D",), "up_block_types": ("UpBlock2D",)}
    torch.default_generator.manual_seed(0)
    network = UNet2DModel(4, 3, 3, block_out_channels=(8,), layers_per_block=1, norm_num_groups=4, **blocks)
    DDPMPipeline(network, DDPMScheduler(1000)).save_pretrained(folder)
    return folder


def lines(monkeypatch, capsys, *arguments):
    """What the script prints, run in this process."""
    monkeypatch.setattr(sys, "argv", ["photographs.py", *map(str, arguments)])
    runpy.run_path(str(ROOT / "scripts" / "photographs.py"), run_name="__main__")
    return capsys.readouterr().out.splitlines()


def test_bits(monkeypatch, capsys):
    printed = lines(monkeypatch, capsys, "bits", *SMALL, "--count", 60, "--own", 9, "--steps", 3, 8)
    exact = float(re.match(r"exact: (-?[\d.]+) ±", printed[0])[1])
    rows = [line.strip("| ").split(" | ") for line in printed[3:]]
    assert [cells[0] for cells in rows] == [
        *(f"{name}, averaged" for name in ("isotropic", "pixel", "dct", "full")),
        "dct, of each image",
        "full, of each image",
    ]
    for _, *cells in rows[:-1]:
        values = [float(cell.split()[0]) for cell in cells]
        assert len(values) == 2
        assert min(values) > exact - 0.1


def test_residuals(monkeypatch, capsys, model, tmp_path):
    plot = tmp_path / "plot.png"
    printed = lines(monkeypatch, capsys, "residuals", *SMALL, "--count", 60, "--model", model, "--plot", plot)
    rows = [line.strip("| ").split(" | ") for line in printed[2:]]
    assert [int(cells[0]) for cells in rows] == [2, 10, 25, 50, *range(100, 201, 50), *range(300, 1001, 100)]
    assert all(float(cells[-1]) > 0.8 for cells in rows)  # 60 samples know the exact value to some 10 %
    assert plot.read_bytes()[:4] == b"\x89PNG"


def test_frechet(monkeypatch, capsys, model):
    printed = lines(monkeypatch, capsys, "frechet", *SMALL, "--count", 50, "--model", model, "--steps", 2, 4)
    assert printed.count("| --- | --- | --- |") == 2
    assert sum(line.startswith("| Analytic-DDIM dct |") for line in printed) == 2
    assert printed[-1].startswith("| patches it was trained on |")
