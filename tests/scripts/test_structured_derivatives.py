"""The script that says how far derivatives are covariances: its laws of draws are right where they are known, and its
tables have what they should."""

import pytest
import torch

import diffusion_var as dv


@pytest.fixture
def script(load_script):
    return load_script("structured_derivatives")


def test_the_law_of_a_draw(script):
    """As many products as there are dimensions leave nothing, few leave the more; a table's own draws are known."""
    stream = torch.Generator().manual_seed(0)
    roots = torch.randn(2, 12, 12, generator=stream, dtype=torch.float64)
    means = torch.randn(2, 3, 2, 2, generator=stream, dtype=torch.float64)
    schedule = dv.NoiseSchedule.linear(1000)
    mixture = dv.oracles.MixtureDenoiser(schedule, means, covariances=roots @ roots.mT / 12)
    table = dv.estimate(mixture, mixture.sample(400, seed=1), 10.0, indices=[1, 300, 1000], progress=False)
    level, kernel = schedule.level(300), dv.ReverseKernel(schedule, 300, 100, 0.0)
    x_t = level.alpha * mixture.sample(1, seed=2) + level.sigma * torch.randn(1, 3, 2, 2, generator=stream)
    exact = kernel.gain**2 * mixture.posterior_covariance(x_t.double(), level)[0]
    z = torch.randn(400, 3, 2, 2, generator=stream)
    found = [script["law"](dv.Lanczos(table, m), mixture, x_t, kernel, exact, z) for m in (1, 3, 12)]
    assert found[0] > 3 * found[1] > 0
    assert abs(found[2]) < 1e-4
    own = dv.Analytic(table, structure="dct")(None, kernel)
    B = script["basis"](own.structure, (3, 2, 2))
    assert torch.allclose(B @ B.T, torch.eye(12, dtype=torch.float64))
    sigma = B.T @ torch.diag(own.variance.double().flatten()) @ B
    tables = torch.distributions.MultivariateNormal(torch.zeros(12).double(), sigma)
    truth = torch.distributions.MultivariateNormal(torch.zeros(12).double(), exact)
    kl = torch.distributions.kl_divergence(truth, tables) / 12
    assert float(script["of_table"](table, mixture, kernel, exact)) == pytest.approx(float(kl), abs=6e-4)


@pytest.mark.parametrize(
    ("part", "lines", "said"),
    [("levels", 9, "| 700 | "), ("positive", 1, "0 values of 3 images")],
)
def test_its_tables(script, digits_folder, capsys, part, lines, said):
    script["main"]([part, "--data", "digits", "--out", str(digits_folder), "--count", "3"])
    printed = capsys.readouterr().out
    assert len(printed.splitlines()) == lines
    assert said in printed
    assert "nan" not in printed
