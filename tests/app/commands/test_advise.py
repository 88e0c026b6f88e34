"""The command advise: the bundled model on its held-out images, what it writes, and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

import diffusion_var as dv
from diffusion_var.advice.advise import least_budget
from diffusion_var.app import cli

ADVISE = ["advise", "digits", "digits:score[:200]", "--steps", "2", "--features", "digits", "--quiet"]


def run(*arguments: str) -> str:
    """A command in this process and what it prints; its InputError comes out as it is."""
    result = CliRunner().invoke(cli.app, list(arguments), catch_exceptions=True)
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == 0, result.output
    return result.stdout


def test_advice_on_the_bundled_model(tmp_path: Path) -> None:
    out, table = tmp_path / "advice.json", tmp_path / "table.safetensors"
    words = [*ADVISE, "--budget", "8000", "-o", str(out), "--save-table", str(table)]
    said = run(*words)
    found = json.loads(out.read_text())
    assert said.splitlines()[0] == found["sentence"]
    assert found["diagnosis"]["verdict"] == "fits"
    assert found["likelihood"]["worth_it"] is True
    assert found["likelihood"]["unit"] == "bits/dim"
    assert found["samples"]["features"].startswith("digits")
    assert found["evaluations"] <= 8000
    assert dv.VarianceTable.load(table).digest == found["table"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["advice.json", "table.safetensors"]  # nothing is left
    before = out.read_bytes()
    assert "already finished" in run(*words)
    assert json.loads(run(*words, "--json"))["sentence"] == found["sentence"]
    assert out.read_bytes() == before


def test_what_is_refused(tmp_path: Path) -> None:
    with pytest.raises(dv.InputError, match=r"100 of 100 are among those that the network was trained on"):
        run("advise", "digits", "digits:train[:100]", "--steps", "2", "--budget", "20000")
    with pytest.raises(dv.InputError, match=r"digits:score\[:99\] holds 99 images, but at least 100 are needed"):
        run("advise", "digits", "digits:score[:99]")
    least = least_budget((2,), dv.Denoiser.from_pretrained("digits", device="cpu"))
    with pytest.raises(dv.InputError, match=rf"--budget 100 is too small.*at least {least} network evaluations"):
        run(*ADVISE, "--budget", "100")
    seen = ["--trained-on", "digits:score[50:60]"]
    with pytest.raises(dv.InputError, match=r"10 of 200 are among those"):
        run(*ADVISE, "--budget", "20000", *seen)
    (tmp_path / "table.safetensors").write_bytes(b"")
    with pytest.raises(dv.InputError, match=r"table.safetensors exists"):
        run(*ADVISE, "--save-table", str(tmp_path / "table.safetensors"))


def test_a_config_has_the_same_names(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("advise:\n  model: digits\n  images: digits:score[:99]\n  steps: [5, 10, 25]\n")
    with pytest.raises(dv.InputError, match="99 images"):
        run("advise", "--config", str(tmp_path / "a.yaml"))
    (tmp_path / "b.yaml").write_text("model: digits\nimages: digits:score\nbudgets: 5\n")
    with pytest.raises(dv.InputError, match="budgets: unknown option"):
        run("advise", "--config", str(tmp_path / "b.yaml"))
