"""A run that several processes share: the table of one, whatever stops them, and however many go on. Each test forks
its processes."""

import os
import signal
import time
import warnings

import numpy as np
import pytest
import torch
from killed_run import OPTIONS, SCHEDULE, denoiser, images
from many import Many, many

import diffusion_var as dv
from diffusion_var import resume

# The networks here are bare functions, which have no weights to tell a checkpoint's network by.
pytestmark = pytest.mark.filterwarnings("ignore:the network has no weights")

WHOLE = {**OPTIONS, "batch_size": 16}  # batches of one shard are the same in any number of processes


def rank():
    return int(os.environ.get("RANK", "0"))


def saved(table, folder):
    table.save(folder / f"of rank {rank()}")
    return (folder / f"of rank {rank()}").read_bytes()


def measure(folder, options, hook=None):
    """The bytes of the table, and how often this process called the network."""
    calls = []

    def called():
        calls.append(1)
        if hook is not None:
            hook(len(calls))

    table = dv.estimate(denoiser(called), images(), **options)
    return saved(table, folder), len(calls)


@pytest.fixture(scope="module")
def of_one(tmp_path_factory):
    """(bytes, calls) of one process."""
    return measure(tmp_path_factory.mktemp("one"), WHOLE)


# ---- the same table -----------------------------------------------------------------------------------------------


def test_the_table_is_that_of_one_process_to_the_byte(of_one, tmp_path):
    ends = many(2, measure, tmp_path, WHOLE)
    assert [content for content, _ in ends] == [of_one[0]] * 2
    calls = [n for _, n in ends]
    assert sum(calls) == of_one[1]
    assert min(calls) > 0.2 * of_one[1]  # of three indices one has one, and one has two


def test_what_is_told_shard_by_shard_may_need_many_meetings(of_one, tmp_path, monkeypatch):
    monkeypatch.setattr("diffusion_var.variance.estimate._HELD", 0)
    assert [content for content, _ in many(2, measure, tmp_path, WHOLE)] == [of_one[0]] * 2


def test_where_batches_are_cut_otherwise_it_is_equal_to_rounding(tmp_path):
    (one, other), options = (tmp_path / "one", tmp_path / "other"), {**OPTIONS, "batch_size": 64}
    dv.estimate(denoiser(), images(), **options).save(one)
    other.write_bytes(many(2, measure, tmp_path, options)[1][0])
    a, b = dv.VarianceTable.load(one), dv.VarianceTable.load(other)
    assert np.array_equal(a.counts, b.counts)
    for name in a.structures:
        x, y = a.moments[name].means, b.moments[name].means
        assert np.abs(x - y).max() <= 1e-5 * np.abs(x).max()


def of_one_index(folder):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        content, calls = measure(folder, {**WHOLE, "indices": [40], "tolerance": 9.0})
    return content, calls, [str(w.message) for w in caught if "processes" in str(w.message)]


@pytest.mark.parametrize("count", [2, 13])
def test_an_index_is_shared_by_more_processes_than_there_are_indices(tmp_path, count):
    expected, every, _ = of_one_index(tmp_path)
    contents, calls, said = zip(*many(count, of_one_index, tmp_path), strict=True)
    assert set(contents) == {expected}
    assert sum(calls) == every == 16
    assert count > 2 or min(calls) > 4
    many_said = ["there are more processes (13) than shards of 16 draws (12) to share between them"]
    assert [text.partition(";")[0] for text in said[0]] == (many_said if count == 13 else [])
    assert not any(said[1:])


# ---- interruption -------------------------------------------------------------------------------------------------


def told_to_stop(folder, options):
    """Rank 1 is told to stop at its 6th batch."""
    return measure(folder, options, lambda k: rank() == 1 and k == 6 and os.kill(os.getpid(), signal.SIGTERM))


def killed(folder, options):
    """Rank 1 is killed when all of the first rounds is saved and more is begun."""
    resume.SECONDS = 0.0
    return measure(folder, options, lambda k: rank() == 1 and k == 24 and os.kill(os.getpid(), signal.SIGKILL))


@pytest.mark.parametrize("goes_on", [1, 3])
@pytest.mark.parametrize(("stop", "said"), [(told_to_stop, "Stopped"), (killed, "RankError: rank 1 of 2 was killed")])
def test_interrupted_in_two_processes_and_continued_in_any_number(of_one, tmp_path, stop, said, goes_on):
    options = {**WHOLE, "checkpoint": tmp_path / "c"}
    first, second = Many(2, stop, tmp_path, options).ends()
    assert first.error.startswith(said)
    assert second.error.startswith("Stopped") if stop is told_to_stop else second.code == -signal.SIGKILL
    ends = many(goes_on, measure, tmp_path, options)
    assert [content for content, _ in ends] == [of_one[0]] * goes_on
    # what two processes did until then, at least their first six batches, is done no more
    assert sum(calls for _, calls in ends) <= of_one[1] - 12


def test_interrupted_in_one_process_and_continued_in_two(of_one, tmp_path):
    options = {**WHOLE, "checkpoint": tmp_path / "c"}

    def stop(k):
        if k == 21:  # in the middle of an index of the second round
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        measure(tmp_path, options, stop)
    ends = many(2, measure, tmp_path, options)
    assert [content for content, _ in ends] == [of_one[0]] * 2
    assert sum(calls for _, calls in ends) == of_one[1] - 20


def test_interrupted_and_continued_in_as_many_processes_gives_the_same_bytes(tmp_path):
    """Whatever the batch size: who has which index follows from the round's plan."""
    options = {**OPTIONS, "batch_size": 64, "checkpoint": tmp_path / "c"}
    expected = many(2, measure, tmp_path, {**options, "checkpoint": None})[0][0]
    assert all(end.error.startswith("Stopped") for end in Many(2, told_to_stop, tmp_path, options).ends())
    assert many(2, measure, tmp_path, options)[0][0] == expected


def slow_second(folder, options):
    """Rank 1 is slow, and killed at its 15th batch of 16; rank 0 waits for it meanwhile."""
    resume.SECONDS = 0.3

    def slow(k):
        if rank() == 1:
            time.sleep(0.1)
            if k == 15:
                os.kill(os.getpid(), signal.SIGKILL)

    return measure(folder, options, slow)


def test_what_one_does_while_the_first_waits_is_saved_meanwhile(tmp_path):
    options = {**WHOLE, "indices": [40, 90], "tolerance": 9.0, "checkpoint": tmp_path / "c"}
    first, second = Many(2, slow_second, tmp_path, options).ends()
    assert second.code == -signal.SIGKILL
    assert first.error.startswith("RankError: rank 1 of 2 was killed")
    _, left = measure(tmp_path, options)
    assert 1 < left < 8  # of 32; without, 12


# ---- disagreement and faults --------------------------------------------------------------------------------------


class Scaled(torch.nn.Module):
    def __init__(self, weight):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.tensor(weight))

    def forward(self, x_t, timestep):
        assert not timestep.numel(), "it was evaluated"


def differing(what):
    other, data = rank() == 1, images()
    options = {**OPTIONS, what: OPTIONS[what] + 1} if what in ("seed", "tolerance") and other else OPTIONS
    if what == "data" and other:
        data[7, 0, 1, 1] *= 0.99
    model = dv.Denoiser(Scaled(0.6 if what == "network" and other else 0.5), SCHEDULE, shape=(1, 3, 4))
    dv.estimate(model, data, **options)


@pytest.mark.parametrize("what", ["seed", "data", "network", "tolerance"])
def test_processes_that_differ_are_refused_before_any_evaluation(what):
    for end in Many(2, differing, what).ends():
        assert end.error.startswith(f"InputError: the processes differ in {what} (the {what} of rank 0 is ")


def sick(folder, options):
    def network(x_t, timestep):
        out = 0.8 * torch.tanh(1.3 * x_t) + 0.15 * x_t.flip(-1) + 0.1
        return torch.where((timestep == 40 - 1)[:, None, None, None], torch.nan, out)

    dv.estimate(dv.Denoiser(network, SCHEDULE, shape=(1, 3, 4)), images(), **options)


def test_nan_names_its_index_and_the_process(tmp_path):
    options = {**WHOLE, "checkpoint": tmp_path / "c"}
    first, second = Many(2, sick, tmp_path, options).ends()
    own, others = sorted((first.error, second.error))
    assert own.startswith("NumericalError: the network gave NaN or infinite values at index n=40, in the batch of")
    assert others.startswith("RankError: rank ")
    assert "failed: the network gave NaN or infinite values at index n=40" in others
    assert (tmp_path / "c").exists()
