"""The command sample in several processes: the files of one, whoever was interrupted, and how many went on."""

import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from many import Many, many

from diffusion_var import manifest, parallel, same_folder
from diffusion_var.app.commands import sample
from diffusion_var.app.options import SampleOptions

pytestmark = pytest.mark.filterwarnings("ignore::diffusion_var.errors.DiffusionVarWarning")


def contents(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in sorted(folder.iterdir())}


def draw(out: Path, **options: Any) -> None:
    torch.set_num_threads(1)
    with parallel.sharing("sample"):
        sample.run(SampleOptions(model="digits", out=out, **{"steps": 2, "count": 23, "batch_size": 2, **options}))


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    folder = tmp_path_factory.mktemp("one") / "out"
    draw(folder)
    return contents(folder)


def test_two_processes_write_the_folder_of_one(
    tmp_path: Path, expected: dict[str, bytes], capfd: pytest.CaptureFixture[str]
) -> None:
    many(2, draw, tmp_path / "out")
    assert contents(tmp_path / "out") == expected
    assert capfd.readouterr().out.count("written: 23 images") == 1
    many(3, draw, tmp_path / "out")
    assert capfd.readouterr().out.count("already finished") == 1
    assert contents(tmp_path / "out") == expected


def test_a_record_that_was_damaged_since_is_written_again(tmp_path: Path) -> None:
    draw(tmp_path / "out", count=3)
    before = contents(tmp_path / "out")
    (tmp_path / "out" / "sampling.json").write_text('{"steps": ')
    draw(tmp_path / "out", count=3)
    assert contents(tmp_path / "out") == before


def test_and_its_npz(tmp_path: Path) -> None:
    draw(tmp_path / "one.npz", count=7)
    many(2, lambda: draw(tmp_path / "two.npz", count=7))
    assert (tmp_path / "one.npz").read_bytes() == (tmp_path / "two.npz").read_bytes()


@pytest.mark.parametrize(
    ("number", "before", "after"),
    [(signal.SIGKILL, 2, 1), (signal.SIGTERM, 1, 2), (signal.SIGTERM, 2, 3)],
)
def test_another_number_of_processes_completes_it(
    number: signal.Signals, before: int, after: int, tmp_path: Path, expected: dict[str, bytes]
) -> None:
    def stop(out: Path) -> None:
        write, calls = manifest.write_files, []

        def counted(*arguments: Any) -> Any:
            calls.append(arguments)
            if len(calls) == 3 and os.environ["RANK"] == str(before - 1):
                os.kill(os.getpid(), number)
            return write(*arguments)

        sample.write_files = counted  # type: ignore[attr-defined]  # in this fork alone
        signal.signal(signal.SIGTERM, signal.default_int_handler)
        draw(out)

    ends = Many(before, stop, tmp_path / "out").ends()
    assert ends[-1].code == (-signal.SIGKILL if number == signal.SIGKILL else 0)
    assert all(end.error for end in ends[:-1])
    left = contents(tmp_path / "out")
    lines = left[manifest.NAME].decode().splitlines()[1:]
    assert 0 < len(lines) < 23
    many(after, draw, tmp_path / "out")
    assert contents(tmp_path / "out") == expected


def test_a_folder_that_is_not_shared_is_found_before_the_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(same_folder, "_SECONDS", 0.2)

    def own() -> None:
        draw(tmp_path / os.environ["RANK"])

    for end in Many(2, own).ends():
        assert (end.error or "").startswith("InputError: the folder")
        assert "is not seen by rank 1" in (end.error or "")
    assert not [*tmp_path.rglob("*.png"), *tmp_path.rglob("*.tmp")]
