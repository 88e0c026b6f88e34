"""Golden numbers from the published formulas: `python tests/parity/make_golden.py` writes tests/parity/golden/*.json.

The formulas are the `published_*` modules', in plain loops and float64; nothing of the package is imported. A test
makes them again and compares.
"""

import json
import math
import sys
from pathlib import Path

import numpy as np

FOLDER = Path(__file__).parent
sys.path.insert(0, str(FOLDER))

import parity_cases as cases  # noqa: E402
import published_covariances as covariances  # noqa: E402
import published_likelihood as likelihood  # noqa: E402
import published_metrics as metrics  # noqa: E402
import published_samplers as samplers  # noqa: E402
import published_schedules as schedules  # noqa: E402


def variances_of(kind, schedule, steps):
    """{t: v} as a chain takes it."""
    if kind == "pixel":
        return cases.pixel_variances(steps)
    alpha_bar, gamma = cases.alpha_bars(schedule), cases.gammas(schedule)
    return {t: covariances.posterior_variance(gamma[t], alpha_bar[t]) for t in steps}


def states():
    out = {}
    for name, (chain, schedule, steps, options) in cases.STATES.items():
        options = dict(options)
        if "v" in options:
            options["posterior_variance"] = variances_of(options.pop("v"), schedule, steps)
        noise, alpha_bar = cases.noise_of(len(steps)), cases.alpha_bars(schedule)
        out[name] = getattr(samplers, chain)(cases.eps_of, alpha_bar, steps, noise, **options)
    for name, (schedule, sections, kind, clip) in cases.RESPACED_STATES.items():
        kept = schedules.respaced(cases.N, sections)
        process = samplers.Respaced(cases.alpha_bars(schedule), kept)
        out[name] = process.sample(cases.output_of, cases.noise_of(len(kept)), kind, clip)
    alpha_bar, _ = schedules.cumulative(schedules.linear_betas(cases.BEFORE_STEPS, *cases.BEFORE_BETAS))
    process = samplers.Respaced(alpha_bar, list(range(cases.BEFORE_STEPS)))

    def before(x, n):
        return cases.before_output(x, (n - 1) / cases.BEFORE_STEPS, np.tanh, np.sin)

    out["improved_previous"] = process.sample_before(before, cases.noise_of(cases.BEFORE_STEPS))
    alpha_bar = cases.alpha_bars("linear")

    def gradient(x):
        return samplers.softmax_gradient(cases.CLASSIFIER, x, cases.LABELS)

    eps_of = samplers.guided(cases.eps_of, alpha_bar, gradient, cases.SCALE)
    noise = cases.noise_of(len(cases.EVEN))
    out["guided_ddim"] = samplers.ddim(eps_of, alpha_bar, cases.EVEN, noise, eta=0.0, clip=False, rederive=False)
    steps = cases.SDE_STEPS
    out["sde"] = samplers.vp_euler_maruyama(cases.sde_eps_of, cases.N, steps, cases.noise_of(len(steps)))
    first = cases.noise_of(0)[0]
    sigmas = schedules.edm_sigmas(cases.EDM_LEVELS)

    def denoise(x, sigma):
        return samplers.edm_denoised(cases.told_network, x, sigma)

    out["edm_euler"] = samplers.edm_euler(denoise, sigmas, first)
    out["flow_euler"] = samplers.flow_euler(cases.told_network, cases.FLOW_TIMES, first)
    return out


def terms():
    out = {}
    _, x_0 = cases.images()
    for name, (schedule, steps, choice, clip) in cases.TERMS.items():
        alpha_bar, noise = cases.alpha_bars(schedule), cases.noise_of(len(steps), seed=2)
        v = variances_of("gamma", schedule, steps) if choice == "optimal" else None
        made = likelihood.step_terms(cases.eps_of, alpha_bar, steps, x_0, noise, choice, clip, v)
        first = steps[0]
        x_t = math.sqrt(alpha_bar[first]) * x_0 + math.sqrt(1.0 - alpha_bar[first]) * noise[len(steps) - 1]
        mean = likelihood.predicted(cases.eps_of, alpha_bar, first, x_t, clip)
        variance = samplers.step_numbers(alpha_bar, 2, 1)[1]
        out[name] = {
            "prior": likelihood.prior_sum(x_0, alpha_bar[steps[-1]]),
            "steps": made,
            "decoder": likelihood.decoder_sum(x_0, mean, variance),
            "published_decoder": likelihood.decoder_sum(x_0, mean, variance, published=True),
        }
    for name, (schedule, sections, kind, clip) in cases.RESPACED_TERMS.items():
        kept = schedules.respaced(cases.N, sections)
        process = samplers.Respaced(cases.alpha_bars(schedule), kept)
        noise = cases.noise_of(len(kept), seed=2)
        exact = likelihood.respaced_terms(process, cases.output_of, x_0, noise, kind, clip)
        approximate = likelihood.respaced_terms(process, cases.output_of, x_0, noise, kind, clip, published=True)
        out[name] = {
            "prior": likelihood.prior_sum(x_0, process.alpha_bar[-1]),
            "steps": exact[:-1],
            "decoder": exact[-1],
            "published_decoder": approximate[-1],
        }
    return out


def decoder():
    out = {}
    for std in cases.DECODER_STDS:
        rows = [
            [
                -likelihood.log_mass(level / 127.5 - 1.0, level / 127.5 - 1.0 + shift * std, std, published)
                for level in cases.DECODER_LEVELS
                for shift in cases.DECODER_SHIFTS
            ]
            for published in (False, True)
        ]
        out[str(std)] = {"exact": rows[0], "published": rows[1]}
    return out


def paths():
    alpha_bar, gamma, _, errors, decoder_terms = cases.path_problem()
    N = cases.PATH_N
    forced = likelihood.analytic_costs(alpha_bar, gamma)
    free = likelihood.measured_costs(alpha_bar, errors, decoder_terms, cases.D)
    best = {"forced": {}, "free": {}}
    for K in range(2, N + 1):
        cost, path = likelihood.shortest(forced, 1, N, K - 1)
        best["forced"][str(K)] = {"cost": cost, "path": path}
    for K in range(1, N + 1):
        cost, path = likelihood.shortest(free, 0, N, K)
        best["free"][str(K)] = {"cost": cost, "path": path[1:]}
    flat = [free[s, t] for s in range(N) for t in range(s + 1, N + 1)]
    return {**best, "measured_costs": flat}


def moments():
    _, data = cases.population()
    alpha_bar, out = cases.alpha_bars("linear"), {"data_variance": covariances.data_variance(data)}
    for n in cases.MOMENT_INDICES:
        alpha, sigma = math.sqrt(alpha_bar[n]), math.sqrt(1.0 - alpha_bar[n])
        picks, noise = cases.draws_of(n)
        found = covariances.draw_moments(cases.eps_of, alpha, sigma, n, data, picks, noise, clip=True)
        found["score_norm"] = covariances.posterior_variance(found["gamma"], alpha_bar[n], clipped=False)
        out[str(n)] = found
    picks, noise = cases.draws_of(300)
    for eta in (0.0, 0.5):
        out[f"step_{eta}"] = covariances.step_error(cases.eps_of, alpha_bar, 300, 150, eta, data, picks, noise)
    return out


def heads():
    out = {}
    alpha_bar = cases.alpha_bars("linear")
    for kind in cases.HEADS:
        for t, s, eta in cases.HEAD_STEPS:
            v = covariances.head_variance(kind, cases.head_output(kind, t), cases.head_eps(t), alpha_bar[t])
            out[f"{kind}_{t}_{s}_{eta}"] = covariances.reverse_variance(alpha_bar, t, s, eta, v)
    for t, s, eta in cases.HEAD_STEPS:
        v = covariances.head_variance("eps", cases.head_eps(t), cases.head_eps(t), alpha_bar[t])
        out[f"eps_{t}_{s}_{eta}"] = covariances.reverse_variance(alpha_bar, t, s, eta, v)
        v = covariances.mean_head_variance(cases.head_eps(t), alpha_bar[t])
        out[f"mean_{t}_{s}_{eta}"] = covariances.reverse_variance(alpha_bar, t, s, eta, v)
    return out


def steps():
    return {
        "respaced": [schedules.respaced(N, sections) for N, sections in cases.RESPACINGS],
        "linear": [schedules.analytic_linear(N, K) for N, K in cases.STEP_LISTS],
        "power2": [schedules.analytic_power(N, K, 2) for N, K in cases.STEP_LISTS],
        "power3": [schedules.analytic_power(N, K, 3) for N, K in cases.STEP_LISTS],
        "quadratic": [schedules.ddim_quadratic(N, K) for N, K in cases.STEP_LISTS],
    }


SCHEDULE_PLACES = [1, 2, 10, 100, 500, 900, 999, 1000]


def noise_schedules():
    out = {}
    for name, betas in (
        ("linear", schedules.linear_betas(1000)),
        ("cosine", schedules.cosine_betas(1000)),
        ("scaled_linear", schedules.scaled_linear_betas(1000)),
    ):
        kept, lost = schedules.exact_cumulative(betas)
        _, running = schedules.cumulative(betas)
        single = schedules.float32_beta_bar(betas)
        for key, values in (("alpha_bar", kept), ("beta_bar", lost), ("running", running), ("float32", single)):
            out.setdefault(name, {})[key] = [values[n] for n in SCHEDULE_PLACES]
    alpha, sigma = schedules.vp_sde(1000)
    out["vp_sde"] = {"alpha": [alpha[n] for n in SCHEDULE_PLACES], "sigma": [sigma[n] for n in SCHEDULE_PLACES]}
    out["edm"] = schedules.edm_sigmas(18)
    return out


def scores():
    real, fake, even = cases.features()
    return {
        "fid": metrics.fid(real, fake),
        "kid": metrics.kid(real, even),
        "prdc_3": metrics.prdc(real, fake, 3),
        "prdc_5": metrics.prdc(real, fake, 5),
        "prdc_3_open": metrics.prdc(real, fake, 3, closed=False),
    }


FILES = {
    "states": states,
    "terms": terms,
    "decoder": decoder,
    "paths": paths,
    "moments": moments,
    "heads": heads,
    "steps": steps,
    "schedules": noise_schedules,
    "scores": scores,
}


def plain(value):
    """As JSON has it; arrays are flat lists, in C order."""
    if isinstance(value, dict):
        return {str(key): plain(inner) for key, inner in value.items()}
    if isinstance(value, np.ndarray):
        return [float(v) for v in value.ravel()]
    if isinstance(value, list | tuple):
        return [plain(inner) for inner in value]
    return value.item() if isinstance(value, np.generic) else value


def golden(name):
    """The stored numbers of a file."""
    return json.loads((FOLDER / "golden" / f"{name}.json").read_text())


def main():
    for name, make in FILES.items():
        text = json.dumps(plain(make()), separators=(",", ":")).replace('],"', '],\n"').replace('},"', '},\n"')
        (FOLDER / "golden" / f"{name}.json").write_text(text + "\n")
        print(f"{name}.json: {len(text):,} bytes")


if __name__ == "__main__":
    main()
