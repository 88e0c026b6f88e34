"""`scripts/train_features.py`: every kind of labelled images, the held-out share, and what it refuses."""

import io
import json
import subprocess
import sys
import zipfile

import numpy as np
import pytest
import torch
from PIL import Image
from places import SCRIPTS

from diffusion_var.app.commands import train_features as feature_training
from diffusion_var.app.config import load_options
from diffusion_var.data.digits import digits_splits
from diffusion_var.errors import InputError
from diffusion_var.metrics.classifier import ClassifierFeatures
from diffusion_var.metrics.networks import load_features
from diffusion_var.training import classifier
from diffusion_var.training.classifier import accuracy

SCRIPT = SCRIPTS / "train_features.py"
QUICK = ["--epochs", "6", "--batch-size", "32", "--width", "8"]


@pytest.fixture(scope="module")
def stripes():
    """60 grey images of horizontal or vertical stripes, of any phase, and their labels: learnt in a second."""
    stream = np.random.default_rng(0)
    labels = np.arange(60) % 2
    waves = ((np.arange(9)[None, :, None] + stream.integers(0, 4, (60, 1, 1))) // 2 % 2 * 200).repeat(9, axis=2)
    waves = np.where(labels[:, None, None] == 1, waves.transpose(0, 2, 1), waves)
    return waves.astype(np.uint8), labels


def run(images, *arguments):
    """Train with flags as the script takes them."""
    words, values = [str(argument) for argument in arguments], {"images": str(images)}
    while words:
        name = words.pop(0).removeprefix("--").replace("-", "_")
        values[name] = True if name == "bf16" else words.pop(0)
    return feature_training.run(load_options(feature_training.TrainFeaturesOptions, values))


def png(image):
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG")
    return buffer.getvalue()


def as_npz(folder, images, labels):
    np.savez(folder / "data.npz", pictures=images, classes=labels)
    return [f"{folder}/data.npz:pictures", "--labels", f"{folder}/data.npz:classes"]


def as_folder(folder, images, labels):
    for number, (image, label) in enumerate(zip(images, labels, strict=True)):
        target = folder / "images" / ("down", "right")[label]
        target.mkdir(parents=True, exist_ok=True)
        (target / f"{number}.png").write_bytes(png(image))
    return [folder / "images"]


def as_zip(folder, images, labels):
    names = [f"00000/{number:03d}.png" for number in range(len(images))]
    with zipfile.ZipFile(folder / "data.zip", "w") as archive:
        for name, image in zip(names, images, strict=True):
            archive.writestr(name, png(image))
        listed = [[name, int(label)] for name, label in zip(names, labels, strict=True)]
        archive.writestr("dataset.json", json.dumps({"labels": listed}))
    return [folder / "data.zip"]


@pytest.mark.parametrize("stored", [as_npz, as_folder, as_zip])
def test_learns_from_every_kind_of_labelled_images(stripes, tmp_path, stored):
    network = run(*stored(tmp_path, *stripes), "--out", tmp_path / "f.safetensors", *QUICK, "--epochs", "12")
    loaded = load_features(tmp_path / "f.safetensors")
    assert loaded.fingerprint == network.fingerprint
    assert (loaded.name, loaded.channels, loaded.size, loaded.classes, loaded.width) == ("f", 1, (9, 9), 2, 8)
    assert loaded.accuracy == 1.0
    assert accuracy(loaded, torch.from_numpy(stripes[0])[:, None], torch.from_numpy(stripes[1])) > 0.95


def test_digits_with_held_out_images_of_their_own(tmp_path):
    network = run(
        *("digits:train", "--held-out", "digits:score", "--out", tmp_path / "f.safetensors", *QUICK),
        *("--name", "numbers", "--dimension", "24", "--bf16"),
    )
    score = digits_splits().score
    assert network.accuracy == accuracy(network, score.images, score.labels) > 0.8
    loaded = load_features(tmp_path / "f.safetensors")
    assert (loaded.name, loaded.dimension, loaded.images) == ("numbers", 24, "digits:train")
    assert loaded.accuracy == network.accuracy


def test_slices_and_held_out_labels_of_an_npz(stripes, tmp_path, monkeypatch):
    images, _, labels = as_npz(tmp_path, *stripes)
    seen = {}
    monkeypatch.setattr(classifier, "train_classifier", lambda network, x, y, **_: seen.update(x=x, y=y))
    monkeypatch.setattr(classifier, "accuracy", lambda network, x, y: seen.update(held=x, truth=y))
    held_out = ["--held-out", f"{images}[40:]", "--held-out-labels", labels]
    run(f"{images}[:40]", "--labels", labels, *held_out, "--out", tmp_path / "f.safetensors")
    pixels = torch.from_numpy(stripes[0])[:, None]
    assert torch.equal(seen["x"], pixels[:40])
    assert torch.equal(seen["held"], pixels[40:])
    assert seen["y"].tolist() == stripes[1][:40].tolist()
    assert seen["truth"].tolist() == stripes[1][40:].tolist()


def test_holds_out_a_tenth_by_the_seed():
    images, labels = torch.arange(40).reshape(40, 1, 1, 1), torch.arange(40)
    (train, train_labels), (held, held_labels) = feature_training.hold_out((images, labels), seed=0)
    assert len(held) == 4
    assert sorted(train.flatten().tolist() + held.flatten().tolist()) == list(range(40))
    assert torch.equal(train.flatten(), train_labels)
    assert torch.equal(held.flatten(), held_labels)
    assert torch.equal(feature_training.hold_out((images, labels), seed=0)[1][0], held)
    assert not torch.equal(feature_training.hold_out((images, labels), seed=1)[1][0], held)
    assert len(feature_training.hold_out((images[:3], labels[:3]), seed=0)[1][0]) == 1
    with pytest.raises(InputError, match="none can be held out"):
        feature_training.hold_out((images[:1], labels[:1]), seed=0)


def test_the_same_seed_gives_the_same_file(stripes, tmp_path):
    stored = as_npz(tmp_path, *stripes)
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        run(*stored, "--out", tmp_path / f"{name}.safetensors", *QUICK, "--name", "same", "--seed", seed)
    a, b, c = ((tmp_path / f"{name}.safetensors").read_bytes() for name in "abc")
    assert a == b != c


def test_the_seed_and_the_sizes_reach_the_initial_weights(stripes, tmp_path, monkeypatch):
    monkeypatch.setattr(classifier, "train_classifier", lambda *_, **__: None)
    for seed in (0, 3):
        made = run(*as_npz(tmp_path, *stripes), "--out", tmp_path / f"{seed}" / "f.safetensors", *QUICK, "--seed", seed)
        assert made.fingerprint == ClassifierFeatures(1, 9, 2, width=8, seed=seed).fingerprint


def test_refusals(stripes, tmp_path):
    images, labels = stripes
    out = ["--out", tmp_path / "f.safetensors"]
    stored = as_npz(tmp_path, images, labels)
    with pytest.raises(InputError, match=r"f\.npz does not end in \.safetensors"):
        run(*stored, "--out", tmp_path / "f.npz")
    with pytest.raises(InputError, match="without held_out"):
        run(*stored, "--held-out-labels", "x.npz", *out)
    with pytest.raises(InputError, match="held-out images have shape"):
        run(*stored, "--held-out", "digits:score", *out)
    np.savez(tmp_path / "short.npz", y=labels[:-1])
    with pytest.raises(InputError, match="60 images but 59 labels"):
        run(stored[0], "--labels", tmp_path / "short.npz", *out)
    np.savez(tmp_path / "one.npz", y=np.zeros(60, np.int64))
    with pytest.raises(InputError, match="one class only"):
        run(stored[0], "--labels", tmp_path / "one.npz", *out)
    with pytest.raises(InputError, match="noise is nan"):
        run(*stored, "--noise", "nan", *out)
    assert not (tmp_path / "f.safetensors").exists()
    (tmp_path / "f.safetensors").write_bytes(b"mine")
    with pytest.raises(InputError, match="exists already"):
        run(*stored, *out)


def test_as_a_command(tmp_path):
    def command(*arguments):
        return subprocess.run([sys.executable, str(SCRIPT), *arguments], capture_output=True, text=True, timeout=120)

    done = command("digits:table", "--out", str(tmp_path / "f.safetensors"), *QUICK)
    assert done.returncode == 0, done.stderr
    assert "held-out accuracy 0." in done.stdout
    assert "100%" in done.stderr
    assert load_features(tmp_path / "f.safetensors").accuracy is not None
    wrong = command("nowhere", "--out", str(tmp_path / "g.safetensors"))
    assert wrong.returncode == 2
    assert wrong.stderr.startswith("error: ")
    assert "nowhere" in wrong.stderr
    assert "Traceback" not in wrong.stderr
