"""Flags from option dataclasses, and what every program does with mistakes.

A command or script is one function of one option set (`options`): its flags, their help and `--config` are made here.
Bad input ends with one clear message and exit code 2; an interruption with 130, a scheduler's SIGTERM with 143, and a
word on how to go on.
"""

from __future__ import annotations

import inspect
import sys
import warnings
from collections.abc import Callable
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Annotated, Any, get_args, get_origin, get_type_hints

import typer

from ..errors import DiffusionVarWarning, InputError, NumericalError
from ..stopping import StopSignals, exit_code, unwinding, word
from . import options as option_sets

_ARGUMENT = "_argument"  # ends the name of what is given without a flag


def new_app(name: str | None = None, help_text: str | None = None) -> typer.Typer:
    """An empty application in the project's manner: plain help, no tracebacks of its own."""
    return typer.Typer(
        name=name,
        help=help_text,
        no_args_is_help=name is not None,
        add_completion=False,
        pretty_exceptions_enable=False,
        rich_markup_mode=None,
    )


def run_app(app: typer.Typer) -> None:
    """Run an application and end as the module docstring says."""
    warnings.showwarning = _show_warning
    try:
        with StopSignals():
            app()
    except (InputError, NumericalError) as error:
        typer.echo(f"error: {error}", err=True)
        sys.exit(2)
    except MemoryError:
        _out_of_memory()
    except RuntimeError as error:  # torch.OutOfMemoryError is one, and torch is not to be imported for its sake
        if "OutOfMemory" not in type(error).__name__ and "can't allocate memory" not in str(error):
            raise
        _out_of_memory()
    except OSError as error:
        if error.errno is None:
            raise
        where = f" ({error.filename})" if error.filename else ""
        typer.echo(f"error: the operating system refused{where}: {error.strerror}.", err=True)
        sys.exit(2)


def _out_of_memory() -> None:
    typer.echo("error: out of memory; lower --batch-size.", err=True)
    sys.exit(2)


def _show_warning(message: Any, category: Any, filename: str, lineno: int, file: Any = None, line: Any = None) -> None:
    if issubclass(category, DiffusionVarWarning):
        typer.echo(f"warning: {message}", err=True)
    elif not issubclass(category, (DeprecationWarning, FutureWarning)):
        sys.stderr.write(warnings.formatwarning(message, category, filename, lineno, line))


def command(app: typer.Typer, kind: type[Any], name: str) -> Callable[[Callable[[Any], None]], Callable[[Any], None]]:
    """Register a function of one option set as a command, with a flag per option and --config."""

    def register(function: Callable[[Any], None]) -> Callable[[Any], None]:
        def run(config: Path | None = None, **flags: Any) -> None:
            from .config import load_options

            hints = _hints(kind)
            flags = _placed(flags, _positional(hints))
            values = {key: _parse(value, hints[key]) for key, value in flags.items()}
            try:
                with unwinding():
                    function(load_options(kind, values, config, section=name.replace("-", "_")))
            except KeyboardInterrupt as stop:
                typer.echo(f"\n{word(stop)}; the same command continues where it can.", err=True)
                raise typer.Exit(exit_code(stop)) from None

        run.__signature__ = inspect.Signature(_parameters(kind))  # type: ignore[attr-defined]
        run.__doc__ = kind.__doc__
        app.command(name, help=kind.__doc__)(run)
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


def _parameters(kind: type[Any]) -> list[inspect.Parameter]:
    """A keyword parameter per option; all optional, since a config may give them."""
    by_name = {f.name: f for f in fields(kind)}
    out = []
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
        elif default is not None and inner is not bool:
            shown = ",".join(map(str, default)) if isinstance(default, list) else default
            text += f"  [default: {shown}]"
        choices = _choices(inner)
        names = [f"--{name.replace('_', '-')}"] + (["-o"] if name == "out" else [])
        metavar = None if inner is bool else "|".join(choices) if choices else _metavar(inner)
        option = typer.Option(None, *names, help=text, metavar=metavar, show_default=False)
        out.append(inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=option, annotation=flag | None))
    option = typer.Option(
        None, "--config", help="YAML file with the same names; flags win", metavar="FILE", show_default=False
    )
    out.append(inspect.Parameter("config", inspect.Parameter.KEYWORD_ONLY, default=option, annotation=Path | None))
    return out


def _choices(hint: Any) -> list[str]:
    if "Literal" in str(get_origin(hint)):
        return list(get_args(hint))
    return [choice for arg in get_args(hint) for choice in _choices(arg)]


def _metavar(hint: Any) -> str:
    text = str(hint)
    for name in ("list[int]", "float", "int", "Path"):
        if name in text:
            return {"list[int]": "N,N,…", "float": "NUMBER", "int": "INT", "Path": "PATH"}[name]
    return "TEXT"


def _parse(value: Any, hint: Any) -> Any:
    """A flag's text as pydantic wants it: split at commas for lists; one number stays one where either is allowed."""
    inner = get_args(hint)[0]
    alternatives = [inner] if get_origin(inner) is list else list(get_args(inner))
    if not isinstance(value, str) or not any(get_origin(a) is list for a in alternatives):
        return value
    return value if int in alternatives and "," not in value else [part.strip() for part in value.split(",")]
