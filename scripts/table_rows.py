"""Lines of Markdown tables, printed as they are found."""

from __future__ import annotations

from typing import Any


def row(*cells: Any) -> None:
    """Print a line of a Markdown table."""
    print("| " + " | ".join(str(cell) for cell in cells) + " |", flush=True)


def header(*cells: Any) -> None:
    """Print its first two lines."""
    row(*cells)
    row(*("---" for _ in cells))
