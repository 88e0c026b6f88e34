"""What reaches a terminal: in any encoding, without escape sequences, and without noise when it goes away."""

import os
import re
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from diffusion_var.app import cli
from diffusion_var.errors import InputError
from diffusion_var.models.denoiser import Denoiser

ODD = "a\x1b[31mb\x1b]0;owned\x07é\u202e"


def invoke(*arguments: str) -> str:
    result = CliRunner().invoke(cli.app, list(arguments))
    assert result.exception is None, (result.output, result.exception)
    return result.output


# ---- encodings ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("encoding", ["cp1252", "ascii"])
def test_every_help_and_message_can_be_shown_in_any_encoding(encoding: str, tmp_path: Path) -> None:
    """The streams are those of a terminal of that encoding; one process does it all, as starting one takes a while."""
    code = """
import io, os, sys
from diffusion_var.app.cli import COMMANDS, app
from diffusion_var.app.flags import run_app

lines = [["help"], *([name, "-h"] for name in COMMANDS), ["show", "β̃猫"]]
lines += [["estimate", "--model", "β̃"], ["fid", "猫", "猫"]]
lines += [["sample", "--model", "digits", "--steps", "1", "--count", "1", "-o", sys.argv[1] + "/β̃.npz"], ["-V"]]
for line in lines:
    sys.argv = ["diffusion-var", *line]
    try:
        run_app(app)
    except SystemExit as end:
        assert end.code in (0, 2), (line, end.code)
    print("|" + line[0])
"""
    environment = {**os.environ, "PYTHONIOENCODING": encoding, "PYTHONUTF8": "0"}
    command = [sys.executable, "-c", code, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, env=environment, timeout=200)
    assert done.returncode == 0, done.stderr.decode(errors="replace")
    assert b"Traceback" not in done.stderr
    assert done.stdout.count(b"|") > 12
    sentences = [line for line in done.stderr.splitlines() if line.startswith(b"error: ")]
    assert len(sentences) == 3
    assert b"\\u732b" in sentences[0]


# ---- a reader who leaves --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("line", ["--help", "help estimate", "nll -h", "-V", "steps TABLE"])
def test_a_closed_pipe_is_no_error(line: str, tmp_path: Path) -> None:
    table = tmp_path / "t.safetensors"
    if "TABLE" in line:
        flags = f"estimate --model digits --images digits:table --indices 1,500,1000 --tolerance 9 -q -o {table}"
        invoke(*flags.split())
        line = line.replace("TABLE", f"{table} --steps 2")
    reading, writing = os.pipe()
    os.close(reading)
    command = [sys.executable, "-m", "diffusion_var", *line.split()]
    done = subprocess.run(command, stdout=writing, stderr=subprocess.PIPE, timeout=120)
    os.close(writing)
    assert done.stderr == b""
    assert done.returncode == 1


# ---- names ----------------------------------------------------------------------------------------------------------


def test_names_do_not_steer_the_terminal(tmp_path: Path) -> None:
    folder = tmp_path / ODD
    folder.mkdir()
    shown = invoke("sample", "--model", "digits", "--steps", "1", "--count", "2", "-o", str(folder / f"{ODD}.npz"))
    shown += invoke("stats", str(folder / f"{ODD}.npz"), "--features", "digits", "-o", str(folder / "s.npz"))
    shown += invoke("fid", str(folder / f"{ODD}.npz"), "digits:score", "--features", "digits")
    shown += invoke("fid", str(folder / f"{ODD}.npz"), "digits:score", "--features", "digits", "--json")
    assert r"\x1b[31m" in shown
    assert all(line.isprintable() for line in re.split(r"[\r\n]", shown)), ascii(shown)
    for line in (["show", ODD], ["fid", ODD, "x\ny"], ["estimate", ODD, "x"], ["sample", "--model", ODD, "-o", "x"]):
        result = CliRunner().invoke(cli.app, line)
        assert isinstance(result.exception, InputError)
        assert str(result.exception).isprintable()
        assert "\\x1b" in str(result.exception)


def test_long_quotations_are_cut() -> None:
    for line in (["fid", "y " * 100, "z"], ["estimate", "--dtype", "w" * 3000], ["show", *["v"] * 2000]):
        result = CliRunner().invoke(cli.app, line)
        assert isinstance(result.exception, InputError)
        assert max(map(len, str(result.exception).splitlines())) <= 1000


# ---- habits ---------------------------------------------------------------------------------------------------------


def test_help_has_several_names() -> None:
    assert invoke("-h") == invoke("--help")
    assert "Usage: diffusion-var estimate" in invoke("help", "estimate")
    assert CliRunner().invoke(cli.app, ["help", "estimat"]).exit_code == 2
    assert invoke("estimate", "-h") == invoke("estimate", "--help")


def test_the_list_of_commands_says_whole_sentences() -> None:
    listed = invoke("--help").partition("Commands:")[2].strip().splitlines()
    assert len(listed) == len(cli.COMMANDS) + 1
    assert all(line.endswith((".", "…")) and not line.endswith("...") for line in listed)
    assert set(cli.IN_SHORT) <= set(cli.COMMANDS)


def test_helps_name_options_as_they_are_given() -> None:
    """No underscores of Python's names, and lists where lists are taken."""
    for command, (kind, _) in cli.COMMANDS.items():
        shown = invoke(command, "--help")
        compound = {name for name in kind.__dataclass_fields__ if "_" in name and name != "bits_per_dim"}
        assert compound & set(re.findall(r"[a-z]+(?:_[a-z]+)+", shown)) == set(), command
        assert re.search(r"--data-range(?! X,X,…)", shown) is None
        assert "{}" not in shown


@pytest.mark.parametrize("flag", ["--version", "-V"])
def test_version(flag: str) -> None:
    assert re.fullmatch(r"diffusion-var \d+\.\d+\.\d+\n", invoke(flag))


@pytest.mark.parametrize("line", ["--quiet sample REST", "sample REST --quiet", "sample REST -q"])
def test_quiet_shows_no_progress(line: str, tmp_path: Path) -> None:
    rest = f"--model digits --steps 2 --count 2 -o {tmp_path}/s.npz"
    assert CliRunner().invoke(cli.app, line.replace("REST", rest).split()).stderr == ""
    loud = CliRunner().invoke(cli.app, f"sample {rest} --overwrite".split()).stderr.splitlines()
    assert "0/4" in loud[0]
    assert "4/4" in loud[-1]


def test_completion_knows_commands_and_options() -> None:
    def completed(words: str) -> str:
        environment = {"_DIFFUSION_VAR_COMPLETE": "complete_bash", "COMP_WORDS": f"diffusion-var {words}"}
        environment["COMP_CWORD"] = str(len(words.split()))
        code = "import sys; sys.argv[0] = 'diffusion-var'; from diffusion_var.app.cli import main; main()"
        return subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, env={**os.environ, **environment}, timeout=60
        ).stdout

    assert completed("esti").split() == ["estimate"]
    assert "--tolerance" in completed("estimate --tol")


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("estimate digits imgs", "say --model digits --images imgs"),
        ("estimate digits imgs out.safetensors", "say --model digits --images imgs --out out.safetensors"),
        ("estimate --model digits imgs", "say --images imgs"),
        ("estimate a b c d", "see diffusion-var estimate --help"),
        ("fid a b c", "see diffusion-var fid --help"),
        ("sample digits", "say --model digits"),
    ],
)
def test_loose_words_get_a_hint(line: str, said: str) -> None:
    result = CliRunner().invoke(cli.app, line.split())
    assert isinstance(result.exception, InputError)
    assert said in str(result.exception)


@pytest.mark.parametrize(
    "line",
    [
        "estimate --model digits --images FILES -o t.safetensors",
        "estimate digits FILES t.safetensors",
        "nll --model digits --images FILES --covariance beta",
        "steps --objective bound --model digits --images FILES",
        "stats FILES -o s.npz",
        "stats --images FILES -o s.npz",
        "fid FILES digits:score",
        "fid digits:score FILES",
        "fid --images FILES --reference digits:score",
        "train-head --model digits --table t --images FILES -o h",
        "train-head --model digits --table t --images digits:train --held-out FILES -o h",
        "train-unet --images FILES -o u",
        "train-features --images FILES -o f.safetensors",
        "compare --reference FILES",
    ],
)
@pytest.mark.parametrize(
    ("files", "pattern"),
    [
        ("i/a.png i/b.png", "i/*.png"),
        ("i/a.png i/b.png i/c.png i/d.png", "i/*.png"),
        ("i/a.png i/b.jpg i/c.webp", "i/*"),
        ("/x/i/a.JPG /x/i/k/b.JPG /x/j/c.JPG", "/x/**/*.JPG"),
        ("a.png b.png c.png", "*.png"),
    ],
)
def test_a_pattern_that_the_shell_has_replaced_is_to_be_quoted(line: str, files: str, pattern: str) -> None:
    result = CliRunner().invoke(cli.app, line.replace("FILES", files).split())
    assert isinstance(result.exception, InputError)
    assert f"quote a pattern of images, '{pattern}', so that it stays one word" in str(result.exception)
    assert str(result.exception).isprintable()


def test_a_picture_to_write_is_no_part_of_a_pattern() -> None:
    result = CliRunner().invoke(cli.app, ["show", "t.safetensors", "x.png", "--plot", "y.png"])
    assert "pattern" not in str(result.exception)


def test_quoted_patterns_are_words_like_others() -> None:
    for line in (
        ["fid", "i/*.png", "j/*.png"],
        ["stats", "i/[ab].png", "-o", "s.npz"],
        ["fid", "a.png", "digits:score"],
    ):
        result = CliRunner().invoke(cli.app, line)
        assert isinstance(result.exception, InputError)
        assert "one word" not in str(result.exception)


# ---- what has gone wrong, in full ------------------------------------------------------------------------------------


@pytest.mark.parametrize("place", ["{} sample", "sample {}"])
def test_debug_shows_where_a_network_failed(
    place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def deep_inside(*_: object) -> None:
        raise RuntimeError("CUDA error: device-side assert triggered")

    whole = Denoiser.from_pretrained

    def spoilt(*arguments: Any, **options: Any) -> Denoiser:
        denoiser = whole(*arguments, **options)
        denoiser.network.mid_block.register_forward_hook(deep_inside)  # type: ignore[attr-defined]
        return denoiser

    def said(flag: str) -> str:
        line = f"diffusion-var {place.format(flag)} --model digits --steps 2 --count 2 -q -o {tmp_path}/s.npz"
        monkeypatch.setattr(sys, "argv", line.split())
        with pytest.raises(SystemExit) as end:
            cli.main()
        assert end.value.code == 2
        return capsys.readouterr().err

    monkeypatch.setattr(Denoiser, "from_pretrained", spoilt)
    monkeypatch.setattr(warnings, "showwarning", warnings.showwarning)  # which a program sets for itself
    brief, full = said(""), said("--debug")
    assert "Traceback" not in brief
    assert len(brief.splitlines()) == 1
    assert "device-side assert triggered" in brief
    assert "--debug" in brief
    assert full.startswith("Traceback")
    assert "in deep_inside" in full
    assert "direct cause" in full
    assert full.endswith(brief)


def test_debug_shows_where_input_was_refused() -> None:
    brief = CliRunner().invoke(cli.app, ["show", "nowhere"])
    full = CliRunner().invoke(cli.app, ["show", "nowhere", "--debug"])
    assert "Traceback" not in brief.stderr
    assert full.stderr.startswith("Traceback")
    assert "documents.py" in full.stderr
    assert full.stderr.rstrip().endswith(str(brief.exception))
    assert str(full.exception) == str(brief.exception)


@pytest.mark.parametrize("name", ["fp16", "half", "float16", "FP16", "torch.float16", "bf16", "fp32", "float32"])
def test_precisions_have_several_names(name: str) -> None:
    from diffusion_var.app.config import load_options
    from diffusion_var.app.options import SampleOptions

    found = load_options(SampleOptions, {"model": "m", "out": "o", "dtype": name})
    assert found.dtype == {"f": "float", "h": "float", "t": "float", "b": "bfloat"}[name[0].lower()] + (
        "32" if "32" in name else "16"
    )
    with pytest.raises(InputError, match="dtype"):
        load_options(SampleOptions, {"model": "m", "out": "o", "dtype": "fp8"})


def test_a_table_alone_implies_the_analytic_covariance(tmp_path: Path) -> None:
    table = tmp_path / "t.safetensors"
    flags = f"estimate --model digits --images digits:table --indices 1,1000 --tolerance 9 -q -o {table}"
    invoke(*flags.split())
    common = f"sample --model digits --steps 1,1000 --count 2 -q --table {table}"
    invoke(*common.split(), "-o", f"{tmp_path}/a.npz")
    invoke(*common.split(), "--covariance", "analytic", "-o", f"{tmp_path}/b.npz")
    invoke(*common.split()[:-2], "-o", f"{tmp_path}/c.npz")
    a, b, c = (np.load(tmp_path / f"{name}.npz")["images"] for name in "abc")
    assert (a == b).all()
    assert (a != c).any()
