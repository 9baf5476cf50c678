"""The audit: right counts on either side of the threshold, and intervals that hold what they promise."""

import json
from pathlib import Path

import numpy as np
import pytest
from datasets import Dataset

from hf_distil_whisper.cli.main import main
from hf_distil_whisper.metrics import WordErrors, bootstrap_interval
from hf_distil_whisper.pseudo_labels.audit import audit_labels, audit_table

TEN_WORDS = "the quick brown fox jumps over a very lazy dog"
LOOP = "and then we went on and then we went on"


def labelled(copies: int = 1) -> Dataset:
    rows = [
        {"text": TEN_WORDS, "whisper_transcript": f"<|0.00|> {TEN_WORDS}<|3.00|>", "corpus": "a"},
        {"text": TEN_WORDS, "whisper_transcript": TEN_WORDS.replace("fox", "cat"), "corpus": "b"},
        {"text": TEN_WORDS, "whisper_transcript": f"{TEN_WORDS} {LOOP}", "corpus": "b"},
        {"text": None, "whisper_transcript": "hello", "corpus": "b"},
    ]
    return Dataset.from_list(rows * copies)


def test_counts_stand_on_the_right_side_of_the_filter_and_by_source() -> None:
    """Kept and dropped exchanged, λ would be judged by the wrong half."""
    parts = audit_labels(labelled(), [0, 1], source_column="corpus")
    expected = [("a", True, 1), ("b", True, 1), ("b", False, 1)]
    assert [(part.source, part.kept, part.total) for part in parts] == expected
    assert [part.errors.wer for part in parts] == [0.0, 0.1, 1.0]
    assert (parts[2].errors.ier, parts[2].repeated) == (1.0, 1)
    assert "dropped        1        1  100.0%" in audit_table(parts)


def test_a_sample_is_drawn_from_each_part_and_does_not_change() -> None:
    """Of a million rows a thousand tell enough; another thousand on every call would change the table."""
    data = labelled(copies=50)
    passing = [row for row in range(200) if row % 4 < 2]
    parts = audit_labels(data, passing, samples=20, seed=3)
    assert [(part.total, part.sampled) for part in parts] == [(100, 20), (50, 20)]
    assert parts == audit_labels(data, passing, samples=20, seed=3)


def test_the_interval_covers_the_true_rate_as_often_as_it_says() -> None:
    """An interval that is too narrow makes noise look like a finding."""
    rng, covered = np.random.default_rng(0), 0
    for trial in range(200):
        wrong = rng.binomial(10, rng.beta(2, 18, size=60))
        rows = [WordErrors(hits=10 - int(count), substitutions=int(count)) for count in wrong]
        low, high = bootstrap_interval(rows, resamples=200, seed=trial)
        covered += low <= 0.1 <= high
    assert 0.88 <= covered / 200 <= 0.99


def test_missing_columns_and_truth_are_named() -> None:
    """Both are flags that somebody has to set."""
    with pytest.raises(ValueError, match=r"no column 'truth'.*`truth_column`"):
        audit_labels(labelled(), [0], truth_column="truth")
    with pytest.raises(ValueError, match="No row has a ground truth in 'text'"):
        audit_labels(labelled().select([3]), [0])


def test_the_command_prints_the_table_and_writes_the_numbers(tmp_path: Path, capsys) -> None:
    rows = labelled().select([0, 1, 2]).add_column("audio", [{"bytes": b"", "path": None}] * 3)
    rows.save_to_disk(str(tmp_path / "labels"))
    argv = ["audit", "--dataset", str(tmp_path / "labels"), "--language", "en", "--source_column", "corpus"]
    assert main([*argv, "--output_file", str(tmp_path / "audit.json")]) == 0
    assert "a       kept" in capsys.readouterr().out
    assert [part["kept"] for part in json.loads((tmp_path / "audit.json").read_text())] == [True, True, False]
