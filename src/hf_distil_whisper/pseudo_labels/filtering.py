"""The word-error-rate filter for pseudo-labels (paper, section 4.2, eq. 7).

Knows transcripts and references; where they come from is the labeller's business, what is told of them that of
`filter_report.py`.
"""

import heapq
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import repeat
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any, NamedTuple

import numpy as np
from datasets import Dataset, IterableDataset
from transformers.utils import logging

from hf_distil_whisper.data.audio import (
    AudioError,
    audio_duration,
)
from hf_distil_whisper.data.labels import plain_text
from hf_distil_whisper.data.sources import (
    select_rows,
    without_decoder,
)
from hf_distil_whisper.inference.output import compression_ratio
from hf_distil_whisper.metrics import (
    Normalizer,
    WordErrors,
    errors_in_language,
    get_normalizer,
    repeated_ngrams,
)

REASONS = ("wer", "truncated", "repetition", "capitals", "log_prob")
"""Why a row is dropped, in the order in which they are asked for."""


@dataclass(frozen=True)
class RowRules:
    """Bounds on a pseudo-label; None and False ask for nothing.

    Args:
        drop_truncated (`bool`, *optional*, defaults to `False`): labels whose length ran out before their end.
        max_compression_ratio (`float`, *optional*): above it, phrases repeat: see [`compression_ratio`]. 2.4 is what
            OpenAI's Whisper decodes anew at.
        max_repeated_ngrams (`int`, *optional*): runs of five words that occur again, see [`repeated_ngrams`].
        drop_all_capitals (`bool`, *optional*, defaults to `False`): labels of two words or more without small letters,
            in scripts that have them: corpora of subtitles teach a teacher to shout.
        min_mean_log_prob (`float`, *optional*): below it, the teacher was guessing. -1.0 in OpenAI's Whisper.
    """

    drop_truncated: bool = False
    max_compression_ratio: float | None = None
    max_repeated_ngrams: int | None = None
    drop_all_capitals: bool = False
    min_mean_log_prob: float | None = None


UNREFERENCED = RowRules(drop_truncated=True, max_compression_ratio=2.4, min_mean_log_prob=-1.0)
"""Asked of rows without a reference in any case, with the thresholds at which OpenAI's Whisper decodes anew."""


def broken_rule(
    rules: RowRules, text: str, truncated: bool, mean_log_prob: float | None, normalizer: Normalizer
) -> str | None:
    """The first of `REASONS` that speaks against a label, or None.

    Args:
        rules ([`RowRules`]): what is asked for.
        text (`str`): the label, plain.
        truncated (`bool`): whether its length ran out.
        mean_log_prob (`float`, *optional*): None where it is not known; the label then passes.
        normalizer (`Normalizer`): before repeated words are counted.
    """
    if rules.drop_truncated and truncated:
        return "truncated"
    if rules.max_compression_ratio is not None and compression_ratio(text) > rules.max_compression_ratio:
        return "repetition"
    if rules.max_repeated_ngrams is not None and repeated_ngrams(normalizer(text)) > rules.max_repeated_ngrams:
        return "repetition"
    # `isupper` is false for scripts without case, which the reference scripts dropped whole.
    if rules.drop_all_capitals and text.isupper() and len(text.split()) > 1:
        return "capitals"
    if rules.min_mean_log_prob is not None and mean_log_prob is not None and mean_log_prob < rules.min_mean_log_prob:
        return "log_prob"
    return None


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


logger = logging.get_logger(__name__)

_BATCH = 1000


class EmptyFilterError(ValueError):
    """No row passed the filter; the message holds the table of thresholds."""


def filter_by_wer(
    dataset: Dataset,
    threshold: float = 0.10,
    *,
    reference_column: str = "text",
    prediction_column: str = "whisper_transcript",
    language: str = "en",
    rules: RowRules | None = None,
) -> tuple[Dataset, FilterReport]:
    """Keeps the rows whose pseudo-label agrees with the reference: WER(norm(y), norm(ŷ)) <= λ (eq. 7).

    A row without a reference (null) cannot be compared: it is kept and counted in `FilterReport.unjudged`, unless its
    transcript was cut off, repeats itself or was guessed (`UNREFERENCED`). A reference that is empty after normalising
    says that nothing is spoken: every word of the transcript is one error.

    Args:
        dataset (`Dataset`): labelled rows; hours come from its `duration` column, or else from the audio.
        threshold (`float`, *optional*, defaults to 0.10): λ as a fraction; the paper's choice (section 9.1).
        reference_column (`str`, *optional*, defaults to `"text"`): what was spoken, as the source says.
        prediction_column (`str`, *optional*, defaults to `"whisper_transcript"`): plain or with Whisper's special and
            timestamp tokens, which are taken out.
        language (`str`, *optional*, defaults to `"en"`): of the references, of those rows whose column `language` says
            none; chooses the normaliser ([`get_normalizer`]), and characters instead of words where a script has no
            spaces. "basic" for digit strings.
        rules ([`RowRules`], *optional*): what else may drop a row, with or without a reference. Nothing by default.

    Returns:
        `tuple[Dataset, FilterReport]`: the rows kept, in order, and the report.

    Raises:
        EmptyFilterError: if no row passes. Nothing can be trained on nothing.
        ValueError: for a missing column, 0 rows or a threshold below 0.

    Example:
        ```python
        >>> kept, report = filter_by_wer(labelled, threshold=0.10)
        >>> print(report.table())
        ```
    """
    rows, report = passing_rows(
        dataset,
        threshold,
        reference_column=reference_column,
        prediction_column=prediction_column,
        language=language,
        rules=rules,
    )
    return select_rows(dataset, rows), report


def passing_rows(
    dataset: Dataset,
    threshold: float = 0.10,
    *,
    reference_column: str = "text",
    prediction_column: str = "whisper_transcript",
    language: str = "en",
    rules: RowRules | None = None,
) -> tuple[np.ndarray, FilterReport]:
    """The numbers of the rows that [`filter_by_wer`] keeps, and its report. Takes and raises the same."""
    _check_threshold(threshold)
    rules = RowRules() if rules is None else rules
    _check_columns(dataset, [reference_column, prediction_column])
    if len(dataset) == 0:
        raise ValueError(
            "The data set to filter has 0 rows: there is nothing to judge. Check the labelling before it."
        )
    if rules.min_mean_log_prob is not None and "mean_log_prob" not in dataset.column_names:
        raise ValueError(
            "`min_mean_log_prob` was given, but the data set has no column 'mean_log_prob'. Label it with "
            "`pseudo_label_dataset`, or leave the rule out."
        )
    tally = FilterTally(threshold, has_speakers="speaker" in dataset.column_names)
    columns = _Columns(reference_column, prediction_column, language)
    kept = _spooled(row.number for row in _judged_rows(dataset, columns, rules) if tally.add(row))
    report = tally.report()
    if report.kept == 0:
        raise EmptyFilterError(_nothing_left(report, tally.best))
    if report.kept < 0.1 * len(dataset):
        logger.warning(f"The filter dropped nearly all rows. Do teacher and references fit?\n{report.table()}")
    return kept, report


def filter_stream_by_wer(
    rows: IterableDataset,
    threshold: float = 0.10,
    *,
    reference_column: str = "text",
    prediction_column: str = "whisper_transcript",
    language: str = "en",
) -> IterableDataset:
    """The rows of a stream that [`filter_by_wer`] would keep, each judged as it comes; there is no report.

    Args:
        rows (`IterableDataset`): labelled, as [`load_source`] gives them with `streaming=True`.
        threshold (`float`, *optional*, defaults to 0.10): as for [`filter_by_wer`].
        reference_column (`str`, *optional*, defaults to `"text"`): as for [`filter_by_wer`].
        prediction_column (`str`, *optional*, defaults to `"whisper_transcript"`): as for [`filter_by_wer`].
        language (`str`, *optional*, defaults to `"en"`): as for [`filter_by_wer`].

    Raises:
        ValueError: for a missing column or a threshold below 0.
    """
    _check_threshold(threshold)
    _check_columns(rows, [reference_column, prediction_column])
    columns = _Columns(reference_column, prediction_column, language)
    return rows.filter(_row_passes, fn_kwargs={"columns": columns, "threshold": threshold})


def _row_passes(row: Mapping[str, Any], columns: "_Columns", threshold: float) -> bool:
    return _judge_row(row, columns, RowRules()).passes(threshold)


class _Columns(NamedTuple):
    """Where reference and label stand, and whose normaliser compares them."""

    reference: str
    prediction: str
    language: str


def row_error_rates(
    references: Sequence[str | None], predictions: Sequence[str], languages: Sequence[str]
) -> list[float | None]:
    """The error rate of each row after normalising both sides: of words, or of characters where there are no spaces.

    Args:
        references (`Sequence[str | None]`): None where there is none.
        predictions (`Sequence[str]`): plain transcripts.
        languages (`Sequence[str]`): of each row, as for [`get_normalizer`].

    Returns:
        `list[float | None]`: fractions; None without a reference. With an empty one, as in [`WordErrors`], the number
            of words that the prediction has.
    """
    return [None if errors is None else errors.wer for errors in row_errors(references, predictions, languages)]


def row_errors(
    references: Sequence[str | None], predictions: Sequence[str], languages: Sequence[str]
) -> list[WordErrors | None]:
    """The counts behind [`row_error_rates`], which add up where rates do not.

    Args:
        references (`Sequence[str | None]`): None where there is none.
        predictions (`Sequence[str]`): plain transcripts.
        languages (`Sequence[str]`): of each row, as for [`get_normalizer`].
    """
    return [
        None if reference is None else errors_in_language(reference, prediction, language)
        for reference, prediction, language in zip(references, predictions, languages, strict=True)
    ]


def wer_histogram(hours: Sequence[float], threshold: float, path: str | Path) -> None:
    """Draws the hours of audio over the word error rate of their pseudo-labels, with the threshold of the filter.

    Args:
        hours (`Sequence[float]`): in bins of equal width from 0 to 100 %; the last one holds all of 100 % and more.
        threshold (`float`): λ as a fraction.
        path (`str` or `Path`): of the PNG.
    """
    # Imported here: matplotlib takes a third of a second, and labelling and training filter without a picture.
    from matplotlib.figure import Figure

    width = 100 / (len(hours) - 1)
    left = [width * index for index in range(len(hours))]
    # A bin that the threshold cuts through does not pass whole.
    colours = ["#0072b2" if start + width <= 100 * threshold + 1e-6 else "#c9c9c9" for start in left]
    figure = Figure(figsize=(7, 3.5), layout="constrained")
    axes = figure.add_subplot()
    axes.bar(left, hours, width=0.92 * width, align="edge", color=colours)
    axes.axvline(100 * threshold, color="#d55e00", label=f"λ = {threshold:.0%}")
    ticks = [*range(0, 100, 20), 100]
    axes.set_xticks(ticks, [*map(str, ticks[:-1]), "≥ 100"])
    axes.set_xlabel("word error rate of the pseudo-label / %")
    axes.set_ylabel("hours of audio")
    axes.legend(frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=150)


def _check_threshold(threshold: float) -> None:
    if threshold < 0:
        raise ValueError(f"`threshold` is {threshold}, expected a fraction of 0 or more (0.10 is the paper's 10 %).")


def _check_columns(rows: Dataset | IterableDataset, columns: Sequence[str]) -> None:
    there = rows.column_names or []
    for column in columns:
        if column not in there:
            raise ValueError(
                f"The data set has no column {column!r} to filter by; it has {', '.join(there)}. Label it first, or "
                "name the column with `reference_column` or `prediction_column`."
            )


def _seconds(dataset: Dataset) -> Iterator[float]:
    """Of each row: as it says, else as its audio does; 0 where nothing is known or it cannot be read."""
    if "duration" in dataset.column_names:
        yield from (length or 0.0 for batch in _batches(dataset, ["duration"]) for length in batch["duration"])
    elif "audio" in dataset.column_names:
        for recording in without_decoder(dataset).select_columns(["audio"]):
            try:
                yield audio_duration(recording["audio"])
            except AudioError:  # a row that cannot be read brings no hours; training counts and lists it
                yield 0.0
    else:
        yield from repeat(0.0, len(dataset))


def _batches(dataset: Dataset, columns: Sequence[str]) -> Iterator[dict[str, list]]:
    yield from dataset.select_columns(list(columns)).iter(batch_size=_BATCH)


def _judged_rows(dataset: Dataset, columns: _Columns, rules: RowRules) -> Iterator[JudgedRow]:
    optional = ("id", "truncated", "mean_log_prob", "language", "speaker")
    names = dict.fromkeys([columns.reference, columns.prediction])
    names |= dict.fromkeys(name for name in optional if name in dataset.column_names)
    rows = (
        dict(zip(batch, values, strict=True))
        for batch in _batches(dataset, list(names))
        for values in zip(*batch.values(), strict=True)
    )
    for number, (row, seconds) in enumerate(zip(rows, _seconds(dataset), strict=True)):
        yield _judge_row(row, columns, rules, number, seconds)


def _spooled(numbers: Iterable[int]) -> np.ndarray:
    """Numbers in a file that is gone with the array: of millions of rows they are the most that a filter holds."""
    with TemporaryFile() as file:
        for number in numbers:
            file.write(number.to_bytes(8, sys.byteorder))
        file.flush()
        return np.memmap(file, dtype=np.int64, mode="r") if file.tell() else np.zeros(0, dtype=np.int64)


def _judge_row(
    row: Mapping[str, Any], columns: _Columns, rules: RowRules, number: int = 0, seconds: float = 0.0
) -> JudgedRow:
    reference, stored = row[columns.reference], row[columns.prediction]
    language = row.get("language") or columns.language
    label = "" if stored is None else plain_text(stored)
    rate = row_error_rates([reference], [label], [language])[0]
    truncated, log_prob = bool(row.get("truncated")) or stored is None, row.get("mean_log_prob")
    asked = [rules] if rate is not None else [rules, UNREFERENCED]
    found = (broken_rule(one, label, truncated, log_prob, get_normalizer(language)) for one in asked)
    against = next((name for name in found if name), None)
    name = row.get("id", str(number))
    return JudgedRow(number, name, reference, label, rate, against, seconds / 3600, row.get("speaker"))


def _nothing_left(report: FilterReport, best: JudgedRow | None) -> str:
    nearest = ""
    if best is not None:
        nearest = f"The best row: {best.reference!r} was labelled {best.prediction!r}.\n"
    return (
        f"None of {report.dropped} rows has a word error rate of at most {report.threshold:.1%}, so nothing is left "
        f"to train on and nothing is trained.\n{report.table()}\n{nearest}Raise the threshold if the table shows a "
        "better one; if none does, the teacher does not understand this speech, or the references belong to other "
        "recordings or another language."
    )
