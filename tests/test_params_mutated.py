"""params.yaml as anybody may leave it: what is valid is accepted, what is not is refused by name, at once.

The ranges are written down here a second time, from the comments in params.yaml: an oracle of its own.
"""

import io
import math
import os
import random
import string
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import ROOT, committed, furnish
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from ruamel.yaml import YAML

from pipeline.errors import InputError
from pipeline.params import load_params

DEFAULTS = YAML(typ="safe").load(committed("params.yaml"))
WHOLE = {
    "val_size": (0, 50_000), "z_dim": (1, 1024), "h_dim": (1, 8192), "h_layers": (1, 8), "num_epochs": (1, 100_000),
    "batch_size": (1, 60_000), "seed": (0, 4_294_967_295), "sample_every": (1, 100_000),
    "eval_samples": (1, 100_000),
}  # fmt: skip
CHOICES = {
    "dataset": ("mnist",), "activation": ("relu", "tanh", "gelu", "silu"), "precision": ("float32", "bfloat16"),
}  # fmt: skip
DEVICES = st.one_of(
    st.sampled_from(["auto", "cpu", "cuda", "mps"]), st.integers(0, 99).map(lambda number: f"cuda:{number}")
)
KEYS = [*WHOLE, *CHOICES, "learning_rate", "eval_proposal_scale", "device"]

VALID = {
    **{key: st.integers(low, high) for key, (low, high) in WHOLE.items()},
    **{key: st.sampled_from(choices) for key, choices in CHOICES.items()},
    "learning_rate": st.one_of(st.floats(0, 1, exclude_min=True), st.just(1)),
    "eval_proposal_scale": st.floats(0.1, 10),
    "device": DEVICES,
}
WORDS = st.text(st.characters(codec="utf-8", exclude_categories=["Cs", "Cc"]), max_size=12)
# Plain words for keys: of `{:0: 0}`, as ruamel writes {":0": 0}, no reader can say which key of the file it belongs to.
NO_SCALAR = st.one_of(
    st.none(),
    st.booleans(),
    st.lists(st.integers(), max_size=3),
    st.dictionaries(st.sampled_from("abc"), st.integers(), max_size=2),
)
FLOATS = st.one_of(st.floats(), st.sampled_from([math.nan, math.inf, -math.inf, 0.5, 20.0, -0.0]))


def invalid(key: str) -> st.SearchStrategy:
    """Values that are none for this key, each for a reason that can be read off the comment in params.yaml."""
    if key in WHOLE:
        low, high = WHOLE[key]
        outside = st.one_of(st.integers(max_value=low - 1), st.integers(min_value=high + 1))
        return st.one_of(outside, FLOATS, WORDS, NO_SCALAR)
    if key == "learning_rate":
        outside = FLOATS.filter(lambda value: not 0 < value <= 1)
        return st.one_of(outside, WORDS, NO_SCALAR, st.integers(max_value=0), st.integers(min_value=2))
    if key == "eval_proposal_scale":
        outside = FLOATS.filter(lambda value: not 0.1 <= value <= 10)
        return st.one_of(outside, WORDS, NO_SCALAR, st.integers(max_value=0), st.integers(min_value=11))
    if key == "device":
        known = ("auto", "cpu", "cuda", "mps")
        index = {f"cuda:{number}" for number in range(100)}
        wrong = st.sampled_from(["cuda:100", "cuda:-1", "cuda:00", "CPU", "gpu", "cuda:", "cpu "])
        return st.one_of(WORDS.filter(lambda word: word not in known and word not in index), wrong, NO_SCALAR)
    return st.one_of(WORDS.filter(lambda word: word not in CHOICES[key]), NO_SCALAR, st.integers(), FLOATS)


@st.composite
def mutations(draw: st.DrawFn) -> tuple[dict[str, object], set[str]]:
    """A file's content, and the keys that are wrong in it: none, where it is valid."""
    content = {**DEFAULTS, **{key: draw(VALID[key]) for key in draw(st.sets(st.sampled_from(KEYS)))}}
    wrong: set[str] = set()
    for key in draw(st.sets(st.sampled_from(KEYS), max_size=2)):
        wrong.add(key)
        if draw(st.integers(0, 4)) == 0:
            del content[key]
        else:
            content[key] = draw(invalid(key))
    if draw(st.integers(0, 4)) == 0:
        unknown = draw(
            st.text(string.ascii_lowercase + "_", min_size=1, max_size=8).filter(lambda key: key not in KEYS)
        )
        wrong.add(unknown)
        content[unknown] = draw(st.one_of(st.integers(), WORDS))
    order = draw(st.permutations(list(content)))
    return {key: content[key] for key in order}, wrong


def written(content: dict[str, object]) -> str:
    """By ruamel, as DVC writes it."""
    text = io.StringIO()
    YAML(typ="safe", pure=True).dump(content, text)
    return text.getvalue()


@settings(max_examples=500, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True, database=None)
@given(mutations())
def test_every_valid_file_is_accepted_and_every_other_refused_by_name(tmp_path_factory, mutation):
    content, wrong = mutation
    path = tmp_path_factory.getbasetemp() / "params.yaml"
    path.write_text(written(content), encoding="utf-8")
    if not wrong:
        assert load_params(path).model_dump() == content
        return
    with pytest.raises(InputError) as caught:
        load_params(path)
    said = str(caught.value)
    assert "\n" not in said and len(said) < 300
    named = said.removeprefix("params.yaml: ").split(":")[0]
    assert named in wrong, (said, wrong)


def test_the_command_refuses_at_once_and_accepts_what_is_valid(tmp_path, small_mnist, capsys):
    """Thirty files through `python -m pipeline.stages.train`: before torch is imported, and before anything is written."""
    furnish(tmp_path, small_mnist)
    dice, found = random.Random(0), []
    env = {name: value for name, value in os.environ.items() if not name.startswith(("DVC_", "MLFLOW_"))}
    env |= {"PYTHONPATH": str(ROOT)}
    (tmp_path / "pipeline").rename(tmp_path / "aside")

    def seconds(*command: str) -> tuple[float, subprocess.CompletedProcess]:
        start = time.perf_counter()
        done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, check=False)
        return time.perf_counter() - start, done

    base = sorted(seconds(sys.executable, "-c", "pass")[0] for _ in range(5))[2]
    small = {"val_size": 10, "z_dim": 2, "h_dim": 8, "num_epochs": 1, "device": "cpu"}
    wrongs = [(key, value) for key in WHOLE for value in (WHOLE[key][0] - 1, WHOLE[key][1] + 1, "x", 1.5)] + [
        ("learning_rate", 0),
        ("learning_rate", math.nan),
        ("device", "gpu"),
        ("activation", "x"),
        ("dataset", "x"),
    ]
    for key, value in dice.sample(wrongs, 25):
        (tmp_path / "params.yaml").write_text(written({**DEFAULTS, **small, key: value}))
        took, done = seconds(sys.executable, "-m", "pipeline.stages.train")
        assert done.returncode == 2 and done.stdout == "" and done.stderr.count("\n") == 1, done.stderr
        assert done.stderr.startswith(f"params.yaml: {key}: "), done.stderr
        found.append(took - base)
    assert not Path(tmp_path, "reports").exists() and not Path(tmp_path, "data/model").exists()
    for change in ({}, {"z_dim": 1}, {"activation": "silu"}, {"learning_rate": 1e-05}, {"batch_size": 60_000}):
        (tmp_path / "params.yaml").write_text(written({**DEFAULTS, **small, **change}))
        assert seconds(sys.executable, "-m", "pipeline.stages.train")[1].returncode == 0, change
    found.sort()
    with capsys.disabled():
        print(f"refused {found[12]:.2f} s (median), {found[-1]:.2f} s (most) beyond Python's start, n = {len(found)}")
