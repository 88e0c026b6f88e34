"""Step lists: published lists, diffusers' spacings, even spacing, and what is refused."""

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from diffusers import DDIMScheduler
from places import golden

from diffusion_var import Denoiser, InputError, NoiseSchedule
from diffusion_var.process import steps
from diffusion_var.process.level import NoiseLevel

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


# ---- improved-diffusion's and Analytic-DPM's, against plain loops for every K ---------------------------------------


def plain_respaced(N: int, counts: list[int]) -> list[int]:
    """Each part: timesteps from its first to its last, by a stride that is added up, rounded; an index is one more."""
    sizes = [N // len(counts) + (1 if part < N % len(counts) else 0) for part in range(len(counts))]
    kept = set()
    for part, (size, count) in enumerate(zip(sizes, counts, strict=True)):
        position, stride = 0.0, (size - 1) / (count - 1) if count > 1 else 1
        for _ in range(count):
            kept.add(sum(sizes[:part]) + round(position))
            position += stride
    return [timestep + 1 for timestep in sorted(kept)]


@pytest.mark.parametrize("N", [1, 2, 37, 1000])
def test_respaced_is_improved_diffusions_list_for_every_number_of_steps(N: int) -> None:
    for K in range(1, N + 1):
        found = steps.respaced(N, K)
        assert found == plain_respaced(N, [K]) == steps.respaced(N, str(K)) == steps.respaced(N, [K])
        assert len(found) == K
        assert strictly_ascending(found)


@pytest.mark.parametrize("counts", [[10, 10, 15], [1, 0, 33], [34, 33, 33], [2, 3], [1], [0, 5], [7] * 9])
def test_respaced_in_parts(counts: list[int]) -> None:
    found = steps.respaced(100, counts)
    assert found == plain_respaced(100, counts)
    assert len(found) == sum(counts)
    assert steps.respaced(100, ",".join(map(str, counts))) == found


@pytest.mark.parametrize("N", [2, 37, 1000])
def test_ddims_striding_takes_the_first_stride_with_exactly_k(N: int) -> None:
    reached = 0
    for K in range(1, N + 1):
        strides = [stride for stride in range(1, N) if len(range(0, N, stride)) == K]
        if strides:
            assert steps.respaced(N, f"ddim{K}") == [t + 1 for t in range(0, N, strides[0])]
            reached += 1
        else:
            with pytest.raises(InputError, match=f"no whole stride takes exactly {K} of {N} indices; take .* spacing"):
                steps.respaced(N, f"ddim{K}")
    assert 0 < reached < N


def test_the_three_even_spacings_differ_as_the_docs_say() -> None:
    lists = {K: (steps.linspace(1000, K), steps.respaced(1000, K)) for K in range(2, 1001)}
    differ = [K for K, (ours, theirs) in lists.items() if ours != theirs]
    assert 320 < len(differ) < 360
    assert max(np.abs(np.subtract(*lists[K])).max() for K in differ) == 1
    assert steps.linspace(1000, 28) == steps.spaced(1000, 28, "linspace") == steps.respaced(1000, 28)  # no halves


def plain_power(N: int, K: int, k: float) -> list[int]:
    """1 + (N − 1)(1 − y^(1/k)) for K values of y from 1 down to 0, rounded, repeats pushed up."""
    out: list[int] = []
    for i in range(K):
        index = round((N - 1) * (1 - ((K - 1 - i) / (K - 1)) ** (1.0 / k)) + 1)
        out.append(index if not out or index > out[-1] else out[-1] + 1)
    return out


@pytest.mark.parametrize("N", [2, 37, 1000])
@pytest.mark.parametrize("k", [1, 2, 3, 5, 0.5])
def test_power_is_analytic_dpms_list_for_every_number_of_steps(N: int, k: float) -> None:
    for K in range(2, N + 1):
        found = steps.power(N, K, k)
        assert (found[0], found[-1], len(found)) == (1, N, K)
        assert strictly_ascending(found)
        if k >= 1:  # below, repeats are at the noisy end, where pushing them up would leave the schedule
            assert found == plain_power(N, K, k)
    assert steps.power(N, 1, k) == [N]


def test_power_is_dense_near_the_data() -> None:
    found = steps.power(1000, 10, 2)
    assert found == [1, 58, 119, 184, 255, 334, 423, 529, 667, 1000]
    assert np.abs(np.subtract(steps.power(1000, 10, 1), steps.linspace(1000, 10))).max() == 0


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("101", "wants 101 steps of part 1 of 1, which has 100 of the 100 indices; take fewer"),
        ([10, 60], "wants 60 steps of part 2 of 2, which has 50 of the 100 indices"),
        ("10,,5", "must be a number of steps, a list of one for each part"),
        ("ddim", "must be a number of steps"),
        ("ddim-5", "must be a number of steps"),
        ("ddim0", "no whole stride takes exactly 0 of 100 indices; take 2 steps or another spacing"),
        (0, "keeps no step"),
        ([0, 0], "keeps no step"),
        ([], "keeps no step"),
        (-1, "must be a number of steps"),
        ([2.5], "must be a number of steps"),
        (True, "must be a number of steps"),
        (None, "must be a number of steps"),
        ("²", "must be a number of steps"),
    ],
)
def test_bad_respacings_are_refused(given: object, message: str) -> None:
    with pytest.raises(InputError, match=message):
        steps.respaced(100, given)


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


# ---- levels off the grid ------------------------------------------------------------------------------------------


def ratios(levels: list[NoiseLevel]) -> list[float]:
    return [level.sigma / level.alpha for level in levels]


@pytest.mark.parametrize("schedule", [LINEAR, NoiseSchedule.edm(50)], ids=["linear", "edm"])
@pytest.mark.parametrize("K", [2, 3, 10, 35])
def test_karras_is_edms_ramp_between_the_schedules_ends(schedule: NoiseSchedule, K: int) -> None:
    most, least = (schedule.sigma[n] / schedule.alpha[n] for n in (-1, 1))
    expected = (most ** (1 / 7) + np.arange(K) / (K - 1) * (least ** (1 / 7) - most ** (1 / 7))) ** 7  # EDM, eq. 5
    found = steps.karras(schedule, K)
    np.testing.assert_allclose(ratios(found), expected, rtol=1e-9)
    assert (found[0].index, found[-1].index) == (schedule.num_steps, 1)  # to rounding, and then taken as they are
    assert ratios(steps.karras(schedule, K, rho=1.0))[K // 2] > expected[K // 2] or K < 3


def test_karras_where_the_first_level_holds_no_signal() -> None:
    found = steps.karras(ZERO_TERMINAL, 5)
    assert [found[0].index, found[1].index, found[-1].index] == [200, 199, 1]
    assert steps.karras(ZERO_TERMINAL, 1) == [ZERO_TERMINAL.level(200)]
    assert steps.karras(LINEAR, 1) == [LINEAR.level(1000)]


@pytest.mark.parametrize("rho", [1e-2, 0.5, 1.0, 7.0, 100.0, 1e8])
def test_karras_reaches_the_schedules_ends_for_every_rho(rho: float) -> None:
    found = steps.karras(LINEAR, 10, rho)
    assert (found[0].index, found[-1].index, len({level.log_snr for level in found})) == (1000, 1, 10)
    if rho == 1e8:  # the limit ρ → ∞ is even in log σ
        np.testing.assert_allclose(
            [level.log_snr for level in found], np.linspace(*LINEAR.log_snr[[-1, 1]], 10), rtol=1e-5
        )


@pytest.mark.parametrize(
    "schedule", [LINEAR, NoiseSchedule.edm(50), NoiseSchedule.flow(100)], ids=["vp", "edm", "flow"]
)
def test_levels_even_in_log_snr(schedule: NoiseSchedule) -> None:
    found, silent = steps.log_snr_levels(schedule, 12), int(schedule.zero_terminal_snr)
    assert found[0] == schedule.level(schedule.num_steps)
    gaps = np.diff([level.log_snr for level in found[silent:]])
    np.testing.assert_allclose(gaps, gaps[0], rtol=1e-9)
    assert found[silent].index == schedule.num_steps - silent
    assert (found[-1].index, len(found)) == (1, 12)
    assert steps.log_snr_levels(schedule, 1) == [schedule.level(schedule.num_steps)]


@pytest.mark.parametrize("values", [[14.6, 6.3, 3.8, 0.9, 0.05], (14.6, 6.3, 3.8, 0.9, 0.05, 0.0)], ids=["", "to 0"])
def test_lists_of_sigmas(values: list[float]) -> None:
    """As Align Your Steps publishes them; the 0 at the end is the step to clean data, which is always taken."""
    found = steps.sigmas(LINEAR, values)
    np.testing.assert_allclose(ratios(found), [14.6, 6.3, 3.8, 0.9, 0.05], rtol=1e-9)
    assert all(abs(level.alpha**2 + level.sigma**2 - 1) < 1e-12 for level in found)


def test_shifted_steps_are_diffusers_flow_matching_schedulers() -> None:
    from diffusers import FlowMatchEulerDiscreteScheduler

    for shift in (1.0, 3.0):
        theirs = FlowMatchEulerDiscreteScheduler(shift=shift)
        sigmas = np.linspace(1.0, 1 / 8, 8)
        theirs.set_timesteps(sigmas=sigmas)
        found = steps.shifted(8, shift)
        np.testing.assert_allclose([level.sigma for level in found], theirs.sigmas[:-1].numpy(), rtol=1e-6)
        np.testing.assert_allclose([level.timestep for level in found], theirs.timesteps.numpy(), rtol=1e-6)
        assert all(level.alpha + level.sigma == 1.0 for level in found)


def test_levels_are_taken_as_they_are() -> None:
    levels = [LINEAR.level(900), NoiseLevel(0.8, 0.6, 200.0), LINEAR.level(3)]
    assert steps.resolve(LINEAR, levels) == levels
    assert steps.resolve(LINEAR, (*levels, NoiseLevel.clean())) == levels
    told = steps.describe(levels)
    assert told[1] == [0.8, 0.6, 200.0]
    assert steps.describe([1, 5]) == [1, 5]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: [LINEAR.level(3), LINEAR.level(900)], "noise levels must fall, from more noise to less, but log SNR"),
        (lambda: [LINEAR.level(3), LINEAR.level(3)], "noise levels must fall"),
        (lambda: [LINEAR.level(900), 3], "a noise level must be a dv.NoiseLevel, .* but got int"),
        (lambda: [NoiseLevel.clean()], "begins with clean data"),
        (lambda: [LINEAR.level(9), NoiseLevel.clean(), LINEAR.level(3)], "noise levels must fall"),
        (lambda: steps.sigmas(LINEAR, []), "the list of sigmas is empty"),
        (lambda: steps.sigmas(LINEAR, [0.0]), "the list of sigmas is empty"),
        (lambda: steps.sigmas(LINEAR, [1.0, 2.0]), "noise levels must fall"),
        (lambda: steps.sigmas(LINEAR, [1.0, float("nan")]), "a sigma=nan must be a finite number of at least 0"),
        (lambda: steps.sigmas(LINEAR, [1.0, -1.0]), "a sigma=-1.0 must be"),
        (lambda: steps.sigmas(LINEAR, [1e4, 1.0]), r"log_snr=.* is outside \["),
        (lambda: steps.sigmas(1000, [1.0]), "sigmas needs a schedule"),
        (lambda: steps.karras(1000, 5), "karras needs a schedule"),
        (lambda: steps.log_snr_levels(1000, 5), "log_snr_levels needs a schedule"),
        (lambda: steps.power(1000, 5, 0.0), "power=0.0 must be a positive number"),
        (lambda: steps.karras(LINEAR, 0), "steps=0 is not a usable number"),
        (lambda: steps.karras(LINEAR, 5, rho=0.0), "rho=0.0 must be a positive number"),
        (lambda: steps.shifted(0), "steps=0 must be a whole number of at least 1"),
        (lambda: steps.shifted(4, shift=-1.0), "shift=-1.0 must be a positive number"),
    ],
)
def test_bad_levels_are_refused(make: Callable[[], Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        steps.resolve(LINEAR, make())
