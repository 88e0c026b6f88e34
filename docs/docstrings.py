"""Docstrings of this package as reStructuredText.

They are plain text: `code` in single backticks, [E2] for an equation of docs/equations.md, arXiv numbers, and indented
blocks (formulas, examples) after an empty line. All else that reStructuredText would take for markup is escaped.
"""

import re

_CODE = re.compile(r"`([^`]+)`")
_EQUATIONS = re.compile(r"\[(E\d+(?:, E\d+)*)\]")
_ARXIV = re.compile(r"\barXiv:(\d{4}\.\d{4,5})\b")


def as_rst(text: str, public: set[str]) -> str:
    """A docstring, its common indentation removed, as reStructuredText; `public` names are linked."""
    blocks, out, indents = re.split(r"\n[ \t]*\n", text), [], [0]
    literal_at: int | None = None
    for block in blocks:
        if not block.strip():
            continue
        indent = len(block) - len(block.lstrip(" "))
        if literal_at is not None and indent < literal_at:
            literal_at = None
        if literal_at is None and indent > indents[-1] and not _is_list(block):
            out.append(f"{' ' * indents[-1]}::")
            literal_at = indent
        if literal_at is not None:
            out.append(block)
            continue
        out.append(_prose(block, public))
        last = block.split("\n")[-1]
        indents.append(_indent_after(block, last))
    return "\n\n".join(out)


def _indent_after(block: str, last: str) -> int:
    """Where a paragraph that follows a block begins, if it is no literal: at the block's own lines."""
    lines = block.split("\n")
    first = len(lines[0]) - len(lines[0].lstrip(" "))
    if re.fullmatch(r"\s*[A-Z]\w+:", lines[0]) and len(lines) > 1:  # a section: its entries
        return len(lines[1]) - len(lines[1].lstrip(" "))
    return first


def _is_list(block: str) -> bool:
    return bool(re.match(r"\s*[-*] ", block))


def _prose(block: str, public: set[str]) -> str:
    parts = _CODE.split(block)
    return "".join(_code(part, public) if k % 2 else _escaped(part) for k, part in enumerate(parts))


def _code(name: str, public: set[str]) -> str:
    bare = name.removeprefix("dv.")
    if bare in public and bare != "__version__":
        return f":py:obj:`{name} <diffusion_var.{bare}>`"
    return f"``{' '.join(name.split())}``"


def _escaped(text: str) -> str:
    text = re.sub(r"([*|\\])", r"\\\1", text)
    text = re.sub(r"_(?=\W|$)|(?<=\W)_|^_", r"\\_", text)
    text = _ARXIV.sub(r"`arXiv:\1 <https://arxiv.org/abs/\1>`__", text)

    def linked(match: re.Match[str]) -> str:
        return "[" + ", ".join(f":ref:`{name} <{name.lower()}>`" for name in match[1].split(", ")) + "]"

    return _EQUATIONS.sub(linked, text)
