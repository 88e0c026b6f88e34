"""The folder of a comparison holds one experiment: called after its config, grown, and replaced only when asked to."""

import shutil
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

import diffusion_var
from diffusion_var.app.compare.options import CompareOptions
from diffusion_var.app.compare.run import run
from diffusion_var.app.config import load_options
from diffusion_var.errors import InputError
from diffusion_var.models.denoiser import Denoiser

SMALL = {
    "metrics": ["fid", "kid"],
    "steps": [2],
    "seeds": [0],
    "count": 4,
    "baseline": None,
    "methods": [{"covariance": "beta"}],
}


def compare(out: Path, **options: Any) -> dict[str, bytes]:
    """Run a small comparison; the files of its folder."""
    run(load_options(CompareOptions, {**SMALL, "out": out, **options}))
    return {file.name: file.read_bytes() for file in out.iterdir() if file.is_file()}


def test_the_default_folder_is_called_after_the_config(tmp_path: Path) -> None:
    (tmp_path / "faces.yaml").write_text("model: faces\n")
    assert load_options(CompareOptions, {}, tmp_path / "faces.yaml", "compare").out == Path("runs/faces")
    assert load_options(CompareOptions, {"out": "x"}, tmp_path / "faces.yaml", "compare").out == Path("x")
    (tmp_path / "faces.yaml").write_text("compare: {model: faces, out: y}\n")
    assert load_options(CompareOptions, {}, tmp_path / "faces.yaml", "compare").out == Path("y")
    assert load_options(CompareOptions, {}, None, "compare").out == Path("runs/digits")


def test_a_folder_grows_and_is_replaced_only_when_asked_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "c"
    first = compare(out)
    assert {"samples_2.png", "scores_kid.png", "comparison.json", "report.html"} <= set(first)
    assert compare(out, steps=[2, 3]).keys() - first.keys() == {"samples_3.png"}
    # Fewer metrics and steps: the same experiment, whose report leaves no picture of the one before.
    assert set(compare(out, metrics=["fid"])) == set(first) - {"scores_kid.png"}
    kept = {file: file.read_bytes() for file in out.rglob("*") if file.is_file()}
    loads = []
    monkeypatch.setattr(Denoiser, "from_pretrained", lambda *_, **__: loads.append(1))
    for other in ({"count": 5}, {"reference": "digits:table"}, {"model": str(tmp_path)}, {"dtype": "bfloat16"}):
        with pytest.raises(InputError, match=rf"holds another comparison, whose {next(iter(other))} .*--overwrite"):
            compare(out, **other)
    assert loads == []
    assert {file: file.read_bytes() for file in out.rglob("*") if file.is_file()} == kept


def test_overwriting_leaves_nothing_of_the_report_before(tmp_path: Path) -> None:
    out = tmp_path / "c"
    compare(out, steps=[2, 3])
    (out / "notes.txt").write_text("mine")
    found = compare(out, count=5, metrics=["fid"], overwrite=True)
    assert found["notes.txt"] == b"mine"
    assert {name for name in found if name.endswith(".png")} == {"scores_fid.png", "samples_2.png"}
    assert compare(out, count=5, metrics=["fid"]).keys() == found.keys()


def test_another_network_of_the_same_name_is_another_comparison(tmp_path: Path) -> None:
    model = shutil.copytree(Path(diffusion_var.__file__).parent / "assets" / "digits", tmp_path / "m")
    before = compare(tmp_path / "c", model=str(model))
    file = model / "unet" / "diffusion_pytorch_model.safetensors"
    save_file({key: value * 1.01 for key, value in load_file(file).items()}, file)
    with pytest.raises(InputError, match="holds another comparison, whose network"):
        compare(tmp_path / "c", model=str(model))
    assert compare(tmp_path / "c", model=str(model), overwrite=True)["results.json"] != before["results.json"]


def test_folders_of_something_else_are_refused(tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "a.txt").write_text("x")
    (tmp_path / "cells" / "cells").mkdir(parents=True)
    for name, said in (
        ("full", "not empty"),
        ("cells", "not known"),
        ("full/a.txt", "is a file"),
        ("full/a.txt/b", "a file"),
    ):
        with pytest.raises(InputError, match=said):
            compare(tmp_path / name)
