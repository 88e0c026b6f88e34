"""The script behind the bands of results/heads.md: heads learn from the same draws, kept or not, and are compared."""

import re
import runpy
import sys

import numpy as np
import pytest
import torch
from places import ROOT

import diffusion_var as dv
from diffusion_var.app.model import open_model
from diffusion_var.app.options import ModelOptions
from diffusion_var.data import open_images


@pytest.fixture(scope="module")
def script():
    return runpy.run_path(str(ROOT / "scripts" / "head_bands.py"))


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    path = tmp_path_factory.mktemp("table") / "table.safetensors"
    options = {"tolerance": 0.5, "indices": [1, 100, 1000], "structures": ["dct"], "progress": False}
    dv.estimate(open_model("digits", ModelOptions()).denoiser, open_images("digits:table"), **options).save(path)
    return path


def test_its_table(script, table, tmp_path, monkeypatch, capsys):
    few = ("--draws", 256, "--train-steps", 40, "--bands", "4", "--steps", "3", "--groups", 2)
    given = ("--model", "digits", "--table", table, "--images", "digits:train", "--score", "digits:score")
    printed = []
    for _ in range(2):  # the second time with the draws that were kept
        monkeypatch.setattr(sys, "argv", ["head_bands.py", *map(str, (*given, *few, "--kept", tmp_path / "draws"))])
        script["main"]()
        printed.append(capsys.readouterr().out)
    sizes = re.findall(r"^(.*): ([\d,]+) parameters", printed[0], re.M)
    assert [name for name, _ in sizes] == ["factor, simple", "factor, pooled", "bands=4, pooled"]
    tables = [text[text.index("| covariance") :] for text in printed]
    assert tables[0] == tables[1]
    rows = [re.split(r" *\| *", line.strip("| ")) for line in tables[0].splitlines()[2:]]
    assert [row[0] for row in rows] == ["dct table", *(name for name, _ in sizes)]
    values = [float(row[1]) for row in rows]
    for row, value in zip(rows[1:], values[1:], strict=True):
        above = float(row[2].split(" ± ")[0])
        assert abs(above - (value - values[0])) < 2e-4
    assert len(set(values)) == 4


def test_exact(script, monkeypatch, capsys):
    """Four bands are about as good as each image's own variances, and far better than their average."""
    few = ("--size", "8", "--components", "3", "--fit-images", "800", "--count", "40", "--bands", "1,4", "--steps", "6")
    monkeypatch.setattr(sys, "argv", ["head_bands.py", "exact", *few])
    script["main"]()
    first, *lines = capsys.readouterr().out.splitlines()
    rows = [re.split(r" *\| *", line.strip("| ")) for line in lines[2:]]
    assert [row[0] for row in rows] == [
        *("exact-dct", "bands=1, of each image", "bands=4, of each image", "exact-dct, per image")
    ]
    average, _, four, own = (float(row[1]) for row in rows)
    assert average - 0.1 > four > float(first.removeprefix("exact: "))
    assert abs(four - own) < 0.3 * (average - own)


def test_without_a_table(script, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["head_bands.py"])
    with pytest.raises(SystemExit):
        script["main"]()
    assert "heads need a table of the model" in capsys.readouterr().err


def test_heads_learn_from_draws(script, table):
    """Of draws that have half of the table's variance in every coefficient, all factors become a half."""
    model, known = open_model("digits", ModelOptions()).denoiser, dv.VarianceTable.load(table)
    structure, n = known.structure("dct"), torch.full((512,), 500)
    v = torch.from_numpy(known.posterior_variance(500, structure="dct")).float().expand(512, 1, 8, 8)
    noise = torch.from_numpy(np.random.default_rng(0).standard_normal((512, 1, 8, 8))).float()
    draws = {
        "features": torch.ones(512, 32, 8, 8).half(),
        "error": structure.inverse((0.5 * v).sqrt() * noise),
        "v": v,
        "floor": torch.full((512, 1, 1, 1), 1e-6),
        "n": n,
    }
    for spec in (dv.HeadSpec("bands", bands=3), dv.HeadSpec("factor", "pooled", "dct")):
        head = script["trained"](model, known, open_images("digits:train"), spec, draws, 60)
        posterior = dv.Posterior(torch.zeros(2, 1, 8, 8), torch.zeros(2, 1, 8, 8), features=torch.ones(2, 32, 8, 8))
        assert float((head.ratio(posterior, 500) - 0.5).abs().max()) < 0.1
