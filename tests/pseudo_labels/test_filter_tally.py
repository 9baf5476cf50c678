"""What the filter adds up row by row, against the same numbers from arrays of all rows."""

import numpy as np
import pytest

from hf_distil_whisper.pseudo_labels.filtering import (
    NUM_WORST,
    PAPER_THRESHOLDS,
    REASONS,
    FilterTally,
    JudgedRow,
)

ROWS = 500


@pytest.fixture(scope="module")
def judged() -> list[JudgedRow]:
    """Rates in steps of 0.05, so that many are equal and many lie on a threshold; some rows lack a reference."""
    random = np.random.default_rng(0)
    rows = []
    for number in range(ROWS):
        wer = None if random.random() < 0.1 else round(0.05 * int(random.integers(30)), 2)
        against = str(random.choice(REASONS[1:])) if random.random() < 0.2 else None
        reference = None if wer is None else " ".join(["word"] * int(random.integers(9)))
        speaker = f"speaker {random.integers(40)}" if random.random() < 0.9 else None
        rows.append(JudgedRow(number, f"id {number}", reference, "heard", wer, against, random.random(), speaker))
    return rows


@pytest.mark.parametrize("threshold", [0.1, 0.12, 2.0])
def test_the_tally_is_what_arrays_of_all_rows_give(judged: list[JudgedRow], threshold: float) -> None:
    tally = FilterTally(threshold, has_speakers=True)
    kept = np.array([tally.add(row) for row in judged])
    wer = np.array([np.nan if row.wer is None else row.wer for row in judged])
    hours, fine = np.array([row.hours for row in judged]), np.array([row.against is None for row in judged])
    expected = fine & ~(wer > threshold)
    report = tally.report()
    assert kept.tolist() == expected.tolist()
    assert (report.kept, report.dropped) == (expected.sum(), (~expected).sum())
    assert report.hours_kept == pytest.approx(hours[expected].sum())
    assert report.hours_dropped == pytest.approx(hours[~expected].sum())
    for value in PAPER_THRESHOLDS:
        left = fine & ~(wer > value)
        assert report.by_threshold[value].share_dropped == pytest.approx(1 - left.mean())
        assert report.by_threshold[value].hours_kept == pytest.approx(hours[left].sum())
    bins = np.minimum(np.round(wer[~np.isnan(wer)] / 0.05).astype(int), 20)
    assert report.histogram == pytest.approx(np.bincount(bins, hours[~np.isnan(wer)], 21).tolist())
    for rows, worst in ((expected, report.worst_kept), (~expected, report.worst_dropped)):
        numbers = np.flatnonzero(rows & ~np.isnan(wer))
        numbers = numbers[np.argsort(-wer[numbers], kind="stable")][:NUM_WORST]
        assert [row["id"] for row in worst] == [f"id {number}" for number in numbers]
    assert sum(report.by_reason.values()) == report.dropped
    assert report.by_reason["wer"] == int((fine & (wer > threshold)).sum())
    assert report.unjudged == int((expected & np.isnan(wer)).sum())
    assert tally.best is not None
    assert tally.best.number == int(np.nanargmin(wer))


def test_the_corpus_before_and_after(judged: list[JudgedRow]) -> None:
    tally = FilterTally(0.1, has_speakers=True)
    kept = [row for row in judged if tally.add(row)]
    report = tally.report()
    for rows, statistics in ((judged, report.before), (kept, report.after)):
        words = [len(row.reference.split()) for row in rows if row.reference is not None]
        assert statistics.rows == len(rows)
        assert statistics.speakers == len({row.speaker for row in rows} - {None})
        assert statistics.mean_seconds == pytest.approx(3600 * np.mean([row.hours for row in rows]))
        assert statistics.mean_words == pytest.approx(np.mean(words))


def test_without_speakers_and_rows_nothing_is_made_up() -> None:
    report = FilterTally(0.1, has_speakers=False).report()
    assert (report.before.speakers, report.before.mean_words, report.kept, report.worst_kept) == (None, None, 0, [])
