"""Two processes train what one trains."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from small_training import small_unet, train, weights

from diffusion_var.errors import InputError
from diffusion_var.training.unet import _share


@pytest.mark.slow
def test_two_processes_give_the_weights_of_one(tmp_path):
    """Without dropout; the CPU's gloo. (`accelerate launch --cpu --num_processes 2` would run a single process.)"""
    script, file = Path(__file__).with_name("small_training.py"), tmp_path / "w.pt"
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    subprocess.run(
        [*launcher, str(script), "train", str(file)],
        check=True,
        capture_output=True,
        timeout=300,
        env={**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
    )
    found = torch.load(file, weights_only=True)
    assert found["processes"] == 2
    one = weights(train(network=small_unet(dropout=0.0)))
    start = torch.cat([parameter.detach().flatten() for parameter in small_unet().parameters()])
    # Adam divides by the gradients' size, rounding errors of vanishing ones included: the norms are compared.
    assert (found["weights"] - one).norm() < 2e-3 * (one - start).norm()


def test_a_batch_that_does_not_divide_is_refused():
    assert _share(12, 3) == 4
    with pytest.raises(InputError, match="batch_size=10 does not divide among 4 processes"):
        _share(10, 4)
