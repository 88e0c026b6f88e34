"""The example scripts of the Python API, end to end: table, samples, scores, and one sentence for a mistake."""

import json
import runpy
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
from places import ROOT

import diffusion_var as dv
from diffusion_var.data.digits import digits_splits
from diffusion_var.data.images import read_images, to_uint8

SCRIPTS = ROOT / "scripts"
STEPS = 8  # of the schedule: few, so that a whole table is quickly measured


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with the bundled model on a schedule of 8 levels, and images of the digits."""
    folder = tmp_path_factory.mktemp("api")
    model = folder / "model"
    shutil.copytree(ROOT / "diffusion_var" / "assets" / "digits", model)
    config = json.loads((model / "scheduler" / "scheduler_config.json").read_text())
    # ᾱ falls from 0.98 to 0.001 in 8 steps, as it does in 1,000.
    config |= {"num_train_timesteps": STEPS, "beta_start": 0.02, "beta_end": 0.9}
    (model / "scheduler" / "scheduler_config.json").write_text(json.dumps(config))
    splits = digits_splits()
    np.savez(folder / "table.npz", images=splits.table.images.numpy())
    np.savez(folder / "score.npz", images=splits.score.images.numpy())
    return folder


def command(script, *arguments):
    """Run a script as a user does."""
    line = [sys.executable, str(SCRIPTS / script), *map(str, arguments)]
    return subprocess.run(line, capture_output=True, text=True, timeout=300)


def refused(monkeypatch, capsys, script, *arguments):
    """What a script says of a mistake, run in this process: nothing else, and exit code 2."""
    monkeypatch.setattr(sys, "argv", [script, *map(str, arguments)])
    with pytest.raises(SystemExit) as end:
        runpy.run_path(str(SCRIPTS / script), run_name="__main__")
    assert end.value.code == 2
    out, said = capsys.readouterr()
    assert out == ""
    assert said.startswith("error: ")
    assert said.count("\n") == 1
    return said


@pytest.fixture(scope="module")
def table(folder):
    """What `precompute_variance.py` writes."""
    path = folder / "t.safetensors"
    done = command("precompute_variance.py", folder / "model", folder / "table.npz", "-o", path, "--tolerance", 9)
    assert done.returncode == 0, done.stderr
    assert "8 measured indices" in done.stdout
    return path


def test_table_is_that_of_the_api(folder, table):
    loaded = dv.VarianceTable.load(table)
    expected = dv.estimate(
        dv.Denoiser.from_pretrained(folder / "model"), digits_splits().table.images, tolerance=9, progress=False
    )
    for n in (1, 4, STEPS):
        for structure in ("isotropic", "dct"):
            assert np.allclose(
                loaded.posterior_variance(n, structure=structure), expected.posterior_variance(n, structure=structure)
            )
    assert loaded.evaluations == expected.evaluations
    assert not list(folder.glob("*.partial"))


def test_samples_are_those_of_the_api(folder, table):
    out = folder / "samples"
    done = command(
        *("sample.py", folder / "model", "-o", out, "--covariance", "analytic", "--table", table),
        *("--structure", "dct", "--eta", 0, "--final-noise-cap", 1, "--steps", 4),
        *("--first", 3, "--count", 7, "--batch-size", 3, "--seed", 5),
    )
    assert done.returncode == 0, done.stderr
    assert f"7 images in {out}" in done.stdout
    covariance = dv.Analytic(dv.VarianceTable.load(table), structure="dct")
    sampler = dv.Sampler(dv.Denoiser.from_pretrained(folder / "model"), covariance, 4, 0.0, 1.0)
    expected = to_uint8(torch.cat(list(sampler.stream(range(3, 10), seed=5))))
    images = read_images(out)
    assert images.names == [f"{number:06d}.png" for number in range(3, 10)]
    # Another batch size may round a float of ½ the other way.
    assert (torch.stack(list(images)).int() - expected.int()).abs().max() <= 1


@pytest.mark.parametrize(("name", "kind"), [("beta", dv.FixedLarge), ("beta_tilde", dv.FixedSmall)])
def test_fixed_covariances_into_an_npz(folder, tmp_path, monkeypatch, name, kind):
    line = ["sample.py", folder / "model", "-o", tmp_path / "s.npz", "--covariance", name, "--count", 4, "--steps", 3]
    monkeypatch.setattr(sys, "argv", list(map(str, line)))
    runpy.run_path(str(SCRIPTS / "sample.py"), run_name="__main__")
    sampler = dv.Sampler(dv.Denoiser.from_pretrained(folder / "model"), kind(), 3)
    expected = to_uint8(sampler.sample(4))
    found = np.load(tmp_path / "s.npz")["images"]
    assert np.abs(found.astype(int) - expected.numpy()).max() <= 1


def test_scores_are_those_of_the_api(folder):
    images, reference = folder / "table.npz", folder / "score.npz"
    done = command("score.py", images, reference, "--features", "digits", "--metrics", "fid", "kid", "--seed", 3)
    assert done.returncode == 0, done.stderr
    scores = json.loads(done.stdout)
    assert list(scores) == ["fid", "kid"]
    fid = dv.metrics.fid(images, reference, "digits")
    assert scores["fid"]["value"] == pytest.approx(fid.value, rel=1e-5)
    assert scores["fid"]["protocol"]["features_sha256"] == fid.protocol["features_sha256"]
    assert (scores["fid"]["protocol"]["images"], scores["fid"]["protocol"]["reference"]) == (300, 500)
    assert scores["kid"]["protocol"]["parameters"]["seed"] == 3
    assert scores["kid"]["standard_error"] > 0


def test_mistakes_end_with_one_sentence(folder, table, tmp_path, monkeypatch, capsys):
    def said(*arguments):
        return refused(monkeypatch, capsys, *arguments)

    model, images, new = folder / "model", folder / "score.npz", tmp_path / "new"
    assert "no model folder" in said("precompute_variance.py", tmp_path / "none", images, "-o", new)
    assert "no file or folder" in said("precompute_variance.py", model, tmp_path / "none", "-o", new)
    assert "exists already" in said("precompute_variance.py", model, images, "-o", table)
    assert "tolerance" in said("precompute_variance.py", model, images, "-o", new, "--tolerance", 0)
    assert "exists already" in said("sample.py", model, "-o", tmp_path)
    assert "does not exist" in said("sample.py", model, "-o", tmp_path / "nowhere" / "s.npz")
    assert "count is 0" in said("sample.py", model, "-o", new, "--count", 0)
    assert "first is -1" in said("sample.py", model, "-o", new, "--first", -1)
    assert "--table" in said("sample.py", model, "-o", new, "--covariance", "analytic")
    assert "schedule" in said(
        *("sample.py", ROOT / "diffusion_var/assets/digits", "-o", new, "--covariance", "analytic", "--table", table)
    )
    assert "eta" in said("sample.py", model, "-o", new, "--steps", 3, "--eta", 2)
    assert "no file or folder" in said("score.py", tmp_path / "none", images, "--features", "digits")
    assert "psnr" in said("score.py", images, images, "--features", "digits", "--metrics", "psnr")
    assert "features" in said("score.py", images, images, "--features", "mine")
    assert not new.exists()
