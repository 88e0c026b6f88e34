"""A fast part of the tests with the oldest versions of the dependencies that pyproject.toml allows.

    python scripts/test_minimums.py        # or: make test-minimums

The old versions go into `.minimums`, in front of the environment that runs this; PyTorch and torchvision, gigabytes
that every machine has in a build of its own, stay the environment's, and so do the tools of the tests.
"""

import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / ".minimums"
ENVIRONMENT = ("torch", "torchvision")
ABOVE_TORCH = ("diffusers", "accelerate", "torch-fidelity")  # installed without what they depend on
TESTS = [
    *("tests/test_errors.py", "tests/test_progress.py", "tests/test_checks.py", "tests/test_files.py"),
    *(
        "tests/app/test_config.py",
        "tests/app/test_options.py",
        "tests/app/test_words.py",
        "tests/app/test_yaml_text.py",
    ),
    *("tests/app/test_cli.py", "tests/app/test_terminal.py", "tests/app/test_markdown.py"),
    *(
        "tests/data/test_images.py",
        "tests/data/test_digits.py",
        "tests/process/test_kernel.py",
        "tests/metrics/test_statistics.py",
    ),
]


def minimums() -> dict[str, str]:
    """name: the oldest version that is allowed."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    declared = [*project["dependencies"], *project["optional-dependencies"]["text"]]
    return dict(re.fullmatch(r"([\w-]+)>=([\w.]+)", line).groups() for line in declared)


def main() -> int:
    oldest = {name: version for name, version in minimums().items() if name not in ENVIRONMENT}
    stamp, wanted = FOLDER / "installed.txt", "\n".join(f"{name}=={version}" for name, version in oldest.items())
    if not stamp.is_file() or stamp.read_text() != wanted:
        install = [sys.executable, "-m", "pip", "install", "--quiet", "--upgrade", "--target", str(FOLDER)]
        light = [line for line in wanted.split("\n") if not line.startswith(ABOVE_TORCH)]
        heavy = [line for line in wanted.split("\n") if line.startswith(ABOVE_TORCH)]
        subprocess.run([*install, *light], check=True)
        subprocess.run([*install, "--no-deps", *heavy], check=True)
        stamp.write_text(wanted)
    path = os.pathsep.join([str(FOLDER), str(ROOT)])
    environment = {**os.environ, "PYTHONPATH": path}
    found = "import importlib.metadata as m, sys; print(*(f'{n} {m.version(n)}' for n in sys.argv[1:]), sep=', ')"
    subprocess.run([sys.executable, "-c", found, *oldest], env=environment, check=True)
    return subprocess.run(
        [sys.executable, "-m", "pytest", "--numprocesses=auto", "-m", "not slow", *TESTS], cwd=ROOT, env=environment
    ).returncode


if __name__ == "__main__":
    sys.exit(main())
