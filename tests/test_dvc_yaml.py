"""dvc.yaml is a promise: DVC reruns a stage only for the deps and params it names. Here it is held to the code."""

import ast
import csv
import hashlib
from pathlib import Path

import grimp
import pytest
from conftest import committed
from ruamel.yaml import YAML

from pipeline.commands.checks.processes import STAGES as LOOKED_FOR
from pipeline.params import Params

ROOT = Path(__file__).parents[1]
DVC = YAML(typ="safe").load((ROOT / "dvc.yaml").read_text(encoding="utf-8"))
STAGES = DVC["stages"]
GRAPH = grimp.build_graph("pipeline", cache_dir=None)


def entries(stage: str, *sections: str) -> set[str]:
    """The names under these sections, with or without options."""
    found = [entry for section in sections for entry in STAGES[stage].get(section, [])]
    return {entry if isinstance(entry, str) else next(iter(entry)) for entry in found}


def nodes(stage: str) -> list[ast.AST]:
    """The syntax of the stage's module; `log` reads its inputs through execution.py."""
    modules = [stage, "execution"] if stage == "log" else [stage]
    texts = [(ROOT / "pipeline" / f"{module}.py").read_text(encoding="utf-8") for module in modules]
    return [node for text in texts for node in ast.walk(ast.parse(text))]


def imported(stage: str) -> set[str]:
    """Every file of this project that `python -m pipeline.STAGE` imports, directly or not, packages aside."""
    modules = {f"pipeline.{stage}", *GRAPH.find_upstream_modules(f"pipeline.{stage}")}
    paths = {Path(*module.split(".")).with_suffix(".py") for module in modules}
    return {path.as_posix() for path in paths if (ROOT / path).exists()}


def touched(stage: str) -> set[str]:
    """The data that the stage's module names: its `NAME = Path("…")` constants, lists of them included."""
    calls = [node for node in nodes(stage) if isinstance(node, ast.Call)]
    paths = [call.args[0] for call in calls if getattr(call.func, "id", "") == "Path" and call.args]
    return {arg.value for arg in paths if isinstance(arg, ast.Constant)}


def test_the_doctor_looks_for_the_processes_of_every_stage():
    assert set(LOOKED_FOR) == set(STAGES)


def read_keys(stage: str) -> set[str]:
    """The keys of params.yaml that the stage's module reads, as `params.KEY`, or all of them through model_dump()."""
    found = nodes(stage)
    uses = [node for node in found if "params" in (getattr(node, "id", ""), getattr(node, "attr", ""))]
    attributes = [node for node in found if isinstance(node, ast.Attribute) and node.value in uses]
    keys = {attribute.attr for attribute in attributes}
    if stage == "train":  # it hands all of them to the fingerprint, which takes those that the stage declares
        return keys - {"model_dump"} | {"dataset"}
    return set(Params.model_fields) if "model_dump" in keys else keys


def test_the_stages_are_the_verbs_in_order():
    assert list(STAGES) == ["download", "train", "judge", "evaluate", "log"]


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_is_described_and_is_one_plain_command(stage):
    """Which takes the place of the shell that DVC starts it with: a stage is to end with its DVC, and not with that."""
    assert STAGES[stage]["desc"]
    assert STAGES[stage]["cmd"] == f"exec python -m pipeline.{stage}"


@pytest.mark.parametrize("stage", STAGES)
def test_the_code_among_a_stages_deps_is_what_it_imports(stage):
    logged_as_code = {"pipeline/tracking/served_model.py"} if stage == "log" else set()
    assert {dep for dep in entries(stage, "deps") if dep.endswith(".py")} == imported(stage) | logged_as_code


@pytest.mark.parametrize("stage", ["train", "judge", "evaluate", "log"])
def test_the_data_among_a_stages_deps_and_outs_is_what_it_names(stage):
    data = {dep for dep in entries(stage, "deps", "outs", "metrics", "plots") if not dep.endswith(".py")}
    assert data == touched(stage)


def test_download_declares_its_output_and_its_sums():
    assert entries("download", "outs") == {"data/raw"} <= touched("download")
    assert "pipeline/data/mnist.sha256" in entries("download", "deps")


@pytest.mark.parametrize("stage", STAGES)
def test_a_stages_params_are_the_keys_it_reads(stage):
    declared = entries(stage, "params")
    if declared == {"params.yaml"}:  # the whole file
        declared = set(Params.model_fields)
    assert declared == read_keys(stage)


def test_an_output_of_one_stage_is_a_dep_of_a_later_one_or_read_by_people():
    outs = {out for stage in STAGES for out in entries(stage, "outs", "metrics", "plots")}
    deps = {dep for stage in STAGES for dep in entries(stage, "deps")}
    assert outs - deps == {"data/logged"}


def test_packages_hold_no_code_that_deps_would_miss():
    for path in (ROOT / "pipeline").rglob("__init__.py"):
        body = ast.parse(path.read_text(encoding="utf-8")).body
        assert all(isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) for node in body), path


def header(path: str) -> list[str]:
    return next(csv.reader(committed(path).splitlines()))


def test_plots_show_columns_that_the_tables_have():
    for plot in DVC["plots"]:
        (definition,) = plot.values()
        ((path, columns),) = definition["y"].items()
        assert {definition["x"], *columns} <= set(header(path))


@pytest.mark.parametrize("stage", STAGES)
def test_plots_of_a_stage_show_columns_that_it_writes(stage):
    for entry in STAGES[stage].get("plots", []):
        ((path, options),) = entry.items()
        if path.endswith(".csv"):
            assert {options["x"], options["y"]} <= set(header(path))


def test_the_committed_results_come_from_the_committed_code():
    """What dvc.lock says went into the committed reports/ and came out is what stands beside it."""
    for name, stage in YAML(typ="safe").load(committed("dvc.lock"))["stages"].items():
        for entry in stage["deps"] + stage.get("outs", []):
            path = entry["path"]
            if path.endswith((".py", ".sha256", ".csv", ".json")):
                md5 = hashlib.md5(committed(path).encode()).hexdigest()
                assert entry["md5"] == md5, f"{name}: {path} has changed: `make repro`, and commit dvc.lock with it"
