"""What the filter kept and dropped, and what other thresholds would have: numbers to choose λ by (paper, Table 10).

Knows counts and a few rows by name, never a data set.
"""

from dataclasses import dataclass, field
from typing import NamedTuple

PAPER_THRESHOLDS = (1.0, 0.8, 0.4, 0.2, 0.15, 0.1, 0.05)
"""The values of λ in Table 10."""

NUM_WORST = 10
"""Rows listed in the report at either side of the threshold."""

HISTOGRAM_STEP = 0.05
"""Width of a bin of `FilterReport.histogram`, in word error rate; the last bin holds all of 100 % and more."""


class ThresholdEffect(NamedTuple):
    """What a threshold would leave.

    Args:
        share_dropped (`float`): of all rows, 0 to 1.
        hours_kept (`float`): hours of audio.
    """

    share_dropped: float
    hours_kept: float


@dataclass(frozen=True)
class CorpusStatistics:
    """The columns of Table 13.

    Args:
        rows (`int`): recordings.
        hours (`float`): of audio.
        speakers (`int`, *optional*): None where they are not known.
        mean_seconds (`float`): of a recording.
        mean_words (`float`, *optional*): of a reference; None where there are none.
    """

    rows: int = 0
    hours: float = 0.0
    speakers: int | None = None
    mean_seconds: float = 0.0
    mean_words: float | None = None

    def line(self) -> str:
        """The same as text."""
        speakers = "unknown speakers" if self.speakers is None else f"{self.speakers} speakers"
        words = "" if self.mean_words is None else f", {self.mean_words:.1f} words"
        return f"{self.rows} rows, {self.hours:.3f} h, {speakers}, mean {self.mean_seconds:.1f} s{words}"


@dataclass(frozen=True)
class FilterReport:
    """What the filter kept and dropped, and what other thresholds would have.

    Args:
        kept (`int`): rows.
        dropped (`int`): rows.
        hours_kept (`float`): hours of audio; 0 where the data set tells no durations.
        hours_dropped (`float`): hours of audio.
        by_threshold (`dict[float, ThresholdEffect]`): for the values of Table 10 and the one used.
        worst_kept (`list[dict]`): id, wer, reference, prediction; highest word error rate first.
        worst_dropped (`list[dict]`): the same.
        threshold (`float`): the λ used, a fraction.
        unjudged (`int`): kept rows without a reference.
        truncated (`int`): dropped rows without a reference, their transcript cut off or missing.
        by_reason (`dict[str, int]`): dropped rows by what spoke against them first, see `REASONS`.
        histogram (`list[float]`): hours in each bin of `HISTOGRAM_STEP` of word error rate, 0 to 100 % and more.
        before (`CorpusStatistics`): of all rows.
        after (`CorpusStatistics`): of those kept.
    """

    kept: int
    dropped: int
    hours_kept: float
    hours_dropped: float
    by_threshold: dict[float, ThresholdEffect]
    worst_kept: list[dict] = field(default_factory=list)
    worst_dropped: list[dict] = field(default_factory=list)
    threshold: float = 0.1
    unjudged: int = 0
    truncated: int = 0
    by_reason: dict[str, int] = field(default_factory=dict)
    histogram: list[float] = field(default_factory=list)
    before: CorpusStatistics = CorpusStatistics()
    after: CorpusStatistics = CorpusStatistics()

    def table(self) -> str:
        """The thresholds as text: λ, share dropped, hours kept; the one used is marked."""
        lines = ["      λ   dropped   hours kept"]
        for threshold, effect in sorted(self.by_threshold.items(), reverse=True):
            mark = "  <- used" if threshold == self.threshold else ""
            lines.append(f"{threshold:7.1%}  {effect.share_dropped:7.1%}  {effect.hours_kept:10.3f}{mark}")
        total = self.kept + self.dropped
        lines.append(f"{self.kept} of {total} rows kept, {self.hours_kept:.3f} of {self._hours():.3f} h")
        if self.unjudged or self.truncated:
            lines.append(
                f"{self.unjudged} rows without a reference kept unjudged, {self.truncated} dropped as cut off"
            )
        counts = self.by_reason | {"wer": 0, "truncated": self.by_reason.get("truncated", 0) - self.truncated}
        if others := {reason: count for reason, count in counts.items() if count}:
            lines.append("dropped by other rules: " + ", ".join(f"{count} {name}" for name, count in others.items()))
        return "\n".join(lines)

    def _hours(self) -> float:
        return self.hours_kept + self.hours_dropped
