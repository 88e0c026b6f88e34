"""Sentences of the package in the words of a command: options for arguments, and nothing else changed."""

import ast
import re
from collections.abc import Iterator

import pytest
from places import ROOT

from diffusion_var.app.cli import COMMANDS
from diffusion_var.app.words import PHRASES, spoken, words_of
from diffusion_var.errors import InputError, NumericalError

OPTIONS = (
    "batch_size",
    "eta",
    "guidance_scale",
    "unconditional",
    "data_range",
    "held_out",
    "structure",
    "steps",
    "krylov_steps",
    "out",
    "features",
    "inception_weights",
)
SAID = {
    "batch_size=0 must be at least 1.": "--batch-size 0 must be at least 1.",
    "eta=0.5 and tau=None; give one.": "--eta 0.5 and tau=None; give one.",
    "guidance_scale=2 needs one; pass unconditional= (a label), or guidance_scale=1.": (
        "--guidance-scale 2 needs one; pass --unconditional (a label), or --guidance-scale 1."
    ),
    "give it data_range=(-1, 1) or pass floats.": "give it --data-range -1,1 or pass floats.",
    "pass it as data_range.": "pass it as --data-range.",
    "pass its path as inception_weights=; features=digits or features=FILE.safetensors work without it.": (
        "pass its path as --inception-weights; --features digits or --features FILE.safetensors work without it."
    ),
    "no images, but held_out_labels; pass held_out=.": "no images, but held_out_labels; pass --held-out.",
    "structure='dct' is not known; use structure=\"pixel\".": "--structure dct is not known; use --structure pixel.",
    "data_range=3 must be a pair, low < high, or None.": "--data-range 3 must be a pair, low < high.",
    "structure=None does not go with it.": "no --structure does not go with it.",
    "steps=[5, 1, …] must rise.": "--steps 5,1,… must rise.",
    "leave out bounded=True.": "leave out bounded=True.",
    "the file /data_range/held_out.png, 'batch_size=3'.": "the file /data_range/held_out.png, 'batch_size=3'.",
    "wrap the network with Denoiser(callable, schedule, …).": (
        "or use Python, and wrap the network with dv.Denoiser(callable, schedule, …)."
    ),
    "Lanczos(steps=13) is more than 12; or take dv.Jacobian.": "--krylov-steps 13 is more than 12; or take jacobian.",
    "structure x, steps y.": "structure x, steps y.",
}


@pytest.mark.parametrize(("sentence", "said"), SAID.items(), ids=range(len(SAID)))
def test_arguments_become_options(sentence: str, said: str) -> None:
    with words_of(OPTIONS):
        assert spoken(sentence) == said
    assert spoken(sentence) == sentence  # outside of a command


@pytest.mark.parametrize("kind", [InputError, NumericalError])
def test_errors_are_put_into_the_words_of_the_command(kind: type[Exception]) -> None:
    with pytest.raises(kind, match=r"^--batch-size 0 is wrong$") as error, words_of(OPTIONS):
        raise kind("batch_size=0 is wrong")
    assert isinstance(error.value.__cause__, kind)
    with pytest.raises(InputError, match="batch_size: is wrong"), words_of(OPTIONS):
        raise InputError("problems:", ["batch_size: is wrong"])


# ---- every sentence of the package ----------------------------------------------------------------------------------

#: Rooms whose sentences no command shows: contracts for own classes, and diffusers pipelines.
PYTHON_ONLY = ("pipelines", "testing", "plots")
#: Arguments that no command has and whose sentences no command shows, with where they stand.
ELSEWHERE = {
    "name": "an own feature function's",
    "fingerprint": "an own feature function's",
    "keep": "statistics without features, which commands read from an npz alone",
    "s": "a kernel's own",
    "t": "a kernel's own",
    "n": "an index, as formulas have it",
    "N": "a schedule's length, as formulas have it",
    "rho": "of steps that commands name by their spacing",
    "sigma_min": "of steps that commands name by their spacing",
    "sigma_max": "of steps that commands name by their spacing",
    "prompts": "a list of texts, which commands read from a file",
    "layout": "of loaded pipelines, which commands know by their class",
    "bounded": "of a table's method",
    "eps_square": "a published array's, of which a table is made in Python",
    "conditional": "of a network that is wrapped in Python",
    "timestep_scale": "of a schedule that is made in Python",
    "told": "of a schedule that is made in Python",
    "call": "of a network that is wrapped in Python",
    "prediction": "of a network that is wrapped in Python",
    "values": "steps by their sigmas, a list that commands have validated",
    "visit": "of a sampler's method",
    "levels": "of a bound",
    "respaced": "of a covariance that is made in Python",
    "trace": "of the likelihood of a flow, which is Python's",
    "order": "of a method in a config, and of a sampler that is made in Python",
    "most": "of a covariance that commands name without it",
    "clamp": "of a covariance that commands name without it",
    "adjoint": "of a measurement that is made in Python",
    "through": "of a measurement that is made in Python",
    "solver": "of a conditioned denoiser that is made in Python",
    "condition": "of a denoiser that is called in Python",
}
CONFIG_ENTRIES = {
    "variance_type",
    "thresholding",
    "sample_size",
    "num_train_timesteps",
    "timestep_spacing",
    "steps_offset",
}
CONFIG_ENTRIES |= {"invert_sigmas", "prediction_type", "beta_schedule"}
#: Of a checkpoint of OpenAI's, by the names of their flags.
CONFIG_ENTRIES |= {"image_size", "num_heads", "num_head_channels", "diffusion_steps", "conv_resample"}
CONFIG_ENTRIES |= {"model_mean_type", "predict_xstart"}


def sentences() -> Iterator[tuple[str, str]]:
    """Where each sentence of errors and warnings is, and its constant parts, ␣ standing for what is put in."""
    for path in sorted((ROOT / "diffusion_var").rglob("*.py")):
        place = path.relative_to(ROOT / "diffusion_var")
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.Call):
                continue
            name = getattr(node.func, "id", getattr(node.func, "attr", ""))
            if name in (
                "InputError",
                "NumericalError",
                "refuse",
                "given",
                "warn",
                "whole",
                "number",
                "positive",
                "one_of",
            ):
                for part in (*node.args, *(keyword.value for keyword in node.keywords)):
                    text = "".join(
                        str(piece.value) if isinstance(piece, ast.Constant) else "␣"
                        for piece in (part.values if isinstance(part, ast.JoinedStr) else [part])
                    )
                    yield f"{place}:{node.lineno}", text


def options_of(command: str) -> set[str]:
    return set(COMMANDS[command][0].__dataclass_fields__)


EVERY = set().union(*(options_of(command) for command in COMMANDS))


def test_there_are_sentences_to_look_at() -> None:
    assert sum("=" in text for _, text in sentences()) > 50


def test_arguments_of_sentences_are_options_or_known_to_stay_in_python() -> None:
    unknown = []
    for place, text in sentences():
        if place.startswith(PYTHON_ONLY):
            continue
        with words_of(EVERY):
            left = re.findall(r"(?<![\w.])([a-z]\w*)=(?!=)", spoken(text))
        unknown += [f"{place} {name}=" for name in left if name not in {*ELSEWHERE, *CONFIG_ENTRIES}]
    assert unknown == []


def test_flags_stand_in_sentences_of_commands_alone() -> None:
    """Elsewhere an argument is called as Python has it; `files` says --overwrite for the commands that it serves."""
    found = [
        place for place, text in sentences() if re.search(r"--[a-z]", text) and not place.startswith(("app/", "files"))
    ]
    assert found == []


def test_flags_of_a_commands_sentences_are_its_own() -> None:
    wrong = []
    for place, text in sentences():
        own = re.sub(r"`diffusion-var [^`]*`", "", text)
        for flag in re.findall(r"--([a-z][a-z-]*)", own):
            module = place.partition(":")[0].removesuffix(".py").replace("/", ".").removeprefix("app.")
            commands = [name for name, (_, home) in COMMANDS.items() if home == module] or [*COMMANDS]
            if not any(flag.replace("-", "_") in {*options_of(name), "config"} for name in commands):
                wrong.append(f"{place} --{flag}")
        for command, rest in re.findall(r"`diffusion-var ([a-z-]+)([^`]*)`", text):
            wrong += [
                f"{place} {command} --{flag}"
                for flag in re.findall(r"--([a-z][a-z-]*)", rest)
                if flag.replace("-", "_") not in options_of(command)
            ]
    assert wrong == []


def test_phrases_that_are_translated_are_still_said() -> None:
    every = "\n".join(text for _, text in sentences())
    assert [phrase for phrase, _ in PHRASES if not re.search(phrase, every)] == []
