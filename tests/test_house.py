"""The house: the order of its rooms, no circles, quick imports, public names, and citations that lead somewhere."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest
from places import ROOT

import diffusion_var

PACKAGE = ROOT / "diffusion_var"


def test_a_room_imports_only_from_the_rooms_above_it() -> None:
    command = [str(Path(sys.executable).parent / "lint-imports"), "--config", "pyproject.toml", "--no-cache"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "0 broken" in done.stdout


def test_importing_the_package_imports_nothing_heavy() -> None:
    heavy = ("torch", "numpy", "scipy", "diffusers", "matplotlib")
    code = f"import sys, diffusion_var; print([name for name in {heavy} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.stdout.strip() == "[]", done.stdout + done.stderr


def test_every_public_name_is_there() -> None:
    assert len(set(diffusion_var.__all__)) == len(diffusion_var.__all__)
    for name in diffusion_var.__all__:
        assert getattr(diffusion_var, name) is not None
    assert set(diffusion_var.__all__) == set(dir(diffusion_var))
    with pytest.raises(AttributeError, match="no_such_name"):
        diffusion_var.no_such_name  # noqa: B018


# ---- circles of imports --------------------------------------------------------------------------------------------

#: The two circles that stay: a class method makes an object of its own class by way of a module that imports the class.
ALLOWED = [
    {"process.diffusers_configs", "process.schedule"},
    {"models.denoiser", "models.pretrained.load"},
]


def imports_of(path: Path, modules: set[str]) -> set[str]:
    """The package's modules that a file imports, also inside functions and for typing alone."""
    home = (".".join(path.relative_to(ROOT).with_suffix("").parts)).removesuffix(".__init__")
    package = home.split(".") if path.stem == "__init__" else home.split(".")[:-1]
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            source = ".".join([*base, *([node.module] if node.module else [])])
            found |= {source} | {f"{source}.{alias.name}" for alias in node.names}
    return (found & modules) - {home, "diffusion_var"}


def circles(graph: dict[str, set[str]]) -> list[set[str]]:
    """The sets of modules that reach each other."""

    def reached(start: str) -> set[str]:
        seen: set[str] = set()
        left = [start]
        while left:
            for after in graph[left.pop()] - seen:
                seen.add(after)
                left.append(after)
        return seen

    reach = {name: reached(name) for name in graph}
    found: list[set[str]] = []
    for name in graph:
        circle = {other for other in reach[name] if name in reach[other]}
        if len(circle) > 1 and circle not in found:
            found.append(circle)
    return found


def test_a_circle_would_be_found() -> None:
    graph: dict[str, set[str]] = {"a": {"b"}, "b": {"c"}, "c": {"a"}, "d": {"a"}, "e": set()}
    assert circles(graph) == [{"a", "b", "c"}]


def test_no_circle_of_imports_but_the_two_that_are_allowed() -> None:
    paths = {
        (".".join(path.relative_to(ROOT).with_suffix("").parts)).removesuffix(".__init__"): path
        for path in PACKAGE.rglob("*.py")
    }
    graph = {name: imports_of(path, set(paths)) for name, path in paths.items() if name != "diffusion_var"}
    # A room's __init__ names what is in it, lazily, and imports none of it.
    rooms = {name for name, path in paths.items() if path.stem == "__init__"}
    graph = {name: after - rooms for name, after in graph.items() if name not in rooms}
    found = [{name.removeprefix("diffusion_var.") for name in circle} for circle in circles(graph)]
    assert [circle for circle in found if circle not in ALLOWED] == []


# ---- what is cited ---------------------------------------------------------------------------------------------------


def test_every_equation_that_is_cited_is_in_the_docs() -> None:
    """Docstrings and comments cite equations as [E4], and docs/equations.md has a heading for each."""
    headings = set(re.findall(r"^## E(\d+)\b", (ROOT / "docs" / "equations.md").read_text(), re.MULTILINE))
    cited: dict[str, set[str]] = {}
    for path in PACKAGE.rglob("*.py"):
        for group in re.findall(r"\[(E\d+(?:, E\d+)*)\]", path.read_text()):
            for number in re.findall(r"E(\d+)", group):
                cited.setdefault(number, set()).add(path.name)
    assert len(cited) >= 10
    assert {number: files for number, files in cited.items() if number not in headings} == {}


def test_nothing_is_cited_that_is_not_here() -> None:
    """No design document of ours, no section numbers of one, no path outside the repository."""
    for path in [*PACKAGE.rglob("*.py"), *(ROOT / "scripts").glob("*.py"), *(ROOT / "docs").glob("*.md")]:
        text = path.read_text()
        assert "DESIGN" not in text, path
        assert not re.search(r"\beq\. \(\d+\)", text), path
        assert "../shared" not in text, path


@pytest.mark.parametrize("path", sorted((ROOT / "scripts").glob("*.py")), ids=lambda path: path.stem)
def test_scripts_use_public_names_alone(path: Path) -> None:
    """`import diffusion_var`, or names of the rooms that have some: nothing from inside."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("diffusion_var"):
            room = sys.modules.get(node.module or "") or __import__(str(node.module), fromlist=["_"])
            assert {alias.name for alias in node.names} <= set(room.__all__), f"{path.name}: {node.module}"
        if isinstance(node, ast.Import):
            assert all(not alias.name.startswith("diffusion_var.") for alias in node.names)


def test_notebooks_use_public_names_alone() -> None:
    for path in (ROOT / "notebooks").glob("*.ipynb"):
        assert not re.search(r"(from|import) diffusion_var\.", path.read_text()), path


def test_the_docs_show_the_plain_loops_that_are_tested() -> None:
    """The blocks of docs/equations.md are the functions of tests/support/naive.py, to the letter."""
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "equations.md").read_text(), re.DOTALL)
    source = (ROOT / "tests" / "support" / "naive.py").read_text()
    assert len(blocks) == source.count("\ndef ") == 3
    assert all(block in source for block in blocks)
