"""A small run, interrupted by tests. As a script (killed_run.py CHECKPOINT) it stops in the middle, to be killed."""

import itertools
import sys
import time

import torch

import diffusion_var as dv
from diffusion_var import resume

SCHEDULE = dv.NoiseSchedule.linear(100)
OPTIONS = {"tolerance": 0.005, "seed": 3, "indices": [5, 40, 90], "structures": ("pixel", "dct"), "progress": False}
LAST_CALL = 16


def images():
    stream = torch.Generator().manual_seed(1)
    return torch.rand(20, 1, 3, 4, generator=stream) * 2 - 1


def denoiser(hook=None):
    def network(x_t, timestep):
        if hook is not None:
            hook()
        return 0.8 * torch.tanh(1.3 * x_t) + 0.15 * x_t.flip(-1) + 0.1

    return dv.Denoiser(network, SCHEDULE, shape=(1, 3, 4))


def wait_to_be_killed(calls=itertools.count(1)):  # noqa: B008 (one counter for all calls)
    if next(calls) == LAST_CALL:
        print("waiting", flush=True)
        time.sleep(600)


if __name__ == "__main__":
    resume.SECONDS = 0.0
    dv.estimate(denoiser(wait_to_be_killed), images(), checkpoint=sys.argv[1], **OPTIONS)
