"""JSON as plain data: whatever is wrong with a text is a ValueError, and what reads a file with it says so in words."""

import json
from pathlib import Path

import pytest

from diffusion_var.app.claims import claimed_file
from diffusion_var.app.compare.folder import RECORD, ComparisonFolder
from diffusion_var.app.compare.options import CompareOptions
from diffusion_var.app.signed import run_of_signed, write_signed
from diffusion_var.errors import InputError
from diffusion_var.json_text import parse_json

DEEP = ["[" * 100_000, '{"a":' * 50_000 + "1" + "}" * 50_000]


@pytest.mark.parametrize(
    "text", [*DEEP, '{"a": 1, "b": {"c": 1, "c": 1}}', '{"a": 1, "a": 1}', "", "{", b"\xff", "9" * 5000]
)
def test_what_is_no_json_is_a_value_error(text: str | bytes) -> None:
    with pytest.raises(ValueError, match=r"\w") as error:
        parse_json(text)
    assert type(error.value) in (ValueError, json.JSONDecodeError, UnicodeDecodeError)


def test_json_is_what_the_library_makes_of_it() -> None:
    content = {"a": [1, 2.5, None, {"b": "ä"}], "c": True}
    assert parse_json(json.dumps(content)) == parse_json(json.dumps(content).encode()) == content


@pytest.mark.parametrize("text", DEEP)
def test_a_result_that_nests_without_end_is_no_result_of_this_run(text: str, tmp_path: Path) -> None:
    path, run = tmp_path / "nll.json", "a" * 64
    write_signed(path, {"value": 1.0}, run)
    with claimed_file(path, run, run_of_signed, overwrite=False) as finished:
        assert finished
    path.write_text(text)
    with pytest.raises(InputError, match=r"nll\.json exists already"), claimed_file(path, run, run_of_signed, False):
        pass


@pytest.mark.parametrize("text", DEEP)
def test_a_record_of_a_comparison_that_nests_without_end_is_another_comparisons(text: str, tmp_path: Path) -> None:
    (tmp_path / RECORD).write_text(text)
    with pytest.raises(InputError, match="holds another comparison, whose model is not known"):
        ComparisonFolder(CompareOptions(out=tmp_path, model="digits"))
