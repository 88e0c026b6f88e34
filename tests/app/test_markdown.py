"""Names in reports: whatever they hold, they are shown, and nothing of them is obeyed."""

import csv
import io
import re
import warnings
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from diffusion_var.app.compare.options import CompareOptions, Method
from diffusion_var.app.compare.report import text_table, write_report
from diffusion_var.app.compare.result import Cell, Comparison
from diffusion_var.app.markdown import code_block, code_span, markdown, strong
from diffusion_var.app.rendering import spreadsheet_cell
from diffusion_var.metrics.score import Score
from diffusion_var.plots import new_figure, plain

NAMES = {
    "mathtext": r"cost $\frac{1}{$ and $x_2$",
    "one dollar": "a $ b",
    "html": "<script>alert(1)</script><img src=x onerror=alert(1)>",
    "entity": "&lt;b&gt; &amp;",
    "heading": "a\n# Heading\n\n---\n",
    "cells": "a | b || c",
    "link": "[x](javascript:alert(1)) ![y](http://z/p.png)",
    "code": "`a` ``b``` **c** __d__ ~~e~~",
    "formula": '=HYPERLINK("http://x","y")',
    "formula with a space": " @SUM(1)",
    "formula after a control character": "\t+1",
    "minus": "-2+3",
    "escape sequence": "\x1b]0;owned\x07\x1b[31m",
    "direction": "abc\u202efed",
    "hidden of legends": "_hidden",
    "long": "word " * 600,
    "letters": "naïve 猫 β̃",
}


def reported(name: str, folder: Path) -> Comparison:
    """A comparison of one method called so, and its report."""
    options = CompareOptions(
        model=name, reference=name, baseline=None, methods=[Method("beta", name=name)], steps=[2, 5], seeds=[0, 1]
    )
    result = Comparison(options, None, protocols={"fid": {"images": name, "features": "digits"}})
    for k in options.steps:
        scores = {"fid": [Score(1.0 + k, {}), Score(1.5 + k, {})]}
        result.cells.append(Cell(options.methods[0], k, scores))
        result.cells[-1].grid = torch.zeros(2, 1, 8, 8, dtype=torch.uint8)
    folder.mkdir(exist_ok=True)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph")  # fonts lack some letters
        write_report(result, folder, "the run")
    return result


@pytest.mark.parametrize("name", NAMES.values(), ids=NAMES)
def test_a_name_is_shown_and_not_obeyed(name: str, tmp_path: Path) -> None:
    result = reported(name, tmp_path)
    text = (tmp_path / "report.md").read_text()
    assert not re.search(r"<\w", text)
    assert [line for line in text.splitlines() if line.startswith("#") and "eading" in line[:12]] == []
    rows = [line for line in text.splitlines() if line.startswith("| ")]
    assert {len(re.findall(r"(?<!\\)\|", row)) for row in rows} == {4}  # a name, two numbers
    page = (tmp_path / "report.html").read_text()
    assert "<script" not in page
    assert page.count("<img ") == page.count('<img src="data:image/png;base64,') == 3
    assert "Content-Security-Policy" in page
    for row in csv.DictReader(io.StringIO((tmp_path / "results.csv").read_text())):
        assert not row["method"].lstrip().startswith(("=", "+", "-", "@"))
        assert set(row) == {"method", "steps", "seed", "images", "fid"}
    for shown in (text, page, text_table(result, "fid")):
        assert all(line.isprintable() for line in shown.split("\n"))
    assert max(map(len, text_table(result, "fid").splitlines())) < 200


def test_the_page_may_load_nothing(tmp_path: Path) -> None:
    reported("plain", tmp_path)
    page = (tmp_path / "report.html").read_text()
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', page)
    assert policy is not None
    assert "default-src 'none'" in policy[1]
    assert "script-src" not in policy[1]  # none: the default's
    assert page.index("Content-Security-Policy") < page.index("<style>")
    assert "<script" not in page
    assert " style=" not in page


@given(st.text(max_size=80))
def test_markdown_of_any_text(text: str) -> None:
    shown = markdown(text)
    assert shown.isprintable()
    assert not re.search(r"(?<!\\)[|*`\[\]]|[<>]", shown.replace("\\\\", ""))
    assert markdown(shown) is shown
    assert not set(code_span(text)[1:-1]) & set("<>")
    assert all(line.startswith("    ") or line == "" for line in code_block(text).split("\n"))


def test_numbers_stay_as_they_are() -> None:
    assert markdown("12.34 ± 0.56") == "12.34 ± 0.56"
    assert markdown("Analytic-DDPM dct, cap 1") == "Analytic-DDPM dct, cap 1"
    assert markdown("bits_per_dim") == "bits_per_dim"
    assert strong("1.0") == "**1.0**"
    assert markdown("- a") == r"\- a"
    assert spreadsheet_cell("DDPM β") == "DDPM β"


@settings(deadline=None, max_examples=30)
@given(st.text(max_size=40))
def test_any_name_can_be_drawn_and_is_in_the_legend(name: str) -> None:
    figure, axes = new_figure(2, 2)
    axes.plot([0, 1], label=plain(name))
    shown = axes.get_legend_handles_labels()[1]
    assert len(shown) == (1 if plain(name) else 0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        axes.text(0, 0, plain(name))
        figure.savefig(io.BytesIO(), format="svg")
