"""`nll` and `steps`, and what `show` says of a sampler's steps: files, numbers and refusals."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from many import many
from PIL import Image
from typer.testing import CliRunner

import diffusion_var as dv
from diffusion_var.app import cli
from diffusion_var.app.model import open_model
from diffusion_var.app.options import ModelOptions
from diffusion_var.data.digits import digits_splits
from diffusion_var.errors import InputError

NLL = ["nll", "--model", "digits", "--images", "digits:score[:20]"]


def run(*arguments: str) -> str:
    """A command in this process and what it prints; its InputError comes out as it is."""
    result = CliRunner().invoke(cli.app, list(arguments), catch_exceptions=True)
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == 0, result.output
    return result.stdout


@pytest.fixture(scope="module")
def denoiser() -> dv.Denoiser:
    return open_model("digits", ModelOptions()).denoiser


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory, denoiser: dv.Denoiser) -> Path:
    path = tmp_path_factory.mktemp("table") / "digits.safetensors"
    indices = [1, 5, 20, 60, 150, 400, 700, 1000]
    dv.estimate(denoiser, digits_splits().table.images, 9.0, indices=indices, progress=False).save(path)
    return path


@pytest.mark.parametrize("spacing", ["linspace", "optimal", "log_snr"])
def test_nll_is_bits_per_dim(table: Path, denoiser: dv.Denoiser, spacing: str) -> None:
    options = ["--table", str(table), "--structure", "dct", "--steps", "4", "--spacing", spacing, "--draws", "2"]
    found = json.loads(run(*NLL, *options, "--json", "--seed", "3").splitlines()[-1])
    held = dv.VarianceTable.load(table)
    spread = {"linspace": dv.steps.linspace, "log_snr": dv.steps.log_snr}
    steps = dv.steps.optimal(held, 4, structure="dct") if spacing == "optimal" else spread[spacing](held, 4)
    images = digits_splits().score.images[:20]
    expected = dv.bits_per_dim(denoiser, dv.Analytic(held, structure="dct"), images, steps, seed=3, draws=2)
    assert found["steps"] == steps
    assert found["value"] == pytest.approx(expected.value, rel=1e-6)
    assert found["noise_error"] == pytest.approx(expected.noise_error, rel=1e-4)
    assert found["unit"] == "bits/dim"


def test_nll_writes_its_parts_and_leaves_no_checkpoint(table: Path, tmp_path: Path) -> None:
    out = tmp_path / "nll.json"
    said = run(*NLL, "--table", str(table), "--steps", "3", "-o", str(out))
    content = json.loads(out.read_text())
    assert f"{content['value']:.4f}" in said
    assert sum(part["value"] for part in content["per_step"]) == pytest.approx(content["value"])
    assert content["covariance"]["table"] == dv.VarianceTable.load(table).digest
    assert [path.name for path in tmp_path.iterdir()] == ["nll.json"]
    content = out.read_bytes()
    assert "already finished" in run(*NLL, "--table", str(table), "--steps", "3", "-o", str(out))
    with pytest.raises(InputError, match=r"nll\.json exists already.*--overwrite"):
        run(*NLL, "--table", str(table), "--steps", "4", "-o", str(out))
    assert out.read_bytes() == content


def test_two_processes_measure_what_one_does_and_the_first_prints_it(table: Path, tmp_path: Path) -> None:
    of_table = ["--table", str(table), "--spacing", "optimal", "--decoder-images", "digits:table[:9]", "--steps", "3"]
    measured = ["steps", str(table), "--objective", "bound", *NLL[1:], "--indices", "1,400,1000", "--steps", "2"]
    for command in ([*NLL, *of_table, "-o"], [*measured, "--json", "--plot"]):
        one, two = (tmp_path / f"{count} {command[0]}{'.json' if command[0] == 'nll' else '.svg'}" for count in (1, 2))
        command = [*command[:1], "--batch-size", "4", *command[1:]]
        said = run(*command, str(one))
        assert many(2, run, *command, str(two)) == [said.replace(str(one), str(two)), ""]
        assert two.read_bytes() == one.read_bytes()


def test_continuous_bounds_have_another_name() -> None:
    said = run(*NLL, "--covariance", "beta", "--steps", "3", "--continuous")
    assert "bits/dim of density" in said
    assert "bits/dim of density" not in run(*NLL, "--covariance", "beta", "--steps", "3")


def test_a_decoder_variance_may_be_a_number() -> None:
    values = [
        json.loads(
            run(*NLL, "--covariance", "beta", "--steps", "3", "--decoder-variance", v, "--json").splitlines()[-1]
        )
        for v in ("0.001", "0.1")
    ]
    assert [v["decoder_variance"] for v in values] == [0.001, 0.1]
    assert values[0]["per_step"][-1]["value"] != values[1]["per_step"][-1]["value"]
    assert values[0]["per_step"][:-1] == values[1]["per_step"][:-1]


@pytest.mark.slow
def test_an_interrupted_nll_goes_on(table: Path, tmp_path: Path) -> None:
    out = tmp_path / "nll.json"
    arguments = [*NLL[:-1], "digits:score[:60]", "--table", str(table), "--steps", "200", "--spacing", "log_snr"]
    # A test run in the background passes an ignored SIGINT on to its children: give this one Python's handler.
    start = (
        "import signal; signal.signal(signal.SIGINT, signal.default_int_handler);"
        "from diffusion_var.app.cli import main; main()"
    )
    command = [sys.executable, "-c", start, *arguments, "-o", str(out)]
    partial = tmp_path / "nll.json.partial"
    child = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    for _ in range(600):
        time.sleep(0.1)
        if partial.exists():
            break
    time.sleep(0.5)
    os.kill(child.pid, signal.SIGINT)
    _, errors = child.communicate(timeout=60)
    assert child.returncode == 130
    assert "continues" in errors
    assert partial.exists()
    assert not out.exists()
    again = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert again.returncode == 0, again.stderr[-500:]
    whole = json.loads(run(*arguments, "--json").splitlines()[-1])
    assert json.loads(out.read_text())["value"] == pytest.approx(whole["value"], rel=1e-6)
    assert not partial.exists()


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ("--covariance beta --eta 0", "infinite"),
        ("--covariance beta --eta 0.5", "--eta 1"),
        ("", "needs a variance table"),
        ("--covariance beta --spacing optimal", "--table"),
        ("--covariance beta --table TABLE", "no meaning"),
        ("--covariance beta --steps 1,500,1000 --spacing quadratic", "no meaning for a list"),
        ("--table TABLE --steps 1,500,1000 --spacing optimal", "no meaning for a list"),
        ("--covariance beta --steps 1001", "1001"),
        ("--covariance beta --levels 17", "17 levels"),
        ("--covariance beta --draws 0", "draws"),
        ("--covariance beta --decoder-variance pixel", "table"),
        ("--covariance beta_tilde --decoder-variance covariance", "beta_tilde, step 1 to 0. is zero somewhere"),
        ("--covariance beta --decoder-variance respaced --steps 1", "the step before the last"),
        ("--covariance beta --decoder-variance 0", "positive"),
        ("--covariance beta --latents folder", "--latents"),
        ("--covariance beta --guidance-scale 2", "--guidance-scale 2 .*--unconditional"),
        ("--covariance beta --structure dct", "--structure would have no meaning"),
        ("--covariance beta --continuous --levels 16", "--levels would have no meaning"),
        ("--table TABLE --spacing optimal --eta 0.5", "is for --eta 1"),
        ("--covariance beta --labels x.npz:y", "--labels"),
    ],
)
def test_bad_flags_of_nll(table: Path, flags: str, said: str) -> None:
    with pytest.raises(InputError, match=said):
        run(*NLL, *flags.replace("TABLE", str(table)).split())


def test_steps_prints_the_optimal_paths_and_draws_them(table: Path, tmp_path: Path) -> None:
    held = dv.VarianceTable.load(table)
    lines = run("steps", str(table), "--steps", "1,5,12", "--json", "--plot", str(tmp_path / "s.png")).splitlines()
    found = [json.loads(line) for line in lines if line.startswith("{")]
    assert [facts["indices"] for facts in found] == [dv.steps.optimal(held, k) for k in (1, 5, 12)]
    assert all(facts["bits_per_dim"]["optimal"] < facts["bits_per_dim"]["even"] for facts in found[1:])
    assert Image.open(tmp_path / "s.png").size[0] > 500
    text = run("steps", str(table), "--steps", "5")
    assert ",".join(map(str, dv.steps.optimal(held, 5))) in text


def test_the_cost_that_steps_prints_is_what_nll_measures(table: Path) -> None:
    found = json.loads(run("steps", str(table), "--steps", "6", "--json").splitlines()[0])
    options = ["--table", str(table), "--steps", "6", "--spacing", "optimal", "--json"]
    measured = json.loads(run(*NLL[:-1], "digits:table", *options).splitlines()[-1])
    middle = sum(part["value"] for part in measured["per_step"][1:-1])
    error = np.hypot.reduce([part["standard_error"] for part in measured["per_step"][1:-1]])
    assert measured["steps"] == found["indices"]
    # The table itself is coarse: eight indices at a high tolerance, interpolated between.
    steps_share = found["bits_per_dim"]["optimal"] - found["decoder_bits_per_dim"]
    assert abs(middle - steps_share) < 4 * error + 0.05 * middle
    assert measured["decoder_variance"] == pytest.approx(
        dv.VarianceTable.load(table).posterior_variance(found["indices"][0]), rel=1e-12
    )


DECODERS = ["--decoder-images", "digits:table[:24]"]


def test_a_path_with_a_measured_decoder_is_far_better(table: Path, tmp_path: Path) -> None:
    """On other images than those that it was chosen on; interrupted or not, the command leaves one file."""
    options = ["--table", str(table), "--structure", "pixel", "--steps", "5", "--spacing", "optimal", "--json"]
    nll = [*NLL[:-1], "digits:score[:30]", *options]
    measured = json.loads(run(*nll, *DECODERS, "--out", str(tmp_path / "free.json")).splitlines()[-1])
    forced = json.loads(run(*nll, "--first-index", "1", "--decoder-variance", "beta_tilde").splitlines()[-1])
    assert [file.name for file in tmp_path.iterdir()] == ["free.json"]
    assert measured["value"] < 4.3 < 5.2 < forced["value"]
    assert measured["steps"][0] > 30
    assert forced["steps"][0] == 1
    assert measured["decoder_variance"] > 10 * forced["decoder_variance"]


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ("--spacing linspace --decoder-images digits:table", "--decoder-images would have no meaning with --spacing"),
        ("--spacing optimal --decoder-variance sigma2 --decoder-images digits:table", "with --decoder-variance"),
        ("--spacing linspace --first-index 3", "--first-index 3 is for the spacing optimal"),
        ("--spacing optimal --first-index 0", "--first-index 0 must be a whole number from 1 to 1000"),
        ("--spacing optimal --decoder-variance respaced", "--decoder-variance respaced is not known; use one of table"),
        ("--spacing optimal --decoder-images nowhere", "nowhere"),
    ],
)
def test_bad_flags_of_free_paths(table: Path, flags: str, said: str) -> None:
    with pytest.raises(InputError, match=said):
        run(*NLL[:-1], "digits:score[:4]", "--table", str(table), *flags.split())


def test_measured_costs_choose_a_path_for_beta() -> None:
    flags = ["--objective", "bound", "--model", "digits", "--images", "digits:table[:10]", "--covariance", "beta"]
    found = json.loads(run("steps", *flags, "--steps", "5", "--json").splitlines()[-1])
    assert found["bits_per_dim"]["optimal"] <= found["bits_per_dim"]["even"]
    assert found["indices"][0] > 1
    assert found["indices"][-1] == 1000
    forced = json.loads(run("steps", *flags, "--steps", "5", "--first-index", "1", "--json").splitlines()[-1])
    assert forced["indices"][0] == 1
    assert found["bits_per_dim"]["optimal"] < forced["bits_per_dim"]["optimal"] - 1


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ("", "table is needed"),
        ("TABLE --model digits", "no meaning"),
        ("TABLE --steps 1001", "1000"),
        ("TABLE --structure nothing", "structure"),
        ("TABLE --plot s.txt", "png"),
        ("--objective bound", "--model"),
        ("--objective bound --model digits --images digits:table", "variance table"),
        ("TABLE --max-relative-error 0", "positive"),
        ("TABLE --first-index 2000", "--first-index 2000 must be a whole number from 1 to 1000"),
        ("TABLE --eta 0.5 --seed 3", "--eta, --seed would have no meaning with --objective kl"),
        ("--objective bound --model digits --images digits:table --covariance beta --structure dct", "--structure"),
        (
            "--objective bound --model digits --images digits:table --covariance beta --steps 9 --indices 1,5",
            "more than",
        ),
    ],
)
def test_bad_flags_of_steps(table: Path, flags: str, said: str) -> None:
    with pytest.raises(InputError, match=said):
        run("steps", *flags.replace("TABLE", str(table)).split())


def test_show_says_what_the_steps_cost(table: Path) -> None:
    said = run("show", str(table), "--steps", "10")
    (line,) = [line for line in said.splitlines() if "optimal isotropic" in line]
    steps = dv.steps.linspace(1000, 10)
    paths = dv.steps.optimal_paths(dv.VarianceTable.load(table), 10)
    steps_share = paths.bits_per_dim(paths.cost_of(steps) - paths.first[0])
    assert float(line.split()[2]) == pytest.approx(steps_share, abs=1e-4)
    assert "β̃" in said
