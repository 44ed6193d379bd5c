"""The tree keeps its own rules: tests mirror rooms, files stay short, locks fit their declarations and name no host."""

from __future__ import annotations

import itertools
import re
import tomllib
from collections.abc import Iterable
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
LOCKS = ROOT / "deploy" / "requirements"
LONGEST_LINES = 430  # the rule is "about 400"


def sources() -> list[Path]:
    return [path for package in ("streams", "models") for path in sorted((ROOT / package).rglob("*.py"))]


def locked(lock: str) -> dict[str, set[str]]:
    """Name -> versions; a package may be pinned twice, for different platforms or versions of Python."""
    found: dict[str, set[str]] = {}
    for name, version in re.findall(r"^([a-z0-9-]+)==([^\s;]+)", (LOCKS / lock).read_text(), re.MULTILINE):
        found.setdefault(name, set()).add(version)
    return found


def names(requirements: Iterable[str]) -> set[str]:
    """Normalised names: `aiokafka[lz4]>=0.14` -> aiokafka."""
    return {re.sub(r"[-_.]+", "-", re.split(r"[\[<>=!~; ]", line)[0]).lower() for line in requirements}


def test_the_folders_of_unit_tests_are_rooms() -> None:
    rooms = {path.parent.name for path in (ROOT / "streams").glob("*/__init__.py")} | {"models"}
    folders = {path.parent.name for path in (ROOT / "tests" / "unit").glob("*/*.py")}
    assert folders <= rooms


def test_no_file_is_too_long_to_hold_one_idea() -> None:
    lengths = {path.relative_to(ROOT).as_posix(): len(path.read_text().splitlines()) for path in sources()}
    assert {name: lines for name, lines in lengths.items() if lines > LONGEST_LINES} == {}


def test_the_first_line_of_every_file_says_in_one_line_what_it_is_for() -> None:
    first = {path.relative_to(ROOT).as_posix(): path.read_text().partition("\n")[0] for path in sources()}
    assert [name for name, line in first.items() if not re.match(r'"""[A-Z`].{14,}[.:;"]', line)] == []


def test_the_locks_hold_all_that_is_declared() -> None:
    project = PROJECT["project"]
    assert names(project["dependencies"]) <= set(locked("runtime.txt")), "make it anew with: make lock"
    assert names(PROJECT["dependency-groups"]["dev"]) <= set(locked("dev.txt")), "make it anew with: make lock"
    assert set(locked("bootstrap.txt")) == names(PROJECT["dependency-groups"]["bootstrap"])


def test_developers_get_the_versions_that_users_get() -> None:
    developers = locked("dev.txt")
    assert {name: developers.get(name) for name in locked("runtime.txt")} == locked("runtime.txt")


def test_users_get_no_tool_of_developers() -> None:
    # psutil and setuptools are needed by dependencies of ours, too
    tools = names(PROJECT["dependency-groups"]["dev"]) - {"psutil", "setuptools"}
    assert tools & set(locked("runtime.txt")) == set()
    assert {"pytest", "ruff", "mypy", "sentence-transformers"} <= tools


@pytest.mark.parametrize("lock", ["bootstrap.txt", "runtime.txt", "dev.txt"])
def test_no_lock_names_a_host_or_a_folder_of_the_machine_it_was_made_on(lock: str) -> None:
    lines = (LOCKS / lock).read_text().splitlines()
    assert [line for line in lines if "://" in line or "-index" in line or re.search(r"\s/\w", line)] == []
    after_pins = [after for line, after in itertools.pairwise(lines) if re.match(r"[a-z0-9]", line)]
    assert after_pins
    assert all(after.startswith("    --hash=sha256:") for after in after_pins)


def test_every_target_of_the_makefile_is_in_the_readme() -> None:
    [phony] = re.findall(r"^\.PHONY: (.*)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    readme = (ROOT / "README.md").read_text()
    assert [target for target in phony.split() if f"make {target}" not in readme] == []


def test_the_changelog_tells_of_this_version() -> None:
    assert f"\n## [{PROJECT['project']['version']}]" in (ROOT / "CHANGELOG.md").read_text()
