"""The documentation site: `make docs` builds it into build/site, and warnings are errors.

Pages are Markdown. Three folders beside them are made when the site is built, and not kept: `api` (a page for each
group of `api_pages.GROUPS`, which must hold every public name), `results` and `notebooks` (those of the repository).
"""

import re
import shutil
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
sys.path[:0] = [str(ROOT), str(HERE)]

from api_pages import write_api_pages  # noqa: E402
from docstrings import as_rst  # noqa: E402
from page_links import linked  # noqa: E402

import diffusion_var  # noqa: E402

project = "diffusion_var"
author = "The diffusion_var authors"
copyright = "the diffusion_var authors"
version = release = diffusion_var.__version__
html_title = "diffusion_var"
language = "en"

extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.viewcode", "sphinx_copybutton"]
source_suffix = {".md": "myst-nb", ".ipynb": "myst-nb"}
exclude_patterns = ["_build"]
html_theme = "furo"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_theme_options = {"source_repository": "https://github.com/diffusion-var/diffusion_var/"}
html_theme_options |= {"source_branch": "main", "source_directory": "docs/", "navigation_with_keys": True}
html_show_copyright = False

nb_execution_mode = "off"  # they are kept with their pictures, and run by the tests
myst_heading_anchors = 3
myst_enable_extensions = ["colon_fence"]
suppress_warnings = ["mystnb.unknown_mime_type"]

add_module_names = False
python_maximum_signature_line_length = 88
autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
napoleon_numpy_docstring = False
napoleon_use_rtype = False
copybutton_prompt_text = "$ "


#: Docstrings of properties, while napoleon is at work.
held: dict[str, list[str]] = {}


def setup(app):
    """Make the pages that are not kept, and read docstrings and links as they are written in this repository."""
    write_api_pages(HERE / "api")
    for name in ("results", "notebooks"):
        copied(ROOT / name, HERE / name)
    app.connect("source-read", read_page)
    app.connect("autodoc-process-docstring", process_docstring, priority=100)
    app.connect("autodoc-process-docstring", give_back, priority=900)
    app.connect("autodoc-process-signature", lambda *given: tuple(map(plain_types, given[-2:])))


def read_page(app, docname, source):
    """A page's text, with the links of the site; the changelog is the repository's."""
    text = (ROOT / "CHANGELOG.md").read_text() if docname == "changelog" else source[0]
    source[0] = linked(text, docname)


def copied(source: Path, target: Path) -> None:
    """Copy files that are new or have changed, and remove those that are gone, so that a site is made anew quickly."""
    target.mkdir(exist_ok=True)
    wanted = {path.name: path for path in source.iterdir() if path.suffix in (".md", ".ipynb", ".png", ".csv")}
    for path in target.iterdir():
        if path.name not in wanted:
            path.unlink()
    for name, path in wanted.items():
        if not (target / name).is_file() or (target / name).read_bytes() != path.read_bytes():
            shutil.copyfile(path, target / name)


def plain_types(signature: str | None) -> str | None:
    """A signature in which NumPy's types are called what the code calls them."""
    if signature is None:
        return None
    signature = re.sub(r"[~\w.]*_Buffer \| .*?\[complex \| bytes \| str\]", "ArrayLike", signature)
    array = r"[~\w.]*ndarray\[[~\w.]*tuple\[[~\w.]*Any, \.\.\.\], [~\w.]*dtype\[[~\w.]*?(\w+)\]\]"
    return re.sub(array, r"ndarray[\1]", signature)


def process_docstring(app, what, name, obj, options, lines):
    """autodoc's hook. What a value's type says of itself (a tuple's docstring) is nothing about the value."""
    if what == "data":
        lines.clear()
    lines[:] = as_rst("\n".join(lines), set(diffusion_var.__all__)).split("\n")
    if what in ("property", "attribute"):  # napoleon would take what stands before a colon for its type
        held[name] = [*lines]
        lines.clear()


def give_back(app, what, name, obj, options, lines):
    """After napoleon: what was kept from it."""
    lines[:] = held.pop(name, lines)
