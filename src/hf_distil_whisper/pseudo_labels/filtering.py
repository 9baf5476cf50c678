"""The word-error-rate filter for pseudo-labels (paper, section 4.2, eq. 7) and its report.

Knows transcripts and references; where they come from is the labeller's business.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from datasets import Dataset
from transformers.utils import logging

from hf_distil_whisper.data.audio import AudioError, audio_duration
from hf_distil_whisper.data.labels import plain_text
from hf_distil_whisper.data.sources import without_decoder
from hf_distil_whisper.metrics import errors_in_language

logger = logging.get_logger(__name__)

PAPER_THRESHOLDS = (1.0, 0.8, 0.4, 0.2, 0.15, 0.1, 0.05)
"""The values of λ in Table 10."""

NUM_WORST = 10
"""Rows listed in the report at either side of the threshold."""


class EmptyFilterError(ValueError):
    """No row passed the filter; the message holds the table of thresholds."""


class ThresholdEffect(NamedTuple):
    """What a threshold would leave.

    Args:
        share_dropped (`float`): of all rows, 0 to 1.
        hours_kept (`float`): hours of audio.
    """

    share_dropped: float
    hours_kept: float


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
        return "\n".join(lines)

    def _hours(self) -> float:
        return self.hours_kept + self.hours_dropped


class _Judged(NamedTuple):
    """A row's word error rate (None: no reference), its hours and whether it has a transcript with an end."""

    wer: float | None
    hours: float
    complete: bool

    def passes(self, threshold: float) -> bool:
        return self.complete if self.wer is None else self.wer <= threshold


def filter_by_wer(
    dataset: Dataset,
    threshold: float = 0.10,
    *,
    reference_column: str = "text",
    prediction_column: str = "whisper_transcript",
    language: str = "en",
) -> tuple[Dataset, FilterReport]:
    """Keeps the rows whose pseudo-label agrees with the reference: WER(norm(y), norm(ŷ)) <= λ (eq. 7).

    A row without a reference (null) cannot be judged: it is kept and counted in `FilterReport.unjudged`, unless it is
    marked `truncated`: a transcript that never ended is a loop more often than not, and nothing speaks for this one. A
    reference that is empty after normalising says that nothing is spoken: every word of the transcript is one error.

    Args:
        dataset (`Dataset`): labelled rows; hours come from its `duration` column, or else from the audio.
        threshold (`float`, *optional*, defaults to 0.10): λ as a fraction; the paper's choice (section 9.1).
        reference_column (`str`, *optional*, defaults to `"text"`): what was spoken, as the source says.
        prediction_column (`str`, *optional*, defaults to `"whisper_transcript"`): plain or with Whisper's special and
            timestamp tokens, which are taken out.
        language (`str`, *optional*, defaults to `"en"`): of the references; chooses the normaliser
            ([`get_normalizer`]), and characters instead of words where a script has no spaces. "basic" for digit
            strings.

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
    if threshold < 0:
        raise ValueError(f"`threshold` is {threshold}, expected a fraction of 0 or more (0.10 is the paper's 10 %).")
    _check_columns(dataset, [reference_column, prediction_column])
    texts = dataset.select_columns([reference_column, prediction_column])
    references = list(texts[reference_column])
    transcripts = list(texts[prediction_column])
    predictions = [plain_text(transcript or "") for transcript in transcripts]
    wers = row_error_rates(references, predictions, language)
    cut = list(dataset["truncated"]) if "truncated" in dataset.column_names else [False] * len(wers)
    complete = [transcript is not None and not flag for transcript, flag in zip(transcripts, cut, strict=True)]
    rows = [_Judged(*row) for row in zip(wers, _hours(dataset), complete, strict=True)]
    ids = list(dataset["id"]) if "id" in dataset.column_names else [str(index) for index in range(len(rows))]
    details = [
        {"id": row_id, "wer": row.wer, "reference": reference, "prediction": prediction}
        for row_id, row, reference, prediction in zip(ids, rows, references, predictions, strict=True)
    ]
    report = _report(rows, details, threshold)
    if report.kept == 0:
        raise EmptyFilterError(_nothing_left(report, details))
    if report.kept < 0.1 * len(rows):
        logger.warning(f"The filter dropped nearly all rows. Do teacher and references fit?\n{report.table()}")
    return dataset.select([index for index, row in enumerate(rows) if row.passes(threshold)]), report


def row_error_rates(references: Sequence[str | None], predictions: Sequence[str], language: str) -> list[float | None]:
    """The error rate of each row after normalising both sides: of words, or of characters where there are no spaces.

    Args:
        references (`Sequence[str | None]`): None where there is none.
        predictions (`Sequence[str]`): plain transcripts.
        language (`str`): as for [`get_normalizer`].

    Returns:
        `list[float | None]`: fractions; None without a reference. With an empty one, as in [`WordErrors`], the number
            of words that the prediction has.
    """
    return [
        None if reference is None else errors_in_language(reference, prediction, language).wer
        for reference, prediction in zip(references, predictions, strict=True)
    ]


def _check_columns(dataset: Dataset, columns: Sequence[str]) -> None:
    for column in columns:
        if column not in dataset.column_names:
            raise ValueError(
                f"The data set has no column {column!r} to filter by; it has {', '.join(dataset.column_names)}. Label "
                "it first, or name the column with `reference_column` or `prediction_column`."
            )
    if len(dataset) == 0:
        raise ValueError(
            "The data set to filter has 0 rows: there is nothing to judge. Check the labelling before it."
        )


def _hours(dataset: Dataset) -> list[float]:
    if "duration" in dataset.column_names:
        return [(seconds or 0.0) / 3600 for seconds in dataset["duration"]]
    if "audio" not in dataset.column_names:
        return [0.0] * len(dataset)
    hours = []
    for row in without_decoder(dataset).select_columns(["audio"]):
        try:
            hours.append(audio_duration(row["audio"]) / 3600)
        except AudioError:  # a row that cannot be read brings no hours; training counts and lists it
            hours.append(0.0)
    return hours


def _report(rows: Sequence[_Judged], details: Sequence[dict], threshold: float) -> FilterReport:
    def hours(chosen: Sequence[_Judged]) -> float:
        return sum(row.hours for row in chosen)

    by_threshold = {}
    for value in sorted({*PAPER_THRESHOLDS, threshold}, reverse=True):
        left = [row for row in rows if row.passes(value)]
        by_threshold[value] = ThresholdEffect(1 - len(left) / len(rows), hours(left))
    kept = [row for row in rows if row.passes(threshold)]
    judged = [
        (row.passes(threshold), detail) for row, detail in zip(rows, details, strict=True) if row.wer is not None
    ]
    judged.sort(key=lambda pair: -pair[1]["wer"])
    return FilterReport(
        kept=len(kept),
        dropped=len(rows) - len(kept),
        hours_kept=hours(kept),
        hours_dropped=hours(rows) - hours(kept),
        by_threshold=by_threshold,
        worst_kept=[detail for passed, detail in judged if passed][:NUM_WORST],
        worst_dropped=[detail for passed, detail in judged if not passed][:NUM_WORST],
        threshold=threshold,
        unjudged=sum(row.wer is None for row in kept),
        truncated=sum(row.wer is None and not row.complete for row in rows),
    )


def _nothing_left(report: FilterReport, details: Sequence[dict]) -> str:
    judged = [detail for detail in details if detail["wer"] is not None]
    best = min(judged, key=lambda detail: detail["wer"], default=None)
    nearest = f"The best row: {best['reference']!r} was labelled {best['prediction']!r}.\n" if best else ""
    return (
        f"None of {report.dropped} rows has a word error rate of at most {report.threshold:.1%}, so nothing is left "
        f"to train on and nothing is trained.\n{report.table()}\n{nearest}Raise the threshold if the table shows a "
        "better one; if none does, the teacher does not understand this speech, or the references belong to other "
        "recordings or another language."
    )
