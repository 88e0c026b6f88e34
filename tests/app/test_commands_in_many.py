"""Commands in many processes: one output, one voice, and all end together with a sentence that names who failed."""

import io
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from many import many

import diffusion_var as dv
from diffusion_var.app import cli
from diffusion_var.app.commands import estimate
from diffusion_var.app.model import open_model
from diffusion_var.app.options import EstimateOptions
from diffusion_var.app.together import facts

ESTIMATE = [
    "estimate",
    "--model",
    "digits",
    "--images",
    "digits:table[:24]",
    "--indices",
    "300,500",
    "--tolerance",
    "9",
]
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]


@pytest.fixture(scope="module", autouse=True)
def imported() -> None:
    """What the forks would import, each for itself."""
    import accelerate  # noqa: F401

    dv.estimate, dv.Denoiser.from_pretrained  # noqa: B018
    open_model("digits", EstimateOptions(model="digits", images="digits:table", out=Path("none"), device="cpu"))


def command(arguments: list[list[str]], spoilt: Any = None) -> tuple[int, str, str]:
    """The exit code, output and errors of a command in this process, which has arguments of its own."""
    rank = int(os.environ["RANK"])
    sys.argv = ["diffusion-var", *arguments[rank % len(arguments)]]
    sys.stdout, sys.stderr = out, err = io.StringIO(), io.StringIO()
    ends: list[int] = []
    os._exit = lambda code: ends.append(code)  # type: ignore[assignment,method-assign]
    if spoilt is not None and rank == 1:
        spoilt()
    try:
        cli.main()
    except SystemExit as end:
        ends.append(int(end.code or 0))
    finally:
        os._exit = exits  # type: ignore[method-assign]
    return ends[0], out.getvalue(), err.getvalue()


exits = os._exit


def errors(text: str) -> list[str]:
    return [line for line in text.splitlines() if line.startswith("error: ")]


def test_one_table_and_one_voice(tmp_path: Path) -> None:
    found = many(2, command, [[*ESTIMATE, "-o", str(tmp_path / "t.safetensors")]])
    assert [code for code, *_ in found] == [0, 0]
    assert found[0][1].count("written: ") == 1
    assert found[1][1:] == ("", "")
    again = many(2, command, [[*ESTIMATE, "-o", str(tmp_path / "t.safetensors")]])
    assert [code for code, *_ in again] == [0, 0]
    assert again[0][1].startswith("already finished: ")
    assert again[1][1] == ""
    assert [path.name for path in tmp_path.iterdir()] == ["t.safetensors"]


def test_a_mistake_of_all_is_said_once(tmp_path: Path) -> None:
    found = many(2, command, [[*ESTIMATE[:-1], "-9", "-o", str(tmp_path / "t.safetensors")]])
    assert [code for code, *_ in found] == [2, 2]
    said = [line for *_, text in found for line in errors(text)]
    assert sum("tolerance" in line for line in said) == len(said)
    assert sum(line.startswith("error: (rank ") for line in said) == 1


@pytest.mark.parametrize(
    ("other", "said"),
    [
        (["--seed", "1"], "the processes differ in --seed (the --seed of rank 0 is 0, of rank 1 1)"),
        (["--tolerance", "x"], "rank 1 of 2 failed: the options have one problem"),
    ],
)
def test_options_must_agree(other: list[str], said: str, tmp_path: Path) -> None:
    out = ["-o", str(tmp_path / "t.safetensors")]
    found = many(2, command, [[*ESTIMATE, *out], [*ESTIMATE, *out, *other]])
    assert [code for code, *_ in found] == [2, 2]
    assert said in "".join(text for *_, text in found)
    assert [*tmp_path.iterdir()] == []


def test_a_process_without_the_model_is_named(tmp_path: Path) -> None:
    """As where a folder is not shared: what lies under a path is compared before the work."""
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "model_index.json").write_text("{}")
    mine = [[*ESTIMATE, "--model", str(tmp_path / name), "-o", str(tmp_path / "t")] for name in ("model", "none")]
    found = many(2, command, mine)
    assert [code for code, *_ in found] == [2, 2]
    said = "".join(text for *_, text in found)
    assert "the processes differ in --model and content of" in said or "--model, content of" in said


def raises() -> None:
    def spoilt(*_: Any) -> None:
        raise ValueError("of one's own")

    estimate._measure = spoilt  # type: ignore[assignment]


def no_memory() -> None:
    def spoilt(*_: Any) -> None:
        raise MemoryError

    estimate._measure = spoilt  # type: ignore[assignment]


@pytest.mark.parametrize(
    ("spoilt", "code", "said", "own"),
    [
        (raises, 1, "error: rank 1 of 2 failed: ValueError: of one's own.", "Traceback"),
        (no_memory, 2, "error: rank 1 of 2 failed: out of memory; lower --batch-size.", "error: (rank 1 of 2) out of"),
    ],
)
def test_a_failure_is_named_by_all(spoilt: Any, code: int, said: str, own: str, tmp_path: Path) -> None:
    found = many(2, command, [[*ESTIMATE, "-o", str(tmp_path / "t.safetensors")]], spoilt)
    assert [ended for ended, *_ in found] == [code, code]
    assert errors(found[0][2]) == [said]
    assert found[1][2].startswith(own)


@pytest.mark.filterwarnings("always::diffusion_var.errors.DiffusionVarWarning")
def test_what_one_process_does_is_left_to_the_first(tmp_path: Path) -> None:
    found = many(3, command, [["show", "--table", str(tmp_path / "none.safetensors")]])
    assert [code for code, *_ in found] == [2, 0, 0]
    assert found[0][2].count("show is the work of one process; 3 were started: the first does it, and no other.") == 1
    assert found[1][1:] == found[2][1:] == ("", "")


def test_facts_name_files_and_not_what_is_written(tmp_path: Path) -> None:
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "w").write_bytes(b"123")
    (tmp_path / "out").write_bytes(b"12")
    options = EstimateOptions(model=str(tmp_path / "m"), images="digits:table[:5]", out=tmp_path / "out", device="cpu")
    found = facts(options)
    assert found["--seed"] == 0
    assert "--device" not in found
    assert [key for key in found if key.startswith("content of ")] == [f"content of {tmp_path / 'm'}"]
    assert found[f"content of {tmp_path / 'm'}"].startswith("1 files, ")


# ---- as they are started ---------------------------------------------------------------------------------------------


def started(*arguments: str, **options: Any) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [*TORCHRUN, *arguments],
        env={**os.environ, "CUDA_VISIBLE_DEVICES": ""},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        **options,
    )


def children_of(pid: int) -> list[int]:
    found = Path(f"/proc/{pid}/task/{pid}/children")
    return [int(child) for child in found.read_text().split()] if found.exists() else []


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="processes are found in /proc")
def test_torchrun_all_are_told_to_stop_and_one_process_goes_on(tmp_path: Path) -> None:
    out = tmp_path / "t.safetensors"
    arguments = ["-m", "diffusion_var", *ESTIMATE[:-1], "0.004", "-o", str(out)]
    run = started(*arguments)
    until = time.monotonic() + 120.0
    while not (tmp_path / "t.safetensors.partial").exists() and time.monotonic() < until:
        time.sleep(0.2)
    ranks = children_of(run.pid)
    assert len(ranks) == 2
    run.send_signal(signal.SIGTERM)  # as a scheduler does; torchrun hands it on
    _, said = run.communicate(timeout=120)
    assert run.returncode != 0
    assert sum("stopped by SIGTERM; the same command continues where it can." in line for line in said.split("\n")) == 2
    assert "Traceback" not in said.partition("torch/distributed/run.py")[0].partition("elastic")[0]
    assert not any(Path(f"/proc/{pid}").exists() for pid in ranks)
    assert (tmp_path / "t.safetensors.partial").exists()
    assert not out.exists()
