"""The golden cases in other people's packages, where they are installed: `python tests/parity/by_hand.py [folder]`.

    pip install --target folder --no-deps azula einops jaxtyping wadler-lindig prdc
    pip install --target folder --no-deps clean-fid torchmetrics lightning-utilities

torch-fidelity and pytorch-fid come with this package's own dependencies. Prints the rows of results/parity.md: the
largest relative difference of this package and theirs, and of theirs and the golden numbers.
"""

import contextlib
import io
import sys
from pathlib import Path

import numpy as np

sys.path[:0] = [str(Path(__file__).parent), *sys.argv[1:]]

import parity_cases as cases  # noqa: E402
import torch  # noqa: E402
from make_golden import golden  # noqa: E402
from published_metrics import moments  # noqa: E402
from published_schedules import edm_sigmas  # noqa: E402

import diffusion_var as dv  # noqa: E402
from diffusion_var.metrics.kid import kernel_distance  # noqa: E402
from diffusion_var.metrics.neighbours import density_coverage, precision_recall  # noqa: E402


def row(what, theirs, ours, stored):
    theirs, ours, stored = (np.asarray(a, dtype=np.float64).ravel() for a in (theirs, ours, stored))
    scale = np.abs(stored).max()
    print(f"| {what} | {np.abs(theirs - ours).max() / scale:.1e} | {np.abs(theirs - stored).max() / scale:.1e} |")


# ---- azula ------------------------------------------------------------------------------------------------------


def azula():
    from azula.denoise import Denoiser, DiracPosterior
    from azula.noise import Schedule
    from azula.sample import DDIMSampler, DDPMSampler, EulerSampler

    class Given(Schedule):
        """The levels of a list, at times that are its places."""

        def __init__(self, alpha, sigma):
            super().__init__()
            self.pair = torch.from_numpy(alpha), torch.from_numpy(sigma)

        def __call__(self, t):
            return tuple(values[t.long()].to(dtype) for values in self.pair)

        def alpha(self, t):
            return self(t)[0]

        def sigma(self, t):
            return self(t)[1]

    class Own(Denoiser):
        def __init__(self, schedule, mean):
            super().__init__()
            self.schedule, self.mean = schedule, mean

        def forward(self, x_t, t, **_):
            return DiracPosterior(mean=self.mean(x_t, int(t)))

    def run(kind, denoiser, places, noise, **options):
        sampler = type("Given", (kind,), {"timesteps": torch.tensor(places)})(denoiser, silent=True, **options)
        left = [torch.from_numpy(array).to(dtype) for array in noise]
        x, states, usual = left.pop(0), [], torch.randn_like
        torch.randn_like = lambda like: left.pop(0) if left else torch.zeros_like(like)
        try:
            for t, s in zip(sampler.timesteps[:-1], sampler.timesteps[1:], strict=True):
                x = sampler.step(x, t, s)
                states.append(x.double().numpy())
        finally:
            torch.randn_like = usual
        return states

    def of_eps(schedule, clip):
        def mean(x, n):
            eps = cases.network(x, (n - 1) / cases.N, torch.tanh)
            found = (x - schedule.sigma[n] * eps) / schedule.alpha[n]
            return found.clamp(-1, 1) if clip else found

        return Own(Given(schedule.alpha.copy(), schedule.sigma.copy()), mean)

    for dtype in (torch.float64, torch.float32):
        precision = str(dtype).removeprefix("torch.")
        for name, kind, options in (
            ("ddpm_small", DDPMSampler, {}),
            ("ddpm_small_cosine", DDPMSampler, {}),
            ("ddpm_small_free", DDPMSampler, {}),
            ("ddim_half_rederived", DDIMSampler, {"eta": 0.25}),  # their η is the square of DDIM's
        ):
            _, schedule_name, steps, given = cases.STATES[name]
            schedule = getattr(dv.NoiseSchedule, schedule_name)(cases.N)
            denoiser, noise = of_eps(schedule, given["clip"]), cases.noise_of(len(steps))
            theirs = run(kind, denoiser, [*steps[::-1], 0], noise, **options)
            row(
                f"azula {kind.__name__}, states, {name}, {precision}",
                theirs,
                own_states(name, dtype),
                golden("states")[name],
            )
        sigmas = np.concatenate([[0.0], edm_sigmas(cases.EDM_LEVELS)[::-1]])
        levels = Given(np.ones_like(sigmas), sigmas)

        def edm_mean(x, n, sigmas=sigmas):
            sigma = sigmas[n]
            total = sigma**2 + 0.25
            told = float(np.float32(np.log(sigma) / 4.0))
            F = cases.network(x / total**0.5, told, torch.tanh)
            return 0.25 / total * x + 0.5 * sigma / total**0.5 * F

        first = [sigmas[-1] * cases.noise_of(0)[0]]
        theirs = run(EulerSampler, Own(levels, edm_mean), list(range(cases.EDM_LEVELS, -1, -1)), first)
        row(
            f"azula EulerSampler, states, edm_euler, {precision}",
            theirs,
            own_states("edm_euler", dtype),
            golden("states")["edm_euler"],
        )


def own_states(name, dtype):
    import pytest
    import test_states

    seen = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(test_states, "compare", lambda _, found, __: seen.append(found))
        if name == "edm_euler":
            test_states.test_euler_steps_of_edm(dtype, patch)
        else:
            test_states.test_chains_of_ddpm_ddim_and_analytic_dpm(name, dtype, patch)
    return seen[0]


# ---- scores -----------------------------------------------------------------------------------------------------


def own_scores():
    real, fake, even = cases.features()
    pairs = moments(real), moments(fake)
    return {"fid": dv.metrics.frechet_distance(*pairs), "kid": kernel_distance(real, even).value}


def pytorch_fid():
    from pytorch_fid.fid_score import calculate_frechet_distance

    real, fake, _ = cases.features()
    row(
        "pytorch-fid, FID",
        calculate_frechet_distance(*moments(real), *moments(fake)),
        own_scores()["fid"],
        golden("scores")["fid"],
    )


def clean_fid():
    from cleanfid.fid import frechet_distance
    from cleanfid.fid import kernel_distance as theirs

    real, fake, even = cases.features()
    row(
        "clean-fid, FID", frechet_distance(*moments(real), *moments(fake)), own_scores()["fid"], golden("scores")["fid"]
    )
    row("clean-fid, KID", theirs(real, even, num_subsets=1), own_scores()["kid"], golden("scores")["kid"])


def torchmetrics():
    from torchmetrics.image.fid import _compute_fid
    from torchmetrics.image.kid import poly_mmd

    real, fake, even = (torch.from_numpy(array) for array in cases.features())
    of = [torch.from_numpy(array) for array in (*moments(real.numpy()), *moments(fake.numpy()))]
    row("torchmetrics, FID", float(_compute_fid(*of)), own_scores()["fid"], golden("scores")["fid"])
    row("torchmetrics, KID", float(poly_mmd(real, even)), own_scores()["kid"], golden("scores")["kid"])


def torch_fidelity():
    from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric
    from torch_fidelity.metric_kid import kid_features_to_metric
    from torch_fidelity.metric_prc import prc_features_to_metric

    real, fake, even = (torch.from_numpy(array) for array in cases.features())
    found = fid_statistics_to_metric(fid_features_to_statistics(real), fid_features_to_statistics(fake), False)
    row("torch-fidelity, FID", found["frechet_inception_distance"], own_scores()["fid"], golden("scores")["fid"])
    options = {"kid_subsets": 1, "kid_subset_size": 40, "verbose": False}
    found = kid_features_to_metric(real, even, **options)
    row("torch-fidelity, KID", found["kernel_inception_distance_mean"], own_scores()["kid"], golden("scores")["kid"])
    for k in (3, 5):
        found = prc_features_to_metric(
            fake, real, prc_neighborhood=k, prc_batch_size=100, save_cpu_ram=False, verbose=False
        )
        stored = golden("scores")[f"prdc_{k}"]
        own = precision_recall(real.numpy(), fake.numpy(), k)
        row(
            f"torch-fidelity, precision and recall, k = {k}",
            [found["precision"], found["recall"]],
            own,
            [stored["precision"], stored["recall"]],
        )


def prdc():
    from prdc import compute_prdc

    real, fake, _ = cases.features()
    apart = fake.copy()
    apart[7:12] += 1e-3  # without copies of reals no ball's rim is hit
    with contextlib.redirect_stdout(io.StringIO()):  # it prints the numbers of features
        found, other = compute_prdc(real, fake, 3), compute_prdc(real, apart, 3)
    opened = golden("scores")["prdc_3_open"]
    own = [*precision_recall(real, fake, 3), *density_coverage(real, fake, 3)]
    row("prdc, all four, k = 3, their open balls", [found[key] for key in opened], own, list(opened.values()))
    own = [*precision_recall(real, apart, 3), *density_coverage(real, apart, 3)]
    row("prdc, all four, k = 3, no copies among the fakes", [other[key] for key in opened], own, own)


if __name__ == "__main__":
    print("| what | theirs and this package | theirs and golden |\n|---|---|---|")
    for compare in (azula, pytorch_fid, torch_fidelity, clean_fid, torchmetrics, prdc):
        try:
            compare()
        except ImportError as error:
            print(f"| {compare.__name__}: {error} | – | – |")
