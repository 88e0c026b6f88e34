"""Any diffusers pipeline as a network: its own loop, stopped at its first step.

Pipelines differ in how they pack latents, mask and order prompts, tell their network the timestep (t, t/1000,
(1000 − t)/1000 with the output negated), guide, and renormalise what they guided. None of that is written again here.
One evaluation runs the pipeline's own `__call__` on a copy of the pipeline, whose

    scheduler         offers one timestep, the level's; its `step` takes the model output, and ends the run
    encode_prompt     hands back what the text encoders said of the prompts, which they were asked once
    prepare_latents   hands back x_t, in the pipeline's own order and precision

so that a model output is what the pipeline's loop computes, by construction, of pipelines that nobody here knows too.
The pipeline itself is never changed; it and its copy share their networks.
"""

from __future__ import annotations

import copy
import inspect
import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch

from ... import checks
from ...errors import InputError
from ...unwrapping import has_hook, is_placed, unwrapped
from ..conditions import rows_of
from ..fingerprint import weights_fingerprint
from ..guidance import OwnGuidance
from ..network_checks import move
from .layout import Layout, layout_named, layout_of
from .loop_checks import (
    WRAP,
    check_call,
    check_pipeline,
    check_sample,
    check_weights,
    first_time,
    modules_of,
    network_name,
    networks_of,
)
from .loop_copy import Stop, Task, as_latents, copy_class, stand_in
from .prompt_record import LENGTHS, PipelinePrompts, PromptRecord

#: What of a pipeline its loop does not run.
BESIDE_THE_LOOP = ("text_encoder", "vae", "vqvae", "image_encoder", "safety_checker", "vocoder")
_PARALLEL = (torch.nn.DataParallel, torch.nn.parallel.DistributedDataParallel)
_ANY = "a"  # a prompt to look at what prompts become


class PipelineLoop(torch.nn.Module):
    """A pipeline's loop as a network: (x_t (B, C, *spatial), timestep (B,), condition) -> model output, like x_t.

    Args:
        pipe: the pipeline.
        call: what its `__call__` is given beside prompts: sizes, guidance, negative prompts.
        layout: how its samples become images; None: by its class.

    Attributes:
        shape: (C, *spatial) of one sample at the call's size.
        evaluations: of its network, for one image; more than one where it is guided.
        guidance_scale: of classifier-free guidance, by the pipeline's own convention, whose 1 may be guided (Z-Image
            guides from 0 on); 1 where its network is evaluated once an image.
        embedded_guidance: the guidance scale that the network is told as an argument; None where it takes none.

    Raises InputError, with what is missing, for pipelines that cannot be run so.
    """

    #: The name of the module that this one is around, for whoever asks what the network is (`unwrapping`).
    wraps = "network"
    #: The pipeline's code brings x_t to the precision that its network takes.
    casts_inputs = True

    def __init__(
        self, pipe: Any, call: Mapping[str, Any], device: torch.device, layout: Layout | str | None = None
    ) -> None:
        super().__init__()
        self.pipe, self.call, self._layout = pipe, dict(call), layout
        name = network_name(pipe)
        self._parameters_of_call = dict(inspect.signature(type(pipe).__call__).parameters)
        check_pipeline(pipe, self._parameters_of_call)
        check_weights(pipe)
        check_call(pipe, self.call, self._parameters_of_call)
        self.network = checks.given(networks_of(pipe), "the pipeline has no network.")
        inside = (*BESIDE_THE_LOOP, name)
        others = {k: m for k, m in modules_of(pipe).items() if not k.startswith(inside)}
        self.beside = torch.nn.ModuleDict(others)
        for holder in (self, self.beside):  # the networks themselves are left in the modes that they have
            holder.training = False
        if isinstance(self.network, torch.nn.ModuleDict):
            self.network.training = False
        self._copied = copy_class(type(pipe))
        self._stand_in = stand_in(pipe.scheduler)
        self.record: PromptRecord | None = None
        self._encoder: PipelineLoop | None = None
        if not is_placed(self):
            move(self, device)
        with first_time(pipe):
            self._look(device)

    # ---- what it is ---------------------------------------------------------------------------------------------

    def _look(self, device: torch.device) -> None:
        """One evaluation, which tells the shape, the guidance and what the text encoders give."""
        said = None
        if self.takes_prompts:
            with text_encoders_on(self.pipe, device):
                one, two = self._said_of([_ANY], device), self._said_of([_ANY, _ANY], device)
            self.record = PromptRecord.of(one, two, self._name)
            said = self.record.flat(one)
        with torch.no_grad(), self._counting() as rows:
            task = self._run(1, Task(device, timestep=self._timestep()), said)
        check_sample(task, self._name)
        layout = layout_of(self.pipe) if self._layout is None else layout_named(self._layout)
        self.shape = _image_shape(task, layout, self._name)
        self.layout = layout.of(self.shape)
        config = getattr(unwrapped(getattr(self.pipe, network_name(self.pipe))), "config", {})
        value, told = self._value, bool(dict(config).get("guidance_embeds"))
        self.evaluations = sum(rows)
        self.guidance_scale = float(value(self.scale_name, self.evaluations)) if self.guided else 1.0
        self.embedded_guidance = float(value("guidance_scale", 1.0)) if told else None

    @property
    def guided(self) -> bool:
        """Whether its network is evaluated more than once an image."""
        return self.evaluations > 1

    @property
    def takes_prompts(self) -> bool:
        """Whether a prompt goes with every image."""
        return self.takes("prompt")

    @property
    def scale_name(self) -> str:
        """The argument of the pipeline that is the scale of classifier-free guidance."""
        return "true_cfg_scale" if self.takes("true_cfg_scale") else "guidance_scale"

    @property
    def facts(self) -> dict[str, Any]:
        """What decides its means beside its weights: how often the network is evaluated, the guidance that it is told,
        the networks beside it and what else the call says of guidance, which tables remember, and the plain values of
        its call, which runs that go on do."""
        plain = {name: value for name, value in self.call.items() if isinstance(value, bool | int | float | str)}
        told = {} if self.embedded_guidance is None else {"embedded_guidance": self.embedded_guidance}
        beside = weights_fingerprint(self.beside) if len(self.beside) else "none"
        return {
            "call": plain,
            "evaluations_an_image": self.evaluations,
            "beside": beside,
            "steered": self._steered(plain),
            **told,
        }

    def _steered(self, plain: Mapping[str, Any]) -> dict[str, Any]:
        """What else the call says of guidance, by name; what is empty or the default is as what is left out."""
        scales = {name for name in plain if name.endswith("_scale") or "guidance" in name}
        texts = {name for name in plain if name.startswith("negative_prompt")} if self.guided else set()
        names = sorted(scales - {self.scale_name, "guidance_scale"} | texts)
        defaults = {name: self._parameters_of_call[name].default for name in names}
        return {name: plain[name] for name in names if plain[name] not in ("", defaults[name])}

    @property
    def _name(self) -> str:
        return type(self.pipe).__name__

    def _value(self, name: str, default: Any) -> Any:
        parameter = self._parameters_of_call.get(name)
        found = self.call.get(name, None if parameter is None else parameter.default)
        return found if checks.is_number(found) else default

    def _timestep(self) -> float:
        times = self.pipe.scheduler.timesteps
        return float(times[len(times) // 2])

    @contextmanager
    def _counting(self) -> Iterator[list[int]]:
        """How many images the network is given in each of its evaluations inside."""
        rows: list[int] = []

        def count(_: Any, __: Any, out: Any) -> None:
            first: Any = out[0] if isinstance(out, tuple) else getattr(out, "sample", out)
            rows.append(len(first))

        several = isinstance(self.network, torch.nn.ModuleDict)
        counted = self.network.children() if several else [self.network]
        hooks = [unwrapped(network).register_forward_hook(count) for network in counted]
        try:
            yield rows
        finally:
            for hook in hooks:
                hook.remove()

    @property
    def guidance(self) -> OwnGuidance | None:
        """Its classifier-free guidance, if it is guided."""
        return OwnGuidance(self.guidance_scale, ()) if self.guided else None

    def with_guidance(self, scale: float, device: torch.device) -> PipelineLoop:
        """The same loop with classifier-free guidance of another scale; 1 means none."""
        scale = checks.number("guidance_scale", scale, "a finite number; 1 means no guidance")
        return self.without_guidance(device) if scale == 1 else self._at(scale, device)

    def without_guidance(self, device: torch.device) -> PipelineLoop:
        """The same loop without classifier-free guidance: at the scale of 1 and 0 that evaluates its network once, of
        which pipelines have either; at 1 where other guidance (PAG) leaves neither."""
        at_one = self._at(1.0, device)
        if not at_one.guided:
            return at_one
        at_zero = self._at(0.0, device)
        return at_one if at_zero.guided else at_zero

    def _at(self, scale: float, device: torch.device) -> PipelineLoop:
        call = called_with_scale(self.call, self.scale_name, scale, self.takes("negative_prompt"))
        made = PipelineLoop(self.pipe, call, device, self.layout.name)
        if self.guidance is not None and made.guidance is None and self.record is not None and self.record.apart:
            made.record, made._encoder = self.record, self._encoder or self  # its prompts serve without guidance too
        return made

    def prompts(self, device: torch.device) -> PipelinePrompts | None:
        """What encodes its prompts, if it takes some."""
        return PipelinePrompts(partial(self.encoded, device=device)) if self.takes_prompts else None

    def takes(self, name: str) -> bool:
        """Whether the pipeline's `__call__` has an argument of this name."""
        return name in self._parameters_of_call

    def encoded(self, prompts: Sequence[str], device: torch.device) -> dict[str, torch.Tensor]:
        """The conditions of prompts, each encoded alone."""
        if self._encoder is not None:
            return self._encoder.encoded(prompts, device)
        assert self.record is not None
        with text_encoders_on(self.pipe, device), first_time(self.pipe):
            return self.record.conditions([self.record.flat(self._said_of([p], device)) for p in prompts])

    # ---- one evaluation -----------------------------------------------------------------------------------------

    def forward(self, x: torch.Tensor, timestep: torch.Tensor, condition: Any = None) -> torch.Tensor:
        """The model output of the pipeline's loop, images of one level and one length of prompt at a time."""
        if self.record is not None:
            self.record.check(condition, self._name)
        groups = _groups(timestep, None if self.record is None else condition[LENGTHS])
        self._order = torch.tensor([row for rows in groups for row in rows]).argsort()
        return self._ordered([self._evaluate(x, timestep, condition, rows) for rows in groups])

    def _ordered(self, parts: list[torch.Tensor]) -> torch.Tensor:
        return parts[0] if len(parts) == 1 else torch.cat(parts)[self._order.to(parts[0].device)]

    def features_in_order(self, seen: list[torch.Tensor]) -> list[torch.Tensor]:
        """What a layer was given in the parts of the last evaluation, as one batch in its order. InputError with
        guidance, where each image is evaluated twice."""
        checks.refuse(
            self.guided,
            f"a head reads the features of one evaluation an image, but {self._name} is guided here "
            f"(guidance_scale={self.guidance_scale:g}); make the denoiser with guidance_scale=1, or "
            "with 0 where its pipeline guides at 1.",
        )
        return [self._ordered(seen)] if seen else seen

    def _evaluate(self, x: torch.Tensor, timestep: torch.Tensor, condition: Any, rows: list[int]) -> torch.Tensor:
        part: Any = slice(None) if len(rows) == len(x) else torch.tensor(rows, device=x.device)
        said = None if self.record is None else self.record.leaves(rows_of(condition, part))
        given = self.layout.samples(x[part])
        task = self._run(len(rows), Task(x.device, given, float(timestep[rows[0]])), said)
        assert task.output is not None
        out = as_latents(task.output, given.shape)
        return self.layout.images(out)

    def _run(self, batch: int, task: Task, said: Sequence[torch.Tensor] | None) -> Task:
        """The pipeline's own `__call__` up to its first step."""
        task.said = None if said is None or self.record is None else self.record.calls(said, task.device)
        whole = self._called(task)
        run = inspect.unwrap(type(self.pipe).__call__)  # without the no_grad around it: gradients may pass
        log = logging.getLogger(type(self.pipe).__module__)
        silent, log.disabled = log.disabled, True  # what it says of the call, it said where prompts were encoded
        try:
            run(whole, **self._arguments(batch, task.device))
        except Stop:
            return task
        finally:
            log.disabled = silent
        raise InputError(f"{self._name} ended without a step of its scheduler; {WRAP}.")

    def _said_of(self, prompts: list[str], device: torch.device) -> list[Any]:
        """What the text encoders say of prompts: the results of the calls of `encode_prompt`, in their order."""
        task = Task(device, encodes=[])
        whole = self._called(task)
        try:
            with torch.no_grad():
                inspect.unwrap(type(self.pipe).__call__)(whole, **self._arguments(len(prompts), device, prompts))
        except Stop:
            pass
        assert task.encodes is not None
        checks.refuse(not task.encodes, f"{self._name} does not call encode_prompt before its loop; {WRAP}.")
        return task.encodes

    def _called(self, task: Task) -> Any:
        """The copy that runs one task."""
        whole, scheduler = copy.copy(self.pipe), copy.copy(self.pipe.scheduler)
        whole.__class__, scheduler.__class__ = self._copied, self._stand_in
        scheduler.__dict__["task"] = task
        bare = {k: unwrapped(m) for k, m in modules_of(self.pipe).items() if isinstance(m, _PARALLEL)}
        whole.__dict__.update(bare, scheduler=scheduler, task=task, _progress_bar_config={"disable": True})
        return whole

    def _arguments(self, batch: int, device: torch.device, prompts: list[str] | None = None) -> dict[str, Any]:
        """Those of the pipeline's `__call__`; texts are for every image."""
        found: dict[str, Any] = {}
        for name, value in self.call.items():
            of_images = name.startswith(("prompt", "negative_prompt")) and isinstance(value, str)
            found[name] = [value] * batch if of_images else value
        if self.takes_prompts:
            found["prompt"] = prompts or [""] * batch
        elif self.takes("batch_size"):
            found["batch_size"] = batch
        if self.takes("strength"):  # of pipelines that begin with an image, whose first steps are left out
            found |= {"strength": 1.0, "num_inference_steps": 1}
        if self.takes("generator"):  # what it draws is not used, and nobody else's numbers are
            found["generator"] = torch.Generator(device).manual_seed(0)
        if self.takes("output_type"):
            found["output_type"] = "latent"
        return found


# ---- its parts ------------------------------------------------------------------------------------------------------


def called_with_scale(call: Mapping[str, Any], name: str, scale: float, negative: bool) -> dict[str, Any]:
    """A call with a guidance scale in the argument `name`; pipelines with a true_cfg_scale do not guide without a
    negative prompt (`negative`: whether they take one)."""
    given = {**call, name: scale}
    if name == "true_cfg_scale" and negative and scale > 1:
        given.setdefault("negative_prompt", "")
    return given


@contextmanager
def text_encoders_on(pipe: Any, device: torch.device) -> Iterator[None]:
    """The text encoders on a device inside, and on the CPU afterwards, so that their memory is the network's; where
    accelerate's hooks place them, they are left to those."""
    mine = (m for name, m in modules_of(pipe).items() if name.startswith("text_encoder"))
    found = [module for module in mine if not (has_hook(module) or is_placed(module))]
    if device.type == "cpu":
        yield
        return
    for module in found:
        module.to(device)
    try:
        yield
    finally:
        for module in found:
            module.to("cpu")


def _groups(timestep: torch.Tensor, lengths: torch.Tensor | None) -> list[list[int]]:
    """The rows of a batch that share a level, and prompts of one length."""
    keys: list[Any] = timestep.tolist()
    if lengths is not None:
        keys = list(zip(keys, map(tuple, lengths.tolist()), strict=True))
    found: dict[Any, list[int]] = {}
    for row, key in enumerate(keys):
        found.setdefault(key, []).append(row)
    return list(found.values())


def _image_shape(task: Task, layout: Layout, name: str) -> tuple[int, ...]:
    """(C, *spatial) of one sample. Of packed ones it is what they were before, without axes of one place (frames of
    images) that the layout does not know."""
    assert task.latents is not None
    sample = tuple(task.latents.shape[1:])
    if layout.is_plain:
        return sample
    if layout.name == "channels_last":
        return (sample[-1], *sample[:-1])
    for shape in (tuple(shape[1:]) for shape in task.unpacked):
        for found in (shape, *(shape[:k] + shape[k + 1 :] for k, size in enumerate(shape) if size == 1)):
            if _fits(layout, found, sample):
                return found
    raise InputError(
        f"the samples of {name}, {sample}, do not come from images {task.unpacked} in layout {layout.name}; give "
        "another layout=."
    )


def _fits(layout: Layout, shape: tuple[int, ...], sample: tuple[int, ...]) -> bool:
    try:
        return layout.sample_shape(shape) == sample
    except InputError:
        return False
