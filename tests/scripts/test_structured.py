"""The script behind results/structured.md: a budget holds what fits, and finished cells are kept."""

import json

import pytest
import torch

import diffusion_var as dv


@pytest.fixture
def script(load_script):
    return load_script("structured")


@pytest.fixture(scope="module")
def mixture():
    stream = torch.Generator().manual_seed(0)
    means = torch.randn(3, 1, 8, 8, generator=stream, dtype=torch.float64)
    return dv.oracles.MixtureDenoiser(dv.NoiseSchedule.linear(1000), means, [0.02, 0.1, 0.3])


@pytest.fixture(scope="module")
def table(mixture):
    return dv.estimate(mixture, mixture.sample(200, seed=1), 10.0, indices=[1, 250, 500, 750, 1000], progress=False)


def test_no_correction_is_the_covariance_alone(script, mixture, table):
    steps = dv.steps.log_snr_levels(mixture.schedule, 6)
    ours = script["second_order"](mixture, table)["a = 0, b = 1"](6)
    plain = dv.Sampler(mixture, dv.Analytic(table, structure="dct"), steps, 0.0)
    assert torch.equal(ours.sample(8, 0), plain.sample(8, 0))


@pytest.mark.parametrize(
    ("name", "steps", "spent"),
    [("dct", 10, 10), ("jacobian, probes 1", 4, 10), ("jacobian, differences", 5, 9), ("lanczos 3", 2, 10)],
)
def test_a_budget_holds_the_steps_that_fit(script, mixture, table, name, steps, spent):
    """At two evaluations a product that comes with the mean: k + 2 (k − 1) ≤ 10; one by itself is 8/3, so that three of
    them fit once; a difference is one, k + (k − 1) ≤ 10."""
    made, cost = script["samplers"](mixture, table, []), dv.ProductCost(2.0, 8.0 / 3.0)
    sampler, equivalents = script["largest"](made[name], 10, cost)
    assert len(sampler.kernels) == steps
    assert equivalents == pytest.approx(spent)
    assert script["largest"](made["lanczos 5"], 5, cost) is None


def test_cells_are_kept_and_shown(script, digits_folder, tmp_path, capsys):
    (tmp_path / "digits.safetensors").write_bytes((digits_folder / "digits.safetensors").read_bytes())
    few = ["--data", "digits", "--out", str(tmp_path), "--budgets", "3", "--count", "12", "--product-cost", "1"]
    methods = ["--methods", "DPM-Solver++(2M)", "jacobian, probes 1"]
    script["main"](["frechet", *few, *methods])
    path = tmp_path / "digits.jsonl"
    entries = [json.loads(line) for line in path.read_text().splitlines()]
    assert [entry["cell"]["seed"] for entry in entries] == [0, 1, 0, 1]
    assert [entry["found"]["steps"] for entry in entries] == [3, 3, 2, 2]
    kept = path.read_bytes()
    script["main"](["frechet", *few, *methods])
    assert path.read_bytes() == kept
    capsys.readouterr()
    script["main"](["tables", *few])
    values = [entry["found"]["values"][0] for entry in entries]
    shown = capsys.readouterr().out
    ratio = sum(values[2:]) / sum(values[:2])
    assert f"| jacobian, probes 1 | {sum(values[2:]) / 2:.2f} ± " in shown
    assert f", 2; {ratio:.2f} |" in shown


@pytest.mark.parametrize("part", ["frechet", "second", "bits"])
def test_a_row_that_is_not_there_is_named(script, digits_folder, part):
    few = ["--data", "digits", "--out", str(digits_folder), "--product-cost", "1", "--count", "8"]
    with pytest.raises(SystemExit, match=r"^--methods has no row 'jacobi' here; there are '"):
        script["main"]([part, *few, "--methods", "jacobi"])


def test_likelihoods_are_of_the_steps_that_fit_and_paired(script, digits_folder, tmp_path, capsys):
    """At half an evaluation a product, all K terms of a bound having theirs: 1.5 K ≤ 3; of one probe more 3 K."""
    (tmp_path / "digits.safetensors").write_bytes((digits_folder / "digits.safetensors").read_bytes())
    few = ["--data", "digits", "--out", str(tmp_path), "--budgets", "3", "--count", "16"]
    methods = ["--methods", "isotropic", "dct", "jacobian, bands 6", "jacobian, probes 4"]
    script["main"](["bits", *few, *methods, "--product-cost", "0.5"])
    script["main"](["bits", *few, *methods, "--product-cost", "0.5", "--equal-steps"])
    entries = [json.loads(line) for line in (tmp_path / "digits.jsonl").read_text().splitlines()]
    said = [(entry["cell"]["part"], entry["found"]["steps"], entry["found"]["equivalents"]) for entry in entries]
    of_steps = [("bits at equal steps", 3, cost) for cost in (3, 3, 4.5, 18)]
    assert said == [("bits", 3, 3), ("bits", 3, 3), ("bits", 2, 3), *of_steps]
    isotropic, dct = (entry["found"]["values"] for entry in entries[:2])
    assert [len(isotropic), len(dct)] == [2, 2]
    denoiser, parts = dv.Denoiser.from_pretrained("digits"), dv.data.digits_splits()
    table = dv.VarianceTable.load(tmp_path / "digits.safetensors")
    images = dv.data.to_float(parts.score.images[8:16])
    how = {
        "steps": dv.steps.log_snr_levels(denoiser.schedule, 3),
        "seed": 1,
        "decoder_variance": float(table.posterior_variance(1)),
    }
    assert isotropic[1] == pytest.approx(float(dv.bits_per_dim(denoiser, dv.Analytic(table), images, **how)))
    best = ["bits", *few, "--methods", "jacobian, bands 6", "--equal-steps", "--optimal"]
    script["main"](best)
    last = json.loads((tmp_path / "digits.jsonl").read_text().splitlines()[-1])
    assert last["cell"]["part"] == "bits on optimal paths at equal steps"
    assert sum(last["found"]["values"]) < sum(entries[5]["found"]["values"]) - 1.0
    capsys.readouterr()
    script["main"](["tables", *few])
    difference = [a - b for a, b in zip(isotropic, dct, strict=True)]
    mean, error = sum(difference) / 2, abs(difference[0] - difference[1]) / 2
    shown = capsys.readouterr().out
    assert f"| isotropic | {sum(isotropic) / 2:.3f}, 3; {mean:+.3f} ± {error:.3f} |" in shown
    assert "bits at equal steps, 16 images: bits/dim, steps; above dct's\n\n|  | K = 3 |" in shown
