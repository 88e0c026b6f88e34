"""Which network a table, a head or a checkpoint belongs to: changed, it is another; in any clothes, it is the same.

Every way is tried at every door: with a `Denoiser`, and with a diffusers pipeline.
"""

import copy
import dataclasses
import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import accelerate
import peft
import pytest
import small_heads
import torch
import xxhash
from diffusers import AutoencoderKL, AutoencoderTiny, DDPMPipeline, UNet2DConditionModel
from diffusers.models.attention_processor import IPAdapterAttnProcessor2_0
from diffusers.training_utils import EMAModel
from small_pipelines import UNET, seeded

import diffusion_var as dv
from diffusion_var.models.fingerprint import LARGEST, LOW, fingerprints, sha256_of_weights, weights_fingerprint
from diffusion_var.models.pretrained.latents import common_scaling

CLOTHES: dict[str, Callable[[torch.nn.Module], torch.nn.Module]] = {
    "itself": lambda network: network,
    "compiled": lambda network: torch.compile(network, backend="eager"),
    "compiled in place": lambda network: (network.compile(backend="eager"), network)[1],
    "compiled in part": lambda network: _with(network, mid_block=torch.compile(network.mid_block, backend="eager")),
    "DataParallel": torch.nn.DataParallel,
    "averaged": torch.optim.swa_utils.AveragedModel,
    "offloaded": lambda network: (accelerate.cpu_offload(network), network)[1],
    "dispatched": lambda network: accelerate.dispatch_model(network, {"": "cpu"}),
    "double precision": lambda network: network.double(),
    "training mode": lambda network: network.train(),
}
HALF: dict[str, Callable[[torch.nn.Module], torch.nn.Module]] = {
    "float16": lambda network: network.half(),
    "bfloat16": lambda network: network.bfloat16(),
}


def _with(network: torch.nn.Module, **parts: torch.nn.Module) -> torch.nn.Module:
    for name, part in parts.items():
        setattr(network, name, part)
    return network


def network() -> Any:
    return copy.deepcopy(small_heads.denoiser().network)


def denoiser(changed: torch.nn.Module) -> dv.Denoiser:
    like = small_heads.denoiser()
    return dv.Denoiser(changed, like.schedule, shape=like.shape, data_range=like.data_range)


def pipeline(changed: torch.nn.Module) -> Any:
    from diffusers import DDPMScheduler

    scheduler = DDPMScheduler(num_train_timesteps=50, beta_start=1e-3, beta_end=0.2)
    pipe = DDPMPipeline(network(), scheduler)
    pipe.unet = changed
    return pipe


DOORS: dict[str, Callable[[torch.nn.Module], Any]] = {
    "Sampler": lambda changed: dv.Sampler(denoiser(changed), dv.Analytic(small_heads.table()), 3),
    "Sampler with a head": lambda changed: dv.Sampler(denoiser(changed), small_heads.head(), 3),
    "from_table": lambda changed: dv.AnalyticScheduler.from_table(small_heads.table(), pipeline(changed)),
    "from_head": lambda changed: dv.AnalyticScheduler.from_head(small_heads.head(), pipeline(changed)),
    "check": lambda changed: small_heads.table().check(denoiser(changed)),
}


# ---- other clothes ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("clothes", [*CLOTHES, *HALF])
@pytest.mark.parametrize("door", DOORS)
def test_the_same_network_in_any_clothes(door: str, clothes: str) -> None:
    assert DOORS[door]({**CLOTHES, **HALF}[clothes](network())) is None or door != "check"


@pytest.mark.parametrize("clothes", CLOTHES)
def test_its_fingerprint_and_its_images_are_the_same_in_all_clothes(clothes: str) -> None:
    dressed = denoiser(CLOTHES[clothes](network()))
    assert dressed.fingerprint == denoiser(network()).fingerprint
    for covariance in (dv.Analytic(small_heads.table()), small_heads.head(scale=0.3)):
        expected = dv.Sampler(denoiser(network()), covariance, 3).sample(2)
        torch.testing.assert_close(dv.Sampler(dressed, covariance, 3).sample(2), expected, rtol=1e-4, atol=1e-5)


class Mixed(torch.nn.Module):
    """Some layers in one precision and some in another; the first to be called need not be the first to be listed."""

    def __init__(self, listed: torch.dtype, first: torch.dtype) -> None:
        super().__init__()
        self.scale = torch.nn.Parameter(torch.tensor(0.9, dtype=listed))
        self.first = torch.nn.Conv2d(1, 1, 1).to(first)
        torch.nn.init.constant_(self.first.weight, 0.5)
        torch.nn.init.zeros_(self.first.bias)

    def forward(self, x: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
        return self.first(x) * self.scale


DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


@pytest.mark.parametrize("listed", DTYPES)
@pytest.mark.parametrize("first", DTYPES)
@pytest.mark.parametrize("given", [torch.float32, torch.float64])
def test_a_network_takes_its_input_in_the_precision_of_its_first_layer(
    first: torch.dtype, listed: torch.dtype, given: torch.dtype
) -> None:
    x = torch.linspace(-1, 1, 16, dtype=given).view(1, 1, 4, 4)
    model = dv.Denoiser(Mixed(listed, first), dv.NoiseSchedule.linear(10), shape=(1, 4, 4), clip=None)
    for _ in range(2):  # found, and remembered
        posterior = model(x, 5)
        assert posterior.eps.dtype == given
        torch.testing.assert_close(posterior.eps, 0.45 * x, rtol=1e-2, atol=1e-2)
    assert "probe" in model.identity(keep=True).facts


@pytest.mark.parametrize("clothes", HALF)
def test_half_precision_draws_nearly_the_same_images(clothes: str) -> None:
    half = dv.Sampler(denoiser(HALF[clothes](network())), dv.FixedSmall(), 3).sample(2)
    assert float((half - dv.Sampler(denoiser(network()), dv.FixedSmall(), 3).sample(2)).abs().max()) < 0.1


def test_a_table_made_in_half_precision_serves_the_whole_and_no_other() -> None:
    made = dv.estimate(
        denoiser(network().half()), small_heads.images(), 1e3, indices=[1, 20, 50], structures=(), progress=False
    )
    made.check(denoiser(network()))
    other = network()
    next(other.parameters()).data.mul_(1.5)
    with pytest.raises(dv.InputError, match="network fingerprint"):
        made.check(denoiser(other))


@pytest.mark.parametrize("clothes", ["compiled", "compiled in place"])
def test_a_head_reads_a_compiled_network_that_has_run(clothes: str) -> None:
    dressed = CLOTHES[clothes](network())
    dressed(torch.zeros(1, *small_heads.SHAPE), torch.tensor([1]))
    pipe = pipeline(dressed)
    pipe.scheduler = dv.AnalyticScheduler.from_head(small_heads.head(scale=0.3), pipe)
    plain = pipeline(network())
    plain.scheduler = dv.AnalyticScheduler.from_head(small_heads.head(scale=0.3), plain)
    images = [
        made(2, generator=torch.Generator().manual_seed(1), num_inference_steps=3, output_type="np").images
        for made in (pipe, plain)
    ]
    assert float(abs(images[0] - images[1]).max()) < 1e-5
    pipe.scheduler._source._watch.remove()
    assert dressed(torch.zeros(1, *small_heads.SHAPE), torch.tensor([1])).sample.shape == (1, *small_heads.SHAPE)


def test_weights_that_are_nowhere_are_refused() -> None:
    with torch.device("meta"):
        empty = torch.nn.Conv2d(1, 1, 3)
    with pytest.raises(dv.InputError, match="weight 'weight' is on the meta device, without values"):
        weights_fingerprint(empty)


def test_the_tiny_autoencoder_has_the_latents_of_the_large_one() -> None:
    assert common_scaling(AutoencoderTiny().config, "AutoencoderTiny") is None
    assert common_scaling({"scaling_factor": 0.3, "shift_factor": 0.1}, AutoencoderKL.__name__) == (0.3, 0.1)
    latents = dataclasses.replace(small_heads.table(), latent_scaling=(0.18215, 0.0))
    pipe = pipeline(network())
    pipe.vae = AutoencoderTiny()
    dv.AnalyticScheduler.from_table(latents, pipe)
    pipe.vae = seeded(AutoencoderKL, scaling_factor=0.5)
    with pytest.raises(dv.InputError, match="latent scaling"):
        dv.AnalyticScheduler.from_table(latents, pipe)


# ---- another network ----------------------------------------------------------------------------------------------


def _averaged(changed: Any) -> None:
    average = EMAModel(changed.parameters(), decay=0.5)
    average.shadow_params = [parameter * 0.9 for parameter in average.shadow_params]
    average.copy_to(changed.parameters())


def _unsaved_buffer(changed: Any) -> None:
    """Something that `forward` reads and the state dict does not hold."""
    block = changed.mid_block
    block.register_buffer("gain", torch.tensor(2.0), persistent=False)
    block.register_forward_hook(lambda module, given, out: out * module.gain)


CHANGES: dict[str, Callable[[Any], Any]] = {
    ".data of a weight": lambda changed: next(changed.parameters()).data.mul_(1.1),
    "a moving average": _averaged,
    "a weight in inference mode": lambda changed: _in_inference_mode(changed),
    "an attribute": lambda changed: setattr(changed.mid_block.resnets[0], "output_scale_factor", 2.0),
    "a buffer that is not saved": _unsaved_buffer,
    "a method": lambda changed: setattr(changed.mid_block, "forward", lambda x, *_, **__: 1.5 * x),
}


def _in_inference_mode(changed: Any) -> None:
    with torch.inference_mode():
        next(changed.parameters()).data.mul_(1.1)


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("door", DOORS)
def test_a_changed_network_is_another(door: str, change: str) -> None:
    changed = network()
    DOORS[door](changed)  # it has been looked at before
    CHANGES[change](changed)
    with pytest.raises(dv.InputError, match=r"network fingerprint: .* has [0-9a-f]{12}|what the network does"):
        DOORS[door](changed)


@pytest.mark.parametrize("change", CHANGES)
def test_a_table_is_of_the_network_as_it_is(change: str) -> None:
    """One denoiser, measured before and after."""
    changed = denoiser(network())
    how: Any = {"tolerance": 1e3, "indices": [1, 50], "structures": (), "progress": False}
    before = dv.estimate(changed, small_heads.images(), **how)
    CHANGES[change](changed.network)
    after = dv.estimate(changed, small_heads.images(), **how)
    after.check(changed)
    with pytest.raises(dv.InputError, match="made for another model"):
        before.check(changed)


@pytest.mark.parametrize("change", [".data of a weight", "a moving average", "a weight in inference mode"])
def test_a_network_that_is_changed_meanwhile_has_no_table(change: str) -> None:
    changed, calls = network(), []

    def count(*_: Any) -> None:
        calls.append(1)
        if len(calls) == 3:
            CHANGES[change](changed)

    changed.register_forward_pre_hook(count)
    with pytest.raises(dv.InputError, match="weights were changed while its table was made"):
        dv.estimate(denoiser(changed), small_heads.images(), 1e3, indices=[1, 50], structures=(), progress=False)


@pytest.mark.parametrize("change", [*CHANGES])
def test_a_checkpoint_is_not_continued_with_another_network(change: str, tmp_path: Path) -> None:
    def estimated(model: dv.Denoiser) -> Any:
        return dv.estimate(
            model, small_heads.images(), 1e3, indices=[1, 50], progress=False, checkpoint=tmp_path / "table"
        )

    def bounded(model: dv.Denoiser) -> Any:
        return dv.density_bound(model, dv.FixedLarge(), small_heads.images(2), 2, checkpoint=tmp_path / "bound")

    for run in (estimated, bounded):
        changed = denoiser(network())
        run(changed)
        run(denoiser(network()))  # the same
        CHANGES[change](changed.network)
        if run is bounded and change == "a method":
            continue  # which a bound's checkpoint, for which the network is not evaluated, cannot see
        with pytest.raises(dv.InputError, match="belongs to another run"):
            run(changed)


def test_what_the_probe_leaves_behind_is_nothing() -> None:
    class Counting(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer, self.calls = torch.nn.Conv2d(1, 1, 1), 0

        def forward(self, x: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
            self.calls += 1
            return self.layer(torch.nn.functional.dropout(x, training=self.training))

    counting = Counting().train()
    state = torch.get_rng_state()
    identity = dv.Denoiser(counting, dv.NoiseSchedule.linear(10), shape=(1, 4, 4)).identity(keep=True)
    assert len(identity.facts["probe"]["values"]) == 16
    assert counting.calls == 0
    assert counting.training
    assert torch.equal(torch.get_rng_state(), state)


def test_a_random_network_has_no_probe_and_is_told_by_its_weights() -> None:
    class Random(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = torch.nn.Conv2d(1, 1, 1)

        def forward(self, x: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
            return self.layer(x + torch.randn(x.shape))

    torch.manual_seed(0)
    facts = dv.Denoiser(Random(), dv.NoiseSchedule.linear(10), shape=(1, 4, 4)).identity(keep=True).facts
    assert "probe" not in facts
    assert "network" in facts


# ---- adapters -----------------------------------------------------------------------------------------------------


def prompted() -> Any:
    """A network of prompts, with two adapters."""
    blocks = ("DownBlock2D", "CrossAttnDownBlock2D"), ("CrossAttnUpBlock2D", "UpBlock2D")
    config = {**UNET, "in_channels": 1, "out_channels": 1, "cross_attention_dim": 8}
    return seeded(UNet2DConditionModel, **config, down_block_types=blocks[0], up_block_types=blocks[1])


def adapted() -> Any:
    made = prompted()
    for k, name in enumerate(("one", "two")):
        with torch.random.fork_rng():
            torch.manual_seed(k)
            made.add_adapter(peft.LoraConfig(r=2, target_modules=["to_q", "to_v"], init_lora_weights=False), name)
    made.set_adapters(["one"], [1.0])
    return made


def of_prompts(changed: Any) -> dv.Denoiser:
    return dv.Denoiser(changed, dv.NoiseSchedule.linear(50, 1e-3, 0.2), shape=small_heads.SHAPE, conditional=True)


@pytest.mark.parametrize(
    "change",
    [
        lambda made: made.set_adapters(["one"], [0.5]),
        lambda made: made.set_adapters(["two"], [1.0]),
        lambda made: made.set_adapters(["one", "two"], [1.0, 0.5]),
        lambda made: made.disable_adapters(),
        lambda made: made.fuse_lora(),
        lambda made: made.delete_adapters("one"),
        lambda made: made.enable_freeu(0.9, 0.2, 1.2, 1.4),
    ],
    ids=["strength", "another", "both", "disabled", "fused", "deleted", "FreeU"],
)
def test_adapters_and_their_strengths_are_part_of_the_network(change: Any) -> None:
    before, changed = of_prompts(adapted()), adapted()
    assert of_prompts(changed).fingerprint == before.fingerprint
    change(changed)
    known = before.identity(keep=True)
    assert known.mismatch(of_prompts(changed).identity(beside=known), "the table", "the denoiser")


def test_the_strength_of_an_image_prompt_is_part_of_the_network() -> None:
    def prompted_by_images(strength: float) -> Any:
        made = prompted()
        processors = made.attn_processors
        for name in [name for name in processors if "attn2" in name]:
            width = made.get_submodule(name.removesuffix(".processor")).to_q.out_features
            with torch.random.fork_rng():
                torch.manual_seed(1)
                processors[name] = IPAdapterAttnProcessor2_0(width, 8, num_tokens=(4,), scale=strength)
        made.set_attn_processor(processors)
        return made

    fingerprints = [of_prompts(prompted_by_images(strength)).fingerprint for strength in (1.0, 1.0, 0.5)]
    assert fingerprints[0] == fingerprints[1] != fingerprints[2]
    assert fingerprints[0] != of_prompts(prompted()).fingerprint


@pytest.mark.parametrize(
    "switch_off",
    [
        lambda made: made.disable_adapters(),
        lambda made: made.set_adapters(["one", "two"], [0.0, 0.0]),
        lambda made: made.delete_adapters(["one", "two"]),
    ],
    ids=["disabled", "of strength 0", "deleted"],
)
def test_without_its_adapters_a_network_is_the_plain_one(switch_off: Any) -> None:
    made = adapted()
    switch_off(made)
    known = of_prompts(prompted()).identity(keep=True)
    assert "probe" in known.facts
    assert not known.mismatch(of_prompts(made).identity(beside=known), "the table", "the denoiser")


def test_a_fused_network_is_the_same_whether_its_adapters_are_still_there() -> None:
    made = adapted()
    made.fuse_lora()
    shipped = prompted()
    state = {k.replace(".base_layer", ""): v for k, v in made.state_dict().items() if ".lora_" not in k}
    shipped.load_state_dict(state)
    assert weights_fingerprint(made) == weights_fingerprint(shipped)


# ---- files made before, and large networks ------------------------------------------------------------------------


def test_a_table_that_knows_the_weights_alone_is_compared_by_them(tmp_path: Path) -> None:
    older = dataclasses.replace(small_heads.table(), network_facts=None)
    older.save(tmp_path / "older.safetensors")
    read = dv.VarianceTable.load(tmp_path / "older.safetensors")
    assert read.network_facts is None
    assert read.digest == older.digest
    read.check(denoiser(network()))
    changed = network()
    CHANGES["an attribute"](changed)
    read.check(denoiser(changed))  # of which it knows nothing
    made = dataclasses.replace(older, network=sha256_of_weights(adapted()), shape=small_heads.SHAPE)
    facts = of_prompts(adapted()).identity(beside=made.identity()).facts
    assert facts["network"] == made.network


def test_small_networks_keep_sha256_and_large_ones_are_known_by_either(monkeypatch: pytest.MonkeyPatch) -> None:
    assert LARGEST == 2**28
    small = weights_fingerprint(network())
    assert small == sha256_of_weights(network())
    monkeypatch.setattr("diffusion_var.models.fingerprint.LARGEST", 10)
    large = weights_fingerprint(network())
    assert large.startswith("xxh3:")
    changed = network()
    next(changed.parameters()).data.view(-1)[0] += 1e-6
    assert weights_fingerprint(changed) != large
    older = dataclasses.replace(small_heads.table(), network_facts=None)
    assert older.network == small
    older.check(denoiser(network()))
    with pytest.raises(dv.InputError, match="network fingerprint"):
        older.check(denoiser(changed))


@pytest.mark.parametrize("own", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("piece", [7, 2**16])
def test_digests_are_those_of_the_whole_values(piece: int, own: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """However the values are read: all of them, in order, in the precision that the digest is of."""
    module = torch.nn.Sequential(torch.nn.Linear(5, 7), torch.nn.BatchNorm1d(7)).to(own)
    module.register_buffer("flags", torch.tensor([True, False]))
    module.register_buffer("none", torch.empty(0, 3))

    def plain(content: Any, dtype: torch.dtype) -> str:
        for name, value in sorted(module.state_dict().items()):
            value = value.to(dtype) if value.is_floating_point() else value
            content.update(
                f"{name}{tuple(value.shape)}".encode() + value.reshape(-1).view(torch.uint8).numpy().tobytes()
            )
        return content.hexdigest()

    monkeypatch.setattr("diffusion_var.models.fingerprint._PIECE", piece)
    expected = {name: plain(xxhash.xxh3_128(), dtype) for name, dtype in LOW.items()}
    assert fingerprints(module, LOW) == (plain(hashlib.sha256(), torch.float32), expected)
    monkeypatch.setattr("diffusion_var.models.fingerprint.LARGEST", 10)
    assert fingerprints(module, ()) == ("xxh3:" + plain(xxhash.xxh3_128(), torch.float32), {})


def test_tables_of_one_network_are_the_same_bytes(tmp_path: Path) -> None:
    for k in range(2):
        dv.estimate(denoiser(network()), small_heads.images(), 1e3, indices=[1, 50], progress=False).save(
            tmp_path / str(k)
        )
    assert (tmp_path / "0").read_bytes() == (tmp_path / "1").read_bytes()
