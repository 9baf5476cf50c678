"""The word-error-rate filter for pseudo-labels (paper, section 4.2, eq. 7).

Knows transcripts and references; where they come from is the labeller's business, what is told of them that of
`filter_report.py`.
"""

import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import repeat
from tempfile import TemporaryFile
from typing import Any, NamedTuple

import numpy as np
from datasets import Dataset, IterableDataset
from transformers.utils import logging

from hf_distil_whisper.data.audio import AudioError, audio_duration
from hf_distil_whisper.data.labels import plain_text
from hf_distil_whisper.data.row_index import select_rows
from hf_distil_whisper.data.sources import without_decoder
from hf_distil_whisper.metrics import WordErrors, errors_in_language, get_normalizer
from hf_distil_whisper.pseudo_labels.filter_report import FilterReport
from hf_distil_whisper.pseudo_labels.filter_tally import FilterTally, JudgedRow
from hf_distil_whisper.pseudo_labels.row_rules import UNREFERENCED, RowRules, broken_rule

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
        rows (`IterableDataset`): labelled, as [`stream_source`] gives them.
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
