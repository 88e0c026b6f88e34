"""The documentation site: every public name has a page, docstrings and links become what they say, and it builds.

`make docs` builds the whole of it with warnings as errors; here are the parts that can go wrong without one.
"""

import importlib.util
import inspect
import re
from pathlib import Path
from types import ModuleType

import pytest
from places import ROOT

import diffusion_var as dv

DOCS = ROOT / "docs"


def part(name: str) -> ModuleType:
    """A module of docs/."""
    spec = importlib.util.spec_from_file_location(name, DOCS / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


API, DOCSTRINGS, LINKS = part("api_pages"), part("docstrings"), part("page_links")


def test_every_public_name_has_a_page_and_one_alone() -> None:
    API.check_groups()
    placed = [name for _, _, names in API.GROUPS.values() for name in names]
    assert sorted([*placed, "__version__"]) == sorted(dv.__all__)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda names: names.remove("estimate"), "estimate has no page"),
        (lambda names: names.append("nothing"), "nothing is no public name"),
        (lambda names: names.append("Sampler"), "Sampler is on two pages"),
    ],
)
def test_a_name_without_a_page_stops_the_build(change, said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    names = [*API.GROUPS["variance"][2]]
    change(names)
    monkeypatch.setitem(API.GROUPS, "variance", ("", "", names))
    with pytest.raises(SystemExit, match=said):
        API.check_groups()


def test_the_pages_of_the_api_name_everything(tmp_path: Path) -> None:
    API.write_api_pages(tmp_path / "api")
    text = "".join(path.read_text() for path in (tmp_path / "api").iterdir())
    for name in dv.__all__:
        value = getattr(dv, name)
        if isinstance(value, ModuleType):
            assert all(f":: diffusion_var.{name}.{inner}\n" in text for inner in API.public_names(value))
        elif name != "__version__":
            assert f":: diffusion_var.{name}\n" in text


def test_docstrings_keep_their_formulas_and_link_their_equations() -> None:
    text = """The variance |v| of x_0 [E2, E14] (arXiv:2201.06503), like `VarianceTable` and `x_t`.

    Args:
        table: of *this* model.
        n: an index, or

    Example:

        v = table.posterior_variance(500)

    Raises InputError."""
    found = DOCSTRINGS.as_rst(inspect.cleandoc(text), {"VarianceTable"})
    assert ":ref:`E2 <e2>`, :ref:`E14 <e14>`" in found
    assert r"\|v\|" in found
    assert "x_0" in found
    assert "`arXiv:2201.06503 <https://arxiv.org/abs/2201.06503>`__" in found
    assert ":py:obj:`VarianceTable <diffusion_var.VarianceTable>`" in found
    assert "``x_t``" in found
    assert r"of \*this\* model" in found
    assert "Example:\n\n::\n\n    v = table" in found
    assert found.rstrip().endswith("Raises InputError.")


def test_links_of_the_repository_are_links_of_the_site() -> None:
    text = "[a](../results/parity.md), [b](../configs/digits.yaml#L3), [c](equations.md), [d](../notebooks/x.ipynb)"
    assert LINKS.linked(text, "faq") == (
        f"[a](results/parity.md), [b]({LINKS.HOME}configs/digits.yaml#L3), [c](equations.md), [d](notebooks/x.ipynb)"
    )
    assert LINKS.linked("[e](../docs/equations.md)", "results/x") == "[e](../equations.md)"
    assert LINKS.linked("[f](docs/advise.md), [g](results/parity.md)", "changelog") == (
        "[f](advise.md), [g](results/parity.md)"
    )
    assert "(e2)=\n## E2. The" in LINKS.linked((DOCS / "equations.md").read_text(), "equations")


def test_every_link_between_files_of_the_repository_leads_somewhere() -> None:
    for path in [
        ROOT / "README.md",
        ROOT / "CONTRIBUTING.md",
        ROOT / "CHANGELOG.md",
        *DOCS.glob("*.md"),
        *(ROOT / "results").glob("*.md"),
    ]:
        for target in re.findall(r"\]\(([^)#:\s]+)(?:#[\w-]+)?\)", path.read_text()):
            if target.startswith("api/"):
                continue
            assert (path.parent / target).exists(), f"{path.name}: {target}"


def test_every_page_is_in_the_table_of_contents() -> None:
    index = (DOCS / "index.md").read_text()
    for path in DOCS.glob("*.md"):
        assert path.stem == "index" or f"\n{path.stem}\n" in index, path.name
