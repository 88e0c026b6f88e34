"""Step lists: published lists, diffusers' spacings, even spacing, and what is refused."""

from itertools import pairwise

import numpy as np
import pytest
from diffusers import DDIMScheduler
from places import golden

from diffusion_var import Denoiser, InputError, NoiseSchedule
from diffusion_var.process import steps

GOLDEN = golden()
LINEAR = NoiseSchedule.linear(1000)
ZERO_TERMINAL = NoiseSchedule.from_betas(np.r_[np.linspace(1e-4, 0.02, 199), 1.0])
ALL = {"linspace": steps.linspace, "leading": steps.leading, "trailing": steps.trailing, "quadratic": steps.quadratic}


def strictly_ascending(indices: list[int]) -> bool:
    return all(a < b for a, b in pairwise(indices))


@pytest.mark.parametrize("name", [*ALL, "log_snr"])
@pytest.mark.parametrize("N", [1, 2, 10, 37, 1000])
def test_every_list_is_k_ascending_indices(name: str, N: int) -> None:
    schedule = NoiseSchedule.linear(N)
    for K in sorted({1, 2, 3, N // 3, N // 2, (2 * N) // 3, N - 1, N} & set(range(1, N + 1))):
        found = getattr(steps, name)(schedule, K)
        assert len(found) == K
        assert all(type(n) is int for n in found)
        assert found[0] >= 1
        assert found[-1] <= N
        assert strictly_ascending(found)
        if name != "log_snr":
            assert found == getattr(steps, name)(N, K)  # N alone will do
        if K == N:
            assert found == list(range(1, N + 1))


@pytest.mark.parametrize(
    ("name", "single"), [("linspace", 1000), ("leading", 1), ("trailing", 1000), ("quadratic", 801), ("log_snr", 1000)]
)
def test_a_single_step(name: str, single: int) -> None:
    assert getattr(steps, name)(LINEAR, 1) == [single]


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
def test_published_even_lists(schedule: str) -> None:
    lists = {int(K): t["linear"] for K, t in GOLDEN[schedule]["trajectories"].items()}
    assert sorted(lists) == [3, 5, 10, 25, 50, 100]
    for K, expected in lists.items():
        assert steps.linspace(1000, K) == expected


def test_published_quadratic_lists() -> None:
    for key, trajectory in GOLDEN["linear"]["trajectories"].items():
        K, expected = int(key), trajectory["quadratic"]
        found = steps.quadratic(1000, K)
        if strictly_ascending(expected):
            assert K <= 25
            assert found == expected
        else:
            # The published list repeats small indices. Ours moves the repetitions up, and no index down.
            assert K >= 50
            assert strictly_ascending(found)
            assert all(a >= b for a, b in zip(found, expected, strict=True))
            apart = next(k for k in range(K) if strictly_ascending(expected[k:]) and found[k] == expected[k])
            assert found[apart:] == expected[apart:]
            assert apart < K // 2


@pytest.mark.parametrize("name", ["leading", "trailing"])
@pytest.mark.parametrize("N", [1000, 250])
@pytest.mark.parametrize("K", [1, 3, 7, 10, 24, 50, 99, 250])
def test_against_diffusers_spacings(name: str, N: int, K: int) -> None:
    scheduler = DDIMScheduler(num_train_timesteps=N, timestep_spacing=name)
    scheduler.set_timesteps(K)
    assert getattr(steps, name)(N, K) == sorted(int(t) + 1 for t in scheduler.timesteps)


@pytest.mark.parametrize("schedule", [LINEAR, NoiseSchedule.vp_sde(500), NoiseSchedule.scaled_linear(1000)])
@pytest.mark.parametrize("K", [2, 3, 10, 16])
def test_log_snr_is_even_in_log_snr(schedule: NoiseSchedule, K: int) -> None:
    levels = schedule.log_snr[1:]
    wanted = np.linspace(levels[0], levels[-1], K)
    nearest = [1 + int(np.abs(levels - level).argmin()) for level in wanted]
    assert strictly_ascending(nearest)
    assert (nearest[0], nearest[-1]) == (1, schedule.num_steps)
    assert steps.log_snr(schedule, K) == nearest


def test_log_snr_where_the_last_index_stands_apart() -> None:
    """Cosine's last beta is 0.999: a fifth of the log-SNR range lies between N - 1 and N and holds no index."""
    schedule = NoiseSchedule.cosine(1000)
    found = steps.log_snr(schedule, 10)
    assert found[-3:] == [998, 999, 1000]
    assert strictly_ascending(found)


def test_log_snr_moves_up_where_indices_are_scarce() -> None:
    found = steps.log_snr(LINEAR, 200)
    assert (found[0], found[-1], len(found)) == (1, 1000, 200)
    assert found[:5] == [1, 2, 3, 4, 5]
    assert strictly_ascending(found)


@pytest.mark.parametrize("K", [1, 2, 3, 10, 200])
def test_log_snr_with_zero_terminal_snr(K: int) -> None:
    assert ZERO_TERMINAL.zero_terminal_snr
    found = steps.log_snr(ZERO_TERMINAL, K)
    assert len(found) == K
    assert found[-1] == 200
    assert strictly_ascending(found)
    if K > 1:
        assert found[0] == 1
    if K > 2:
        assert found[-2] == 199
        assert np.isfinite(ZERO_TERMINAL.log_snr[found[:-1]]).all()


# ---- lists given by the user ----------------------------------------------------------------------------------


@pytest.mark.parametrize("given", [[1, 5, 1000], (1, 5, 1000), np.array([1, 5, 1000]), [1.0, 5.0, 1000.0]])
def test_explicit_lists_are_kept(given: object) -> None:
    found = steps.resolve(LINEAR, given)
    assert found == [1, 5, 1000]
    assert all(type(n) is int for n in found)
    assert steps.explicit(1000, given) == found


@pytest.mark.parametrize("given", [25, np.int64(25)])
def test_a_number_of_steps_is_even_spacing(given: int) -> None:
    assert steps.resolve(LINEAR, given) == steps.linspace(1000, 25)
    assert steps.resolve(LINEAR, range(1, 4)) == [1, 2, 3]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ([], "empty"),
        ([5, 5, 9], "must rise strictly"),
        ([5, 9, 8], "must rise strictly"),
        ([0, 5], "other than integers from 1 to 1000"),
        ([-1, 5], "other than integers from 1 to 1000"),
        ([5, 1001], "other than integers from 1 to 1000"),
        ([1.5, 7], "other than integers from 1 to 1000"),
        ([1, float("nan")], "other than integers from 1 to 1000"),
        ([1, "a"], "other than integers from 1 to 1000"),
        ([None], "other than integers from 1 to 1000"),
        (list(range(10, 0, -1)), r"10, 9, 8, 7, 6, 5, 4, 3, …\] must rise"),
        (2.5, "steps=2.5 is neither"),
        (25.0, "steps=25.0 is neither"),
        (None, "steps=None is neither"),
        ("25", "other than integers"),
        (True, "steps=True is not a usable number"),
        (0, "steps=0 is not a usable number"),
        (-3, "steps=-3 is not a usable number"),
        (1001, "steps=1001 is not a usable number of steps; expected an integer from 1 to 1000"),
    ],
)
def test_bad_lists_are_refused(given: object, message: str) -> None:
    with pytest.raises(InputError, match=message):
        steps.resolve(LINEAR, given)


@pytest.mark.parametrize("name", [*ALL, "log_snr"])
@pytest.mark.parametrize("K", [0, -1, 1001, 2.5, float("nan"), True, "ten"])
def test_bad_numbers_of_steps_are_refused(name: str, K: object) -> None:
    with pytest.raises(InputError, match="is not a usable number of steps"):
        getattr(steps, name)(LINEAR, K)


def test_anything_with_a_schedule_will_do() -> None:
    """A denoiser or a table may stand for its schedule."""

    class Holder:
        schedule = NoiseSchedule.linear(100)

    assert steps.linspace(Holder(), 7) == steps.linspace(Holder.schedule, 7) == steps.linspace(100, 7)


def test_log_snr_takes_what_holds_a_schedule_and_no_bare_number() -> None:
    schedule = NoiseSchedule.cosine(100)
    denoiser = Denoiser(lambda x, t: x, schedule, shape=(1, 2, 2))
    assert steps.log_snr(denoiser, 7) == steps.log_snr(schedule, 7)
    with pytest.raises(InputError, match="needs a schedule"):
        steps.log_snr(100, 7)
