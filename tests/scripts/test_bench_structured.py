"""The benchmark of covariances that follow the image, on a few digits: every kind of step is timed and weighed."""

import re
import runpy

import pytest
import torch
from places import SCRIPTS


@pytest.mark.filterwarnings("ignore::diffusion_var.errors.DiffusionVarWarning")
def test_every_kind_of_step_is_timed(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.syspath_prepend(str(SCRIPTS))
    monkeypatch.setattr(torch, "set_num_threads", lambda _: None)
    script = runpy.run_path(str(SCRIPTS / "bench_structured.py"), run_name="bench_structured")
    script["main"](["--model", "digits", "--batch-size", "2", "--repeats", "1", "--device", "cpu", "--no-memory"])
    said = capsys.readouterr().out
    assert re.search(r"a product counts for \d+\.\d\d evaluations with the mean", said)
    found = dict(re.findall(r"^(\S.*?) +\d+\.\d ms a step +(\d+\.\d\d) plain steps$", said, re.MULTILINE))
    assert list(found) == list(script["KINDS"])
    assert float(found["plain"]) == 1.0
    assert all(float(ratio) > 0 for ratio in found.values())
