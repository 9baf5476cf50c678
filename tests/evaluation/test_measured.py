"""Figures of a report that are kept between two starts."""

import json
from pathlib import Path

from hf_distil_whisper.evaluation.results import (
    MeasuredFolder,
    SetScore,
    score_as_json,
    score_from_json,
)
from hf_distil_whisper.metrics import WordErrors


def test_a_figure_is_measured_once(tmp_path: Path) -> None:
    """A report that was stopped would begin anew."""
    calls = []

    def measure() -> dict[str, int]:
        calls.append(1)
        return {"seconds": 3}

    for _ in range(2):
        assert MeasuredFolder(tmp_path).get("latency", {"model": "a"}, measure) == {"seconds": 3}
    assert len(calls) == 1


def test_another_model_under_the_same_name_is_measured_anew(tmp_path: Path) -> None:
    """A student that was trained again would keep its old figures."""
    folder = MeasuredFolder(tmp_path)
    assert folder.get("short", {"weights": "1"}, lambda: 1) == 1
    assert folder.get("short", {"weights": "2"}, lambda: 2) == 2
    assert folder.get("short", {"weights": "2"}, lambda: 3) == 2


def test_names_of_models_may_be_those_of_the_hub(tmp_path: Path) -> None:
    """A slash would look for a folder that is not there."""
    assert MeasuredFolder(tmp_path).get("short form, openai/whisper-tiny", {}, lambda: 1) == 1
    (file,) = tmp_path.iterdir()
    assert file.name == "short-form__openai-whisper-tiny.json"
    assert json.loads(file.read_text())["name"] == "short form, openai/whisper-tiny"


def test_names_that_run_together_have_files_of_their_own(tmp_path: Path) -> None:
    """Two models and their sets, of which one would be measured again and again in place of the other."""
    folder = MeasuredFolder(tmp_path)
    names = ("short form, student, large-test", "short form, student-large, test")
    assert [folder.get(name, {}, lambda name=name: name) for name in names] == [*names]
    assert [folder.get(name, {}, lambda: "again") for name in names] == [*names]


def test_a_score_survives_its_file(tmp_path: Path) -> None:
    score = SetScore(WordErrors(8, 1, 1, 2), (0.2, 0.6), 3.0, 60.0, 4)
    assert score_from_json(MeasuredFolder(tmp_path).get("x", {}, lambda: score_as_json(score))) == score
    assert score.rtf == 0.05
