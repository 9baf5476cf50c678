"""Tables 7, 18 and 23: every setting is measured, impossible ones are refused first, the layouts are the paper's."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from toy_scripts import Printed

import algorithms
import chunk_length
from algorithms import AlgorithmRow, algorithm_table, algorithms_by_set, compare_algorithms
from chunk_length import ChunkRow, chunk_panels, chunk_settings, chunk_table, sweep_chunks
from hf_distil_whisper import WordErrors, evaluate_long_form
from inputs import LoadedModel
from talking_models import talking_whisper
from toy_models import toy_audio, toy_processor

WHISPER = LoadedModel(talking_whisper(4), toy_processor())
RECORDINGS = [
    {"id": name, "audio": np.concatenate([toy_audio(9, seed=seed + n) for n in range(4)]), "text": text}
    for seed, (name, text) in enumerate((("a", "the quick fox"), ("b", "jumps")))
]
"""Two recordings of 36 s."""


def chunk_row(model: str, length: float, stride: float, wrong: int) -> ChunkRow:
    return ChunkRow(model, length, stride, WordErrors(1000 - wrong, wrong), 0, 1.0, 2.0, 0)


def algorithm_row(model: str, algorithm: str, wrong: int, *seconds: float) -> AlgorithmRow:
    return AlgorithmRow(model, algorithm, WordErrors(1000 - wrong, wrong), seconds, 1000.0, 0)


def test_each_row_is_an_evaluation_in_its_chunks() -> None:
    """A setting that does not arrive gives a table of equal rows, which reads as a result."""
    settings = chunk_settings((30.0, 10.0), (0.0, 2.0), 30.0)
    assert settings == [(30.0, 0.0), (30.0, 2.0), (10.0, 0.0), (10.0, 2.0)]
    rows = sweep_chunks("a", WHISPER, RECORDINGS, settings)
    assert [(row.chunk_length, row.stride) for row in rows] == settings
    assert len({row.errors for row in rows}) > 1
    expected = evaluate_long_form(WHISPER.model, RECORDINGS, WHISPER.processor, chunk_length=10.0, stride=2.0)
    assert (rows[-1].errors, rows[-1].repeated_5grams) == (expected.errors, expected.repeated_5grams)
    assert rows[-1].audio_seconds == 72.0


def test_table_and_figure_23_are_those_of_the_paper() -> None:
    """Strides as lines of one panel over the length cannot be read off; 0 % over nothing would choose the chunks."""
    figures = ("large-v2", 30, 5, 48), ("large-v2", 15, 2.5, 65), ("distil", 30, 5, 74), ("distil", 15, 2.5, 42)
    rows = [chunk_row(*one) for one in figures]
    assert chunk_table(rows).splitlines() == [
        "| Chunk length / s | large-v2 | distil |",
        "|---:|---:|---:|",
        "| 30 | 4.8 | 7.4 |",
        "| 15 | 6.5 | 4.2 |",
    ]
    curves = {"large-v2": [(30, 0.048), (15, 0.065)], "distil": [(30, 0.074), (15, 0.042)]}
    assert chunk_panels(rows) == {"chunk length / s": {"": curves}}
    assert chunk_table([ChunkRow("a", 30.0, 5.0, WordErrors(), 0, 1.0, 2.0, 0)]).splitlines()[2] == "| 30 | - |"
    rows = [chunk_row("distil", 15, 0, 90), chunk_row("distil", 15, 0.5, 60), chunk_row("other", 15, 0, 30)]
    assert chunk_table(rows).splitlines()[::2] == [
        "| Chunk length / s | Stride / s | distil | other |",
        "| 15 | 0 | 9.0 | 3.0 |",
    ]
    assert chunk_table(rows).endswith("| 15 | 0.5 | 6.0 | - |")
    stride = "stride, shared with each neighbour / s"
    panels = {"distil": {"chunks of 15 s": [(0, 0.09), (0.5, 0.06)]}, "other": {"chunks of 15 s": [(0, 0.03)]}}
    assert chunk_panels(rows) == {stride: panels}
    both = chunk_panels([chunk_row("distil", *row) for row in ((30, 0, 9), (30, 2, 8), (15, 0, 7))])
    assert list(both["chunk length / s"]["distil"]) == ["stride 0 s", "stride 2 s"]
    assert list(both[stride]["distil"]) == ["chunks of 30 s", "chunks of 15 s"]
    assert both["chunk length / s"]["distil"]["stride 0 s"] == [(30, 0.009), (15, 0.007)]


def test_every_model_takes_its_turn_with_both_algorithms(monkeypatch: pytest.MonkeyPatch) -> None:
    """One after the other, a slow minute of the machine falls on one model and reads as a result."""
    calls, lengths = [], []
    models = {"teacher": WHISPER, "student": LoadedModel(talking_whisper(4, 0.7), WHISPER.processor)}

    def note(model: object, rows: list, *args: Any, method: str, **options: Any) -> Any:
        calls.append((method, next(name for name, one in models.items() if one.model is model)))
        result = evaluate_long_form(model, rows, *args, method=method, **options)
        lengths.append(result.audio_seconds)
        return result

    monkeypatch.setattr(algorithms, "evaluate_long_form", note)
    rows = [{"id": "gone", "audio": "nowhere.wav", "text": "the"}, *RECORDINGS]  # nothing to warm up on
    measured = compare_algorithms(models, rows, repeats=2)
    turn = [(method, name) for method in ("sequential", "chunked") for name in models]
    assert calls == turn * 3
    assert lengths == [30.0] * 4 + [72.0] * 8  # half a minute that does not count, so that none pays for set-up
    assert [(row.algorithm, row.model, row.unreadable_rows) for row in measured] == [(*one, 1) for one in turn]
    for row in measured:
        one = models[row.model]
        expected = evaluate_long_form(one.model, RECORDINGS, one.processor, method=row.algorithm)
        assert (row.errors, row.audio_seconds, len(row.seconds)) == (expected.errors, 72.0, 2)


def test_tables_7_and_18_are_those_of_the_paper() -> None:
    """Large-v2 in chunks is 9.9 times as fast as sequential, distil-large-v2 57.5 times; sets are averaged."""
    one = [
        algorithm_row("large-v2", "sequential", 100, 575.0, 900.0, 500.0),
        algorithm_row("large-v2", "chunked", 117, 58.0),
        algorithm_row("distil-large-v2", "chunked", 116, 10.0),
    ]
    assert algorithm_table({"a": one}, "large-v2").splitlines() == [
        "| Model | Decoding | RTF | Rel. Latency | WER |",
        "|---|---|---:|---:|---:|",
        "| large-v2 | sequential | 0.5750 | 1.00 | 10.0 |",
        "| large-v2 | chunked | 0.0580 | 9.91 | 11.7 |",
        "| distil-large-v2 | chunked | 0.0100 | 57.50 | 11.6 |",
    ]
    sets = {"a": [algorithm_row("m", "sequential", 100, 3.0), algorithm_row("m", "chunked", 0, 1.0)]}
    sets["b"] = [algorithm_row("m", "sequential", 300, 5.0), algorithm_row("m", "chunked", 100, 1.0)]
    assert algorithm_table(sets, "m").splitlines()[2:] == [
        "| m | sequential | 0.0040 | 1.00 | 20.0 |",
        "| m | chunked | 0.0010 | 4.00 | 5.0 |",
    ]
    sets["b"][1] = AlgorithmRow("m", "chunked", WordErrors(), (1.0,), 1.0, 0)  # without references
    assert algorithms_by_set(sets).splitlines() == [
        "| Dataset | m sequential | m chunked |",
        "|---|---:|---:|",
        "| a | 10.0 | 0.0 |",
        "| b | 30.0 | - |",
        "| Average | 20.0 | - |",
    ]


def test_the_scripts_write_rows_tables_and_figure(pair: list[str], tmp_path: Path, printed: Printed) -> None:
    argv = [*pair, "--chunk_lengths", 2, 1, "--strides", 0, 0.25, "--output_dir", tmp_path / "chunks"]
    text = printed(chunk_length.main, *argv)
    heading, table = (tmp_path / "chunks" / "table.md").read_text().split("\n\nWER / %.\n\n")
    assert heading == "Length and overlap of chunks (Table 23)"
    assert table.strip() in text
    rows = json.loads((tmp_path / "chunks" / "results.json").read_text())
    settings = [(row["model"], row["chunk_length"], row["stride"]) for row in rows[4:]]
    assert settings == [("model", length, stride) for length in (2.0, 1.0) for stride in (0.0, 0.25)]
    assert (tmp_path / "chunks" / "wer.png").stat().st_size > 1000
    argv = [
        *pair[:-1],
        f"{{first: {pair[-1]}, second: {pair[-1]}}}",
        "--repeats",
        1,
        "--output_dir",
        tmp_path / "both",
    ]
    text = printed(algorithms.main, *argv)
    assert (tmp_path / "both" / "table.md").read_text() in text
    assert "| Dataset | teacher sequential | model sequential | teacher chunked | model chunked |" in text
    rows = json.loads((tmp_path / "both" / "results.json").read_text())["second"]
    expected = [(method, name) for method in ("sequential", "chunked") for name in ("teacher", "model")]
    assert [(row["algorithm"], row["model"]) for row in rows] == expected
