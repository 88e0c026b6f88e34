"""`scripts/train_unet.py`: a pipeline that loads, its loss curve, interruptions, and one sentence for a mistake."""

import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers.pipelines.ddpm.pipeline_ddpm import DDPMPipeline
from PIL import Image
from places import SCRIPTS

import diffusion_var as dv
from diffusion_var.app.commands.train_unet import CHECKPOINT, TrainUNetOptions, make_scheduler, make_unet, run
from diffusion_var.data.digits import digits_splits
from diffusion_var.errors import InputError
from diffusion_var.training import unet as training

SCRIPT = SCRIPTS / "train_unet.py"
UNET = {
    "layers_per_block": 1,
    "block_out_channels": [8, 8],
    "down_block_types": ["DownBlock2D", "DownBlock2D"],
    "up_block_types": ["UpBlock2D", "UpBlock2D"],
    "norm_num_groups": 4,
    "dropout": 0.1,
}


@pytest.fixture
def images(tmp_path):
    splits = digits_splits()
    path = tmp_path / "digits.npz"
    np.savez(path, train=splits.train.images.numpy()[:60], test=splits.table.images.numpy()[:30])
    return path


@pytest.fixture
def options(tmp_path, images):
    """A function that makes options: six steps on 8×8 digits."""

    def make(**changes):
        given = {"images": f"{images}:train", "held_out": f"{images}:test", "out": tmp_path / "model", "unet": UNET}
        few = {"steps": 6, "batch_size": 4, "evaluate_every": 4, "scheduler": {"num_train_timesteps": 50}}
        return TrainUNetOptions(**{**given, **few, **changes})

    return make


def contents(folder):
    return {path.relative_to(folder): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.mark.slow
def test_two_processes_on_the_cpu_train_what_one_trains(tmp_path, images):
    """torchrun and gloo, without dropout. (`accelerate launch --cpu --num_processes 2` would run a single process.)"""
    unet, config, out = {**UNET, "dropout": 0.0}, tmp_path / "c.yaml", tmp_path / "model"
    config.write_text(
        f"train_unet:\n  images: {images}:train[10:50]\n  out: {tmp_path}/no\n  unet: {json.dumps(unet)}\n  steps: 99\n"
        "  batch_size: 4\n  flip: true\n  scheduler: {num_train_timesteps: 50}\ncompare: {count: 3}\n"
    )
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    done = subprocess.run(
        [*launcher, str(SCRIPT), "--config", str(config), "--steps", "6", "--out", str(out)],
        env={**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("on 40 images, 6 steps") == 1
    assert done.stdout.count(f"written: {out} (loss ") == 1
    found = weights(dv.Denoiser.from_pretrained(out, device="cpu").network)
    start = make_unet(unet, (1, 8, 8), 0)
    one = training.train_unet(
        make_unet(unet, (1, 8, 8), 0),
        digits_splits().train.images[10:50],
        dv.NoiseSchedule.from_diffusers(make_scheduler({"num_train_timesteps": 50})),
        training.UNetTraining(6, batch_size=4, flip=True),
        progress=False,
    ).network
    # Adam divides by the gradients' size, rounding errors of vanishing ones included: the norms are compared.
    assert (found - weights(one)).norm() < 2e-3 * (weights(one) - weights(start)).norm()


def weights(network):
    return torch.cat([parameter.detach().cpu().flatten() for parameter in network.parameters()])


def test_the_result_loads_and_samples(options, tmp_path, images):
    run(options(mixed_precision="bf16", flip=True))
    out = tmp_path / "model"
    denoiser = dv.Denoiser.from_pretrained(out)
    assert denoiser.shape == (1, 8, 8)
    assert denoiser.schedule.num_steps == 50
    assert dv.Sampler(denoiser, dv.FixedSmall(), 3).sample(2).shape == (2, 1, 8, 8)
    with open(out / "loss.csv") as file:
        rows = list(csv.DictReader(file))
    assert [int(row["step"]) for row in rows] == [4, 6]
    assert all(0.1 < float(row[name]) < 3 for row in rows for name in ("train", "held_out"))
    record = json.loads((out / "training.json").read_text())
    assert record["held_out_loss"] == float(rows[-1]["held_out"])
    assert (record["steps"], record["images"], record["mixed_precision"]) == (6, f"{images}:train", "bf16")
    assert record["parameters"] == sum(p.numel() for p in make_unet(UNET, (1, 8, 8), 0).parameters())
    with Image.open(out / "loss.png") as picture:
        assert picture.width > 300
    assert not (out / CHECKPOINT).exists()
    weights = out / "unet" / "diffusion_pytorch_model.safetensors"
    assert weights.stat().st_mode & 0o777 == 0o644


def test_saved_weights_are_the_average_that_was_trained(options, tmp_path):
    run(options())
    loaded = dv.Denoiser.from_pretrained(tmp_path / "model").network.cpu()
    splits = digits_splits()
    expected = training.train_unet(
        make_unet(UNET, (1, 8, 8), 0),
        splits.train.images[:60],
        dv.NoiseSchedule.from_diffusers(make_scheduler({"num_train_timesteps": 50})),
        training.UNetTraining(6, batch_size=4, evaluate_every=4),
        progress=False,
    ).network
    for (name, mine), theirs in zip(loaded.state_dict().items(), expected.state_dict().values(), strict=True):
        assert torch.equal(mine, theirs), name


def test_a_flow_model_opens_as_one(options, tmp_path):
    """As what it is for the package and for diffusers' pipeline."""
    run(options(prediction="flow", scheduler={"num_train_timesteps": 50, "shift": 3.0}))
    out = tmp_path / "model"
    denoiser = dv.Denoiser.from_pretrained(out)
    assert (denoiser.prediction, denoiser.clip) == ("flow", None)
    assert denoiser.schedule.matches(dv.NoiseSchedule.flow(50, 3.0, timestep_scale=50))
    x = torch.linspace(-1, 1, 64).reshape(1, 1, 8, 8)
    velocity = denoiser.network(x, denoiser.schedule.timesteps(20, 1)).sample
    torch.testing.assert_close(denoiser(x, 20).mean, x - float(denoiser.schedule.sigma[20]) * velocity)
    assert "predicts F = ε − x_0" in (out / "README.md").read_text()
    pipe = DDPMPipeline.from_pretrained(out)
    assert type(pipe.scheduler).__name__ == "FlowMatchEulerDiscreteScheduler"
    made = pipe(2, torch.Generator().manual_seed(0), num_inference_steps=3, output_type="np").images
    assert made.shape == (2, 8, 8, 1)
    assert made.std() > 0.05


def test_velocities_are_named_in_the_scheduler(options, tmp_path):
    run(options(prediction="v_prediction"))
    assert dv.Denoiser.from_pretrained(tmp_path / "model").prediction == "v_prediction"
    with pytest.raises(InputError, match="only 'v_prediction' is trained"):
        make_scheduler({"prediction_type": "epsilon"}, prediction="v_prediction")
    with pytest.raises(InputError, match=r"do not make a FlowMatchEulerDiscreteScheduler: .*beta_schedule"):
        make_scheduler({"beta_schedule": "linear"}, prediction="flow")
    with pytest.raises(InputError, match=r"invert_sigmas is true, .* it learns ε − x_0; leave it out"):
        make_scheduler({"invert_sigmas": True}, prediction="flow")


def test_an_interrupted_command_goes_on(options, tmp_path, monkeypatch):
    run(options(out=tmp_path / "whole"))
    monkeypatch.setattr(training.UNetTraining, "rate", interrupted_at(4, training.UNetTraining.rate))
    with pytest.raises(KeyboardInterrupt):
        run(options())
    out = tmp_path / "model"
    assert [path.name for path in out.iterdir()] == [CHECKPOINT]  # of the fourth step, a point of the curve
    monkeypatch.undo()
    (out / f".{CHECKPOINT}.abc.tmp").write_bytes(b"half")
    (out / "unet").mkdir()  # killed while the result was written
    run(options())
    made, expected = contents(out), contents(tmp_path / "whole")
    assert list(made) == list(expected)
    weights = Path("unet/diffusion_pytorch_model.safetensors")
    assert made[weights] == expected[weights]
    with pytest.raises(InputError, match="is not empty"):
        run(options(seed=1))


def interrupted_at(step, rate):
    def stop(self, now):
        if now == step:
            raise KeyboardInterrupt
        return rate(self, now)

    return stop


def test_remains_of_a_kill_alone_are_no_obstacle_but_other_files_are(options, tmp_path):
    out = tmp_path / "model"
    out.mkdir()
    (out / f".{CHECKPOINT}.abc.tmp").write_bytes(b"half")
    run(options())
    assert not list(out.glob(".*"))
    other = tmp_path / "other"
    other.mkdir()
    (other / "letter.txt").write_text("mine")
    with pytest.raises(InputError, match="is not empty"):
        run(options(out=other))
    assert [path.name for path in other.iterdir()] == ["letter.txt"]
    run(options(out=other, overwrite=True))
    assert (other / "letter.txt").read_text() == "mine"
    assert (other / "model_index.json").exists()


def test_the_same_seed_gives_the_same_files(options, tmp_path):
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        run(options(out=tmp_path / name, seed=seed, held_out=None))
    a, b, c = (contents(tmp_path / name) for name in "abc")
    weights = Path("unet/diffusion_pytorch_model.safetensors")
    assert a[weights] == b[weights] != c[weights]
    assert a[Path("loss.csv")] == b[Path("loss.csv")]
    assert a[Path("loss.csv")].decode().splitlines()[-1].endswith(",nan")
    assert json.loads(a[Path("training.json")])["held_out_loss"] is None


def test_initial_weights_come_from_the_seed_alone():
    state = torch.get_rng_state()
    a, b, c = (make_unet(UNET, (1, 8, 8), seed).state_dict() for seed in (0, 0, 1))
    assert torch.equal(state, torch.get_rng_state())
    assert all(torch.equal(a[name], b[name]) for name in a)
    assert any(not torch.equal(a[name], c[name]) for name in a)


def test_sizes_follow_the_images():
    network = make_unet(UNET, (3, 8, 12), 0)
    assert (network.config.in_channels, network.config.out_channels) == (3, 3)
    assert list(network.config.sample_size) == [8, 12]
    assert make_unet({**UNET, "sample_size": [8, 8]}, (1, 8, 8), 0).config.sample_size == 8
    assert list(make_unet({**UNET, "sample_size": [8, 12]}, (3, 8, 12), 0).config.sample_size) == [8, 12]


@pytest.mark.parametrize(
    ("unet", "shape", "said"),
    [
        ({"colour": 1}, (1, 8, 8), "do not make a UNet2DModel: .*unexpected keyword argument 'colour'"),
        ({"norm_num_groups": 3}, (1, 8, 8), "do not make a UNet2DModel: .*divisible"),
        ({"norm_num_groups": 0}, (1, 8, 8), "do not make a UNet2DModel: .*zero"),
        ({"down_block_types": ["None2D", "None2D"]}, (1, 8, 8), "None2D does not exist"),
        ({"block_out_channels": [8]}, (1, 8, 8), "same number of `block_out_channels`"),
        ({"block_out_channels": 8}, (1, 8, 8), "do not make a UNet2DModel"),
        ({"time_embedding_type": "none"}, (1, 8, 8), "do not make a UNet2DModel"),
        ({"in_channels": 3}, (1, 8, 8), r"unet\.in_channels is 3, but the images have 1; leave it out"),
        ({"out_channels": 2}, (1, 8, 8), r"unet\.out_channels is 2, but the images have 1"),
        ({"sample_size": 16}, (1, 8, 8), r"unet\.sample_size is 16, but the images have 8"),
        ({"sample_size": 8}, (1, 8, 12), r"unet\.sample_size is 8, but the images have \[8, 12\]"),
        ({}, (1, 7, 7), r"cannot take images of shape \(1, 7, 7\): .*every block but the last halves"),
        ({"num_class_embeds": 10}, (1, 8, 8), "cannot take images .*class_labels"),
        ({"downsample_type": "resnet", "upsample_type": "conv"}, (1, 8, 8), None),
    ],
)
def test_wrong_networks(unet, shape, said):
    if said is None:
        assert make_unet({**UNET, **unet}, shape, 0) is not None
        return
    with pytest.raises(InputError, match=said) as error:
        make_unet({**UNET, **unet}, shape, 0)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("scheduler", "said"),
    [
        ({"colour": 1}, "do not make a DDPMScheduler: .*unexpected keyword argument 'colour'"),
        ({"beta_schedule": "none"}, "none is not implemented"),
        ({"num_train_timesteps": -1}, "do not make a DDPMScheduler"),
        ({"beta_start": "x"}, "do not make a DDPMScheduler"),
        ({"prediction_type": "v_prediction"}, "only 'epsilon' is trained"),
        ({"thresholding": True}, r"scheduler\.thresholding is true"),
    ],
)
def test_wrong_schedulers(scheduler, said):
    with pytest.raises(InputError, match=said) as error:
        make_scheduler(scheduler)
    assert "\n" not in str(error.value)


def test_wrong_options(options, tmp_path, images):
    with pytest.raises(InputError, match="unet is not valid YAML"):
        run(options(unet="{a: ["))
    with pytest.raises(InputError, match="expected a YAML mapping"):
        run(options(unet="8"))
    np.savez(tmp_path / "small.npz", np.zeros((4, 3, 3), np.uint8))
    with pytest.raises(InputError, match=r"held_out has images of shape \(1, 3, 3\) and images \(1, 8, 8\)"):
        run(options(held_out=str(tmp_path / "small.npz")))
    with pytest.raises(InputError, match="learning_rate=-1"):
        run(options(learning_rate=-1.0))
    floats = digits_splits().train.images[:9].numpy().astype(np.float32)
    late = np.concatenate([np.tile(floats / 127.5 - 1, (60, 1, 1, 1)), floats])
    for name, scaled in (("large", floats), ("nan", floats * np.nan), ("late", late), ("fit", floats / 127.5 - 1)):
        np.savez(tmp_path / f"{name}.npz", scaled)
    for name in ("large", "nan", "late"):
        for role in ("images", "held_out"):
            with pytest.raises(InputError, match=f"{role} holds floats between .* expected 8-bit images, or floats in"):
                run(options(**{role: str(tmp_path / f"{name}.npz")}))
    assert not (tmp_path / "model").exists()
    run(options(images=str(tmp_path / "fit.npz")))


def test_wrong_arguments_end_with_one_sentence(tmp_path, images, monkeypatch, capsys):
    import runpy

    def said(*arguments):
        line = ["train_unet.py", "--images", f"{images}:train", "--out", str(tmp_path / "m"), *arguments]
        monkeypatch.setattr(sys, "argv", line)
        with pytest.raises(SystemExit) as end:
            runpy.run_path(str(SCRIPT), run_name="__main__")
        text = capsys.readouterr().err
        assert end.value.code == 2
        assert text.startswith("error: ")
        assert text.count("\n") == 1
        return text

    (tmp_path / "full" / "of").mkdir(parents=True)
    assert "is not empty" in said("--out", str(tmp_path / "full"))
    assert "unexpected keyword argument" in said("--unet", "{colour: 3}")
    assert "cannot take images of shape (1, 8, 8)" in said("--unet", "{num_class_embeds: 3}")
    assert "--ema-decay 2.0" in said("--ema-decay", "2")
    assert "expected 'missing'" in said("--images", f"{images}:missing")


def test_a_head_trained_with_the_network_belongs_to_what_is_written(options, capsys, monkeypatch):
    """Also where the run was interrupted while the head's table was measured."""
    from diffusion_var.app.commands import train_unet as command
    from diffusion_var.variance import estimate as variance

    chosen = options(head="npr", head_kind="residual", head_tolerance=0.5)
    folder = chosen.out
    estimate = variance.estimate

    def stopped(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(variance, "estimate", stopped)
    with pytest.raises(KeyboardInterrupt):
        run(chosen)
    assert (folder / CHECKPOINT).is_file()
    assert not (folder / command.HEAD).exists()
    monkeypatch.setattr(variance, "estimate", estimate)
    run(chosen)
    assert "head.safetensors" in capsys.readouterr().out
    model, head = dv.Denoiser.from_pretrained(folder), dv.Head.load(folder / command.HEAD)
    kernel = dv.ReverseKernel(model.schedule, 20, 10)
    head.check(model, [kernel])
    assert head.training["head"] == "npr"
    assert head.spec == dv.HeadSpec("npr", "residual", output="papers")
    variances = head(head.prepare(model)(torch.zeros(2, *model.shape), 20), kernel).variance
    assert bool((variances >= kernel.lambda2 * (1 - 1e-6)).all())
    dv.VarianceTable.load(folder / command.TABLE).check(model)
    assert not {CHECKPOINT, command.TABLE_CHECKPOINT} & {path.name for path in folder.iterdir()}
    before = contents(folder)
    run(chosen)
    assert "already finished" in capsys.readouterr().out
    assert contents(folder) == before
