"""OpenAI's state dicts in diffusers' modules: the outputs of their architecture written out, and what is refused."""

import math
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import UNet2DModel
from openai_unet import Kind, OpenAIUNet
from safetensors.torch import save_file

import diffusion_var as dv
from diffusion_var.models.pretrained.openai import OpenAIFlags
from diffusion_var.process.steps import respaced

SIZE = 8
KINDS = {
    "improved, heads of two widths": Kind(attention=(1, 2), out=6),
    "no scale and shift, one head": Kind(scale_shift=False, heads=1),
    "guided, labels": Kind(
        updown=True, head_channels=32, new_order=True, classes=5, out=6, res_blocks=2, attention=(1, 2)
    ),
    "halving blocks like the others": Kind(mult=(1, 1, 2), updown=True, head_channels=16, attention=(4,)),
    "other heads upwards": Kind(heads=2, heads_up=4, new_order=True),
    "one level": Kind(mult=(1,), attention=()),
    "three levels, labels": Kind(mult=(1, 2, 3), res_blocks=2, attention=(2, 4), classes=3),
    "halving blocks, added times": Kind(mult=(1, 2), updown=True, scale_shift=False, attention=(1,), heads=2),
    "one channel": Kind(images=1, out=2, attention=()),
}


def flags_of(kind: Kind, **others: Any) -> dict[str, Any]:
    """What shapes do not tell."""
    return {
        "image_size": SIZE,
        "num_heads": kind.heads,
        "num_heads_upsample": kind.heads_up,
        "num_head_channels": kind.head_channels,
        "use_new_attention_order": kind.new_order,
        **others,
    }


def told_by_shapes(kind: Kind) -> dict[str, Any]:
    """As a command line has them."""
    return {
        "num_channels": str(kind.channels),
        "num_res_blocks": kind.res_blocks,
        "channel_mult": ",".join(map(str, kind.mult)),
        "attention_resolutions": ",".join(str(SIZE // factor) for factor in kind.attention) or [],
        "class_cond": "True" if kind.classes else "False",
        "learn_sigma": kind.out == 2 * kind.images,
        "use_scale_shift_norm": kind.scale_shift,
        "resblock_updown": kind.updown,
        "use_fp16": True,
        "use_checkpoint": "False",
    }


def saved(kind: Kind, folder: Path, seed: int = 0) -> tuple[OpenAIUNet, Path]:
    network = OpenAIUNet(kind, seed)
    torch.save(network.state_dict(), folder / "model.pt")
    return network, folder / "model.pt"


def opened(path: Path, hyperparameters: Any, **options: Any) -> dv.Denoiser:
    return dv.Denoiser.from_openai(path, hyperparameters, device="cpu", **options)


def inputs(kind: Kind) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
    x = torch.from_numpy(np.random.default_rng(0).standard_normal((3, kind.images, SIZE, SIZE), dtype=np.float32))
    return x, torch.tensor([0, 37, 999]), None if kind.classes is None else torch.tensor([1, 0, 2])


def gap(network: OpenAIUNet, module: Any) -> float:
    """The largest difference of the outputs; how large they are is looked at too."""
    x, timestep, labels = inputs(network.kind)
    with torch.no_grad():
        expected, found = network(x, timestep, labels), module(x, timestep, labels).sample
    assert found.shape == expected.shape
    assert 0.3 < float(expected.std()) < 3
    return float((found - expected).abs().max())


# ---- the same outputs -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_the_same_outputs(kind: Kind, tmp_path: Path) -> None:
    network, path = saved(kind, tmp_path)
    denoiser = opened(path, flags_of(kind))
    assert isinstance(denoiser.network, UNet2DModel)
    assert gap(network, denoiser.network) < 1e-5
    assert denoiser.shape == (kind.images, SIZE, SIZE)
    assert denoiser.classes == kind.classes
    assert denoiser.conditional == (kind.classes is not None)
    assert not any(parameter.requires_grad for parameter in denoiser.network.parameters())
    # All that shapes tell, given as well.
    again = opened(path, flags_of(kind, **told_by_shapes(kind)))
    assert again.fingerprint == denoiser.fingerprint


@pytest.mark.parametrize("name", ["guided, labels", "improved, heads of two widths", "other heads upwards"])
def test_what_shapes_do_not_tell_matters(name: str, tmp_path: Path) -> None:
    """Other heads, or another order, are another network: nothing but the hyper-parameters can say so."""
    kind = KINDS[name]
    network, path = saved(kind, tmp_path)
    others = [{"use_new_attention_order": not kind.new_order}, {"num_head_channels": 8}, {"num_heads_upsample": 1}]
    for other in others[: 2 if kind.head_channels > 0 else 3]:
        assert gap(network, opened(path, {**flags_of(kind), **other}).network) > 1e-3


def test_the_whole_denoiser(tmp_path: Path) -> None:
    """guided-diffusion's: labels, a learned range and a classifier; against the formulas on the network itself."""
    kind = KINDS["guided, labels"]
    network, path = saved(kind, tmp_path)
    denoiser, n = opened(path, flags_of(kind, noise_schedule="cosine"), clip=None), 300
    x, _, labels = inputs(kind)
    with torch.no_grad():
        eps, raw = network(x, torch.full((3,), n - 1), labels).chunk(2, dim=1)
        posterior = denoiser(x, n, labels)
    level = dv.NoiseSchedule.cosine(1000).level(n)
    assert posterior.range is not None
    torch.testing.assert_close(posterior.eps, eps, rtol=0, atol=1e-5)
    torch.testing.assert_close(posterior.range, raw, rtol=0, atol=1e-5)
    torch.testing.assert_close(posterior.mean, (x - level.sigma * eps) / level.alpha, rtol=0, atol=1e-4)

    def classifier(x_t: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
        return x_t.flatten(1)[:, :5] * 2

    guided = denoiser.with_classifier(classifier, 2.0)
    images = dv.Sampler(guided, dv.LearnedRange([200, 600, 1000]), [200, 600, 1000]).sample(2, conditions=[0, 4])
    assert bool(torch.isfinite(images).all())


def test_from_safetensors_and_from_half_precision(tmp_path: Path) -> None:
    kind = KINDS["three levels, labels"]
    network, path = saved(kind, tmp_path)
    save_file(network.state_dict(), tmp_path / "model.safetensors")
    expected = opened(path, flags_of(kind))
    assert opened(tmp_path / "model.safetensors", flags_of(kind)).fingerprint == expected.fingerprint
    torch.save(network.half().state_dict(), path)
    half = opened(path, flags_of(kind))
    assert next(half.network.parameters()).dtype == torch.float32
    assert next(opened(path, flags_of(kind), dtype=torch.bfloat16).network.parameters()).dtype == torch.bfloat16


def test_no_global_generator_is_used(tmp_path: Path) -> None:
    _, path = saved(KINDS["one level"], tmp_path)
    torch.manual_seed(3)
    before = torch.get_rng_state()
    opened(path, flags_of(KINDS["one level"]))
    assert torch.equal(torch.get_rng_state(), before)


def test_saved_as_a_diffusers_model_it_is_the_same(tmp_path: Path) -> None:
    kind = KINDS["guided, labels"]
    network, path = saved(kind, tmp_path)
    opened(path, flags_of(kind)).network.save_pretrained(tmp_path / "unet")
    assert gap(network, UNet2DModel.from_pretrained(tmp_path / "unet")) < 1e-5


def test_heads_of_two_widths_are_not_saved_as_others(tmp_path: Path) -> None:
    kind = KINDS["improved, heads of two widths"]
    _, path = saved(kind, tmp_path)
    with pytest.raises(dv.InputError, match="heads of different widths, which the config of a UNet2DModel cannot say"):
        opened(path, flags_of(kind)).network.save_pretrained(tmp_path / "unet")
    assert not (tmp_path / "unet").exists()


# ---- the schedule, and what is predicted ----------------------------------------------------------------------------


def betas_of(name: str, N: int) -> np.ndarray:
    """Improved DDPM's two schedules."""
    if name == "linear":
        return np.linspace(0.1 / N, 20 / N, N)
    cos = [math.cos((t / N + 0.008) / 1.008 * math.pi / 2) ** 2 for t in range(N + 1)]
    return np.array([min(1 - b / a, 0.999) for a, b in pairwise(cos)])


@pytest.mark.parametrize("name", ["linear", "cosine"])
@pytest.mark.parametrize("N", [100, 1000, 4000])
@pytest.mark.parametrize("respacing", ["", "25", "10,10,20", "ddim50"])
def test_schedules(name: str, N: int, respacing: str) -> None:
    given = {"image_size": 8, "noise_schedule": name, "diffusion_steps": N, "timestep_respacing": respacing}
    flags = OpenAIFlags.of({**given, "rescale_timesteps": True})
    kept = respaced(N, respacing) if respacing else list(range(1, N + 1))
    schedule, product = flags.schedule(), np.cumprod(1 - betas_of(name, N))[np.array(kept) - 1]
    assert schedule.num_steps == len(kept)
    np.testing.assert_allclose(schedule.alpha[1:] ** 2, product, rtol=1e-9)
    np.testing.assert_allclose(schedule.timestep[1:], (np.array(kept) - 1) * 1000 / N, rtol=1e-12)
    plain = OpenAIFlags.of({**given, "rescale_timesteps": "False"}).schedule()
    np.testing.assert_array_equal(plain.timestep[1:], np.array(kept) - 1)


@pytest.mark.parametrize(
    ("given", "prediction"),
    [
        ({}, "epsilon"),
        ({"predict_xstart": "true"}, "sample"),
        ({"model_mean_type": "PREVIOUS_X"}, "previous_x"),
        ({"model_mean_type": "ModelMeanType.START_X"}, "sample"),
        ({"model_mean_type": "epsilon"}, "epsilon"),
    ],
)
def test_what_is_predicted(given: dict[str, Any], prediction: str, tmp_path: Path) -> None:
    kind = KINDS["one level"]
    network, path = saved(kind, tmp_path)
    denoiser = opened(path, flags_of(kind, **given), clip=None)
    assert denoiser.prediction == prediction
    x, n = inputs(kind)[0], 500
    with torch.no_grad():
        said, posterior = network(x, torch.full((3,), n - 1)), denoiser(x, n)
    kernel = dv.ReverseKernel(denoiser.schedule, n, n - 1)
    of_it = {"epsilon": posterior.eps, "sample": posterior.mean, "previous_x": kernel.mean(x, posterior)}[prediction]
    torch.testing.assert_close(of_it, said, rtol=0, atol=2e-5)


# ---- what is refused ------------------------------------------------------------------------------------------------

BASE = Kind(classes=3)


def refused(state: Any, said: str, path: Path, hyperparameters: Any = None) -> None:
    torch.save(state, path / "model.pt")
    with pytest.raises(dv.InputError, match=said):
        opened(path / "model.pt", hyperparameters or {"image_size": SIZE})


def changed(key: str, tensor: torch.Tensor | None) -> dict[str, torch.Tensor]:
    state = OpenAIUNet(BASE).state_dict()
    return {name: t for name, t in {**state, key: tensor}.items() if t is not None}


@pytest.mark.parametrize(
    ("key", "tensor", "said"),
    [
        (
            "middle_block.1.qkv.bias",
            None,
            r"no key middle_block\.1\.qkv\.bias, but one of shape \(192,\) is expected\.$",
        ),
        (
            "input_blocks.2.0.op.weight",
            torch.zeros(64, 32, 3, 3),
            r"input_blocks\.2\.0\.op\.weight has shape \(64, 32, 3, 3\)",
        ),
        (
            "output_blocks.1.1.qkv.weight",
            torch.zeros(192, 64, 1, 1),
            r"qkv\.weight has shape \(192, 64, 1, 1\), but one of",
        ),
        ("input_blocks.3.0.skip_connection.weight", torch.zeros(64, 32, 3, 3), r"skip_connection\.weight has shape"),
        (
            "input_blocks.1.0.skip_connection.weight",
            torch.zeros(32, 32, 1, 1),
            r"has a key input_blocks\.1\.0\.skip_conn",
        ),
        ("label_emb.weight", torch.zeros(3, 64), r"label_emb\.weight has shape \(3, 64\), but one of shape \(3, 128\)"),
        ("time_embed.0.weight", None, r"no key time_embed\.0\.weight, but one of shape \(128, 32\) is expected"),
        ("out.2.weight", None, r"no key out\.2\.weight \(its first is time_embed\.0\.weight\), but one of 4 axes"),
        ("out.0.weight", torch.zeros(64), r"out\.0\.weight has shape \(64,\), but one of shape \(32,\) is expected"),
        (
            "extra.weight",
            torch.zeros(2),
            r"it has a key extra\.weight, of shape \(2,\), that such a network has not\.$",
        ),
    ],
)
def test_the_first_key_that_does_not_fit_is_named(
    key: str, tensor: torch.Tensor | None, said: str, tmp_path: Path
) -> None:
    refused(changed(key, tensor), said, tmp_path)


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        (replace(BASE, conv_resample=False), r"no weights for input_blocks\.2: it halves its images by averages"),
        (
            replace(BASE, mult=(2, 2)),
            r"time_embed\.0\.weight has shape \(128, 32\), but one of shape \(256, 64\) is expect",
        ),
        (
            replace(BASE, images=6),
            r"takes 6 channels \(input_blocks\.0\.0\.weight\) and returns 3 \(out\.2\.weight\), but",
        ),
    ],
    ids=["averages", "wide first level", "super-resolution"],
)
def test_networks_that_diffusers_has_no_blocks_for(kind: Kind, said: str, tmp_path: Path) -> None:
    refused(OpenAIUNet(kind).state_dict(), said, tmp_path)


def test_other_networks_state_dicts(tmp_path: Path) -> None:
    unet = UNet2DModel(
        8, block_out_channels=(32, 32), down_block_types=("DownBlock2D",) * 2, up_block_types=("UpBlock2D",) * 2
    )
    refused(
        unet.state_dict(),
        r"no key output_blocks\.0\.0\.in_layers\.2\.weight \(its first is conv_in\.weight\)",
        tmp_path,
    )
    odd = {
        key: tensor[:16] if key.startswith("output_blocks") else tensor
        for key, tensor in OpenAIUNet(BASE).state_dict().items()
    }
    refused(odd, r"has a level of 16 channels, but they are normalised in groups of 32", tmp_path)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"num_heads": 3}, "num_heads=3 does not divide the 64 channels"),
        ({"num_head_channels": 48}, "num_head_channels=48 does not divide the 64 channels"),
        ({"num_heads": 0}, "num_heads=0 must be a whole number of at least 1"),
        ({"num_head_channels": 0}, "num_head_channels=0 must be a number of at least 1, or -1 for none"),
        ({"image_size": 7}, "image_size=7 must be a multiple of 2"),
        ({"image_size": "big"}, "image_size='big' must be a whole number"),
        ({"num_channels": 64}, "num_channels=64 is not what the weights of .* say, 32; leave it out"),
        ({"num_res_blocks": 2}, "num_res_blocks=2 is not what the weights of .* say, 1"),
        ({"channel_mult": "1,2,2"}, "channel_mult=1,2,2 is not what the weights of .* say, 1,2"),
        ({"attention_resolutions": "8"}, "attention_resolutions=8 is not what the weights of .* say, 4"),
        ({"class_cond": "False"}, "class_cond=false is not what the weights of .* say, true"),
        ({"learn_sigma": True}, "learn_sigma=true is not what the weights of .* say, false"),
        ({"use_scale_shift_norm": False}, "use_scale_shift_norm=false is not what"),
        ({"resblock_updown": True}, "resblock_updown=true is not what"),
        ({"learn_sigma": "maybe"}, "learn_sigma='maybe' must be true or false"),
        ({"diffusion_steps": 4000}, "diffusion_steps=4000 needs rescale_timesteps too"),
        ({"diffusion_steps": 20, "rescale_timesteps": True}, "too few for the noise schedule linear"),
        ({"noise_schedule": "square"}, "noise_schedule='square' is not known; use one of linear, cosine"),
        ({"timestep_respacing": "ddim3.5"}, "ddim3.5"),
        ({"predict_xstart": True, "model_mean_type": "epsilon"}, "contradict each other"),
        ({"model_mean_type": "velocity"}, "model_mean_type='velocity' is not known"),
        ({"lr": 1e-4}, "an entry 'lr' that is no flag of OpenAI's models; known are attention_resolutions"),
        ({"dropout": 2}, "dropout=2.0 is outside"),
        ({"dropout": "x"}, "dropout='x' must be a finite number"),
    ],
)
def test_hyperparameters(given: dict[str, Any], said: str, tmp_path: Path) -> None:
    refused(OpenAIUNet(BASE).state_dict(), said, tmp_path, {"image_size": SIZE, **given})


class Trap:
    """What must not be run when a file is read."""

    def __reduce__(self) -> Any:
        return (pytest.fail, ("a pickle was run",))


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ([1, 2], "holds a list, not a state dict"),
        ({}, "holds a dict, not a state dict"),
        ({"step": 5}, "holds 'step', a int, where a state dict has tensors"),
        ({"state_dict": {"a": torch.ones(1)}}, "holds 'state_dict', a dict, where"),
        ({"a": Trap()}, r"could not be read \(it is damaged, or holds more than weights\)"),
    ],
    ids=["list", "empty", "number", "nested", "objects"],
)
def test_files_that_are_no_state_dicts(content: Any, said: str, tmp_path: Path) -> None:
    refused(content, said, tmp_path)


@pytest.mark.parametrize("name", ["model.pt", "model.safetensors"])
def test_damaged_and_missing_files(name: str, tmp_path: Path) -> None:
    with pytest.raises(dv.InputError, match=f"there is no checkpoint .*{name}"):
        opened(tmp_path / name, {"image_size": SIZE})
    (tmp_path / name).write_bytes(b"\0\1\2" * 100)
    with pytest.raises(dv.InputError, match=r"could not be read \(.*\); expected a state dict, as a \.pt file"):
        opened(tmp_path / name, {"image_size": SIZE})
