"""Whole pipelines on the command line: prompts and videos go in, tables and pictures come out."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from places import ROOT
from small_families import FAMILIES
from typer.testing import CliRunner

import diffusion_var as dv
from diffusion_var.app import cli
from diffusion_var.app.config import load_options
from diffusion_var.app.options import EstimateOptions, SampleOptions
from diffusion_var.data.images import read_images, to_uint8

PROMPTS = ["a cat", "a dog"]
FRAMES = 5
LARGE = ("sdxl", "stable_diffusion_3_5", "flux_1", "qwen_image", "wan_2_1")


def run(*words: str, code: int = 0) -> str:
    result = CliRunner().invoke(cli.app, [*words], catch_exceptions=True)
    if code == 0:
        assert result.exit_code == 0, (result.output, result.exception)
    return str(result.exception) if code else result.output


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pipelines of pictures and of videos, with data and prompts."""
    root = tmp_path_factory.mktemp("pipelines")
    for name in ("sd3", "flux", "wan"):
        FAMILIES[name]().save_pretrained(root / name)
    stream = np.random.default_rng(0)
    np.savez(root / "pictures.npz", images=stream.integers(0, 256, (6, 16, 16, 3), dtype=np.uint8))
    np.savez(root / "videos.npz", images=stream.integers(0, 256, (4, FRAMES, 16, 16, 3), dtype=np.uint8))
    (root / "prompts.txt").write_text("\n".join(PROMPTS) + "\n")
    return root


def estimated(root: Path, kind: str, out: Path, call: str, images: str = "pictures", *words: str) -> dv.VarianceTable:
    model = ("--pipeline", str(root / kind), "--prompts", str(root / "prompts.txt"), "--call", call)
    how = ("--tolerance", "9", "--indices", "1,400,1000", "--structures", "isotropic,channel")
    images = f"{root / images}.npz:images"
    run("estimate", *model, "--images", images, "--out", str(out), "--device", "cpu", *how, *words)
    return dv.VarianceTable.load(out)


CALLS = {
    "sd3": "height=16,width=16,max_sequence_length=8",
    "flux": "height=16,width=16,max_sequence_length=8",
    "wan": f"height=16,width=16,num_frames={FRAMES},max_sequence_length=8",
}


def same_in_python(root: Path, kind: str, **options: Any) -> dv.Denoiser:
    call = {pair.split("=")[0]: int(pair.split("=")[1]) for pair in CALLS[kind].split(",")}
    return dv.Denoiser.from_pretrained(root / kind, device="cpu", call=call, **options)


def test_a_table_and_pictures_of_a_flow_pipeline(root: Path, tmp_path: Path) -> None:
    latents = tmp_path / "latents"
    guided = ("--guidance-scale", "3", "--latents", str(latents))
    table = estimated(root, "sd3", tmp_path / "t.safetensors", CALLS["sd3"], "pictures", *guided)
    assert table.guidance_scale == 3.0
    assert list(latents.glob("latents-*.safetensors"))

    denoiser = same_in_python(root, "sd3", guidance_scale=3.0)
    pictures = read_images(root / "pictures.npz", key="images")
    encoded = dv.encode_latents(denoiser, pictures, progress=False)
    prompts = denoiser.prompts.encode(PROMPTS)
    expected = dv.estimate(
        denoiser, encoded, 9.0, indices=[1, 400, 1000], structures=["isotropic"], conditions=dv.Conditions(prompts),
        progress=False,
    )  # fmt: skip
    assert table.posterior_variance(400) == pytest.approx(expected.posterior_variance(400), rel=1e-5)

    model = ("--pipeline", str(root / "sd3"), "--prompts", str(root / "prompts.txt"), "--call", CALLS["sd3"])
    way = ("--table", str(tmp_path / "t.safetensors"), "--structure", "channel", "--steps", "3", "--eta", "0.5")
    run("sample", *model, *way, "--guidance-scale", "3", "--count", "3", "--device", "cpu", "-o", str(tmp_path / "s"))
    sampler = dv.Sampler(denoiser, dv.Analytic(table, structure="channel"), 3, 0.5)
    rows = {name: leaf[[0, 1, 0]] for name, leaf in prompts.items()}
    wanted = to_uint8(denoiser.codec.decode(sampler.sample(3, conditions=rows)))
    found = torch.stack(list(read_images(tmp_path / "s")))
    assert (found.int() - wanted.int()).abs().max() <= 1


def test_what_a_network_is_told_of_guidance_is_its_pipelines_own(root: Path, tmp_path: Path) -> None:
    table = estimated(
        root, "flux", tmp_path / "t.safetensors", CALLS["flux"], "pictures", "--batch-size", "1", "--indices", "400"
    )
    assert table.guidance_scale == 1.0
    table.check(same_in_python(root, "flux"))
    with pytest.raises(dv.InputError, match=r"guidance"):
        table.check(same_in_python(root, "flux", guidance_scale=2.0))


def test_videos_go_in_and_come_out(root: Path, tmp_path: Path) -> None:
    table = estimated(root, "wan", tmp_path / "t.safetensors", CALLS["wan"], "videos")
    assert table.shape is not None
    assert len(table.shape) == 4
    model = ("--pipeline", str(root / "wan"), "--prompts", str(root / "prompts.txt"), "--call", CALLS["wan"])
    how = ("--table", str(tmp_path / "t.safetensors"), "--steps", "2", "--count", "2", "--device", "cpu")
    run("sample", *model, *how, "-o", str(tmp_path / "frames"))
    run("sample", *model, *how, "-o", str(tmp_path / "videos.npz"))
    videos = read_images(tmp_path / "videos.npz")
    assert (len(videos), videos.shape) == (2, (3, FRAMES, 16, 16))
    with Image.open(tmp_path / "frames" / "000001.png") as file:
        assert file.n_frames == FRAMES
        np.testing.assert_array_equal(np.array(file.convert("RGB")), videos[1][:, 0].permute(1, 2, 0))


def test_prompts_are_wanted(root: Path, tmp_path: Path) -> None:
    words = ("estimate", "--pipeline", str(root / "sd3"), "--call", CALLS["sd3"], "--device", "cpu")
    said = run(*words, "--images", f"{root / 'pictures.npz'}:images", "-o", str(tmp_path / "t.safetensors"), code=2)
    assert "--prompts" in said


def test_a_call_that_the_pipeline_does_not_take(root: Path, tmp_path: Path) -> None:
    words = ("sample", "--pipeline", str(root / "sd3"), "--prompts", str(root / "prompts.txt"), "--device", "cpu")
    said = run(*words, "--call", "hight=16", "-o", str(tmp_path / "s"), code=2)
    assert "hight" in said


@pytest.mark.parametrize("name", LARGE)
def test_configs_of_large_models_are_valid_and_name_one_model(name: str) -> None:
    config = ROOT / "configs" / f"{name}.yaml"
    estimate = load_options(EstimateOptions, {}, config, section="estimate")
    sample = load_options(SampleOptions, {}, config, section="sample")
    assert (estimate.model, estimate.call, estimate.guidance_scale) == (
        sample.model,
        sample.call,
        sample.guidance_scale,
    )
    assert estimate.out == sample.table
    assert sample.structure in estimate.structures
    assert "GB" in config.read_text()
