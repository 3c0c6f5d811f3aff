"""requirements.lock and the declared dependencies."""

import ast
import re
import subprocess
import sys
import tomllib
from importlib.metadata import packages_distributions

import pytest
from conftest import ROOT
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

LOCK = (ROOT / "requirements.lock").read_text(encoding="utf-8")
ENTRY = r"^([\w.-]+)==(\S+)(?: ;.*)? \\\n(?:    --hash=sha256:[0-9a-f]{64}.*\n)+"
ENTRIES = re.findall(ENTRY, LOCK, flags=re.MULTILINE)
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
PYTHONS = re.fullmatch(r">=3\.(\d+),<3\.(\d+)", PROJECT["requires-python"])
OLDEST, TOO_NEW = map(int, PYTHONS.groups())
RUN_TIME = [Requirement(line) for line in PROJECT["dependencies"]]
DEVELOPMENT = [Requirement(line) for line in PROJECT["optional-dependencies"]["dev"]]
# Needed without an import: tools, plug-ins, and what MLflow reads the load of a machine with.
NOT_IMPORTED = {
    "import-linter", "mypy", "nvidia-ml-py", "psutil", "psycopg", "pytest-timeout", "pytest-xdist",
    "ruff", "types-pyyaml",
}  # fmt: skip


def names(requirements: list[Requirement]) -> set[str]:
    return {canonicalize_name(requirement.name) for requirement in requirements}


def imported(*folders: str) -> list[set[str]]:
    """For each third-party import in these folders, the distributions that contain it."""
    modules = set()
    for path in (path for folder in folders for path in (ROOT / folder).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                modules |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                modules.add(node.module.partition(".")[0])
    distributions = packages_distributions()
    return [{*map(canonicalize_name, distributions[name])} for name in modules & {*distributions}]


def test_every_entry_is_pinned_and_hashed():
    lines = [line for line in LOCK.splitlines() if line and not line.startswith((" ", "#"))]
    assert len(ENTRIES) == len(lines) > 100


def test_the_lock_names_no_host():
    assert not re.search(r"://|--index-url|--find-links", LOCK)


def test_every_declared_dependency_is_locked():
    for requirement in RUN_TIME + DEVELOPMENT:
        name = canonicalize_name(requirement.name)
        versions = [version for entry, version in ENTRIES if entry == name]
        assert versions and all(map(requirement.specifier.contains, versions)), requirement


def test_the_declared_dependencies_are_the_imported_libraries():
    in_pipeline, in_tests = imported("pipeline"), imported("tests", "benchmarks")
    assert [found for found in in_pipeline if not found & names(RUN_TIME)] == [], "not declared"
    assert [found for found in in_tests if not found & names(RUN_TIME + DEVELOPMENT)] == []
    assert names(RUN_TIME) - set().union(*in_pipeline) <= NOT_IMPORTED, "not used"
    assert names(DEVELOPMENT) - set().union(*in_tests) <= NOT_IMPORTED, "not used"


@pytest.mark.parametrize("minor", [OLDEST - 1, TOO_NEW])
def test_a_python_without_locked_packages_is_refused_in_one_line(tmp_path, minor):
    """With an interpreter that reports another version."""
    python = tmp_path / "python"
    code = f"import sys; sys.version_info = (3, {minor}); exec(sys.argv[2])"
    python.write_text(f"#!/bin/sh\nexec '{sys.executable}' -c '{code}' \"$@\"\n")
    python.chmod(0o755)
    command = ["make", "-C", str(ROOT), "--no-print-directory", "install", f"PYTHON={python}"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    refused = f"{python} is not Python 3.{OLDEST} to 3.{TOO_NEW - 1}"
    assert done.returncode != 0 and done.stderr.startswith(refused), done.stderr
    assert done.stdout == ""


def test_the_readme_says_which_python_is_needed():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert f"Python 3.{OLDEST} to 3.{TOO_NEW - 1}" in readme
