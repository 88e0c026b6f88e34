"""Markdown of text that is none: names and numbers come out as they are, whatever signs they hold."""

from __future__ import annotations

import re
from typing import Any

from ..errors import printable

_SIGNS = re.compile(r"([\\`*\[\]|#~$]|(?<!\w)_|_(?!\w))")  # an underscore within a word is one
_BEGINNING = re.compile(r"^([-+=]|\d+[.)])(?=\s)")


class Markdown(str):
    """Text that is Markdown already."""


def markdown(value: Any) -> Markdown:
    """Any value as one line of Markdown that shows it as it is."""
    if isinstance(value, Markdown):
        return value
    text = _BEGINNING.sub(r"\\\1", _SIGNS.sub(r"\\\1", printable(str(value), None)))
    return Markdown(text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;"))


def strong(value: Any) -> Markdown:
    """Bold."""
    return Markdown(f"**{markdown(value)}**")


def code_span(value: Any) -> Markdown:
    """A name in monospace; one that holds signs of HTML or of the span itself as it is."""
    text = printable(str(value), None)
    return markdown(text) if not text or set(text) & set("`<>&") else Markdown(f"`{text}`")


def code_block(value: Any) -> Markdown:
    """Several lines in monospace, indented, which nothing in them can end."""
    return Markdown("\n".join(f"    {printable(line, None)}".rstrip() for line in str(value).split("\n")))
