"""requirements.lock: pinned, hashed, in step with pyproject.toml, and naming no place to fetch from."""

import re
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[1]
LOCK = (ROOT / "requirements.lock").read_text(encoding="utf-8")
ENTRIES = re.findall(
    r"^([A-Za-z0-9._-]+)==(\S+)((?: ;[^\\\n]*)?) \\\n((?:    --hash=sha256:[0-9a-f]{64}.*\n)+)", LOCK, re.M
)
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def test_every_entry_is_pinned_and_hashed():
    lines = [line for line in LOCK.splitlines() if line and not line.startswith((" ", "#"))]
    assert len(ENTRIES) == len(lines)


@pytest.mark.parametrize("wanted", PROJECT["dependencies"] + PROJECT["optional-dependencies"]["dev"])
def test_what_pyproject_asks_for_is_locked(wanted):
    requirement = Requirement(wanted)
    name = re.sub(r"[-_.]+", "-", requirement.name).lower()
    versions = [version for locked, version, *_ in ENTRIES if locked == name]
    assert versions and all(requirement.specifier.contains(version) for version in versions)


def test_it_serves_other_systems_and_pythons_too():
    """Linux-only packages carry a marker; what differs between Python versions is there for each."""
    markers = {name: marker for name, _, marker, _ in ENTRIES if marker}
    assert "linux" in next(marker for name, marker in markers.items() if name.startswith("nvidia-"))
    assert sum(name == "numpy" for name, *_ in ENTRIES) >= 1


def test_no_address_stands_in_it():
    assert "://" not in LOCK and "--index-url" not in LOCK and "--find-links" not in LOCK
