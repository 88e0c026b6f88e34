"""Files that a shell has put in the place of a pattern of images (`imgs/*.png` without quotes): it is put back.

An option or argument takes one word, and a shell makes many of a pattern. Where they are all the files that a pattern
matches, that pattern was meant; where no pattern gives these files and no others, quotes are asked for.
"""

from __future__ import annotations

import os
from glob import escape, glob, has_magic
from itertools import groupby
from pathlib import Path

from ..checks import brief
from ..errors import InputError


def restored(options: dict[str, str], words: list[str]) -> tuple[dict[str, str], list[str]]:
    """The options' texts by name and the words without an option, with patterns in the place of their files.

    Raises InputError for several image files where one word is taken, if no pattern gives just these.
    """
    if not words or len(words) + len(options) < 2:
        return options, words
    options, left = dict(options), list(words)
    for name, text in options.items():
        same = [word for word in left if _is_image(word) and _is_image(text) and _folder(word) == _folder(text)]
        if same and (pattern := _pattern([text, *same])):
            options[name] = pattern
            left = [word for word in left if word not in same]
    out: list[str] = []
    for folder, group in groupby(left, lambda word: _folder(word) if _is_image(word) else None):
        run = list(group)
        pattern = _pattern(run) if folder is not None and len(run) > 1 else None
        out += run if pattern is None else [pattern]
    _refuse_loose_images([*options.values()], out)
    return options, out


def _pattern(files: list[str]) -> str | None:
    """The pattern that gives these files of one folder and no others; None where there is none so simple."""
    names, wanted = [Path(file).name for file in files], {Path(file) for file in files}
    suffixes = {Path(name).suffix for name in names}
    start = escape(os.path.commonprefix(names))  # noqa: RUF071 (characters it is to compare)
    end = suffixes.pop() if len(suffixes) == 1 else ""
    for last in dict.fromkeys((f"*{end}", f"{start}*{end}", "*", f"{start}*")):
        pattern = os.path.join(escape(os.path.dirname(files[0])), last)
        if {Path(found) for found in glob(pattern)} == wanted:
            return pattern
    return None


def _refuse_loose_images(texts: list[str], words: list[str]) -> None:
    taken, loose = ([Path(word) for word in words if _is_image(word)] for words in (texts, words))
    if not loose or len(files := [*taken, *loose]) < 2:
        return
    folders, kinds = {file.parent for file in files}, {file.suffix for file in files}
    inside = ("**",) if len(folders) > 1 else ()
    pattern = str(Path(os.path.commonpath(folders), *inside, f"*{kinds.pop() if len(kinds) == 1 else ''}"))
    raise InputError(
        f"{brief(str(loose[0]))} stands where no image file is taken; quote a pattern of images, {brief(pattern)}, so "
        "that it stays one word."
    )


def _folder(word: str) -> Path:
    return Path(word).parent


def _is_image(word: str) -> bool:
    from ..data.decoding import suffixes  # imports torch

    return Path(word).suffix.lower() in suffixes() and not has_magic(word)
