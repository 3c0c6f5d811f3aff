"""params.yaml: what is accepted, and which key each error is about."""

import re
import subprocess
import sys

import pytest
from annotated_types import Ge, Gt, Le
from conftest import ROOT

from pipeline.errors import UserError
from pipeline.params import NOT_IN_RESULTS, Params, load_params

DEFAULTS = (ROOT / "params.yaml").read_text(encoding="utf-8")

# One line of the file, what it becomes, and the subject of the error.
BAD_LINES = [
    ("z_dim: 20", "z_dim: 0", "params.yaml: z_dim"),
    ("z_dim: 20", "z_dim: 1025", "params.yaml: z_dim"),
    ("z_dim: 20", "z_dim: 20.0", "params.yaml: z_dim"),
    ("z_dim: 20", "z_dim: '20'", "params.yaml: z_dim"),
    ("z_dim: 20", "z_dim: true", "params.yaml: z_dim"),
    ("z_dim: 20", "z_dim: [2, 5]", "params.yaml: z_dim"),
    ("z_dim: 20", "z_dim: 0x14", "params.yaml: z_dim"),
    ("z_dim: 20", "z_dim:", "params.yaml: z_dim"),
    ("z_dim: 20", "", "params.yaml: z_dim"),
    ("z_dim: 20", "zdim: 20", "params.yaml: zdim"),
    ("z_dim: 20", "z_dim: 20\nbeta: 4", "params.yaml: beta"),
    ("learning_rate: 1e-3", "learning_rate: .nan", "params.yaml: learning_rate"),
    ("learning_rate: 1e-3", "learning_rate: .inf", "params.yaml: learning_rate"),
    ("learning_rate: 1e-3", "learning_rate: 0", "params.yaml: learning_rate"),
    ("learning_rate: 1e-3", "learning_rate: fast", "params.yaml: learning_rate"),
    ("activation: relu", "activation: rulu", "params.yaml: activation"),
    ("dataset: mnist", "dataset: ../mnist", "params.yaml: dataset"),
    ("device: auto", "device: gpu", "params.yaml: device"),
    ("device: auto", "device: 0", "params.yaml: device"),
    ("device: auto", "device: cuda:100", "params.yaml: device"),
    ("device: auto", "device: cuda:07", "params.yaml: device"),
    ("z_dim: 20", "z_dim: 20\nz_dim: 2", "params.yaml"),
    ("z_dim: 20", "z_dim: {a: 1", "params.yaml"),
    ("z_dim: 20", "z_dim: !!python/object/apply:os.system [x]", "params.yaml"),
    ("z_dim: 20", "? [z_dim]\n: 20", "params.yaml"),
]
BAD_FILES = [b"", b"- z_dim\n", b"1: 2\n", b"\xff\xfe\x00", b"z_dim: \x00", b"a: " + b"[" * 10_000]


@pytest.fixture
def write(tmp_path):
    """Write params.yaml with one line changed and return its path."""

    def write_file(old: str = "", new: str = ""):
        assert old in DEFAULTS
        path = tmp_path / "params.yaml"
        path.write_text(DEFAULTS.replace(old, new, 1), encoding="utf-8")
        return path

    return write_file


def test_the_defaults_are_those_of_the_original_script(write):
    original = {
        "h_dim": 400, "h_layers": 1, "activation": "relu", "z_dim": 20,
        "num_epochs": 150, "batch_size": 128, "learning_rate": 1e-3,
    }  # fmt: skip
    assert original.items() <= load_params(write()).model_dump().items()


@pytest.mark.parametrize(("old", "new", "subject"), BAD_LINES)
def test_an_error_is_one_line_about_the_key(write, old, new, subject):
    with pytest.raises(UserError) as error:
        load_params(write(old, new))
    assert error.value.subject == subject
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("content", BAD_FILES)
def test_a_file_that_is_no_mapping_is_refused(write, content):
    path = write()
    path.write_bytes(content)
    with pytest.raises(UserError) as error:
        load_params(path)
    assert error.value.subject == "params.yaml"


def test_a_missing_file_is_reported(tmp_path):
    with pytest.raises(UserError) as error:
        load_params(tmp_path / "params.yaml")
    assert error.value.subject == "params.yaml"


def test_numbers_are_read_as_dvc_writes_them(write):
    assert load_params(write("1e-3", "1e-05")).learning_rate == 1e-5
    assert load_params(write("seed: 0 ", "seed: 010")).seed == 10  # YAML 1.2 has no octal 010


@pytest.mark.parametrize("device", ["cpu", "cuda", "cuda:0", "cuda:99", "mps"])
def test_every_device_name_is_accepted(write, device):
    assert load_params(write("device: auto", f"device: {device}")).device == device


def test_params_are_frozen(write):
    with pytest.raises(ValueError, match="frozen"):
        load_params(write()).z_dim = 3


def test_parameters_that_are_not_in_results_exist():
    assert set(Params.model_fields) >= NOT_IN_RESULTS


@pytest.mark.parametrize("stage", ["download", "train", "evaluate", "log"])
def test_a_stage_refuses_a_wrong_file_before_anything_else(write, tmp_path, stage):
    write("z_dim: 20", "z_dim: 0")
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
