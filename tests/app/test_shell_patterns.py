"""Patterns that a shell has replaced by their files are put back where they can be."""

from pathlib import Path

import pytest

from diffusion_var.app.shell_patterns import restored
from diffusion_var.errors import InputError


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in (
        "i/a1.png",
        "i/a2.png",
        "i/b.png",
        "i/c.jpg",
        "j/x.png",
        "j/y.png",
        "k[1]/x.png",
        "k[1]/y.png",
        "ref.npz",
    ):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("i/a1.png i/a2.png i/b.png ref.npz", "i/*.png ref.npz"),
        ("ref.npz i/a1.png i/a2.png i/b.png", "ref.npz i/*.png"),
        ("i/a1.png i/a2.png ref.npz", "i/a*.png ref.npz"),
        ("i/a1.png i/a2.png i/b.png i/c.jpg ref.npz", "i/* ref.npz"),
        ("i/a1.png i/a2.png i/b.png j/x.png j/y.png", "i/*.png j/*.png"),
        ("k[1]/x.png k[1]/y.png ref.npz", "k[1]/x.png k[1]/y.png ref.npz"),
        ("i/b.png ref.npz", "i/b.png ref.npz"),
        ("i/*.png ref.npz", "i/*.png ref.npz"),
    ],
)
def test_words(folder: Path, words: str, expected: str) -> None:
    assert restored({}, words.split()) == ({}, expected.split())


def test_an_option_has_taken_the_first(folder: Path) -> None:
    options = {"images": "i/a1.png", "model": "digits"}
    assert restored(options, ["i/a2.png", "i/b.png"]) == ({"images": "i/*.png", "model": "digits"}, [])
    assert options["images"] == "i/a1.png"


@pytest.mark.parametrize("words", ["i/a1.png i/b.png", "i/a1.png j/x.png", "gone/a.png gone/b.png"])
def test_files_that_no_pattern_gives_are_to_be_quoted(folder: Path, words: str) -> None:
    with pytest.raises(InputError, match=r"quote a pattern of images, '.*', so that it stays one word"):
        restored({}, words.split())


def test_names_are_taken_absolutely_too(folder: Path) -> None:
    files = [str(folder / "j" / name) for name in ("x.png", "y.png")]
    assert restored({}, [*files, "ref.npz"]) == ({}, [str(folder / "j" / "*.png"), "ref.npz"])
