"""Layouts against the packing of diffusers' own pipelines."""

from typing import Any

import pytest
import torch

import diffusion_var as dv
from diffusion_var.models.pretrained.layout import LAYOUTS, Layout, layout_named, layout_of


def counted(*shape: int) -> torch.Tensor:
    """A tensor whose numbers all differ."""
    return torch.arange(torch.Size(shape).numel(), dtype=torch.float32).reshape(shape)


def of_class(name: str, **attributes: Any) -> Any:
    """An object whose class has the name of a pipeline, and its packing."""
    import diffusers

    made = object.__new__(type(name, (getattr(diffusers, name),), {"__init__": lambda self: None}))
    for key, value in attributes.items():
        object.__setattr__(made, key, value)
    return made


@pytest.mark.parametrize("name", ["FluxPipeline", "FluxImg2ImgPipeline", "ChromaPipeline", "QwenImagePipeline"])
def test_packed_patches(name: str) -> None:
    pipe, images = of_class(name), counted(2, 4, 6, 8)
    packed = pipe._pack_latents(images, 2, 4, 6, 8)
    layout = layout_of(pipe)
    assert layout.name == "tokens_2x2"
    assert torch.equal(layout.samples(images), packed)
    assert torch.equal(layout.of((4, 6, 8)).images(packed), images)
    assert layout.sample_shape((4, 6, 8)) == packed.shape[1:]


def test_tokens_of_flux2() -> None:
    pipe, images = of_class("Flux2Pipeline"), counted(2, 8, 3, 5)
    layout = layout_of(pipe)
    assert torch.equal(layout.samples(images), pipe._pack_latents(images))
    assert torch.equal(layout.of((8, 3, 5)).images(pipe._pack_latents(images)), images)


@pytest.mark.parametrize(
    ("frames", "places", "name"), [(1, 1, "tokens"), (1, 2, "tokens_1x2x2"), (3, 2, "tokens_3x2x2")]
)
def test_videos_of_ltx(frames: int, places: int, name: str) -> None:
    pipe = of_class("LTXPipeline", transformer_spatial_patch_size=places, transformer_temporal_patch_size=frames)
    images, layout = counted(2, 5, 6, 4, 8), layout_of(pipe)
    packed = pipe._pack_latents(images, places, frames)
    assert layout.name == name
    assert torch.equal(layout.samples(images), packed)
    assert torch.equal(layout.of((5, 6, 4, 8)).images(packed), images)


@pytest.mark.parametrize("name", ["WanPipeline", "StableDiffusion3Pipeline", "ZImagePipeline", "DDPMPipeline"])
def test_plain(name: str) -> None:
    x = counted(2, 3, 4, 4)
    assert layout_of(of_class(name)) == Layout("plain")
    assert Layout("plain").images(x) is x
    assert Layout("plain").samples(x) is x


def test_channels_last() -> None:
    x, layout = counted(2, 3, 4, 5, 6), layout_of(of_class("Kandinsky5T2VPipeline"))
    assert torch.equal(layout.images(x), x.permute(0, 4, 1, 2, 3))
    assert torch.equal(layout.samples(layout.images(x)), x)
    assert layout.sample_shape((6, 3, 4, 5)) == (3, 4, 5, 6)


def test_sounds_have_their_channels_last() -> None:
    for name in ("AceStepPipeline", "LongCatAudioDiTPipeline"):
        x, layout = counted(2, 6, 4), layout_of(of_class(name))
        assert torch.equal(layout.images(x), x.mT)
        assert layout.sample_shape((4, 6)) == (6, 4)


@pytest.mark.parametrize("name", [*LAYOUTS, "tokens_4x2"])
@pytest.mark.parametrize("shape", [(3, 4, 8), (2, 3, 4, 6)])
def test_there_and_back(name: str, shape: tuple[int, ...]) -> None:
    layout, images = layout_named(name).of(shape), counted(2, *shape)
    assert torch.equal(layout.images(layout.samples(images)), images)
    assert layout.samples(images).shape[1:] == layout.sample_shape(shape)


def test_refused() -> None:
    with pytest.raises(dv.InputError, match="layout='rows' is not known; use one of plain"):
        layout_named("rows")
    with pytest.raises(dv.InputError, match="layout='tokens_0x2' is not known"):
        layout_named("tokens_0x2")
    with pytest.raises(dv.InputError, match=r"images of shape \(4, 5, 6\) have no layout tokens_2x2"):
        layout_named("tokens_2x2").of((4, 5, 6))
    with pytest.raises(dv.InputError, match="do not say how large their images are"):
        layout_named("tokens").images(counted(2, 12, 4))
    with pytest.raises(dv.InputError, match=r"a sample has shape \(12, 4\), but images of shape \(4, 5, 3\)"):
        layout_named("tokens").of((4, 5, 3)).images(counted(2, 12, 4))
    for name in ("QwenImageLayeredPipeline", "JoyImageEditPipeline"):
        with pytest.raises(dv.InputError, match=f"how {name} packs its latents is not known"):
            layout_of(of_class(name))
