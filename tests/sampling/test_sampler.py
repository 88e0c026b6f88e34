"""What a sampler promises: images that depend on (seed, image index) alone, a capped last noise, and clear refusals."""

import math

import numpy as np
import pytest
import torch

import diffusion_var as dv
from diffusion_var.covariance.reverse import ReverseCovariance, StructuredCovariance, noise_cap_variance
from diffusion_var.process.structure import make_structure
from diffusion_var.randomness import generator
from diffusion_var.sampling.noise import ImageNoise

N, SHAPE = 100, (3, 4, 4)
SCHEDULE = dv.NoiseSchedule.linear(N)


def network(x_t, timestep):
    return torch.tanh(1.4 * x_t) * (0.7 + 0.003 * timestep[:, None, None, None]) + 0.1 * x_t.flip(-1)


def denoiser(net=network, **options):
    return dv.Denoiser(net, SCHEDULE, **{"shape": SHAPE, **options})


@pytest.fixture(scope="module")
def table():
    images = np.tanh(generator(1, "images").normal(size=(50, *SHAPE)))
    return dv.estimate(denoiser(), images, 1e3, indices=range(1, 101, 3), progress=False)


class PerImage(ReverseCovariance):
    """A state-dependent covariance: one variance per image, from its own posterior."""

    depends_on_image = True
    name = "per-image"

    def __call__(self, posterior, kernel):
        variance = 0.1 * posterior.mean.square().mean((1, 2, 3), keepdim=True)
        return StructuredCovariance(make_structure("isotropic", SHAPE), variance)


def covariances(table):
    return [dv.FixedSmall(), dv.FixedLarge(), *(dv.Analytic(table, structure=s) for s in table.structures), PerImage()]


# ---- one image, one stream ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("which", range(7))
def test_image_i_depends_on_seed_and_i_alone(table, which):
    covariance = covariances(table)[which]
    sampler = dv.Sampler(denoiser(), covariance, [1, 10, 40, 79, 100], 1.0, final_noise_cap=1.0)
    images = sampler.sample(10, seed=3, batch_size=10)
    assert images.shape == (10, *SHAPE)
    assert images.dtype == torch.float32
    for batch_size in (1, 3, 7, 64):
        assert float((sampler.sample(10, seed=3, batch_size=batch_size) - images).abs().max()) <= 1e-5
    for part in (range(4, 9), [9, 2, 2], range(0, 10, 3)):
        found = torch.cat(list(sampler.stream(part, seed=3, batch_size=2)))
        assert float((found - images[list(part)]).abs().max()) <= 1e-5
    # images and seeds differ from one another
    pairs = torch.cdist(images.flatten(1), images.flatten(1)) + 10 * torch.eye(10)
    assert float(pairs.min()) > 0.1
    assert float((sampler.sample(10, seed=4, batch_size=10) - images).abs().amax((1, 2, 3)).min()) > 0.05


def test_more_steps_than_a_block_of_noise(table):
    sampler = dv.Sampler(denoiser(), dv.FixedLarge(), 60, 1.0)
    images = sampler.sample(5, seed=1, batch_size=5)
    assert float((sampler.sample(5, seed=1, batch_size=2) - images).abs().max()) <= 1e-5


def test_noise_is_normal_and_never_repeats():
    noise = ImageNoise(0, range(50), SHAPE, torch.device("cpu"))
    drawn = torch.stack([noise.prior(), *(noise.next().clone() for _ in range(40))]).flatten(2)
    assert drawn.mean().abs() < 4 / math.sqrt(drawn.numel())
    assert abs(float(drawn.var()) - 1) < 4 * math.sqrt(2 / drawn.numel())
    assert len(torch.unique(drawn[:, :, 0])) == 41 * 50
    correlation = torch.corrcoef(drawn.reshape(41, -1)) - torch.eye(41)
    assert float(correlation.abs().max()) < 5 / math.sqrt(50 * 48)
    assert torch.equal(noise.prior().flatten(1), drawn[0])
    # Drawn 8 steps at a time: this order is what a seed means, and must not change from version to version.
    streams = [generator(0, "sampler noise", 7, block) for block in range(5)]
    blocks = np.concatenate([stream.standard_normal((8, *SHAPE), dtype=np.float32) for stream in streams])
    assert np.array_equal(blocks[:40].reshape(40, -1), drawn[1:, 7].numpy())
    again = ImageNoise(0, [7], SHAPE, torch.device("cpu"))
    for k in range(1, 41):
        assert torch.equal(again.next()[0].flatten(), drawn[k, 7])


def test_stream_works_in_batches_and_yields_ordinary_tensors():
    sampler = dv.Sampler(denoiser(), dv.FixedSmall(), 4)
    batches = list(sampler.stream(range(100, 107), batch_size=3))
    assert [len(b) for b in batches] == [3, 3, 1]
    for batch in batches:
        batch.add_(1.0)  # not an inference tensor
        batch.requires_grad_().square().sum().backward()
        assert torch.equal(batch.grad, 2 * batch.detach())


def test_stream_is_lazy():
    calls = []
    sampler = dv.Sampler(denoiser(lambda x, t: calls.append(len(x)) or x), dv.FixedSmall(), 4)
    stream = sampler.stream(range(10**9), batch_size=2)
    assert calls == []
    next(stream)
    assert calls == [2] * 4


def test_no_global_random_numbers_are_read_or_written():
    sampler = dv.Sampler(denoiser(), dv.FixedLarge(), 5)
    np.random.seed(0)  # noqa: NPY002 (the global generator is what is tested)
    torch.manual_seed(0)
    before = np.random.get_state()[1].copy(), torch.get_rng_state()  # noqa: NPY002
    images = sampler.sample(3, seed=1)
    assert np.array_equal(before[0], np.random.get_state()[1])  # noqa: NPY002
    assert torch.equal(before[1], torch.get_rng_state())
    torch.manual_seed(1)
    assert torch.equal(sampler.sample(3, seed=1), images)


def test_images_lie_in_the_data_range():
    wild = denoiser(lambda x, t: 3 * x.flip(-1), clip=None, data_range=(-0.5, 2.0))
    images = dv.Sampler(wild, dv.FixedLarge(), 5).sample(4)
    assert (float(images.min()), float(images.max())) == (-0.5, 2.0)
    unbounded = dv.Sampler(denoiser(lambda x, t: 3 * x.flip(-1), clip=None), dv.FixedLarge(), 5).sample(4)
    assert float(unbounded.max()) > 2.0


def test_conditions_go_with_their_image():
    def told(x_t, timestep, condition):
        return condition[:, None, None, None].to(x_t.dtype).expand_as(x_t)

    sampler = dv.Sampler(denoiser(told, prediction="sample"), dv.FixedSmall(), 3)
    wanted = torch.linspace(-0.9, 0.9, 7)
    images = sampler.sample(7, batch_size=3, conditions=wanted)
    assert float((images - wanted[:, None, None, None]).abs().max()) < 1e-6
    with pytest.raises(dv.InputError, match="conditions has 7 entries for 6 images"):
        sampler.sample(6, conditions=wanted)


# ---- the last steps -----------------------------------------------------------------------------------------------


def test_one_step_is_the_mean_at_the_noisiest_index():
    model = denoiser()
    images = dv.Sampler(model, dv.FixedLarge(), 1).sample(4, seed=2)
    prior = ImageNoise(2, range(4), SHAPE, torch.device("cpu")).prior()
    assert torch.equal(images, model(prior, N).mean)
    edm = dv.NoiseSchedule(np.ones(4), np.array([0.0, 0.1, 1.0, 20.0]), np.arange(4.0))
    model = dv.Denoiser(lambda x, t: 0.9 * x / 20, edm, shape=SHAPE, clip=None)
    images = dv.Sampler(model, dv.FixedLarge(), 1).sample(4, seed=2)
    assert float((images - 20 * prior * 0.1).abs().max()) < 1e-5


@pytest.mark.parametrize("cap", [None, 1.0, 2.0])
@pytest.mark.parametrize("steps", [[1, 100], [1, 34, 100], [13, 34, 67, 100]])
def test_the_cap_acts_at_the_smallest_s_alone_and_the_last_step_adds_nothing(steps, cap):
    """The whole loop written out, for a network whose mean is x_t itself."""
    model = denoiser(lambda x, t: x, prediction="sample", clip=None, data_range=(-1.0, 1.0))
    sampler = dv.Sampler(model, dv.FixedLarge(), steps, 1.0, final_noise_cap=cap)
    noise = ImageNoise(7, range(6), SHAPE, torch.device("cpu"))
    x, acted = noise.prior(), []
    for t, s in zip(steps[:0:-1], steps[-2::-1], strict=True):
        kernel = dv.ReverseKernel(SCHEDULE, t, s)
        variance = kernel.beta
        if cap is not None and s == steps[0]:
            variance = min(variance, {1.0: 9.66272250239075e-05, 2.0: 0.00038650890009563}[cap])
        acted.append(variance != kernel.beta)
        x = kernel.gain * x + kernel.eps_gain / kernel.sigma_t * x + math.sqrt(variance) * noise.next()
    assert acted == [False] * (len(acted) - 1) + [cap is not None]
    assert float((sampler.sample(6, seed=7) - x.clamp(-1, 1)).abs().max()) < 1e-5


@pytest.mark.parametrize("capped_steps", [1, 2, 3])
def test_several_last_noises_are_capped(capped_steps):
    """As the published codes have it: where s ≤ ns[k − 1] of the indices ns, ascending; k is their `clip_sigma_idx`."""
    ns, limit = [3, 13, 34, 67, 100], noise_cap_variance(2.0, (-1.0, 1.0))
    model = denoiser(lambda x, t: x, prediction="sample", clip=None, data_range=(-1.0, 1.0))
    sampler = dv.Sampler(model, dv.FixedLarge(), ns, final_noise_cap=2.0, capped_steps=capped_steps)
    noise = ImageNoise(7, range(6), SHAPE, torch.device("cpu"))
    x, acted = noise.prior(), 0
    for t, s in zip(ns[:0:-1], ns[-2::-1], strict=True):
        kernel = dv.ReverseKernel(SCHEDULE, t, s)
        variance = min(kernel.beta, limit) if s <= ns[capped_steps - 1] else kernel.beta
        acted += variance < kernel.beta
        x = kernel.gain * x + kernel.eps_gain / kernel.sigma_t * x + math.sqrt(variance) * noise.next()
    assert acted == capped_steps
    assert float((sampler.sample(6, seed=7) - x.clamp(-1, 1)).abs().max()) < 1e-5


def test_the_cap_in_numbers():
    assert noise_cap_variance(1.0, (-1.0, 1.0)) == pytest.approx(9.66272250239075e-05, rel=1e-12)
    assert noise_cap_variance(2.0, (-1.0, 1.0)) == pytest.approx(0.00038650890009563, rel=1e-12)
    assert noise_cap_variance(2.0, (0.0, 1.0)) == pytest.approx(0.00038650890009563 / 4, rel=1e-12)
    # E|noise| is y/255 of the range
    noise = generator(1, "cap").normal(size=400_000) * math.sqrt(noise_cap_variance(2.0, (-3.0, 3.0)))
    assert np.abs(noise).mean() == pytest.approx(2 / 255 * 6, rel=0.01)


def test_the_cap_bounds_every_direction_of_a_structure(table):
    sampler = dv.Sampler(denoiser(), dv.Analytic(table, structure="dct"), [10, 40, 100], final_noise_cap=1.0)
    model, limit = sampler.denoiser, noise_cap_variance(1.0, (-1.0, 1.0))
    posterior = model(torch.zeros(1, *SHAPE), 40)
    for k, bounded in ((0, False), (1, True)):
        free = sampler.covariance(posterior, sampler.kernels[k]).variance
        assert float(free.max()) > limit
        found = sampler._covariances.at(posterior, sampler.kernels[k]).variance
        assert torch.equal(found, free.clamp(max=limit) if bounded else free)


def test_eta_zero_with_no_covariance_draws_only_the_prior():
    images = dv.Sampler(denoiser(), dv.FixedSmall(), 10, 0.0).sample(2, seed=1)
    model, x = denoiser(), ImageNoise(1, range(2), SHAPE, torch.device("cpu")).prior()
    for kernel in dv.Sampler(model, dv.FixedSmall(), 10, 0.0).kernels:
        x = kernel.mean(x, model(x, kernel.t))
    assert torch.equal(images, x.clamp(-1, 1))


# ---- faults and refusals ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("clip", [(-1.0, 1.0), None])
def test_nan_names_the_index_and_the_images(bad, clip):
    calls = []

    def sick(x_t, timestep):
        calls.append(int(timestep[0]) + 1)
        out = network(x_t, timestep)
        if len(calls) == 5 + 3:  # second batch, third step
            out[1, 2, 3, 0] = bad
        return out

    stream = dv.Sampler(denoiser(sick, clip=clip), dv.FixedSmall(), [1, 20, 50, 70, 100]).stream(range(30, 40), 0, 4)
    assert torch.isfinite(next(stream)).all()
    with pytest.raises(dv.NumericalError, match="at index n=50, in the batch of images 34 to 37;"):
        next(stream)


def test_bf16_autocast_runs_and_is_close():
    class Network(torch.nn.Module):
        def __init__(self):
            super().__init__()
            stream = torch.Generator().manual_seed(1)
            self.weight = torch.nn.Parameter(0.2 * torch.randn(3, 3, 3, 3, generator=stream))
            self.seen = set()

        def forward(self, x_t, timestep):
            out = torch.nn.functional.conv2d(torch.tanh(x_t), self.weight, padding=1)
            self.seen.add(out.dtype)
            return out

    net = Network()
    images = []
    for autocast in (None, torch.bfloat16):
        net.seen.clear()
        sampler = dv.Sampler(denoiser(net, autocast=autocast), dv.FixedSmall(), 10)
        images.append(sampler.sample(6, seed=1))
        assert net.seen == {autocast or torch.float32}
    assert images[1].dtype == torch.float32
    gap = float((images[0] - images[1]).abs().max())
    assert 1e-5 < gap < 0.1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": 0}, "steps=0 is not a usable number of steps; expected an integer from 1 to 100"),
        ({"steps": 101}, "steps=101 is not a usable"),
        ({"steps": []}, "the step list is empty"),
        ({"steps": [1, 5, 5, 9]}, "must rise strictly"),
        ({"steps": [9, 5, 1]}, "must rise strictly"),
        ({"steps": [0, 5]}, "other than integers from 1 to 100"),
        ({"steps": [1, 101]}, "other than integers from 1 to 100"),
        ({"steps": [1, 2.5]}, "other than integers"),
        ({"steps": "linspace"}, "step.*linspace|step list"),
        ({"steps": 2.5}, "steps=2.5 is neither"),
        ({"eta": -0.1}, r"eta=-0.1 is outside \[0, 1\]"),
        ({"eta": 1.1}, r"eta=1.1 is outside \[0, 1\]"),
        ({"eta": float("nan")}, "eta=nan is outside"),
        ({"clipped_eps": "both"}, "clipped_eps='both' is not known"),
        ({"covariance": dv.FixedLarge(), "eta": 0.5}, "eta=1 only, but eta=0.5"),
        ({"final_noise_cap": 0.0}, "final_noise_cap=0.0 must be a positive number"),
        ({"final_noise_cap": -1.0}, "final_noise_cap=-1.0 must be"),
        ({"final_noise_cap": float("nan")}, "final_noise_cap=nan must be"),
        ({"denoiser": denoiser(clip=None), "final_noise_cap": 1.0}, "final_noise_cap needs a data range"),
        ({"capped_steps": 2}, "capped_steps=2 has no meaning without a cap; give one as final_noise_cap"),
        ({"capped_steps": 0}, "capped_steps=0 must be a whole number of at least 1"),
        (
            {"capped_steps": 5, "final_noise_cap": 1.0},
            "caps of more steps than there are: of 5 steps 4 add noise .the last goes to clean data.; cap at most",
        ),
    ],
)
def test_impossible_requests_are_refused(options, message):
    with pytest.raises(dv.InputError, match=message):
        dv.Sampler(**{"denoiser": denoiser(), "covariance": dv.FixedSmall(), "steps": 5, **options})


def test_bad_counts_are_refused():
    sampler = dv.Sampler(denoiser(), dv.FixedSmall(), 2)
    with pytest.raises(dv.InputError, match="the number of images is 0"):
        sampler.sample(0)
    with pytest.raises(dv.InputError, match="batch_size=0"):
        sampler.sample(3, batch_size=0)


def test_a_table_that_does_not_fit_is_refused(table):
    analytic = dv.Analytic(table)
    dv.Sampler(denoiser(), analytic, [1, 50, 100])
    other = dv.Denoiser(network, dv.NoiseSchedule.cosine(N), shape=SHAPE)
    with pytest.raises(dv.InputError, match="another model \\(schedule"):
        dv.Sampler(other, analytic, [1, 50, 100])
    with pytest.raises(dv.InputError, match="another model \\(clipping"):
        dv.Sampler(denoiser(clip=None), analytic, [1, 50, 100])
    narrow = np.tanh(generator(1, "images").normal(size=(50, *SHAPE)))
    narrow = dv.estimate(denoiser(), narrow, 1e3, indices=[20, 80], progress=False)
    with pytest.raises(dv.InputError, match="index 100 is outside the measured indices 20 to 80"):
        dv.Sampler(denoiser(), dv.Analytic(narrow), [1, 50, 100])
    # the last step needs no covariance, so the smallest index need not be measured
    dv.Sampler(denoiser(), dv.Analytic(narrow), [1, 50, 80], low_start=True).sample(1)


def test_fixed_large_is_refused_for_other_eta_even_where_no_noise_is_added():
    with pytest.raises(dv.InputError, match="eta=1"):
        dv.Sampler(denoiser(), dv.FixedLarge(), 1, eta=0.5)


# ---- noise levels off the grid, other noise, other conditions ------------------------------------------------------


@pytest.mark.parametrize("which", range(7))
def test_the_levels_of_indices_give_the_indices_images_to_the_bit(table, which):
    indices, covariance = [1, 10, 40, 79, 100], covariances(table)[which]
    levels = [SCHEDULE.level(n) for n in indices[::-1]]
    images = dv.Sampler(denoiser(), covariance, indices, 1.0, 1.0).sample(5, seed=3)
    assert torch.equal(dv.Sampler(denoiser(), covariance, levels, 1.0, 1.0).sample(5, seed=3), images)
    with_end = [*levels, dv.NoiseLevel.clean()]  # as lists of σ end
    assert torch.equal(dv.Sampler(denoiser(), covariance, with_end, 1.0, 1.0).sample(5, seed=3), images)


def test_levels_between_indices_are_told_to_the_network(table):
    told = []

    def spy(x_t, timestep):
        told.append(float(timestep[0]))
        return network(x_t, timestep)

    levels = dv.steps.sigmas(SCHEDULE, [0.7, 0.35, 0.1, 0.03])
    sampler = dv.Sampler(denoiser(spy), dv.Analytic(table, structure="dct"), levels, low_start=True)
    images = sampler.sample(3, seed=1)
    assert told == pytest.approx([level.timestep for level in levels], rel=1e-6)
    assert not any(t.is_integer() for t in told)
    assert sampler.steps == levels
    assert torch.isfinite(images).all()
    assert float((images - sampler.sample(3, seed=1, batch_size=2)).abs().max()) < 1e-5


def test_tau_one_and_zero_are_ddpm_and_ddim(table):
    for covariance in (dv.FixedSmall(), dv.Analytic(table, structure="pixel")):
        for tau, eta in ((1.0, 1.0), (0.0, 0.0)):
            mine, theirs = (dv.Sampler(denoiser(), covariance, 6, **n).sample(4) for n in ({"tau": tau}, {"eta": eta}))
            assert float((mine - theirs).abs().max()) < 1e-5
    more = dv.Sampler(denoiser(), dv.FixedSmall(), 6, tau=2.0)
    assert (more.eta, more.tau) == (None, 2.0)
    assert float((more.sample(4) - dv.Sampler(denoiser(), dv.FixedSmall(), 6).sample(4)).abs().max()) > 1e-2


def test_a_nest_of_conditions_goes_with_its_image():
    def told(x_t, timestep, condition):
        return (condition["value"] + condition["rest"][0].sum(1))[:, None, None, None].expand_as(x_t)

    sampler = dv.Sampler(denoiser(told, prediction="sample"), dv.FixedSmall(), 3)
    value, rest = torch.linspace(-0.5, 0.5, 7), torch.linspace(-0.2, 0.2, 14).view(7, 2)
    wanted = value + rest.sum(1)
    images = sampler.sample(7, batch_size=3, conditions={"value": value, "rest": (rest,)})
    assert float((images - wanted[:, None, None, None]).abs().max()) < 1e-6
    with pytest.raises(dv.InputError, match=r"conditions\['rest'\]\[0\] has shape \(6, 2\) for 7 conditions"):
        sampler.sample(7, conditions={"value": value, "rest": (rest[:6],)})
    with pytest.raises(dv.InputError, match="conditions has 7 entries for 5 images"):
        sampler.sample(5, conditions={"value": value, "rest": (rest,)})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": dv.steps.sigmas(SCHEDULE, [0.5, 0.1])[::-1]}, "noise levels must fall"),
        ({"steps": [dv.NoiseLevel.flow(0.9), 3]}, "a noise level must be a dv.NoiseLevel"),
        ({"eta": 0.5, "tau": 1.0}, "eta=0.5 and tau=1.0 both say"),
        ({"tau": -1.0}, "tau=-1.0 must be at least 0"),
        ({"tau": math.nan}, "tau=nan must be at least 0"),
        ({"covariance": dv.FixedLarge(), "tau": 2.0}, "eta=1 only, but tau=2"),
    ],
)
def test_impossible_levels_and_noise_are_refused(options, message):
    with pytest.raises(dv.InputError, match=message):
        dv.Sampler(**{"denoiser": denoiser(), "covariance": dv.FixedSmall(), "steps": 5, **options})


def test_levels_outside_the_tables_range_are_found_at_once(table):
    levels = [SCHEDULE.level(100), dv.NoiseLevel(0.99999, 0.004, 0.0), dv.NoiseLevel(0.999999, 0.001, 0.0)]
    with pytest.raises(dv.InputError, match=r"log SNR 11\.\d+ is outside the measured range .* to 9\.2"):
        dv.Sampler(denoiser(), dv.Analytic(table), levels)


@pytest.mark.parametrize(
    "schedule", [dv.NoiseSchedule.edm(20), dv.NoiseSchedule.flow(20), SCHEDULE], ids=["edm", "flow", "vp"]
)
def test_a_run_that_begins_lower_begins_with_noise_of_that_level(schedule):
    """As wide as x_n is, in the units of x_N's prior: σ_n of EDM, 1 of variance-preserving schedules."""
    seen = []

    def spy(x_t, timestep):
        seen.append(x_t.clone())
        return torch.zeros_like(x_t)

    model = dv.Denoiser(spy, schedule, "sample", SHAPE, clip=None)
    prior = ImageNoise(2, range(3), SHAPE, torch.device("cpu")).prior()
    widths = np.hypot(schedule.alpha, schedule.sigma)
    for n in (schedule.num_steps, schedule.num_steps // 2):
        for steps in ([1, n], [schedule.level(n), schedule.level(1)]):
            seen.clear()
            dv.Sampler(model, dv.FixedSmall(), steps, low_start=True).sample(3, seed=2)
            expected = schedule.prior_std * widths[n] / widths[-1]
            torch.testing.assert_close(seen[0], float(expected) * prior, rtol=1e-6, atol=1e-6)


# ---- where it begins ----------------------------------------------------------------------------------------------

USUAL = {
    "linear": dv.NoiseSchedule.linear(),
    "cosine": dv.NoiseSchedule.cosine(),
    "scaled linear": dv.NoiseSchedule.scaled_linear(),
    "zero terminal SNR": dv.NoiseSchedule.scaled_linear().with_zero_terminal_snr(),
    "VP-SDE": dv.NoiseSchedule.vp_sde(),
    "flow": dv.NoiseSchedule.flow(),
    "shifted flow": dv.NoiseSchedule.flow(shift=3.0),
    "EDM": dv.NoiseSchedule.edm(),
    "short": dv.NoiseSchedule.linear(20),
}


def halved(x_t, timestep):
    return 0.5 * x_t


@pytest.mark.parametrize("name", USUAL)
def test_usual_steps_begin_without_a_warning(name):
    schedule = USUAL[name]
    model = dv.Denoiser(halved, schedule, "sample", (1, 2, 2))
    lists = [dv.steps.linspace, dv.steps.trailing, dv.steps.log_snr, dv.steps.karras]
    if name != "short":  # by its end there is not so much noise that a step could be spared
        lists += [dv.steps.leading, dv.steps.quadratic]
    for make in lists:
        for count in (5, 10, 19):
            assert torch.isfinite(dv.Sampler(model, dv.FixedLarge(), make(schedule, count)).sample(1)).all()


@pytest.mark.parametrize("name", [name for name in USUAL if name != "short"])
def test_pure_noise_where_there_is_signal_is_warned_of_unless_it_is_meant(name):
    schedule = USUAL[name]
    model = dv.Denoiser(halved, schedule, "sample", (1, 2, 2))
    low = int(np.flatnonzero(schedule.log_snr[1:] < np.log(0.3)).min())  # the last index with more than that
    for steps in (list(range(1, low + 1)), [low], [schedule.level_at(np.log(0.5))], dv.steps.sigmas(schedule, [1.2])):
        sampler = dv.Sampler(model, dv.FixedLarge(), steps)
        with pytest.warns(dv.DiffusionVarWarning, match="begins with pure noise at .*, where x_t still is") as caught:
            sampler.sample(1)
        assert [warning.filename for warning in caught] == [__file__]
        with pytest.warns(dv.DiffusionVarWarning, match="begins with pure noise"):
            sampler.stream(range(3))
        dv.Sampler(model, dv.FixedLarge(), steps, low_start=True).sample(1)
