"""requirements.lock and the declared dependencies."""

import ast
import re
import tomllib
from collections import defaultdict
from importlib.metadata import packages_distributions

import pytest
from conftest import ROOT
from packaging.markers import Marker
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

LOCK = (ROOT / "requirements.lock").read_text(encoding="utf-8")
ENTRY = r"^([A-Za-z0-9._-]+)==(\S+)((?: ;[^\\\n]*)?) \\\n(?:    --hash=sha256:[0-9a-f]{64}.*\n)+"
ENTRIES = re.findall(ENTRY, LOCK, flags=re.MULTILINE)
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
DEPENDENCIES = [Requirement(line) for line in PROJECT["dependencies"]]
DEVELOPMENT = [Requirement(line) for line in PROJECT["optional-dependencies"]["dev"]]
# Not imported, but needed: plug-ins, tools and what a library imports for a feature in use.
NOT_IMPORTED = {
    "nvidia-ml-py", "import-linter", "mypy", "pytest-timeout", "pytest-xdist",
    "ruff", "types-pyyaml",
}  # fmt: skip


def locked(system: str, python: str) -> dict[str, list[str]]:
    """Names and versions that pip installs from the lock on a system."""
    environment = {
        "sys_platform": system,
        "platform_machine": "arm64" if system == "darwin" else "x86_64",
        "platform_system": system.capitalize(),
        "python_version": python,
        "python_full_version": f"{python}.5",
    }
    versions = defaultdict(list)
    for name, version, marker in ENTRIES:
        if not marker or Marker(marker.strip(" ;")).evaluate(environment):
            versions[name].append(version)
    return versions


def imported(*folders: str) -> list[set[str]]:
    """For each third-party import in these folders, the distributions that contain it."""
    names = set()
    for path in (path for folder in folders for path in (ROOT / folder).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                names |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                names.add(node.module.partition(".")[0])
    distributions = packages_distributions()
    return [set(map(canonicalize_name, distributions[name])) for name in names & {*distributions}]


def test_every_entry_is_pinned_and_hashed():
    lines = [line for line in LOCK.splitlines() if line and not line.startswith((" ", "#"))]
    assert len(ENTRIES) == len(lines) > 100


def test_the_lock_names_no_host():
    assert not re.search(r"://|--index-url|--find-links", LOCK)


@pytest.mark.parametrize("system", ["linux", "darwin"])
@pytest.mark.parametrize("python", ["3.11", "3.13"])
def test_every_declared_dependency_is_locked_once(system, python):
    versions = locked(system, python)
    for requirement in DEPENDENCIES + DEVELOPMENT:
        matching = versions.get(canonicalize_name(requirement.name), [])
        if requirement.marker and not requirement.marker.evaluate({"sys_platform": system}):
            assert matching == []
        else:
            (version,) = matching
            assert requirement.specifier.contains(version), requirement


def test_the_declared_dependencies_are_the_imported_libraries():
    run_time = {canonicalize_name(requirement.name) for requirement in DEPENDENCIES}
    development = {canonicalize_name(requirement.name) for requirement in DEVELOPMENT}
    in_pipeline, in_tests = imported("pipeline"), imported("tests", "benchmarks")
    assert [names for names in in_pipeline if not names & run_time] == [], "not declared"
    assert [names for names in in_tests if not names & (run_time | development)] == []
    assert run_time - set().union(*in_pipeline) <= NOT_IMPORTED, "not used"
    assert development - set().union(*in_tests) <= NOT_IMPORTED, "not used"
