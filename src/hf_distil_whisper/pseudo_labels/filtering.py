"""The word error rate filter for pseudo-labels (paper, section 4.2, eq. 7), further rules, and the filter's report."""

import heapq
import json
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from itertools import repeat
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any, NamedTuple

import numpy as np
from datasets import Dataset, IterableDataset
from transformers.utils import logging

from hf_distil_whisper.data.audio import AudioError, audio_duration
from hf_distil_whisper.data.labels import ends_open, language_in, plain_text
from hf_distil_whisper.data.sources import select_rows, without_decoder
from hf_distil_whisper.inference.output import compression_ratio, no_speech
from hf_distil_whisper.metrics import (
    chinese_script,
    errors_in_language,
    get_normalizer,
    in_script_of,
    is_written_without_spaces,
    language_code,
    repeated_ngrams,
)

logger = logging.get_logger(__name__)

REASONS = ("wer", "truncated", "silence", "repetition", "speed", "script", "capitals", "log_prob")
"""Reasons to drop a row, in the order in which they are checked."""

PAPER_THRESHOLDS = (1.0, 0.8, 0.4, 0.2, 0.15, 0.1, 0.05)
"""The values of λ in Table 10."""

NUM_WORST = 10
"""Rows with the highest word error rates that the report lists, of the rows kept and of those dropped."""

HISTOGRAM_STEP = 0.05
"""Width of a bin of `FilterReport.histogram` in word error rate; the last bin holds all of 100 % and more."""

_BATCH = 1000


PHRASE_NO_SPEECH_PROB = 0.3
"""A phrase that Whisper writes on nothing is taken for made up from this `no_speech_prob` on: on speech, that of
whisper-base is mostly below 0.2."""

CHARACTERS_PER_WORD = 3
"""That the bounds of words per second take for a word in languages without spaces."""


class Label(NamedTuple):
    """A plain label, and what is known of it beside its text: None or 0 where nothing is."""

    text: str
    language: str
    truncated: bool = False
    seconds: float = 0.0
    mean_log_prob: float | None = None
    no_speech_prob: float | None = None


@dataclass(frozen=True)
class RowRules:
    """Further rules for pseudo-labels, all off by default.

    Args:
        drop_truncated (`bool`, *optional*, defaults to `False`): drop labels that stop before the speech does: they
            ran out of tokens, or have an open end ([`ends_open`]).
        drop_silence (`bool`, *optional*, defaults to `False`): drop labels of recordings without speech: those that
            OpenAI's Whisper would skip ([`no_speech`]), and phrases that Whisper writes on nothing ("Thank you.",
            "Thanks for watching!") where `no_speech_prob` is high as well.
        silence_phrases (`str` or `Path`, *optional*): JSON file of more such phrases, lists by language code or "any".
        max_compression_ratio (`float`, *optional*): a higher [`compression_ratio`] means that phrases repeat; OpenAI's
            Whisper decodes again above 2.4.
        max_repeated_ngrams (`int`, *optional*): repeated runs of five words, see [`repeated_ngrams`].
        min_words_per_second (`float`, *optional*): of a label with words, where the duration is known.
        max_words_per_second (`float`, *optional*): fast speech has 5.
        drop_other_scripts (`bool`, *optional*, defaults to `False`): drop labels whose letters are mostly of a script
            that their language is not written in.
        drop_all_capitals (`bool`, *optional*, defaults to `False`): drop labels of two words or more without lower
            case letters, in scripts that have them: subtitle corpora teach a teacher to shout.
        min_mean_log_prob (`float`, *optional*): a lower mean log-probability means that the teacher was guessing; -1.0
            in OpenAI's Whisper.
    """

    drop_truncated: bool = False
    drop_silence: bool = False
    silence_phrases: str | Path | None = None
    max_compression_ratio: float | None = None
    max_repeated_ngrams: int | None = None
    min_words_per_second: float | None = None
    max_words_per_second: float | None = None
    drop_other_scripts: bool = False
    drop_all_capitals: bool = False
    min_mean_log_prob: float | None = None

    def broken_by(self, label: Label) -> str | None:
        """The first of `REASONS` for which a label is dropped; None if it passes."""
        text, normalized = label.text, get_normalizer(label.language)(label.text)
        if self.drop_truncated and label.truncated:
            return "truncated"
        if self.drop_silence and _is_silence(label, normalized, self.silence_phrases):
            return "silence"
        if self.max_compression_ratio is not None and compression_ratio(text) > self.max_compression_ratio:
            return "repetition"
        if self.max_repeated_ngrams is not None and repeated_ngrams(normalized) > self.max_repeated_ngrams:
            return "repetition"
        if label.seconds and normalized:
            words = float(len(normalized.split()))
            if is_written_without_spaces(label.language):
                words = len("".join(normalized.split())) / CHARACTERS_PER_WORD
            speed = words / label.seconds
            if self.min_words_per_second is not None and speed < self.min_words_per_second:
                return "speed"
            if self.max_words_per_second is not None and speed > self.max_words_per_second:
                return "speed"
        if self.drop_other_scripts and not in_script_of(text, label.language):
            return "script"
        # `isupper` is False in scripts without case, where `text.upper() == text` holds for every label.
        if self.drop_all_capitals and text.isupper() and len(text.split()) > 1:
            return "capitals"
        log_prob = label.mean_log_prob
        if self.min_mean_log_prob is not None and log_prob is not None and log_prob < self.min_mean_log_prob:
            return "log_prob"
        return None


UNREFERENCED = RowRules(
    drop_truncated=True,
    drop_silence=True,
    max_compression_ratio=2.4,
    min_words_per_second=0.1,
    max_words_per_second=10.0,
    drop_other_scripts=True,
    min_mean_log_prob=-1.0,
)
"""Always applied to rows without a reference, with the thresholds at which OpenAI's Whisper decodes again."""


def _is_silence(label: Label, normalized: str, more_phrases: str | Path | None) -> bool:
    if no_speech(label.no_speech_prob, label.mean_log_prob):
        return True
    if label.no_speech_prob is None or label.no_speech_prob < PHRASE_NO_SPEECH_PROB:
        return False  # somebody may have said it
    words, phrases = normalized.split(), _silence_phrases(label.language, more_phrases)
    # Also several times: "Thank you. Thank you."
    return any(words == phrase * (len(words) // len(phrase)) for phrase in phrases if words)


@lru_cache
def _silence_phrases(language: str, more_phrases: str | Path | None) -> list[list[str]]:
    """Normalised words of the phrases of a language and of any."""
    normalizer, phrases = get_normalizer(language), []
    for file in (Path(__file__).with_name("silence_phrases.json"), more_phrases):
        if file is not None:
            phrases += _read_phrases(Path(file), language)
    return [words for phrase in phrases if (words := normalizer(phrase).split())]


def _read_phrases(file: Path, language: str) -> list[str]:
    try:
        by_language = json.loads(file.read_text(encoding="utf-8"))
        return [*by_language.get("any", ()), *by_language.get(language_code(language), ())]
    except (OSError, ValueError, AttributeError, TypeError) as error:
        raise ValueError(
            f"`silence_phrases`: {file} cannot be read, expected JSON with lists of phrases by language code, "
            f'{{"en": ["Thanks for watching!"]}} for example: {error}'
        ) from error


class EmptyFilterError(ValueError):
    """No row passed the filter; the message holds the table of thresholds."""


class ThresholdEffect(NamedTuple):
    """What a threshold would leave: the share of all rows dropped (0 to 1), and the hours of audio kept."""

    share_dropped: float
    hours_kept: float


@dataclass(frozen=True)
class CorpusStatistics:
    """The columns of Table 13; `speakers` and `mean_words` (words of a reference) are None where they are unknown."""

    rows: int = 0
    hours: float = 0.0
    speakers: int | None = None
    mean_seconds: float = 0.0
    mean_words: float | None = None

    def line(self) -> str:
        """The statistics as text."""
        speakers = "unknown speakers" if self.speakers is None else f"{self.speakers} speakers"
        words = "" if self.mean_words is None else f", {self.mean_words:.1f} words"
        return f"{self.rows} rows, {self.hours:.3f} h, {speakers}, mean {self.mean_seconds:.1f} s{words}"


@dataclass(frozen=True)
class FilterReport:
    """What the filter kept and dropped, and what other thresholds would have left.

    Args:
        kept (`int`): number of rows.
        dropped (`int`): number of rows.
        hours_kept (`float`): hours of audio; 0 if the dataset has neither durations nor audio.
        hours_dropped (`float`): hours of audio.
        by_threshold (`dict[float, ThresholdEffect]`): for the values of Table 10 and the one used.
        worst_kept (`list[dict]`): id, wer, reference, prediction; highest word error rate first.
        worst_dropped (`list[dict]`): the same for dropped rows.
        threshold (`float`): the λ used, a fraction.
        unjudged (`int`): rows without a reference that were kept.
        truncated (`int`): rows without a reference that were dropped, their transcript truncated or missing.
        by_reason (`dict[str, int]`): dropped rows by the first of `REASONS`.
        histogram (`list[float]`): hours in each bin of `HISTOGRAM_STEP` of word error rate, 0 to 100 % and more.
        before (`CorpusStatistics`): of all rows.
        after (`CorpusStatistics`): of the rows kept.
        mixed_scripts (`int`): rows with the reference in traditional Chinese and the label in simplified, or the
            other way round: their words are equal, and counted as errors.
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
    mixed_scripts: int = 0

    def table(self) -> str:
        """The thresholds as text: λ, share dropped, hours kept; the one used is marked."""
        lines = ["      λ   dropped   hours kept"]
        for threshold, effect in sorted(self.by_threshold.items(), reverse=True):
            mark = "  <- used" if threshold == self.threshold else ""
            lines.append(f"{threshold:7.1%}  {effect.share_dropped:7.1%}  {effect.hours_kept:10.3f}{mark}")
        total, hours = self.kept + self.dropped, self.hours_kept + self.hours_dropped
        lines.append(f"{self.kept} of {total} rows kept, {self.hours_kept:.3f} of {hours:.3f} h")
        if self.unjudged or self.truncated:
            lines.append(
                f"{self.unjudged} rows without a reference kept unjudged, {self.truncated} dropped as cut off"
            )
        counts = self.by_reason | {"wer": 0, "truncated": self.by_reason.get("truncated", 0) - self.truncated}
        if others := {reason: count for reason, count in counts.items() if count}:
            lines.append("dropped by other rules: " + ", ".join(f"{count} {name}" for name, count in others.items()))
        if self.mixed_scripts:
            lines.append(
                f"{self.mixed_scripts} rows compare traditional with simplified Chinese, whose equal words count as "
                "errors: convert the references, with OpenCC for example"
            )
        return "\n".join(lines)


def filter_by_wer(
    dataset: Dataset,
    threshold: float = 0.10,
    *,
    reference_column: str = "text",
    prediction_column: str = "whisper_transcript",
    language: str | None = None,
    unit: str | None = None,
    rules: RowRules | None = None,
) -> tuple[Dataset, FilterReport]:
    """Keeps the rows whose pseudo-label agrees with the reference: WER(norm(y), norm(ŷ)) <= λ (eq. 7).

    A row without a reference (null) cannot be compared: it is kept and counted in `FilterReport.unjudged`, unless its
    transcript is truncated, repeats itself, was guessed or stands for silence (`UNREFERENCED`). The reference `""`
    means that nothing is spoken: every word of the transcript is an insertion.

    Args:
        dataset (`Dataset`): labelled rows; hours come from the column `duration`, else from the audio.
        threshold (`float`, *optional*, defaults to 0.10): λ as a fraction, the paper's choice (section 9.1).
        reference_column (`str`, *optional*, defaults to `"text"`): column of the reference texts.
        prediction_column (`str`, *optional*, defaults to `"whisper_transcript"`): column of the pseudo-labels, plain
            or with Whisper's special and timestamp tokens, which are removed.
        language (`str`, *optional*): language of rows that name none, in a column `language` or in their label
            (`<|de|>`). It selects the normaliser ([`get_normalizer`]), and characters in place of words for scripts
            without spaces. `"basic"` for digit strings.
        unit (`str`, *optional*): "word" or "character"; by default that of the language ([`counting_unit`]).
        rules ([`RowRules`], *optional*): further reasons to drop a row, with or without a reference.

    Returns:
        `tuple[Dataset, FilterReport]`: the rows that pass, in their order, and the report.

    Raises:
        EmptyFilterError: if no row passes.
        ValueError: for a missing column, 0 rows, a threshold that is no fraction, or a row of unknown language.

    Example:
        ```python
        >>> filtered, report = filter_by_wer(labelled, threshold=0.10, language="en")
        >>> print(report.table())
        ```
    """
    indices, report = passing_rows(
        dataset,
        threshold,
        reference_column=reference_column,
        prediction_column=prediction_column,
        language=language,
        unit=unit,
        rules=rules,
    )
    return select_rows(dataset, indices), report


def passing_rows(
    dataset: Dataset,
    threshold: float = 0.10,
    *,
    reference_column: str = "text",
    prediction_column: str = "whisper_transcript",
    language: str | None = None,
    unit: str | None = None,
    rules: RowRules | None = None,
) -> tuple[np.ndarray, FilterReport]:
    """Indices (int64) of the rows that [`filter_by_wer`] keeps, and its report; same arguments and errors."""
    rules = RowRules() if rules is None else rules
    columns = _Columns(reference_column, prediction_column, language, unit)
    _check(dataset, columns, threshold)
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
    indices = _spooled(row.row_index for row in _judged_rows(dataset, columns, rules) if tally.add(row))
    report = tally.report()
    if report.kept == 0:
        raise EmptyFilterError(_nothing_left(report, tally.best))
    if report.kept < 0.1 * len(dataset):
        logger.warning(f"The filter dropped nearly all rows. Do teacher and references fit?\n{report.table()}")
    return indices, report


def filter_stream_by_wer(
    rows: IterableDataset,
    threshold: float = 0.10,
    *,
    reference_column: str = "text",
    prediction_column: str = "whisper_transcript",
    language: str | None = None,
    unit: str | None = None,
) -> IterableDataset:
    """The rows of a stream that [`filter_by_wer`] would keep, filtered on the fly and without a report."""
    columns = _Columns(reference_column, prediction_column, language, unit)
    _check(rows, columns, threshold)
    return rows.filter(_row_passes, fn_kwargs={"columns": columns, "threshold": threshold})


class _Columns(NamedTuple):
    """Columns of references and labels, the language of rows that have none, and the unit of errors."""

    reference: str
    prediction: str
    language: str | None
    unit: str | None


def _row_passes(row: Mapping[str, Any], columns: _Columns, threshold: float) -> bool:
    return _judge_row(row, columns, RowRules()).passes(threshold)


class JudgedRow(NamedTuple):
    """A row as the filter sees it: `wer` is None without a reference, `reason` is one of `REASONS` but "wer"."""

    row_index: int
    id: str
    reference: str | None
    prediction: str
    wer: float | None
    reason: str | None
    hours: float = 0.0
    speaker: str | None = None

    def passes(self, threshold: float) -> bool:
        """Whether the row is kept at a threshold."""
        return self.reason is None and (self.wer is None or self.wer <= threshold)


def _judged_rows(dataset: Dataset, columns: _Columns, rules: RowRules) -> Iterator[JudgedRow]:
    statistics = {"truncated", "mean_log_prob", "no_speech_prob"}
    needed = {columns.reference, columns.prediction, "id", "language", "speaker", *statistics}
    names = [name for name in dataset.column_names if name in needed]
    # In batches: Arrow takes a hundred times as long to hand out rows one by one.
    batches = dataset.select_columns(names).iter(batch_size=_BATCH)
    rows = (dict(zip(batch, values, strict=True)) for batch in batches for values in zip(*batch.values(), strict=True))
    for index, (row, seconds) in enumerate(zip(rows, _durations(dataset), strict=True)):
        yield _judge_row(row, columns, rules, index, seconds)


def _judge_row(
    row: Mapping[str, Any], columns: _Columns, rules: RowRules, index: int = 0, seconds: float = 0.0
) -> JudgedRow:
    reference, transcript = row[columns.reference], row[columns.prediction]
    language = row.get("language") or language_in(transcript or "") or columns.language
    if language is None and reference is not None:
        raise ValueError(
            f"`language` is missing: row {row.get('id', index)} names none in a column 'language' or its label, and "
            'the word error rate depends on it ("um" is no word in English, but one in German). Pass `language`, '
            "'en' for example, or 'basic'."
        )
    label = Label(
        "" if transcript is None else plain_text(transcript),
        language or "basic",
        truncated=bool(row.get("truncated")) or transcript is None or ends_open(transcript),
        seconds=seconds,
        mean_log_prob=row.get("mean_log_prob"),
        no_speech_prob=row.get("no_speech_prob"),
    )
    wer = None
    # "" means that nothing is spoken. Of "..." nobody knows what it stands for.
    if reference is not None and (not reference.strip() or get_normalizer(label.language)(reference)):
        wer = errors_in_language(reference, label.text, label.language, columns.unit).wer
    applied = [rules]
    if wer is None:  # nothing but the label itself can speak against it
        applied.append(replace(UNREFERENCED, silence_phrases=rules.silence_phrases))
    return JudgedRow(
        index,
        row.get("id", str(index)),
        reference,
        label.text,
        wer,
        next((reason for one in applied if (reason := one.broken_by(label))), None),
        seconds / 3600,
        row.get("speaker"),
    )


def _durations(dataset: Dataset) -> Iterator[float]:
    """Seconds of each row, from its column or its audio; 0 if neither is there or the audio cannot be read."""
    if "duration" in dataset.column_names:
        batches = dataset.select_columns(["duration"]).iter(batch_size=_BATCH)
        yield from (length or 0.0 for batch in batches for length in batch["duration"])
    elif "audio" in dataset.column_names:
        for recording in without_decoder(dataset).select_columns(["audio"]):
            try:
                yield audio_duration(recording["audio"])
            except AudioError:  # an unreadable row adds no hours; training counts and lists it
                yield 0.0
    else:
        yield from repeat(0.0, len(dataset))


def _spooled(indices: Iterable[int]) -> np.ndarray:
    """Indices in a memory-mapped temporary file: with millions of rows they are the most that a filter holds."""
    with TemporaryFile() as file:
        for index in indices:
            file.write(index.to_bytes(8, sys.byteorder))
        file.flush()
        return np.memmap(file, dtype=np.int64, mode="r") if file.tell() else np.zeros(0, dtype=np.int64)


class FilterTally:
    """Accumulates the report row by row: counts, sums, and the few worst rows."""

    def __init__(self, threshold: float, has_speakers: bool):
        self.best: JudgedRow | None = None
        """The row with the lowest word error rate, whether it passes or not."""
        self._threshold = threshold
        self._before, self._after = _CorpusSums(has_speakers), _CorpusSums(has_speakers)
        thresholds = sorted({*PAPER_THRESHOLDS, threshold}, reverse=True)
        self._rows_passing, self._hours_passing = dict.fromkeys(thresholds, 0), dict.fromkeys(thresholds, 0.0)
        self._worst: dict[bool, list[tuple[float, int, JudgedRow]]] = {True: [], False: []}
        self._by_reason = dict.fromkeys(REASONS, 0)
        self._histogram = [0.0] * (round(1 / HISTOGRAM_STEP) + 1)
        self._unjudged = self._truncated = self._mixed_scripts = 0
        self._hours_dropped = 0.0

    def add(self, row: JudgedRow) -> bool:
        """Counts a row; returns whether it passes."""
        passes = row.passes(self._threshold)
        self._before.add(row)
        if passes:
            self._after.add(row)
        else:
            self._hours_dropped += row.hours
            self._by_reason[row.reason or "wer"] += 1
        for threshold in self._rows_passing:
            if row.passes(threshold):
                self._rows_passing[threshold] += 1
                self._hours_passing[threshold] += row.hours
        if row.wer is None:
            self._unjudged += passes
            self._truncated += row.reason == "truncated"
            return passes
        scripts = {chinese_script(text) for text in (row.reference or "", row.prediction)}
        self._mixed_scripts += scripts == {"simplified", "traditional"}
        # Rounded: a rate of 0.15 lies on the border of two bins, and its float on either side of it.
        self._histogram[min(int(round(row.wer / HISTOGRAM_STEP, 6)), len(self._histogram) - 1)] += row.hours
        worst = self._worst[passes]
        heapq.heappush(worst, (row.wer, -row.row_index, row))  # among equal rates the first row wins
        if len(worst) > NUM_WORST:
            heapq.heappop(worst)
        if self.best is None or self.best.wer is None or row.wer < self.best.wer:
            self.best = row
        return passes

    def report(self) -> FilterReport:
        """The report on all rows added so far."""
        before, after = self._before.statistics(), self._after.statistics()
        worst_kept, worst_dropped = (
            [
                {"id": row.id, "wer": row.wer, "reference": row.reference, "prediction": row.prediction}
                for _, _, row in sorted(self._worst[passes], reverse=True)
            ]
            for passes in (True, False)
        )
        return FilterReport(
            kept=after.rows,
            dropped=before.rows - after.rows,
            hours_kept=after.hours,
            hours_dropped=self._hours_dropped,
            by_threshold={
                value: ThresholdEffect(1 - rows / max(before.rows, 1), self._hours_passing[value])
                for value, rows in self._rows_passing.items()
            },
            worst_kept=worst_kept,
            worst_dropped=worst_dropped,
            threshold=self._threshold,
            unjudged=self._unjudged,
            truncated=self._truncated,
            by_reason=self._by_reason,
            histogram=self._histogram,
            before=before,
            after=after,
            mixed_scripts=self._mixed_scripts,
        )


@dataclass
class _CorpusSums:
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


def _check(rows: Dataset | IterableDataset, columns: _Columns, threshold: float) -> None:
    if not 0 <= threshold <= 1:  # the reference scripts take per cent: their 10 would keep every row
        hint = f": for {threshold:g} % write {threshold / 100:g}" if 1 < threshold <= 100 else ""
        raise ValueError(
            f"`threshold` is {threshold}, expected a fraction between 0 and 1 (0.10 is the paper's 10 %){hint}."
        )
    names = rows.column_names or []
    for column in (columns.reference, columns.prediction):
        if column not in names:
            raise ValueError(
                f"The data set has no column {column!r} to filter by; it has {', '.join(names)}. Label it first, or "
                "name the column with `reference_column` or `prediction_column`."
            )


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
