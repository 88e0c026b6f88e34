"""A small training run, interrupted by tests. As a script (small_training.py CHECKPOINT N) it stops at look N at an
image, to be killed."""

import sys
import time
from pathlib import Path

import torch
from diffusers.models.unets.unet_2d import UNet2DModel
from torch.utils.data import Dataset

import diffusion_var as dv
from diffusion_var.randomness import generator
from diffusion_var.training.unet import TrainingResult, UNetTraining, train_unet

SCHEDULE = dv.NoiseSchedule.linear(100, 1e-3, 0.1)
SETTINGS = {"steps": 9, "batch_size": 4, "warmup_steps": 3, "evaluate_every": 4, "flip": True, "seed": 3}


def small_unet(dropout: float = 0.1, width: int = 8) -> UNet2DModel:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return UNet2DModel(
            sample_size=8,
            in_channels=1,
            out_channels=1,
            layers_per_block=1,
            block_out_channels=(width,),
            down_block_types=("DownBlock2D",),
            up_block_types=("UpBlock2D",),
            norm_num_groups=4,
            dropout=dropout,
        )


class Images(Dataset[torch.Tensor]):
    """20 images, and a hook that is told the number of each look at one."""

    def __init__(self, hook=lambda call: None) -> None:
        self.images = torch.from_numpy(generator(1, "images").integers(0, 256, (20, 1, 8, 8))).to(torch.uint8)
        self.hook, self.calls = hook, 0

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> torch.Tensor:
        self.calls += 1
        self.hook(self.calls)
        return self.images[index]


def train(images=None, checkpoint: Path | None = None, *, network=None, schedule=SCHEDULE, **changes) -> TrainingResult:
    """The small run, with a checkpoint at every step."""
    return train_unet(
        small_unet() if network is None else network,
        Images() if images is None else images,
        schedule,
        UNetTraining(**{**SETTINGS, **changes}),
        checkpoint=checkpoint,
        checkpoint_seconds=0,
        progress=False,
    )


def weights(result: TrainingResult) -> torch.Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in result.network.parameters()])


if __name__ == "__main__":
    stop_at = int(sys.argv[2])

    def wait(call: int) -> None:
        if call == stop_at:
            print("waiting", flush=True)
            time.sleep(600)

    train(Images(wait), Path(sys.argv[1]))
