"""Interrupted training: continued, it ends in the very weights of an uninterrupted run; another run's is refused."""

import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from places import SUPPORT
from small_training import SCHEDULE, SETTINGS, Images, small_unet, train, weights

import diffusion_var as dv
from diffusion_var.documents import read_document
from diffusion_var.errors import InputError, NumericalError
from diffusion_var.resume import Checkpoint
from diffusion_var.training.state import FORM
from diffusion_var.training.unet import FINGERPRINT_IMAGES, UNetTraining, train_unet

BATCH = SETTINGS["batch_size"]
PER_EVALUATION = 20  # all images


class Interruption(Exception):
    """What the interrupted data set raises."""


def look(step):
    """The number of the last look at an image in the batch of a step (from 1), evaluations at 4 and 8 included."""
    return FINGERPRINT_IMAGES + BATCH * step + PER_EVALUATION * ((step - 1) // 4)


def raising(step):
    """Images that raise in the batch of a step."""

    def hook(call):
        if call == look(step):
            raise Interruption

    return Images(hook)


def step_of(path):
    return read_document(path, FORM)[1].step


@pytest.fixture(scope="module")
def whole():
    """The uninterrupted run."""
    return train()


@pytest.fixture
def checkpoint(tmp_path):
    """A checkpoint of three steps, left by an interruption."""
    path = tmp_path / "c.partial"
    with pytest.raises(Interruption):
        train(raising(4), path)
    assert step_of(path) == 3
    return path


@pytest.mark.parametrize("step", [1, 2, 4, 5, 9])
def test_an_interrupted_run_ends_in_the_same_weights(tmp_path, whole, step):
    path = tmp_path / "c.partial"
    with pytest.raises(Interruption):
        train(raising(step), path)
    assert path.exists() == (step > 1)
    resumed = train(checkpoint=path)
    assert torch.equal(weights(resumed), weights(whole))
    assert [point[0] for point in resumed.curve] == [4, 8, 9]
    assert np.array_equal(resumed.curve, whole.curve, equal_nan=True)


def test_a_run_interrupted_again_and_again(tmp_path, whole):
    path = tmp_path / "c.partial"
    steps = set()

    def hook(call):
        if call == FINGERPRINT_IMAGES + PER_EVALUATION + BATCH + 1:
            steps.add(step_of(path))
            raise Interruption

    for _ in range(20):
        try:
            result = train(Images(hook), path)
        except Interruption:
            continue
        break
    assert len(steps) >= 4
    assert torch.equal(weights(result), weights(whole))


def test_a_killed_run_ends_in_the_same_weights(tmp_path, whole):
    path = tmp_path / "c.partial"
    line = [sys.executable, str(SUPPORT / "small_training.py"), str(path), str(look(6))]
    with subprocess.Popen(line, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "waiting\n"
        process.kill()
    assert step_of(path) == 5
    assert torch.equal(weights(train(checkpoint=path)), weights(whole))


def test_a_finished_run_is_not_trained_further(tmp_path, whole):
    path = tmp_path / "c.partial"
    assert torch.equal(weights(train(checkpoint=path)), weights(whole))
    images = Images()
    again = train(images, path)
    assert images.calls == FINGERPRINT_IMAGES
    assert torch.equal(weights(again), weights(whole))
    assert np.array_equal(again.curve, whole.curve, equal_nan=True)


def test_time_adds_up_over_interruptions(checkpoint):
    before = read_document(checkpoint, FORM)[1].seconds
    assert train(checkpoint=checkpoint).seconds > before > 0


def test_checkpoints_are_spaced_in_time(tmp_path, monkeypatch):
    saves = Checkpoint.save
    saved = []
    monkeypatch.setattr(Checkpoint, "save", lambda self, state: (saved.append(state[1]["step"]), saves(self, state)))
    clock = iter(np.arange(0.0, 1000.0, 1.0))
    monkeypatch.setattr(time, "monotonic", lambda: next(clock))
    settings = UNetTraining(**{**SETTINGS, "evaluate_every": 100})
    train_unet(
        *(small_unet(), Images(), SCHEDULE, settings), checkpoint=tmp_path / "c", checkpoint_seconds=12, progress=False
    )
    assert saved[-1] == 9  # the end is always kept
    assert 2 <= len(saved) <= 4
    assert min(np.diff(saved[:-1])) >= 2


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ({"steps": 10}, "steps is 9, but this run's is 10"),
        ({"batch_size": 8}, "batch_size is 4"),
        ({"learning_rate": 2e-3}, r"learning_rate is 0\.001, but this run's is 0\.002"),
        ({"warmup_steps": 4}, "warmup_steps"),
        ({"weight_decay": 0.0}, "weight_decay"),
        ({"ema_decay": 0.5}, "ema_decay"),
        ({"mixed_precision": "bf16"}, "mixed_precision is 'no', but this run's is 'bf16'"),
        ({"flip": False}, "flip is True"),
        ({"evaluate_every": 5}, "evaluate_every"),
        ({"seed": 4}, "seed is 3"),
        ({"schedule": dv.NoiseSchedule.linear(100, 1e-3, 0.2)}, "schedule"),
        ({"images": Images().images[:19]}, "images is 20, but this run's is 19"),
        ({"images": 255 - Images().images}, "fingerprint of the images"),
        ({"network": small_unet(dropout=0.2)}, r"unet\.dropout is 0\.1, but this run's is 0\.2"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_a_checkpoint_of_another_run_is_refused(checkpoint, changes, name):
    content = checkpoint.read_bytes()
    with pytest.raises(InputError, match=rf"belongs to another run \(different .*\): its {name}.*delete it") as error:
        train(checkpoint=checkpoint, **changes)
    assert "\n" not in str(error.value)
    assert checkpoint.read_bytes() == content


def test_a_checkpoint_of_a_network_without_a_config_is_told_by_its_shapes(tmp_path):
    class Plain(torch.nn.Module):
        def __init__(self, kernel):
            super().__init__()
            self.layer = torch.nn.Conv2d(1, 1, kernel, padding="same")

        def forward(self, x, timestep):
            return type("Out", (), {"sample": self.layer(x)})

    path = tmp_path / "c"
    train(checkpoint=path, network=Plain(3))
    train(checkpoint=path, network=Plain(3))
    with pytest.raises(InputError, match=r"its layer\.weight is \(1, 1, 3, 3\), but this run's is \(1, 1, 1, 1\)"):
        train(checkpoint=path, network=Plain(1))


@pytest.mark.parametrize("place", [0.001, 0.3, 0.6, 0.999])
@pytest.mark.parametrize("damage", ["cut", "flip"])
def test_a_damaged_checkpoint_is_one_sentence(checkpoint, place, damage):
    content = bytearray(checkpoint.read_bytes())
    at = int(place * len(content))
    content[at] ^= 0x10
    checkpoint.write_bytes(content[:at] if damage == "cut" else content)
    with pytest.raises(InputError, match=r"c\.partial .*(damaged|not a training checkpoint)") as error:
        train(checkpoint=checkpoint)
    assert "\n" not in str(error.value)


def test_a_table_or_empty_file_is_no_checkpoint(tmp_path):
    path = tmp_path / "c.partial"
    path.touch()
    with pytest.raises(InputError, match="not a readable training checkpoint"):
        train(checkpoint=path)


def test_nan_is_never_saved(tmp_path):
    """Training that became NaN stops, and the checkpoint is from before."""
    path = tmp_path / "c.partial"
    network = small_unet()

    def hook(call):
        if call == look(4):
            with torch.no_grad():
                next(network.parameters()).fill_(torch.nan)

    with pytest.raises(NumericalError, match=r"loss became nan at or before step 3; lower the learning rate"):
        train(Images(hook), path, network=network)
    arrays, record = read_document(path, FORM)
    assert record.step == 3
    assert all(np.isfinite(array).all() for array in arrays.values())


def test_bf16_goes_on_exactly_too(tmp_path, whole):
    path = tmp_path / "c.partial"
    expected = train(mixed_precision="bf16")
    with pytest.raises(Interruption):
        train(raising(5), path, mixed_precision="bf16")
    assert torch.equal(weights(train(checkpoint=path, mixed_precision="bf16")), weights(expected))
    assert weights(expected).dtype == torch.float32
    difference = (weights(expected) - weights(whole)).abs().max()
    assert 0 < difference < 1e-2


def test_a_full_disk_is_one_sentence_and_keeps_the_old_checkpoint(checkpoint, monkeypatch):
    from diffusion_var import files

    content = checkpoint.read_bytes()

    def full(handle):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files.os, "fsync", full)
    with pytest.raises(InputError, match="No space left on device; nothing was changed there"):
        train(checkpoint=checkpoint)
    assert checkpoint.read_bytes() == content
    assert [entry.name for entry in checkpoint.parent.iterdir()] == [checkpoint.name]
