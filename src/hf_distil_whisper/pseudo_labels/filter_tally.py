"""Adds up what the filter finds, row by row, in memory that does not grow with the number of rows.

Knows judged rows and the report they make, neither data sets nor how a row is judged.
"""

import heapq
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from hf_distil_whisper.pseudo_labels.filter_report import (
    HISTOGRAM_STEP,
    NUM_WORST,
    PAPER_THRESHOLDS,
    CorpusStatistics,
    FilterReport,
    ThresholdEffect,
)
from hf_distil_whisper.pseudo_labels.row_rules import REASONS


class JudgedRow(NamedTuple):
    """A row and what the filter thinks of it.

    Args:
        number (`int`): in the data set.
        id (`str`): how the report names it.
        reference (`str`, *optional*): None where there is none.
        prediction (`str`): plain transcript.
        wer (`float`, *optional*): None without a reference.
        against (`str`, *optional*): which of `REASONS` speaks against it, whatever its word error rate.
        hours (`float`): of audio.
        speaker (`str`, *optional*): None where it is not known.
    """

    number: int
    id: str
    reference: str | None
    prediction: str
    wer: float | None
    against: str | None
    hours: float = 0.0
    speaker: str | None = None

    def passes(self, threshold: float) -> bool:
        """Whether a threshold leaves it."""
        return self.against is None and (self.wer is None or self.wer <= threshold)

    def told(self) -> dict[str, Any]:
        """Its line among the worst rows of a report."""
        return {"id": self.id, "wer": self.wer, "reference": self.reference, "prediction": self.prediction}


class FilterTally:
    """Counts, sums and the few worst rows of those that were added so far.

    Args:
        threshold (`float`): λ of the filter.
        has_speakers (`bool`): whether the data set names them.
    """

    def __init__(self, threshold: float, has_speakers: bool):
        self.best: JudgedRow | None = None
        """The one with the lowest word error rate, whether kept or not."""
        self._threshold = threshold
        self._before, self._after = _Corpus(has_speakers), _Corpus(has_speakers)
        self._left = {value: _Left() for value in sorted({*PAPER_THRESHOLDS, threshold}, reverse=True)}
        self._worst: dict[bool, list[tuple[float, int, JudgedRow]]] = {True: [], False: []}
        self._by_reason = dict.fromkeys(REASONS, 0)
        self._histogram = [0.0] * (round(1 / HISTOGRAM_STEP) + 1)
        self._unjudged = self._truncated = 0
        self._hours_dropped = 0.0

    def add(self, row: JudgedRow) -> bool:
        """Counts a row; says whether it is kept."""
        kept = row.passes(self._threshold)
        self._before.add(row)
        if kept:
            self._after.add(row)
        else:
            self._hours_dropped += row.hours
            self._by_reason[row.against or "wer"] += 1
        for threshold, left in self._left.items():
            if row.passes(threshold):
                left.rows += 1
                left.hours += row.hours
        if row.wer is None:
            self._unjudged += kept
            self._truncated += row.against == "truncated"
        else:
            self._add_rate(row, row.wer, kept)
        return kept

    def _add_rate(self, row: JudgedRow, wer: float, kept: bool) -> None:
        # Rounded, since a rate of 0.15 lies on the border of two bins and neither side of it.
        self._histogram[min(int(round(wer / HISTOGRAM_STEP, 6)), len(self._histogram) - 1)] += row.hours
        worst = self._worst[kept]
        heapq.heappush(worst, (wer, -row.number, row))  # of equal ones the first
        if len(worst) > NUM_WORST:
            heapq.heappop(worst)
        if self.best is None or self.best.wer is None or wer < self.best.wer:
            self.best = row

    def report(self) -> FilterReport:
        """What was found in all rows added."""
        rows = self._before.rows
        before, after = self._before.statistics(), self._after.statistics()
        return FilterReport(
            kept=after.rows,
            dropped=rows - after.rows,
            hours_kept=after.hours,
            hours_dropped=self._hours_dropped,
            by_threshold={
                value: ThresholdEffect(1 - left.rows / max(rows, 1), left.hours) for value, left in self._left.items()
            },
            worst_kept=_told(self._worst[True]),
            worst_dropped=_told(self._worst[False]),
            threshold=self._threshold,
            unjudged=self._unjudged,
            truncated=self._truncated,
            by_reason=self._by_reason,
            histogram=self._histogram,
            before=before,
            after=after,
        )


@dataclass
class _Left:
    """What a threshold leaves."""

    rows: int = 0
    hours: float = 0.0


@dataclass
class _Corpus:
    has_speakers: bool
    rows: int = 0
    hours: float = 0.0
    references: int = 0
    words: int = 0
    speakers: set[str] = field(default_factory=set)

    def add(self, row: JudgedRow) -> None:
        self.rows += 1
        self.hours += row.hours
        if row.reference is not None:
            self.references += 1
            self.words += len(row.reference.split())
        if row.speaker is not None:
            self.speakers.add(row.speaker)

    def statistics(self) -> CorpusStatistics:
        return CorpusStatistics(
            rows=self.rows,
            hours=self.hours,
            speakers=len(self.speakers) if self.has_speakers else None,
            mean_seconds=3600 * self.hours / max(self.rows, 1),
            mean_words=self.words / self.references if self.references else None,
        )


def _told(worst: Sequence[tuple[float, int, JudgedRow]]) -> list[dict[str, Any]]:
    return [row.told() for _, _, row in sorted(worst, reverse=True)]
