"""A network and a head trained together: the losses by hand, whose gradient goes where, an oracle, and resumption."""

import numpy as np
import pytest
import torch
from small_training import SCHEDULE, Images, small_unet, train, weights

import diffusion_var as dv
from diffusion_var.data.images import to_float
from diffusion_var.errors import InputError
from diffusion_var.randomness import generator, normal
from diffusion_var.training import unet as training
from diffusion_var.training.joint import JointNetwork, joint_loss, joint_losses
from diffusion_var.training.loss import simple_loss
from diffusion_var.training.unet import UNetTraining, train_unet

TARGETS = ["npr", "sn", "ocm"]


class Stop(Exception):
    pass


def joint(target, gradient=True):
    # Of 12 features a group norm takes three at a time: of fewer at a time it would hide the time from the head.
    return JointNetwork(small_unet(dropout=0.0, width=12), target, "residual", (1, 8, 8), 3, gradient=gradient)


def both(network, seed=5, **options):
    x_0 = to_float(Images().images[:6])
    return joint_losses(network, x_0, SCHEDULE, generator(seed, "joint"), target=network.target, **options)


def head_weights(result):
    return torch.cat([p.detach().flatten() for p in result.head.parameters()])


@pytest.mark.parametrize("target", TARGETS)
def test_losses_are_those_written_out(target):
    """E23 of the same draws, in plain lines: h of y + left, with y of the network's own noise."""
    network = joint(target)
    simple, of_head = (loss.detach() for loss in both(network))
    x_0, stream = to_float(Images().images[:6]), generator(5, "joint")
    n = torch.from_numpy(stream.integers(1, 101, size=6))
    eps = normal(stream, 6, 1, 8, 8)
    r = torch.from_numpy(stream.integers(0, 2, eps.shape, dtype=np.int8)).float() * 2 - 1
    levels = SCHEDULE.alpha[n.numpy()], SCHEDULE.sigma[n.numpy()]
    alpha, sigma = (torch.from_numpy(level).float()[:, None, None, None] for level in levels)
    x_t = (alpha * x_0 + sigma * eps).requires_grad_()
    eps_hat = network.trunk(x_t, n - 1.0).sample
    (product,) = torch.autograd.grad((eps_hat * r).sum(), x_t, retain_graph=True)
    h = network(x_t, n - 1.0, n / 100).raw
    learnt = {"npr": (eps - eps_hat) ** 2, "sn": eps**2, "ocm": -sigma * r * product}[target]
    assert float(simple) == pytest.approx(float(((eps - eps_hat) ** 2).mean().detach()), rel=1e-5)
    assert float(of_head) == pytest.approx(float(((h - learnt) ** 2).mean().detach()), rel=1e-5)
    plain = simple_loss(network.trunk, x_0, SCHEDULE, generator(5, "joint"))
    assert torch.equal(simple, plain)
    assert float(joint_loss(0.5, simple, of_head)) == pytest.approx(float(simple) + 0.5 * float(of_head))


@pytest.mark.parametrize("target", TARGETS)
def test_the_heads_loss_has_no_gradient_through_the_mean(target):
    """Its gradient reaches the trunk through the features alone: none where they are detached, and none at the layers
    behind them, whose output is the mean."""
    for gradient in (True, False):
        network = joint(target, gradient)
        both(network)[1].backward()
        assert all(p.grad is not None and bool((p.grad != 0).any()) for p in network.head.out.parameters())
        behind = {*network.trunk.conv_norm_out.parameters(), *network.trunk.conv_out.parameters()}
        reached = [p for p in network.trunk.parameters() if p.grad is not None and bool((p.grad != 0).any())]
        assert bool(reached) is gradient
        assert not behind & {*reached}


def test_parts_of_a_batch_add_up():
    network = joint("ocm")
    whole = both(network)
    parts = [both(network, share=slice(start, start + 3)) for start in (0, 3)]
    for k in (0, 1):
        assert whole[k].item() == pytest.approx(sum(part[k].item() for part in parts) / 2, rel=1e-5)


def test_a_head_without_gradient_leaves_the_network_as_it_is_alone():
    alone = train()
    beside = train(head="npr", head_gradient=False, head_weight=50.0)
    assert torch.equal(weights(alone), weights(beside))
    assert [row[:2] for row in alone.curve] == [row[:2] for row in beside.curve]
    assert alone.head is None
    assert alone.head_curve == []
    assert not torch.equal(weights(alone), weights(train(head="npr", head_weight=50.0)))


@pytest.mark.parametrize("settings", [{"head": "npr"}, {"head": "ocm", "head_kind": "residual"}])
def test_stopped_and_resumed_is_uninterrupted(settings, tmp_path, monkeypatch):
    whole, path = train(**settings), tmp_path / "training.partial"
    step, calls = training._Run.step, []

    def stop_at_seven(self):
        calls.append(1)
        if len(calls) == 7:
            raise Stop
        step(self)

    monkeypatch.setattr(training._Run, "step", stop_at_seven)
    with pytest.raises(Stop):
        train(checkpoint=path, **settings)
    resumed = train(checkpoint=path, **settings)
    assert len(calls) == 7 + 3
    assert torch.equal(weights(whole), weights(resumed))
    assert torch.equal(head_weights(whole), head_weights(resumed))
    assert [row[:2] for row in whole.head_curve] == [row[:2] for row in resumed.head_curve]
    assert [step for step, *_ in whole.head_curve] == [4, 8, 9]
    with pytest.raises(InputError, match="belongs to another run"):
        train(checkpoint=path)
    with pytest.raises(InputError, match=r"belongs to another run \(different .*head_weight"):
        train(checkpoint=path, **settings, head_weight=2.0)


def test_a_run_leaves_the_global_generator_alone():
    state = torch.get_rng_state()
    train(head="sn", steps=2)
    assert torch.equal(torch.get_rng_state(), state)


def test_both_losses_fall_and_the_head_belongs_to_the_network_that_came_out(tmp_path):
    network = small_unet(dropout=0.0)
    images = (to_float(Images().images) * 0.1).clamp(-1, 1)
    result = train(images, network=network, head="npr", head_kind="residual", steps=60, evaluate_every=20,
                   batch_size=16, learning_rate=5e-3)  # fmt: skip
    for curve in (result.curve, result.head_curve):
        losses = [row[1] for row in curve]
        assert losses[0] > losses[1] > losses[2]
    model = dv.Denoiser(result.network, SCHEDULE, shape=(1, 8, 8), clip=(-1.0, 1.0))
    table = dv.estimate(model, images, 0.2, indices=[1, 50, 100], structures=["isotropic"], progress=False)
    dv.Head(result.head, table, dv.HeadSpec("npr", "residual", output="papers")).save(tmp_path / "head.safetensors")
    head = dv.Head.load(tmp_path / "head.safetensors")
    kernel = dv.ReverseKernel(SCHEDULE, 50, 20)
    head.check(model, [kernel])
    variance = head(head.prepare(model)(torch.zeros(2, 1, 8, 8), 50), kernel).variance
    assert bool((variance >= kernel.lambda2 * (1 - 1e-6)).all())
    other = dv.Denoiser(small_unet(dropout=0.0), SCHEDULE, shape=(1, 8, 8), clip=(-1.0, 1.0))
    with pytest.raises(InputError, match=r"trained on another model .*network fingerprint"):
        head.check(other, [kernel])


class Linear(torch.nn.Module):
    """ε̂ = w(timestep) x_t, with a one and the level as features beside it."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(100))
        self.last = torch.nn.Identity()

    def forward(self, x_t, timestep):
        where = (timestep / 50 - 1)[:, None, None, None].expand_as(x_t)
        self.last(torch.cat([where**k for k in range(4)] + [x_t], 1))
        return type("Out", (), {"sample": self.weight[timestep.long()][:, None, None, None] * x_t})


@pytest.mark.slow
def test_a_joint_head_approaches_the_error_of_the_best_mean():
    """Data N(0, s²): the best w is σ/(α² s² + σ²), and then E(ε − ε̂)² = α² s²/(α² s² + σ²), one number an index."""
    s2 = 0.25
    images = s2**0.5 * torch.from_numpy(generator(1, "data").standard_normal((4000, 1, 4, 4))).float()
    settings = UNetTraining(
        steps=300, learning_rate=4e-2, weight_decay=0.0, warmup_steps=10, ema_decay=0.98, evaluate_every=300,
        head="npr", head_kind="residual", head_features="last",
    )  # fmt: skip
    result = train_unet(Linear(), images, SCHEDULE, settings, progress=False)
    n = torch.tensor([5, 20, 40, 60, 80])
    alpha, sigma = SCHEDULE.coefficients(n, images[:5])
    network = JointNetwork(result.network, "npr", "residual", (1, 4, 4), 0, "last")
    network.head = result.head
    with torch.no_grad():
        x_t = (alpha**2 * s2 + sigma**2).sqrt() * torch.from_numpy(generator(2, "x").standard_normal((5, 1, 4, 4)))
        said = network(x_t.float(), n - 1.0, n / 100).raw.mean((1, 2, 3))
    truth = (alpha**2 * s2 / (alpha**2 * s2 + sigma**2)).flatten()
    best = sigma.flatten() / (alpha**2 * s2 + sigma**2).flatten()
    assert float((result.network.weight.detach()[n - 1] - best).abs().max()) < 0.05
    assert float((said - truth).abs().max()) < 0.05
    assert float(truth.max() - truth.min()) > 0.5


def test_what_cannot_be_trained_together():
    with pytest.raises(InputError, match="learned_range and head are two covariances"):
        UNetTraining(steps=1, head="npr", learned_range=True)
    with pytest.raises(InputError, match="head='factor' is not known; use one of npr, sn, ocm"):
        UNetTraining(steps=1, head="factor")
    with pytest.raises(InputError, match="head_kind='large' is not known"):
        UNetTraining(steps=1, head="npr", head_kind="large")
    with pytest.raises(InputError, match="head_weight"):
        UNetTraining(steps=1, head="npr", head_weight=0.0)
    with pytest.raises(InputError, match=r"features of Linear cannot be found: .*\(features=\), .* last"):
        train_unet(Linear(), Images(), SCHEDULE, UNetTraining(steps=1, head="npr"), progress=False)
