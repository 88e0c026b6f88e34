"""`scripts/sample_pretrained.py`: a diffusers pipeline with a measured variance, as a user runs it."""

import runpy
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DDPMPipeline, DDPMScheduler, DiTPipeline
from PIL import Image
from places import SCRIPTS
from small_pipelines import SCHEDULER, STEPS, save_dit

import diffusion_var as dv

SCRIPT = SCRIPTS / "sample_pretrained.py"
DIGITS = Path(dv.__file__).parent / "assets" / "digits"


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pixel pipeline with the bundled digits UNet and a latent DiT, each with a table."""
    root = tmp_path_factory.mktemp("pretrained")
    unet = dv.Denoiser.from_pretrained(DIGITS, device="cpu").network
    scheduler = DDPMScheduler(**{k: v for k, v in SCHEDULER.items() if k != "set_alpha_to_one"})
    DDPMPipeline(unet, scheduler).save_pretrained(root / "ddpm")
    save_dit(root / "dit")
    stream = np.random.default_rng(0)
    for name, shape, options in (("ddpm", (1, 8, 8), {}), ("dit", (4, 8, 8), {"guidance_scale": 1.5})):
        denoiser = dv.Denoiser.from_pretrained(root / name, device="cpu", **options)
        images = stream.uniform(-1, 1, (20, *shape)).astype(np.float32)
        conditions = np.arange(20) % 3 if name == "dit" else None
        table = dv.estimate(denoiser, images, 9.0, structures=["isotropic"], conditions=conditions, progress=False)
        table.save(root / f"{name}.safetensors")
    return root


def run(monkeypatch: pytest.MonkeyPatch, *arguments: Any) -> None:
    monkeypatch.setattr(sys, "argv", ["sample_pretrained.py", *map(str, arguments)])
    runpy.run_path(str(SCRIPT), run_name="__main__")


def read(folder: Path) -> np.ndarray:
    return np.stack([np.asarray(Image.open(path)) for path in sorted(folder.glob("*.png"))]).astype(int)


def test_the_pipeline_with_a_table(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "out"
    table = root / "ddpm.safetensors"
    run(monkeypatch, root / "ddpm", "--table", table, "-o", out, "--steps", 4, "--count", 3, "--eta", 0.5, "--seed", 7)
    pipe = DDPMPipeline.from_pretrained(root / "ddpm")
    pipe.scheduler = dv.AnalyticScheduler.from_table(dv.VarianceTable.load(table), pipe.scheduler.config, eta=0.5)
    generators = [torch.Generator().manual_seed(7 + i) for i in range(3)]
    expected = pipe(batch_size=3, num_inference_steps=4, generator=generators, output_type="np").images
    assert np.abs(read(out) - 255 * expected[..., 0]).max() <= 1


def test_without_a_table_the_pipelines_own_scheduler_stays(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(monkeypatch, root / "ddpm", "-o", tmp_path / "out", "--steps", 4, "--count", 2)
    pipe = DDPMPipeline.from_pretrained(root / "ddpm")
    generators = [torch.Generator().manual_seed(i) for i in range(2)]
    expected = pipe(batch_size=2, num_inference_steps=4, generator=generators, output_type="np").images
    assert np.abs(read(tmp_path / "out") - 255 * expected[..., 0]).max() <= 1


def test_guidance_scale_is_the_tables_own(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table = root / "dit.safetensors"
    run(monkeypatch, root / "dit", "--table", table, "-o", tmp_path / "out", "--steps", 3, "--classes", 0, 2, 1)
    pipe = DiTPipeline.from_pretrained(root / "dit")
    pipe.scheduler = dv.AnalyticScheduler.from_table(dv.VarianceTable.load(table), pipe.scheduler.config)
    pipe.scheduler.generator = torch.Generator().manual_seed(0)
    generators = [torch.Generator().manual_seed(i) for i in range(3)]
    expected = pipe(
        class_labels=[0, 2, 1], guidance_scale=1.5, num_inference_steps=3, generator=generators, output_type="np"
    )
    assert np.abs(read(tmp_path / "out") - 255 * np.asarray(expected.images)).max() <= 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["dit", "--table", "dit.safetensors", "--classes", "1", "--guidance-scale", "4"],
            "measured at guidance scale 1.5",
        ),
        (["ddpm", "--table", "dit.safetensors"], "another model"),
        (["ddpm", "--table", "nowhere.safetensors"], "could not be had from the hub"),
    ],
)
def test_mistakes_end_with_one_sentence(
    arguments: list[str],
    message: str,
    root: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.chdir(root)
    with pytest.raises(SystemExit) as end:
        run(monkeypatch, *arguments, "-o", tmp_path / "out", "--steps", STEPS)
    assert end.value.code == 2
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert said.startswith("error: ")
    assert message in said
    assert not (tmp_path / "out").exists()
