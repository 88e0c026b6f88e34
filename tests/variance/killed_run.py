"""Run by a test in a process of its own, which is killed: python killed_run.py CHECKPOINT [SECONDS PER EVALUATION]."""

import sys
import time

import torch

import diffusion_var as dv
from diffusion_var.variance import estimate as module

SCHEDULE = dv.NoiseSchedule.linear(100)
OPTIONS = {"tolerance": 0.02, "seed": 3, "indices": [5, 40, 90], "structures": ("pixel", "dct"), "progress": False}


def images():
    stream = torch.Generator().manual_seed(1)
    return torch.rand(20, 1, 3, 4, generator=stream) * 2 - 1


def denoiser(pause=0.0, hook=None):
    def network(x_t, timestep):
        if hook is not None:
            hook()
        time.sleep(pause)
        return 0.8 * torch.tanh(1.3 * x_t) + 0.15 * x_t.flip(-1) + 0.1

    return dv.Denoiser(network, SCHEDULE, shape=(1, 3, 4))


if __name__ == "__main__":
    module._CHECKPOINT_SECONDS = 0.0
    dv.estimate(denoiser(pause=0.01), images(), checkpoint=sys.argv[1], **OPTIONS)
