"""The command line, in processes of its own where exit codes and start-up time matter, else in this one."""

import json
import os
import signal
import subprocess
import sys
import time
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

import diffusion_var as dv
from diffusion_var.app import cli
from diffusion_var.app.model import Model
from diffusion_var.errors import InputError, NumericalError
from diffusion_var.models.network_run import NetworkRun
from diffusion_var.models.posterior import Posterior

ESTIMATE = ["estimate", "--model", "digits", "--images", "digits:table", "--indices", "1,500,1000", "--tolerance", "9"]


def run(*arguments: str) -> None:
    """A command in this process; its InputError comes out as it is."""
    result = CliRunner().invoke(cli.app, list(arguments), catch_exceptions=True)
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == 0, result.output


def process(*arguments: str, **options: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "diffusion_var.app.cli", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, **options)  # type: ignore[call-overload,no-any-return]


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("table") / "digits.safetensors"
    run(*ESTIMATE, "--out", str(path))
    return path


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys, diffusion_var.app.cli as c\n"
        "from typer.testing import CliRunner\n"
        "for a in ([], ['demo'], ['estimate'], ['show'], ['sample'], ['fid']):\n"
        "    r = CliRunner().invoke(c.app, [*a, '--help']); assert r.exit_code == 0, r.output\n"
        "print([m for m in ('torch', 'numpy', 'diffusers', 'matplotlib', 'scipy', 'yaml') if m in sys.modules])\n"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"


def test_bad_input_exits_with_2_and_one_message(tmp_path: Path) -> None:
    out = process(
        "estimate", "--model", str(tmp_path / "nothing"), "--images", "digits:table", "-o", str(tmp_path / "t")
    )
    assert out.returncode == 2
    assert out.stderr.startswith("error: there is no model folder at")
    assert "Traceback" not in out.stderr
    assert len(out.stderr.strip().splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


def test_estimate_show_sample_fid(table: Path, tmp_path: Path) -> None:
    assert dv.VarianceTable.load(table).indices.tolist() == [1, 500, 1000]
    assert not table.with_name(table.name + ".partial").exists()
    run("show", "--table", str(table), "--plot", str(tmp_path / "v.png"))
    assert Image.open(tmp_path / "v.png").size[0] > 500
    common = ["--model", "digits", "--table", str(table), "--covariance", "analytic", "--structure", "dct"]
    common += ["--steps", "1,500,1000", "--count", "12", "--final-noise-cap", "1"]
    run("sample", *common, "--out", str(tmp_path / "png"), "--batch-size", "5")
    run("sample", *common, "--out", str(tmp_path / "s.npz"))
    stored = np.load(tmp_path / "s.npz", allow_pickle=False)["images"]
    pictures = np.stack([np.asarray(Image.open(p)) for p in sorted((tmp_path / "png").glob("*.png"))])
    assert stored.shape == (12, 1, 8, 8)
    # Another batch size may move a value across a rounding boundary.
    assert np.abs(stored[:, 0].astype(int) - pictures.astype(int)).max() <= 1
    run("fid", "--images", str(tmp_path / "png"), "--reference", "digits:score", "--features", "digits", "--json")


def test_fid_prints_value_and_protocol() -> None:
    result = CliRunner().invoke(
        cli.app, ["fid", "--images", "digits:train", "--reference", "digits:score", "--features", "digits", "--json"]
    )
    content = json.loads(result.output)
    assert 0 < content["value"] < 50
    assert content["protocol"]["features"] == "digits"


def test_an_interrupted_folder_is_completed_with_the_same_images(table: Path, tmp_path: Path) -> None:
    common = ["sample", "--model", "digits", "--steps", "3", "--count", "9", "--out", str(tmp_path / "a")]
    run(*common)
    before = {p.name: p.read_bytes() for p in (tmp_path / "a").glob("*.png")}
    for name in ("000003.png", "000008.png"):
        (tmp_path / "a" / name).unlink()
    run(*common)
    assert {p.name: p.read_bytes() for p in (tmp_path / "a").glob("*.png")} == before
    with pytest.raises(InputError, match=r"not empty.*--overwrite"):
        run(*common, "--seed", "1")


def test_overwriting_with_other_settings_leaves_no_old_image(tmp_path: Path) -> None:
    def sample(*flags: str) -> set[str]:
        run("sample", "--model", "digits", "--out", str(tmp_path / "a"), *flags)
        return {p.name for p in (tmp_path / "a").glob("*.png")}

    assert len(sample("--count", "6", "--steps", "2")) == 6
    assert sample("--count", "2", "--steps", "3", "--overwrite") == {"000000.png", "000001.png"}
    sample("--count", "6", "--steps", "3")
    run("sample", "--model", "digits", "--out", str(tmp_path / "b"), "--count", "6", "--steps", "3")
    for name in (f"{i:06d}.png" for i in range(6)):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_unusable_checkpoints_are_found_before_the_work(tmp_path: Path) -> None:
    out = str(tmp_path / "t.safetensors")
    with pytest.raises(InputError, match="two files"):
        run(*ESTIMATE, "--out", out, "--checkpoint", out)
    with pytest.raises(InputError, match="none of the output does not exist"):
        run(*ESTIMATE, "--out", out, "--checkpoint", str(tmp_path / "none" / "c"))
    assert list(tmp_path.iterdir()) == []


def test_outputs_are_not_overwritten_unasked(table: Path, tmp_path: Path) -> None:
    content = table.read_bytes()
    with pytest.raises(InputError, match=r"exists already.*--overwrite"):
        run(*ESTIMATE, "--out", str(table), "--seed", "1")
    with pytest.raises(InputError, match="does not exist"):
        run(*ESTIMATE, "--out", str(tmp_path / "no" / "t.safetensors"))
    assert table.read_bytes() == content


def _bad_sources(folder: Path) -> dict[str, str]:
    """Image sources that must be refused, and a word of what is said."""
    (folder / "empty").mkdir()
    (folder / "corrupt").mkdir()
    (folder / "corrupt" / "a.png").write_bytes(b"\x89PNG\r\n\x1a\n and nothing more")
    (folder / "large").mkdir()
    Image.fromarray(np.zeros((9, 9), np.uint8)).save(folder / "large" / "a.png")
    np.save(folder / "range.npy", np.full((20, 1, 8, 8), 3.0, np.float32))
    np.save(folder / "type.npy", np.full((20, 1, 8, 8), 3, np.int64))
    np.save(folder / "channels.npy", np.zeros((20, 3, 8, 8), np.uint8))
    with zipfile.ZipFile(folder / "escape.zip", "w") as archive:
        archive.writestr("../evil.png", b"")
    (folder / "not.zip").write_bytes(b"no archive")
    return {
        "missing": "missing",
        "empty": "empty",
        "corrupt": "a.png",
        "large": "shape",
        "range.npy": "range",
        "type.npy": "int64",
        "channels.npy": "shape",
        "escape.zip": "evil",
        "not.zip": "not.zip",
    }


def test_bad_image_sources_are_refused_and_nothing_is_written(tmp_path: Path) -> None:
    sources = tmp_path / "sources"
    sources.mkdir()
    out = tmp_path / "out"
    out.mkdir()
    for name, said in _bad_sources(sources).items():
        with pytest.raises(InputError, match=said) as error:
            run(*ESTIMATE, "--images", str(sources / name), "-o", str(out / "t.safetensors"))
        assert "\n" not in str(error.value), name
        assert list(out.iterdir()) == [], name


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ("--steps 0", "--steps 0 "),
        ("--steps 1001", "from 1 to 1000"),
        ("--steps 1,1,5", "rise strictly"),
        ("--steps 5,1", "rise strictly"),
        ("--eta 1.5", "outside"),
        ("--covariance beta --eta 0.5", "--eta 1"),
        ("--covariance analytic", "needs a variance table"),
        ("--count 0", "--count 0 "),
        ("--final-noise-cap -1", "positive"),
        ("--device tpu", "device"),
        ("--batch-size 0", "--batch-size 0 "),
    ],
)
def test_bad_sampling_flags(tmp_path: Path, flags: str, said: str) -> None:
    with pytest.raises(InputError, match=said):
        run("sample", "--model", "digits", "--out", str(tmp_path / "x"), *flags.split())
    assert list(tmp_path.iterdir()) == []


def test_bad_tables(table: Path, tmp_path: Path) -> None:
    content = table.read_bytes()
    flipped = bytearray(content)
    flipped[-5] ^= 1
    for name, data in (("cut", content[:-100]), ("flipped", bytes(flipped)), ("text", b"hello")):
        (tmp_path / name).write_bytes(data)
        with pytest.raises(InputError, match="damaged"):
            run("show", "--table", str(tmp_path / name))
    with pytest.raises(InputError, match="no variance table"):
        run("show", "--table", str(tmp_path / "missing"))


def test_nan_from_the_network_keeps_the_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from diffusion_var.app.commands import estimate as command

    genuine, evaluate, given = command.open_model, NetworkRun.__call__, 0

    def counted(self: NetworkRun, x_t: torch.Tensor, n: Any, condition: Any = None) -> Posterior:
        nonlocal given
        given += len(x_t)  # of the run itself: what is evaluated to know the network by does not count
        return evaluate(self, x_t, n, condition)

    def broken(*arguments: object, **options: object) -> Model:
        model = genuine(*arguments, **options)  # type: ignore[arg-type]

        def nan_later(module: object, inputs: object, output: object) -> None:
            if given > 320:
                output.sample[3] = torch.nan  # type: ignore[attr-defined]

        model.denoiser.network.register_forward_hook(nan_later)  # type: ignore[attr-defined]
        return model

    monkeypatch.setattr(command, "open_model", broken)
    monkeypatch.setattr(NetworkRun, "__call__", counted)
    out = tmp_path / "t.safetensors"
    with pytest.raises(NumericalError, match=r"index n=\d+.*evaluations 320 to 384"):
        run(*ESTIMATE, "--out", str(out))
    assert not out.exists()
    assert out.with_name(out.name + ".partial").exists()
    monkeypatch.setattr(command, "open_model", genuine)
    run(*ESTIMATE, "--out", str(out))
    run(*ESTIMATE, "--out", str(tmp_path / "whole.safetensors"))
    assert out.read_bytes() == (tmp_path / "whole.safetensors").read_bytes()


@pytest.mark.slow
def test_control_c_says_how_to_go_on(tmp_path: Path) -> None:
    """Ctrl-C in the middle of a long estimate: exit code 130, no traceback, and the checkpoint is there."""
    out = tmp_path / "t.safetensors"
    # A test run in the background passes an ignored SIGINT on to its children: give this one Python's handler.
    start = (
        "import signal; signal.signal(signal.SIGINT, signal.default_int_handler);"
        "from diffusion_var.app.cli import main; main()"
    )
    flags = ["--model", "digits", "--images", "digits:table", "--tolerance", "0.0005", "-o", str(out)]
    running = subprocess.Popen(
        [sys.executable, "-c", start, "estimate", *flags], stderr=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert running.stderr is not None
    os.set_blocking(running.stderr.fileno(), True)
    seen, deadline = b"", time.monotonic() + 90
    while b"eval/s" not in seen and time.monotonic() < deadline:
        seen += os.read(running.stderr.fileno(), 4096)
    time.sleep(1.0)
    running.send_signal(signal.SIGINT)
    _, errors = running.communicate(timeout=60)
    assert running.returncode == 130
    assert b"Traceback" not in errors
    assert b"continues" in errors
    assert out.with_name(out.name + ".partial").exists()
    assert not out.exists()


def test_patterns_of_images_are_read_quoted_or_not(tmp_path: Path) -> None:
    dv.data.save_images(dv.data.digits_splits().score.images[:6], tmp_path / "imgs")
    pattern = tmp_path / "imgs" / "*.png"
    result = CliRunner().invoke(cli.app, ["fid", str(pattern), "digits:table", "--features", "digits", "--json"])
    assert json.loads(result.output)["protocol"]["images"] == 6
    files = [str(file) for file in sorted(pattern.parent.glob("*.png"))]
    unquoted = CliRunner().invoke(cli.app, ["fid", *files, "digits:table", "--features", "digits", "--json"])
    assert json.loads(unquoted.output) == json.loads(result.output)
    for command in (["fid"], ["estimate", "digits"]):
        with pytest.raises(InputError, match=r"quote a pattern of images, '.*', so that"):
            run(*command, files[0], *files[2:])
