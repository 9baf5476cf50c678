"""What an installed wheel offers, and what the files around the package promise."""

import os
import shutil
import subprocess
import sys
import sysconfig
import tomllib
import venv
from pathlib import Path

import pytest

import hf_distil_whisper
from hf_distil_whisper.cli.main import COMMANDS

ROOT = Path(__file__).parents[1]
RECIPES = sorted(path.stem for path in (ROOT / "configs").glob("*.yaml"))


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An environment outside the repository with the wheel in it, and with the dependencies of this one."""
    folder = tmp_path_factory.mktemp("wheel")
    source, environment = folder / "source", folder / "environment"
    for name in ("src", "configs", "examples/space"):
        ignored = shutil.ignore_patterns("__pycache__", "*.egg-info")
        shutil.copytree(ROOT / name, source / name, ignore=ignored)
    for name in ("pyproject.toml", "setup.cfg", "setup.py", "MANIFEST.in", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet"]
    options = ["--no-deps", "--no-build-isolation", "--wheel-dir", str(folder)]
    subprocess.run([*pip, "wheel", *options, str(source)], check=True)
    venv.create(environment, with_pip=False)
    (wheel,) = map(str, folder.glob("*.whl"))
    python = str(environment / "bin" / "python")
    subprocess.run([*pip, "--python", python, "install", "--no-deps", wheel], check=True)
    (packages_of(environment) / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    shutil.rmtree(source)
    return environment


def packages_of(environment: Path) -> Path:
    return next((environment / "lib").glob("python*/site-packages"))


def call(environment: Path, *argv: str) -> subprocess.CompletedProcess:
    """Runs the installed command far from the repository."""
    settings = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"} | {"HF_HUB_OFFLINE": "1"}
    command = [str(environment / "bin" / argv[0]), *argv[1:]]
    return subprocess.run(command, capture_output=True, text=True, cwd=environment, env=settings, check=False)


@pytest.mark.slow
def test_a_wheel_offers_every_command_recipe_and_the_page(installed: Path) -> None:
    """Files outside the package are left out of a wheel without a word."""
    listed = call(installed, "hf-distil-whisper").stdout
    assert f"recipes: {', '.join(RECIPES)}" in listed
    code = (
        "import hf_distil_whisper\n"
        "from hf_distil_whisper.cli.main import COMMANDS, main\n"
        "from hf_distil_whisper.cli.config import find_recipe, recipe_names\n"
        "from hf_distil_whisper.cli.demo import load_app\n"
        "app = load_app()\n"
        "print(hf_distil_whisper.__file__, *map(find_recipe, recipe_names()), app.__file__)\n"
        "assert app.SAMPLE.is_file()\n"
        "for command in COMMANDS:\n"
        "    try:\n"
        "        main([command, '--help'])\n"
        "    except SystemExit as done:\n"
        "        assert done.code == 0\n"
    )
    done = call(installed, "python", "-c", code)
    assert done.returncode == 0, done.stderr
    files = done.stdout.splitlines()[0].split()
    assert all(file.startswith(str(installed)) for file in files)
    assert done.stdout.count("usage: hf-distil-whisper") == len(COMMANDS)


@pytest.mark.slow
def test_a_recipe_is_planned_from_a_wheel(installed: Path) -> None:
    """`hf-distil-whisper train distil-large-v3` far from the repository: it names what is missing, and ends with 2."""
    done = call(installed, "hf-distil-whisper", "train", "distil-large-v3", "--dry_run")
    assert done.returncode == 2
    assert "save the student, its processor and its card to runs/distil-large-v3/student" in done.stdout
    assert "--teacher_model_name_or_path: no model at 'openai/whisper-large-v3'" in done.stderr
    assert "--train_dataset: runs/distil-large-v3/train: " in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.slow
def test_a_wheel_holds_the_licence_the_types_and_the_cards(installed: Path) -> None:
    packages = packages_of(installed)
    for name in ("py.typed", "hub/model_card_template.md", "hub/dataset_card_template.md"):
        assert (packages / "hf_distil_whisper" / name).is_file()
    assert list(packages.glob("hf_distil_whisper-*.dist-info/licenses/LICENSE"))


def test_every_dependency_is_pinned_for_the_tests() -> None:
    """An unpinned one changes under the tests, and a newer torch would draw gigabytes of CUDA packages."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    tested = ("ct2", "ggml", "onnx", "demo", "dev")
    specs = [*project["dependencies"], *(spec for extra in tested for spec in extras[extra])]
    names = [spec.split(">=")[0] for spec in specs if not spec.startswith("hf-distil-whisper[")]
    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if not line.startswith("#")]
    pinned = {line.split("==")[0].lower().replace("_", "-") for line in lines}
    assert {name.lower().replace("_", "-") for name in names} <= pinned
    assert all("==" in line and "@" not in line for line in lines)
    assert "torch==2.13.0" in lines


def test_the_version_is_stated_once_and_the_same() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert hf_distil_whisper.__version__ == project["version"]
    assert f"## {project['version']}" in (ROOT / "CHANGELOG.md").read_text()
