"""Warnings are laid at the door of the user's line, however deep in the package they arise."""

import inspect
import warnings

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import diffusion_var as dv
from diffusion_var.errors import NumericalError, printable, warn


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


# ---- what is printable ----------------------------------------------------------------------------------------------


@given(st.text())
def test_a_name_becomes_one_printable_line(text: str) -> None:
    shown = printable(text)
    assert shown.isprintable()
    shown.encode()  # a terminal of UTF-8 takes it
    if text.isprintable() and len(text) <= 240:
        assert shown == text


def test_escapes_are_shown_and_not_obeyed() -> None:
    assert printable("a\x1b[31mb\r\nc\u202ed\x9be\udce9") == r"a\x1b[31mb\r\nc\u202ed\x9be\udce9"
    assert printable("β̃, Fréchet, 猫") == "β̃, Fréchet, 猫"


def test_long_quotations_keep_the_beginning_and_the_end() -> None:
    words = "the file " + "long " * 700 + "is not there; check the path."
    assert len(printable(words)) <= 1000
    assert printable(words).startswith("the file long")
    assert printable(words).endswith("check the path.")
    assert printable(words, None) == words
    one = printable(f"the file /{'x' * 3000}/a.png is damaged.")
    assert len(one) < 300
    assert one.endswith("x/a.png is damaged.")


@pytest.mark.parametrize("kind", [dv.InputError, NumericalError])
def test_sentences_are_printable(kind: type[Exception]) -> None:
    assert str(kind("there is no file a\x1b]0;owned\x07\nb.")) == r"there is no file a\x1b]0;owned\x07\nb."
    with pytest.warns(dv.DiffusionVarWarning, match=r"a\\x1b\[2Jb") as caught:
        warn("a\x1b[2Jb")
    assert len(caught) == 1


def test_several_problems_are_a_line_each() -> None:
    assert (
        str(dv.InputError("two problems:", ["a: is\nmissing", "b: too"]))
        == "two problems:\n  a: is\\nmissing\n  b: too"
    )
