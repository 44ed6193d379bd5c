"""The wheel works outside a checkout, in an environment of the locked runtime dependencies and nothing else."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest

pytestmark = [pytest.mark.kafka, pytest.mark.slow, pytest.mark.usefixtures("kafka_jars")]

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("streams", "models")


def done(command: Sequence[str | Path], folder: Path, **environment: str) -> str:
    """Standard output of a command that succeeds in `folder`; nothing in its environment points to the checkout."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("SENSORIUM_", "PYTHON", "VIRTUAL_ENV"))}
    for name in ("SENSORIUM_CACHE", "SENSORIUM_MAVEN"):  # where the Kafka jars are
        if name in os.environ:
            kept[name] = os.environ[name]
    result = subprocess.run(command, cwd=folder, env=kept | environment, capture_output=True, text=True, check=False)
    assert result.returncode == 0, f"{command}\n{result.stdout}\n{result.stderr}"
    return result.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from a copy: setuptools would put what an earlier build left in `build/` into the wheel too."""
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("dist")
    for package in PACKAGES:
        shutil.copytree(ROOT / package, source / package, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE", "NOTICE"):
        shutil.copy(ROOT / name, source)
    done([sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "-w", out, source], source)
    [built] = out.iterdir()
    return built


@dataclass(frozen=True)
class Installed:
    """An environment with the wheel in it, and a folder outside of the checkout to work in."""

    bin: Path
    folder: Path

    def sensorium(self, *arguments: str) -> str:
        return done([self.bin / "sensorium", *arguments], self.folder)

    def python(self, code: str) -> str:
        return done([self.bin / "python", "-c", code], self.folder).strip()


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Installed:
    environment, folder = tmp_path_factory.mktemp("environment"), tmp_path_factory.mktemp("elsewhere")
    done([sys.executable, "-m", "venv", "--without-pip", environment], folder)
    python = environment / "bin" / "python"
    site = Path(done([python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"], folder).strip())
    link_runtime(site)
    install = ["install", "--quiet", "--no-index", "--no-deps", wheel]
    done([sys.executable, "-m", "pip", "--python", python, *install], folder)
    return Installed(environment / "bin", folder)


def link_runtime(site: Path) -> None:
    """Links what runtime.txt names out of this environment: torch alone is gigabytes to install once more."""
    lock = (ROOT / "deploy" / "requirements" / "runtime.txt").read_text()
    for name in sorted(set(re.findall(r"^([a-z0-9._-]+)==", lock, re.MULTILINE))):
        try:
            distribution = metadata.distribution(name)
        except metadata.PackageNotFoundError:
            continue  # locked for another platform
        for top in {file.parts[0] for file in distribution.files or ()} - {"..", "__pycache__"}:
            link = site / top
            if not link.exists():
                link.symlink_to(Path(str(distribution.locate_file(top))))


def test_the_wheel_holds_every_file_of_both_packages_and_nothing_else(wheel: Path) -> None:
    held = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    here = {
        path.relative_to(ROOT).as_posix()
        for package in PACKAGES
        for path in (ROOT / package).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert held == here


def test_the_environment_has_no_tool_of_developers_and_no_checkout(installed: Installed) -> None:
    found = "import importlib.util as u; print([m for m in ('pytest', 'tests', 'ruff') if u.find_spec(m)])"
    assert installed.python(found) == "[]"
    for package in PACKAGES:
        file = Path(installed.python(f"import {package}; print({package}.__file__)"))
        assert file.is_relative_to(installed.bin.parent)


def test_the_version_is_that_of_the_project(installed: Installed) -> None:
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert installed.sensorium("--version") == f"sensorium {version}\n"


def test_every_module_can_be_imported_with_the_runtime_dependencies_alone(installed: Installed) -> None:
    modules = sorted(
        ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        for package in PACKAGES
        for path in (ROOT / package).rglob("*.py")
        if path.name != "__main__.py"
    )
    installed.python("\n".join(f"import {module}" for module in modules))


def test_doctor_finds_model_and_jars_and_config_shows_the_defaults(installed: Installed) -> None:
    parts = {part["part"]: part for part in json.loads(installed.sensorium("doctor", "--json"))}
    for name in ("python", "settings", "torch", "model", "java"):
        assert parts[name]["level"] == "ok", parts[name]
    assert tomllib.loads(installed.sensorium("config", "show"))["window"]["size_ms"] == 10_000


def test_a_recording_is_made_and_replayed_through_kafka_model_and_store(installed: Installed) -> None:
    installed.sensorium("simulate", "--out", "plant", "--streams", "1", "--seconds", "120")
    report: Any = json.loads(installed.sensorium("replay", "plant", "--json"))
    assert report["events"]["windowed"] == report["events"]["produced"] > 100
