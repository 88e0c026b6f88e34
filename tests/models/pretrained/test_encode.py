"""encode_latents: the latents of a fixed set of images, and a cache that is resumed, recognised and checked."""

import copy
import os
import signal
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL
from many import Many, many
from torch.utils.data import Dataset, TensorDataset

import diffusion_var as dv
from diffusion_var import same_folder
from diffusion_var.models.pretrained import encode as module
from diffusion_var.models.pretrained.latents import LatentCodec
from diffusion_var.process.linear import linear_mmse
from diffusion_var.resume import Parts

SCHEDULE = dv.NoiseSchedule.linear(100)
SHAPE, IMAGE = (2, 4, 4), (3, 8, 8)
COUNT, FILES = 10, 3


@pytest.fixture(autouse=True)
def _small_files(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "CHUNK", 4)


@cache
def autoencoder(seed: int = 0, latent_channels: int = 2) -> Any:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return AutoencoderKL(
            block_out_channels=(4, 8),
            down_block_types=("DownEncoderBlock2D",) * 2,
            up_block_types=("UpDecoderBlock2D",) * 2,
            norm_num_groups=2,
            layers_per_block=1,
            latent_channels=latent_channels,
            scaling_factor=8.0,
            shift_factor=0.3,
        ).eval()


def network(x_t: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
    return 0.8 * torch.tanh(1.3 * x_t) + 0.1


def denoiser(vae: Any = None, shape: tuple[int, int, int] = SHAPE, **config: Any) -> dv.Denoiser:
    model = dv.Denoiser(network, SCHEDULE, shape=shape, clip=None)
    vae = autoencoder() if vae is None else vae
    model.codec = LatentCodec(lambda: vae, {**vae.config, **config}, torch.device("cpu"))
    return model


def bytes_of_images() -> np.ndarray[Any, Any]:
    return np.random.default_rng(3).integers(0, 256, (COUNT, *IMAGE), dtype=np.uint8)


def floats() -> torch.Tensor:
    return torch.from_numpy(bytes_of_images()).float() * (2 / 255) - 1


def encoded(images: Any, **options: Any) -> Any:
    return dv.encode_latents(options.pop("model", denoiser()), images, progress=False, **options)


@pytest.fixture
def calls() -> Any:
    """Sizes of the batches that the autoencoder was given."""
    sizes: list[int] = []
    hook = autoencoder().encoder.register_forward_hook(lambda _, given, out: sizes.append(len(given[0])))
    yield sizes
    hook.remove()


class Items(Dataset[Any]):
    def __init__(self, items: Any) -> None:
        self.items = items

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, i: int) -> Any:
        return self.items[i], f"label {i}"


# ---- the latents --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("batch_size", [1, 3, 8, 64])
@pytest.mark.parametrize(
    "source",
    [
        floats,
        lambda: floats().numpy(),
        lambda: floats().double(),
        bytes_of_images,
        lambda: torch.from_numpy(bytes_of_images()),
        lambda: Items(bytes_of_images()),
        lambda: TensorDataset(floats()),
    ],
    ids=["tensor", "array", "double", "uint8 array", "uint8 tensor", "uint8 items", "tensor items"],
)
def test_any_images_at_any_batch_size(source: Callable[[], Any], batch_size: int, calls: list[int]) -> None:
    found = encoded(source(), batch_size=batch_size)
    assert max(calls) == min(batch_size, 4)
    with torch.no_grad():
        expected = (autoencoder().encode(floats()).latent_dist.mode() - 0.3) * 8.0
    assert found.dtype == torch.float32
    assert float((found - expected).abs().max()) <= 1e-5
    assert float(expected.std()) > 0.5


@pytest.mark.parametrize("count", [1, 4, 9])
def test_from_a_cache(tmp_path: Path, calls: list[int], count: int) -> None:
    images = floats()[:count]
    expected = encoded(images)
    calls.clear()
    first = encoded(images, cache=tmp_path / "deep" / "cache")
    assert sum(calls) == count
    again = encoded(images, cache=tmp_path / "deep" / "cache", batch_size=3)
    assert sum(calls) == count  # the autoencoder did not run again
    for found in (first, again):
        assert len(found) == count
        assert float((torch.stack([found[i] for i in range(count)]) - expected).abs().max()) <= 1e-5
        for outside in (count, -1):
            with pytest.raises(IndexError):
                found[outside]
    assert len(list((tmp_path / "deep" / "cache").iterdir())) == -(-count // 4)


def test_cached_latents_are_read_a_file_at_a_time_and_only_when_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = encoded(floats(), cache=tmp_path)
    reads: list[Any] = []
    load = Parts.load
    monkeypatch.setattr(Parts, "load", lambda self, name: reads.append(name) or load(self, name))
    assert reads == []
    for i in (5, 4, 6, 5, 9):
        found[i]
    assert reads == ["latents-000001.safetensors", "latents-000002.safetensors"]


# ---- interruption -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("error", [KeyboardInterrupt(), RuntimeError("out of memory")])
@pytest.mark.parametrize(("stop", "kept"), [(1, 0), (2, 0), (3, 1), (5, 2)])
def test_an_interrupted_run_goes_on_with_the_missing_files(
    tmp_path: Path, calls: list[int], error: BaseException, stop: int, kept: int
) -> None:
    expected = encoded(floats())
    calls.clear()

    def interrupt(*_: Any) -> None:
        if len(calls) == stop:
            raise error

    hook = autoencoder().encoder.register_forward_hook(interrupt)
    try:
        with pytest.raises(type(error)):
            encoded(floats(), cache=tmp_path, batch_size=2)
    finally:
        hook.remove()
    finished = {path.name: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    assert sorted(finished) == [f"latents-{k:06d}.safetensors" for k in range(kept)]
    calls.clear()
    found = encoded(floats(), cache=tmp_path, batch_size=2)
    assert sum(calls) == COUNT - 4 * kept
    assert all((tmp_path / name).stat().st_mtime_ns == time for name, time in finished.items())
    assert float((torch.stack([found[i] for i in range(COUNT)]) - expected).abs().max()) <= 1e-5


# ---- an autoencoder of the user's ----


class Own(torch.nn.Module):
    """An autoencoder without weights: the mean of patches of two pixels, with dropout in training mode. It writes into
    what it is given, returns memory that it uses again, and fails at one call of each method."""

    dtype, config = torch.float32, {"block_out_channels": (1, 1), "scaling_factor": 1.0}

    def __init__(self, fails: int = 0) -> None:
        super().__init__()
        self.drop, self.frozen = torch.nn.Dropout(0.5), torch.nn.Dropout(0.5).eval()
        self.left, self.memory = fails, torch.empty(64, *SHAPE)

    def encode(self, images: torch.Tensor) -> Any:
        means = torch.nn.functional.avg_pool2d(self.frozen(self.drop(images))[:, :2], 2)
        if tuple(images.shape[1:]) != IMAGE:  # those of the probe are larger
            return SimpleNamespace(latents=means)
        self._count(RuntimeError("CUDA out of memory.\nTried to allocate 2 GiB"))
        images.zero_()
        return SimpleNamespace(latents=self.memory[: len(images)].copy_(means))

    def decode(self, latents: torch.Tensor) -> Any:
        self._count(ValueError("no such shape"))
        images = torch.nn.functional.interpolate(self.drop(latents), scale_factor=2).repeat(1, 2, 1, 1)[:, :3]
        latents.zero_()
        return SimpleNamespace(sample=images)

    def _count(self, error: Exception) -> None:
        self.left -= 1
        if self.left == 0:
            raise error


# ---- in several processes ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [2, 3])
def test_processes_share_the_files_and_all_have_the_latents(tmp_path: Path, count: int) -> None:
    def share(folder: Path | None) -> np.ndarray[Any, Any]:
        latents = encoded(bytes_of_images(), cache=folder, batch_size=3)
        return torch.stack([*latents]).numpy()

    expected = encoded(bytes_of_images(), cache=tmp_path / "one", batch_size=3)
    for folder in (None, tmp_path / "many"):
        for found in many(count, share, folder):
            assert np.array_equal(found, torch.stack([*expected]).numpy())
    assert contents(tmp_path / "many") == contents(tmp_path / "one")


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_what_stopped_processes_have_made_is_made_once(tmp_path: Path, number: int) -> None:
    images = np.random.default_rng(3).integers(0, 256, (40, *IMAGE), dtype=np.uint8)

    def stop() -> None:
        write, calls = module._CacheFiles.write, []

        def stops(files: Any, *arguments: Any) -> None:
            write(files, *arguments)
            calls.append(arguments)
            if len(calls) == 2 and os.environ["RANK"] == "1":
                os.kill(os.getpid(), number)
            time.sleep(0.3)

        module._CacheFiles.write = stops  # type: ignore[method-assign]  # in this fork alone
        encoded(images, cache=tmp_path)

    def go_on() -> int:
        sizes: list[int] = []
        autoencoder().encoder.register_forward_hook(lambda _, given, out: sizes.append(len(given[0])))
        encoded(images, cache=tmp_path)
        return sizes.count(4)  # and not the probe's

    first = Many(2, stop).ends()[0]
    assert (first.error or "").startswith("RankError: rank 1" if number == signal.SIGKILL else "Stopped: 15")
    made = len([*tmp_path.glob("latents-*.safetensors")])
    assert 3 <= made < 10
    assert sum(many(3, go_on)) == 10 - made
    assert not [*tmp_path.glob(".*")]


def test_a_cache_that_one_process_does_not_see_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(same_folder, "_SECONDS", 0.2)

    def own() -> None:
        encoded(bytes_of_images(), cache=tmp_path / os.environ["RANK"])

    for end in Many(2, own).ends():
        assert "is not the same for all processes" in (end.error or "")
    assert not [*tmp_path.rglob("latents*")]


def test_an_autoencoder_in_training_is_evaluated_on_copies_and_left_in_training() -> None:
    own, images = Own().train(), floats()
    own.frozen.eval()
    before = images.clone()
    latents = encoded(images, model=denoiser(own), batch_size=3)
    assert torch.equal(latents, torch.nn.functional.avg_pool2d(before[:, :2], 2))
    assert torch.equal(images, before)
    codec, kept = denoiser(own).codec, latents.clone()
    assert codec is not None
    assert torch.equal(codec.encode(images[:2]), latents[:2])
    decoded = codec.decode(latents, batch_size=4)
    assert torch.equal(decoded[..., ::2, ::2][:, :2], latents.clamp(-1, 1))
    assert torch.equal(latents, kept)
    assert torch.equal(images, before)
    assert (own.training, own.drop.training, own.frozen.training) == (True, True, False)


@pytest.mark.parametrize(("call", "images", "kept"), [(1, "0 to 1", False), (4, "6 to 7", True), (5, "8 to 9", True)])
def test_its_failure_is_one_sentence_that_names_the_images_and_what_is_kept(
    tmp_path: Path, call: int, images: str, kept: bool
) -> None:
    for folder in (None, tmp_path):
        own = Own(call).train()
        with pytest.raises(dv.NetworkError) as caught:
            encoded(floats(), model=denoiser(own), batch_size=2, cache=folder)
        sentence = str(caught.value)
        assert f"the autoencoder failed to encode a batch of 2, images {images}: out of memory (" in sentence
        assert "\n" not in sentence
        assert (f"are kept in {tmp_path}, from where" in sentence) == (kept and folder is not None)
        assert isinstance(caught.value.__cause__, RuntimeError)
        assert own.training
    found = encoded(floats(), model=denoiser(Own()), cache=tmp_path)
    assert torch.equal(torch.stack([*map(found.__getitem__, range(COUNT))]), encoded(floats(), model=denoiser(Own())))


def test_a_failure_when_decoding_is_one_sentence() -> None:
    codec = denoiser(Own(2)).codec
    assert codec is not None
    with pytest.raises(dv.NetworkError, match=r"^the autoencoder failed to decode a batch of 1: ValueError: no such"):
        codec.decode(torch.zeros(5, *SHAPE), batch_size=4)


# ---- caches of something else -------------------------------------------------------------------------------------


def refusal(images: Any, **options: Any) -> str:
    with pytest.raises(dv.InputError) as error:
        encoded(images, **options)
    message = str(error.value)
    assert "\n" not in message
    assert message.endswith(".")
    return message


def altered() -> torch.Tensor:
    images = floats()
    images[9, 2, 7, 7] *= 0.99
    return images


@pytest.mark.parametrize(
    ("images", "model", "unlike"),
    [
        (altered, denoiser, "images"),
        (lambda: floats()[:9], denoiser, "images, count"),
        (floats, lambda: denoiser(autoencoder(seed=1)), "autoencoder"),
        (floats, lambda: denoiser(scaling_factor=7.0), "scaling"),
        (floats, lambda: denoiser(shift_factor=0.2), "scaling"),
    ],
    ids=["images", "fewer images", "weights", "scale", "shift"],
)
def test_a_cache_of_something_else_is_refused_before_any_work(
    tmp_path: Path, calls: list[int], images: Callable[[], Any], model: Callable[[], Any], unlike: str
) -> None:
    encoded(floats(), cache=tmp_path)
    (tmp_path / "latents-000000.safetensors").unlink()  # the work would begin here
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    calls.clear()
    message = refusal(images(), model=model(), cache=tmp_path)
    assert f"was made from something else (different {unlike}); delete {tmp_path} or choose another" in message
    assert calls == []
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_an_autoencoder_that_has_the_weights_and_does_something_else_is_another(tmp_path: Path) -> None:
    encoded(floats(), cache=tmp_path)
    changed = copy.deepcopy(autoencoder())
    encoded(floats(), model=denoiser(changed), cache=tmp_path)
    changed.encoder.conv_norm_out.eps = 1.0
    assert "(different what the autoencoder does)" in refusal(floats(), model=denoiser(changed), cache=tmp_path)


def test_a_file_of_another_cache_among_the_others_is_refused(tmp_path: Path) -> None:
    encoded(floats(), cache=tmp_path / "mine")
    encoded(altered(), cache=tmp_path / "other")
    name = "latents-000001.safetensors"
    (tmp_path / "mine" / name).write_bytes((tmp_path / "other" / name).read_bytes())
    message = refusal(floats(), cache=tmp_path / "mine")
    assert name in message
    assert "different images" in message


@pytest.mark.parametrize("number", range(FILES))
@pytest.mark.parametrize("damage", ["truncated", "flipped", "empty", "another kind"])
def test_a_damaged_file_is_refused_by_its_name(tmp_path: Path, number: int, damage: str) -> None:
    found = encoded(floats(), cache=tmp_path)
    path = tmp_path / f"latents-{number:06d}.safetensors"
    content = bytearray(path.read_bytes())
    if damage == "flipped":
        content[-5] ^= 1
    changed = {"truncated": content[:-1], "flipped": content, "empty": b"", "another kind": b"n,variance\n"}[damage]
    path.write_bytes(changed)
    message = refusal(floats(), cache=tmp_path)
    assert str(path) in message
    assert "damaged" in message
    with pytest.raises(dv.InputError, match=path.name):  # nor is it read by one who has the Dataset already
        found[4 * number]


# ---- what cannot be encoded ---------------------------------------------------------------------------------------


def test_unusable_requests_are_refused(tmp_path: Path) -> None:
    bare = dv.Denoiser(network, SCHEDULE, shape=SHAPE, clip=None)
    assert "this model has no autoencoder, so there is nothing to encode" in refusal(floats(), model=bare)
    assert "batch_size=0 must be a whole number of at least 1" in refusal(floats(), batch_size=0)
    assert "image 0 has shape (3, 8, 4), but" in refusal(floats()[..., :4])
    assert "image 0 has shape (3, 16, 16), but" in refusal(torch.zeros(2, 3, 16, 16))
    assert "images is empty" in refusal(floats()[:0])
    assert "outside the data range [-1, 1]" in refusal(1.5 * floats())
    assert "image 4 holds NaN" in refusal(floats().index_fill(0, torch.tensor([4]), float("nan")))
    (tmp_path / "file").write_text("")
    assert "could not make the output folder" in refusal(floats(), cache=tmp_path / "file")


def test_an_autoencoder_that_does_not_belong_to_the_network_is_refused(tmp_path: Path) -> None:
    other = denoiser(autoencoder(latent_channels=3))
    message = refusal(floats(), model=other, cache=tmp_path)
    assert "gives latents of shape (3, 4, 4), but the network takes (2, 4, 4); the two do not belong" in message
    assert list(tmp_path.iterdir()) == []


# ---- as the estimator's images ------------------------------------------------------------------------------------


def test_cached_latents_give_the_table_of_the_tensor(tmp_path: Path) -> None:
    model = denoiser()
    options: dict[str, Any] = {"tolerance": 0.1, "indices": [5, 40, 90], "progress": False}
    encoded(floats(), cache=tmp_path, batch_size=2)
    kept = encoded(floats(), cache=tmp_path)
    # The same numbers as a tensor: encoding twice may round otherwise where several threads add.
    table = dv.estimate(model, torch.stack([kept[i] for i in range(len(kept))]), **options)
    assert dv.estimate(model, kept, **options).digest == table.digest
    assert table.latent_scaling == (8.0, 0.3)
    assert dv.estimate(model, encoded(altered(), batch_size=2), **options).digest != table.digest


def test_latents_are_bounded_by_their_variance_and_by_no_range() -> None:
    latents = 10 * encoded(floats()).double()  # a variance far above ((1 − (−1))/2)²
    table = dv.estimate(denoiser(), latents.float(), 0.1, indices=[90, 100], progress=False)
    assert table.data_range is None
    centred = latents - latents.mean(0)
    for name, variance in (("isotropic", table.data.spectrum), ("pixel", centred.square().mean(0).numpy())):
        bound = linear_mmse(variance, SCHEDULE.alpha[100], SCHEDULE.sigma[100])
        bound = bound.mean() if name == "isotropic" else bound
        free = table.posterior_variance(100, structure=name)
        found = table.posterior_variance(100, structure=name, bounded=True)
        assert np.abs(found / np.minimum(free, bound) - 1).max() < 1e-5
        assert np.max(found) > 1.5
        assert (np.asarray(free) > bound).any()  # the bound acts
