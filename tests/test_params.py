import re
import subprocess
import sys
from pathlib import Path

import pytest
from annotated_types import Ge, Gt, Le
from conftest import committed

from pipeline.errors import InputError
from pipeline.params import Params, load_params

ROOT = Path(__file__).parents[1]
DEFAULTS = committed("params.yaml")

SCALE = "eval_proposal_scale"
ACTIVATIONS, DEVICES = "relu, tanh, gelu, silu", "auto, cpu, cuda, cuda:N, mps"

# (what is wrong, the line it replaces, the line it becomes, the whole message)
BAD = [
    ("too small", "z_dim: 20", "z_dim: 0", "z_dim: must be at least 1 (got 0)"),
    ("too large", "z_dim: 20", "z_dim: 99999", "z_dim: must be at most 1024 (got 99999)"),
    ("a float for an int", "z_dim: 20", "z_dim: 20.0", "z_dim: must be a whole number (got 20.0)"),
    ("a string for an int", "z_dim: 20", "z_dim: '20'", "z_dim: must be a whole number (got '20')"),
    ("a bool for an int", "z_dim: 20", "z_dim: true", "z_dim: must be a whole number (got true)"),
    ("a list for an int", "z_dim: 20", "z_dim: [2, 5]", "z_dim: must be a whole number (got [2, 5])"),
    ("empty", "z_dim: 20", "z_dim:", "z_dim: must be a whole number (got nothing)"),
    ("missing", "z_dim: 20", "", "z_dim: is missing"),
    ("misspelt", "z_dim: 20", "zdim: 20", "zdim: is not a known key (did you mean z_dim?)"),
    ("unknown", "z_dim: 20", "z_dim: 20\nbeta: 4", "beta: is not a known key"),
    ("given twice", "z_dim: 20", "z_dim: 20\nz_dim: 2", "z_dim: is given twice (line 10)"),
    ("not a number", "learning_rate: 1e-3", "learning_rate: .nan", "learning_rate: must be a finite number (got nan)"),
    ("infinite", "learning_rate: 1e-3", "learning_rate: .inf", "learning_rate: must be a finite number (got inf)"),
    ("zero", "learning_rate: 1e-3", "learning_rate: 0", "learning_rate: must be greater than 0 (got 0)"),
    ("a word", "learning_rate: 1e-3", "learning_rate: abc", "learning_rate: must be a finite number (got 'abc')"),
    ("a scale too small", f"{SCALE}: 1.4", f"{SCALE}: 0", f"{SCALE}: must be at least 0.1 (got 0)"),
    ("a scale too large", f"{SCALE}: 1.4", f"{SCALE}: 11", f"{SCALE}: must be at most 10 (got 11)"),
    ("no choice", "activation: relu", "activation: rulu", f"activation: must be one of {ACTIVATIONS} (got 'rulu')"),
    ("no device", "device: auto", "device: gpu", f"device: must be one of {DEVICES} (got 'gpu')"),
    ("a number for a device", "device: auto", "device: 0", f"device: must be one of {DEVICES} (got 0)"),
    ("a GPU too far", "device: auto", "device: cuda:200", f"device: must be one of {DEVICES} (got 'cuda:200')"),
    ("an octal GPU", "device: auto", "device: cuda:07", f"device: must be one of {DEVICES} (got 'cuda:07')"),
    ("broken YAML", "z_dim: 20", "z_dim: {a: 1", "is not valid YAML (line 10)"),
    ("a tag", "z_dim: 20", "z_dim: !!python/object/apply:os.system [x]", "is not valid YAML (line 9)"),
]  # fmt: skip


def write(folder: Path, old: str = "", new: str = "") -> Path:
    assert old in DEFAULTS
    path = folder / "params.yaml"
    path.write_text(DEFAULTS.replace(old, new, 1), encoding="utf-8")
    return path


def test_the_defaults_are_the_seeds(tmp_path):
    params = load_params(write(tmp_path)).model_dump()
    seed = {"h_dim": 400, "z_dim": 20, "num_epochs": 150, "batch_size": 128, "learning_rate": 1e-3, "h_layers": 1}
    assert seed.items() <= params.items() and params["activation"] == "relu"


@pytest.mark.parametrize(("old", "new", "said"), [case[1:] for case in BAD], ids=[case[0] for case in BAD])
def test_a_wrong_file_is_one_line_that_names_the_key(tmp_path, old, new, said):
    with pytest.raises(InputError) as caught:
        load_params(write(tmp_path, old, new))
    assert str(caught.value) == f"params.yaml: {said}"


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "must hold one `key: value` a line"),
        (b"- z_dim\n", "must hold one `key: value` a line"),
        (b"\xff\xfe\x00", "is not UTF-8 text"),
        (b"z_dim: \x00", "is not valid YAML"),
        (b"a: " + b"[" * 10_000, "is not valid YAML"),
        (b"z_dim: 2026-13-45", "is not valid YAML"),
    ],
    ids=["empty", "a list", "no text", "a null byte", "too deep", "no date"],
)
def test_what_is_no_params_file_is_one_line_too(tmp_path, content, said):
    (tmp_path / "params.yaml").write_bytes(content)
    with pytest.raises(InputError) as caught:
        load_params(tmp_path / "params.yaml")
    assert str(caught.value) == f"params.yaml: {said}"


def test_a_missing_file_is_one_line(tmp_path):
    with pytest.raises(InputError, match=r"^params.yaml: cannot be read \(No such file or directory\)$"):
        load_params(tmp_path / "params.yaml")


def test_what_dvc_writes_for_1e_minus_5_is_a_number(tmp_path):
    assert load_params(write(tmp_path, "1e-3", "1e-05")).learning_rate == 1e-5


@pytest.mark.parametrize("device", ["cpu", "cuda", "cuda:0", "cuda:7", "mps"])
def test_every_device_that_may_be_somewhere_is_a_valid_name(tmp_path, device):
    assert load_params(write(tmp_path, "device: auto", f"device: {device}")).device == device


def test_params_cannot_be_changed(tmp_path):
    with pytest.raises(ValueError, match="frozen"):
        load_params(write(tmp_path)).z_dim = 3


def test_a_command_says_the_line_and_ends_with_2(tmp_path):
    write(tmp_path, "z_dim: 20", "z_dim: 0")
    done = subprocess.run(
        [sys.executable, "-m", "pipeline.stages.download"],
        cwd=tmp_path, env={"PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "params.yaml: z_dim: must be at least 1 (got 0)\n"


@pytest.mark.parametrize("key", Params.model_fields)
def test_the_comment_in_params_yaml_states_the_range_that_is_checked(key):
    comment = re.search(rf"^{key}: .*?# (.*)$", DEFAULTS, flags=re.MULTILINE)
    assert comment, f"{key} has no comment"
    limits = {type(limit): limit for limit in Params.model_fields[key].metadata}
    if Ge in limits:
        assert f"{limits[Ge].ge} … {limits[Le].le}" in comment[1]
    if Gt in limits:
        assert f"greater than {limits[Gt].gt}, at most {limits[Le].le}" in comment[1]
