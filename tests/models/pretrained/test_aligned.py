"""Weights that a file has at odd addresses are moved to those of PyTorch's own, and are the same numbers."""

from pathlib import Path

import small_heads
import torch
from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel
from torch import nn

import diffusion_var as dv
from diffusion_var.metrics.classifier import ClassifierFeatures, read_features, save_features
from diffusion_var.models.pretrained.aligned import aligned


def at_odd_addresses(module: nn.Module) -> nn.Module:
    """As a file that is mapped into memory has them: four bytes behind a multiple of 64."""
    for tensor in (*module.parameters(), *module.buffers()):
        whole = torch.empty(tensor.numel() + 1, dtype=tensor.dtype)
        tensor.data = whole[1:].view(tensor.shape).copy_(tensor.data)
    return module


def addresses(module: nn.Module) -> set[int]:
    return {tensor.data_ptr() % 64 for tensor in (*module.parameters(), *module.buffers())}


def test_they_are_moved_and_the_same() -> None:
    module = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8).to(torch.float64), nn.Conv2d(8, 3, 3, bias=False))
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    assert addresses(at_odd_addresses(module)) == {4, 8}
    assert addresses(aligned(module, "cuda")) == {4, 8}, "which are copied to their device"
    assert aligned(module) is module
    assert addresses(module) == {0}
    assert all(torch.equal(tensor, before[name]) for name, tensor in module.state_dict().items())


def test_what_is_tied_stays_tied_and_what_is_aligned_where_it_is() -> None:
    first, second = nn.Linear(4, 4), nn.Linear(4, 4, bias=False)
    second.weight = first.weight
    module = at_odd_addresses(nn.Sequential(first, second))
    aligned(module)
    assert second.weight is first.weight
    place = first.weight.data_ptr()
    aligned(module)
    assert first.weight.data_ptr() == place


def test_a_model_that_is_read_has_them_so(tmp_path: Path) -> None:
    network = small_heads.denoiser().network
    DDPMPipeline(network, DDPMScheduler()).save_pretrained(tmp_path)
    assert addresses(UNet2DModel.from_pretrained(tmp_path / "unet")) != {0}, "as diffusers reads it"
    assert addresses(dv.Denoiser.from_pretrained(tmp_path, device="cpu").network) == {0}


def test_so_have_a_head_and_features_that_are_read(tmp_path: Path) -> None:
    small_heads.head().save(tmp_path / "head.safetensors")
    assert addresses(dv.Head.load(tmp_path / "head.safetensors").network) == {0}
    save_features(ClassifierFeatures(1, 8, 3, width=8, dimension=12).eval(), tmp_path / "features.safetensors")
    assert addresses(read_features(tmp_path / "features.safetensors")) == {0}
