"""What is saved is read in another process, in another folder, whatever the umask under which it was written."""

import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import saved
from places import ROOT, SUPPORT

UMASKS = {"022": (0o022, 0o644), "077": (0o077, 0o600)}


@dataclass
class Written:
    """Every artefact under every umask, in a folder that has been moved since; what each says, and the files' modes."""

    folder: Path
    said: dict[str, dict[str, str]] = field(default_factory=dict)
    modes: dict[str, dict[str, int]] = field(default_factory=dict)


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Written:
    here = tmp_path_factory.mktemp("saved") / "here"
    made = Written(here.with_name("there"))
    for name, (umask, _) in UMASKS.items():
        before = os.umask(umask)
        try:
            made.said[name] = {}
            for kind, (write, _) in saved.ARTEFACTS.items():
                (folder := here / name / kind).mkdir(parents=True)
                made.said[name][kind] = write(folder)
        finally:
            os.umask(before)
        files = [path for path in (here / name).rglob("*") if path.is_file()]
        made.modes[name] = {str(path.relative_to(here)): path.stat().st_mode & 0o777 for path in files}
    shutil.move(here, made.folder)
    return made


def test_everything_that_is_saved_is_read_in_a_new_process_and_another_folder(written: Written, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, SUPPORT / "saved.py", *(written.folder / name for name in UMASKS)],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    for (umask, expected), line in zip(written.said.items(), done.stdout.splitlines(), strict=True):
        read = json.loads(line)
        unlike = {kind: read.get(kind) for kind in expected if read.get(kind) != expected[kind]}
        assert unlike == {}, f"{umask}: " + "\n".join(map(str, unlike.values()))
    assert list(tmp_path.iterdir()) == []


def is_of_diffusers(path: str) -> bool:
    """Weights that a pipeline's own `save_pretrained` writes, for their owner alone."""
    return path.endswith("diffusion_pytorch_model.safetensors") and "trained_network" not in path


@pytest.mark.parametrize("name", UMASKS)
def test_files_have_the_permissions_that_the_umask_leaves(written: Written, name: str) -> None:
    modes = {path: oct(mode) for path, mode in written.modes[name].items() if not is_of_diffusers(path)}
    assert len(modes) > len(saved.ARTEFACTS)
    assert {path: mode for path, mode in modes.items() if mode != oct(UMASKS[name][1])} == {}


def test_a_pipeline_names_the_package_and_no_module_of_it(written: Written) -> None:
    """diffusers looks for the named module among the imported ones, and `import diffusion_var` imports no other."""
    index = json.loads((written.folder / "022" / "pipeline_with_lists" / "model_index.json").read_text())
    assert index["scheduler"] == ["diffusion_var", "AnalyticScheduler"]
