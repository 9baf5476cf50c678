"""The scripts in examples/ on toy models: in-process, and started by torchrun and accelerate."""

import ast
import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from transformers import WhisperForConditionalGeneration

import hf_distil_whisper

ROOT = Path(__file__).parents[1]
SCRIPTS = [*sorted((ROOT / "examples").glob("*.py")), ROOT / "examples" / "space" / "app.py"]
ACCELERATE = ["accelerate.commands.launch", "--config_file", "configs/accelerate/cpu.yaml"]


@pytest.fixture(scope="module")
def recipe(toys: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A training of two steps on the corpus' text."""
    settings = {
        "teacher_model_name_or_path": str(toys / "teacher"),
        "decoder_layers": 2,
        "train_dataset": {"path": str(toys / "corpus"), "transcript_column": "text"},
        "eval_datasets": {"toy": str(toys / "corpus")},
        "per_device_train_batch_size": 1,
        "generation_max_length": 10,
        "max_steps": 2,
        "use_cpu": True,
    }
    file = tmp_path_factory.mktemp("recipe") / "recipe.yaml"
    file.write_text(json.dumps(settings))  # JSON is YAML too
    return str(file)


def run(name: str, *argv: str) -> None:
    """Calls `main` of a script."""
    spec = importlib.util.spec_from_file_location(f"example_{name}", ROOT / "examples" / f"{name}.py")
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    script.main(argv)


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.stem)
def test_a_script_is_short_and_uses_public_names_only(path: Path) -> None:
    """A script that reaches into the library cannot be copied into another project."""
    text = path.read_text()
    assert len(text.splitlines()) <= 80 or path.stem == "app"
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.ImportFrom) and node.module.startswith("hf_distil_whisper"):
            names = {alias.name for alias in node.names}
            if names != {"is_written_without_spaces"}:
                assert node.module == "hf_distil_whisper"
                assert names <= set(hf_distil_whisper.__all__)


def test_create_student(toys: Path, tmp_path: Path) -> None:
    run("create_student", "--teacher_model_name_or_path", str(toys / "teacher"), "--output_dir", str(tmp_path / "out"))
    assert WhisperForConditionalGeneration.from_pretrained(tmp_path / "out").config.decoder_layers == 2


def test_run_pseudo_labelling(toys: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    argv = ["--teacher_model_name_or_path", str(toys / "teacher"), "--dataset", str(toys / "corpus")]
    run("run_pseudo_labelling", *argv, "--output_dir", str(tmp_path / "out"))
    assert "hours kept" in capsys.readouterr().out
    assert len(hf_distil_whisper.load_source(tmp_path / "out")) == 2


def test_run_distillation_trains_two_steps(recipe: str, tmp_path: Path) -> None:
    run("run_distillation", recipe, "--output_dir", str(tmp_path / "out"))
    assert json.loads((tmp_path / "out" / "trainer_state.json").read_text())["global_step"] == 2
    assert (tmp_path / "out" / "README.md").is_file()


def test_run_evaluation(toys: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    argv = ["--model_name_or_path", str(toys / "teacher"), "--eval_datasets", str(toys / "corpus")]
    run("run_evaluation", *argv, "--output_dir", str(tmp_path / "out"))
    assert "WER %" in capsys.readouterr().out
    assert "corpus" in json.loads((tmp_path / "out" / "results.json").read_text())


def launch(*command: str) -> subprocess.CompletedProcess:
    """Starts a launcher in the repository, with one thread per process."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    return subprocess.run(
        [sys.executable, "-m", *command], capture_output=True, text=True, cwd=ROOT, env=environment, check=False
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    ("launcher", "rows_per_step"),
    [(["torch.distributed.run", "--nproc_per_node", "2"], 2), (ACCELERATE, 1)],
    ids=["torchrun", "accelerate"],
)
def test_run_distillation_can_be_launched(
    launcher: list[str], rows_per_step: int, recipe: str, tmp_path: Path
) -> None:
    """What one process writes, another may take for the files of another run; and only one may print."""
    done = launch(*launcher, "examples/run_distillation.py", recipe, "--output_dir", str(tmp_path))
    assert done.returncode == 0, done.stderr
    assert f"train 2 steps of {rows_per_step} rows" in done.stdout
    assert done.stdout.count("train 2 steps") == 1
    assert json.loads((tmp_path / "trainer_state.json").read_text())["global_step"] == 2


@pytest.mark.slow
def test_a_script_ends_with_a_message_and_exit_code_2() -> None:
    done = launch(*ACCELERATE, "examples/create_student.py")
    assert "create_student.py: error: the following arguments are required: --teacher_model_name" in done.stderr
    assert done.returncode != 0
