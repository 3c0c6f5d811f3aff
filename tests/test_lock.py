"""requirements.lock: pinned, hashed, in step with pyproject.toml, and naming no place to fetch from."""

import re
import tomllib
from pathlib import Path

import pytest
from packaging.markers import Marker
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
@pytest.mark.parametrize(
    ("system", "python"), [("linux", "3.11"), ("linux", "3.13"), ("darwin", "3.11"), ("darwin", "3.12")]
)
def test_what_pyproject_asks_for_is_locked_once_for_every_system(wanted, system, python):
    requirement = Requirement(wanted)
    name = re.sub(r"[-_.]+", "-", requirement.name).lower()
    versions = locked(system, python).get(name, [])
    if requirement.marker and not requirement.marker.evaluate({"sys_platform": system}):
        assert versions == []
        return
    assert len(versions) == 1 and requirement.specifier.contains(versions[0])


def test_the_cuda_libraries_are_for_linux_alone():
    assert any(name.startswith("nvidia-") for name in locked("linux", "3.11"))
    assert not any(name.startswith("nvidia-") for name in locked("darwin", "3.12"))


def locked(system: str, python: str) -> dict[str, list[str]]:
    """What pip installs from the lock there: name to versions (two would be a conflict)."""
    machine = "arm64" if system == "darwin" else "x86_64"
    environment = {
        "sys_platform": system, "platform_machine": machine, "platform_system": system.capitalize(),
        "python_version": python, "python_full_version": f"{python}.5",
    }  # fmt: skip
    found: dict[str, list[str]] = {}
    for name, version, marker, _ in ENTRIES:
        if not marker or Marker(marker.strip(" ;")).evaluate(environment):
            found.setdefault(name, []).append(version)
    return found


def test_no_address_stands_in_it():
    assert "://" not in LOCK and "--index-url" not in LOCK and "--find-links" not in LOCK
