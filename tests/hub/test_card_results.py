"""Scores on a card: those of `evaluate` and `report`, as they stand in their files."""

import json
from pathlib import Path

import pytest
import yaml
from huggingface_hub import ModelCard, parse_eval_result_entries

from hf_distil_whisper.evaluation.evaluate import evaluate_model
from hf_distil_whisper.evaluation.results import MeasuredFolder, save_results
from hf_distil_whisper.hub.model_card import (
    Evaluation,
    comparison_rows,
    eval_result_files,
    generate_model_card,
    read_evaluation,
)
from toy_models import toy_processor, toy_rows, toy_whisper

REPORT = Path(__file__).parents[2] / "docs" / "report"


def test_results_of_an_evaluation_are_read(tmp_path: Path) -> None:
    """A card that is filled in by hand holds the scores of the model before."""
    models = {"model": toy_whisper(1, decoder_layers=2), "teacher": toy_whisper()}
    for model in models.values():
        model.generation_config.max_length = 10
    rows = [{"id": row["id"], "audio": row["audio"], "text": row["text"]} for row in toy_rows(2, 0.2)]
    found = {name: evaluate_model(model, rows, toy_processor()) for name, model in models.items()}
    results = {"test": found, "talks": found}
    save_results(results, str(tmp_path), {"test": "out of distribution", "talks": "long form"})
    scores = read_evaluation(tmp_path)
    assert scores.results == {"test": found["model"].wer, "talks": found["model"].wer}
    assert scores.teacher_results["test"] == found["teacher"].wer
    assert scores.groups == {"test": "out of distribution", "talks": "long form"}
    assert scores.rtf[0] == pytest.approx(found["model"].rtf)  # of the short form alone
    card = generate_model_card(models["model"], name="me/toy", teacher="openai/whisper-toy.en", evaluation=tmp_path)
    assert f"| WER %, test (out of distribution) | {100 * found['model'].wer:.2f} |" in card.text
    assert len(card.data.eval_results) == 2


def test_a_set_without_references_has_no_rate(tmp_path: Path) -> None:
    row = {"wer": None, "group": "in distribution", "seconds": 1.0, "audio_seconds": 2.0}
    scored = row | {"wer": 0.25}
    (tmp_path / "results.json").write_text(json.dumps({"silent": {"model": row}, "test": {"model": scored}}))
    found = read_evaluation(tmp_path)
    assert found.results == {"test": 0.25}
    assert found.teacher_results == {}
    assert found.rtf == (0.5, None)
    with pytest.raises(ValueError, match="'other'"):
        read_evaluation(tmp_path, student="other")


def test_figures_of_a_report_are_read(tmp_path: Path) -> None:
    """The report keeps each figure in a file of its own."""
    folder = tmp_path / "measured"
    errors = {"hits": 8, "substitutions": 1, "deletions": 1, "insertions": 0}
    score = {"errors": errors, "interval": None, "seconds": 1.0, "audio_seconds": 10.0, "repeated_5grams": 0}
    kept = MeasuredFolder(folder)
    for name in ("short form, student, test", "short form, teacher, test", "long form, student, my talks"):
        kept.get(name, {}, lambda: score)
    latency = [
        {"model": "teacher", "batch_size": 1, "relative_latency": 1.0},
        {"model": "student", "batch_size": 1, "relative_latency": 1.75},
        {"model": "student", "batch_size": 4, "relative_latency": 1.5},
    ]
    kept.get("latency", {}, lambda: latency)
    found = read_evaluation(tmp_path)
    assert found.results == {"test": 0.2, "my talks": 0.2}
    assert found.teacher_results == {"test": 0.2}
    assert found.groups == {"my talks": "long form"}
    assert found.speed == 1.75
    assert ("times as fast, one recording at a time", "1.75", "1.00") in comparison_rows(found)
    with pytest.raises(FileNotFoundError, match="--output_dir"):
        read_evaluation(tmp_path / "nowhere")


def test_a_model_whose_name_begins_like_another_is_not_that_one(tmp_path: Path) -> None:
    """The card of `student` told the other one's rate, of a set `large-test` that there is not."""
    kept = MeasuredFolder(tmp_path / "measured")
    for model, wrong in (("student", 3), ("student-large", 1), ("teacher", 0), ("teacher.en", 2)):
        for kind, data in (("short form", "test"), ("long form", "talks")):
            errors = {"hits": 10 - wrong, "substitutions": wrong, "deletions": 0, "insertions": 0}
            score = {"errors": errors, "interval": None, "seconds": 1.0, "audio_seconds": 9.0, "repeated_5grams": 0}
            kept.get(f"{kind}, {model}, {data}", {}, lambda score=score: score)
    found = read_evaluation(tmp_path)
    assert found.results == {"test": 0.3, "talks": 0.3}
    assert found.teacher_results == {"test": 0.0, "talks": 0.0}
    assert read_evaluation(tmp_path, student="student-large").results == {"test": 0.1, "talks": 0.1}
    with pytest.raises(ValueError, match="no set was scored for 'stud'"):
        read_evaluation(tmp_path, student="stud")


def test_what_is_given_wins_over_what_is_read() -> None:
    known = Evaluation(results={"a": 0.1, "b": 0.2})
    assert known.merged({"a": 0.3}, None, {"b": "long form"}) == Evaluation(
        {"a": 0.3, "b": 0.2}, groups={"b": "long form"}
    )


def test_eval_results_name_data_sets_of_the_hub_only(tmp_path: Path) -> None:
    """The Hub puts these on the leaderboard of the data set: a folder's name would land on somebody else's."""
    sources = {
        "clean": {"path": "openslr/librispeech_asr", "config": "clean", "split": "test", "revision": "abc"},
        "other": {"path": "openslr/librispeech_asr", "config": "other", "split": "test", "revision": None},
        "mine": {"path": str(tmp_path), "config": None, "split": "test"},
    }
    files = eval_result_files(
        {"clean": 0.0312, "other": 0.07, "mine": 0.5, "unknown": 0.6}, sources, date="2026-01-01"
    )
    assert list(files) == ["openslr--librispeech_asr.yaml"]
    entries = parse_eval_result_entries(yaml.safe_load(yaml.safe_dump(files["openslr--librispeech_asr.yaml"])))
    assert [(entry.task_id, entry.value, entry.dataset_revision) for entry in entries] == [
        ("clean", 3.12, "abc"),
        ("other", 7.0, None),
    ]
    assert entries[0].date == "2026-01-01"
    card = generate_model_card(
        toy_whisper(), name="me/toy", results={"clean": 0.0312, "mine": 0.5}, result_sources=sources
    )
    assert isinstance(card, ModelCard)
    assert [result.dataset_type for result in card.data.eval_results] == ["openslr/librispeech_asr", "mine"]
    assert str(tmp_path) not in str(card)
