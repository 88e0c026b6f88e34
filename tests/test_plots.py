"""Pictures of tables that hold little: they are drawn, and their axes show numbers."""

import io
from pathlib import Path

import numpy as np
import pytest

import diffusion_var as dv
from diffusion_var.plots import variance_curves


@pytest.fixture(scope="module")
def denoiser() -> dv.Denoiser:
    return dv.Denoiser.from_pretrained(Path(dv.__file__).parent / "assets" / "digits")


@pytest.mark.parametrize("steps", [1, 25, 1000])
@pytest.mark.parametrize("indices", [[1], [2], [500], [1000], [1, 2], [499, 500]])
def test_tables_of_few_indices_have_a_picture(indices: list[int], steps: int, denoiser: dv.Denoiser) -> None:
    images = dv.data.digits_splits().table.images[:64]
    table = dv.estimate(denoiser, images, 9.0, indices=indices, structures=["isotropic"], progress=False)
    figure = variance_curves(table, steps)
    figure.savefig(io.BytesIO(), format="png")
    if indices == [1]:
        assert "no noise" in figure.axes[0].texts[0].get_text()
        return
    optimal = next(line for line in figure.axes[0].lines if line.get_label() == "optimal, measured")
    assert np.all(np.asarray(optimal.get_ydata()) > 0)
    assert indices[-1] in optimal.get_xdata()
    drawn = [axes for axes in figure.axes if axes.axison]
    assert len(drawn) == (3 if len(indices) > 1 else 2)
