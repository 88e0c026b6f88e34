"""Links as they are right in the repository, turned into those of the site."""

import re

HOME = "https://github.com/diffusion-var/diffusion_var/blob/main/"
#: Folders of the repository whose files are pages of the site too.
_PAGES = ("results", "notebooks")


def linked(text: str, docname: str) -> str:
    """A page's text with its links: to pages where there are some, else to the repository. Equations get labels."""
    folder, _, _ = docname.rpartition("/")
    up = "../" if folder else ""

    def replaced(match: re.Match[str]) -> str:
        path, anchor = match[1], match[2] or ""
        if folder == "results" and path.startswith("docs/"):  # ../docs/equations.md, of results/x.md
            return f"](../{path.removeprefix('docs/')}{anchor})"
        if path.partition("/")[0] in _PAGES and path.endswith((".md", ".ipynb")):
            return f"]({up}{path}{anchor})"
        return f"]({HOME}{path}{anchor})"

    text = re.sub(r"\]\(\.\./([\w./-]+)(#[\w-]+)?\)", replaced, text) if folder != "api" else text
    if docname == "changelog":  # written in the folder above
        text = text.replace("](docs/", "](")
    if docname == "equations":
        text = re.sub(r"^(## (E\d+)\.)", lambda match: f"({match[2].lower()})=\n{match[1]}", text, flags=re.MULTILINE)
    return text
