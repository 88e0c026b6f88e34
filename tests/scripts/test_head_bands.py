"""The script behind the bands of results/heads.md: heads are trained alike, and compared."""

import re
import runpy
import sys

import pytest
from places import ROOT

import diffusion_var as dv
from diffusion_var.data import open_images


@pytest.fixture(scope="module")
def script():
    return runpy.run_path(str(ROOT / "scripts" / "head_bands.py"))


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    path = tmp_path_factory.mktemp("table") / "table.safetensors"
    options = {"tolerance": 0.5, "indices": [1, 100, 1000], "structures": ["dct"], "progress": False}
    dv.estimate(dv.Denoiser.from_pretrained("digits"), open_images("digits:table"), **options).save(path)
    return path


def test_its_table(script, table, monkeypatch, capsys):
    few = ("--train-steps", 20, "--bands", "4", "--steps", "3", "--groups", 2)
    given = ("--model", "digits", "--table", table, "--images", "digits:train", "--score", "digits:score")
    monkeypatch.setattr(sys, "argv", ["head_bands.py", *map(str, (*given, *few))])
    script["main"]()
    printed = capsys.readouterr().out
    sizes = re.findall(r"^(.*): ([\d,]+) parameters", printed, re.M)
    assert [name for name, _ in sizes] == ["factor, simple", "factor, pooled", "bands=4, pooled"]
    lines = printed[printed.index("| covariance") :].splitlines()
    rows = [re.split(r" *\| *", line.strip("| ")) for line in lines[2:]]
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
