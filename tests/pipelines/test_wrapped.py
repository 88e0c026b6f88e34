"""The transformer of a flow pipeline in other clothes: the same network for tables, schedulers and denoisers."""

import copy
from collections.abc import Callable
from functools import cache
from typing import Any

import accelerate
import peft
import pytest
import torch

import diffusion_var as dv

pytest.importorskip("transformers")
from family_runs import call_of, drawn, off
from small_families import FAMILIES

pytestmark = pytest.mark.filterwarnings("ignore")  # of diffusers and transformers, about themselves

SIZE = {"height": 16, "width": 16, "max_sequence_length": 8}


def own_pipeline(name: str = "sd3") -> Any:
    """A pipeline whose network is nobody else's."""
    pipe = FAMILIES[name]()
    pipe.transformer = copy.deepcopy(pipe.transformer)
    return pipe


def denoiser_of(pipe: Any, scale: float = 1.0) -> dv.Denoiser:
    return dv.Denoiser.from_pipeline(pipe, guidance_scale=scale, **SIZE)


@cache
def table() -> dv.VarianceTable:
    """Of the pipeline's network as it is."""
    denoiser = denoiser_of(own_pipeline())
    latents = torch.randn((8, *denoiser.shape), generator=torch.Generator().manual_seed(0))
    conditions = dv.Conditions(denoiser.prompts.encode(["a cat"]), torch.zeros(8, dtype=torch.long))
    last = denoiser.schedule.num_steps
    return dv.estimate(denoiser, latents, 1e9, indices=[1, last], conditions=conditions, structures=(), progress=False)


def _in_place(change: Callable[[Any], Any]) -> Callable[[Any], None]:
    def dress(pipe: Any) -> None:
        change(pipe.transformer)

    return dress


def _around(wrap: Callable[[Any], Any]) -> Callable[[Any], None]:
    def dress(pipe: Any) -> None:
        pipe.transformer = wrap(pipe.transformer)

    return dress


def _unused_adapter(network: Any) -> None:
    network.add_adapter(peft.LoraConfig(r=2, target_modules=["to_q"], init_lora_weights=False))
    network.disable_adapters()


CLOTHES: dict[str, Callable[[Any], None]] = {
    "itself": lambda pipe: None,
    "compiled": _around(lambda network: torch.compile(network, backend="eager")),
    "compiled in place": _in_place(lambda network: network.compile(backend="eager")),
    "compiled in part": _in_place(
        lambda network: network.transformer_blocks.insert(
            0, torch.compile(network.transformer_blocks.pop(0), backend="eager")
        )
    ),
    "offloaded": _in_place(lambda network: accelerate.cpu_offload(network, torch.device("cpu"))),
    "offloaded in groups": _in_place(
        lambda network: network.enable_group_offload(torch.device("cpu"), offload_type="leaf_level")
    ),
    "dispatched": _in_place(lambda network: accelerate.dispatch_model(network, {"": "cpu"})),
    "an adapter that is not at work": _in_place(_unused_adapter),
}
#: That are accepted too; a pipeline around the first does not run, and the second rounds the weights.
OTHERS: dict[str, Callable[[Any], None]] = {
    "DataParallel": _around(torch.nn.DataParallel),
    "stored in half precision": _in_place(
        lambda network: network.enable_layerwise_casting(torch.bfloat16, compute_dtype=torch.float32)
    ),
}


@pytest.mark.parametrize("clothes", [*CLOTHES, *OTHERS])
def test_a_table_of_the_network_serves_it_in_any_clothes(clothes: str) -> None:
    assert table().network is not None
    pipe = own_pipeline()
    {**CLOTHES, **OTHERS}[clothes](pipe)
    assert type(dv.analytic_scheduler(table(), pipe)) is dv.AnalyticFlowScheduler


@pytest.mark.parametrize("clothes", CLOTHES)
def test_a_dressed_pipeline_draws_the_same(clothes: str) -> None:
    plain, dressed = own_pipeline(), own_pipeline()
    CLOTHES[clothes](dressed)
    for pipe in (plain, dressed):
        pipe.scheduler = dv.AnalyticFlowScheduler.from_table(table(), pipe)
    assert off(drawn(dressed, call_of("sd3")), drawn(plain, call_of("sd3"))) <= 1e-5


@pytest.mark.parametrize("clothes", CLOTHES)
def test_a_dressed_pipeline_is_the_same_denoiser(clothes: str) -> None:
    pipe = own_pipeline()
    CLOTHES[clothes](pipe)
    dressed, plain = denoiser_of(pipe), denoiser_of(own_pipeline())
    assert dressed.fingerprint == plain.fingerprint
    table().check(dressed)
    x = torch.randn((2, *plain.shape), generator=torch.Generator().manual_seed(1))
    means = [made(x, 500, condition=_prompts(made)).mean for made in (dressed, plain)]
    assert off(*means) <= 1e-5


def _prompts(denoiser: dv.Denoiser) -> Any:
    return denoiser.prompts.encode(["a cat", "a dog"])


def _adapter(network: Any) -> None:
    network.add_adapter(peft.LoraConfig(r=2, target_modules=["to_q"], init_lora_weights=False))


def _fine_tuned(network: Any) -> None:
    next(network.parameters()).data.mul_(1.5)


@pytest.mark.parametrize("change", [_adapter, _fine_tuned])
def test_another_network_is_refused(change: Callable[[Any], None]) -> None:
    pipe = own_pipeline()
    change(pipe.transformer)
    with pytest.raises(dv.InputError, match="network fingerprint"):
        dv.analytic_scheduler(table(), pipe)
    with pytest.raises(dv.InputError, match="network fingerprint"):
        table().check(denoiser_of(pipe))


def test_weights_that_are_nowhere_are_named() -> None:
    pipe = own_pipeline()
    pipe.transformer.to("meta")
    with pytest.raises(dv.InputError, match="is on the meta device, without values"):
        dv.analytic_scheduler(table(), pipe)


def test_a_pipeline_without_a_network_is_refused() -> None:
    pipe = own_pipeline()
    pipe.transformer = None
    with pytest.raises(dv.InputError, match="network"):
        denoiser_of(pipe)
    with pytest.raises(dv.InputError, match="network"):
        dv.analytic_scheduler(table(), pipe)
