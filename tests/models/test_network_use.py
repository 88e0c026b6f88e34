"""A network is left in the modes that it was found in, works on copies, and its errors say where they were."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import diffusion_var as dv
from diffusion_var.training import HeadTraining, train_head

SHAPE = (1, 4, 4)
SCHEDULE = dv.NoiseSchedule.linear(100, 1e-3, 0.1)


class Small(nn.Module):
    """Dropout, a normalisation and a module that is frozen in evaluation mode; the features are read at `out`."""

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.layer = nn.Conv2d(1, 8, 3, padding=1)
            self.frozen = nn.Sequential(nn.Conv2d(8, 8, 1), nn.Dropout(0.5)).eval()
            self.norm = nn.BatchNorm2d(8)
            self.drop = nn.Dropout(0.5)
            self.out = nn.Conv2d(8, 1, 3, padding=1)

    def forward(self, x: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
        h = self.drop(self.norm(self.frozen(torch.tanh(self.layer(x)))))
        out: torch.Tensor = self.out(h)
        return out


def pictures(count: int = 32) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(3).integers(0, 256, (count, *SHAPE), dtype=np.uint8))


def model(network: Any, **options: Any) -> dv.Denoiser:
    return dv.Denoiser(network, SCHEDULE, shape=SHAPE, **options)


def estimated(denoiser: dv.Denoiser, **options: Any) -> dv.VarianceTable:
    return dv.estimate(denoiser, pictures(), 1e3, indices=[1, 50, 100], progress=False, **options)


def sampled(denoiser: dv.Denoiser) -> torch.Tensor:
    return dv.Sampler(denoiser, dv.FixedLarge(), 4).sample(5, batch_size=3)


def bounded(denoiser: dv.Denoiser) -> float:
    return float(dv.bits_per_dim(denoiser, dv.FixedLarge(), pictures(5), 4, decoder_variance=0.01, batch_size=6))


def costed(denoiser: dv.Denoiser) -> float:
    return float(dv.step_costs(denoiser, dv.FixedLarge(), pictures(5), [1, 50, 100], batch_size=6).values[0, 2])


def checked(denoiser: dv.Denoiser) -> float:
    return dv.check(estimated(denoiser), denoiser, 4, 4, show=False).steps[0].total["analytic"]


def trained(denoiser: dv.Denoiser) -> torch.Tensor:
    settings = HeadTraining(2, batch_size=8, evaluate_every=1, likelihood_images=4, likelihood_steps=2)
    spec, table = dv.HeadSpec(module="out"), estimated(denoiser)
    result = train_head(denoiser, table, pictures(), settings, spec, held_out=pictures(8), progress=False)
    return next(result.head.network.parameters())


def evaluated(denoiser: dv.Denoiser) -> torch.Tensor:
    return denoiser(torch.ones(3, *SHAPE), 50).mean.detach()


RUNS = [estimated, sampled, bounded, costed, checked, trained, evaluated]
OF_A_NETWORK = pytest.mark.parametrize("run", RUNS, ids=lambda run: run.__name__)


# ---- modes ----------------------------------------------------------------------------------------------------------


def state(network: nn.Module) -> dict[str, Any]:
    """All of a network that a run might leave changed."""
    return {
        "modes": {name: module.training for name, module in network.named_modules()},
        "gradients": {name: (p.requires_grad, p.grad) for name, p in network.named_parameters()},
        "hooks": {name: len(m._forward_hooks) + len(m._forward_pre_hooks) for name, m in network.named_modules()},
        "values": {name: value.clone() for name, value in network.state_dict().items()},
    }


def assert_unchanged(network: nn.Module, before: dict[str, Any]) -> None:
    after = state(network)
    for name in ("modes", "gradients", "hooks"):
        assert after[name] == before[name], name
    assert all(torch.equal(after["values"][name], value) for name, value in before["values"].items())


@OF_A_NETWORK
def test_a_network_in_training_is_evaluated_and_left_in_training(run: Any) -> None:
    network = Small().train()
    network.frozen.eval()
    network.frozen[0].weight.requires_grad_(False)
    before, settings = state(network), (torch.is_grad_enabled(), torch.is_inference_mode_enabled())
    found = run(model(network))
    assert_unchanged(network, before)
    assert (torch.is_grad_enabled(), torch.is_inference_mode_enabled()) == settings
    expected = run(model(Small().eval()))  # as the network in evaluation mode says
    if isinstance(found, dv.VarianceTable):
        found, expected = found.posterior_variance(50), expected.posterior_variance(50)
    assert torch.equal(torch.as_tensor(found), torch.as_tensor(expected))


def test_a_denoiser_does_not_change_the_mode() -> None:
    network = Small().train()
    before = state(network)
    model(network).with_features("out").identity()
    assert_unchanged(network, before)


def test_while_the_user_has_the_images_the_network_is_theirs() -> None:
    network = Small().train()
    stream = dv.Sampler(model(network), dv.FixedLarge(), 4).stream(range(6), batch_size=3)
    first = next(stream)
    assert (network.training, network.drop.training) == (True, True)
    del stream  # left halfway
    assert (network.training, network.drop.training) == (True, True)
    assert torch.equal(first, sampled(model(Small()))[:3])


def test_modes_are_restored_after_an_error() -> None:
    network = Small().train()
    network.norm.eval()
    before = state(network)
    network.out.forward = lambda _: 1 / 0  # type: ignore[assignment,return-value]
    for run in RUNS:
        with pytest.raises(dv.NetworkError, match="ZeroDivisionError"):
            run(model(network))
    assert_unchanged(network, before)


def test_a_mode_that_a_module_makes_of_its_own_is_asked_for() -> None:
    """Modules may do more than set a flag (adapters merge their weights)."""

    class Merging(Small):
        merged = False

        def train(self, mode: bool = True) -> Merging:
            self.merged = not mode
            return super().train(mode)

        def forward(self, x: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
            return super().forward(x, timestep) if self.merged else x.new_full(x.shape, torch.nan)

    network = Merging().train()
    assert torch.isfinite(sampled(model(network))).all()
    assert not network.merged


# ---- inputs ---------------------------------------------------------------------------------------------------------


def pure(x: torch.Tensor, timestep: torch.Tensor, condition: Any = None) -> torch.Tensor:
    shift = 0.0 if condition is None else 0.1 * condition.float().view(-1, 1, 1, 1)
    return 0.3 * x + 0.01 * timestep.view(-1, 1, 1, 1) + shift


def spoiling(x: torch.Tensor, timestep: torch.Tensor, condition: Any = None) -> torch.Tensor:
    out = pure(x, timestep, condition)
    x.mul_(0.2)
    timestep.zero_()
    if condition is not None:
        condition.zero_()
    return out


class Reusing:
    """Returns the same memory at every call."""

    def __init__(self) -> None:
        self.memory: dict[tuple[int, ...], torch.Tensor] = {}

    def __call__(self, x: torch.Tensor, timestep: torch.Tensor, condition: Any = None) -> torch.Tensor:
        out = self.memory.setdefault(tuple(x.shape), torch.zeros(x.shape))
        return out.copy_(pure(x, timestep, condition))


@pytest.mark.parametrize("network", [spoiling, Reusing()], ids=["writes into its input", "returns its own memory"])
@pytest.mark.parametrize("prediction", ["epsilon", "sample", "v_prediction", "edm"])
@pytest.mark.parametrize("guidance", [1.0, 2.0])
def test_a_network_that_writes_changes_nothing(network: Any, prediction: Any, guidance: float) -> None:
    given: dict[str, Any] = {"prediction": prediction, "guidance_scale": guidance, "unconditional": torch.tensor(0)}
    labels = torch.arange(32) % 3
    found, expected = (
        (
            estimated(denoiser, conditions=labels, batch_size=8).posterior_variance(50),
            dv.Sampler(denoiser, dv.FixedLarge(), 4).sample(5, batch_size=3, conditions=labels[:5]),
            dv.bits_per_dim(
                denoiser, dv.FixedLarge(), pictures(5), 4, decoder_variance=0.01, conditions=labels[:5]
            ).value,
        )
        for denoiser in (model(network, **given), model(pure, **given))
    )
    assert (found[0], found[2]) == (expected[0], expected[2])
    assert torch.equal(found[1], expected[1])
    assert labels.tolist() == [i % 3 for i in range(32)]


def test_a_posterior_stays_what_it_was() -> None:
    denoiser = model(Reusing(), prediction="sample", clip=None)
    first = denoiser(torch.ones(2, *SHAPE), 50)
    kept = first.mean.clone()
    denoiser(torch.zeros(2, *SHAPE), 50)
    assert torch.equal(first.mean, kept)


# ---- errors ---------------------------------------------------------------------------------------------------------

RAISED = {
    "CUDA error: an illegal memory access was encountered\nCUDA kernel errors might be": "CUDA error: an illegal",
    "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`": "smaller batch size",
    "[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory": "smaller batch size",
    "could not create a primitive": "out of memory (RuntimeError: could not create a primitive); use a smaller",
    "shapes cannot be multiplied (3x4 and 5x6)": "cannot be multiplied",
}


class Failing(nn.Module):
    """Raises at one call."""

    def __init__(self, error: BaseException, call: int = 3) -> None:
        super().__init__()
        self.error, self.left = error, call

    def forward(self, x: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
        self.left -= 1
        if self.left == 0:
            raise self.error
        return 0.3 * x


@pytest.mark.parametrize("said", RAISED)
@pytest.mark.parametrize("run", [estimated, bounded, costed])
def test_an_error_of_the_network_is_one_sentence_with_its_place(run: Any, said: str) -> None:
    error = RuntimeError(said)
    with pytest.raises(dv.NetworkError) as caught:
        run(model(Failing(error, 2)))
    sentence = str(caught.value)
    assert "\n" not in sentence
    assert RAISED[said] in sentence
    for said_too in ("n=", "in a batch of", "evaluations of this run"):
        assert said_too in sentence
    assert caught.value.__cause__ is error


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("CUDA out of memory."), MemoryError()])
def test_want_of_memory_asks_for_smaller_batches(error: Exception) -> None:
    with pytest.raises(dv.NetworkError, match=r"at index n=67, in a batch of 3, after 3 evaluations .* smaller batch"):
        sampled(model(Failing(error, 2)))


def test_the_checkpoint_that_is_kept_is_named_and_serves(tmp_path: Path) -> None:
    path = tmp_path / "run.ckpt"
    with pytest.raises(dv.NetworkError, match=rf"the work until then is kept in {path}, from where"):
        estimated(model(Failing(RuntimeError("CUDA error"), 7)), checkpoint=path)
    found = estimated(model(Failing(RuntimeError(), 0)), checkpoint=path)
    assert found.posterior_variance(50) == estimated(model(Failing(RuntimeError(), 0))).posterior_variance(50)


def test_a_device_that_reports_late_is_heard(monkeypatch: pytest.MonkeyPatch) -> None:
    """An error of a GPU may come up in whatever waits for it."""

    def late(*_: Any) -> None:
        raise RuntimeError("CUDA error: device-side assert triggered")

    monkeypatch.setattr("diffusion_var.variance.shards.shard_sums", late)
    with pytest.raises(dv.NetworkError, match="device-side assert triggered") as caught:
        estimated(model(pure))
    assert isinstance(caught.value.__cause__, RuntimeError)


def test_what_is_no_error_of_the_network_passes() -> None:
    for error in (KeyboardInterrupt(), dv.InputError("no"), dv.NumericalError("no")):
        with pytest.raises(type(error)):
            sampled(model(Failing(error)))


def test_tensors_elsewhere_are_named() -> None:
    network = Small()
    denoiser = model(network)
    network.norm.to("meta")
    with pytest.raises(dv.NetworkError, match="it holds tensors on meta, but its input is on cpu"):
        sampled(denoiser)
    with pytest.raises(dv.InputError, match="x_t is on meta, but this denoiser runs on cpu"):
        model(Small())(torch.ones(1, *SHAPE, device="meta"), 3)


# ---- outputs --------------------------------------------------------------------------------------------------------

OUTPUTS = {
    "int64": lambda x: x.long(),
    "uint8": lambda x: x.abs().byte(),
    "bool": lambda x: x > 0,
    "complex64": lambda x: x.to(torch.complex64),
    "NoneType": lambda x: None,
    "tuple": lambda x: (x,),
    "dict": lambda x: {"sample": x},
    "ndarray": lambda x: x.numpy(),
    "meta": lambda x: x.to("meta"),
    "channels": lambda x: x.repeat(1, 3, 1, 1),
    r"\(4, 4\)": lambda x: x[0, 0],
    r"\(\)": lambda x: x.sum(),
}


@pytest.mark.parametrize("guided", [False, True])
@pytest.mark.parametrize("found", OUTPUTS)
def test_outputs_that_are_none_are_refused(found: str, guided: bool) -> None:
    denoiser = model(lambda x, *_: OUTPUTS[found](x))
    if guided:
        denoiser = denoiser.with_guidance(2.0, torch.tensor(0))
    with pytest.raises(dv.InputError, match=rf"the network returned .*{found}"):
        denoiser(torch.ones(3, *SHAPE), 5, torch.tensor([1, 2, 3]) if guided else None)
