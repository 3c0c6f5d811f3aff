"""params.yaml: what is accepted, and which key each error is about."""

import importlib
import re
import shutil
from pathlib import Path
from typing import get_args

import pytest
from conftest import ROOT, set_params, use_folder

from pipeline.errors import UserError
from pipeline.params import DEFAULTS as ADDED
from pipeline.params import NEEDS, NOT_IN_RESULTS, Params, check_params, load_params, read_yaml

DEFAULTS = (ROOT / "params.yaml").read_text(encoding="utf-8")

RANGES = re.findall(r"^(\w+):.*, ([\d.]+) \.\.\. ([\d.]+)", DEFAULTS, flags=re.MULTILINE)
INVALID = {
    "z_dim": ["20.0", ".nan", "'20'", '"2\\n0"', "true", "[2, 5]", "0x14", "", "9" * 400],
    "learning_rate": ["1.1", ".nan", ".inf", "0", "-1e-3", "fast", "true"],
    "activation": ["rulu", "1", "[]"],
    "dataset": ["../mnist", "7"],
    "device": ["gpu", "0", "cuda:100", "cuda:07"],
}
# What `z_dim: 20` becomes, and the subject of the error.
INVALID_LINES = {
    "": "params.yaml: z_dim",
    "zdim: 20": "params.yaml: zdim",
    "z_dim: 20\ngamma: 4": "params.yaml: gamma",
    "z_dim: 20\nz_dim: 2": "params.yaml",
    "z_dim: {a: 1": "params.yaml",
    "z_dim: !!python/object/apply:os.system [x]": "params.yaml",
    "? [z_dim]\n: 20": "params.yaml",
}
INVALID_FILES = [
    b"",
    b"- z_dim\n",
    b"1: 2\n",
    b"\xff\xfe\x00",
    b"z_dim: \x00",
    b"a: " + b"[" * 10_000,
]


@pytest.fixture
def path(tmp_path):
    return Path(shutil.copy(ROOT / "params.yaml", tmp_path))


def refused(path: Path) -> str:
    """The subject of the error."""
    with pytest.raises(UserError) as error:
        load_params(path)
    assert "\n" not in str(error.value) and len(str(error.value)) < 300
    return error.value.subject


def test_the_defaults_are_those_of_the_original_script(path):
    original = {
        "h_dim": 400, "h_layers": 1, "activation": "relu", "z_dim": 20,
        "num_epochs": 150, "batch_size": 128, "learning_rate": 1e-3,
    }  # fmt: skip
    assert original.items() <= load_params(path).model_dump().items()


@pytest.mark.parametrize("key", INVALID)
def test_an_invalid_value_is_an_error_about_its_key(path, key):
    for value in INVALID[key]:
        path.write_text(re.sub(rf"(?m)^{key}: .*", f"{key}: {value}", DEFAULTS), encoding="utf-8")
        assert refused(path) == f"params.yaml: {key}", value


@pytest.mark.parametrize(("line", "subject"), INVALID_LINES.items())
def test_an_invalid_line_is_an_error_about_its_key_or_the_file(path, line, subject):
    path.write_text(re.sub(r"(?m)^z_dim: .*", lambda _: line, DEFAULTS), encoding="utf-8")
    assert refused(path) == subject


@pytest.mark.parametrize("content", INVALID_FILES)
def test_a_file_without_a_mapping_is_refused(path, content):
    path.write_bytes(content)
    assert refused(path) == "params.yaml"


def test_a_missing_file_is_reported(tmp_path):
    assert refused(tmp_path / "params.yaml") == "params.yaml"


def test_numbers_are_read_as_dvc_writes_them(path):
    set_params(path.parent, {"learning_rate": "1e-05", "seed": "010"})
    params = load_params(path)
    assert (params.learning_rate, params.seed) == (1e-5, 10)  # YAML 1.2 has no octal 010


def test_parameters_that_are_not_in_results_exist():
    assert set(Params.model_fields) >= NOT_IN_RESULTS


@pytest.mark.parametrize("stage", ["download", "train", "evaluate", "log"])
def test_a_stage_refuses_an_invalid_file_before_anything_else(path, monkeypatch, stage):
    use_folder(monkeypatch, path.parent)
    set_params(path.parent, {"z_dim": 0})
    with pytest.raises(UserError) as error:
        importlib.import_module(f"pipeline.stages.{stage}").main()
    assert error.value.subject == "params.yaml: z_dim"
    assert [*path.parent.iterdir()] == [path]


@pytest.mark.parametrize(("key", "low", "high"), RANGES)
def test_the_range_in_the_comment_is_what_is_accepted(path, key, low, high):
    step = 1 if low.isdecimal() else 0.01
    for value in (low, high):
        fitting = {other: allowed[0] for needy, other, allowed in NEEDS if needy == key}
        longest = {"num_epochs": 100_000} if key == "warmup_epochs" else {}
        set_params(path.parent, fitting | longest | {key: value})
        assert str(getattr(load_params(path), key)) in (value, f"{value}.0")
    for value in (float(low) - step, float(high) + step):
        set_params(path.parent, {key: int(value) if step == 1 else value})
        assert refused(path) == f"params.yaml: {key}"


UNFIT = {  # the values that leave the key without meaning
    ("prior_components", "prior"): {"normal"}, ("beta", "objective"): {"iwae", "dreg"},
    ("warmup_epochs", "objective"): {"iwae", "dreg"}, ("free_bits", "objective"): {"iwae", "dreg"},
    ("free_bits", "prior"): {"mixture", "vamp"},
    ("sigma", "likelihood"): {"bernoulli", "continuous_bernoulli"},
    ("binarize", "likelihood"): {"continuous_bernoulli", "gaussian"},
    ("conditional", "prior"): {"vamp"}, ("patience", "val_size"): {0},
}  # fmt: skip


@pytest.mark.parametrize(("key", "other"), UNFIT)
def test_a_parameter_without_meaning_is_refused_with_both_keys(path, key, other):
    """And accepted with every other value."""
    value = {"binarize": "fixed", "conditional": "true"}.get(key, 2)
    for given in get_args(Params.model_fields[other].annotation) or (0, 1):
        shutil.copy(ROOT / "params.yaml", path)
        set_params(path.parent, {other: given})
        load_params(path)
        set_params(path.parent, {key: value})
        if given not in UNFIT[key, other]:
            assert load_params(path)
            continue
        with pytest.raises(UserError, match=f"no meaning with {other}: {given}") as error:
            load_params(path)
        assert error.value.subject == f"params.yaml: {key}"


def test_a_file_from_before_a_parameter_was_added_means_the_same(path):
    older = {key: value for key, value in read_yaml(path).items() if key not in ADDED}
    assert check_params(older, path.name) == load_params(path)


def test_a_warm_up_as_long_as_the_training_is_refused(path):
    set_params(path.parent, {"num_epochs": 5, "warmup_epochs": 4})
    assert load_params(path).warmup_epochs == 4
    set_params(path.parent, {"warmup_epochs": 5})
    with pytest.raises(UserError, match="less than num_epochs: 5") as error:
        load_params(path)
    assert error.value.subject == "params.yaml: warmup_epochs"


def test_the_optimal_sigma_is_refused_where_it_is_not_optimal(path):
    set_params(path.parent, {"likelihood": "gaussian", "sigma": "optimal"})
    assert load_params(path).sigma == "optimal"
    set_params(path.parent, {"objective": "iwae"})
    with pytest.raises(UserError, match="objective: iwae") as error:
        load_params(path)
    assert error.value.subject == "params.yaml: sigma"
