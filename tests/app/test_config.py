"""Configs with sections: one file for a whole experiment, each command taking its part; and the bundled ones."""

from pathlib import Path

import pytest
from places import ROOT

from diffusion_var.app.commands.train_features import TrainFeaturesOptions
from diffusion_var.app.commands.train_unet import TrainUNetOptions
from diffusion_var.app.compare.options import CompareOptions
from diffusion_var.app.config import SECTIONS, load_options
from diffusion_var.app.demo.options import DemoOptions
from diffusion_var.app.options import EstimateOptions, NllOptions, SampleOptions, StepsOptions, TrainHeadOptions
from diffusion_var.app.yaml_text import read_yaml
from diffusion_var.errors import InputError

BOTH = """\
train_unet:
  images: digits:train
  out: runs/model
  unet: {layers_per_block: 1}
  steps: 7
compare:
  steps: [2, 3]
"""


@pytest.fixture
def config(tmp_path):
    """A function that writes a config."""

    def write(text):
        path = tmp_path / "c.yaml"
        path.write_text(text)
        return path

    return write


def test_each_command_takes_its_own_section(config):
    path = config(BOTH)
    training = load_options(TrainUNetOptions, {}, path, "train_unet")
    assert (training.steps, training.unet, training.out) == (7, {"layers_per_block": 1}, Path("runs/model"))
    assert load_options(CompareOptions, {}, path, "compare").steps == [2, 3]


def test_the_demo_has_options_of_its_own(config):
    with pytest.raises(InputError, match="none called demo that holds options"):
        load_options(DemoOptions, {}, config(BOTH), "demo")
    assert load_options(DemoOptions, {"steps": ["2", "3"]}, None, "demo").steps == [2, 3]


def test_flags_win_over_a_section(config):
    options = load_options(TrainUNetOptions, {"steps": "9", "seed": None}, config(BOTH), "train_unet")
    assert (options.steps, options.seed, options.images) == (9, 0, "digits:train")


def test_a_file_of_one_command_needs_no_sections(config):
    path = config("images: a\nout: b\nsteps: 3\n")
    assert load_options(TrainUNetOptions, {}, path, "train_unet").steps == 3


def test_a_missing_or_empty_section_is_named(config):
    with pytest.raises(InputError, match=r"has the sections train_unet, compare, but none called estimate"):
        load_options(EstimateOptions, {}, config(BOTH), "estimate")
    for content in ("compare:\n", "compare: 5\n", "compare: [1]\n"):
        with pytest.raises(InputError, match="none called compare that holds options"):
            load_options(CompareOptions, {}, config(content), "compare")


def test_a_misspelt_section_is_an_unknown_option(config):
    with pytest.raises(InputError, match=r"trian_unet: unknown option"):
        load_options(CompareOptions, {}, config(BOTH.replace("train_unet", "trian_unet")), "compare")


def test_problems_within_a_section_are_listed_at_once(config):
    path = config("train_unet: {images: a, out: b, unet: 5, steps: x, colour: red, mixed_precision: fp16}\n")
    with pytest.raises(InputError, match="4 problems") as error:
        load_options(TrainUNetOptions, {}, path, "train_unet")
    lines = [line.strip() for line in str(error.value).splitlines()[1:]]
    assert sorted(line.split(":")[0] for line in lines) == ["colour", "mixed_precision", "steps", "unet"]


def test_a_section_is_not_mistaken_for_options_of_another_kind():
    """No option has the name of a section, so that a file is one or the other."""
    kinds = (EstimateOptions, SampleOptions, NllOptions, StepsOptions, CompareOptions, TrainUNetOptions)
    for kind in (*kinds, TrainFeaturesOptions, TrainHeadOptions):
        assert not SECTIONS & set(kind.__dataclass_fields__)


@pytest.mark.parametrize("path", sorted((ROOT / "configs").glob("*.yaml")), ids=lambda path: path.stem)
def test_bundled_configs_are_valid(path):
    kinds = {
        "compare": CompareOptions,
        "estimate": EstimateOptions,
        "sample": SampleOptions,
        "train_unet": TrainUNetOptions,
        "train_features": TrainFeaturesOptions,
        "train_head": TrainHeadOptions,
        "nll": NllOptions,
    }
    sections = set(read_yaml(path)) & SECTIONS or {"compare"}
    for section in sections:
        load_options(kinds[section], {}, path, section)


def test_a_number_or_a_word_is_one_problem_of_one_option():
    flags = {"model": "digits", "out": "x", "multistep": "much"}
    with pytest.raises(InputError, match=r"one problem:\n  --multistep: input should be 'auto'.* or .* a valid number"):
        load_options(SampleOptions, flags)


@pytest.mark.parametrize(
    ("text", "path"),
    [
        ("count: true", "count"),
        ("tolerance: false", "tolerance"),
        ("seeds: [0, true]", "seeds.1"),
        ("methods: [{covariance: beta}, {covariance: beta_tilde, eta: true}]", "methods.1.eta"),
    ],
)
def test_true_and_false_are_no_numbers(config, text, path):
    with pytest.raises(InputError, match=rf"c\.yaml have one problem:\n  {path}: input should be a number, but got "):
        load_options(CompareOptions, {}, config(text))
    assert load_options(CompareOptions, {}, config("overwrite: true\ncount: 7")).overwrite
