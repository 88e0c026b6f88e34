"""Interruption and resume: a state is kept when it is whole, belongs to one run, and parts are made once."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from many import Many, many

import diffusion_var as dv
from diffusion_var import parallel, resume
from diffusion_var.documents import Arrays, Form
from diffusion_var.resume import ANEW, Checkpoint, Parts, StateRecord


class CountRecord(StateRecord):
    count: int


STATE = Form("test.state", 1, "test checkpoint", CountRecord, remedy=ANEW)
PART = Form("test.part", 1, "test part", CountRecord)


def checkpoint(path: Path | None, **identity: Any) -> Checkpoint:
    return Checkpoint(path, STATE, {"seed": 1, "steps": (1, 2), **identity})


def restored(kept: Checkpoint) -> tuple[Arrays, Any] | None:
    with kept.restoring() as found:
        return found


def state(count: int) -> resume.State:
    return {"sums": np.arange(count, dtype=np.float64)}, {"count": count}


def test_what_is_saved_is_restored(tmp_path: Path) -> None:
    path = tmp_path / "c"
    assert restored(checkpoint(path)) is None
    checkpoint(path).save(state(3))
    arrays, record = restored(checkpoint(path)) or ({}, None)
    assert record.count == 3
    assert np.array_equal(arrays["sums"], [0.0, 1.0, 2.0])


def test_without_a_path_nothing_is_kept(tmp_path: Path) -> None:
    nothing = checkpoint(None)
    assert restored(nothing) is None
    assert not nothing.due()
    with nothing.keeping(lambda: pytest.fail("the state was asked for")):
        nothing.save(state(1))


def test_it_is_due_after_a_while(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    monkeypatch.setattr(resume.time, "monotonic", lambda: clock[0])
    kept = Checkpoint(tmp_path / "c", STATE, {}, seconds=10.0)
    assert not kept.due()
    clock[0] = 10.5
    assert kept.due()
    kept.save(state(1))
    assert not kept.due()


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError, SystemExit])
def test_whatever_stops_a_run_keeps_its_state(tmp_path: Path, error: type[BaseException]) -> None:
    kept, count = checkpoint(tmp_path / "c"), 0

    def run() -> None:
        nonlocal count
        with kept.keeping(lambda: state(count)):
            count = 5
            raise error

    with pytest.raises(error):
        run()
    found = restored(checkpoint(tmp_path / "c"))
    assert found is not None
    assert found[1].count == 5


def test_a_half_changed_state_is_not_kept(tmp_path: Path) -> None:
    kept, count = checkpoint(tmp_path / "c"), 2

    def run() -> None:
        nonlocal count
        with kept.keeping(lambda: state(count)), kept.changing():
            count = 9
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run()
    found = restored(checkpoint(tmp_path / "c"))
    assert found is not None
    assert found[1].count == 2  # of the beginning


def test_an_unwritable_path_is_found_before_the_work(tmp_path: Path) -> None:
    with (
        pytest.raises(dv.InputError, match=r"could not write .*nowhere"),
        checkpoint(tmp_path / "nowhere" / "c").keeping(lambda: state(1)),
    ):
        pytest.fail("the work was begun")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"seed": 2}, r"\(different seed\): its seed is 1, but this run's is 2;"),
        ({"steps": (1, 3)}, r"\(different steps\): its steps is \[1, 2\], but this run's is \[1, 3\];"),
        ({"seed": 2, "steps": (5,)}, r"\(different seed, steps\): its seed is 1, but this run's is 2;"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_another_runs_is_refused_by_name(tmp_path: Path, change: dict[str, Any], said: str) -> None:
    checkpoint(tmp_path / "c").save(state(1))
    before = (tmp_path / "c").read_bytes()
    with pytest.raises(dv.InputError, match=f"belongs to another run {said} delete it to start anew"):
        restored(checkpoint(tmp_path / "c", **change))
    assert (tmp_path / "c").read_bytes() == before


def test_one_run_at_a_time_enters(tmp_path: Path) -> None:
    with checkpoint(tmp_path / "c") as kept:
        kept.save(state(1))
        with pytest.raises(dv.InputError, match=r"c is being written by process"), checkpoint(tmp_path / "c"):
            pass
    assert [path.name for path in tmp_path.iterdir()] == ["c"]


@pytest.mark.parametrize("damage", [b"", b"text", None])
def test_a_damaged_one_is_to_be_deleted(tmp_path: Path, damage: bytes | None) -> None:
    checkpoint(tmp_path / "c").save(state(2))
    content = bytearray((tmp_path / "c").read_bytes())
    content[-3] ^= 1
    (tmp_path / "c").write_bytes(content if damage is None else damage)
    with pytest.raises(dv.InputError, match=r"c (is damaged|is not a readable).*; delete it to start anew"):
        restored(checkpoint(tmp_path / "c"))


def test_of_two_processes_the_first_writes_and_both_go_on_from_there(tmp_path: Path) -> None:
    def count_on(path: Path) -> tuple[Any, ...]:
        with parallel.sharing("counting") as team, Checkpoint(path, STATE, {"seed": 1}, seconds=-1.0) as kept:
            before = restored(kept)
            count = 2 if before is None else int(before[0]["sums"].sum()) + before[1].count
            with kept.keeping(lambda: state(count + 10 * team.rank)):
                return count, kept.due()

    assert many(2, count_on, tmp_path / "c") == [(2, True), (2, True)]
    assert many(2, count_on, tmp_path / "c") == [(3, True), (3, True)]  # 0 + 1, and the count 2
    assert [file.name for file in tmp_path.iterdir()] == ["c"]
    assert many(1, count_on, tmp_path / "c") == [(6, True)]


def test_of_two_processes_both_know_that_a_checkpoint_is_anothers(tmp_path: Path) -> None:
    checkpoint(tmp_path / "c").save(state(2))

    def go_on() -> None:
        with parallel.sharing("counting"), checkpoint(tmp_path / "c", seed=2) as kept, kept.restoring():
            pytest.fail("it was taken on")

    first, second = (end.error or "" for end in Many(2, go_on).ends())
    assert first.startswith("InputError: the checkpoint")
    assert second.startswith("RankError: rank 0 of 2 failed: the checkpoint")


def test_an_identity_that_is_not_known_is_trusted_aloud(tmp_path: Path) -> None:
    checkpoint(tmp_path / "c", network=None).save(state(1))
    with pytest.warns(dv.DiffusionVarWarning, match="continued on trust"):
        restored(checkpoint(tmp_path / "c", network=None))


def test_what_an_older_version_did_not_write_is_not_compared(tmp_path: Path) -> None:
    checkpoint(tmp_path / "c").save(state(1))
    assert restored(checkpoint(tmp_path / "c", something_new=3)) is not None


# ---- parts --------------------------------------------------------------------------------------------------------


def parts(folder: Path, **identity: Any) -> Parts:
    return Parts(folder, PART, {"images": "abc", **identity})


def test_parts_are_made_once(tmp_path: Path) -> None:
    folder = tmp_path / "deep" / "parts"
    assert parts(folder).load("one") is None
    parts(folder).save("one", state(2))
    found = parts(folder).load("one")
    assert found is not None
    assert found[1].count == 2
    with pytest.raises(
        dv.InputError, match=r"the test part .*one was made from something else \(different images\); delete"
    ):
        parts(folder, images="other").load("one")


@pytest.mark.parametrize("damage", [b"", b"text", None])
def test_a_damaged_part_is_refused_by_its_name(tmp_path: Path, damage: bytes | None) -> None:
    parts(tmp_path).save("one", state(2))
    content = bytearray((tmp_path / "one").read_bytes())
    content[-3] ^= 1
    (tmp_path / "one").write_bytes(content if damage is None else damage)
    with pytest.raises(dv.InputError, match=r"one .*damaged"):
        parts(tmp_path).load("one")
