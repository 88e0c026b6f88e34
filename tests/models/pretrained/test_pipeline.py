"""Denoiser.from_pipeline: networks in any clothes, heads, and one sentence for everything that cannot be."""

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import diffusion_var as dv
from diffusion_var import Denoiser, InputError

pytest.importorskip("transformers")
from small_families import FAMILIES, picture

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")
CALL = {"height": 16, "width": 16, "max_sequence_length": 8}
PROMPTS = ["a cat", "a dog"]


def flux(**parts: Any) -> Any:
    pipe = FAMILIES["flux"]()
    for name, part in parts.items():
        setattr(pipe, name, part)
    return pipe


def transformer() -> Any:
    return copy.deepcopy(FAMILIES["flux"]().transformer)


@pytest.fixture(scope="module")
def denoiser() -> Denoiser:
    return Denoiser.from_pipeline(flux(), **CALL)


@pytest.fixture(scope="module")
def x_t(denoiser: Denoiser) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(0).standard_normal((2, *denoiser.shape), dtype=np.float32))


def difference(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float((found.double() - expected.double()).abs().max() / expected.double().abs().max())


@torch.no_grad()
def test_samples_whose_channels_come_last() -> None:
    """Of a pipeline (one of them, made to order: its latents' last axis is taken for their channels)."""
    plain = Denoiser.from_pipeline(FAMILIES["sd3"](), **CALL)
    turned = Denoiser.from_pipeline(FAMILIES["sd3"](), layout="channels_last", **CALL)
    assert (plain.shape, turned.shape) == ((16, 8, 8), (8, 16, 8))
    x, conditions = torch.linspace(-1, 1, 2048).view(2, *plain.shape).roll(1, 2), plain.prompts.encode(PROMPTS)
    expected = plain(x, 500, conditions).mean.movedim(-1, 1)
    assert difference(turned(x.movedim(-1, 1), 500, conditions).mean, expected) <= 1e-6


# ---- the network in other clothes ---------------------------------------------------------------------------------


def offloaded() -> Any:
    from accelerate import cpu_offload

    network = transformer()
    cpu_offload(network, execution_device=torch.device("cpu"))
    assert {parameter.device.type for parameter in network.parameters()} == {"meta"}
    return network


def offloaded_whole() -> Any:
    from accelerate import cpu_offload_with_hook

    return cpu_offload_with_hook(transformer(), torch.device("cpu"))[0]


CLOTHES = {
    "compiled": lambda: torch.compile(transformer(), backend="eager"),
    "parallel": lambda: torch.nn.DataParallel(transformer()),
    "offloaded": offloaded,
    "offloaded as a whole": offloaded_whole,
}


@pytest.mark.parametrize("clothes", CLOTHES)
@torch.no_grad()
def test_a_network_in_other_clothes_is_the_same(clothes: str, denoiser: Denoiser, x_t: torch.Tensor) -> None:
    other = Denoiser.from_pipeline(flux(transformer=CLOTHES[clothes]()), **CALL)
    conditions = denoiser.prompts.encode(PROMPTS)
    assert difference(other(x_t, 5, conditions).mean, denoiser(x_t, 5, conditions).mean) <= 1e-6
    assert other.fingerprint == denoiser.fingerprint
    assert not other.identity().mismatch(denoiser.identity(), "one", "the other")


@torch.no_grad()
def test_a_network_with_an_adapter_is_another(denoiser: Denoiser, x_t: torch.Tensor) -> None:
    peft = pytest.importorskip("peft")
    network = transformer()
    network.add_adapter(peft.LoraConfig(r=2, target_modules=["to_q"], init_lora_weights=False))
    other = Denoiser.from_pipeline(flux(transformer=network), **CALL)
    conditions = denoiser.prompts.encode(PROMPTS)
    assert other.fingerprint != denoiser.fingerprint
    assert difference(other(x_t, 5, conditions).mean, denoiser(x_t, 5, conditions).mean) > 1e-6


@torch.no_grad()
def test_half_precision(denoiser: Denoiser, x_t: torch.Tensor) -> None:
    """The pipeline brings its latents to the precision that its network takes; x̂_0 has that of x_t."""
    half = Denoiser.from_pipeline(copy.deepcopy(flux()).to(torch.bfloat16), **CALL)
    found = half(x_t, 5, half.prompts.encode(PROMPTS)).mean
    assert found.dtype == torch.float32
    assert half.in_half_precision
    assert difference(found, denoiser(x_t, 5, denoiser.prompts.encode(PROMPTS)).mean) < 0.02


def test_text_encoders_lie_on_the_cpu_once_prompts_are_encoded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a GPU, only where they are sent is seen."""
    from diffusion_var.models.pretrained import loop

    pipe, sent = flux(), []
    for name in ("text_encoder", "text_encoder_2"):
        module = copy.copy(getattr(pipe, name))
        module.to = lambda device, name=name: sent.append((name, str(device)))
        setattr(pipe, name, module)
    with loop.text_encoders_on(pipe, torch.device("cuda")):
        assert sent == [("text_encoder", "cuda"), ("text_encoder_2", "cuda")]
    assert sent[2:] == [("text_encoder", "cpu"), ("text_encoder_2", "cpu")]
    sent.clear()
    accelerate = pytest.importorskip("accelerate")
    pipe.text_encoder._hf_hook = accelerate.hooks.ModelHook()  # accelerate places it
    with loop.text_encoders_on(pipe, torch.device("cuda")):
        assert sent == [("text_encoder_2", "cuda")]


# ---- two networks ---------------------------------------------------------------------------------------------------


def wan(second: Any) -> Any:
    """As Wan 2.2: another network below a boundary."""
    from diffusers import WanPipeline

    pipe = FAMILIES["wan"]()
    return WanPipeline(**{**pipe.components, "transformer_2": second}, boundary_ratio=0.5)


def other_transformer(step: float) -> Any:
    network = copy.deepcopy(FAMILIES["wan"]().transformer)
    with torch.no_grad():
        network.proj_out.weight.add_(step)
    return network


def test_two_networks_are_one() -> None:
    call = {"height": 16, "width": 16, "num_frames": 5, "max_sequence_length": 8, "guidance_scale": 1.0}
    one = Denoiser.from_pipeline(FAMILIES["wan"](), **call)
    two, another = (Denoiser.from_pipeline(wan(other_transformer(step)), **call) for step in (0.1, 0.2))
    x = torch.from_numpy(np.random.default_rng(0).standard_normal((1, *one.shape), dtype=np.float32))
    conditions = one.prompts.encode(["a cat"])
    with torch.no_grad():
        high, low = (dv.NoiseLevel.flow(t) for t in (0.75, 0.25))
        assert torch.equal(two(x, high, conditions).mean, one(x, high, conditions).mean)
        assert difference(two(x, low, conditions).mean, one(x, low, conditions).mean) > 1e-3
    assert len({one.fingerprint, two.fingerprint, another.fingerprint}) == 3
    again = Denoiser.from_pipeline(wan(other_transformer(0.1)), **call)
    assert again.fingerprint == two.fingerprint


# ---- heads -----------------------------------------------------------------------------------------------------------


@torch.no_grad()
def test_features_come_in_the_order_of_the_batch(denoiser: Denoiser, x_t: torch.Tensor) -> None:
    tapped, conditions = denoiser.with_features(), denoiser.prompts.encode(PROMPTS)
    levels = torch.tensor([7, 2])
    whole = tapped(x_t, levels, conditions)
    assert whole.features is not None
    for i in range(2):
        alone = tapped(x_t[i : i + 1], int(levels[i]), denoiser.prompts.encode([PROMPTS[i]]))
        assert difference(whole.features[i], alone.features[0]) <= 1e-5
        assert difference(whole.mean[i], alone.mean[0]) <= 1e-5


def test_no_features_with_guidance(x_t: torch.Tensor) -> None:
    guided = Denoiser.from_pipeline(FAMILIES["sd3"](), guidance_scale=3.0, **CALL)
    x = torch.zeros(1, *guided.shape)
    with pytest.raises(
        InputError, match=r"is guided here \(guidance_scale=3\); make the denoiser with guidance_scale=1"
    ):
        guided.with_features()(x, 5, guided.prompts.encode(["a cat"]))


# ---- what is refused ----------------------------------------------------------------------------------------------


def empty(part: str) -> Any:
    pipe = flux()
    setattr(pipe, part, copy.deepcopy(getattr(pipe, part)).to("meta"))
    return pipe


def no_step() -> Any:
    pipe = flux()
    pipe.scheduler = type(
        "FlowMatchEulerDiscreteScheduler", (), {"config": {**pipe.scheduler.config}, "timesteps": torch.arange(3)}
    )()
    return pipe


class Unknown:
    """A pipeline of an own code, with nothing that is run here."""

    def __init__(self) -> None:
        pipe = flux()
        self.transformer, self.scheduler = pipe.transformer, pipe.scheduler

    def __call__(self, text: str) -> Any:
        return text


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: "a/b", r"got 'a/b'; for a folder or a hub id use dv\.Denoiser\.from_pretrained\(path\)\.$"),
        (lambda: flux().transformer, r"wrap a network by hand \(dv\.Denoiser\(network, schedule, …\)\)\.$"),
        (lambda: type(flux()), r"; give a loaded one\.$"),
        (lambda: None, r"must be a loaded diffusers pipeline, with its scheduler, but got None\.$"),
        (lambda: flux(transformer=None), r"has no network: none of transformer, unet, .*, or wrap its network by hand"),
        (lambda: flux(text_encoder=None), r"cannot be called with these arguments .*; its text_encoder is None; give"),
        (lambda: empty("transformer"), r"weights of the transformer of FluxPipeline are on the meta device.*offload"),
        (lambda: empty("text_encoder"), r"weights of the text_encoder of FluxPipeline are on the meta device"),
        (no_step, r"FluxPipeline has no scheduler\.step, which its loop is run by; wrap its network by hand"),
        (
            Unknown,
            r"Unknown has no prepare_latents and no argument prompt or batch_size, which its loop",
        ),
    ],
)
def test_what_is_no_pipeline_that_can_be_run(make: Any, said: str) -> None:
    with pytest.raises(InputError, match=said) as caught:
        Denoiser.from_pipeline(make())
    assert "\n" not in str(caught.value)


class Own:
    """A pipeline that nobody knows, whose samples are its latents times a number (as Sana-Sprint's are)."""

    def __init__(self, times: float) -> None:
        pipe = flux()
        self.transformer, self.scheduler, self.times = torch.nn.Linear(4, 4), pipe.scheduler, times

    def prepare_latents(self, count: int, generator: Any) -> torch.Tensor:
        return torch.randn(count, 4, generator=generator)

    def __call__(self, batch_size: int = 1, generator: Any = None) -> Any:
        latents = self.times * self.prepare_latents(batch_size, generator)
        self.scheduler.set_timesteps(3)
        for t in self.scheduler.timesteps:
            latents = self.scheduler.step(self.transformer(latents) * t / 1000, t, latents)[0]
        return latents


def test_a_pipeline_that_nobody_knows() -> None:
    pipe = Own(times=1.0)
    found = Denoiser.from_pipeline(pipe)
    x = torch.from_numpy(np.random.default_rng(0).standard_normal((2, 4), dtype=np.float32))
    with torch.no_grad():
        mean = found(x, dv.NoiseLevel.flow(0.5)).mean
        torch.testing.assert_close(mean, x - 0.5 * 0.5 * pipe.transformer(x), rtol=1e-5, atol=1e-6)
    with pytest.raises(InputError, match=r"^Own does not step the latents that it prepares as they are .*; wrap its"):
        Denoiser.from_pipeline(Own(times=2.0))


@pytest.mark.parametrize(
    ("call", "said"),
    [
        ({"hight": 16}, r"FluxPipeline takes no hight; give arguments of its __call__, such as "),
        ({"control_guidance_end": 0.5}, r"FluxPipeline takes no control_guidance_end"),
        ({"prompt": "a cat"}, r"^prompt cannot be given here, .* as conditions \(denoiser\.prompts\.encode\)\.$"),
        ({"height": "tall", "width": 16}, r"FluxPipeline cannot be called with these arguments \(TypeError"),
        ({"guidance_scale": "much"}, r"^guidance_scale='much' must be a finite number"),
        ({"device": "nowhere"}, r"^device='nowhere' is not a device"),
        ({"layout": "heaps"}, r"^layout='heaps' is not known"),
        ({"layout": "tokens", "height": 16, "width": 16}, r"do not come from images .* in layout tokens; give another"),
    ],
)
def test_arguments_that_do_not_fit(call: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said):
        Denoiser.from_pipeline(flux(), **{"max_sequence_length": 8, **call})


def test_a_network_that_is_steered_is_run_by_its_loop(tmp_path: Path) -> None:
    """A ControlNet beside it is part of its mean."""
    from diffusers import ControlNetModel, StableDiffusionControlNetPipeline

    base = FAMILIES["sd"]()
    controlnet = ControlNetModel.from_unet(base.unet, conditioning_embedding_out_channels=(4, 8))
    controlnet.eval().requires_grad_(False)
    with torch.no_grad():
        controlnet.controlnet_mid_block.weight.add_(0.1)  # zeros at first
    pipe = StableDiffusionControlNetPipeline(**base.components, controlnet=controlnet)
    call = {"image": torch.ones(1, 3, 16, 16), "height": 16, "width": 16, "guidance_scale": 1.0}
    own, plain = Denoiser.from_pipeline(pipe, **call), Denoiser.from_pipeline(base, guidance_scale=1.0)
    x = torch.from_numpy(np.random.default_rng(0).standard_normal((1, *plain.shape), dtype=np.float32))
    conditions = own.prompts.encode(["a cat"])
    with torch.no_grad():
        beside, mid = controlnet(x, 4, conditions["0"], call["image"], return_dict=False)
        expected = base.unet(
            x, 4, conditions["0"], down_block_additional_residuals=beside, mid_block_additional_residual=mid
        ).sample
        found, without = own(x, 5, conditions).eps, plain(x, 5, conditions["0"]).eps
    assert difference(found, expected) <= 1e-6
    assert difference(found, without) > 1e-4


def test_what_stands_for_none_is_the_pipelines(denoiser: Denoiser) -> None:
    with pytest.raises(InputError, match="leave unconditional out, and give negative_prompt in the pipeline's call"):
        denoiser.with_guidance(3.0, denoiser.prompts.encode([""]))


def test_a_flow_scheduler_with_the_levels_of_another_process_is_refused() -> None:
    """As Cosmos 2 has it, whose loop reads σ/α from its scheduler's list."""
    pipe = flux()
    pipe.scheduler = type(pipe.scheduler).from_config(pipe.scheduler.config)
    pipe.scheduler.register_to_config(sigma_max=80.0, sigma_min=0.002, sigma_data=1.0, final_sigmas_type="sigma_min")
    with pytest.raises(InputError, match=r"^the noise levels of FluxPipeline are sigma/alpha up to 80\.0, though its"):
        Denoiser.from_pipeline(pipe, **CALL)


def test_guidance_by_the_number_of_a_step_is_refused() -> None:
    with pytest.raises(
        InputError, match=r"^skip_guidance_layers of StableDiffusion3Pipeline goes by the number of a step"
    ):
        Denoiser.from_pipeline(FAMILIES["sd3"](), skip_guidance_layers=[0], **CALL)


def test_a_pipeline_that_begins_with_an_image_has_the_same_mean() -> None:
    from diffusers import FluxImg2ImgPipeline, StableDiffusion3Img2ImgPipeline

    for kind, name in ((FluxImg2ImgPipeline, "flux"), (StableDiffusion3Img2ImgPipeline, "sd3")):
        base = FAMILIES[name]()
        own = Denoiser.from_pipeline(base, guidance_scale=2.0, **CALL)
        other = Denoiser.from_pipeline(kind(**base.components), guidance_scale=2.0, image=picture(), **CALL)
        x = torch.from_numpy(np.random.default_rng(0).standard_normal((2, *own.shape), dtype=np.float32))
        conditions = own.prompts.encode(PROMPTS)
        with torch.no_grad():
            assert difference(other(x, 5, conditions).mean, own(x, 5, conditions).mean) <= 1e-6


def test_arguments_of_a_network_that_is_called_directly() -> None:
    pipe = FAMILIES["sd"]()
    assert Denoiser.from_pipeline(pipe, guidance_scale=1.0, height=24, width=16).shape == (4, 12, 8)
    for call in ({"height": 16}, {"clip_skip": 1}, {"height": 16, "width": 16, "eta": 0.0}):
        with pytest.raises(InputError, match=r"height and width \(both\) can be given, but got"):
            Denoiser.from_pipeline(pipe, guidance_scale=1.0, **call)
    with pytest.raises(InputError, match=r"height and width are 15 and 16, but multiples of 2 are expected"):
        Denoiser.from_pipeline(pipe, guidance_scale=1.0, height=15, width=16)


def without_lengths(conditions: dict[str, torch.Tensor]) -> Any:
    return {name: leaf for name, leaf in conditions.items() if name != "lengths"}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda c: None, r"^this network needs a condition, but none was given"),
        (
            lambda c: torch.zeros(2, 8, 16),
            r"^conditions are a tensor of shape \(2, 8, 16\), but FluxPipeline, as it is",
        ),
        (without_lengths, r"^conditions are 3 tensors, but FluxPipeline"),
        (
            lambda c: {**c, "0": c["0"][..., :3]},
            r"^conditions\[0\] have shape .* but FluxPipeline takes \(B, tokens, 16\)",
        ),
        (lambda c: {**c, "1": c["1"][:, :3]}, r"^conditions\[1\] have shape"),
        (lambda c: {name: leaf[:1] for name, leaf in c.items()}, r"for 2 images; give one for each"),
    ],
)
def test_prompts_that_do_not_fit(change: Any, said: str, denoiser: Denoiser, x_t: torch.Tensor) -> None:
    with pytest.raises(InputError, match=said):
        denoiser(x_t, 5, change(denoiser.prompts.encode(PROMPTS)))


def test_what_a_prompt_changes_is_not_replayed_for_others() -> None:
    """Of what is no tensor, and of tensors that images share."""
    from diffusion_var.models.pretrained.prompt_record import PromptRecord

    rows, shared = torch.zeros(1, 3, 4), torch.zeros(3, 2)
    record = PromptRecord.of([(rows, 7, shared)], [(rows.repeat(2, 1, 1), 7, shared)], "Own")
    assert len(record.flat([(rows + 1, 7, shared)])) == 2
    for other in (99, 7.0, None, "7"):
        with pytest.raises(InputError, match="returned something else for this prompt than for the empty one"):
            record.flat([(rows, other, shared)])
    whole = [rows.repeat(2, 1, 1), torch.stack([shared, shared])]
    (built,) = record.calls(whole, torch.device("cpu"))
    assert torch.equal(built[2], shared)
    whole[1][1] += 1
    with pytest.raises(InputError, match="that all images share, which is not the same for these prompts"):
        list(record.calls(whole, torch.device("cpu")))


@pytest.mark.parametrize("prompts", ["a cat", "", [], (), [1], ["cat", None], [["cat"]]])
def test_anything_but_a_list_of_texts_is_refused(prompts: Any, denoiser: Denoiser) -> None:
    with pytest.raises(InputError, match=r"^prompts=.* must be a list of at least one text\.$"):
        denoiser.prompts.encode(prompts)


def test_a_run_with_another_call_does_not_go_on(tmp_path: Path) -> None:
    options = {"guidance_scale": 3.0, **CALL}
    one, other = (Denoiser.from_pipeline(FAMILIES["sd3"](), negative_prompt=text, **options) for text in ("", "a dog"))
    latents = torch.from_numpy(np.random.default_rng(0).standard_normal((4, *one.shape), dtype=np.float32))

    def run(denoiser: Denoiser) -> dv.VarianceTable:
        return dv.estimate(
            denoiser,
            latents,
            conditions=dv.Conditions(one.prompts.encode(["a cat"])),
            indices=[4],
            tolerance=0.5,
            structures=("isotropic",),
            checkpoint=tmp_path / "checkpoint",
            progress=False,
        )

    first = run(one)
    assert run(one).posterior_variance(4) == first.posterior_variance(4)
    with pytest.raises(InputError, match="call"):
        run(other)


def kept(denoiser: Denoiser, path: Path) -> dv.VarianceTable:
    table = dv.estimate(
        denoiser,
        torch.from_numpy(np.random.default_rng(0).standard_normal((2, *denoiser.shape), dtype=np.float32)),
        conditions=dv.Conditions(denoiser.prompts.encode(["a cat"])),
        indices=[4],
        tolerance=0.5,
        structures=("isotropic",),
        progress=False,
    )
    table.save(path)
    return dv.VarianceTable.load(path)


def test_a_table_knows_what_its_mean_was_guided_away_from(tmp_path: Path) -> None:
    def made(text: str | None, scale: float = 3.0) -> Denoiser:
        return Denoiser.from_pipeline(FAMILIES["sd3"](), negative_prompt=text, guidance_scale=scale, **CALL)

    table = kept(made("a bird"), tmp_path / "table.safetensors")
    table.check(made("a bird"))
    for other in ("a dog", "", None):
        with pytest.raises(InputError, match=r"guidance in the call: the table has \{'negative_prompt': 'a bird'\}"):
            table.check(made(other))
    empty = made("").identity()
    assert not empty.mismatch(made(None).identity(), "one", "the other")
    assert not made("a dog", 1.0).identity().mismatch(made("a bird", 1.0).identity(), "one", "the other")


def test_the_scale_of_a_second_network_is_part_of_the_mean() -> None:
    call = {"height": 16, "width": 16, "num_frames": 5, "max_sequence_length": 8, "guidance_scale": 3.0}
    one, other = (
        Denoiser.from_pipeline(wan(other_transformer(0.1)), guidance_scale_2=scale, **call) for scale in (2.0, 5.0)
    )
    said = one.identity().mismatch(other.identity(), "the table", "the denoiser")
    assert (
        said == "guidance in the call: the table has {'guidance_scale_2': 2.0}, the denoiser {'guidance_scale_2': 5.0}"
    )


def test_a_table_of_one_controlnet_is_none_of_another(tmp_path: Path) -> None:
    from diffusers import ControlNetModel, StableDiffusionControlNetPipeline

    base = FAMILIES["sd"]()
    controlnet = ControlNetModel.from_unet(base.unet, conditioning_embedding_out_channels=(4, 8)).eval()

    def made(network: Any, strength: float = 1.0) -> Denoiser:
        pipe = StableDiffusionControlNetPipeline(**base.components, controlnet=network)
        size = {"height": 16, "width": 16, "controlnet_conditioning_scale": strength}
        return Denoiser.from_pipeline(pipe, image=torch.ones(1, 3, 16, 16), guidance_scale=1.0, **size)

    table = kept(made(controlnet), tmp_path / "table.safetensors")
    table.check(made(copy.deepcopy(controlnet)))
    assert table.identity().facts["steered"] == {}  # the default, said or not
    other = copy.deepcopy(controlnet)
    with torch.no_grad():
        other.controlnet_mid_block.weight.add_(0.1)
    with pytest.raises(InputError, match=r"networks beside the network: the table has [0-9a-f]{12}, the denoiser"):
        table.check(made(other))
    with pytest.raises(InputError, match=r"guidance in the call: .*'controlnet_conditioning_scale': 0\.5"):
        table.check(made(controlnet, 0.5))


def test_a_table_of_it_is_none_of_another_pipelines(denoiser: Denoiser, x_t: torch.Tensor) -> None:
    table = dv.estimate(
        denoiser,
        x_t.clone(),
        conditions=denoiser.prompts.encode(PROMPTS),
        indices=[4],
        tolerance=0.5,
        structures=("isotropic",),
        progress=False,
    )
    network = transformer()
    with torch.no_grad():
        next(network.parameters()).add_(1e-3)
    other = Denoiser.from_pipeline(flux(transformer=network), **CALL)
    with pytest.raises(InputError, match="network fingerprint"):
        table.check(other)
