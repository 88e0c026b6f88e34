"""`diffusion-var train-head`, and its head in sample, nll, steps and compare."""

import csv
import json

import pytest
from typer.testing import CliRunner

import diffusion_var as dv
from diffusion_var.app.cli import app
from diffusion_var.app.commands.train_head import run as train_head
from diffusion_var.app.model import open_model
from diffusion_var.app.options import ModelOptions, TrainHeadOptions
from diffusion_var.data.names import open_images


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    path = tmp_path_factory.mktemp("table") / "table.safetensors"
    model = open_model("digits", ModelOptions()).denoiser
    images = open_images("digits:table")
    dv.estimate(model, images, tolerance=0.2, indices=[1, 10, 100, 400, 1000], progress=False).save(path)
    return path


@pytest.fixture
def options(tmp_path, table):
    def make(**changes):
        given = {"model": "digits", "table": table, "images": "digits:train", "held_out": "digits:table"}
        few = {"steps": 4, "batch_size": 8, "evaluate_every": 2, "likelihood_images": 2, "learning_rate": 0.01}
        return TrainHeadOptions(**{"out": tmp_path / "npr", **given, **few, **changes})

    return make


def run(*arguments):
    return CliRunner().invoke(app, [str(a) for a in arguments], catch_exceptions=True)


def refused(*arguments):
    """The message of the mistake that a command ends with."""
    result = run(*arguments)
    assert isinstance(result.exception, dv.InputError), result.output
    return str(result.exception)


def test_a_head_its_curve_and_a_record(options, tmp_path):
    train_head(options())
    folder = tmp_path / "npr"
    assert sorted(p.name for p in folder.iterdir()) == [
        *("README.md", "SHA256SUMS", "curve.csv", "curve.png", "head.safetensors", "training.json")
    ]
    head = dv.Head.load(folder / "head.safetensors")
    assert head.spec == dv.HeadSpec("npr")
    assert head.training["steps_done"] == 4
    rows = list(csv.DictReader((folder / "curve.csv").open()))
    assert [row["step"] for row in rows] == ["2", "4"]
    model = open_model("digits", ModelOptions()).denoiser
    held_out = open_images("digits:table")[[0, 150]]
    bound = dv.bits_per_dim(model, head, held_out, 10)
    assert abs(float(rows[-1]["bits_per_dim"]) - float(bound)) < 1e-5
    assert json.loads((folder / "training.json").read_text())["target"] == "npr"
    with pytest.raises(dv.InputError, match="is not empty"):
        train_head(options(seed=1))


@pytest.mark.parametrize("spec", [{"target": "factor", "structure": "dct"}, {"target": "bands", "bands": 6}], ids=str)
def test_everywhere_a_table_can_be_used(spec, options, tmp_path, capsys):
    train_head(options(**spec))
    head = tmp_path / "npr" / "head.safetensors"
    shared = ("--model", "digits", "--covariance", "head", "--head", head)
    assert run("sample", *shared, "--steps", 3, "--count", 2, "-o", tmp_path / "samples").exception is None
    assert (tmp_path / "samples" / "000001.png").exists()
    out = tmp_path / "nll.json"
    assert run("nll", *shared, "--images", "digits:score[:4]", "--steps", 3, "-o", out).exception is None
    assert json.loads(out.read_text())["value"] > 0
    costs = ("steps", *shared, "--objective", "bound", "--images", "digits:score[:4]", "--indices", "1,400,1000")
    assert run(*costs, "--steps", 2).exception is None
    config = tmp_path / "c.yaml"
    config.write_text(
        f"steps: [3]\nseeds: [0]\ncount: 4\nbaseline: null\nout: {tmp_path / 'compare'}\n"
        f"methods: [{{covariance: beta_tilde}}, {{covariance: head, head: {head}}}]\n"
    )
    result = run("compare", "--config", config)
    assert result.exception is None, result.output
    assert "DDPM head npr" in (tmp_path / "compare" / "results.csv").read_text()  # by the folder's name
    assert not (tmp_path / "compare" / "table.safetensors").exists()


def test_mistakes(options, tmp_path, table):
    shared = ("--model", "digits", "--table", table, "--images", "digits:train", "-o", tmp_path / "x")
    assert "the covariance head needs a trained head" in refused(
        "sample", "--model", "digits", "--covariance", "head", "-o", tmp_path / "s"
    )
    wrong = ("sample", "--model", "digits", "--head", table, "-o", tmp_path / "s")
    assert "has no meaning with the covariance beta_tilde" in refused(*wrong, "--covariance", "beta_tilde")
    assert "not a variance head" in refused(*wrong, "--covariance", "head")
    assert "not a variance head" in refused(*wrong)  # which a head alone implies
    assert "--target factor multiplies a structure's variances; pass --structure as 'dct' or 'pixel'" in refused(
        "train-head", *shared, "--target", "factor"
    )
    assert "--bands 99 is more than there are frequencies in images (1, 8, 8), which have" in refused(
        "train-head", *shared, "--target", "bands", "--bands", 99
    )
    assert "--bands 4 is for --target bands alone, not 'npr'" in refused("train-head", *shared, "--bands", 4)
    assert "features of UNet2DModel cannot be found" in refused("train-head", *shared, "--features", "conv_uot")
    assert "--held-out-labels has no meaning" in refused("train-head", *shared, "--held-out-labels", "a.npz:y")
    assert "no variance table at" in refused("train-head", *shared, "--table", tmp_path / "none")
    assert "patience stops by the loss" in refused("train-head", *shared, "--patience", "3")
    assert not (tmp_path / "s").exists()
    train_head(options())
    (tmp_path / "npr" / "training.partial").write_bytes(b"other")
    with pytest.raises(dv.InputError, match=r"not a readable training checkpoint.*; delete it to start anew"):
        train_head(options(seed=1))
