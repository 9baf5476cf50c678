"""`sweep` on toys: cells are trained, scored, kept, taken up again, and refused where they do not go together."""

import json
from pathlib import Path

import pytest
import yaml
from torch import Tensor
from transformers import WhisperForConditionalGeneration

from hf_distil_whisper.checkpoints import load_model, load_processor
from hf_distil_whisper.cli import sweep
from hf_distil_whisper.cli.main import main
from hf_distil_whisper.data.sources import load_source
from hf_distil_whisper.evaluation.short_form import evaluate_model
from hf_distil_whisper.inference import encoder_cache


@pytest.fixture(scope="module")
def toys(toys: Path) -> Path:
    """The folder with a recipe of two steps beside the rest."""
    recipe = {
        "teacher_model_name_or_path": str(toys / "teacher"),
        "decoder_layers": 2,
        "train_dataset": {"path": str(toys / "corpus"), "transcript_column": "text"},
        "max_steps": 2,
        "per_device_train_batch_size": 2,
        "save_strategy": "no",
        "use_cpu": True,
        "disable_tqdm": True,
        "report_to": "none",
        "output_dir": "unused",
    }
    (toys / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    return toys


def write_sweep(toys: Path, folder: Path, **changes: object) -> str:
    """A sweep of two cells; returns its file."""
    settings = {
        "recipe": str(toys / "recipe.yaml"),
        "heading": "Objective",
        "cells": {"PL": {"kl_weight": 0.0}, "PL + KL": {}},
        "seeds": [1],
        "columns": ["steps", "parameters"],
        "eval_datasets": {"seen": {"path": str(toys / "corpus"), "split": "train"}},
        "ood_datasets": {"new": {"path": str(toys / "corpus"), "split": "train", "max_samples": 1}},
        "output_dir": str(folder / "sweep"),
    }
    file = folder / "sweep.yaml"
    file.write_text(yaml.safe_dump({**settings, **changes}))
    return str(file)


def test_a_sweep_writes_the_table_of_its_cells(toys: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["sweep", write_sweep(toys, tmp_path, snrs=[10.0])]) == 0
    folder = tmp_path / "sweep"
    table = (folder / "table.md").read_text()
    rates = "ID Average WER / % | OOD Average WER / % | Average WER / % | WER at 10 dB / %"
    head = f"| Objective | Steps | Params / M | {rates} |"
    assert head in table
    assert head in capsys.readouterr().out
    assert [line.split("|")[1].strip() for line in table.splitlines() if line.startswith("| PL")] == ["PL", "PL + KL"]
    found = json.loads((folder / "results.json").read_text())
    assert [one["steps"] for one in found] == [2, 2]
    assert set(found[0]["errors"]) == {"seen", "new"}
    assert (folder / "wer.png").read_bytes().startswith(b"\x89PNG")
    assert (folder / "PL-seed1" / "student" / "model.safetensors").is_file()


def test_a_sweep_goes_on_where_it_was_stopped(toys: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Hours of finished cells would be computed again, or a half one counted."""
    file = write_sweep(toys, tmp_path)
    assert main(["sweep", file]) == 0
    before = (tmp_path / "sweep" / "results.json").read_text()
    (tmp_path / "sweep" / "PL-seed1" / "result.json").unlink()  # as if killed while it was scored
    trained = []
    build = sweep.build_trainer
    monkeypatch.setattr(sweep, "build_trainer", lambda *parts: trained.append(parts[1].output_dir) or build(*parts))
    assert main(["sweep", file]) == 0
    assert [Path(folder).parent.name for folder in trained] == ["PL-seed1"]
    assert (tmp_path / "sweep" / "results.json").read_text() == before


def test_other_settings_are_refused_before_anything_is_deleted(
    toys: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A table must not hold cells of two recipes."""
    assert main(["sweep", write_sweep(toys, tmp_path, cells={"PL": {"kl_weight": 0.0}})]) == 0
    changed = write_sweep(toys, tmp_path, cells={"PL": {"kl_weight": 0.0, "learning_rate": 0.5}})
    assert main(["sweep", changed]) == 2
    assert "other settings (flags)" in capsys.readouterr().err
    assert (tmp_path / "sweep" / "PL-seed1" / "result.json").is_file()


def test_every_cell_is_checked_before_the_first_training(
    toys: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The third cell's spelling mistake would show after two hours."""
    cells = {"PL": {}, "typo": {"kl_wieght": 0.0}, "layers": {"decoder_layers": 99}}
    assert main(["sweep", write_sweep(toys, tmp_path, cells=cells)]) == 2
    error = capsys.readouterr().err
    assert "cell 'typo'" in error
    assert "did you mean '--kl_weight'" in error
    assert "cell 'layers'" in error
    assert not (tmp_path / "sweep").exists()


def test_cells_hear_the_sets_once_and_score_as_without_a_cache(
    toys: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Hearing takes most of the time of scoring a student: every cell would pay for what the first knows."""
    heard = []
    encode = encoder_cache.encode

    def counted(model: WhisperForConditionalGeneration, input_features: Tensor) -> Tensor:
        heard.append(len(input_features))
        return encode(model, input_features)

    monkeypatch.setattr(encoder_cache, "encode", counted)
    assert main(["sweep", write_sweep(toys, tmp_path, snrs=[10.0])]) == 0
    rows = load_source(str(toys / "corpus"), split="train")
    assert sum(heard) == len(rows) + len(rows)  # seen, of which new is one, and seen in noise, by the first cell alone
    folder = tmp_path / "sweep"
    assert not (folder / "states").exists()
    student, processor = load_model(folder / "PL-seed1" / "student"), load_processor(folder / "PL-seed1" / "student")
    plain = evaluate_model(student, rows, processor).errors
    assert json.loads((folder / "results.json").read_text())[0]["errors"]["seen"] == vars(plain)


def test_a_cell_that_trains_its_encoder_is_heard_by_itself(toys: Path, tmp_path: Path) -> None:
    """States of another encoder would be scored as if they were its own."""
    cells = {"frozen": {}, "trained": {"freeze_encoder": False, "learning_rate": 0.01}}
    assert main(["sweep", write_sweep(toys, tmp_path, cells=cells)]) == 0
    folder = tmp_path / "sweep"
    student, processor = (load(folder / "trained-seed1" / "student") for load in (load_model, load_processor))
    plain = evaluate_model(student, load_source(str(toys / "corpus"), split="train"), processor).errors
    assert json.loads((folder / "results.json").read_text())[1]["errors"]["seen"] == vars(plain)


def test_a_cell_of_lora_leaves_a_whole_student(toys: Path, tmp_path: Path) -> None:
    """Weights with adapters among them load as nothing but noise."""
    cells = {"LoRA": {"lora": {"r": 2}}}
    assert main(["sweep", write_sweep(toys, tmp_path, cells=cells, columns=["parameters"])]) == 0
    folder = tmp_path / "sweep"
    student = load_model(folder / "LoRA-seed1" / "student")
    assert json.loads((folder / "results.json").read_text())[0]["parameters"] == student.num_parameters()


def test_cells_of_equal_time_train_for_it(toys: Path, tmp_path: Path) -> None:
    file = write_sweep(toys, tmp_path, minutes=0.02, grid={"train_dataset.share": [0.5, 1.0]}, cells={})
    assert main(["sweep", file]) == 0
    found = json.loads((tmp_path / "sweep" / "results.json").read_text())
    assert [one["cell"] for one in found] == ["0.5", "1.0"]
    assert all(one["steps"] > 2 for one in found)
    assert found[0]["rows"] < found[1]["rows"]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"columns": ["hour"]}, "did you mean 'hours'"),
        ({"minutes": 0.0}, "minutes: expected more than 0"),
        ({"cells": {}}, "neither"),
        ({"grid": {"seed": 3}, "cells": {}}, "grid.seed"),
        ({"recipe": None}, "--recipe is missing"),
        ({"ood_datasets": {"seen": "x"}}, "'seen' is also the name"),
    ],
)
def test_what_is_wrong_with_a_sweep_is_named(
    toys: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], changes: dict, words: str
) -> None:
    assert main(["sweep", write_sweep(toys, tmp_path, **changes)]) == 2
    assert words in capsys.readouterr().err
