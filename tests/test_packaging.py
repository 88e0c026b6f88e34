"""The wheel holds everything that an installed package needs, and nothing speaks of a checkout."""

import runpy
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path

import pytest
import yaml
from places import ROOT


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the wheel and the source distribution."""
    folder = tmp_path_factory.mktemp("dist")
    command = [
        sys.executable,
        "-m",
        "build",
        "--wheel",
        "--sdist",
        "--no-isolation",
        "--outdir",
        str(folder),
        str(ROOT),
    ]
    subprocess.run(command, check=True, capture_output=True)
    return folder


@pytest.mark.slow
def test_wheel_builds_and_is_complete(built: Path) -> None:
    (wheel,) = built.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    sources = {str(p.relative_to(ROOT)) for p in (ROOT / "diffusion_var").rglob("*.py")}
    assert sources <= names
    for needed in (
        "py.typed",
        "assets/digits/unet/diffusion_pytorch_model.safetensors",
        "assets/digits/scheduler/scheduler_config.json",
        "assets/digits_features.safetensors",
        "assets/photographs/unet/diffusion_pytorch_model.safetensors",
        "assets/photographs/scheduler/scheduler_config.json",
        "app/compare/templates/report.html.j2",
        "app/restore/templates/report.md.j2",
    ):
        assert f"diffusion_var/{needed}" in names


@pytest.mark.slow
def test_an_index_would_take_them(built: Path) -> None:
    """The page of an index renders, and the wheel holds nothing that it should not."""
    files = [str(path) for path in built.iterdir()]
    assert len(files) == 2
    for command in (["twine", "check", "--strict", *files], ["check-wheel-contents", *map(str, built.glob("*.whl"))]):
        done = subprocess.run([sys.executable, "-m", *_module(command)], capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stdout + done.stderr


def _module(command: list[str]) -> list[str]:
    return [command[0].replace("-", "_"), *command[1:]]


@pytest.mark.slow
def test_the_source_distribution_has_what_its_own_tests_read(built: Path) -> None:
    (source,) = built.glob("*.tar.gz")
    with tarfile.open(source) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, timeout=60)
    if tracked.returncode:
        pytest.skip("not a git checkout")
    assert set(tracked.stdout.splitlines()) - names == set()


def test_every_file_names_one_home() -> None:
    """The project's address is pyproject.toml's wherever it stands."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    home = project["urls"]["Source"]
    assert all(url.startswith(home) for url in project["urls"].values())
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["repository-code"] == home
    assert citation["version"] == project["version"]
    assert citation["license"] == project["license"]
    contact = yaml.safe_load((ROOT / ".github" / "ISSUE_TEMPLATE" / "config.yml").read_text())["contact_links"]
    assert all(link["url"].startswith(home) for link in contact)


def test_issue_templates_ask_for_the_protocol() -> None:
    for path in (ROOT / ".github" / "ISSUE_TEMPLATE").glob("[bn]*.yml"):
        form = yaml.safe_load(path.read_text())
        assert {"name", "description", "body"} <= set(form)
        assert "protocol" in {field["id"] for field in form["body"]}


def test_public_hosting_runs_what_is_run_here() -> None:
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text())
    steps = workflow["jobs"]["run"]["steps"]
    assert [step["run"] for step in steps if "run" in step] == [".ci/run"]
    script = (ROOT / ".ci" / "run").read_text()
    assert [line for line in script.splitlines() if line.startswith("make ")] == [
        "make test",
        "make docs",
        "make test-minimums",
    ]


def test_bundled_weights_are_small_enough() -> None:
    """The digits, network and features, and the photographs' network."""
    assets = ROOT / "diffusion_var" / "assets"
    sizes = {path: path.stat().st_size for path in assets.rglob("*.safetensors")}
    photographs = sum(size for path, size in sizes.items() if "photographs" in path.parts)
    assert 0 < photographs <= 3_000_000
    assert sum(sizes.values()) - photographs <= 1_600_000


def test_the_tests_with_the_oldest_versions_are_there() -> None:
    script = runpy.run_path(str(ROOT / "scripts" / "test_minimums.py"))
    missing = [name for name in script["TESTS"] if not (ROOT / name).is_file()]
    assert not missing, missing
