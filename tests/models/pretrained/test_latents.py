"""LatentCodec: an autoencoder as diffusers saves it, what its latents are scaled by, and when it is loaded."""

import copy
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DModel, VQModel
from diffusers.image_processor import VaeImageProcessor

from diffusion_var import Denoiser, InputError
from diffusion_var.models.fingerprint import weights_fingerprint
from diffusion_var.models.pretrained.latents import LatentCodec

CPU = torch.device("cpu")
KINDS = {
    "kl": (AutoencoderKL, {"scaling_factor": 0.7}),
    "kl with a shift": (AutoencoderKL, {"scaling_factor": 1.6, "shift_factor": 0.3}),
    "kl with defaults": (AutoencoderKL, {}),
    "vq": (VQModel, {"scaling_factor": 0.4, "num_vq_embeddings": 8}),
}


def autoencoder(name: str, seed: int = 0, levels: tuple[int, ...] = (4, 8)) -> Any:
    kind, options = KINDS[name]
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return kind(
            block_out_channels=levels,
            down_block_types=("DownEncoderBlock2D",) * len(levels),
            up_block_types=("UpDecoderBlock2D",) * len(levels),
            norm_num_groups=2,
            layers_per_block=1,
            latent_channels=2,
            **options,
        ).eval()


def small_unet() -> UNet2DModel:
    with torch.random.fork_rng():
        torch.manual_seed(3)
        return UNet2DModel(
            sample_size=4,
            in_channels=2,
            out_channels=2,
            layers_per_block=1,
            block_out_channels=(4,),
            norm_num_groups=2,
            down_block_types=("DownBlock2D",),
            up_block_types=("UpBlock2D",),
            add_attention=False,
        )


def codec_of(network: Any, **changes: Any) -> LatentCodec:
    return LatentCodec(lambda: network, {**network.config, **changes}, CPU)


def pictures(count: int = 3, height: int = 8, width: int = 8) -> torch.Tensor:
    raw = np.random.default_rng(1).uniform(-1, 1, (count, 3, height, width))
    return torch.from_numpy(raw).float()


def latents(count: int = 5) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(2).standard_normal((count, 2, 4, 4), dtype=np.float32))


def raw_latents(network: Any, images: torch.Tensor) -> torch.Tensor:
    found = network.encode(images)
    raw: torch.Tensor = found.latents if isinstance(network, VQModel) else found.latent_dist.mode()
    return raw


# ---- the scaling --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", KINDS)
@torch.no_grad()
def test_encoding_is_the_shifted_and_scaled_mean(name: str) -> None:
    network, images = autoencoder(name), pictures()
    scale = {"kl": 0.7, "kl with a shift": 1.6, "kl with defaults": 0.18215, "vq": 0.4}[name]
    shift = 0.3 if name == "kl with a shift" else 0.0
    codec = codec_of(network)
    assert codec.scaling == (scale, shift)
    torch.testing.assert_close(
        codec.encode(images), (raw_latents(network, images) - shift) * scale, rtol=1e-6, atol=1e-6
    )
    assert torch.equal(codec.encode(images), codec.encode(images))  # no draw from the encoder's posterior


@pytest.mark.parametrize("name", KINDS)
@torch.no_grad()
def test_decoding_is_that_of_the_pipelines(name: str) -> None:
    """Their post-processing maps [-1, 1] to [0, 1] and clips; shift as in Stable Diffusion 3's pipeline."""
    network, z = autoencoder(name), 30 * latents()
    shift = network.config.get("shift_factor") or 0.0
    raw = network.decode(z / network.config.scaling_factor + shift).sample
    expected = VaeImageProcessor().postprocess(raw, output_type="pt")
    found = codec_of(network).decode(z)
    torch.testing.assert_close(found / 2 + 0.5, expected, rtol=0, atol=1e-5)
    assert float(raw.abs().max()) > 1.1  # so that clipping is seen
    assert float(found.abs().max()) == 1.0


@torch.no_grad()
def test_vq_latents_are_quantised_when_decoded() -> None:
    network, z = autoencoder("vq"), latents()
    codec = codec_of(network)
    book = network.quantize.embedding.weight
    raw = (z / 0.4).movedim(1, -1).reshape(-1, 2)
    nearest = book[torch.cdist(raw, book).argmin(1)].reshape(5, 4, 4, 2).movedim(-1, 1)
    torch.testing.assert_close(codec.decode(nearest * 0.4), codec.decode(z), rtol=0, atol=1e-5)
    assert float((nearest - z / 0.4).abs().max()) > 0.1


def test_scaling_alone_is_undone() -> None:
    """An autoencoder that does nothing shows the scaling and its inverse."""

    class Nothing(torch.nn.Conv2d):
        dtype = torch.float32

        def encode(self, x: torch.Tensor) -> Any:
            return SimpleNamespace(latents=x)

        def decode(self, z: torch.Tensor) -> Any:
            return SimpleNamespace(sample=z)

    codec = LatentCodec(lambda: Nothing(1, 1, 1), {"scaling_factor": 0.13, "shift_factor": -0.4}, CPU)
    images = pictures()
    torch.testing.assert_close(codec.encode(images), (images + 0.4) * 0.13, rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(codec.decode(codec.encode(images)), images, rtol=0, atol=1e-6)


@pytest.mark.parametrize("levels", [(4,), (4, 8), (4, 8, 8)])
@torch.no_grad()
def test_image_shape(levels: tuple[int, ...]) -> None:
    network = autoencoder("kl", levels=levels)
    images = pictures(1, 16, 24)
    z = codec_of(network).encode(images)
    assert codec_of(network).image_shape((int(z.shape[1]), int(z.shape[2]), int(z.shape[3]))) == (3, 16, 24)
    assert z.shape[2] * 2 ** (len(levels) - 1) == 16


@pytest.mark.parametrize("batch_size", [1, 3, 64])
def test_decoding_does_not_depend_on_the_batch_size(batch_size: int) -> None:
    codec, z = codec_of(autoencoder("kl with a shift")), latents(7)
    assert float((codec.decode(z, batch_size) - codec.decode(z)).abs().max()) <= 1e-5


def test_results_are_ordinary_tensors() -> None:
    """Not of inference mode: they may be changed in place, and gradients may flow through what is made of them."""
    codec = codec_of(autoencoder("kl"))
    for found in (codec.encode(pictures()), codec.decode(latents())):
        assert found.dtype == torch.float32
        assert found.device == CPU
        assert not found.requires_grad
        found.mul_(2.0)
        found.requires_grad_().square().sum().backward()
        assert torch.equal(found.grad, 2 * found.detach())


def test_half_precision_autoencoders_give_float32() -> None:
    exact = codec_of(autoencoder("kl"))
    half = codec_of(autoencoder("kl").to(torch.bfloat16))
    for mine, other in (
        (half.encode(pictures()), exact.encode(pictures())),
        (half.decode(latents()), exact.decode(latents())),
    ):
        assert mine.dtype == torch.float32
        gap = float((mine - other).abs().max())
        assert 1e-5 < gap < 0.1


@pytest.mark.parametrize("scale", [0.0, float("nan"), float("inf")])
def test_an_impossible_scaling_is_refused(scale: float) -> None:
    with pytest.raises(
        InputError, match=r"scaling_factor(=| is ).*, but (a number is expected there|it must be finite and not 0)"
    ):
        codec_of(autoencoder("kl"), scaling_factor=scale)


# ---- loading ------------------------------------------------------------------------------------------------------


def test_loaded_when_first_used_and_once() -> None:
    network, loads = autoencoder("kl"), []
    codec = LatentCodec(lambda: loads.append(1) or network, dict(network.config), CPU)
    assert codec.scaling == (0.7, 0.0)
    assert codec.image_shape((2, 4, 4)) == (3, 8, 8)
    assert loads == []
    codec.encode(pictures())
    codec.decode(latents())
    assert codec.fingerprint == weights_fingerprint(network)
    assert loads == [1]


@pytest.mark.parametrize("name", KINDS)
def test_beside_a_network_as_diffusers_saves_it(name: str, tmp_path: Path) -> None:
    network = autoencoder(name)
    small_unet().save_pretrained(tmp_path / "unet")
    DDIMScheduler(clip_sample=False).save_pretrained(tmp_path / "scheduler")
    part = "vqvae" if name == "vq" else "vae"
    network.save_pretrained(tmp_path / part)
    denoiser = Denoiser.from_pretrained(tmp_path, device="cpu")
    assert denoiser.codec is not None
    torch.testing.assert_close(
        denoiser.codec.encode(pictures()), codec_of(network).encode(pictures()), rtol=1e-6, atol=1e-6
    )
    assert denoiser.codec.fingerprint == weights_fingerprint(network)
    assert denoiser.codec.scaling == codec_of(network).scaling
    assert denoiser.data_range is None  # latents have none
    assert denoiser.codec.image_shape(denoiser.shape) == (3, 8, 8)
    # Without its weights the network still works, and the autoencoder is missed where it is used.
    (tmp_path / part / "diffusion_pytorch_model.safetensors").unlink()
    lazy = Denoiser.from_pretrained(tmp_path, device="cpu")
    assert lazy.codec is not None
    assert torch.isfinite(lazy(latents(2), 5).mean).all()
    with pytest.raises(InputError, match=f"{part} could not be loaded"):
        lazy.codec.encode(pictures())


# ---- fingerprints -------------------------------------------------------------------------------------------------


def test_fingerprint_follows_names_shapes_and_values() -> None:
    network = autoencoder("kl")
    first = weights_fingerprint(network)
    assert weights_fingerprint(copy.deepcopy(network)) == first
    assert weights_fingerprint(autoencoder("kl", seed=1)) != first
    with torch.no_grad():
        next(iter(network.parameters())).view(-1)[0] += 1e-6
    assert weights_fingerprint(network) != first

    def holding(**tensors: torch.Tensor) -> torch.nn.Module:
        module = torch.nn.Module()
        for name, tensor in tensors.items():
            module.register_buffer(name, tensor)
        return module

    a, b = torch.arange(4.0), torch.ones(2)
    prints = [
        weights_fingerprint(module)
        for module in (holding(a=a, b=b), holding(a=a, c=b), holding(a=a.view(2, 2), b=b), holding(a=b, b=a))
    ]
    assert len(set(prints)) == 4
    assert weights_fingerprint(holding(b=b, a=a)) == prints[0]
    assert weights_fingerprint(holding(a=a.to(torch.bfloat16), b=b)) == prints[0]  # the same float values
    assert weights_fingerprint(holding(a=a, b=b, steps=torch.tensor(7))) != prints[0]
