"""Where a scheduler's variances come from, and how they are kept: in its config, or in a file beside it.

    fixed_small, fixed_large, learned_range   nothing is kept
    analytic   isotropic, channel             lists of numbers in the config
               pixel, dct                     variance_table.safetensors beside it
    head                                      variance_head.safetensors beside it

All that is kept is one entry of the config, `variance`: structure, estimator and shape of what was measured, the lists
or the file's name, and a digest of what they belong to.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar

import torch

from .. import checks
from ..covariance.analytic import Analytic
from ..covariance.fixed import FixedLarge, FixedSmall, check_ddpm
from ..covariance.head import Head
from ..covariance.learned_range import LearnedRange
from ..covariance.lists import STRUCTURES as LISTED
from ..covariance.lists import VarianceLists
from ..covariance.reverse import ReverseCovariance
from ..errors import InputError
from ..models.features import FeatureTap, Watch
from ..models.posterior import Posterior
from ..models.pretrained.loop_checks import networks_of
from ..process.kernel import ReverseKernel
from ..variance.estimators import Estimator
from ..variance.table import VarianceTable
from .compatibility import check_table
from .config_checks import check_entry

SUFFIX = ".safetensors"
TABLE_FILE = "variance_table.safetensors"
HEAD_FILE = "variance_head.safetensors"
_MEASURED = ("analytic", "head")
_LISTS = ("posterior_variance", "clipping_cross", "clipping_shift")
_BELONG_TO = (
    *("num_train_timesteps", "beta_start", "beta_end", "beta_schedule", "trained_betas", "rescale_betas_zero_snr"),
    *("prediction_type", "clip_sample", "thresholding"),
)


class ConfigEntry(dict[str, Any]):
    """What a config keeps of a table or head, shown in short: diffusers prints the entries of a config that another
    scheduler does not know, and these hold a number for every timestep."""

    def __repr__(self) -> str:
        return f"<{self.get('structure')} variances of {self.get('file') or 'a table'}>"


class VarianceSource:
    """The variances of one scheduler.

    Args:
        config: of the scheduler; its `variance_type` and `variance` are read, and the rest is what they belong to.

    Attributes:
        kind: the variance_type.
        entry: what the config keeps, or None.
        covariance: what it makes; None while the table or head, which lies in a file, is not attached.
        held: that table or head.

    Raises InputError for an unknown variance_type, one that needs what is not there, and lists of another config.
    """

    #: The scheduler's name, as messages say it, and its variances of which nothing is kept.
    scheduler: ClassVar[str] = "AnalyticScheduler"
    unmeasured: ClassVar[dict[str, Callable[[], ReverseCovariance]]] = {
        "fixed_small": FixedSmall,
        "fixed_large": FixedLarge,
        "learned_range": LearnedRange,
    }

    def __init__(self, config: Mapping[str, Any]) -> None:
        self._config = config
        self.kind: str = self._checked_kind(config["variance_type"])
        self.entry: dict[str, Any] | None = config["variance"] if self.kind in _MEASURED else None
        self.held: VarianceTable | Head | None = None
        self.covariance: ReverseCovariance | None = None
        self._watch: Watch | None = None
        if self.kind in self.unmeasured:
            checks.refuse(
                config.get("variance") is not None,
                f"the config keeps variances of a table or head, but its variance_type is {self.kind!r}; restore "
                "variance_type='analytic' or 'head', or leave variance out.",
            )
            self.covariance = self.unmeasured[self.kind]()
        elif self.entry is None:
            raise InputError(_NEEDS[self.kind].replace("AnalyticScheduler", self.scheduler))
        else:
            check_entry(self.entry, self.scheduler)
            self._read(self.entry)

    def _checked_kind(self, kind: Any) -> str:
        types = (*self.unmeasured, *_MEASURED)
        plain = kind.removesuffix("_log") if isinstance(kind, str) else ""
        hint = f" ({plain!r} is the variance of which it names the logarithm)" if plain in types else ""
        checks.refuse(kind not in types, f"variance_type={kind!r} is not known; use one of {', '.join(types)}{hint}.")
        return str(kind)

    def _read(self, entry: Mapping[str, Any]) -> None:
        if self.file is not None and (Path(self.file).name != self.file or not self.file.endswith(SUFFIX)):
            raise InputError(
                f"the scheduler's config names the file {self.file!r}, but a plain file name beside the config is "
                f"expected, which ends in {SUFFIX}."
            )
        if self.file is None:
            self.covariance = self._listed(entry)

    # ---- what is kept -----------------------------------------------------------------------------------------

    @classmethod
    def entry_of_table(
        cls, table: VarianceTable, estimator: Estimator, structure: str, config: Mapping[str, Any]
    ) -> tuple[dict[str, Any], VarianceTable | None]:
        """What a config keeps of a table, and the table that goes beside it, if any."""
        entry: dict[str, Any] = {"structure": structure, "estimator": estimator}
        entry["shape"] = None if table.shape is None else list(table.shape)
        if structure in LISTED:
            entry |= cls.lists_of(table, estimator, structure)
            return {**entry, "digest": cls.settings_digest(config, entry)}, None
        kept = table.subset([structure])
        return {**entry, "file": TABLE_FILE, "digest": kept.digest}, kept

    @classmethod
    def entry_of_head(cls, head: Head) -> dict[str, Any]:
        """What a config keeps of a head."""
        shape = list(head.prior.shape)
        return {"structure": head.spec.structure, "shape": shape, "file": HEAD_FILE, "digest": head.digest}

    @classmethod
    def lists_of(cls, table: VarianceTable, estimator: Estimator, structure: str) -> dict[str, Any]:
        """The numbers that a table comes down to, which fit into a config."""
        return VarianceLists.from_table(table, estimator, structure).lists()

    @classmethod
    def settings_digest(cls, config: Mapping[str, Any], entry: Mapping[str, Any]) -> str:
        """The digest of those numbers and of what they belong to."""
        return _settings_digest(config, entry)

    def check_table(self, table: VarianceTable) -> None:
        """Refuse a table that was measured for another config."""
        check_table(table, self._config)

    def _listed(self, entry: Mapping[str, Any]) -> ReverseCovariance:
        variances = checks.given(entry.get("posterior_variance"), "the config's variance has no posterior_variance.")
        lists = VarianceLists(variances, entry.get("clipping_cross"), entry.get("clipping_shift"))
        count, N = len(lists.variances), self._config["num_train_timesteps"]
        checks.refuse(
            count != N,
            f"posterior_variance has {count} entries, but num_train_timesteps is {N}; make the scheduler with "
            "AnalyticScheduler.from_table.",
        )
        checks.refuse(
            entry.get("digest") not in (None, self.settings_digest(self._config, entry)),
            "posterior_variance was measured under another schedule, prediction type, clipping, estimator or structure "
            "than the config has now, or holds other numbers than were written; make the scheduler with "
            "AnalyticScheduler.from_table.",
        )
        return lists

    @property
    def file(self) -> str | None:
        """The name of the file beside the config; None where nothing lies there."""
        return None if self.entry is None else self.entry.get("file")

    def attach(self, held: VarianceTable | Head) -> None:
        """Take the table or head that the config names; InputError for another one."""
        noun, kind, call = (
            ("head", Head, "from_head") if self.kind == "head" else ("table", VarianceTable, "from_table")
        )
        if not isinstance(held, kind) or self.entry is None or self.file is None:
            asked = "head" if isinstance(held, Head) else "table"
            raise InputError(
                f"the scheduler's config names no {asked}; use {self.scheduler}.from_{asked} to give it one."
            )
        wanted = self.entry.get("digest")
        if wanted not in (None, held.digest):
            raise InputError(
                f"this {noun} (digest {held.digest[:12]}) is not the one that the scheduler was made with "
                f"({wanted[:12]}); use {self.scheduler}.{call} for another."
            )
        table = held.table if isinstance(held, Head) else held
        self.check_table(table)
        self.held = held
        self.covariance = (
            held if isinstance(held, Head) else Analytic(held, self.entry["estimator"], self.entry["structure"])
        )

    def save(self, folder: Path) -> None:
        """Write the table or head beside the config, if there is one; InputError if it should be there and is not."""
        if self.file is None:
            return
        held, noun = self.held, "head" if self.kind == "head" else "table"
        if held is None:
            call = "attach_head(head)" if self.kind == "head" else "attach(table)"
            raise InputError(
                f"the scheduler's {noun} ({self.file}) is not attached, so that it cannot be saved; call "
                f"scheduler.{call} first."
            )
        folder.mkdir(parents=True, exist_ok=True)
        held.save(folder / self.file)

    def load(self, find: Callable[[str, str], Path]) -> None:
        """Attach the file beside the config, if there is one; `find` gives its path from noun and name."""
        if self.file is not None:
            kind: Any = Head if self.kind == "head" else VarianceTable
            self.attach(kind.load(find("head" if self.kind == "head" else "table", self.file)))

    # ---- what a step asks -------------------------------------------------------------------------------------

    def attached(self) -> ReverseCovariance:
        """The covariance; InputError while its file is not attached."""
        noun, call = ("head", "attach_head(head)") if self.kind == "head" else ("table", "attach(table)")
        sentence = (
            f"the scheduler's {noun} ({self.file}) is not attached; load the scheduler with "
            f"{self.scheduler}.from_pretrained, or call scheduler.{call}."
        )
        return checks.given(self.covariance, sentence)

    def check_kernel(self, kernel: ReverseKernel) -> None:
        """Refuse an η that the variance is not defined for."""
        if self.kind in ("fixed_large", "learned_range"):
            check_ddpm(kernel, f"variance_type={self.kind!r}", "use eta=1")

    def check_sample(self, shape: tuple[int, ...]) -> None:
        """Refuse samples that were not measured: of other channels, or, with a variance per element, another size."""
        measured = None if self.entry is None else self.entry.get("shape")
        if measured is None or tuple(measured) == shape:
            return
        structure = self.entry["structure"] if self.entry is not None else None
        checks.refuse(
            structure in ("pixel", "dct") or measured[0] != shape[0],
            f"the sample has shape {shape}, but the table was measured on {tuple(measured)} with structure "
            f"{structure!r}; use the table of this model and size (isotropic and channel serve every size).",
        )

    def split(self, model_output: torch.Tensor, channels: int) -> tuple[torch.Tensor, torch.Tensor | None]:
        """The prediction and the raw learned range; InputError where the channels do not fit the variance_type."""
        learned, found = self.kind == "learned_range", model_output.shape[1]
        expected = 2 * channels if learned else channels
        advice = "pass another variance_type" if learned else "set it to 'learned_range', or pass the first half"
        checks.refuse(
            found != expected,
            f"model_output has {found} channels for a sample with {channels}, but variance_type={self.kind!r} "
            f"expects {expected}; {advice}.",
        )
        return (model_output[:, :channels], model_output[:, channels:]) if learned else (model_output, None)

    # ---- the trunk's features, for heads ----------------------------------------------------------------------

    def watch(self, source: Any) -> None:
        """Read the features of a pipeline's (or a bare) network at every evaluation, for `features`."""
        if not isinstance(self.held, Head):
            raise InputError(
                f"the scheduler has no head, so that it needs no features; use {self.scheduler}.from_head."
            )
        network = network_of(source)
        network = source if network is None else network
        tap = FeatureTap(network, self.held.spec.module, len(self.held.prior.shape) - 1)
        if self._watch is not None:
            self._watch.remove()
        self._watch = tap.watch()

    def features(self, given: torch.Tensor | None, batch: int) -> torch.Tensor | None:
        """The features of a step's images: those given, or those of the network's last evaluation, which serve once;
        None where no head asks for them."""
        if self.kind != "head":
            return None
        watched = None if self._watch is None else self._watch.take(batch)
        if given is not None:
            return given
        missing = (
            "a head needs the features of the network's evaluation at this step, but none was seen since the last "
            "step; call scheduler.watch(pipe) (again after loading a pipeline), or pass features= to step."
        )
        features, guided = checks.given(watched, missing)
        if guided and isinstance(self.held, Head) and not self.held.target.any_mean:
            raise InputError(
                f"the network was evaluated with guidance, but the head's target {self.held.spec.target!r} takes its "
                "mean for E[x_0|x_t]; use a head of target 'npr', 'factor' or 'bands', trained with that guidance."
            )
        return features

    def posterior(
        self, mean: torch.Tensor, eps: torch.Tensor, raw: torch.Tensor | None, features: torch.Tensor | None
    ) -> Posterior:
        """What a covariance is asked with; `features` as `step` was given them."""
        extra = None if raw is None else raw.to(mean.dtype)
        return Posterior(mean, eps, extra, self.features(features, len(mean)))


def network_of(pipe: Any) -> torch.nn.Module | None:
    """The denoising network of a pipeline, or None; where there are two for different noise levels, both."""
    return networks_of(pipe, ("unet", "transformer"))


def require_network(pipe: Any) -> torch.nn.Module:
    """The denoising network of a pipeline; InputError where it has none."""
    return checks.given(
        network_of(pipe),
        f"{type(pipe).__name__} has no network (unet or transformer) whose variances a table could hold; where it has "
        "one under another name, give pipe.scheduler.config instead of the pipeline.",
    )


def _settings_digest(config: Mapping[str, Any], entry: Mapping[str, Any]) -> str:
    """SHA-256 of lists of variances and of what they belong to: of the config's own values, which no machine rounds."""
    bound = config["clip_sample_range"] if config["clip_sample"] else None
    facts = {name: config[name] for name in _BELONG_TO} | {"bound": bound}
    facts |= {name: entry.get(name) for name in ("estimator", "structure", *_LISTS)}
    if facts["trained_betas"] is not None:
        facts["trained_betas"] = [float(beta) for beta in facts["trained_betas"]]
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


_NEEDS = {
    "head": "variance_type='head' needs a trained head, but there is none; make the scheduler with "
    "AnalyticScheduler.from_head(head, pipe).",
    "analytic": "variance_type='analytic' needs a variance table, but there is none; make the scheduler with "
    "AnalyticScheduler.from_table(table, pipe.scheduler.config).",
}
