"""A run as a run: the same bytes from the same seed, however it is cut into batches and whatever interrupts it."""

import gc
import signal
import subprocess
import sys
import tracemalloc

import numpy as np
import pytest
import torch
from held import bytes_held
from killed_run import LAST_CALL, OPTIONS, SCHEDULE, denoiser, images
from places import SUPPORT

import diffusion_var as dv
from diffusion_var import resume
from diffusion_var.variance.estimate import _Run

# Most networks here are bare functions, which have no weights to tell a checkpoint's network by.
pytestmark = pytest.mark.filterwarnings("ignore:the network has no weights")


SCRIPT = SUPPORT / "killed_run.py"


def saved(table, folder, name="table.safetensors"):
    table.save(folder / name)
    return (folder / name).read_bytes()


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    """(table, its file's bytes, network calls)"""
    calls = []
    table = dv.estimate(denoiser(hook=lambda: calls.append(1)), images(), **OPTIONS)
    return table, saved(table, tmp_path_factory.mktemp("uninterrupted")), len(calls)


# ---- determinism --------------------------------------------------------------------------------------------------


def test_same_seed_same_bytes(uninterrupted, tmp_path):
    again = dv.estimate(denoiser(), images(), **OPTIONS)
    assert saved(again, tmp_path) == uninterrupted[1]


def test_another_seed_differs(uninterrupted):
    table, other = uninterrupted[0], dv.estimate(denoiser(), images(), **{**OPTIONS, "seed": 4})
    gap = abs(other.posterior_variance(40) / table.posterior_variance(40) - 1)
    assert 1e-5 < gap < 6 * (other.relative_error(40) + table.relative_error(40))


@pytest.mark.parametrize("batch_size", [7, 16, 100])
def test_the_batch_size_does_not_matter(uninterrupted, batch_size):
    table, other = uninterrupted[0], dv.estimate(denoiser(), images(), **OPTIONS, batch_size=batch_size)
    assert np.array_equal(table.counts, other.counts)
    for name in table.structures:
        a, b = table.moments[name], other.moments[name]
        assert np.abs(a.means - b.means).max() <= 1e-5 * np.abs(a.means).max()
        for estimator in ("residual", "score_norm", "data_variance"):
            for n in OPTIONS["indices"]:
                v, w = (t.posterior_variance(n, estimator, name, False) for t in (table, other))
                assert np.abs(v - w).max() <= 1e-5 * np.abs(v).max()


@pytest.mark.parametrize("batch_size", [7, 16, 64, 100])
def test_the_network_sees_no_more_than_a_batch(batch_size):
    sizes = []

    def network(x_t, timestep):
        assert len(timestep) == len(x_t)
        sizes.append(len(x_t))
        return 0.5 * x_t

    model = dv.Denoiser(network, SCHEDULE, shape=(1, 3, 4))
    table = dv.estimate(model, images(), 1e3, indices=[5, 40, 90], batch_size=batch_size, progress=False)
    assert max(sizes) == {7: 7, 16: 16, 64: 64, 100: 96}[batch_size]
    assert sum(sizes) == table.evaluations == 768


def test_no_global_random_numbers_are_read_or_written(uninterrupted, tmp_path):
    np.random.seed(0)  # noqa: NPY002 (the global generator is what is tested)
    torch.manual_seed(0)
    before = np.random.get_state()[1].copy(), torch.get_rng_state()  # noqa: NPY002
    table = dv.estimate(denoiser(), images(), **OPTIONS)
    assert np.array_equal(before[0], np.random.get_state()[1])  # noqa: NPY002
    assert torch.equal(before[1], torch.get_rng_state())
    torch.manual_seed(1)
    assert saved(table, tmp_path) == uninterrupted[1]


# ---- interruption -------------------------------------------------------------------------------------------------


class Interrupt:
    """Raises at the k-th call."""

    def __init__(self, k, error):
        self.left, self.error = k, error

    def __call__(self):
        self.left -= 1
        if self.left == 0:
            raise self.error


@pytest.mark.parametrize("error", [KeyboardInterrupt(), RuntimeError("out of memory")])
@pytest.mark.parametrize("share", [0.02, 0.3, 0.7, 1.0])
def test_interrupted_and_resumed_gives_the_same_bytes(uninterrupted, tmp_path, share, error):
    _, expected, calls = uninterrupted
    k, checkpoint = max(1, int(share * calls)), tmp_path / "checkpoint"
    with pytest.raises(type(error)):
        dv.estimate(denoiser(hook=Interrupt(k, error)), images(), checkpoint=checkpoint, **OPTIONS)
    assert checkpoint.exists()
    resumed = []
    table = dv.estimate(denoiser(hook=lambda: resumed.append(1)), images(), checkpoint=checkpoint, **OPTIONS)
    assert saved(table, tmp_path) == expected
    assert len(resumed) == calls - (k - 1)  # nothing twice but the batch that was lost


def test_interrupted_again_and_again(uninterrupted, tmp_path):
    _, expected, calls = uninterrupted
    checkpoint, stops = tmp_path / "checkpoint", 0
    while stops < calls:
        try:
            hook = Interrupt(12, KeyboardInterrupt())
            table = dv.estimate(denoiser(hook=hook), images(), checkpoint=checkpoint, **OPTIONS)
            break
        except KeyboardInterrupt:
            stops += 1
    assert stops == (calls - 1) // 11
    assert saved(table, tmp_path) == expected


def test_interrupted_while_planning_a_round(uninterrupted, tmp_path, monkeypatch):
    """Where the state is half changed, the last good file stands."""
    checkpoint, counts, fired = tmp_path / "checkpoint", _Run.counts, []

    def interrupted(run):
        if run.round_number == 1 and not fired:  # the round is counted, but its draws are not planned yet
            fired.append(1)
            raise KeyboardInterrupt
        return counts.fget(run)

    with monkeypatch.context() as patch:
        patch.setattr(resume, "SECONDS", 0.0)
        patch.setattr(_Run, "counts", property(interrupted))
        with pytest.raises(KeyboardInterrupt):
            dv.estimate(denoiser(), images(), checkpoint=checkpoint, **OPTIONS)
    assert saved(dv.estimate(denoiser(), images(), checkpoint=checkpoint, **OPTIONS), tmp_path) == uninterrupted[1]


def test_killed_by_the_system_and_resumed(uninterrupted, tmp_path):
    checkpoint = tmp_path / "checkpoint"
    process = subprocess.Popen([sys.executable, str(SCRIPT), str(checkpoint)], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout.readline() == "waiting\n"
    finally:
        process.send_signal(signal.SIGKILL)
        process.communicate()
    resumed = []
    table = dv.estimate(denoiser(hook=lambda: resumed.append(1)), images(), checkpoint=checkpoint, **OPTIONS)
    assert len(resumed) == uninterrupted[2] - (LAST_CALL - 1) > 5
    assert saved(table, tmp_path) == uninterrupted[1]


def test_a_finished_run_is_not_run_again_but_can_be_taken_further(uninterrupted, tmp_path):
    checkpoint, calls = tmp_path / "checkpoint", []
    count = denoiser(hook=lambda: calls.append(1))
    dv.estimate(count, images(), checkpoint=checkpoint, **OPTIONS)
    first = len(calls)
    table = dv.estimate(count, images(), checkpoint=checkpoint, **OPTIONS)
    assert len(calls) == first == uninterrupted[2]
    assert saved(table, tmp_path) == uninterrupted[1]
    further = dv.estimate(count, images(), checkpoint=checkpoint, **{**OPTIONS, "tolerance": 0.004})
    assert max(further.relative_error(n) for n in OPTIONS["indices"]) <= 0.004
    # what was drawn before is drawn no more
    assert 0 < further.evaluations - table.evaluations <= 64 * (len(calls) - first)


def test_resuming_with_a_smaller_budget_stops(tmp_path):
    checkpoint = tmp_path / "checkpoint"
    options = {**OPTIONS, "tolerance": 0.001, "checkpoint": checkpoint}
    interrupted = denoiser(hook=Interrupt(25, KeyboardInterrupt()))
    with pytest.raises(KeyboardInterrupt):
        dv.estimate(interrupted, images(), **options)
    # What was spent is spent; nothing is added above the budget, and all of it is used (in whole shards).
    sizes = []
    for budget, expected in ((1000, 24 * 64), (24 * 64 + 5, 24 * 64), (24 * 64 + 39, 24 * 64 + 32)):
        counting = denoiser(hook=lambda: sizes.append(1))
        with pytest.warns(dv.DiffusionVarWarning, match="of 3 indices"):
            table = dv.estimate(counting, images(), max_evaluations=budget, **options)
        assert table.evaluations == expected
    assert len(sizes) == 1


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"seed": 4}, "seed"),
        ({"indices": [5, 40]}, "indices"),
        ({"structures": ("pixel",)}, "structures"),
        ({"conditions": np.zeros(20)}, "conditions"),
    ],
)
def test_a_checkpoint_of_another_run_is_refused(tmp_path, change, named):
    checkpoint = tmp_path / "checkpoint"
    dv.estimate(denoiser(), images(), checkpoint=checkpoint, **{**OPTIONS, "tolerance": 1e3})
    before = checkpoint.read_bytes()
    with pytest.raises(dv.InputError, match=f"belongs to another run \\(different {named}\\)"):
        dv.estimate(denoiser(), images(), checkpoint=checkpoint, **{**OPTIONS, **change})
    assert checkpoint.read_bytes() == before


def test_a_checkpoint_of_other_data_or_another_model_is_refused(tmp_path):
    checkpoint = tmp_path / "checkpoint"
    options = {**OPTIONS, "tolerance": 1e3, "checkpoint": checkpoint}

    class Network(torch.nn.Module):
        def __init__(self, weight):
            super().__init__()
            self.weight = torch.nn.Parameter(torch.tensor(weight))

        def forward(self, x_t, timestep):
            return self.weight * x_t

    def model(weight=0.5, **changes):
        return dv.Denoiser(Network(weight), **{"schedule": SCHEDULE, "shape": (1, 3, 4), **changes})

    dv.estimate(model(), images(), **options)
    other = images()
    other[7, 0, 1, 1] *= 0.99
    for changed, data, named in (
        (model(), other, "data"),
        (model(weight=0.6), images(), "network"),
        (model(clip=None, data_range=(-1, 1)), images(), "clip"),
        (model(data_range=(-1, 2)), images(), "data_range"),
        (model(prediction="v_prediction"), images(), "prediction"),
        (model(schedule=dv.NoiseSchedule.cosine(100)), images(), "schedule"),
    ):
        with pytest.raises(dv.InputError, match=f"\\(different {named}\\)"):
            dv.estimate(changed, data, **options)
    dv.estimate(model(), images(), **options)


# ---- faults -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_nan_from_the_network_names_index_and_batch_and_keeps_the_checkpoint(uninterrupted, tmp_path, bad):
    checkpoint, calls = tmp_path / "checkpoint", []

    def network(x_t, timestep):
        out = 0.8 * torch.tanh(1.3 * x_t) + 0.15 * x_t.flip(-1) + 0.1
        calls.append(1)
        if len(calls) == 8:
            row = int((timestep == 40 - 1).nonzero()[0])
            out[row, 0, 2, 3] = bad
        return out

    sick = dv.Denoiser(network, SCHEDULE, shape=(1, 3, 4))
    with pytest.raises(dv.NumericalError, match=r"at index n=40, in the batch of evaluations 448 to 512;"):
        dv.estimate(sick, images(), checkpoint=checkpoint, **OPTIONS)
    table = dv.estimate(denoiser(), images(), checkpoint=checkpoint, **OPTIONS)
    assert saved(table, tmp_path) == uninterrupted[1]


def test_nan_is_traced_to_its_index_in_a_mixed_batch():
    def network(x_t, timestep):
        return torch.where((timestep == 40 - 1)[:, None, None, None], torch.nan, 0.5 * x_t)

    sick = dv.Denoiser(network, SCHEDULE, shape=(1, 3, 4))
    with pytest.raises(dv.NumericalError, match=r"at index n=40, in the batch of evaluations 0 to 160;"):
        dv.estimate(sick, images(), batch_size=160, **OPTIONS)


def test_a_checkpoint_that_cannot_be_written_says_so(tmp_path):
    with pytest.raises(dv.InputError, match=r"could not write .*nowhere"):
        dv.estimate(denoiser(), images(), checkpoint=tmp_path / "nowhere" / "c", **{**OPTIONS, "tolerance": 1e3})


def test_a_damaged_checkpoint_is_refused_and_left(tmp_path):
    checkpoint = tmp_path / "checkpoint"
    dv.estimate(denoiser(), images(), checkpoint=checkpoint, **{**OPTIONS, "tolerance": 1e3})
    damaged = bytearray(checkpoint.read_bytes())
    damaged[len(damaged) // 2] ^= 4
    checkpoint.write_bytes(damaged)
    with pytest.raises(dv.InputError, match="damaged"):
        dv.estimate(denoiser(), images(), checkpoint=checkpoint, **OPTIONS)
    assert checkpoint.read_bytes() == damaged


def test_a_checkpoint_of_a_bare_function_is_continued_with_a_warning(tmp_path):
    schedule = dv.NoiseSchedule.linear(100)
    denoiser = dv.Denoiser(lambda x, t: 0 * x, schedule, shape=(1, 4, 4))
    images = np.random.default_rng(0).uniform(-1, 1, (20, 1, 4, 4)).astype(np.float32)
    options = {"indices": [50], "tolerance": 9.0, "progress": False, "checkpoint": tmp_path / "c"}
    dv.estimate(denoiser, images, **options)
    with pytest.warns(dv.DiffusionVarWarning, match="continued on trust"):
        dv.estimate(denoiser, images, **options)


# ---- memory -------------------------------------------------------------------------------------------------------


def test_memory_does_not_grow_with_evaluations(monkeypatch):
    """Counted in bytes, not timed."""
    runs, finish = [], _Run.finish
    monkeypatch.setattr(_Run, "finish", lambda self, *rest: (runs.append(self), finish(self, *rest)))
    peaks, held, live = [], [], []
    options = {**OPTIONS, "tolerance": 1e-9}
    for budget in (2_000, 2_000, 16_000):  # the first warms up whatever is cached for good
        gc.collect()
        tracemalloc.start()
        with pytest.warns(dv.DiffusionVarWarning):
            dv.estimate(denoiser(), images(), max_evaluations=budget, **options)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        held.append(bytes_held(runs.pop()))
        gc.collect()
        live.append(sum(t.nbytes for t in gc.get_objects() if type(t) is torch.Tensor))
    assert held[1] > 10_000
    assert held[2] == held[1]
    assert live[2] <= live[1] + held[1]
    # the queue of a round holds a tuple per 16 draws; nothing else may grow
    assert peaks[2] < peaks[1] + 16_000 / 16 * 200
