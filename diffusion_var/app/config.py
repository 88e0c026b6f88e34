"""From flags and a YAML file to validated options: all problems are listed at once, each with its path.

A file holds the options of one command; or sections, one per command or script, so that one file can describe a whole
experiment (train the features and the network, then compare). Its keys are then names in `SECTIONS`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any, TypeVar

from ..checks import brief
from ..errors import InputError
from ..files import expanded
from .options import Options

K = TypeVar("K", bound=Options)

#: Names of commands and scripts. `steps` is an option of others, so that its options have a file of their own.
SECTIONS = frozenset(
    {"advise", "estimate", "sample", "nll", "restore", "fid", "stats", "compare"}
    | {"train_head", "train_unet", "train_features"}
)


def load_options(kind: type[K], flags: Mapping[str, Any], config: Path | None = None, section: str | None = None) -> K:
    """An option set from a YAML file (if any) and flags, which win; `section` is the part to take of a sectioned file.

    Raises InputError that lists every unknown key, missing option and wrong value with its path.
    """
    import pydantic

    from .yaml_text import read_yaml

    values = {} if config is None else _section(read_yaml(expanded(config)), section, config)
    values.update({name: value for name, value in flags.items() if value is not None})
    try:
        values = kind.prepared(values, config)
        found = pydantic.TypeAdapter(kind).validate_python(values)
        problems = list(_truths(values, vars(found)))
    except pydantic.ValidationError as error:
        problems = _readable(error, flags, config)
    if problems:
        count = "one problem" if len(problems) == 1 else f"{len(problems)} problems"
        where = f"the options in {config}" if config is not None else "the options"
        raise InputError(f"{where} have {count}:", problems)
    return _at_home(found)


def _truths(given: Any, held: Any, path: str = "") -> Iterator[str]:
    """Problems of `true` and `false` where a number is expected, which Python takes for 1 and 0."""
    held = vars(held) if isinstance(held, Options) else held
    if isinstance(given, bool) and not isinstance(held, bool):
        yield f"{path}: input should be a number, but got {given}"
    elif isinstance(given, dict) and isinstance(held, dict):
        for name in given:
            yield from _truths(given[name], held.get(name), f"{path}.{name}".removeprefix("."))
    elif isinstance(given, list) and isinstance(held, list | tuple):
        for k, (inner, kept) in enumerate(zip(given, held, strict=True)):
            yield from _truths(inner, kept, f"{path}.{k}")


def _at_home(options: K) -> K:
    """Options whose paths have the home folder in the place of a leading ~: no shell does it in quotes and configs."""
    for option in fields(options):
        value = getattr(options, option.name)
        if isinstance(value, Path):
            setattr(options, option.name, expanded(value))
        elif isinstance(value, list):
            for item in value:
                if isinstance(item, Options):
                    _at_home(item)
    return options


def _section(content: dict[str, Any], section: str | None, config: Path) -> dict[str, Any]:
    if not content or section is None or not set(content) <= SECTIONS:
        return content
    if not isinstance(content.get(section), dict):
        raise InputError(
            f"the config {config} has the sections {', '.join(content)}, but none called {section} that holds options; "
            "add it or choose another file."
        )
    return dict(content[section])


def _readable(error: Any, flags: Mapping[str, Any], config: Path | None) -> list[str]:
    """One line per option: pydantic reports a union's alternatives separately, and they are joined here."""
    lines: dict[str, list[str]] = {}
    for item in error.errors():
        location = [str(part) for part in item["loc"]]
        top = location[0] if location else ""
        # A union adds the alternative's name to the path ("steps.int", "steps.list[int]"): leave that out.
        named = location[: -1 if location[-1:] in (["str"], ["int"], ["float"]) else None]
        path = ".".join(part for part in named if part.isidentifier() or part.isdigit())
        path = top if item["type"] in ("int_parsing", "list_type", "int_type") and top == "steps" else path
        kind = item["type"]
        if kind in ("unexpected_keyword_argument", "extra_forbidden"):
            text = "unknown option; remove it or check its spelling"
        elif kind in ("missing", "missing_argument"):
            text = "is missing; give it as " + (
                f"--{top.replace('_', '-')} or in the config" if config is not None else f"--{top.replace('_', '-')}"
            )
        else:
            expected = item["msg"].partition(", unable to parse")[0]
            text = f"{expected[0].lower()}{expected[1:]}, but got {brief(item['input'])}"
        of_flag = flags.get(top) is not None and (path == top or path.removeprefix(f"{top}.").isdigit())
        name = f"--{top.replace('_', '-')}" if of_flag else path
        lines.setdefault(name, []).append(text)
    return [f"{name}: {' or '.join(dict.fromkeys(texts))}" for name, texts in lines.items()]
