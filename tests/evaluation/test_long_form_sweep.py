"""The sweep over chunks: every setting tried once, impossible ones refused first, Table 23's layout."""

from pathlib import Path

import pytest

from evaluation.test_long_form import recordings
from figures import wer_over_chunks
from hf_distil_whisper.evaluation.long_form import evaluate_long_form
from hf_distil_whisper.metrics import WordErrors
from long_form_sweep import (
    ChunkRow,
    chunk_panels,
    chunk_table,
    sweep_chunks,
)
from talking_models import talking_whisper
from toy_models import toy_processor

PNG = b"\x89PNG"


def test_each_row_is_an_evaluation_with_its_own_chunks() -> None:
    """A setting that does not arrive gives a table of equal rows, which reads as a finding."""
    models, rows = {"a": talking_whisper(4), "b": talking_whisper(4, 0.7)}, recordings(["the quick fox", "jumps"])
    found = sweep_chunks(models, rows, toy_processor(), chunk_lengths=(30, 10), strides=(0, 2))
    settings = [(30.0, 0.0), (30.0, 2.0), (10.0, 0.0), (10.0, 2.0)]
    assert [(row.model, row.chunk_length, row.stride) for row in found] == [
        (name, *setting) for name in models for setting in settings
    ]
    assert len({row.errors for row in found[:4]}) > 1
    expected = evaluate_long_form(models["b"], rows, toy_processor(), chunk_length=10, stride=2)
    assert (found[-1].errors, found[-1].repeated_5grams) == (expected.errors, expected.repeated_5grams)
    assert found[-1].audio_seconds == 72.0
    assert found[-1].rtf > 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"chunk_lengths": (10, 31)}, "`chunk_length` is 31"),
        ({"chunk_lengths": (30, 4), "strides": (0, 2)}, r"`stride` is 2\.0 s .* chunk of 4\.0 s"),
        ({"chunk_lengths": ()}, "is empty"),
        ({"strides": ()}, "is empty"),
    ],
)
def test_settings_that_do_not_fit_are_refused_before_the_first_is_tried(options: dict, message: str) -> None:
    """The last of 20 settings would fail after the night."""
    with pytest.raises(ValueError, match=message):
        sweep_chunks({"a": talking_whisper()}, [], toy_processor(), **options)


def test_no_model_is_refused() -> None:
    with pytest.raises(ValueError, match="`models` is empty"):
        sweep_chunks({}, [], toy_processor())


def row(model: str, length: float, stride: float, wrong: int) -> ChunkRow:
    return ChunkRow(model, length, stride, WordErrors(1000 - wrong, wrong), 0, 1.0, 2.0, 0)


def test_the_table_and_the_figure_are_those_of_the_paper(tmp_path: Path) -> None:
    """Two rows of Table 23."""
    rows = [
        row("large-v2", 30, 5, 48),
        row("large-v2", 15, 2.5, 65),
        row("distil", 30, 5, 74),
        row("distil", 15, 2.5, 42),
    ]
    assert chunk_table(rows).splitlines() == [
        "| Chunk length / s | large-v2 | distil |",
        "|---:|---:|---:|",
        "| 30 | 4.8 | 7.4 |",
        "| 15 | 6.5 | 4.2 |",
    ]
    panels = chunk_panels(rows)
    curves = {"large-v2": [(30, 0.048), (15, 0.065)], "distil": [(30, 0.074), (15, 0.042)]}
    assert panels == {"chunk length / s": {"": curves}}
    wer_over_chunks(panels, tmp_path / "figure.png")
    assert (tmp_path / "figure.png").read_bytes().startswith(PNG)


def test_overlaps_have_a_column_and_curves_of_their_own() -> None:
    rows = [row("distil", 15, 0, 90), row("distil", 15, 0.5, 60), row("other", 15, 0, 30)]
    assert chunk_table(rows).splitlines() == [
        "| Chunk length / s | Stride / s | distil | other |",
        "|---:|---:|---:|---:|",
        "| 15 | 0 | 9.0 | 3.0 |",
        "| 15 | 0.5 | 6.0 | - |",
    ]
    assert chunk_panels(rows) == {
        "stride, shared with each neighbour / s": {
            "distil": {"chunks of 15 s": [(0, 0.09), (0.5, 0.06)]},
            "other": {"chunks of 15 s": [(0, 0.03)]},
        }
    }


def test_no_reference_is_no_perfect_score() -> None:
    """0 % over nothing would choose the chunks."""
    assert chunk_table([ChunkRow("a", 30.0, 5.0, WordErrors(), 0, 1.0, 2.0, 0)]).splitlines()[2] == "| 30 | - |"


def test_lengths_and_overlaps_are_drawn_side_by_side(tmp_path: Path) -> None:
    """Overlaps as lines of one panel over the length cannot be read off: each has an axis of its own."""
    rows = [row("distil", length, stride, wrong) for length, stride, wrong in ((30, 0, 9), (30, 2, 8), (15, 0, 7))]
    panels = chunk_panels(rows)
    assert {heading: list(models["distil"]) for heading, models in panels.items()} == {
        "chunk length / s": ["stride 0 s", "stride 2 s"],
        "stride, shared with each neighbour / s": ["chunks of 30 s", "chunks of 15 s"],
    }
    assert panels["chunk length / s"]["distil"]["stride 0 s"] == [(30, 0.009), (15, 0.007)]
    wer_over_chunks(panels, tmp_path / "figure.svg")
    assert "<svg" in (tmp_path / "figure.svg").read_text()
