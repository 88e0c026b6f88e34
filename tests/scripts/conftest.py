"""Scripts as modules, and a table for those that want one of the digits."""

import runpy

import pytest
import torch
from places import ROOT

import diffusion_var as dv


@pytest.fixture
def load_script(monkeypatch):
    """What a script defines, by its name, with its folder on the path as Python has it when the script is run."""
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    monkeypatch.setattr(torch, "set_num_threads", lambda _: None)
    return lambda name: runpy.run_path(str(ROOT / "scripts" / f"{name}.py"), run_name=name)


@pytest.fixture(scope="module")
def digits_folder(tmp_path_factory):
    """A folder with a table of the digits' network, of few images."""
    folder = tmp_path_factory.mktemp("digits")
    images = torch.rand(40, 1, 8, 8, generator=torch.Generator().manual_seed(0)) * 2 - 1
    denoiser = dv.Denoiser.from_pretrained("digits")
    # A clean image of noise is what no network expects: the table is of no use but to be one.
    table = dv.estimate(denoiser, images, 10.0, indices=[1, 250, 500, 750, 1000], progress=False)
    table.save(folder / "digits.safetensors")
    return folder
