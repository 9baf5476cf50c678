"""From texts to counts (paper, section 6.2): what was recognised beside what was spoken, row by row and in sum.

Knows normalisers, what to leave out of a rate, and the columns of the table of rows; nothing of models and audio.
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field

from datasets import Dataset, Features, Value
from transformers.utils import logging

from hf_distil_whisper.data.sources import RowErrors
from hf_distil_whisper.metrics import (
    WordErrors,
    character_errors,
    get_normalizer,
    is_written_without_spaces,
    repeated_ngrams,
    word_errors,
)

logger = logging.get_logger(__name__)

COUNTS = {
    "": "errors",
    "character_": "character_errors",
    "orthographic_": "orthographic_errors",
    "orthographic_character_": "orthographic_character_errors",
}
"""How the columns of a count begin → the field of [`EvaluationResult`] that holds their sum."""

KINDS = ("hits", "substitutions", "deletions", "insertions")

ROW_FEATURES = Features(
    {
        "id": Value("string"),
        "reference": Value("string"),
        "prediction": Value("string"),
        "normalized_reference": Value("string"),
        "normalized_prediction": Value("string"),
        "wer": Value("float64"),
        **{prefix + kind: Value("int64") for prefix in COUNTS for kind in KINDS},
        "repeated_5grams": Value("int64"),
        "duration": Value("float64"),
        "truncated": Value("bool"),
    }
)
"""Columns of the table of rows and their types, which are the same for every set: also for one without references."""


@dataclass(frozen=True)
class Heard:
    """A row as recognised, before it is scored.

    Args:
        id (`str`): of the row.
        reference (`str`, *optional*): what was spoken.
        prediction (`str`, *optional*): what was recognised; None, where a recogniser gave nothing, is scored as a text
            without words.
        duration (`float`): seconds.
        truncated (`bool`): whether a window ran out of length.
    """

    id: str
    reference: str | None
    prediction: str | None
    duration: float
    truncated: bool


@dataclass(frozen=True)
class EvaluationResult:
    """What a model made of a data set. All counts are over the same rows: those with a reference.

    Args:
        errors (`WordErrors`): normalised, over all rows with a reference; `.wer` is the micro average. Characters
            instead of words for languages without spaces.
        rows (`list[dict]`): per row that could be read, in order, the columns of `ROW_FEATURES`: texts, rates and
            counts, which are None without a reference.
        seconds (`float`): spent on features and generation; of several processes, in sum.
        audio_seconds (`float`): length of the recordings.
        empty_references (`int`): rows left out of the counts, since their reference is missing or empty after
            normalising: a rate per word of nothing is none.
        row_errors (`RowErrors`): rows that could not be read.
        character_errors (`WordErrors`): of characters after normalising, spaces between words included where the
            language has them; `.wer` is the CER.
        orthographic_errors (`WordErrors`): as `errors`, without a normaliser: case, punctuation and figures count.
        orthographic_character_errors (`WordErrors`): as `character_errors`, without a normaliser.
        unit (`str`, *optional*, defaults to `"word"`): what `errors` counts; `"character"` for languages without
            spaces.
        wall_seconds (`float`, *optional*): from the first row to the last, reading included, of the slowest process;
            None where nobody measured it.
    """

    errors: WordErrors
    rows: list[dict]
    seconds: float
    audio_seconds: float
    empty_references: int = 0
    row_errors: RowErrors = field(default_factory=RowErrors)
    character_errors: WordErrors = field(default_factory=WordErrors)
    orthographic_errors: WordErrors = field(default_factory=WordErrors)
    orthographic_character_errors: WordErrors = field(default_factory=WordErrors)
    unit: str = "word"
    wall_seconds: float | None = None

    @property
    def wer(self) -> float:
        """Word error rate, a fraction; 0 where `errors.num_words` is 0, since no row has a reference."""
        return self.errors.wer

    @property
    def cer(self) -> float:
        """Character error rate, a fraction."""
        return self.character_errors.wer

    @property
    def rtf(self) -> float:
        """Real-time factor: seconds of work per second of audio; smaller is faster.

        Of one process: where several shared the rows, their seconds of work are added up. How much sooner they were
        done together is told by `wall_seconds`.
        """
        return self.seconds / self.audio_seconds

    @property
    def repeated_5grams(self) -> int:
        """Of all rows, those without a reference included: "5-Dup." of Table 8."""
        return sum(row["repeated_5grams"] for row in self.rows)

    @property
    def unreadable_rows(self) -> int:
        """Rows that are missing in `rows`."""
        return len(self.row_errors)

    def utterance_errors(self) -> list[tuple[str, WordErrors]]:
        """Id and errors of every row with a reference, in order."""
        return [(row["id"], WordErrors(*(row[kind] for kind in KINDS))) for row in self.rows if row["wer"] is not None]

    def table(self) -> Dataset:
        """The rows as a data set with the columns and types of `ROW_FEATURES`."""
        return Dataset.from_dict(
            {name: [row[name] for row in self.rows] for name in ROW_FEATURES}, features=ROW_FEATURES
        )


class NothingReadError(ValueError):
    """No row of a data set could be read.

    Args:
        row_errors (`RowErrors`): why, row by row.
    """

    def __init__(self, row_errors: RowErrors):
        super().__init__(f"No row could be read, so there is nothing to score.\n{row_errors.summary()}")
        self.row_errors = row_errors


def score(
    heard: Sequence[Heard],
    row_errors: RowErrors,
    seconds: float,
    *,
    language: str,
    normalizer: Callable[[str], str] | None = None,
) -> EvaluationResult:
    """Compares what was recognised with what was spoken.

    Args:
        heard (`Sequence[Heard]`): in the order of the data set.
        row_errors (`RowErrors`): rows that are missing in `heard`.
        seconds (`float`): of work.
        language (`str`): chooses the normaliser, and characters where there are no words.
        normalizer (`Callable[[str], str]`, *optional*): in place of the language's; words are counted then.

    Returns:
        `EvaluationResult`: with counts that add up.

    Raises:
        NothingReadError: if no row could be read.
    """
    if not heard:
        raise NothingReadError(row_errors)
    if len(row_errors):
        # Once for all models and levels of noise that meet the same rows.
        logger.warning_once(row_errors.summary())
    normalize = get_normalizer(language) if normalizer is None else normalizer
    spaceless = normalizer is None and is_written_without_spaces(language)
    rows = [_scored(row, normalize, spaceless) for row in heard]
    return _summed(rows, seconds, row_errors, "character" if spaceless else "word", None)


def merge_results(parts: Sequence[EvaluationResult]) -> EvaluationResult:
    """The result of a data set from those of its parts: equal to the last digit, since only counts are added.

    Args:
        parts (`Sequence[EvaluationResult]`): of one model on consecutive rows, in their order.

    Returns:
        `EvaluationResult`: seconds of work are added up, `wall_seconds` is that of the slowest part.

    Raises:
        ValueError: without parts, or if they count different units.
    """
    units = {part.unit for part in parts}
    if len(units) != 1:
        raise ValueError(f"merge_results: expected parts that count the same unit, got {sorted(units) or 'no part'}.")
    errors = RowErrors([pair for part in parts for pair in part.row_errors])
    walls = [part.wall_seconds for part in parts if part.wall_seconds is not None]
    rows = [row for part in parts for row in part.rows]
    return _summed(rows, sum(part.seconds for part in parts), errors, units.pop(), max(walls, default=None))


def _scored(row: Heard, normalize: Callable[[str], str], spaceless: bool) -> dict:
    """One row of the table. Texts are aligned twice: normalised, and as they were written."""
    reference, prediction = row.reference or "", row.prediction or ""
    spoken, recognised = normalize(reference).strip(), normalize(prediction).strip()
    counts: dict[str, int | None] = {prefix + kind: None for prefix in COUNTS for kind in KINDS}
    rate = None
    if spoken:
        for prefix, pair in (("", (spoken, recognised)), ("orthographic_", (reference, prediction))):
            if spaceless:
                pair = ("".join(pair[0].split()), "".join(pair[1].split()))
            characters = character_errors(*pair)
            words = characters if spaceless else word_errors(*pair)
            for start, found in ((prefix, words), (f"{prefix}character_", characters)):
                counts |= {start + kind: count for kind, count in asdict(found).items()}
            rate = words.wer if rate is None else rate
    return {
        "id": row.id,
        "reference": row.reference,
        "prediction": row.prediction,
        "normalized_reference": spoken,
        "normalized_prediction": recognised,
        "wer": rate,
        **counts,
        "repeated_5grams": repeated_ngrams(" ".join("".join(recognised.split())) if spaceless else recognised),
        "duration": row.duration,
        "truncated": row.truncated,
    }


def _summed(
    rows: list[dict], seconds: float, row_errors: RowErrors, unit: str, wall_seconds: float | None
) -> EvaluationResult:
    scored = [row for row in rows if row["wer"] is not None]
    sums = {
        name: WordErrors(*(sum(row[prefix + kind] for row in scored) for kind in KINDS))
        for prefix, name in COUNTS.items()
    }
    return EvaluationResult(
        rows=rows,
        seconds=seconds,
        # Over the rows and not over the parts: the order in which floats are added decides about the last digit.
        audio_seconds=sum(row["duration"] for row in rows),
        empty_references=len(rows) - len(scored),
        row_errors=row_errors,
        unit=unit,
        wall_seconds=wall_seconds,
        **sums,
    )
