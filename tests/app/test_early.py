"""What is wrong is found before a model is loaded: loading one takes up to a minute, and here it fails the test."""

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from places import ROOT
from typer.testing import CliRunner

from diffusion_var.app import cli
from diffusion_var.errors import InputError
from diffusion_var.metrics import networks
from diffusion_var.models.denoiser import Denoiser
from diffusion_var.models.pretrained import load

# The commands with a model, each with what it needs; what is given twice counts the second time.
COMMANDS = {
    "estimate": "estimate --model digits --images digits:table -o OUT/t.safetensors",
    "sample": "sample --model digits -o OUT/s --steps 2 --count 2",
    "nll": "nll --model digits --images digits:score --covariance beta -o OUT/n.json",
    "steps": "steps --objective bound --model digits --images digits:score --covariance beta",
    "restore": "restore --model digits --images digits:score --operator box -o OUT/r",
    "train-head": "train-head --model digits --table TABLE --images digits:train -o OUT/h",
    "advise": "advise --model digits --images digits:score",
    "compare": "compare --model digits --steps 2 --seeds 0 --count 2 -o OUT/c",
}
EVERY = tuple(COMMANDS)
READERS = ("estimate", "nll", "steps", "restore", "train-head")
WRONG: list[tuple[tuple[str, ...], str, str]] = [
    (EVERY, "--model LONG", "longer than this system allows"),
    (EVERY, "--prompts LONG", "longer than this system allows"),
    (EVERY, "--latents LONG", "longer than this system allows"),
    (EVERY, "--config LONG", "longer than this system allows"),
    (READERS, "--images LONG", "longer than this system allows"),
    (READERS, "--images LONG.npz", "longer than this system allows"),
    (READERS, "--labels LONG.npz:y", "longer than this system allows"),
    (("estimate", "sample", "nll", "train-head", "compare"), "-o LONG", "longer than this system allows"),
    (("estimate", "sample", "nll", "train-head", "compare"), "-o LONG/x", "longer than this system allows"),
    (("estimate", "nll"), "-o OUT/ALMOST", "longer than this system allows"),
    (("estimate", "nll", "steps"), "--checkpoint LONG", "longer than this system allows"),
    (("sample", "nll", "compare"), "--table LONG", "longer than this system allows"),
    (("compare",), "--reference LONG", "longer than this system allows"),
    (("compare",), "--features LONG.safetensors", "longer than this system allows"),
    (EVERY, "--device cuda:99", "cuda"),
    (EVERY, "--device mps", "mps"),
    (EVERY, "--device tpu", "'tpu' is not known; use cpu"),
    (EVERY, "--prompts OUT/none.txt", "no file of --prompts"),
    (EVERY, "--prompts FIFO", "pipe"),
    (EVERY, "--data-range 1,-1", "--data-range"),
    (EVERY, "--unconditional 3", "--guidance-scale 1 means none"),
    (EVERY, "--model OUT/none", "no model folder"),
    (EVERY, "--model ~/no-such-model", "no model folder"),
    (READERS, "--images OUT/none", "no file or folder"),
    (READERS, "--images ~/no-such-folder", "no file or folder"),
    (READERS, "--images EMPTY", "holds no images"),
    (READERS, "--images digits:none", "no split"),
    (READERS, "--images digits", "choose one of digits:train, digits:table, digits:score"),
    (("restore",), "-o LONG", "longer than this system allows"),
    (("restore",), "--table LONG --covariances dct", "longer than this system allows"),
    (("restore",), "--measurements LONG", "longer than this system allows"),
    (("restore",), "--measurements OUT/none.npz", "no file of measurements"),
    (("restore",), "--table OUT/none", "no variance table"),
    (("restore",), "--covariances dct", "needs a variance table"),
    (("restore",), "--covariances head", "needs a trained head"),
    (("restore",), "--covariances pigdm,pigdm", "none twice"),
    (("restore",), "--steps 1001", "1000"),
    (("restore",), "--draws 0", "--draws 0 must be"),
    (("restore",), "--operator nothing", "'nothing' is not known; use inpainting"),
    (("restore",), "--operator inpainting:0.5", "ARGUMENT=VALUE"),
    (("restore",), "--guidance III", "--guidance: input should be 'I' or 'II'"),
    (("restore",), "-o FILE/x", "is a file"),
    (("restore",), "-o FULL", "not empty"),
    (("sample",), "-o OUT/s.npy", "neither a folder nor a file ending in .npz"),
    (("estimate",), "--structures isotropic,pixle", "--structures: input should be 'isotropic'"),
    (("estimate",), "--tolerance abc", "--tolerance: input should be a valid number, but got 'abc'"),
    (EVERY, "--data-range 3", "--data-range 3.0 must be a pair of finite numbers, low < high."),
    (READERS, "--images digits:table --channels 3", "--channels 3 is for images of files"),
    (READERS, "--images FIFO", ""),
    (READERS, "--labels OUT/none.npz:y", "no file of --labels"),
    (READERS, "--latents FILE", "is a file"),
    (("estimate",), "--max-evaluations 10", "--max-evaluations 10 is too small"),
    (("estimate",), "--tolerance 0", "--tolerance 0"),
    (("estimate",), "--indices 1,5000", "--indices"),
    (("estimate",), "-o OUT/no/t.safetensors", "does not exist"),
    (("estimate",), "-o FILE", "exists already"),
    (("estimate", "nll", "steps"), "--checkpoint OUT/no/c", "does not exist"),
    (("sample", "nll"), "--covariance analytic --table OUT/none", "no variance table"),
    (("sample",), "--table OUT/none", "no variance table"),
    (("sample",), "--head OUT/none", "no variance head"),
    (("sample", "nll", "steps"), "--covariance head", "needs a trained head"),
    (("sample", "nll"), "--covariance analytic", "needs a variance table"),
    (("sample", "nll"), "--steps 1001", "1000"),
    (("sample", "nll"), "--steps 5,1", "rise"),
    (("sample",), "-o FILE/x", "is a file"),
    (("sample",), "-o FULL", "not empty"),
    (("nll",), "-o FILE", "exists already"),
    (("train-head",), "--table OUT/none", "no variance table"),
    (("train-head",), "--held-out OUT/none", "no file or folder"),
    (("train-head",), "-o FILE/x", "is a file"),
    (("train-head",), "-o FULL", "not empty"),
    (("compare",), "--table OUT/none", "no variance table"),
    (("compare",), "--table-images OUT/none", "no file or folder"),
    (("compare",), "--reference OUT/none", "no file or folder"),
    (("compare",), "--reference OUT/none.npz", "no reference"),
    (("compare",), "--baseline OUT/none", "no file or folder"),
    (("compare",), "--metrics bits_per_dim --likelihood-images OUT/none", "no file or folder"),
    (("compare",), "--features OUT/none.safetensors", "no feature file"),
    (("compare",), "--max-evaluations 10", "--max-evaluations 10 is too small"),
    (("compare",), "--steps 1001", "1000"),
    (("compare",), "-o FILE/x", "is a file"),
    (("compare",), "-o FULL", "not empty"),
]
CASES = [(command, flags, said) for commands, flags, said in WRONG for command in commands]


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Files and folders that are in the way, or are not what is needed; and a table."""
    root = tmp_path_factory.mktemp("places")
    for name in ("out", "empty", "full"):
        (root / name).mkdir()
    (root / "file").write_text("x")
    (root / "full" / "a.txt").write_text("x")
    os.mkfifo(root / "fifo.png")
    table = root / "table.safetensors"
    flags = f"estimate --model digits --images digits:table --indices 1,1000 --tolerance 9 -q -o {table}"
    assert CliRunner().invoke(cli.app, flags.split()).exit_code == 0
    return {name: root / name.lower() for name in ("OUT", "EMPTY", "FULL", "FILE")} | {
        "LONG": root / ("long" * 80),
        "ALMOST": Path("almost" * 42),  # 252 bytes: a name, but none with .partial behind it
        "FIFO": root / "fifo.png",
        "TABLE": table,
    }


def filled(line: str, places: dict[str, Path]) -> list[str]:
    for name, path in places.items():
        line = line.replace(name, str(path))
    return line.split()


def test_every_command_with_a_model_is_looked_at() -> None:
    with_model = {name for name, (kind, _) in cli.COMMANDS.items() if "guidance_scale" in kind.__dataclass_fields__}
    assert with_model == {*COMMANDS}


@pytest.mark.parametrize(("command", "flags", "said"), CASES, ids=[f"{c} {f}" for c, f, _ in CASES])
def test_no_model_is_loaded(
    command: str, flags: str, said: str, places: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    def loaded(*arguments: Any, **options: Any) -> None:
        pytest.fail("a model was loaded before this was found")

    if "--model" not in flags:
        monkeypatch.setattr(Denoiser, "from_pretrained", loaded)
    monkeypatch.setattr(load, "load_component", loaded)
    home = places["OUT"]
    monkeypatch.setenv("HOME", str(home))
    result = CliRunner().invoke(cli.app, [*filled(COMMANDS[command], places), *filled(flags, places)])
    assert isinstance(result.exception, InputError), (result.output, result.exception)
    assert said in str(result.exception)
    assert all(line.isprintable() for line in str(result.exception).split("\n"))
    assert list(home.iterdir()) == []  # nothing is left behind
    assert not Path("~").exists()


@pytest.mark.parametrize("command", ["fid", "stats"])
@pytest.mark.parametrize("name", ["OUT/none", "OUT/none.npz", "EMPTY", "FIFO"])
def test_no_feature_network_is_loaded(
    command: str, name: str, places: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    def loaded(*arguments: Any) -> None:
        pytest.fail("a network was loaded before this was found")

    monkeypatch.setattr(networks, "_by_name", loaded)
    line = f"{command} {name} " + ("digits:score" if command == "fid" else "-o OUT/s.npz")
    result = CliRunner().invoke(cli.app, filled(line, places))
    assert isinstance(result.exception, InputError), (result.output, result.exception)


# ---- samples that no picture can hold --------------------------------------------------------------------------------


@pytest.mark.parametrize("out", ["s.npz", "s"])
@pytest.mark.parametrize("channels", [2, 4])
def test_samples_that_cannot_be_written_are_not_made(
    channels: int, out: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel

    from diffusion_var.sampling.sampler import Sampler

    network = UNet2DModel(
        8,
        channels,
        channels,
        block_out_channels=(8,),
        norm_num_groups=4,
        layers_per_block=1,
        down_block_types=("DownBlock2D",),
        up_block_types=("UpBlock2D",),
    )
    DDPMPipeline(network, DDPMScheduler(10)).save_pretrained(tmp_path / "m")
    monkeypatch.setattr(Sampler, "stream", lambda *_, **__: pytest.fail("samples were made"))
    for line in (f"sample --model {tmp_path}/m -o {tmp_path}/{out} --steps 2",):
        result = CliRunner().invoke(cli.app, line.split())
        assert isinstance(result.exception, InputError)
        assert f"({channels}, 8, 8), but pictures are" in str(result.exception)
    assert not (tmp_path / out).exists()


# ---- the home folder -------------------------------------------------------------------------------------------------


def test_a_quoted_home_folder_is_the_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import diffusion_var as dv

    home, here = tmp_path / "home", tmp_path / "here"
    home.mkdir()
    here.mkdir()
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.chdir(here)
    np.savez(home / "x.npz", images=np.zeros((4, 8, 8, 1), np.uint8))
    (home / "c.yaml").write_text(
        "model: ~/digits\nimages: ~/x.npz\nout: ~/t.safetensors\nindices: [1, 500, 1000]\ntolerance: 9\n"
    )
    (home / "digits").symlink_to(ROOT / "diffusion_var" / "assets" / "digits")
    runner = CliRunner()
    for line in (
        "estimate --config ~/c.yaml",
        "show ~/t.safetensors --plot ~/v.png",
        "sample --model ~/digits --table ~/t.safetensors --steps 1,500,1000 --count 2 -o ~/s.npz",
        "sample --model ~/digits --steps 1 --count 2 -o ~/png",
        "stats ~/png --features digits -o ~/stats.npz",
        "fid ~/s.npz ~/stats.npz --features digits",
    ):
        result = runner.invoke(cli.app, line.split())
        assert result.exception is None, (line, result.output, result.exception)
    table = dv.VarianceTable.load("~/t.safetensors")
    table.save("~/u.safetensors")
    denoiser = dv.Denoiser.from_pretrained("~/digits", device="cpu")
    images = dv.data.read_images("~/x.npz")
    assert len(dv.data.open_images("~/x.npz:images[:2]")) == 2
    dv.estimate(denoiser, images, 9.0, indices=[1], checkpoint="~/k.partial", progress=False)
    dv.metrics.FeatureStatistics.load("~/stats.npz").save("~/again.npz")
    dv.AnalyticScheduler.from_table(table, _scheduler()).save_pretrained("~/scheduler")
    made = {
        "t.safetensors",
        "v.png",
        "s.npz",
        "png",
        "stats.npz",
        "u.safetensors",
        "k.partial",
        "again.npz",
        "scheduler",
    }
    assert made <= {path.name for path in home.iterdir()}
    assert list(here.iterdir()) == []


def _scheduler() -> Any:
    from diffusers import DDPMScheduler

    return DDPMScheduler.from_pretrained(ROOT / "diffusion_var" / "assets" / "digits" / "scheduler")
