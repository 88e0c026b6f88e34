"""Flags from option dataclasses, and what every program does with mistakes.

A command or script is one function of one option set (`options`): its flags, their help and `--config` are made here.
Bad input ends with one clear message and exit code 2, below its traceback if --debug asks for that; an interruption
with 130, a scheduler's SIGTERM with 143, and a word on how to go on.
"""

from __future__ import annotations

import inspect
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Annotated, Any, get_args, get_origin, get_type_hints

import typer

from ..checks import brief
from ..errors import DiffusionVarWarning, InputError
from ..parallel import is_first
from ..progress import quiet
from ..stopping import StopSignals, exit_code, unwinding, word
from . import options as option_sets
from .shell_patterns import restored
from .terminal import complain, sentence_of, streams_for_people
from .together import end, leave, together
from .words import spoken

_ARGUMENT = "_argument"  # ends the name of what is given without a flag
#: Other names of a flag.
_ALSO = {"out": ["-o"], "model": ["--pipeline"]}


def new_app(name: str | None = None, help_text: str | None = None) -> typer.Typer:
    """An empty application in the project's manner: plain help, no tracebacks of its own."""
    return typer.Typer(
        name=name,
        help=help_text,
        no_args_is_help=name is not None,
        add_completion=name is not None,
        context_settings={"help_option_names": ["-h", "--help"]},
        pretty_exceptions_enable=False,
        rich_markup_mode=None,
    )


def run_app(app: typer.Typer) -> None:
    """Run an application and end as the module docstring says."""
    with streams_for_people(), StopSignals():
        warnings.showwarning = _show_warning
        try:
            app()
        except Exception as error:
            code = end(error)
        except SystemExit as done:  # as typer ends
            code = done.code if isinstance(done.code, int) else int(done.code is not None)
        else:
            code = 0
        leave(code)
        sys.exit(code)


@contextmanager
def _in_full(wanted: bool) -> Iterator[None]:
    """Show the traceback, with causes, of an error of which there is else a sentence alone."""
    try:
        yield
    except Exception as error:
        if wanted and sentence_of(error) is not None:
            complain("".join(traceback.format_exception(error)).rstrip(), most=None)
        raise


def _show_warning(message: Any, category: Any, filename: str, lineno: int, file: Any = None, line: Any = None) -> None:
    if issubclass(category, DiffusionVarWarning):
        complain(f"warning: {spoken(str(message))}")
    elif is_first() and not issubclass(category, (DeprecationWarning, FutureWarning)):
        complain(warnings.formatwarning(message, category, filename, lineno, line).rstrip())


def command(
    app: typer.Typer, kind: type[Any], name: str, short: str | None = None, shared: bool = True
) -> Callable[[Callable[[Any], None]], Callable[[Any], None]]:
    """Register a function of one option set as a command, with a flag per option and --config.

    `short` stands in the list of commands, where the first sentence of the option set's docstring is too long; `shared`
    is whether the processes that a launcher started share the work, or the first one does it.
    """

    def register(function: Callable[[Any], None]) -> Callable[[Any], None]:
        def run(
            context: typer.Context,
            config: Path | None = None,
            silent: bool = False,
            debug: bool = False,
            **flags: Any,
        ) -> None:
            from .config import load_options

            hints = _hints(kind)
            debug = debug or context.find_root().params.get("debug", False)

            def read() -> Any:
                given, loose = _with_patterns(hints, context.args, flags)
                given = _placed(given, _positional(hints))
                values = {key: _parse(value, hints[key]) for key, value in given.items()}
                _refuse_loose(name, kind, loose, given, config is not None)
                return load_options(kind, values, config, section=name.replace("-", "_"))

            try:
                with _in_full(debug), unwinding(), quiet(silent), together(name, read, hints, shared) as options:
                    function(options)
            except KeyboardInterrupt as stop:
                complain(f"\n{word(stop)}; the same command continues where it can.")
                raise typer.Exit(exit_code(stop)) from None

        run.__signature__ = inspect.Signature(_parameters(kind))  # type: ignore[attr-defined]
        run.__doc__ = kind.__doc__
        app.command(name, help=kind.__doc__, short_help=short, context_settings={"allow_extra_args": True})(run)
        return function

    return register


def _hints(kind: type[Any]) -> dict[str, Any]:
    hints = get_type_hints(kind, include_extras=True)
    # Keyword-only options are those that several commands share: a command's own come first.
    own_first = sorted(fields(kind), key=lambda f: bool(f.kw_only))
    return {f.name: hints[f.name] for f in own_first if get_origin(hints[f.name]) is Annotated}


def _positional(hints: dict[str, Any]) -> list[str]:
    """The options that may be given without their flags, in their order."""
    return [name for name, hint in hints.items() if option_sets.Positional in get_args(hint)[2:]]


def _placed(values: dict[str, Any], names: list[str]) -> dict[str, Any]:
    """Arguments without flags go to the options that have not got one, in their order."""
    arguments = [text for name in names if (text := values.pop(f"{name}{_ARGUMENT}")) is not None]
    free = [name for name in names if values[name] is None]
    if len(arguments) > len(free):
        raise InputError(f"{names[-1]} is given twice, by its flag and as {arguments[-1]!r}; leave out one of the two.")
    return {**values, **dict(zip(free, arguments, strict=False))}


def _refuse_loose(
    command: str, kind: type[Any], words: list[str], flags: dict[str, str | None], has_config: bool
) -> None:
    """Words that belong to no option: it is said which options they may be meant for."""
    if not words:
        return
    required = [f.name for f in fields(kind) if MISSING is f.default is f.default_factory]
    needed = [name for name in required if flags[name] is None and not has_config]
    shown = " ".join(brief(word)[1:-1] for word in words[:4]) + (" …" if len(words) > 4 else "")
    meant = " ".join(f"--{name.replace('_', '-')} {word}" for name, word in zip(needed, words, strict=False))
    hint = f"say {meant}" if meant and len(words) <= len(needed) else f"see diffusion-var {command} --help"
    raise InputError(f"{command} does not take {shown!r} without the name of an option; {hint}.")


def _with_patterns(
    hints: dict[str, Any], words: list[str], flags: dict[str, str | None]
) -> tuple[dict[str, str | None], list[str]]:
    """Flags and loose words, with patterns of images in the place of the files that a shell has made of them."""
    slots = [key for key in flags if key.endswith(_ARGUMENT)]
    given = [key for key in slots if flags[key] is not None]
    bare = [*(str(flags[key]) for key in given), *words]
    named = {
        key: text for key, hint in hints.items() if "Path" not in str(hint) and isinstance(text := flags[key], str)
    }
    options, bare = restored(named, bare)
    filled = dict(zip(slots, bare, strict=False))
    return {**flags, **dict.fromkeys(slots), **filled, **options}, bare[len(filled) :]


def _parameters(kind: type[Any]) -> list[inspect.Parameter]:
    """A keyword parameter per option; all optional, since a config may give them."""
    by_name = {f.name: f for f in fields(kind)}
    out = [inspect.Parameter("context", inspect.Parameter.KEYWORD_ONLY, annotation=typer.Context)]
    for name in _positional(_hints(kind)):
        argument = typer.Argument(None, metavar=name.upper(), help=f"the same as --{name}", show_default=False)
        out.append(
            inspect.Parameter(
                f"{name}{_ARGUMENT}", inspect.Parameter.KEYWORD_ONLY, default=argument, annotation=str | None
            )
        )
    for name, hint in _hints(kind).items():
        inner, text = get_args(hint)[:2]
        f = by_name[name]
        default = f.default_factory() if f.default_factory is not MISSING else f.default
        flag = bool if inner is bool else str
        if default is MISSING:
            text += "  [required]"
        elif default not in (None, {}) and inner is not bool:
            shown = ",".join(map(str, default)) if isinstance(default, list) else default
            text += f"  [default: {shown}]"
        choices = _choices(inner)
        choices += ["NUMBER"] if choices and float in get_args(inner) else []
        names = [f"--{name.replace('_', '-')}", *_ALSO.get(name, [])]
        metavar = None if inner is bool else "|".join(choices) if choices else _metavar(inner)
        option = typer.Option(None, *names, help=text, metavar=metavar, show_default=False)
        out.append(inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=option, annotation=flag | None))
    option = typer.Option(
        None, "--config", help="YAML file with the same names; flags win", metavar="FILE", show_default=False
    )
    out.append(inspect.Parameter("config", inspect.Parameter.KEYWORD_ONLY, default=option, annotation=Path | None))
    option = typer.Option(False, "--quiet", "-q", help="show no progress", show_default=False)
    out.append(inspect.Parameter("silent", inspect.Parameter.KEYWORD_ONLY, default=option, annotation=bool))
    option = typer.Option(False, "--debug", help="show an error's traceback, with its causes", show_default=False)
    out.append(inspect.Parameter("debug", inspect.Parameter.KEYWORD_ONLY, default=option, annotation=bool))
    return out


def _choices(hint: Any) -> list[str]:
    if "Literal" in str(get_origin(hint)):
        return list(get_args(hint))
    return [choice for arg in get_args(hint) for choice in _choices(arg)]


def _metavar(hint: Any) -> str:
    text = str(hint)
    shown = {
        "dict[str": "NAME=VALUE,…",
        "list[int]": "N,N,…",
        "list[float]": "X,X,…",
        "float": "NUMBER",
        "int": "INT",
        "Path": "PATH",
    }
    return next((words for name, words in shown.items() if name in text), "TEXT")


def _parse(value: Any, hint: Any) -> Any:
    """A flag's text as pydantic wants it: split at commas for lists; one number stays one where either is allowed."""
    inner = get_args(hint)[0]
    alternatives = [inner] if get_origin(inner) is list else list(get_args(inner))
    if isinstance(value, str) and str not in alternatives and any(get_origin(a) is dict for a in alternatives):
        return _pairs(value)
    if not isinstance(value, str) or not any(get_origin(a) is list for a in alternatives):
        return value
    return value if int in alternatives and "," not in value else [part.strip() for part in value.split(",")]


def _pairs(text: str) -> dict[str, bool | int | float | str]:
    """NAME=VALUE,NAME=VALUE as a mapping: numbers and switches as YAML has them, all else text."""
    from yaml import YAMLError, safe_load

    found: dict[str, bool | int | float | str] = {}
    for pair in text.split(","):
        name, equals, value = (part.strip() for part in pair.partition("="))
        wrong = not (equals and name.isidentifier() and value) or name in found
        if wrong:
            raise InputError(
                f"{brief(pair)} is no NAME=VALUE of its own; write pairs with commas between, of distinct names."
            )
        try:
            plain = safe_load(value)
        except YAMLError:
            plain = value
        found[name] = plain if isinstance(plain, bool | int | float) else value
    return found
