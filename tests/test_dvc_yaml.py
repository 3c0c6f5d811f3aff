"""dvc.yaml names all that a stage imports, reads and writes: DVC runs it again for nothing else."""

import ast
import csv
import hashlib
import json
import re
import shutil
import subprocess
from pathlib import Path

import grimp
import pytest
from conftest import ROOT, committed
from helpers.repo import litter

from pipeline import paths
from pipeline.model.network import Architecture
from pipeline.model.objective import Objective
from pipeline.params import Params, parse_yaml, read_yaml

DVC = read_yaml(ROOT / "dvc.yaml")
STAGES = DVC["stages"]
GRAPH = grimp.build_graph("pipeline", cache_dir=None)
# They decide no result; dvc.yaml has the reason.
EXEMPT = {f"pipeline/{name}.py" for name in ("errors", "params", "paths", "stages/__init__")}
PATHS = {name: value.as_posix() for name, value in vars(paths).items() if isinstance(value, Path)}


def entries(stage: str, *sections: str) -> set[str]:
    """The names in these sections of a stage, with or without options."""
    listed = [entry for section in sections for entry in STAGES[stage].get(section, [])]
    return {entry if isinstance(entry, str) else next(iter(entry)) for entry in listed}


def source(stage: str) -> str:
    """The stage's own code. `log` reads its inputs through tracking/results.py."""
    names = [f"stages/{stage}.py", *(["tracking/results.py"] if stage == "log" else [])]
    return "".join((ROOT / "pipeline" / name).read_text(encoding="utf-8") for name in names)


def code_dependencies(stage: str) -> set[str]:
    return {path for path in entries(stage, "deps") if path.startswith("pipeline/")}


def imported(stage: str) -> set[str]:
    """Every file that `python -m pipeline.stages.STAGE` imports, directly or not."""
    module, package = f"pipeline.stages.{stage}", "pipeline.stages"
    upstream = GRAPH.find_upstream_modules(module) | GRAPH.find_upstream_modules(package)
    files = {Path(*name.split(".")).with_suffix(".py").as_posix() for name in {module, *upstream}}
    files.add("pipeline/stages/__init__.py")
    return {file for file in files if (ROOT / file).exists()}


def contains(dependency: str, file: str) -> bool:
    return file == dependency or file.startswith(f"{dependency}/")


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_has_a_description_and_one_command_without_a_shell(stage):
    assert STAGES[stage]["desc"]
    start = 'exec env PYTHONSAFEPATH= PATH="$DVC_ROOT/.venv/bin:$PATH" python -m pipeline.stages.'
    assert STAGES[stage]["cmd"] == start + stage


@pytest.mark.parametrize("stage", STAGES)
def test_the_imported_code_of_a_stage_is_among_its_dependencies(stage):
    declared = code_dependencies(stage)
    undeclared = imported(stage) - EXEMPT
    for dependency in declared:
        assert any(contains(dependency, file) for file in undeclared), f"{dependency} is not used"
    assert [file for file in undeclared if not any(contains(dep, file) for dep in declared)] == []


@pytest.mark.parametrize("stage", STAGES)
def test_the_files_of_a_stage_are_those_that_it_names(stage):
    nodes = ast.walk(ast.parse(source(stage)))
    names = {getattr(node, "id", "") or getattr(node, "attr", "") for node in nodes}
    named = {PATHS[name] for name in names & set(PATHS)} - {"params.yaml", "dvc.yaml", "dvc.lock"}
    declared = entries(stage, "deps", "outs", "metrics", "plots") - code_dependencies(stage)
    # `log` takes the list of the reports from dvc.yaml.
    assert named <= declared if stage == "log" else named == declared


@pytest.mark.parametrize("stage", ["download", "train", "train_classifier", "evaluate"])
def test_the_parameters_of_a_stage_are_those_that_it_reads(stage):
    read = set(re.findall(r"\b(?:load_params\(\)|params)\.([a-z_]+)", source(stage)))
    for kind in (Architecture, Objective):
        if f"chosen({kind.__name__}" in source(stage):
            read |= set(kind.__dataclass_fields__)
    assert entries(stage, "params") == read & set(Params.model_fields)


def test_log_depends_on_all_parameters():
    assert entries("log", "params") == {"params.yaml"}


def test_every_output_is_read_by_a_stage():
    outputs = {out for stage in STAGES for out in entries(stage, "outs", "metrics", "plots")}
    inputs = {dependency for stage in STAGES for dependency in entries(stage, "deps")}
    assert outputs - inputs == {"data/logged"}


def plotted() -> list[tuple[str, set[str]]]:
    """Each table of a plot with the columns that dvc.yaml names."""
    tables = []
    for stage in STAGES:
        for entry in STAGES[stage].get("plots", []):
            options = entry if isinstance(entry, dict) else {}
            tables += [(path, {o["x"], o["y"]}) for path, o in options.items() if "x" in o]
    for plot in DVC["plots"]:
        ((_, options),) = plot.items()
        tables += [(path, {options["x"], *columns}) for path, columns in options["y"].items()]
    return tables


@pytest.mark.parametrize(("path", "columns"), plotted())
def test_the_columns_of_the_plots_exist(path, columns):
    assert columns <= set(next(csv.reader(committed(path).splitlines())))


def md5(path: Path) -> str:
    """DVC's checksum of a file or a directory."""
    if path.is_file():
        return hashlib.md5(path.read_bytes()).hexdigest()
    files = sorted(file for file in path.rglob("*") if file.is_file())
    listed = [{"md5": md5(file), "relpath": file.relative_to(path).as_posix()} for file in files]
    return hashlib.md5(json.dumps(listed).encode()).hexdigest() + ".dir"


def test_the_committed_reports_are_those_of_dvc_lock(tmp_path):
    """The outputs only: an edit of the code that changes no result leaves them as they are."""
    archive = tmp_path / "reports.tar"
    git = ["git", "-C", str(ROOT), "archive", "-o", str(archive), "HEAD", "reports"]
    subprocess.run(git, check=True)
    shutil.unpack_archive(archive, tmp_path)
    lock = parse_yaml(committed("dvc.lock"), "dvc.lock")["stages"]
    assert set(lock) == set(STAGES)
    outputs = {out["path"]: out["md5"] for stage in lock.values() for out in stage.get("outs", [])}
    in_git = {path: sum for path, sum in outputs.items() if (tmp_path / path).exists()}
    assert {path: md5(tmp_path / path) for path in in_git} == in_git
    assert len(in_git) >= 10


def test_links_to_another_disk_and_files_of_editors_are_not_committed(tmp_path):
    shutil.copy(ROOT / ".gitignore", tmp_path)
    litter(tmp_path)
    for name in (".venv", "data", "mlartifacts", "mlflow.db", "mlruns"):
        (tmp_path / name).symlink_to(ROOT)
    subprocess.run(["git", "init", "-q"], cwd=tmp_path, check=True)
    listed = ["git", "ls-files", "--others", "--exclude-standard"]
    names = subprocess.check_output(listed, cwd=tmp_path, text=True).splitlines()
    copies = ["network (copy).py", "notes.txt"]
    assert names == [".gitignore", "broken", "folder/notes.txt", *copies]


def test_dvc_ignores_the_files_of_editors_that_git_ignores():
    of_git, of_dvc = ((ROOT / name).read_text() for name in (".gitignore", ".dvcignore"))
    patterns = of_git.partition("# caches")[2].splitlines()[1:]
    assert [pattern.rstrip("/") for pattern in patterns] == of_dvc.split("\n\n")[1].splitlines()[2:]
