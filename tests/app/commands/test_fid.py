"""The commands stats and fid: what they print and write, flags or none, and one sentence for every mistake."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from diffusion_var.app import cli
from diffusion_var.data.digits import digits_splits
from diffusion_var.data.images import save_images, save_npz
from diffusion_var.errors import DiffusionVarWarning, InputError
from diffusion_var.metrics import FeatureStatistics, evaluate, fid

SPLITS = digits_splits()
DIGITS = ["--features", "digits"]


def run(*arguments: str) -> str:
    """Standard output of a command in this process; its InputError comes out as it is."""
    result = CliRunner().invoke(cli.app, list(arguments))
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == 0, result.output
    return result.stdout


def scores(*arguments: str) -> dict[str, dict]:  # type: ignore[type-arg]
    lines = [json.loads(line) for line in run("fid", *arguments, *DIGITS, "--json").splitlines()]
    return {line["metric"]: line for line in lines}


def test_statistics_are_written_and_scored_against(tmp_path: Path) -> None:
    out = tmp_path / "ref.npz"
    printed = run("stats", "digits:score", "-o", str(out), *DIGITS)
    assert "count: 500" in printed
    assert f"written: statistics of 500 images in {out}" in printed
    expected = fid(SPLITS.train.images, SPLITS.score.images, "digits")
    found = scores("digits:train", str(out))["fid"]
    assert found["value"] == pytest.approx(expected.value, rel=1e-9)
    for key in ("features_sha256", "reference_sha256", "images", "reference", "number_format", "resize", "colour"):
        assert found["protocol"][key] == expected.protocol[key], key
    with np.load(out) as content:
        assert {"mu", "sigma"} <= set(content.files)
    assert FeatureStatistics.load(out).origin["name"] == "digits:score"  # type: ignore[index]


def test_arguments_with_and_without_flags_are_the_same(tmp_path: Path) -> None:
    a, b = "digits:train", "digits:score"
    expected = run("fid", a, b, *DIGITS)
    for arguments in (
        ["--images", a, "--reference", b],
        [a, "--reference", b],
        ["--images", a, b],
        [b, "--images", a],
    ):
        assert run("fid", *arguments, *DIGITS) == expected
    assert run("fid", b, a, *DIGITS) != expected
    with pytest.raises(InputError, match="reference is given twice"):
        run("fid", a, b, *DIGITS, "--reference", b)
    with pytest.raises(InputError, match=r"reference: is missing; give it as --reference"):
        run("fid", a)
    config = tmp_path / "c.yaml"
    config.write_text(f"images: {a}\nreference: nowhere\nfeatures: digits\n")
    assert run("fid", "--reference", b, "--config", str(config)) == expected


def test_prints_the_scores_and_their_protocol_once() -> None:
    printed = run("fid", "digits:train", "digits:score", *DIGITS, "--metrics", "kid,fid,recall", "--bootstrap", "20")
    lines = printed.splitlines()
    assert [line.split(":")[0] for line in lines[:3]] == ["KID", "FID", "recall"]
    assert "±" in lines[0]
    assert " to " in lines[1]
    assert "level 0.95" in lines[1]
    for key in ("features: digits", "images: 997", "reference: 500", "images_name: digits:train", "versions"):
        assert printed.count(f"  {key}") == 1, key


def test_json_holds_what_evaluate_gives() -> None:
    expected = evaluate(
        SPLITS.train.images,
        SPLITS.score.images,
        ("fid", "kid", "precision", "density"),
        "digits",
        seed=3,
        bootstrap=20,
        extrapolate=True,
    )
    flags = ["--metrics", "fid,kid,precision,density", "--seed", "3", "--bootstrap", "20", "--extrapolate"]
    found = scores("digits:train", "digits:score", *flags)
    assert list(found) == list(expected)
    for metric, score in expected.items():
        assert found[metric]["value"] == pytest.approx(score.value, rel=1e-9)
        assert found[metric]["standard_error"] == pytest.approx(score.standard_error)
        assert found[metric]["protocol"]["parameters"] == score.protocol["parameters"]
    assert found["fid"]["interval"] == pytest.approx(expected["fid"].interval)


def test_corrupt_files_are_named_and_can_be_skipped(tmp_path: Path) -> None:
    save_images(SPLITS.train.images[:60], tmp_path / "images")
    broken = tmp_path / "images" / "000030.png"
    broken.write_bytes(broken.read_bytes()[:60])
    out = tmp_path / "s.npz"
    with pytest.raises(InputError, match=r"000030\.png.*--skip-corrupt"):
        run("stats", str(tmp_path / "images"), "-o", str(out), *DIGITS)
    assert not out.exists()
    with pytest.raises(InputError, match=r"000030\.png"):
        run("fid", str(tmp_path / "images"), "digits:score", *DIGITS)
    with pytest.warns(DiffusionVarWarning, match=r"1 corrupt .*000030\.png"):
        run("stats", str(tmp_path / "images"), "-o", str(out), *DIGITS, "--skip-corrupt")
    assert FeatureStatistics.load(out).count == 59
    with pytest.warns(DiffusionVarWarning, match=r"1 corrupt .*000030\.png"):
        found = scores(str(tmp_path / "images"), "digits:score", "--skip-corrupt")
    assert found["fid"]["protocol"]["images_skipped"] == 1
    assert found["fid"]["protocol"]["images"] == 59


def test_outputs_are_not_overwritten_unasked(tmp_path: Path) -> None:
    out = tmp_path / "s.npz"
    out.write_bytes(b"old")
    with pytest.raises(InputError, match=r"exists already.*--overwrite"):
        run("stats", "digits:score", "-o", str(out), *DIGITS)
    assert out.read_bytes() == b"old"
    run("stats", "digits:score", "-o", str(out), *DIGITS, "--overwrite")
    assert FeatureStatistics.load(out).count == 500
    with pytest.raises(InputError, match=r"\.npz"):
        run("stats", "digits:score", "-o", str(tmp_path / "s.txt"), *DIGITS)
    with pytest.raises(InputError, match="does not exist"):
        run("stats", "digits:score", "-o", str(tmp_path / "none" / "s.npz"), *DIGITS)
    assert [file.name for file in tmp_path.iterdir()] == ["s.npz"]


def test_a_failure_writes_nothing(tmp_path: Path) -> None:
    save_npz(SPLITS.train.images[:1], tmp_path / "one.npz")
    with pytest.raises(InputError, match="at least 2"):
        run("stats", str(tmp_path / "one.npz"), "-o", str(tmp_path / "s.npz"), *DIGITS)
    assert [file.name for file in tmp_path.iterdir()] == ["one.npz"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["digits:train", "nowhere.npz"], "nowhere.npz"),
        (["nowhere", "digits:train"], "nowhere"),
        (["digits:train", "digits:score", "--metrics", "fid,is"], "metrics"),
        (["digits:train", "digits:score", "--bootstrap", "2"], "bootstrap is 2; expected at least 20"),
        (["digits:train", "digits:score", "--batch-size", "0"], "--batch-size 0 must be a whole number of at least 1"),
        (["digits:train", "digits:score", "--device", "nonsense"], "device 'nonsense'"),
        (["digits:train", "digits:score", "--accept-weights", "ab"], "features"),
        (["digits:train", "digits:score", "--features", "unknown"], "unknown"),
    ],
)
def test_mistakes_are_one_sentence(arguments: list[str], said: str) -> None:
    with pytest.raises(InputError, match=said) as error:
        run("fid", *DIGITS, *arguments)
    assert "Traceback" not in str(error.value)


@pytest.mark.parametrize(
    ("mu", "sigma", "said"),
    [
        (np.zeros(64), np.zeros((64, 63)), r"\(64, 63\)"),
        (np.zeros(64), np.triu(np.ones((64, 64))), "not a covariance"),
        (np.zeros(64), np.full((64, 64), np.nan), "NaN"),
        (np.zeros(2048), np.eye(2048), "dimensions 64 and 2048"),
    ],
)
def test_bad_statistics(tmp_path: Path, mu: np.ndarray, sigma: np.ndarray, said: str) -> None:  # type: ignore[type-arg]
    np.savez(tmp_path / "bad.npz", mu=mu, sigma=sigma)
    with pytest.raises(InputError, match=said):
        run("fid", "digits:train", str(tmp_path / "bad.npz"), *DIGITS)


def test_help_says_it_all_and_imports_nothing_heavy() -> None:
    code = (
        "import sys, diffusion_var.app.cli as c\n"
        "from typer.testing import CliRunner\n"
        "for a in ('stats', 'fid', 'show'):\n"
        "    r = CliRunner().invoke(c.app, [a, '--help']); assert r.exit_code == 0, r.output; print(r.output)\n"
        "print([m for m in ('torch', 'numpy', 'diffusers', 'matplotlib', 'scipy', 'yaml') if m in sys.modules])\n"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out.strip().splitlines()[-1] == "[]"
    for words in ("[IMAGES] [REFERENCE]", "stats [OPTIONS] [IMAGES]", "[TABLE]", "--skip-corrupt", "--accept-weights"):
        assert words in out, words
