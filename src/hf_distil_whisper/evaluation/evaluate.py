"""Word error rate of a model on recordings of up to one window (paper, section 6.2): counts, rows and speed.

Knows how each row is heard and how long that takes; counting is `scoring.py`'s, long recordings are `long_form.py`'s,
exact timing is `latency.py`'s.
"""

import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import timedelta
from functools import partial

import numpy as np
import torch
from accelerate import PartialState
from accelerate.utils import gather_object
from datasets import Dataset, Features, Value
from transformers import WhisperForConditionalGeneration, WhisperProcessor
from transformers.utils import logging

from hf_distil_whisper.data.audio import load_audio
from hf_distil_whisper.data.dataset import row_id
from hf_distil_whisper.data.sources import (
    RowErrors,
    without_decoder,
)
from hf_distil_whisper.inference.dataset import generate_rows
from hf_distil_whisper.inference.encoder import window_features
from hf_distil_whisper.inference.generation import (
    TokenSequence,
    generate_tokens,
)
from hf_distil_whisper.inference.output import plain_text
from hf_distil_whisper.inference.prompt import (
    scoring_language,
    timestamp_begin,
)
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


_LONGEST_WAIT = timedelta(days=7)
"""For the slowest process; torch's half an hour would end an evaluation of long recordings."""


def evaluate_shared(dataset: Dataset, evaluate: Callable[[Dataset], EvaluationResult]) -> EvaluationResult:
    """Evaluates a data set in all processes together.

    Texts, counts and rows are those of a single process, in its order: nothing is padded or heard twice, and only
    counts are added up. `seconds`, and with them the real-time factor, are the work of all processes in sum, so that
    they mean what they mean for one process; `wall_seconds` is the time of the slowest. A process that ends without
    `PartialState().destroy_process_group()` may abort with its work done.

    Args:
        dataset (`Dataset`): rows; the same in every process.
        evaluate (`Callable[[Dataset], EvaluationResult]`): [`evaluate_model`] or another, with all but the rows given;
            not called in a process for which there is no row.

    Returns:
        `EvaluationResult`: of the whole set, in every process; `wall_seconds` is measured.

    Raises:
        ValueError: as `evaluate`, whose refusal to begin (a wrong option, 0 rows) is the same in every process.
        NothingReadError: if no process could read a row.
    """
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    if processes == 1 or not len(dataset):
        return _timed(dataset, evaluate)
    # Without `cpu`, accelerate takes processes that have no accelerator for one process each.
    state = PartialState(cpu=not torch.accelerator.is_available(), timeout=_LONGEST_WAIT)
    if state.num_processes != processes:
        raise RuntimeError(
            f"{processes} processes were started (WORLD_SIZE), accelerate knows of {state.num_processes}: each would "
            "hear all rows. Make no PartialState or Accelerator of one process before."
        )
    rank = state.process_index
    first, last = len(dataset) * rank // processes, len(dataset) * (rank + 1) // processes
    share: list[EvaluationResult | RowErrors] = []
    if first < last:
        try:
            share = [_timed(_with_ids(dataset).select(range(first, last)), evaluate)]
        except NothingReadError as error:
            logger.warning_once(error.row_errors.summary())
            share = [error.row_errors]
    return _together(gather_object(share), own=share)


def _together(parts: list[EvaluationResult | RowErrors], own: list[EvaluationResult | RowErrors]) -> EvaluationResult:
    heard = [part for part in parts if isinstance(part, EvaluationResult)]
    unread = _row_errors(parts)
    if not heard:
        raise NothingReadError(unread)
    if len(unread) > len(_row_errors(own)):  # each process has told of its own rows only
        logger.warning_once(f"In all processes together, {unread.summary()}")
    return replace(merge_results(heard), row_errors=unread)


def _row_errors(parts: list[EvaluationResult | RowErrors]) -> RowErrors:
    lists = [part.row_errors if isinstance(part, EvaluationResult) else part for part in parts]
    return RowErrors([pair for errors in lists for pair in errors])


def _timed(dataset: Dataset, evaluate: Callable[[Dataset], EvaluationResult]) -> EvaluationResult:
    start = time.perf_counter()
    return replace(evaluate(dataset), wall_seconds=time.perf_counter() - start)


def _with_ids(dataset: Dataset) -> Dataset:
    """Rows without an id are named by their number in the whole set, not in a share of it."""
    if "id" not in dataset.column_names:
        return dataset.add_column("id", [str(number) for number in range(len(dataset))])
    given = list(dataset["id"])
    if None not in given:
        return dataset
    names = [row_id({"id": name}, number) for number, name in enumerate(given)]
    return dataset.remove_columns("id").add_column("id", names)


def evaluate_model(
    model: WhisperForConditionalGeneration,
    dataset: Dataset | Sequence[Mapping],
    processor: WhisperProcessor,
    *,
    batch_size: int = 16,
    language: str | None = None,
    normalizer: Callable[[str], str] | None = None,
    num_beams: int = 1,
    max_new_tokens: int | None = None,
    text_column: str = "text",
    load: Callable[..., np.ndarray] = load_audio,
    generate: Callable[..., list[TokenSequence]] | None = None,
) -> EvaluationResult:
    """Scores a model on short recordings: greedy, without timestamps, as the paper does.

    Args:
        model (`WhisperForConditionalGeneration`): student or teacher, in eval mode; left as it is.
        dataset (`Dataset` or `Sequence[Mapping]`): rows with `audio` and a reference, possibly `id`.
        processor (`WhisperProcessor`): of the model.
        batch_size (`int`, *optional*, defaults to 16): recordings per pass.
        language (`str`, *optional*): of the recordings. None: English for English-only models; a multilingual model
            detects it, and the basic normaliser scores.
        normalizer (`Callable[[str], str]`, *optional*, defaults to that of the language): from [`get_normalizer`];
            given explicitly, words are counted in any language. `get_normalizer("basic")` for digit strings.
        num_beams (`int`, *optional*, defaults to 1): greedy.
        max_new_tokens (`int`, *optional*): by default as many as the decoder has room for.
        text_column (`str`, *optional*, defaults to `"text"`): holds the references.
        load (`Callable[..., np.ndarray]`, *optional*, defaults to [`load_audio`]): what the model hears of a row,
            given its `audio` and its id as `name`: samples at 16 kHz, as many as there are.
        generate (`Callable[..., list[TokenSequence]]`, *optional*): the search of another runtime, which has its own
            beams and lengths: features (batch, mel bins, frames) to tokens.

    Returns:
        `EvaluationResult`: rows in the order of the data set.

    Raises:
        ValueError: for 0 rows, a missing column, or if no row could be read.

    Example:
        ```python
        >>> result = evaluate_model(student, load_source("quickstart", split="test"), processor)
        >>> f"{result.errors.wer:.1%} of {result.errors.num_words} words, real-time factor {result.rtf:.3f}"
        ```
    """
    dataset = readable_rows(dataset, text_column)
    errors = RowErrors()
    if generate is None:
        generate = partial(
            generate_tokens, model, num_beams=num_beams, max_new_tokens=max_new_tokens, language=language
        )
        _warm_up(model, processor, language)
    found = generate_rows(model, processor, dataset, errors, generate, load=load, batch_size=batch_size)
    heard = []
    for index, sequence in found.sequences.items():
        text = plain_text(sequence.tokens, processor.tokenizer, timestamp_begin(model))
        row = dataset[index]
        heard.append(Heard(row_id(row, index), row[text_column], text, found.durations[index], sequence.truncated))
    return score(heard, errors, found.seconds, language=scoring_language(model, language), normalizer=normalizer)


def readable_rows(dataset: Dataset | Sequence[Mapping], text_column: str) -> Dataset | Sequence[Mapping]:
    """Checks that there is something to score; an `Audio` column is left to this package's own decoder.

    Args:
        dataset (`Dataset` or `Sequence[Mapping]`): rows with `audio` and a reference.
        text_column (`str`): holds the references.

    Raises:
        ValueError: for 0 rows or a missing column.
    """
    if len(dataset) == 0:
        raise ValueError("The data set to evaluate has 0 rows. Check the source and its split.")
    if isinstance(dataset, Dataset):
        dataset = without_decoder(dataset)
        columns = dataset.column_names
    else:
        columns = list(dataset[0])
    for column in ("audio", text_column):
        if column not in columns:
            raise ValueError(
                f"The data set to evaluate has no column {column!r}; it has {', '.join(columns)}. Name the right one "
                "with `audio_column` or `text_column` when loading it."
            )
    return dataset


def _warm_up(model: WhisperForConditionalGeneration, processor: WhisperProcessor, language: str | None) -> None:
    """One token of silence, so that the first batch's time holds no set-up of the runtime."""
    silence = window_features(model, processor, [np.zeros(1_600, dtype=np.float32)])
    generate_tokens(model, silence, max_new_tokens=1, language=language)
