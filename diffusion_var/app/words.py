"""The package's sentences in the words of a command: what Python calls `batch_size=0` is `--batch-size 0` here."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from ..errors import InputError, NumericalError

#: What a command has another word for than for an argument: (in Python, in a command).
PHRASES = (
    (r"condition= or conditions=", "--classes or --prompts"),
    (r"\bautocast=", "--dtype"),
    (r"wrap (it|the network) with Denoiser\(", r"or use Python, and wrap \1 with dv.Denoiser("),
    (r"\bdv\.estimate\b", "`diffusion-var estimate`"),
    (r"\b(dv\.)?density_bound\b", "`diffusion-var nll --continuous`"),
    (r"\bLanczos\(steps=([^)]*)\)", r"krylov_steps=\1"),
    (r"\bdv\.Jacobian\b", "jacobian"),
    (r"\bFixedSmall\b", "beta_tilde"),
    (r"\bFixedLarge\b", "beta"),
    (r"\bLearnedRange\b", "learned_range"),
    (r"\b(?:dv\.)?Analytic\b(?!-)", "analytic"),
    (r", or None\.", "."),  # where an option is left out
    (r", or None for", ", or leave it out for"),
)
_BEFORE, _AFTER = r"(?<![\w/\\.'\"`$=-])", r"(?![\w/\\'\"=-]|\.\w)"  # not in a path, a quotation or another word
_VALUE = r"=(\([^()]*\)|\[[^\[\]]*\]|'[^']*'|\"[^\"]*\"|[^\s,;:)]*[^\s,;:).])?"

_options: ContextVar[Collection[str]] = ContextVar("options", default=())


@contextmanager
def words_of(options: Collection[str]) -> Iterator[None]:
    """Inside, sentences are for a command with these options (names as in Python), errors being put into them too."""
    token = _options.set(options)
    try:
        yield
    except (InputError, NumericalError) as error:
        if (said := spoken(str(error))) == str(error):
            raise
        raise type(error)(said) from error
    finally:
        _options.reset(token)


def spoken(sentence: str) -> str:
    """A sentence of the package in the words of the command that runs; lists of problems have them already."""
    options = _options.get()
    if not options or "\n" in sentence:
        return sentence
    for phrase, said in PHRASES:
        sentence = re.sub(phrase, said, sentence)
    names = "|".join(sorted(map(re.escape, options), key=len, reverse=True))
    sentence = re.sub(rf"{_BEFORE}({names}){_VALUE}", lambda found: _flag(found[1], found[2] or ""), sentence)
    several = "|".join(name for name in options if "_" in name)
    return re.sub(rf"{_BEFORE}({several}){_AFTER}", lambda found: _flag(found[1]), sentence) if several else sentence


def _flag(name: str, value: str = "") -> str:
    if value == "None":
        return f"no --{name.replace('_', '-')}"
    text = value[1:-1].replace(", ", ",").rstrip(",") if value[:1] in ("(", "[", "'", '"') else value
    text = value if " " in text else text
    return f"--{name.replace('_', '-')}" + (f" {text}" if text not in ("", "True") else "")
