"""A head as a reverse covariance: sampling, likelihoods, what is made safe, and its file."""

import json
import warnings

import pytest
import torch
from safetensors import safe_open
from signed import contents, sign
from small_heads import SHAPE, denoiser, head, images, table

import diffusion_var as dv
from diffusion_var.errors import DiffusionVarWarning
from diffusion_var.models.heads import first_groups_of

CLIPS = [True, False]
#: Which structure's variances each kind of head multiplies.
KINDS = [
    ("isotropic", {}),
    ("dct", {"target": "factor", "structure": "dct"}),
    ("pixel", {"target": "factor", "structure": "pixel"}),
    ("dct", {"target": "bands", "bands": 5}),
]


def sample(covariance, clipped=True, **options):
    return dv.Sampler(denoiser((-1.0, 1.0) if clipped else None), covariance, **{"steps": 4, **options}).sample(
        5, seed=2
    )


@pytest.mark.parametrize("clipped", CLIPS)
@pytest.mark.parametrize(("eta", "cap"), [(1.0, None), (0.5, None), (0.0, 1.0)])
@pytest.mark.parametrize(("structure", "spec"), KINDS)
def test_an_untrained_head_is_the_tables_covariance(structure, spec, eta, cap, clipped):
    mine = sample(head(clipped=clipped, **spec), clipped, eta=eta, final_noise_cap=cap)
    analytic = dv.Analytic(table(clipped), structure=structure)
    theirs = sample(analytic, clipped, eta=eta, final_noise_cap=cap)
    # softplus(log(e − 1)) is 1 but for float32's rounding, which small α_t magnify
    assert float((mine - theirs).abs().max()) < 2e-5


@pytest.mark.parametrize(("structure", "spec"), [KINDS[0], KINDS[1], KINDS[3]])
def test_its_likelihood_is_too(structure, spec):
    analytic = dv.Analytic(table(), structure=structure)
    mine, theirs = (dv.bits_per_dim(denoiser(), c, images(6), steps=4) for c in (head(**spec), analytic))
    assert abs(float(mine) - float(theirs)) < 1e-6
    costs = [dv.step_costs(denoiser(), c, images(6), indices=[1, 5, 20, 50]).values for c in (head(**spec), analytic)]
    finite = costs[1] < float("inf")
    assert float(abs(costs[0][finite] - costs[1][finite]).max()) < 1e-5


def test_a_callers_autocast_does_not_reach_a_head():
    made = head(scale=0.3)
    x_t = torch.randn(2, *SHAPE, generator=torch.Generator().manual_seed(0))
    posterior = made.prepare(denoiser())(x_t, 20)
    expected = made.ratio(posterior, 20)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(made.ratio(posterior, 20), expected)


def test_a_trained_head_depends_on_the_image_and_not_on_the_batch():
    made = head(scale=0.3)
    model = made.prepare(denoiser())
    posterior = model(images(6).float() / 127.5 - 1, 20)
    kernel = dv.ReverseKernel(model.schedule, 20, 5)
    variance = made(posterior, kernel).variance
    assert variance.shape == (6, *SHAPE)
    assert float(variance.std(dim=0).max()) > 1e-3 * float(variance.mean())
    assert float((made(posterior.rows(slice(2, 4)), kernel).variance - variance[2:4]).abs().max()) < 1e-6
    sampler = dv.Sampler(denoiser(), made, 4)
    assert float((sampler.sample(5, batch_size=2) - sampler.sample(5, batch_size=5)).abs().max()) < 1e-5


def spoilt(value, monkeypatch):
    made = head()
    ratio = made.ratio

    def some(posterior, n):
        out = ratio(posterior, n)
        out[0, 0, 0, :3] = value
        return out

    monkeypatch.setattr(made, "ratio", some)
    return made


@pytest.mark.parametrize(("value", "nonfinite", "negative"), [(float("nan"), 9, 0), (float("inf"), 9, 0), (-2.0, 0, 9)])
def test_unusable_variances_are_clamped_counted_and_reported_once(value, nonfinite, negative, monkeypatch):
    made = spoilt(value, monkeypatch)  # 3 elements of one image at each of 3 steps to s > 0
    with pytest.warns(DiffusionVarWarning, match=f"{nonfinite} were not finite .* and {negative} negative"):
        found = sample(made)
    assert vars(made.clamped) == {"nonfinite": nonfinite, "negative": negative, "total": 3 * 5 * 64}
    replaced = spoilt(1.0 if negative == 0 else 0.0, monkeypatch)
    assert torch.equal(found, sample(replaced))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        made.report()  # nothing new


def test_what_other_processes_mended_is_reported_with_ones_own(monkeypatch):
    made, other = spoilt(-2.0, monkeypatch), spoilt(-2.0, monkeypatch)
    posterior = denoiser().with_features()(torch.zeros(2, 1, 8, 8), 50)
    for each in (made, other):
        each(posterior, dv.ReverseKernel(denoiser().schedule, 50, 10))
    assert other.counts() == [0, 3, 2 * 64]
    made.add_counts(other.counts())
    with pytest.warns(DiffusionVarWarning, match="of 256 variances of the head .* and 6 negative"):
        made.report()
    assert made.counts() == [0, 0, 0]


# ---- the file ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("spec", [{}, {"kind": "residual"}, KINDS[1][1], KINDS[3][1]])
def test_saved_and_loaded(spec, tmp_path):
    made = head(scale=0.3, **spec)
    made.training = {"steps": 5}
    made.save(tmp_path / "head.safetensors")
    loaded = dv.Head.load(tmp_path / "head.safetensors")
    assert loaded.spec == made.spec
    assert loaded.training == {"steps": 5}
    assert loaded.identity() == made.identity()
    assert torch.equal(sample(loaded), sample(made))
    loaded.save(tmp_path / "again.safetensors")
    assert (tmp_path / "again.safetensors").read_bytes() == (tmp_path / "head.safetensors").read_bytes()


def test_files_that_are_refused(tmp_path):
    path = tmp_path / "head.safetensors"
    with pytest.raises(dv.InputError, match="there is no variance head at"):
        dv.Head.load(path)
    table().save(path)
    with pytest.raises(dv.InputError, match=r"it is a folder: give a file in it \(head.safetensors\)"):
        dv.Head.load(tmp_path)
    with pytest.raises(dv.InputError, match="not a variance head"):
        dv.Head.load(path)
    head().save(path)
    good = path.read_bytes()
    path.write_bytes(good[:-40])
    with pytest.raises(dv.InputError, match="damaged"):
        dv.Head.load(path)
    path.write_bytes(good[:-4] + bytes([good[-4] ^ 1]) + good[-3:])
    with pytest.raises(dv.InputError, match="damaged"):
        dv.Head.load(path)
    path.write_bytes(good)
    arrays, metadata = contents(path)
    sign(path, arrays, {**metadata, "format_version": 5})
    with pytest.raises(dv.InputError, match="format version 5"):
        dv.Head.load(path)
    arrays["head.out.bias"][0] = float("nan")
    sign(path, arrays, metadata)
    with pytest.raises(dv.InputError, match=r"NaN or infinite weights \(out.bias\)"):
        dv.Head.load(path)
    del arrays["head.out.bias"]
    sign(path, arrays, metadata)
    with pytest.raises(dv.InputError, match="are not those of a simple head"):
        dv.Head.load(path)


def contents_digest(path):
    with safe_open(str(path), "numpy") as file:
        return json.loads(file.metadata()["diffusion_var"])["digest"]


def test_published_heads_of_version_1_are_used_as_they_were_trained(tmp_path):
    """With v at most σ²/α² as well, and the table's three moments in the step; their bytes and digest stay."""
    old, new = tmp_path / "old.safetensors", tmp_path / "new.safetensors"
    made = head(scale=3.0, output="papers", groups=first_groups_of)
    made.save(new)
    arrays, metadata = contents(new)
    assert (metadata.pop("cut"), metadata["format_version"]) == ("range", 2)
    sign(old, arrays, {**metadata, "format_version": 1})
    loaded, again = dv.Head.load(old), dv.Head.load(new)
    assert (loaded.spec.output, again.spec.output) == ("bounded", "papers")
    assert again.identity() == made.identity() != loaded.identity()
    assert again.digest == made.digest != loaded.digest == contents_digest(old)
    loaded.save(tmp_path / "again.safetensors")
    assert (tmp_path / "again.safetensors").read_bytes() == old.read_bytes()

    model, t = made.prepare(denoiser()), 5
    posterior = model(images(6).float() / 127.5 - 1, t)
    level = float(model.schedule.sigma[t] / model.schedule.alpha[t]) ** 2
    unit = table().posterior_variance(t)
    before, after = (each._tamed(each.ratio(posterior, t)) * unit for each in (loaded, made))
    assert float((before - after.clamp(max=level)).abs().max()) < 1e-6
    assert float(after.max()) == pytest.approx(1.0)
    kernel = dv.ReverseKernel(model.schedule, t, 1, eta=0.0)
    error = loaded.prior.mean_error(kernel)
    assert abs(error / (kernel.gain**2 * unit) - 1) > 1e-3  # clipped, with the network's own ε̂
    assert torch.allclose(loaded(posterior, kernel).variance, kernel.lambda2 + before / unit * error)


def test_heads_that_mean_what_they_meant_are_written_as_before(tmp_path):
    for k, spec in enumerate([{}, {"target": "sn"}, {"target": "factor", "structure": "dct"}]):
        head(0.3, groups=first_groups_of, **spec).save(tmp_path / f"{k}.safetensors")
        metadata = contents(tmp_path / f"{k}.safetensors")[1]
        assert metadata["format_version"] == 1
        assert not {"cut", "groups"} & set(metadata)


def test_heads_of_earlier_versions_keep_the_groups_they_were_trained_with(tmp_path):
    """Eight features were eight groups of one; a file that states no groups is read so, one that does as it says."""
    path = tmp_path / "head.safetensors"
    made = head(scale=0.3, kind="residual")
    made.save(path)
    arrays, metadata = contents(path)
    assert (metadata["format_version"], metadata["groups"]) == (3, 2)
    assert dv.Head.load(path).network.groups == 2
    del metadata["groups"]
    sign(path, arrays, {**metadata, "format_version": 1})
    old = dv.Head.load(path)
    assert old.network.groups == 8
    assert old.digest != made.digest
    posterior = made.prepare(denoiser())(images(6).float() / 127.5 - 1, 5)
    assert float((old.ratio(posterior, 5) - made.ratio(posterior, 5)).abs().max()) > 1e-3
    for groups in (3, 0, -2, 2.0, True):
        sign(path, arrays, {**metadata, "format_version": 3, "groups": groups})
        with pytest.raises(dv.InputError, match="groups") as caught:
            dv.Head.load(path)
        assert str(path) in str(caught.value)


def test_bands_are_a_version_of_their_own_and_one_band_is_none(tmp_path):
    """What earlier versions of the package cannot read says so; factors are written as they always were."""
    for bands, version in [(3, 4), (1, 4), (None, 1)]:
        spec = {"target": "factor", "structure": "dct"} if bands is None else {"target": "bands", "bands": bands}
        made = head(0.3, groups=first_groups_of, **spec)
        made.save(tmp_path / "head.safetensors")
        metadata = contents(tmp_path / "head.safetensors")[1]
        assert metadata["format_version"] == version
        assert metadata["spec"].get("bands") == bands
        assert made.identity().get("bands") == bands
        assert made.name == ("factor-dct" if bands is None else f"bands-{bands}")


def test_the_rule_of_bands_is_a_part_of_the_file():
    """A file says how many there are, and not which coefficients are in which: that must never change."""
    made = head(target="bands", bands=5)
    assert made.network.out.out_features == 5
    assert made.prior.bands.index[0, ::3, ::2].tolist() == [[0, 2, 3, 4], [2, 3, 3, 4], [4, 4, 4, 4]]


def test_models_that_it_does_not_belong_to():
    other = denoiser()
    next(other.network.parameters()).data += 0.1
    with pytest.raises(dv.InputError, match=r"trained on another model .*network fingerprint: the head has"):
        dv.Sampler(other, head(), 4)
    schedule = dv.NoiseSchedule.linear(50, 1e-3, 0.1)
    with pytest.raises(dv.InputError, match="schedule"):
        dv.bits_per_dim(dv.Denoiser(denoiser().network, schedule, shape=SHAPE), head(), images(2), 4)
    larger = dv.Denoiser(denoiser().network, denoiser().schedule, shape=(1, 16, 16))
    with pytest.raises(dv.InputError, match="shape"):
        dv.Sampler(larger, head(), 4)
    with pytest.raises(dv.InputError, match="needs the trunk's features"):
        head()(denoiser()(torch.zeros(1, *SHAPE), 20), dv.ReverseKernel(schedule, 20, 5))
