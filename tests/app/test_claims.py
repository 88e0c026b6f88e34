"""What commands write: one run at a time, recognised by the same command, refused to another."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from diffusion_var import InputError
from diffusion_var.app import cli
from diffusion_var.app.claims import recorded, run_identity
from diffusion_var.app.options import EstimateOptions, StatsOptions
from diffusion_var.locks import locked

FEW = "digits:table[:20]"
SAMPLE = ["sample", "--model", "digits", "--steps", "2", "--count", "5", "--batch-size", "2"]
#: Commands of one output: how they are told apart from another run's.
OUTPUTS = {
    "t.safetensors": ["estimate", "--model", "digits", "--images", FEW, "--indices", "500", "--tolerance", "9"],
    "x.npz": SAMPLE,
    "folder": SAMPLE,
    "nll.json": ["nll", "--model", "digits", "--images", FEW, "--steps", "2", "--covariance", "beta_tilde"],
}


def run(*arguments: str) -> str:
    result = CliRunner().invoke(cli.app, [*arguments], catch_exceptions=True)
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == 0, result.output
    return result.output


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


@pytest.mark.filterwarnings("ignore::diffusion_var.errors.DiffusionVarWarning")
@pytest.mark.parametrize("name", OUTPUTS)
def test_the_same_command_finds_its_result_and_another_is_refused(name: str, tmp_path: Path) -> None:
    command, out = OUTPUTS[name], str(tmp_path / name)
    run(*command, "-o", out)
    before = contents(tmp_path)
    assert "already finished" in run(*command, "-o", out)
    assert contents(tmp_path) == before
    with pytest.raises(InputError, match=r"exists already|is not empty"):
        run(*command, "-o", out, "--seed", "1")
    assert contents(tmp_path) == before
    with (
        locked(out, folder=name == "folder"),
        pytest.raises(InputError, match=f"is being written by process {os.getpid()} on"),
    ):
        run(*command, "-o", out, "--overwrite")
    assert contents(tmp_path) == before
    if name != "folder":  # a damaged result is not taken for a finished one
        Path(out).write_bytes(before[name][:-4] + bytes(255 - b for b in before[name][-4:]))
        with pytest.raises(InputError, match="exists already"):
            run(*command, "-o", out)


def test_damaged_images_are_drawn_again(tmp_path: Path) -> None:
    run(*SAMPLE, "-o", str(tmp_path))
    before = contents(tmp_path)
    first, second, third, fourth = (tmp_path / f"00000{i}.png" for i in range(4))
    first.write_bytes(b"")
    second.write_bytes(second.read_bytes()[:40])
    pixels = np.asarray(Image.open(third)).copy()
    pixels[3, 3] ^= 1
    Image.fromarray(pixels).save(third)
    fourth.write_bytes((tmp_path / "000004.png").read_bytes())
    said = run(*SAMPLE, "-o", str(tmp_path))
    assert "4 images are not as they were written" in said
    after = contents(tmp_path)
    assert {n: c for n, c in after.items() if n.endswith(".png")} == {
        n: c for n, c in before.items() if n.endswith("png")
    }


@pytest.mark.parametrize(
    "line",
    [
        "compare --steps 2 --seeds 0 --count 2",
        "demo --steps 2 --seeds 0 --count 2",
        "train-head --model digits --table t.safetensors --images digits:train",
        "train-unet --images digits:train",
    ],
)
@pytest.mark.parametrize("overwrite", [[], ["--overwrite"]])
def test_the_second_run_of_one_folder_is_refused(line: str, overwrite: list[str], tmp_path: Path) -> None:
    out = tmp_path / "out"
    with (
        locked(out, folder=True),
        pytest.raises(InputError, match=f"{out} is being written by process {os.getpid()} on .*; wait for it"),
    ):
        run(*line.split(), *overwrite, "-o", str(out))
    assert not out.exists()  # the second left nothing, and the first had made nothing


@pytest.mark.slow
@pytest.mark.parametrize("name", ["folder", "x.npz"])
def test_two_at_once_do_not_mix(name: str, tmp_path: Path) -> None:
    """Runs of two seeds, started together: one of them writes all."""
    out = tmp_path / name
    command = [sys.executable, "-m", "diffusion_var", *SAMPLE, "-o", str(out), "--seed"]
    both = [subprocess.Popen([*command, f"{seed}"], stderr=subprocess.PIPE, text=True) for seed in (0, 1)]
    errors = [process.communicate(timeout=120)[1] for process in both]
    codes = [process.returncode for process in both]
    assert sorted(codes) == [0, 2], errors
    alone = tmp_path / "alone" / name
    alone.parent.mkdir()
    run(*SAMPLE, "-o", str(alone), "--seed", f"{codes.index(0)}")
    if name == "folder":
        assert contents(out) == contents(alone)
    else:
        assert np.array_equal(np.load(out)["images"], np.load(alone)["images"])


def test_the_identity_is_of_the_options_and_of_what_they_name(tmp_path: Path) -> None:
    images = tmp_path / "images"
    images.mkdir()
    (images / "a.png").write_bytes(b"x")
    np.savez(tmp_path / "a.npz", x=np.zeros(3))

    def identity(**options: object) -> str:
        given = {"images": str(images), "out": tmp_path / "o.npz", **options}
        return run_identity("stats", StatsOptions(**given))  # type: ignore[arg-type]

    same = identity()
    assert identity(out=tmp_path / "other.npz", overwrite=True, device="cpu") == same
    assert identity(features="digits") != same
    named = identity(images=f"{tmp_path / 'a.npz'}:x[:2]")
    np.savez(tmp_path / "a.npz", x=np.ones(3))
    assert identity(images=f"{tmp_path / 'a.npz'}:x[:2]") != named
    (images / "b.png").write_bytes(b"x")
    assert identity() != same


def test_guidance_left_out_is_not_guidance_of_1() -> None:
    """Of a network that is told its guidance, the two are different; what is left out is as it always was."""
    given = {"model": "a", "images": "b", "out": Path("c")}
    left_out, one, two = (EstimateOptions(**given, guidance_scale=scale) for scale in (None, 1.0, 2.0))
    assert recorded(left_out)["guidance_scale"] == 1.0
    assert len({run_identity("estimate", options) for options in (left_out, one, two)}) == 3
