"""diffusion_var: the reverse covariance of diffusion models. Measure it once, sample and score with it.

Names are imported when first used, so that `import diffusion_var` and the command line's `--help` are quick.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from . import metrics as metrics
    from . import steps as steps
    from . import training as training
    from .errors import DiffusionVarWarning as DiffusionVarWarning
    from .errors import InputError as InputError
    from .errors import NumericalError as NumericalError
    from .models import oracles as oracles
    from .models.denoiser import Denoiser as Denoiser
    from .models.posterior import Posterior as Posterior
    from .process.kernel import ReverseKernel as ReverseKernel
    from .process.schedule import NoiseSchedule as NoiseSchedule
    from .sampling.bound import LikelihoodBound as LikelihoodBound
    from .sampling.check import check as check
    from .sampling.likelihood import bits_per_dim as bits_per_dim
    from .sampling.likelihood import density_bound as density_bound
    from .sampling.sampler import Sampler as Sampler
    from .sampling.scheduler import AnalyticScheduler as AnalyticScheduler
    from .sampling.step_costs import StepCosts as StepCosts
    from .sampling.step_costs import step_costs as step_costs
    from .variance.conditions import Conditions as Conditions
    from .variance.covariance import Analytic as Analytic
    from .variance.covariance import FixedLarge as FixedLarge
    from .variance.covariance import FixedSmall as FixedSmall
    from .variance.encode import encode_latents as encode_latents
    from .variance.estimate import estimate as estimate
    from .variance.head import Head as Head
    from .variance.head import HeadSpec as HeadSpec
    from .variance.learned import LearnedRange as LearnedRange
    from .variance.table import VarianceTable as VarianceTable

_HOMES = {
    "Analytic": "variance.covariance",
    "AnalyticScheduler": "sampling.scheduler",
    "Conditions": "variance.conditions",
    "Denoiser": "models.denoiser",
    "DiffusionVarWarning": "errors",
    "FixedLarge": "variance.covariance",
    "FixedSmall": "variance.covariance",
    "Head": "variance.head",
    "HeadSpec": "variance.head",
    "InputError": "errors",
    "LikelihoodBound": "sampling.bound",
    "LearnedRange": "variance.learned",
    "NoiseSchedule": "process.schedule",
    "NumericalError": "errors",
    "Posterior": "models.posterior",
    "ReverseKernel": "process.kernel",
    "Sampler": "sampling.sampler",
    "StepCosts": "sampling.step_costs",
    "VarianceTable": "variance.table",
    "bits_per_dim": "sampling.likelihood",
    "check": "sampling.check",
    "density_bound": "sampling.likelihood",
    "encode_latents": "variance.encode",
    "estimate": "variance.estimate",
    "step_costs": "sampling.step_costs",
}
_MODULES = {"metrics": "metrics", "oracles": "models.oracles", "steps": "steps", "training": "training"}

__all__ = [*sorted(_HOMES), *sorted(_MODULES), "__version__"]


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        return version("diffusion-var")
    if name in _MODULES:
        return import_module(f".{_MODULES[name]}", __name__)
    if name in _HOMES:
        return getattr(import_module(f".{_HOMES[name]}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
