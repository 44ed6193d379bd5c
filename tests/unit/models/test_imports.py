"""What is imported with what: the layers of `models`, and what a user's training does not load."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
LAYERS = (  # from the top; a module imports from its own layer and those below
    ("models.training",),
    ("models.evaluation",),
    ("models.embedder", "models.checkpoint", "models.network", "models.fusion", "models.calibration"),
    ("models.encoders",),
    ("models.blocks",),
    ("models.config", "models.interface", "models.errors"),
)


def layer(module: str) -> int:
    return next(i for i, names in enumerate(LAYERS) for n in names if module == n or module.startswith(f"{n}."))


def imports_of(path: Path) -> set[str]:
    """Modules of this repository that a file imports, wherever in it."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            for alias in node.names:
                full = f"{node.module}.{alias.name}"
                found.add(full if (ROOT / Path(*full.split("."))).with_suffix(".py").is_file() else node.module)
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
    return {name for name in found if name.split(".")[0] in ("models", "streams", "tests")}


FILES = sorted(path for path in (ROOT / "models").rglob("*.py") if path != ROOT / "models" / "__init__.py")


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_module_imports_from_its_own_layer_or_below_and_never_from_streams(path: Path) -> None:
    module = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
    others = {name for name in imports_of(path) if name != "models"}
    assert {name for name in others if not name.startswith("models.")} == set()
    assert {name for name in others if layer(name) < layer(module)} == set()


@pytest.mark.parametrize(
    ("module", "unwanted"),
    [
        (
            "models.training.own_stream",
            ("models.training.shipped", "models.training.esc10", "models.training.synthetic"),
        ),
        ("models.interface", ("torch",)),
        ("models", ("torch",)),
        ("models.training.stream_windows", ("torch",)),
        ("models.evaluation.corpus", ("torch",)),
    ],
)
def test_a_module_does_not_load_what_it_does_not_need(module: str, unwanted: tuple[str, ...]) -> None:
    code = f"import sys, {module}; print(*[name for name in {unwanted!r} if name in sys.modules])"
    ran = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True, timeout=120
    )
    assert ran.stdout.split() == []
