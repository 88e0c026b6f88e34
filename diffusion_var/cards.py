"""Model cards: what is written beside whatever may be published, by huggingface_hub's `ModelCard`.

A card is Markdown with metadata in front that the hub reads: licence, base model, library, tags. What was measured and
on which data stands in a table, so that a reader need not open a file to know it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

#: Where it is, in the repository that a card is of.
CARD = "README.md"


def card_text(
    title: str,
    body: str,
    *,
    tags: Sequence[str],
    library: str = "diffusion_var",
    license: str | None = None,
    base_model: str | None = None,
) -> str:
    """A card.

    Args:
        title, body: Markdown.
        tags, library, license, base_model: metadata; None is left out.
    """
    from huggingface_hub import ModelCard, ModelCardData

    data = ModelCardData(library_name=library, tags=[*tags], license=license, base_model=base_model)
    return str(ModelCard(f"---\n{data.to_yaml()}\n---\n\n# {title}\n\n{body.strip()}\n"))


def facts_table(facts: Mapping[str, str]) -> str:
    """Facts as a Markdown table of two columns; a bar or a line break in one does not end its cell."""
    rows = [f"| {name} | {' '.join(value.split()).replace('|', chr(92) + '|')} |" for name, value in facts.items()]
    return "\n".join(["| | |", "|---|---|", *rows])
