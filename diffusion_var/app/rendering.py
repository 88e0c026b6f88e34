"""What reports are made of: text from templates, and pictures as bytes."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any

from ..errors import printable
from .markdown import code_block, code_span, markdown, strong

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def render(package: str, name: str, content: dict[str, Any]) -> str:
    """A page from the template NAME.j2 of a package: HTML with all escaped, or Markdown that shows all as it is."""
    import jinja2

    is_html = name.endswith(".html")
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader(package),
        autoescape=is_html,
        finalize=_printable_lines if is_html else markdown,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
        keep_trailing_newline=True,
    )
    environment.filters |= {"code": code_span, "strong": strong, "block": code_block}
    return environment.get_template(f"{name}.j2").render(content)


def _printable_lines(value: Any) -> Any:
    return "\n".join(printable(line, None) for line in value.split("\n")) if isinstance(value, str) else value


def png(figure: Figure, tight: bool = True) -> bytes:
    """A figure as a PNG file; the same figure gives the same bytes."""
    out = io.BytesIO()
    figure.savefig(out, format="png", metadata={"Software": None}, bbox_inches="tight" if tight else None)
    return out.getvalue()


def spreadsheet_cell(name: str) -> str:
    """A name that no spreadsheet takes for a formula."""
    return f"'{name}" if name.lstrip().startswith(("=", "+", "-", "@")) else name
