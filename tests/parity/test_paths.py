"""Optimal trajectories: the package's dynamic programmes against the plain recursion, every number of steps."""

import numpy as np
import parity_cases as cases
import pytest
from make_golden import golden
from parity_table import agree

import diffusion_var as dv
from diffusion_var.likelihood.paths import OptimalPaths, least_costs
from diffusion_var.likelihood.trajectories import kl_costs

GOLDEN = golden("paths")
N = cases.PATH_N


def schedule():
    return dv.NoiseSchedule.linear(N, 0.001, 0.35)


class NoDecoder:
    """Costs nothing and has no variance."""

    def variance(self, n):
        return 0.0

    def label(self, n):
        return "none"


def paths_over(matrix, nodes):
    begin = np.where(np.arange(len(nodes)) == 0, 0.0, np.inf)
    least = least_costs(matrix, len(nodes), begin)
    return OptimalPaths(np.array(nodes), least, matrix, 1.0, np.zeros(len(nodes)), begin, NoDecoder())


def measured_costs():
    """The cases' costs as `dv.step_costs` has them: of steps, and of decoders from every index."""
    matrix = np.full((N + 1, N + 1), np.inf)
    matrix[np.triu_indices(N + 1, 1)] = GOLDEN["measured_costs"]
    indices, decoders = np.arange(1, N + 1), matrix[0, 1:, None]
    decoder = dv.DecoderCosts(
        schedule(), indices, (("sigma2", 1.0),), decoders, np.zeros_like(decoders), 1, None, None, None
    )
    return dv.StepCosts(schedule(), indices, matrix[1:, 1:], np.zeros((N, N)), 1, decoder)


def analytic_offset():
    """What the authors' cost lacks, the same for every path from 1 to N: log(SNR_1/SNR_N)."""
    return float(schedule().log_snr[1] - schedule().log_snr[N])


def test_paths_from_one_to_N_are_those_of_analytic_dpm():
    _, _, v, _, _ = cases.path_problem()
    nodes = list(range(1, N + 1))
    found = paths_over(kl_costs(schedule(), nodes, v[1:]), nodes)
    for K in range(2, N + 1):
        assert found.steps(K) == GOLDEN["forced"][str(K)]["path"], K
    costs = [found.cost(K) for K in range(2, N + 1)]
    published = [GOLDEN["forced"][str(K)]["cost"] + analytic_offset() for K in range(2, N + 1)]
    agree("least costs of paths, first index 1: every K", costs, published, 1e-11, "each")


def test_paths_with_a_free_first_index_are_those_of_their_dp_vb():
    """There node 0 is clean data, and the step to it costs what the decoder does."""
    found = dv.steps.optimal_paths(measured_costs(), objective="bound")
    for K in range(1, N + 1):
        assert found.steps(K) == GOLDEN["free"][str(K)]["path"], K
        assert dv.steps.optimal(measured_costs(), K, "bound") == GOLDEN["free"][str(K)]["path"], K
    costs = [found.cost(K) for K in range(1, N + 1)]
    published = [GOLDEN["free"][str(K)]["cost"] for K in range(1, N + 1)]
    agree("least costs of paths, first index free: every K", costs, published, 1e-14, "each")
    assert any(GOLDEN["free"][str(K)]["path"][0] > 1 for K in range(1, N + 1))  # the freedom is used


def test_forcing_the_first_index_costs():
    """What the least cost of K steps is more if they must begin at index 1."""
    free = [GOLDEN["free"][str(K)]["cost"] for K in range(2, N)]
    paths = dv.steps.optimal_paths(measured_costs(), objective="bound", first=1)
    forced = np.array([paths.cost(K) for K in range(2, N)])
    assert np.all(forced >= np.array(free) - 1e-12)
    assert forced[0] > free[0] + 1.0


@pytest.mark.parametrize("t", [2, 7, N])
def test_step_costs_of_fixed_variances(t):
    """β's cost in `nll_terms` is the expected KL with an error of mean square E‖x_0 − x̂_0‖²/d."""
    from diffusion_var.process.divergence import excess_kl, expected_kl

    _, _, _, errors, _ = cases.path_problem()
    matrix = np.full((N + 1, N + 1), np.inf)
    matrix[np.triu_indices(N + 1, 1)] = GOLDEN["measured_costs"]
    found = []
    for s in range(1, t):
        kernel = dv.ReverseKernel(schedule(), t, s)
        optimal = kernel.lambda2 + kernel.gain**2 * errors[t] / cases.D
        found.append(cases.D * (expected_kl(optimal, kernel.lambda2) + float(excess_kl(optimal, kernel.beta))))
    agree(f"expected KLs of variance beta: from {t}", found, matrix[1:t, t], 1e-10, "each")
