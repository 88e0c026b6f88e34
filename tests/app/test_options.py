"""Options: validation of flags and YAML, all problems at once, and the bundled config equal to the defaults."""

from pathlib import Path

import pytest
from places import ROOT

from diffusion_var.app.compare.options import CompareOptions, Method
from diffusion_var.app.config import load_options
from diffusion_var.app.flags import command, new_app
from diffusion_var.app.options import EstimateOptions, SampleOptions
from diffusion_var.errors import InputError


def test_bundled_config_is_the_defaults_of_compare() -> None:
    assert load_options(CompareOptions, {}, ROOT / "configs" / "digits.yaml") == CompareOptions()


def test_flags_win_over_the_config(tmp_path: Path) -> None:
    config = tmp_path / "c.yaml"
    config.write_text("model: a\nimages: b\nout: t.safetensors\ntolerance: 0.5\n")
    options = load_options(EstimateOptions, {"tolerance": "0.25", "seed": None}, config)
    assert (options.tolerance, options.model, options.out, options.seed) == (0.25, "a", Path("t.safetensors"), 0)


def test_all_problems_are_listed_at_once_with_their_paths(tmp_path: Path) -> None:
    config = tmp_path / "c.yaml"
    config.write_text(
        "count: many\nunknown_key: 1\nmethods:\n  - {covariance: beta}\n  - {covariance: gamma, colour: red}\n"
    )
    with pytest.raises(InputError) as error:
        load_options(CompareOptions, {"batch_size": "x"}, config)
    lines = str(error.value).splitlines()
    assert str(config) in lines[0]
    assert "5 problems" in lines[0]
    for path in ("count:", "unknown_key:", "methods.1.covariance:", "methods.1.colour:", "--batch-size:"):
        assert sum(line.strip().startswith(path) for line in lines) == 1, (path, lines)


def test_missing_options_are_named_by_their_flags() -> None:
    with pytest.raises(InputError, match=r"3 problems") as error:
        load_options(EstimateOptions, {})
    for flag in ("--model", "--images", "--out"):
        assert f"{flag}" in str(error.value)


@pytest.mark.parametrize(
    ("content", "said"),
    [("a: [", "not valid YAML"), ("- 1\n- 2\n", "must be a mapping"), ("1: 2\n", "must be a mapping")],
)
def test_broken_config_files(tmp_path: Path, content: str, said: str) -> None:
    config = tmp_path / "c.yaml"
    config.write_text(content)
    with pytest.raises(InputError, match=said):
        load_options(EstimateOptions, {}, config)
    with pytest.raises(InputError, match=r"there is no config .*check the path"):
        load_options(EstimateOptions, {}, tmp_path / "missing.yaml")


def test_steps_are_a_number_or_a_list() -> None:
    required = {"model": "m", "out": "o"}
    assert load_options(SampleOptions, {**required, "steps": "25"}).steps == 25
    assert load_options(SampleOptions, {**required, "steps": ["1", "50"]}).steps == [1, 50]
    with pytest.raises(InputError, match=r"one problem.*\n.*steps"):
        load_options(SampleOptions, {**required, "steps": "many"})


def test_method_labels_say_what_differs() -> None:
    labels = [method.label for method in CompareOptions().methods]
    assert len(set(labels)) == 15
    assert labels[:3] == ["DDPM β", "DDPM β̃", "DDIM"]
    assert Method("analytic", eta=0.0, structure="dct", final_noise_cap=1.0).label == "Analytic-DDIM dct, cap 1"
    assert Method("beta", name="mine").label == "mine"


def options_of(*words: str) -> EstimateOptions:
    """The options of a command line."""
    seen: list[EstimateOptions] = []
    app = new_app("program")
    command(app, EstimateOptions, "estimate")(seen.append)
    app.callback()(lambda: None)  # so that the command keeps its name
    app(["estimate", "--images", "b", "--out", "c", *words], standalone_mode=False)
    return seen[0]


def test_a_model_is_a_pipeline_too() -> None:
    options = options_of("--pipeline", "folder")
    assert options.model == "folder"
    assert options.call is None


def test_a_config_may_say_pipeline(tmp_path: Path) -> None:
    config = tmp_path / "c.yaml"
    config.write_text(
        "pipeline: a\nimages: b\nout: c\nweights_dtype: bf16\ncall: {height: 64, negative_prompt: ugly}\n"
    )
    options = load_options(EstimateOptions, {}, config)
    assert (options.model, options.weights_dtype) == ("a", "bfloat16")
    assert options.call == {"height": 64, "negative_prompt": "ugly"}


def test_arguments_of_a_pipelines_call_are_read_as_yaml_has_them() -> None:
    options = options_of("--model", "a", "--call", "height=64, strength=0.5,clip=true,negative_prompt=an ugly: thing")
    assert options.call == {"height": 64, "strength": 0.5, "clip": True, "negative_prompt": "an ugly: thing"}


@pytest.mark.parametrize("text", ["height", "height=", "=64", "height=64,height=32", "2d=1", ""])
def test_what_is_no_argument_of_a_call(text: str) -> None:
    with pytest.raises(InputError, match=r"is no NAME=VALUE of its own"):
        options_of("--model", "a", "--call", text)
