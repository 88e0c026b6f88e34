"""Warnings are laid at the door of the user's line, however deep in the package they arise."""

import inspect
import warnings

import numpy as np
import torch

import diffusion_var as dv
from diffusion_var.errors import warn


def line() -> int:
    """The caller's line number."""
    frame = inspect.currentframe()
    assert frame is not None
    assert frame.f_back is not None
    return frame.f_back.f_lineno


def test_a_warning_names_the_users_line() -> None:
    denoiser = dv.Denoiser(lambda x, t: 0 * x, dv.NoiseSchedule.linear(50), shape=(1, 2, 2))
    images = np.zeros((4, 1, 2, 2), dtype=np.float32)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        here = line() + 1
        dv.estimate(denoiser, images + np.eye(2), 1e-9, indices=[5], max_evaluations=300, progress=False)
    assert ["evaluations were spent" in str(w.message) for w in caught] == [False, True]  # from two depths
    for found in caught:
        assert found.category is dv.DiffusionVarWarning
        assert (found.filename, found.lineno) == (__file__, here)


def test_frames_of_torch_between_are_passed_over() -> None:
    @torch.no_grad()
    def inside() -> None:
        warn("through a decorator of torch's")  # this is the user's line: it is not in the package

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        inside()
    assert caught[0].filename == __file__


def test_every_one_is_of_one_kind() -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        warn("one sentence.")
    assert [(w.category, str(w.message)) for w in caught] == [(dv.DiffusionVarWarning, "one sentence.")]
