"""On a CUDA device: the same tables and images as on the CPU, and half precision. Run with `pytest -m gpu`."""

from pathlib import Path

import pytest
import torch

import diffusion_var as dv
from diffusion_var.data.digits import digits_splits

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
DIGITS = Path(dv.__file__).parent / "assets" / "digits"
STRUCTURES = ("isotropic", "channel", "pixel", "dct")


@pytest.fixture(scope="module")
def tables() -> dict[str, dv.VarianceTable]:
    """The digits table measured on both devices."""
    images = digits_splits().table.images
    return {
        device: dv.estimate(
            dv.Denoiser.from_pretrained(DIGITS, device=device),
            images,
            indices=[1, 250, 500, 1000],
            progress=False,
            tolerance=0.05,
        )
        for device in ("cpu", "cuda")
    }


def test_tables_agree_between_devices(tables: dict[str, dv.VarianceTable]) -> None:
    for structure in STRUCTURES:
        for n in (1, 250, 500, 1000):
            cpu, cuda = (torch.as_tensor(tables[d].posterior_variance(n, structure=structure)) for d in ("cpu", "cuda"))
            assert float((cpu - cuda).abs().max() / cpu.abs().max()) < 1e-3


@pytest.mark.parametrize("structure", STRUCTURES)
@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_images_agree_between_devices(tables: dict[str, dv.VarianceTable], structure: str, eta: float) -> None:
    images = [
        dv.Sampler(
            dv.Denoiser.from_pretrained(DIGITS, device=device),
            dv.Analytic(tables["cpu"], structure=structure),
            [1, 250, 500, 1000],
            eta,
        ).sample(20, seed=3, batch_size=8)
        for device in ("cpu", "cuda")
    ]
    assert float((images[0] - images[1]).abs().max()) < 0.02


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_changes_little(tables: dict[str, dv.VarianceTable], dtype: torch.dtype) -> None:
    images = []
    for autocast in (None, dtype):
        denoiser = dv.Denoiser.from_pretrained(DIGITS, device="cuda", autocast=autocast)
        sampler = dv.Sampler(denoiser, dv.Analytic(tables["cpu"]), [1, 250, 500, 1000])
        images.append(sampler.sample(64, seed=3))
        assert images[-1].dtype == torch.float32
    assert float((images[0] - images[1]).abs().mean()) < 0.05


@pytest.mark.parametrize("structure", STRUCTURES)
def test_likelihoods_agree_between_devices(tables: dict[str, dv.VarianceTable], structure: str) -> None:
    images = digits_splits().score.images[:20]
    values = [
        dv.bits_per_dim(
            dv.Denoiser.from_pretrained(DIGITS, device=device),
            dv.Analytic(tables["cpu"], structure=structure),
            images,
            [1, 250, 500, 1000],
            step_samples=2,
            batch_size=8,
        ).per_step
        for device in ("cpu", "cuda")
    ]
    assert float(abs(values[0] - values[1]).max()) < 2e-3
