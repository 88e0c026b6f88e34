"""YAML of configs and flags: data that a person would write is read, and all else is one sentence, at once."""

import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from diffusion_var.app.commands.train_unet import TrainUNetOptions
from diffusion_var.app.compare.options import CompareOptions
from diffusion_var.app.config import load_options
from diffusion_var.app.yaml_text import LARGEST, parse_yaml, read_yaml
from diffusion_var.errors import InputError


def said_of(call: Callable[[], object]) -> str:
    """The sentence that a call is refused with; nothing for one that is not."""
    try:
        call()
    except InputError as error:
        return str(error)
    return ""


BOMB = "a0: &a0 [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 10)
)
MERGES = "a0: &a0 {k: 1}\n" + "".join(f"a{i}: &a{i} {{<<: [{', '.join([f'*a{i - 1}'] * 9)}]}}\n" for i in range(1, 10))
REFUSED = {
    "alias bomb": (BOMB, "more than 20000 values"),
    "bomb of merges": (MERGES, "more than 20000 values"),
    "alias of itself": ("steps: &a [1, *a]\n", "stands within"),
    "mapping of itself": ("unet: &a {b: *a}\n", "stands within"),
    "deep lists": ("steps: " + "[" * 5000 + "]" * 5000, "levels deep"),
    "deep mappings": ("unet: " + "{a: " * 5000 + "1" + "}" * 5000, "levels deep"),
    "deep blocks": ("".join(" " * i + "a:\n" for i in range(300)), "levels deep"),
    "key twice": ("steps: [1]\nout: a\nsteps: [2]\n", "'steps' stands twice"),
    "key twice below": ("unet: {a: 1, 'a': 2}\n", "'a' stands twice"),
    "number of 5000 digits": (f"count: {'9' * 5000}\n", "not valid YAML"),
    "number of 400 digits": (f"count: {'9' * 400}\n", "too many digits"),
    "hexadecimal number of 9000 digits": (f"count: 0x{'f' * 9000}\n", "too many digits"),
    "null byte": ("out: a\0b\n", "not valid YAML"),
    "escape sequence": ("out: \x1b[31m\n", "not valid YAML"),
    "text for a number": ("count: !!int x\n", "not valid YAML"),
    "nothing for a number": ("count: !!int ''\n", "not valid YAML"),
    "text for a truth value": ("count: !!bool x\n", "not valid YAML"),
    "impossible date": ("count: !!timestamp 2024-13-45\n", "not valid YAML"),
    "bytes": ("count: !!binary é\n", "not valid YAML"),
    "object": ("count: !!python/object/apply:os.getcwd []\n", "not valid YAML"),
    "list as key": ("? [a]\n: b\n", "not valid YAML"),
    "two documents": ("a: 1\n---\nb: 2\n", "not valid YAML"),
    "unknown alias": ("a: *b\n", "not valid YAML"),
    "a list": ("[1, 2]", "must be a mapping"),
    "a text": ("hello", "must be a mapping"),
    "a number as key": ("1: 2", "must be a mapping"),
}


@pytest.mark.parametrize(("text", "said"), REFUSED.values(), ids=REFUSED)
def test_one_sentence_at_once(text: str, said: str, tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_text(text)
    start = time.monotonic()
    with pytest.raises(InputError, match=said) as error:
        load_options(CompareOptions, {}, path, "compare")
    assert time.monotonic() - start < 2
    assert str(path) in str(error.value)
    assert str(error.value).isprintable()
    assert len(str(error.value)) <= 1000


@pytest.mark.parametrize(
    "name", ["alias bomb", "deep mappings", "key twice", "number of 400 digits", "impossible date"]
)
def test_mappings_of_flags_are_read_by_the_same_rules(name: str) -> None:
    from diffusion_var.app.commands.train_unet import _mapping

    text, said = REFUSED[name]
    with pytest.raises(InputError, match=rf"unet is not valid YAML.*({said}|mend)"):
        _mapping("unet", text)


@pytest.mark.parametrize(
    "content", ["a: é".encode("latin-1"), "a: 1".encode("utf-16"), b"a: \xff\xfe", b"\x00" * 10], ids=repr
)
def test_other_encodings(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_bytes(content)
    with pytest.raises(InputError, match="not valid YAML"):
        read_yaml(path)


def test_what_is_no_small_regular_file_is_not_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo.yaml")
    (tmp_path / "folder.yaml").mkdir()
    (tmp_path / "large.yaml").write_text("a: " + "x" * LARGEST)
    (tmp_path / "round.yaml").symlink_to(tmp_path / "round.yaml")
    for name, said in (
        ("fifo", "pipe"),
        ("folder", "folder"),
        ("large", "bytes"),
        ("round", "link"),
        ("no", "no config"),
    ):
        with pytest.raises(InputError, match=said):
            read_yaml(tmp_path / f"{name}.yaml")
    with pytest.raises(InputError, match="device"):
        read_yaml(Path("/dev/zero"))


def test_what_people_write_is_read(tmp_path: Path) -> None:
    """Anchors and merges of a few methods, a byte order mark, names that look like dates, and scientific numbers."""
    path = tmp_path / "c.yaml"
    path.write_text(
        "\ufeffout: 2024-12-24\ntolerance: 1e-2\nmethods:\n  - &first {covariance: beta, eta: 1}\n"
        "  - {<<: *first, covariance: beta_tilde}\nsteps: &k [2, 3]\nseeds: *k\n",
        encoding="utf-8",
    )
    options = load_options(CompareOptions, {}, path, "compare")
    assert options.out == Path("2024-12-24")
    assert options.tolerance == 0.01
    assert [method.covariance for method in options.methods] == ["beta", "beta_tilde"]
    assert options.steps == options.seeds == [2, 3]


@given(st.text(alphabet="ab:,[]{}&*!?-|>'\" \n\t#%@`0.~<", max_size=60))
def test_any_text_is_data_or_a_sentence(text: str) -> None:
    assert said_of(lambda: parse_yaml(text, "it")).isprintable()


VALUES: list[Any] = [None, True, 3, -1, 2.5, float("nan"), 2**100, "text", "", "\x1b[31m"]
VALUES += [[], [1], [[1]], {}, {"a": 1}, [{}], {1: 2}]


@pytest.mark.parametrize("kind", [CompareOptions, TrainUNetOptions])
@pytest.mark.parametrize("value", VALUES, ids=repr)
def test_any_value_of_any_option_is_taken_or_named(kind: Any, value: object, tmp_path: Path) -> None:
    path, given = tmp_path / "c.yaml", {"images": "i", "out": "o"} if kind is TrainUNetOptions else {}
    for name in kind.__dataclass_fields__:
        path.write_text(json.dumps({name: value}))
        said = said_of(lambda: load_options(kind, given, path))
        assert said == "" or name in said
        assert all(line.isprintable() for line in said.splitlines())
