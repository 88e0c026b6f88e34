"""The manifest of a folder: only files that are as one run wrote them are there for it."""

import subprocess
from pathlib import Path

import pytest

from diffusion_var.manifest import NAME, Manifest

RUN, OTHER = "a" * 64, "b" * 64
FILES = {"1.png": b"one", "2.png": b"two", "3.png": b"three"}


def written(folder: Path) -> Manifest:
    manifest = Manifest(folder, RUN)
    manifest.begin()
    manifest.write(dict(list(FILES.items())[:2]))
    manifest.write(dict(list(FILES.items())[2:]))
    return manifest


def test_it_is_what_sha256sum_reads(tmp_path: Path) -> None:
    assert written(tmp_path).is_whole()
    subprocess.run(["sha256sum", "--check", "--strict", NAME], cwd=tmp_path, check=True, capture_output=True)
    found = Manifest(tmp_path, RUN)
    assert found.belongs
    assert found.intact() == set(FILES)


def test_another_runs_files_are_not_there(tmp_path: Path) -> None:
    written(tmp_path)
    found = Manifest(tmp_path, OTHER)
    assert not found.belongs
    assert not found.is_whole()
    assert found.intact() == set()


@pytest.mark.parametrize("damage", ["empty", "cut", "flipped", "swapped", "gone"])
def test_a_file_that_is_not_as_it_was_written_is_not_there(damage: str, tmp_path: Path) -> None:
    written(tmp_path)
    path, other = tmp_path / "1.png", tmp_path / "2.png"
    if damage == "swapped":
        path.rename(tmp_path / "x")
        other.rename(path)
        (tmp_path / "x").rename(other)
    elif damage == "gone":
        path.unlink()
    else:
        path.write_bytes({"empty": b"", "cut": b"on", "flipped": b"ond"}[damage])
    assert Manifest(tmp_path, RUN).intact() == {"3.png"} | ({"2.png"} if damage != "swapped" else set())
    assert not Manifest(tmp_path, RUN).is_whole()


def test_a_torn_manifest_costs_the_files_without_a_line(tmp_path: Path) -> None:
    written(tmp_path)
    content = (tmp_path / NAME).read_bytes()
    for cut in range(len(content)):
        (tmp_path / NAME).write_bytes(content[:cut])
        assert len(Manifest(tmp_path, RUN).intact()) == max(content[:cut].count(b"\n") - 1, 0)


def test_a_manifest_of_files_that_were_committed_at_once_knows_how_many(tmp_path: Path) -> None:
    """Cut between two lines, or with a line that is none, it must not take the rest for all."""
    manifest = written(tmp_path)
    manifest.end(FILES)
    subprocess.run(["sha256sum", "--check", "--strict", NAME], cwd=tmp_path, check=True, capture_output=True)
    assert Manifest(tmp_path, RUN).is_whole()
    content = (tmp_path / NAME).read_bytes()
    for cut in range(len(content)):
        (tmp_path / NAME).write_bytes(content[:cut])
        assert not Manifest(tmp_path, RUN).is_whole()
    (tmp_path / NAME).write_bytes(content.replace(b"  2.png", b" .2.png"))
    assert Manifest(tmp_path, RUN).intact() == {"1.png", "3.png"}
    assert not Manifest(tmp_path, RUN).is_whole()
    (tmp_path / NAME).write_bytes(content.replace(b" of 3 files", b""))  # as older versions wrote it
    assert Manifest(tmp_path, RUN).is_whole()


@pytest.mark.parametrize("name", ["../2.png", "{}/2.png", "part/../../2.png", "2\0.png"])
def test_a_name_that_leads_elsewhere_is_not_there(name: str, tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    (folder / "part").mkdir(parents=True)
    written(folder)
    (tmp_path / "2.png").write_bytes(FILES["2.png"])
    content = (folder / NAME).read_text()
    (folder / NAME).write_text(content.replace("2.png", name.format(tmp_path)))
    assert Manifest(folder, RUN).intact() == {"1.png", "3.png"}


def test_what_is_kept_and_what_is_committed_at_once(tmp_path: Path) -> None:
    manifest = written(tmp_path)
    manifest.begin(["2.png"])
    assert Manifest(tmp_path, RUN).intact() == {"2.png"}
    manifest.end(["1.png", "3.png"])
    assert Manifest(tmp_path, RUN).intact() == {"1.png", "3.png"}
    manifest.remove()
    assert not Manifest(tmp_path, RUN).belongs
