"""Work that processes share: shares, gathers, and how all end when one does. Each test forks its processes."""

import os
import signal
import subprocess
import sys
import threading
import time
import warnings
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from accelerate import Accelerator
from hypothesis import given
from hypothesis import strategies as st
from many import Many, many

import diffusion_var as dv
from diffusion_var import errors, exchange, launch, parallel, peers
from diffusion_var.parallel import Team
from diffusion_var.stopping import Stopped

FACTS = {"seed": 3, "shape": [1, 2]}


def rank() -> int:
    return int(os.environ["RANK"])


# ---- sharing ----------------------------------------------------------------------------------------------------


def test_one_process_is_a_team_of_one():
    with parallel.sharing("nothing", lambda: FACTS) as team:
        assert (team.rank, team.count, team.first, team.called) == (0, 1, True, False)
        assert team.share([3, 1]) == [0, 1]
        assert team.gather({"a": np.ones(2)}, 5)[0][1] == 5
        assert list(team.claimed(3)) == [0, 1, 2]
        assert team.first_alone(lambda: (1, 2)) == (1, 2)
        team.end_if_stopped()
    assert not parallel.is_shared()


class _Rank:
    def __init__(self, rank: int, count: int) -> None:
        self.rank, self.count = rank, count


@given(st.lists(st.integers(0, 50), max_size=40), st.integers(1, 9))
def test_shares_are_whole_disjoint_and_balanced(costs, count):
    shares = [Team(_Rank(r, count)).share(costs) for r in range(count)]
    assert sorted(i for share in shares for i in share) == list(range(len(costs)))
    loads = [sum(costs[i] for i in share) for share in shares]
    # Graham's bound: whoever takes a unit has no more than the mean of the others before it.
    assert max(loads) <= sum(costs) / count + max(costs, default=0) * (1 - 1 / count) + 1e-9


def shared_work(size):
    with parallel.sharing("work", lambda: FACTS) as team:
        found = team.gather({"a": np.full(size, team.rank + 0.5), "none": np.zeros((0, 2))}, {"mine": team.rank})
        first = team.gather({"a": np.full(3, team.rank)}, to_first=True)
        claims = [k for k in team.claimed(5) if time.sleep(0.01) is None]
        every = sorted(k for _, mine in team.gather({}, claims) for k in mine)
        return [(a["a"].sum(), a["none"].shape, p) for a, p in found], len(first), team.first_alone(rank), every


@pytest.mark.parametrize(("count", "size"), [(2, 3), (3, 1_500_000)])
def test_gathers_are_in_the_order_of_ranks_and_claims_are_disjoint(count, size):
    ends = many(count, shared_work, size)
    expected = [(size * (r + 0.5), (0, 2), {"mine": r}) for r in range(count)]
    for r, (found, first, alone, every) in enumerate(ends):
        assert (found, first, alone, every) == (expected, count if r == 0 else 0, 0, list(range(5)))


def unequal(sizes, to_first):
    with parallel.sharing("work") as team:
        found = team.gather({"a": np.arange(sizes[team.rank])}, team.rank, to_first=to_first)
    return [(len(arrays["a"]), int(arrays["a"].sum()), plain) for arrays, plain in found]


@pytest.mark.parametrize("to_first", [False, True])
@pytest.mark.parametrize("sizes", [(1_200_000, 3, 0), (3, 0, 1_200_000), (2, 600_000, 700_000)])
def test_gathers_of_unequal_sizes(sizes, to_first):
    whole = [(size, size * (size - 1) // 2, r) for r, size in enumerate(sizes)]
    assert many(3, unequal, sizes, to_first) == [[] if to_first and r else whole for r in range(3)]


SHAPES = [(), (0,), (1,), (2, 0, 3)]


def of_shapes():
    with parallel.sharing("work") as team:
        gathered = team.gather({str(shape): np.full(shape, team.rank + 0.5) for shape in SHAPES})
        made = team.made([1.0] * len(SHAPES), lambda k: np.zeros(SHAPES[k]))
    return [[array.shape for array in arrays.values()] for arrays, _ in gathered], [array.shape for array in made]


def test_arrays_keep_their_shapes_on_the_way():
    """Numbers too, arrays of no axis: numpy's `ascontiguousarray` gives them one."""
    assert of_shapes()[1] == SHAPES
    for gathered, made in many(2, of_shapes):
        assert [sorted(shapes) for shapes in gathered] == [sorted(SHAPES)] * 2
        assert made == SHAPES


def in_a_thread():
    with parallel.sharing("work") as team, ThreadPoolExecutor(1) as threads:

        def other():
            with parallel.sharing("of rank 0") as inner:
                return inner.count

        count = threads.submit(other).result() if team.first else 0
        return count, len(team.gather({}))


def test_a_thread_of_a_program_that_shares_something_else_shares_nothing():
    assert many(2, in_a_thread) == [(1, 2), (0, 2)]


def alone_in_one():
    with parallel.sharing("outer") as team:
        if team.rank == 1:
            with dv.alone(), parallel.sharing("inner", lambda: {"rank": 1}) as one:
                return one.count, parallel.is_first(), parallel.team().count
        return team.count, parallel.is_first(), parallel.team().count


def test_alone_shares_nothing_and_says_nothing():
    assert many(2, alone_in_one) == [(2, True, 2), (1, False, 1)]


def two_works():
    found = []
    for wrong in (True, False):
        try:
            with parallel.sharing("work") as team:
                if wrong:
                    raise dv.InputError("x is bad.")
                found.append(team.gather({}, team.rank)[1][1])
        except dv.InputError as error:
            found.append(errors.is_said_elsewhere(error))
    return found


def test_a_mistake_that_all_make_is_said_once_and_another_work_may_follow():
    assert sorted(many(2, two_works)) == [[False, 1], [True, 1]]


def warns():
    with warnings.catch_warnings(record=True) as caught, parallel.sharing("work") as team:
        warnings.simplefilter("always")
        errors.warn("the same.")
        if team.rank == 1:
            errors.warn("of rank 1.")
    return [str(w.message) for w in caught if isinstance(w.message, dv.DiffusionVarWarning)]


def test_the_first_process_issues_the_warnings_of_all_once_each():
    assert many(2, warns) == [["the same.", "of rank 1."], []]


def after_an_accelerator():
    kept = {name: os.environ.pop(name) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")}
    Accelerator(cpu=True)  # of one process
    os.environ.update(kept)
    with parallel.sharing("work"):
        raise AssertionError("it works by itself")


def test_processes_that_cannot_be_joined_share_nothing_in_silence():
    for end in Many(2, after_an_accelerator).ends():
        assert end.error.startswith("InputError: this program runs in 2 processes, but Accelerate was set up in each")


# ---- disagreement -----------------------------------------------------------------------------------------------


def differ(key):
    facts = {**FACTS, key: rank()}
    with parallel.sharing("estimate", lambda: facts):
        raise AssertionError("not reached")


@pytest.mark.parametrize("key", ["seed", "another"])
def test_what_differs_is_named_in_every_process(key):
    for end in Many(2, differ, key).ends():
        assert end.error.startswith(
            f"InputError: the processes differ in {key} (the {key} of rank 0 is 0, of rank 1 1)"
        )
        assert "dv.alone()" in end.error


def other_versions():
    parallel.version = lambda name: f"{name} {rank()}"
    with parallel.sharing("estimate"):
        raise AssertionError("not reached")


def test_versions_of_packages_must_agree():
    assert all("differ in version of diffusion-var" in end.error for end in Many(2, other_versions).ends())


def other_call():
    with parallel.sharing("estimate" if rank() else "nll"):
        raise AssertionError("not reached")


def test_different_calls_are_told():
    assert all(
        "rank 1 of 2 has come to estimate" in e.error or "has come to nll" in e.error
        for e in Many(2, other_call).ends()
    )


# ---- failure ----------------------------------------------------------------------------------------------------


def stops_at_a_gather_to_the_first():
    with parallel.sharing("work") as team:
        if team.rank == 1:
            told_to_stop()
        team.gather({}, to_first=True)
        team.end_if_stopped()
        return "went on"


def test_every_process_knows_of_a_stop_after_a_gather_to_the_first_alone():
    assert [end.error for end in Many(3, stops_at_a_gather_to_the_first).ends(20)] == ["Stopped: 15"] * 3


def disturbed(how, where):
    """A work in which rank 1 is disturbed, and the others wait for it in a gather or go on with their own."""
    with parallel.sharing("work") as team:
        team.gather({}, "all are here")
        if team.rank == 1:
            how()
        while where == "at work" and not team.called:
            parallel.beat()
            time.sleep(0.01)
        team.gather({}, "met")
        team.end_if_stopped()
    return "ended well"


def raises():
    raise dv.InputError("the file model is missing.")


def fails():
    raise ValueError("too deep")


def network_fails():
    raise dv.NetworkError("at index n=1", "RuntimeError: the skip connection does not fit")


def killed():
    os.kill(os.getpid(), signal.SIGKILL)


def told_to_stop():
    os.kill(os.getpid(), signal.SIGTERM)


def sleeps():
    time.sleep(4)


@pytest.mark.parametrize("where", ["waiting", "at work"])
@pytest.mark.parametrize(
    ("how", "said"),
    [
        (raises, "failed: the file model is missing."),
        (fails, "failed: ValueError: too deep."),
        (network_fails, "failed: the network failed at index n=1: RuntimeError: the skip connection does not fit."),
        (killed, "was killed, or ended without a word (for want of memory, perhaps)."),
    ],
)
def test_a_process_that_ends_ends_all_with_its_name(how, said, where):
    ends = Many(3, disturbed, how, where).ends(20)
    assert [end.error for end in ends if end is not ends[1]] == [f"RankError: rank 1 of 3 {said}"] * 2
    assert ends[1].code == (-signal.SIGKILL if how is killed else 0)


def test_a_process_told_to_stop_stops_all_where_they_meet():
    assert [end.error for end in Many(3, disturbed, told_to_stop, "at work").ends(20)] == ["Stopped: 15"] * 3


def test_a_process_that_hangs_is_named():
    work = Many(2, disturbed, sleeps, "waiting", environment={launch.TIMEOUT_VARIABLE: "1"})
    end = work.ends(30)[0]
    assert end.error == "RankError: rank 1 of 2 has made no progress for 1 s (DIFFUSION_VAR_TIMEOUT)."


def dies_before_the_group_is_made():
    if rank() == 1:
        exchange.Exchange._group = property(lambda self: killed())
    with parallel.sharing("work"):
        raise AssertionError("not reached")


def test_a_process_killed_while_the_others_connect_to_it_ends_them_soon():
    begun = time.monotonic()
    end = Many(2, dies_before_the_group_is_made).ends(30)[0]
    assert end.error == "RankError: rank 1 of 2 was killed, or ended without a word (for want of memory, perhaps)."
    assert time.monotonic() - begun < 15


def first_dies():
    with parallel.sharing("work") as team:
        team.gather({}, "all are here")
        if team.first:
            killed()
        team.gather({}, "met")


def test_the_end_of_the_process_that_keeps_the_store_is_told():
    end = Many(2, first_dies, environment={"TORCH_CPP_LOG_LEVEL": "ERROR"}).ends(20)[1]
    assert end.error.startswith("RankError: rank 0 of 2 was killed, or ended without a word")


def interrupted_before_the_first_comes():
    launch.join()
    if rank() == 0:
        time.sleep(1.5)
    else:
        threading.Timer(0.3, told_to_stop).start()
    with parallel.sharing("work") as team:
        team.gather({})


def test_the_end_of_the_process_that_keeps_the_store_is_told_where_another_arrives(monkeypatch):
    def gone(self, what):
        if self.rank == 1:
            raise RuntimeError("Connection reset by peer")

    monkeypatch.setattr(peers.Peers, "arrive", gone)

    def arrive():
        with parallel.sharing("work"):
            pass

    team = Many(2, arrive, environment={"DIFFUSION_VAR_TIMEOUT": "3"})
    assert team.ends()[1].error == (
        "RankError: rank 0 of 2 was killed, or ended without a word (the way to it is gone)."
    )


def test_a_process_that_ended_before_all_had_come_is_told():
    ends = Many(2, interrupted_before_the_first_comes).ends(20)
    assert [end.error for end in ends] == ["RankError: rank 1 of 2 was stopped by SIGTERM.", "Stopped: 15"]


def comes_late():
    launch.join()
    if rank() == 0:
        time.sleep(2.5)
    with parallel.sharing("work") as team:
        team.gather({})


def test_a_process_that_comes_too_late_is_told_so_itself():
    ends = Many(2, comes_late, environment={launch.TIMEOUT_VARIABLE: "1"}).ends(20)
    assert [end.error for end in ends] == ["RankError: rank 0 of 2 has not come to work for 1 s."] * 2


def leaves():
    raise Stopped(signal.SIGTERM, together=True)


def test_a_process_that_left_is_not_waited_for(monkeypatch):
    monkeypatch.setattr(peers, "_STOOD_STILL", 2.0)
    assert Many(2, disturbed, leaves, "waiting").ends(20)[0].error == (
        "RankError: rank 1 of 2 has left the work before its end."
    )


def stops_in_a_long_step():
    met = False
    with suppress(Stopped), parallel.sharing("work") as team:
        if team.rank == 1:
            told_to_stop()
        time.sleep(2.3 - 0.3 * team.rank)
        team.gather({})
        met = True
        team.end_if_stopped()
    return met


def test_processes_told_to_stop_in_a_long_step_meet_after_it(monkeypatch):
    monkeypatch.setattr(parallel, "GRACE", 1.0)
    assert many(2, stops_in_a_long_step) == [True, True]


def shares_in_first_alone():
    def inner():
        with parallel.sharing("inner", lambda: FACTS) as one:
            return one.count

    with parallel.sharing("work") as team:
        return team.first_alone(inner)


def test_what_the_first_does_alone_may_call_what_is_shared():
    assert many(2, shares_in_first_alone) == [1, 1]


def known_numbers(same):
    if rank() == 1 and not same:
        peers._here = lambda: "a container of the same name"
    with parallel.sharing("work") as team:
        return team.gather({}, os.getpid())[1 - team.rank][1] in parallel._running._peers._pids.values()


@pytest.mark.parametrize("same", [True, False])
def test_process_numbers_of_another_container_are_not_looked_for(same):
    assert many(2, known_numbers, same) == [same, same]


# ---- how processes are found ------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["0", "-1", "soon", "nan"])
def test_a_senseless_timeout_is_refused(monkeypatch, text):
    monkeypatch.setenv(launch.TIMEOUT_VARIABLE, text)
    with pytest.raises(dv.InputError, match=f"DIFFUSION_VAR_TIMEOUT={text} must be a positive number"):
        launch.timeout()


def test_importing_costs_no_torch():
    code = "import sys, diffusion_var.parallel, diffusion_var.progress; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parent.parent)
