"""FID, KID, precision, recall, density and coverage of given features, against plain loops."""

import parity_cases as cases
import pytest
from make_golden import golden
from parity_table import agree, differ
from published_metrics import moments

import diffusion_var as dv
from diffusion_var.metrics.kid import kernel_distance
from diffusion_var.metrics.neighbours import density_coverage, precision_recall

GOLDEN = golden("scores")


def statistics(features):
    found = dv.metrics.FeatureStatistics(features.shape[1])
    found.update(features[:7])
    found.update(features[7:])
    return found


def test_moments_of_features():
    real, fake, _ = cases.features()
    for name, features in (("reals", real), ("fakes", fake)):
        mean, covariance = moments(features)
        agree(f"means and covariances of features: {name}, means", statistics(features).mean, mean, 1e-13)
        agree(
            f"means and covariances of features: {name}, covariances",
            statistics(features).covariance,
            covariance,
            1e-13,
        )


def test_fid():
    real, fake, _ = cases.features()
    found = dv.metrics.frechet_distance(statistics(real), statistics(fake))
    agree("FID: 40 and 33", found, GOLDEN["fid"], 1e-12, "each")


def test_kid():
    real, _, even = cases.features()
    agree("KID: 40 and 40", kernel_distance(real, even).value, GOLDEN["kid"], 1.5e-11, "each")


@pytest.mark.parametrize("k", [3, 5])
def test_precision_recall_density_coverage(k):
    real, fake, _ = cases.features()
    found = [*precision_recall(real, fake, k), *density_coverage(real, fake, k)]
    stored = GOLDEN[f"prdc_{k}"]
    agree(f"precision, recall, density, coverage: k = {k}", found, list(stored.values()), 1e-15)


def test_open_balls_would_be_another_number():
    """Fakes that are copies of reals lie on the rim of the balls that reach to those. Balls are closed here."""
    real, fake, _ = cases.features()
    closed, opened = density_coverage(real, fake, 3)[0], GOLDEN["prdc_3_open"]["density"]
    differ("density with open balls, five fakes copies of reals, relative: k = 3", closed, opened, 1e-3, 0.1)
