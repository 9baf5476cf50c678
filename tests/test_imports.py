"""Imports between the folders of the package go in one direction, and importing the package is cheap."""

import ast
import importlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

import hf_distil_whisper

PACKAGE = Path(hf_distil_whisper.__file__).parent
LEVELS = {
    "checkpoints": 0,
    "ctranslate2_format": 0,
    "metrics": 0,
    "student": 0,
    "hub.push": 0,  # imported by the trainer, although the rest of hub/ is above it; has a level of its own
    "data": 1,
    "inference": 2,
    "export": 3,
    "pseudo_labels": 3,
    "training": 3,
    "evaluation": 4,
    "hub": 5,
    "cli": 6,
}
"""A folder or single module may import itself and those of lower levels; single modules also each other."""

MODULES = [path for path in sorted(PACKAGE.rglob("*.py")) if path.parent != PACKAGE or path.stem != "__init__"]


def imported_parts(path: Path) -> set[str]:
    """Folders and single modules that a module imports anywhere in its text, relative imports included."""
    package = ["hf_distil_whisper", *path.relative_to(PACKAGE).parent.parts]
    names = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            parents = package[: len(package) - node.level + 1] if node.level else []
            base = ".".join([*parents, *([node.module] if node.module else [])])
            names += [f"{base}.{alias.name}" for alias in node.names]
    return {part_of(name.split(".")[1:]) for name in names if name.startswith("hf_distil_whisper.")}


def part_of(parts: list[str]) -> str:
    """Name in LEVELS of a module, or of a name in one, given as its parts below the package."""
    nested = ".".join(parts[:2])
    return nested if nested in LEVELS else parts[0]


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_go_in_one_direction(path: Path) -> None:
    """A circle of imports works until someone imports its other end first."""
    part = part_of(list(path.relative_to(PACKAGE).with_suffix("").parts))
    for other in imported_parts(path) - {part}:
        assert LEVELS[other] < LEVELS[part] or LEVELS[other] == LEVELS[part] == 0, f"{part} imports {other}"


def test_every_public_name_can_be_imported() -> None:
    """A lazy name that is misspelt fails only when somebody uses it."""
    assert len(hf_distil_whisper.__all__) <= 60
    for name in hf_distil_whisper.__all__:
        assert hf_distil_whisper.__getattr__(name) is not None
    assert set(hf_distil_whisper.__all__) <= set(dir(hf_distil_whisper))


def test_type_checkers_see_the_same_names() -> None:
    """They read the imports under TYPE_CHECKING, Python reads the table: one without the other goes unnoticed."""
    tree = ast.parse(Path(hf_distil_whisper.__file__).read_text())
    imports = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.module != "typing"]
    seen = {(alias.name, node.module) for node in imports for alias in node.names}
    homes = {(name, f"hf_distil_whisper.{home}") for name, home in hf_distil_whisper._HOME.items()}
    assert seen == homes


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'create_studnet'"):
        importlib.import_module("hf_distil_whisper").__getattr__("create_studnet")


def test_importing_the_package_loads_nothing_heavy() -> None:
    """`import hf_distil_whisper` is to cost less than 0.3 s; torch alone costs seconds."""
    code = (
        "import sys, time; start = time.process_time(); import hf_distil_whisper; "
        "print(time.process_time() - start, 'torch' in sys.modules, 'transformers' in sys.modules)"
    )
    environment = {**os.environ, "PYTHONPATH": str(PACKAGE.parent)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    seconds, *loaded = done.stdout.split()
    assert float(seconds) < 0.3
    assert loaded == ["False", "False"]
