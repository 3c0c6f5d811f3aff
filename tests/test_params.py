"""params.yaml: what is accepted, and which key each error is about."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from annotated_types import Ge, Gt, Le
from conftest import ROOT, set_params

from pipeline.errors import UserError
from pipeline.params import NOT_IN_RESULTS, Params, load_params

DEFAULTS = (ROOT / "params.yaml").read_text(encoding="utf-8")

INVALID = {
    "z_dim": ["0", "1025", "20.0", "'20'", "true", "[2, 5]", "0x14", ""],
    "learning_rate": [".nan", ".inf", "0", "fast"],
    "activation": ["rulu"],
    "dataset": ["../mnist"],
    "device": ["gpu", "0", "cuda:100", "cuda:07"],
}
# What `z_dim: 20` becomes, and the subject of the error.
INVALID_LINES = {
    "": "params.yaml: z_dim",
    "zdim: 20": "params.yaml: zdim",
    "z_dim: 20\nbeta: 4": "params.yaml: beta",
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
    assert "\n" not in str(error.value)
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
def test_a_stage_refuses_an_invalid_file_before_anything_else(path, tmp_path, stage):
    set_params(tmp_path, {"z_dim": 0})
    command = [sys.executable, "-m", f"pipeline.stages.{stage}"]
    env = {"PYTHONPATH": str(ROOT)}
    result = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True)
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr.startswith("params.yaml: z_dim: ") and result.stderr.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["params.yaml"]


@pytest.mark.parametrize("key", Params.model_fields)
def test_the_comment_in_params_yaml_states_the_range(key):
    comment = re.search(rf"^{key}: .*?# (.*)$", DEFAULTS, flags=re.MULTILINE)[1]
    limits = {type(limit): limit for limit in Params.model_fields[key].metadata}
    if Ge in limits:
        assert f"{limits[Ge].ge} ... {limits[Le].le}" in comment
    if Gt in limits:
        assert f"greater than {limits[Gt].gt}, at most {limits[Le].le}" in comment
