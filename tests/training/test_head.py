"""Training of heads: exact resumption, interruptions, NaN, early stopping, and a trunk that is left alone."""

import numpy as np
import pytest
import torch
from small_heads import denoiser, head, images, table

import diffusion_var as dv
from diffusion_var.errors import NumericalError
from diffusion_var.training import HeadTraining, train_head
from diffusion_var.training.head import HeadRun
from diffusion_var.training.head_draws import HeadDraws, random_floors

SETTINGS = {
    "steps": 9,
    "batch_size": 8,
    "evaluate_every": 4,
    "learning_rate": 1e-2,
    "likelihood_images": 4,
    "likelihood_steps": 3,
    "seed": 3,
}


class Stop(Exception):
    pass


def train(model=None, source=None, spec=None, checkpoint=None, **changes):
    return train_head(
        denoiser() if model is None else model,
        table(),
        images() if source is None else source,
        HeadTraining(**{**SETTINGS, **changes}),
        dv.HeadSpec(**(spec or {})),
        held_out=images(60)[40:],
        checkpoint=checkpoint,
        checkpoint_seconds=0,
        progress=False,
    )


def weights(result):
    return torch.cat([p.detach().flatten() for p in result.head.network.parameters()])


SPECS = [
    *({}, {"target": "sn"}, {"target": "ocm"}, {"kind": "residual"}),
    *({"target": "factor", "structure": "dct"}, {"target": "bands", "bands": 4}),
]


@pytest.mark.parametrize("spec", SPECS)
def test_stopped_and_resumed_is_uninterrupted(spec, tmp_path, monkeypatch):
    whole = train(spec=spec)
    step, calls = HeadRun.step, []

    def stop_at_seven(self):
        calls.append(1)
        if len(calls) == 7:
            raise Stop
        step(self)

    monkeypatch.setattr(HeadRun, "step", stop_at_seven)
    path = tmp_path / "head.partial"
    with pytest.raises(Stop):
        train(spec=spec, checkpoint=path)
    resumed = train(spec=spec, checkpoint=path)
    assert len(calls) == 7 + 3  # six steps before, three after
    assert torch.equal(weights(whole), weights(resumed))
    assert [vars(p) for p in whole.curve] == [vars(p) for p in resumed.curve]
    assert [p.step for p in whole.curve] == [4, 8, 9]
    assert float((weights(whole) - weights(train(spec=spec, seed=4))).abs().max()) > 1e-4


def test_parts_of_a_batch_add_up():
    one, parts = train(), train(accumulate=3)
    assert float((weights(one) - weights(parts)).abs().max()) < 1e-5


@pytest.mark.parametrize(("target", "graphs"), [("npr", False), ("sn", False), ("ocm", True)])
def test_no_graph_through_the_trunk_but_for_ocm(target, graphs, monkeypatch):
    model, seen = denoiser(), []
    model.network.requires_grad_(True)
    before = [p.clone() for p in model.network.parameters()]
    forward = model.network.conv_out.forward

    def look(x):
        out = forward(x)
        seen.append((len(x), out.requires_grad))
        return out

    monkeypatch.setattr(model.network.conv_out, "forward", look)
    train(model, spec={"target": target}, steps=2, evaluate_every=5, likelihood_images=0)
    of_batches = [graph for size, graph in seen if size == SETTINGS["batch_size"]]
    assert of_batches[:2] == [graphs, graphs]  # the calls before are the table's probe and a look at the features
    assert all(p.grad is None and p.requires_grad for p in model.network.parameters())
    assert all(torch.equal(a, b) for a, b in zip(before, model.network.parameters(), strict=True))


def test_nan_names_the_step_and_keeps_the_last_good_state(tmp_path, monkeypatch):
    draw, calls = HeadDraws._draw, []

    def spoilt(self, *given):
        made, posterior = draw(self, *given)
        calls.append(1)
        if len(calls) == 4:
            made.x_0.fill_(float("nan"))
        return made, posterior

    path = tmp_path / "head.partial"
    monkeypatch.setattr(HeadDraws, "_draw", spoilt)
    with pytest.raises(NumericalError, match="loss is nan at step 3;"):
        train(checkpoint=path)
    resumed = train(checkpoint=path)  # the fourth draw is past
    monkeypatch.setattr(HeadDraws, "_draw", draw)
    assert torch.equal(weights(resumed), weights(train()))


def test_early_stopping_keeps_the_best(tmp_path, monkeypatch):
    losses = iter([3.0, 3.0, 2.0, 1.0, 9.0, 5.0, 9.0, 6.0])  # training, held-out, ...
    monkeypatch.setattr(HeadRun, "_loss", lambda *_: next(losses))
    stopped = train(steps=40, evaluate_every=2, patience=2, checkpoint=tmp_path / "c")
    assert stopped.stopped_early
    assert [p.held_out for p in stopped.curve] == [3.0, 1.0, 5.0, 6.0]
    monkeypatch.undo()
    again = train(steps=40, evaluate_every=2, patience=2, checkpoint=tmp_path / "c")  # nothing left to do
    assert torch.equal(weights(again), weights(stopped))
    assert float((weights(train(steps=4)) - weights(stopped)).abs().max()) < 1e-7


def test_a_checkpoint_of_another_run(tmp_path):
    path = tmp_path / "head.partial"
    train(checkpoint=path)
    for changes, named in [
        ({"seed": 4}, "seed"),
        ({"spec": {"target": "sn"}}, "head target"),
        ({"steps": 12}, "steps"),
    ]:
        with pytest.raises(dv.InputError, match=rf"belongs to another run \(different .*\): its {named} is"):
            train(checkpoint=path, **changes)
    with pytest.raises(dv.InputError, match=r"belongs to another run \(different images\)"):
        train(source=images(30), checkpoint=path)


def test_what_cannot_be_trained():
    with pytest.raises(dv.InputError, match="batch_size=0 must be a whole number of at least 1"):
        HeadTraining(steps=1, batch_size=0)
    with pytest.raises(dv.InputError, match="weighting='paper' is not known; use one of table, likelihood, papers"):
        HeadTraining(steps=1, weighting="paper")
    with pytest.raises(dv.InputError, match="target 'sn' may be negative"):
        train(spec={"target": "sn"}, weighting="likelihood")
    with pytest.raises(dv.InputError, match="output='papers' may be negative while it is trained"):
        train(spec={"output": "papers"}, weighting="likelihood")
    with pytest.raises(dv.InputError, match="output='bounded' is of heads from earlier files"):
        train(spec={"output": "bounded"})
    with pytest.raises(dv.InputError, match="patience stops by the loss on held-out"):
        train_head(denoiser(), table(), images(), HeadTraining(steps=1, patience=2))
    with pytest.raises(dv.InputError, match="made for another model"):
        train(denoiser(clip=None))
    conditional = denoiser()
    conditional.conditional = True
    with pytest.raises(dv.InputError, match="this model is conditional, but images have no conditions"):
        train(conditional)


def test_a_guided_mean_is_not_the_posteriors():
    model = denoiser().with_guidance(3.0, torch.tensor(0))
    with pytest.raises(dv.InputError, match="the target 'sn' takes the mean for"):
        head(target="sn").prior.refuse_guided(model)
    head(target="npr").prior.refuse_guided(model)


def test_floors_are_those_of_steps_of_every_length():
    """Each is λ²/γ² of a step from its index to a lower one, not 0; half of the steps are shorter than √N."""
    schedule = table().schedule
    n = np.repeat([1, 2, 10, 50], 400)
    floors = random_floors(schedule, n, np.random.default_rng(0)).flatten().numpy()
    for t in (2, 10, 50):
        kernels = [dv.ReverseKernel(schedule, t, s) for s in range(t - 1, 0, -1)]
        possible = np.array([kernel.lambda2 / kernel.gain**2 for kernel in kernels])
        found = np.abs(floors[n == t, None] / possible - 1).argmin(1)  # the step's length, less one
        np.testing.assert_allclose(floors[n == t], possible[found], rtol=1e-5)
        assert set(found) >= {0, t - 2}
        assert abs((found + 1 < schedule.num_steps**0.5).mean() - 0.5) < 0.1 or t < 10
    assert not floors[n == 1].any()  # there is but the decoder's step


# ---- other shapes and conditions -----------------------------------------------------------------------------------


class Trunk(torch.nn.Module):
    """A network of linear layers (vectors) or convolutions along every axis, told a nest of conditions."""

    def __init__(self, shape, width=8):
        super().__init__()
        axes = len(shape) - 1
        layer = (torch.nn.Linear, torch.nn.Conv1d, torch.nn.Conv2d, torch.nn.Conv3d)[axes]
        options = {} if axes == 0 else {"kernel_size": 3, "padding": 1}
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.first, self.last = layer(shape[0], width, **options), layer(width, shape[0], **options)

    def forward(self, x_t, timestep, condition=None):
        drive = 0.0 if condition is None else condition["bias"].view(-1, 1, *(1,) * (x_t.ndim - 2))
        return self.last(torch.tanh(self.first(x_t) + drive))


SHAPES = {"vector": (6,), "signal": (2, 8), "image": (1, 4, 6), "video": (1, 2, 4, 4)}


def of_shape(shape, conditions=None):
    schedule = dv.NoiseSchedule.linear(50, 1e-3, 0.2)
    model = dv.Denoiser(Trunk(shape), schedule, shape=shape, clip=(-1.0, 1.0))
    data = np.tanh(np.random.default_rng(1).standard_normal((40, *shape))).astype(np.float32)
    table = dv.estimate(model, data, 9.0, indices=[1, 20, 50], conditions=conditions, progress=False)
    return model, data, table


@pytest.mark.parametrize("spec", [{}, SPECS[3], SPECS[4], {"target": "bands", "bands": 3}], ids=str)
@pytest.mark.parametrize("kind", SHAPES)
def test_heads_of_any_shape(kind, spec, tmp_path):
    model, data, table = of_shape(SHAPES[kind])
    if "bands" in spec and kind == "vector":  # which has no frequencies
        with pytest.raises(dv.InputError, match=r"bands=3 is more than there are frequencies .*take at most 1"):
            train_head(model, table, data, HeadTraining(steps=1), dv.HeadSpec(**spec, module="last"))
        return
    settings = HeadTraining(**{**SETTINGS, "steps": 4, "likelihood_images": 0})
    chosen = dv.HeadSpec(module="last", **spec)
    head = train_head(model, table, data, settings, chosen, progress=False).head
    head.save(tmp_path / "head.safetensors")
    head = dv.Head.load(tmp_path / "head.safetensors")
    images = dv.Sampler(model, head, 4).sample(3, seed=1)
    assert images.shape == (3, *SHAPES[kind])
    assert torch.isfinite(images).all()
    analytic = dv.Sampler(model, dv.Analytic(table, structure=chosen.structure or "isotropic"), 4).sample(3, seed=1)
    assert 1e-6 < float((images - analytic).abs().max()) < 0.5  # four steps of training move it a little
    assert np.isfinite(dv.density_bound(model, head, data[:8], 4).value)


def test_heads_are_trained_with_nests_of_conditions():
    conditions = {"bias": np.linspace(-1, 1, 40).astype(np.float32)}
    model, data, table = of_shape(SHAPES["signal"], conditions)
    settings = HeadTraining(**{**SETTINGS, "steps": 4, "likelihood_images": 4})

    def trained(nest):
        options = {"held_out": data[:10], "held_out_conditions": {"bias": nest["bias"][:10]}}
        result = train_head(
            model, table, data, settings, dv.HeadSpec(module="last"), conditions=nest, progress=False, **options
        )
        return result, torch.cat([p.flatten() for p in result.head.network.parameters()])

    (result, found), (_, other) = trained(conditions), trained({"bias": -conditions["bias"]})
    assert np.isfinite(result.curve[-1].bits_per_dim)
    assert float((found - other).abs().max()) > 1e-4
    with pytest.raises(dv.InputError, match=r"conditions has 39 entries for 40 images"):
        trained({"bias": conditions["bias"][:39]})


def test_a_trunk_without_features_for_the_shape():
    """A layer whose input does not lie on the image's grid is named, with what was found and what is wanted."""

    class Pooled(Trunk):
        def forward(self, x_t, timestep, condition=None):
            return self.last(torch.nn.functional.interpolate(self.first(x_t)[..., ::3], size=x_t.shape[-1]))

    schedule = dv.NoiseSchedule.linear(50, 1e-3, 0.2)
    data = np.tanh(np.random.default_rng(1).standard_normal((20, 2, 9))).astype(np.float32)
    model = dv.Denoiser(Pooled((2, 9)), schedule, shape=(2, 9), clip=None)
    table = dv.estimate(model, data, 9.0, indices=[1, 20, 50], progress=False)
    settings = HeadTraining(steps=1, likelihood_images=0)
    train_head(model, table, data, settings, dv.HeadSpec(module="last"), progress=False)  # (B, 8, 9)

    class Flat(Trunk):
        def forward(self, x_t, timestep, condition=None):
            wide = torch.nn.functional.pad(self.first(x_t), (0, 1))  # (B, 8, 10) for images of length 9
            return self.last(wide)[..., :-1]

    model = dv.Denoiser(Flat((2, 9)), schedule, shape=(2, 9), clip=None)
    table = dv.estimate(model, data, 9.0, indices=[1, 20, 50], progress=False)
    with pytest.raises(dv.InputError, match=r"features of shape \(8, 10\) do not lie on a grid .* images \(2, 9\)"):
        train_head(model, table, data, settings, dv.HeadSpec(module="last"), progress=False)
