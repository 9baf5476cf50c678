"""Sequential and chunked side by side: in turn, relative to the baseline's sequential, Table 7's layout."""

import pytest

import long_form_algorithms
from evaluation.test_long_form import recordings
from hf_distil_whisper.evaluation.evaluate import EvaluationResult
from hf_distil_whisper.evaluation.long_form import evaluate_long_form
from hf_distil_whisper.metrics import WordErrors
from long_form_algorithms import (
    AlgorithmRow,
    algorithm_table,
    algorithms_by_set,
    compare_algorithms,
)
from talking_models import talking_whisper
from toy_models import toy_audio, toy_processor


def test_every_model_is_heard_with_both_in_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    """One after the other, a slow minute of the machine falls on one model and reads as a finding."""
    heard, lengths = [], []
    models = {"teacher": talking_whisper(4), "student": talking_whisper(4, 0.7)}

    def note(model: object, rows: list, *args: object, method: str, **options: object) -> EvaluationResult:
        heard.append((method, next(name for name, one in models.items() if one is model)))
        result = evaluate_long_form(model, rows, *args, method=method, **options)
        lengths.append(result.audio_seconds)
        return result

    monkeypatch.setattr(long_form_algorithms, "evaluate_long_form", note)
    rows = recordings(["the quick fox", "jumps"])
    found = compare_algorithms(models, rows, dict.fromkeys(models, toy_processor()), repeats=2)
    turn = [(method, name) for method in ("sequential", "chunked") for name in models]
    assert heard == turn * 3
    assert lengths == [30.0] * 4 + [72.0] * 8  # half a minute that nobody counts, so that no first one pays for set-up
    assert [(row.algorithm, row.model) for row in found] == turn
    for row in found:
        expected = evaluate_long_form(models[row.model], rows, toy_processor(), method=row.algorithm)
        assert (row.errors, row.audio_seconds, len(row.seconds)) == (expected.errors, 72.0, 2)


def test_a_broken_recording_is_not_what_models_warm_up_on() -> None:
    """It may be the first one of a set, of which all others are fine."""
    rows = [{"id": "gone", "audio": "nowhere.wav", "text": "the"}, {"id": "10 s", "audio": toy_audio(10), "text": "a"}]
    (warm,) = long_form_algorithms._beginning(rows)
    assert len(warm["audio"]) == 160_000
    assert long_form_algorithms._beginning(rows[:1]) == []
    models = {"model": talking_whisper(4)}
    found = compare_algorithms(models, rows, dict.fromkeys(models, toy_processor()), repeats=1)
    assert [(one.unreadable_rows, one.audio_seconds) for one in found] == [(1, 10.0)] * 2


def row(model: str, algorithm: str, wrong: int, *seconds: float) -> AlgorithmRow:
    return AlgorithmRow(model, algorithm, WordErrors(1000 - wrong, wrong), seconds, 1000.0, 0)


def test_the_table_is_that_of_the_paper() -> None:
    """Table 7: large-v2 in chunks is 9.9 times as fast as sequential, distil-large-v2 57.5 times."""
    one = [
        row("large-v2", "sequential", 100, 575.0, 900.0, 500.0),
        row("large-v2", "chunked", 117, 58.0),
        row("distil-large-v2", "chunked", 116, 10.0),
    ]
    assert algorithm_table({"a": one}, "large-v2").splitlines() == [
        "| Model | Decoding | RTF | Rel. Latency | WER |",
        "|---|---|---:|---:|---:|",
        "| large-v2 | sequential | 0.5750 | 1.00 | 10.0 |",
        "| large-v2 | chunked | 0.0580 | 9.91 | 11.7 |",
        "| distil-large-v2 | chunked | 0.0100 | 57.50 | 11.6 |",
    ]


def test_sets_share_one_latency_and_are_averaged() -> None:
    sets = {"a": [row("m", "sequential", 100, 3.0), row("m", "chunked", 0, 1.0)]}
    sets["b"] = [row("m", "sequential", 300, 5.0), row("m", "chunked", 100, 1.0)]
    assert algorithm_table(sets, "m").splitlines()[2:] == [
        "| m | sequential | 0.0040 | 1.00 | 20.0 |",
        "| m | chunked | 0.0010 | 4.00 | 5.0 |",
    ]


def test_every_set_has_its_line_by_algorithm() -> None:
    """Table 18; a set without references has no rate, and so has no average."""
    sets = {"a": [row("m", "sequential", 100, 3.0), row("m", "chunked", 0, 1.0)]}
    sets["b"] = [row("m", "sequential", 300, 5.0), AlgorithmRow("m", "chunked", WordErrors(), (1.0,), 1.0, 0)]
    assert algorithms_by_set(sets).splitlines() == [
        "| Dataset | m sequential | m chunked |",
        "|---|---:|---:|",
        "| a | 10.0 | 0.0 |",
        "| b | 30.0 | - |",
        "| Average | 20.0 | - |",
    ]


def test_nothing_to_compare_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one model and repetition, got 0 and 3"):
        compare_algorithms({}, [], {})
