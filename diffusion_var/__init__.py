"""diffusion_var: the reverse covariance of diffusion models. Measure it once, sample and score with it.

Names are imported when first used, so that `import diffusion_var` and the command line's `--help` are quick.
"""

from typing import TYPE_CHECKING, Any

from .lazy import names_of

if TYPE_CHECKING:
    from . import data as data
    from . import metrics as metrics
    from . import plots as plots
    from . import restoration as restoration
    from . import steps as steps
    from . import testing as testing
    from . import training as training
    from .advice.advice import Advice as Advice
    from .advice.advise import advise as advise
    from .advice.diagnosis import Diagnosis as Diagnosis
    from .advice.doctor import diagnose as diagnose
    from .covariance.analytic import Analytic as Analytic
    from .covariance.averaged import Averaged as Averaged
    from .covariance.eps_square import EpsSquare as EpsSquare
    from .covariance.exact import ExactCovariance as ExactCovariance
    from .covariance.fixed import FixedLarge as FixedLarge
    from .covariance.fixed import FixedSmall as FixedSmall
    from .covariance.head import Head as Head
    from .covariance.head_spec import HeadSpec as HeadSpec
    from .covariance.jacobian import Jacobian as Jacobian
    from .covariance.lanczos import Lanczos as Lanczos
    from .covariance.learned_range import LearnedRange as LearnedRange
    from .covariance.learned_variance import LearnedVariance as LearnedVariance
    from .covariance.pigdm import PiGDM as PiGDM
    from .covariance.reverse import ReverseCovariance as ReverseCovariance
    from .covariance.reverse import StructuredCovariance as StructuredCovariance
    from .covariance.scaled import Scaled as Scaled
    from .errors import DiffusionVarWarning as DiffusionVarWarning
    from .errors import InputError as InputError
    from .errors import NetworkError as NetworkError
    from .errors import NumericalError as NumericalError
    from .errors import RankError as RankError
    from .likelihood.bound import Bound as Bound
    from .likelihood.bound import bits_per_dim as bits_per_dim
    from .likelihood.bound import density_bound as density_bound
    from .likelihood.decoder_costs import DecoderCosts as DecoderCosts
    from .likelihood.decoder_costs import decoder_costs as decoder_costs
    from .likelihood.ode import OdeLikelihood as OdeLikelihood
    from .likelihood.ode import ode_likelihood as ode_likelihood
    from .likelihood.result import LikelihoodBound as LikelihoodBound
    from .likelihood.step_costs import StepCosts as StepCosts
    from .likelihood.step_costs import step_costs as step_costs
    from .models import oracles as oracles
    from .models.adapted import Adapted as Adapted
    from .models.conditions import Conditions as Conditions
    from .models.denoiser import Denoiser as Denoiser
    from .models.identity import ModelIdentity as ModelIdentity
    from .models.posterior import Posterior as Posterior
    from .models.pretrained.encode import encode_latents as encode_latents
    from .models.product_cost import ProductCost as ProductCost
    from .models.product_cost import product_cost as product_cost
    from .parallel import alone as alone
    from .pipelines.choose import analytic_scheduler as analytic_scheduler
    from .pipelines.flow_scheduler import AnalyticFlowScheduler as AnalyticFlowScheduler
    from .pipelines.scheduler import AnalyticScheduler as AnalyticScheduler
    from .process.bands import Bands as Bands
    from .process.kernel import ReverseKernel as ReverseKernel
    from .process.level import NoiseLevel as NoiseLevel
    from .process.schedule import NoiseSchedule as NoiseSchedule
    from .process.structure import Structure as Structure
    from .restoration.conditioned import ConditionedDenoiser as ConditionedDenoiser
    from .restoration.jacobian import NetworkJacobian as NetworkJacobian
    from .restoration.measurement import Measurement as Measurement
    from .restoration.restore import Restoration as Restoration
    from .restoration.restore import restore as restore
    from .sampling.check import check as check
    from .sampling.euler_maruyama import EulerMaruyama as EulerMaruyama
    from .sampling.multistep import MultistepSampler as MultistepSampler
    from .sampling.sampler import Sampler as Sampler
    from .sampling.solvers import SolverSampler as SolverSampler
    from .variance.estimate import estimate as estimate
    from .variance.table import VarianceTable as VarianceTable

_HOMES = {
    "Adapted": ".models.adapted",
    "Advice": ".advice.advice",
    "Analytic": ".covariance.analytic",
    "AnalyticFlowScheduler": ".pipelines.flow_scheduler",
    "AnalyticScheduler": ".pipelines.scheduler",
    "Averaged": ".covariance.averaged",
    "Bands": ".process.bands",
    "Bound": ".likelihood.bound",
    "ConditionedDenoiser": ".restoration.conditioned",
    "Conditions": ".models.conditions",
    "DecoderCosts": ".likelihood.decoder_costs",
    "Denoiser": ".models.denoiser",
    "Diagnosis": ".advice.diagnosis",
    "DiffusionVarWarning": ".errors",
    "EpsSquare": ".covariance.eps_square",
    "EulerMaruyama": ".sampling.euler_maruyama",
    "ExactCovariance": ".covariance.exact",
    "FixedLarge": ".covariance.fixed",
    "FixedSmall": ".covariance.fixed",
    "Head": ".covariance.head",
    "HeadSpec": ".covariance.head_spec",
    "InputError": ".errors",
    "Jacobian": ".covariance.jacobian",
    "Lanczos": ".covariance.lanczos",
    "LearnedRange": ".covariance.learned_range",
    "LearnedVariance": ".covariance.learned_variance",
    "LikelihoodBound": ".likelihood.result",
    "Measurement": ".restoration.measurement",
    "ModelIdentity": ".models.identity",
    "NetworkError": ".errors",
    "MultistepSampler": ".sampling.multistep",
    "NetworkJacobian": ".restoration.jacobian",
    "NoiseLevel": ".process.level",
    "NoiseSchedule": ".process.schedule",
    "NumericalError": ".errors",
    "OdeLikelihood": ".likelihood.ode",
    "PiGDM": ".covariance.pigdm",
    "Posterior": ".models.posterior",
    "ProductCost": ".models.product_cost",
    "RankError": ".errors",
    "Restoration": ".restoration.restore",
    "ReverseCovariance": ".covariance.reverse",
    "ReverseKernel": ".process.kernel",
    "Sampler": ".sampling.sampler",
    "Scaled": ".covariance.scaled",
    "SolverSampler": ".sampling.solvers",
    "StepCosts": ".likelihood.step_costs",
    "Structure": ".process.structure",
    "StructuredCovariance": ".covariance.reverse",
    "VarianceTable": ".variance.table",
    "advise": ".advice.advise",
    "alone": ".parallel",
    "analytic_scheduler": ".pipelines.choose",
    "bits_per_dim": ".likelihood.bound",
    "check": ".sampling.check",
    "decoder_costs": ".likelihood.decoder_costs",
    "density_bound": ".likelihood.bound",
    "diagnose": ".advice.doctor",
    "encode_latents": ".models.pretrained.encode",
    "estimate": ".variance.estimate",
    "ode_likelihood": ".likelihood.ode",
    "product_cost": ".models.product_cost",
    "restore": ".restoration.restore",
    "step_costs": ".likelihood.step_costs",
}
_MODULES = {
    "data": ".data",
    "metrics": ".metrics",
    "oracles": ".models.oracles",
    "plots": ".plots",
    "restoration": ".restoration",
    "steps": ".steps",
    "testing": ".testing",
    "training": ".training",
}
# diffusers asks the library of a saved pipeline's scheduler for this base class too, to learn how it is loaded.
_ASKED_BY_DIFFUSERS = {"SchedulerMixin": ".pipelines.scheduler"}

__all__ = [*sorted(_HOMES), *sorted(_MODULES), "__version__"]
_find, _ = names_of(__name__, {**_HOMES, **_ASKED_BY_DIFFUSERS}, _MODULES)


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        return version("diffusion-var")
    return _find(name)


def __dir__() -> list[str]:
    return __all__
