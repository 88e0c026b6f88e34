"""Memory of a run does not grow with the number of evaluations: counted in bytes, not timed."""

import dataclasses
import gc
import sys
import tracemalloc

import numpy as np
import pytest
import torch
from killed_run import OPTIONS, denoiser, images

import diffusion_var as dv
from diffusion_var.variance.estimate import _Run


def bytes_held(thing, seen=None):
    """Bytes of all arrays and tensors reachable from an object."""
    seen = set() if seen is None else seen
    if id(thing) in seen or isinstance(thing, (type, str, bytes, int, float, type(sys))):
        return 0
    seen.add(id(thing))
    if isinstance(thing, np.ndarray):
        return thing.nbytes
    if isinstance(thing, torch.Tensor):
        return thing.nbytes
    if isinstance(thing, dict):
        return sum(bytes_held(value, seen) for value in thing.values())
    if isinstance(thing, (list, tuple, set)):
        return sum(bytes_held(value, seen) for value in thing)
    if dataclasses.is_dataclass(thing) or type(thing).__module__.startswith("diffusion_var"):
        return bytes_held(vars(thing), seen)
    return 0


def test_memory_does_not_grow_with_evaluations(monkeypatch):
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
        held.append(bytes_held(runs[-1]))
        runs[-1].denoiser = None
        gc.collect()
        live.append(sum(t.nbytes for t in gc.get_objects() if type(t) is torch.Tensor))
    assert held[1] > 10_000
    assert held[2] == held[1]
    assert live[2] <= live[1] + held[1]
    # the queue of a round holds a tuple per 16 draws; nothing else may grow
    assert peaks[2] < peaks[1] + 16_000 / 16 * 200
