"""The models that come with the package: what they are of, and that they denoise images that they have not seen."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

import diffusion_var as dv
from diffusion_var.data import open_images, to_float
from diffusion_var.models.pretrained.folder import BUNDLED, open_folder

CASES = {
    "digits": ((1, 8, 8), "digits:score[:200]", 0.3),
    "photographs": ((3, 16, 16), "photographs:score[:100]", 0.07),
}


def test_every_bundled_model_is_here() -> None:
    assert set(BUNDLED) == set(CASES)


@pytest.mark.parametrize("name", CASES)
def test_it_denoises_held_out_images(name: str) -> None:
    """At σ/α = 1 the squared error is a small part of the data's variance: measured, 0.19 and 0.046."""
    shape, images, share = CASES[name]
    denoiser = dv.Denoiser.from_pretrained(name, device="cpu")
    assert denoiser.shape == shape
    assert denoiser.clip == (-1.0, 1.0)
    x_0 = to_float(open_images(images))
    n = int(np.argmin(np.abs(denoiser.schedule.sigma - denoiser.schedule.alpha)))
    alpha, sigma = float(denoiser.schedule.alpha[n]), float(denoiser.schedule.sigma[n])
    eps = torch.from_numpy(np.random.default_rng(0).standard_normal(x_0.shape, dtype=np.float32))
    with torch.inference_mode():
        error = float((denoiser(alpha * x_0 + sigma * eps, n).mean - x_0).square().mean())
    assert error < share * float(x_0.var())


@pytest.mark.parametrize("name", CASES)
def test_its_record_and_its_size(name: str) -> None:
    folder: Path = open_folder(name).path
    record = json.loads((folder / "training.json").read_text())
    assert record["command"].startswith("python scripts/train_")
    assert record["loss_curve"][-1]["step"] > 0
    weights = folder / "unet" / "diffusion_pytorch_model.safetensors"
    assert weights.stat().st_size < 3e6
    assert weights.stat().st_mode & 0o044 == 0o044  # readable by all
