"""`scripts/train_unet.py --learned-range`: a pipeline that samplers, likelihoods and diffusers take; interruptions."""

import csv
import json
import runpy
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import DDPMPipeline
from places import SCRIPTS

import diffusion_var as dv
from diffusion_var.app.commands.train_unet import CHECKPOINT, TrainUNetOptions, make_scheduler, make_unet, run
from diffusion_var.data.digits import digits_splits
from diffusion_var.errors import InputError
from diffusion_var.training import unet as training

SCRIPT = SCRIPTS / "train_unet.py"
IMAGES = digits_splits().train.images[:60]
WEIGHTS = Path("unet/diffusion_pytorch_model.safetensors")
UNET = {
    "layers_per_block": 1,
    "block_out_channels": [8, 8],
    "down_block_types": ["DownBlock2D", "DownBlock2D"],
    "up_block_types": ["UpBlock2D", "UpBlock2D"],
    "norm_num_groups": 4,
    "dropout": 0.1,
}


@pytest.fixture
def options(tmp_path):
    """A function that makes options: six steps on 8×8 digits with a learned range."""
    np.savez(tmp_path / "digits.npz", train=IMAGES.numpy(), test=digits_splits().table.images.numpy()[:30])

    def make(**changes):
        given = {"images": f"{tmp_path}/digits.npz:train", "out": tmp_path / "model", "unet": UNET}
        few = {"steps": 6, "batch_size": 4, "evaluate_every": 4, "scheduler": {"num_train_timesteps": 50}}
        return TrainUNetOptions(**{**given, **few, "learned_range": True, **changes})

    return make


def test_the_script_makes_a_model_that_everything_takes(options, tmp_path, monkeypatch):
    options()  # writes the images
    out = tmp_path / "model"
    line = f"--images {tmp_path}/digits.npz:train --held-out {tmp_path}/digits.npz:test --out {out} --learned-range"
    few = ["--steps", "6", "--batch-size", "4", "--unet", json.dumps(UNET), "--scheduler", "{num_train_timesteps: 50}"]
    monkeypatch.setattr(sys, "argv", ["train_unet.py", *line.split(), *few])
    with pytest.raises(SystemExit) as end:
        runpy.run_path(str(SCRIPT), run_name="__main__")
    assert end.value.code == 0
    denoiser = dv.Denoiser.from_pretrained(out)
    assert (denoiser.shape, denoiser.schedule.num_steps) == ((1, 8, 8), 50)
    assert denoiser(torch.zeros(2, 1, 8, 8), 5).range.shape == (2, 1, 8, 8)
    images = dv.Sampler(denoiser, dv.LearnedRange(), 3).sample(2)
    assert images.shape == (2, 1, 8, 8)
    assert float((images - dv.Sampler(denoiser, dv.FixedSmall(), 3).sample(2)).abs().max()) > 1e-3
    bound = dv.bits_per_dim(denoiser, dv.LearnedRange(), IMAGES[:4], progress=False)
    assert 0 < bound.value < 100
    pipeline = DDPMPipeline.from_pretrained(out)
    pipeline.set_progress_bar_config(disable=True)
    made = pipeline(batch_size=2, num_inference_steps=5, output_type="np", generator=torch.manual_seed(0)).images
    assert made.shape == (2, 8, 8, 1)
    assert np.isfinite(made).all()
    record = json.loads((out / "training.json").read_text())
    assert record["learned_range"] is True
    with open(out / "loss.csv") as file:
        rows = list(csv.DictReader(file))
    assert all(0.1 < float(row[name]) < 3 for row in rows for name in ("train", "held_out"))


def test_an_interrupted_command_goes_on(options, tmp_path, monkeypatch):
    run(options(out=tmp_path / "whole"))
    rate, checkpoint = training.UNetTraining.rate, tmp_path / "model" / CHECKPOINT

    def stop(self, step):
        if step == 4:
            raise KeyboardInterrupt
        return rate(self, step)

    settings = training.UNetTraining(6, batch_size=4, evaluate_every=4, learned_range=True)
    schedule = dv.NoiseSchedule.from_diffusers(make_scheduler({"num_train_timesteps": 50}, True))
    monkeypatch.setattr(training.UNetTraining, "rate", stop)
    checkpoint.parent.mkdir()
    with pytest.raises(KeyboardInterrupt):
        training.train_unet(
            *(make_unet(UNET, (1, 8, 8), 0, True), IMAGES, schedule, settings),
            checkpoint=checkpoint,
            checkpoint_seconds=0,
            progress=False,
        )
    monkeypatch.undo()
    said = r"\(different learned_range, unet.out_channels\): its learned_range is True, but this run's is False"
    with pytest.raises(InputError, match=said):
        run(options(learned_range=False))
    run(options())
    assert (tmp_path / "model" / WEIGHTS).read_bytes() == (tmp_path / "whole" / WEIGHTS).read_bytes()


def test_bf16_trains_too(options, tmp_path):
    run(options(mixed_precision="bf16", steps=2))
    assert all(torch.isfinite(p).all() for p in dv.Denoiser.from_pretrained(tmp_path / "model").network.parameters())


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"unet": {**UNET, "out_channels": 1}}, r"unet\.out_channels is 1, but learned_range needs 2; leave it out"),
        ({"unet": {**UNET, "in_channels": 2}}, r"unet\.in_channels is 2, but the images have 1; leave it out"),
        (
            {"learned_range": False, "unet": {**UNET, "out_channels": 2}},
            r"unet\.out_channels is 2, but the images have 1",
        ),
        (
            {"scheduler": {"variance_type": "fixed_small"}},
            r"scheduler\.variance_type is 'fixed_small', but with learned_range it is 'learned_range'",
        ),
        ({"scheduler": {"variance_type": "learned"}}, r"is 'learned', but with learned_range it is 'learned_range'"),
        (
            {"learned_range": False, "scheduler": {"variance_type": "learned_range"}},
            r"variance_type is 'learned_range', but no variance is learned; leave it out, or set learned_range",
        ),
        ({"scheduler": {"num_train_timesteps": 1}}, "the schedule has one index"),
        ({"scheduler": {"rescale_betas_zero_snr": True}}, "zero terminal SNR"),
    ],
)
def test_contradictions(options, tmp_path, changes, said):
    with pytest.raises(InputError, match=said) as error:
        run(options(**changes))
    assert "\n" not in str(error.value)
    assert not (tmp_path / "model").exists()


def test_what_agrees_may_be_said(options):
    network = make_unet({**UNET, "out_channels": 6}, (3, 8, 8), 0, True)
    assert (network.config.in_channels, network.config.out_channels) == (3, 6)
    assert make_scheduler({"variance_type": "learned_range"}, True).config.variance_type == "learned_range"
    assert make_scheduler({"variance_type": "fixed_large"}).config.variance_type == "fixed_large"
