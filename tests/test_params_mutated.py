"""params.yaml with any content: valid files are accepted, errors name an invalid key.

The ranges are written down here a second time, from the comments in params.yaml.
"""

import yaml
from conftest import ROOT
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.errors import UserError
from pipeline.params import load_params, read_yaml

DEFAULTS = read_yaml(ROOT / "params.yaml")
RANGES = {
    "val_size": (0, 50_000), "z_dim": (1, 1024), "h_dim": (1, 8192), "h_layers": (1, 8),
    "num_epochs": (1, 100_000), "batch_size": (1, 60_000), "seed": (0, 4_294_967_295),
    "sample_every": (1, 100_000), "eval_samples": (1, 100_000),
}  # fmt: skip
VALID = {key: st.integers(low, high) for key, (low, high) in RANGES.items()} | {
    "activation": st.sampled_from(["relu", "tanh", "gelu", "silu"]),
    "precision": st.sampled_from(["float32", "bfloat16"]),
    "learning_rate": st.floats(0, 1, exclude_min=True),
    "eval_proposal_scale": st.floats(0.1, 10),
    "device": st.sampled_from(["auto", "cpu", "mps", "cuda", "cuda:0", "cuda:99"]),
}
NO_SCALARS = st.sampled_from([None, True, [], [1], {"a": 1}])
NO_NUMBERS = st.text(st.characters(codec="ascii"), max_size=9) | NO_SCALARS


def invalid(key: str) -> st.SearchStrategy:
    """Values that the comment in params.yaml excludes."""
    if key in RANGES:
        low, high = RANGES[key]
        outside = st.integers(max_value=low - 1) | st.integers(min_value=high + 1)
        return outside | st.floats() | NO_NUMBERS
    if key in ("learning_rate", "eval_proposal_scale"):
        return st.floats(max_value=0) | st.floats(min_value=11) | st.just(float("nan")) | NO_NUMBERS
    return st.text("xyz:0", max_size=9) | st.integers() | st.floats() | NO_SCALARS


@st.composite
def files(draw: st.DrawFn) -> tuple[dict[str, object], set[str]]:
    """Content of a file and its invalid keys."""
    content = DEFAULTS | {key: draw(VALID[key]) for key in draw(st.sets(st.sampled_from([*VALID])))}
    wrong = draw(st.sets(st.sampled_from([*VALID, "unknown"]), max_size=2))
    for key in wrong:
        content[key] = 1 if key == "unknown" else draw(invalid(key))
    return {key: content[key] for key in draw(st.permutations([*content]))}, wrong


@settings(max_examples=300, deadline=None, derandomize=True, database=None)
@given(files())
def test_valid_files_are_accepted_and_errors_name_an_invalid_key(tmp_path_factory, file):
    content, wrong = file
    path = tmp_path_factory.getbasetemp() / "params.yaml"
    path.write_text(yaml.safe_dump(content), encoding="utf-8")
    try:
        assert load_params(path).model_dump() == content
        assert not wrong
    except UserError as error:
        assert error.subject.removeprefix("params.yaml: ") in wrong
        assert "\n" not in str(error) and len(str(error)) < 300
