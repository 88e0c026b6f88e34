"""Random streams: told apart by seed, purpose and index alone, the same on every machine, none of them global."""

import numpy as np
import pytest
import torch

from diffusion_var.randomness import Streams, generator, normal


def test_stream_indices_are_integers_of_any_kind() -> None:
    """Image 3 is image 3, whether Python, NumPy or PyTorch says so."""
    expected = generator(0, "test", 3).standard_normal(4).tolist()
    for three in (np.int64(3), torch.tensor(3)):
        assert generator(0, "test", three).standard_normal(4).tolist() == expected  # type: ignore[arg-type]
    with pytest.raises(TypeError):
        generator(0, "test", 3.0)  # type: ignore[arg-type]


def test_streams_are_told_apart_by_seed_purpose_and_index_alone() -> None:
    names = [
        (0, "estimate"),
        (1, "estimate"),
        (0, "sample"),
        (0, "estimate", 0),
        (0, "estimate", 1),
        (0, "estimate", 1, 1),
        (0, "estimate", 11),
        (0, "estimate", 1, 11),
        (0, "estimate", 11, 1),
        (-1, "estimate", 1),
    ]
    draws = {name: tuple(generator(*name).standard_normal(4)) for name in names}
    assert len(set(draws.values())) == len(names)
    for name in reversed(names):  # the order of work does not matter
        assert tuple(generator(*name).standard_normal(4)) == draws[name]


def test_a_moved_generator_gives_the_numbers_of_fresh_ones() -> None:
    """Also when it was left in the middle of a draw, with half of a 64-bit word unused."""
    streams = Streams()
    for name in ((0, "a", 1), (0, "a", 2), (5, "b"), (0, "a", 1)):
        moved, fresh = streams.at(*name), generator(*name)
        assert np.array_equal(moved.integers(0, 7, 5, dtype=np.int32), fresh.integers(0, 7, 5, dtype=np.int32))
        assert np.array_equal(moved.standard_normal(9, dtype=np.float32), fresh.standard_normal(9, dtype=np.float32))


def test_streams_look_independent() -> None:
    count, length = 200, 500
    rows = np.stack([generator(0, "test", i).standard_normal(length) for i in range(count)])
    correlations = np.corrcoef(rows)[np.triu_indices(count, 1)]
    assert np.abs(correlations).max() < 6 / np.sqrt(length)
    assert abs(correlations.std() * np.sqrt(length) - 1) < 0.05
    assert abs(rows.mean()) < 4 / np.sqrt(rows.size)


def test_a_stream_is_the_same_on_every_machine() -> None:
    """Philox keyed by a hash is fixed for good: these numbers must not change between versions of the package."""
    first = generator(0, "pinned", 1, 2).integers(0, 2**32, 3).tolist()
    assert first == [2127750886, 767045397, 1116049564]


def test_normal_is_single_precision_on_the_cpu_and_follows_its_stream() -> None:
    x = normal(generator(0, "test"), 2000, 3, 4)
    assert x.shape == (2000, 3, 4)
    assert x.dtype == torch.float32
    assert x.device.type == "cpu"
    assert torch.equal(x, normal(generator(0, "test"), 2000, 3, 4))
    assert abs(float(x.mean())) < 4 / x.numel() ** 0.5
    assert abs(float(x.var()) - 1) < 4 * (2 / x.numel()) ** 0.5


def test_no_global_generator_is_read_or_written() -> None:
    draws = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        np.random.seed(seed)  # noqa: NPY002
        torch_before, numpy_before = torch.get_rng_state(), np.random.get_state()  # noqa: NPY002
        draws.append(normal(generator(7, "test", 3), 50))
        assert torch.equal(torch.get_rng_state(), torch_before)
        numpy_after = np.random.get_state()  # noqa: NPY002
        assert all(np.array_equal(a, b) for a, b in zip(numpy_before, numpy_after, strict=True))
    assert torch.equal(*draws)
