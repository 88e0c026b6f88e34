"""The cases of `parity_cases` as the package takes them: networks, schedules, covariances."""

import numpy as np
import parity_cases as cases
import torch

import diffusion_var as dv
from diffusion_var.variance.moments import NUM_MOMENTS, TARGETS, StructureMoments
from diffusion_var.variance.population import DataStatistics


def network(x_t, timestep):
    time = (timestep.to(x_t.dtype) / cases.N).view(-1, 1, 1, 1)
    return cases.network(x_t, time, torch.tanh)


def doubled(x_t, timestep):
    time = (timestep.to(x_t.dtype) / cases.N).view(-1, 1, 1, 1)
    return torch.cat([cases.network(x_t, time, torch.tanh), cases.second_half(x_t, time, torch.sin)], 1)


def schedule_of(name):
    return getattr(dv.NoiseSchedule, name)(cases.N)


def pixel_table(schedule, variances):
    """A table of measured pixel variances at some indices, made by hand."""
    indices = np.array(sorted(variances))
    moments = {}
    for structure in ("isotropic", "pixel"):
        means = np.zeros((len(indices), NUM_MOMENTS, *(cases.SHAPE if structure == "pixel" else ())))
        for i, n in enumerate(indices):
            v = variances[int(n)]
            means[i, TARGETS.index("error_square")] = v if structure == "pixel" else v.mean()
        moments[structure] = StructureMoments(means, np.zeros((len(indices), NUM_MOMENTS, NUM_MOMENTS)))
    ones = np.ones(cases.SHAPE)
    data = DataStatistics(0.0 * ones, ones, ones, np.eye(cases.SHAPE[0]), 10, "")
    return dv.VarianceTable(schedule, indices, np.full(len(indices), 16), moments, shape=cases.SHAPE, data=data)


def covariance_of(schedule, steps, options):
    if options.get("v") == "gamma":
        gamma = cases.gammas("linear" if schedule == schedule_of("linear") else "cosine")
        return dv.Analytic(dv.VarianceTable.from_moments(schedule, eps_square=gamma), "score_norm")
    if options.get("v") == "pixel":
        return dv.Analytic(pixel_table(schedule, cases.pixel_variances(steps)), structure="pixel")
    return dv.FixedLarge() if options.get("choice") == "large" else dv.FixedSmall()
