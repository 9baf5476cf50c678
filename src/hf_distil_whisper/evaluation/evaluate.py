"""Word error rate of a model on recordings of up to one window (paper, section 6.2), and how results are scored.

[`evaluate_model`] transcribes and scores; [`evaluate_shared`] splits the rows among processes; [`score`] turns texts
into counts that add up.
"""

import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import timedelta
from functools import partial
from typing import Any

import numpy as np
import torch
from accelerate import PartialState
from accelerate.utils import gather_object
from datasets import Dataset, Features, Value
from torch import Tensor
from transformers import WhisperForConditionalGeneration, WhisperProcessor
from transformers.utils import logging

from hf_distil_whisper.checkpoints import check_compatible
from hf_distil_whisper.data.audio import load_audio
from hf_distil_whisper.data.dataset import row_id
from hf_distil_whisper.data.sources import RowErrors, without_decoder
from hf_distil_whisper.inference.dataset import column_names, generate_rows, row_languages
from hf_distil_whisper.inference.encoder import window_features
from hf_distil_whisper.inference.generation import GenerationSettings, TokenSequence, generate_tokens
from hf_distil_whisper.inference.output import plain_text
from hf_distil_whisper.inference.prompt import is_multilingual, timestamp_begin
from hf_distil_whisper.metrics import (
    WordErrors,
    character_errors,
    counting_unit,
    get_normalizer,
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
"""Prefix of the count columns of a row → field of [`EvaluationResult`] that holds their sum."""

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
"""Columns of the table of rows; the same for every set, also for one without references."""


@dataclass(frozen=True)
class TranscribedRow:
    """A row with its transcript, before it is scored.

    Args:
        id (`str`): name of the row.
        reference (`str`, *optional*): reference text.
        prediction (`str`, *optional*): transcript; None, where a recogniser gave nothing, is scored as an empty text.
        duration (`float`): seconds.
        truncated (`bool`): whether the number of tokens ran out before the end.
        language (`str`, *optional*): that is spoken, if it is the row's own.
    """

    id: str
    reference: str | None
    prediction: str | None
    duration: float
    truncated: bool
    language: str | None = None


@dataclass(frozen=True)
class NonSpeech:
    """What a model writes for rows in which nothing is spoken: those whose reference is `""`.

    Args:
        rows (`int`): number of rows.
        seconds (`float`): of their audio.
        words (`int`): written for them, after normalising; characters in a language without spaces.
        rows_with_words (`int`): rows that any were written for.
    """

    rows: int = 0
    seconds: float = 0.0
    words: int = 0
    rows_with_words: int = 0

    @property
    def words_per_minute(self) -> float:
        """Words per minute of audio without speech."""
        return 60 * self.words / self.seconds if self.seconds else 0.0

    @property
    def share(self) -> float:
        """Share of the rows that words were written for."""
        return self.rows_with_words / self.rows if self.rows else 0.0


@dataclass(frozen=True)
class EvaluationResult:
    """Scores of a model on a dataset. All counts are over the same rows: those with a reference.

    Args:
        errors (`WordErrors`): counts after normalising; `.wer` is the micro average. Of characters instead of words
            for languages without spaces.
        rows (`list[dict]`): the rows that could be read, in order, with the columns of `ROW_FEATURES`: texts, rates
            and counts, which are None without a reference.
        seconds (`float`): time for features and generation, summed over processes.
        audio_seconds (`float`): duration of the recordings.
        empty_references (`int`): rows left out of the counts because their reference is missing, or nothing of it is
            left after normalising.
        non_speech ([`NonSpeech`]): rows whose reference is `""`: there is no error rate per word of nothing.
        row_errors (`RowErrors`): rows that could not be read.
        character_errors (`WordErrors`): counts of characters after normalising, spaces between words included where
            the language has them; `.wer` is the CER.
        orthographic_errors (`WordErrors`): as `errors`, without a normaliser: case, punctuation and numerals count.
        orthographic_character_errors (`WordErrors`): as `character_errors`, without a normaliser.
        unit (`str`, *optional*, defaults to `"word"`): what `errors` counts; `"character"` for languages without
            spaces.
        wall_seconds (`float`, *optional*): time from the first row to the last, reading included, of the slowest
            process; None if it was not measured.
    """

    errors: WordErrors
    rows: list[dict]
    seconds: float
    audio_seconds: float
    empty_references: int = 0
    non_speech: NonSpeech = NonSpeech()
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
        """Real-time factor: seconds of processing per second of audio, as in one process; smaller is faster."""
        return self.seconds / self.audio_seconds

    @property
    def repeated_5grams(self) -> int:
        """Repeated 5-grams of all rows, those without a reference included: "5-Dup." of Table 8."""
        return sum(row["repeated_5grams"] for row in self.rows)

    @property
    def unreadable_rows(self) -> int:
        """Number of rows that could not be read."""
        return len(self.row_errors)

    def utterance_errors(self) -> list[tuple[str, WordErrors]]:
        """Id and errors of every row with a reference, in order."""
        return [(row["id"], WordErrors(*(row[kind] for kind in KINDS))) for row in self.rows if row["wer"] is not None]

    def table(self) -> Dataset:
        """The rows as a dataset with the features `ROW_FEATURES`."""
        return Dataset.from_dict(
            {name: [row[name] for row in self.rows] for name in ROW_FEATURES}, features=ROW_FEATURES
        )


class NothingReadError(ValueError):
    """No row of a dataset could be read; `row_errors` holds the reason for each."""

    def __init__(self, row_errors: RowErrors):
        super().__init__(f"No row could be read, so there is nothing to score.\n{row_errors.summary()}")
        self.row_errors = row_errors


def score(
    transcribed: Sequence[TranscribedRow],
    row_errors: RowErrors,
    seconds: float,
    *,
    language: str | None = None,
    normalizer: Callable[[str], str] | None = None,
    unit: str | None = None,
) -> EvaluationResult:
    """Compares transcripts with references.

    Args:
        transcribed (`Sequence[TranscribedRow]`): in the order of the dataset.
        row_errors (`RowErrors`): rows that could not be read.
        seconds (`float`): time for features and generation.
        language (`str`, *optional*): of rows that name none; selects the normaliser and the [`counting_unit`].
        normalizer (`Callable[[str], str]`, *optional*): in place of the language's; words are counted then.
        unit (`str`, *optional*): "word" or "character", in place of the language's.

    Raises:
        ValueError: if the languages of the rows are counted in different units.
        NothingReadError: if no row could be read.
    """
    if not transcribed:
        raise NothingReadError(row_errors)
    if len(row_errors):
        # Once for all models and noise levels that are scored on these rows.
        logger.warning_once(row_errors.summary())
    languages = [row.language or language or "basic" for row in transcribed]
    units = {code: unit or "word" if normalizer else counting_unit(code, unit) for code in languages}
    if len(set(units.values())) > 1:
        pairs = ", ".join(f"{code} in {one}s" for code, one in sorted(units.items()))
        raise ValueError(
            f"The rows are in languages whose errors are counted in different units ({pairs}), which do not add up. "
            "Score each language by itself, or pass `unit`."
        )
    (chosen,) = set(units.values())
    rows = [
        _score_row(row, normalizer or get_normalizer(code), chosen == "character")
        for row, code in zip(transcribed, languages, strict=True)
    ]
    return _sum_rows(rows, seconds, row_errors, chosen, None)


def merge_results(parts: Sequence[EvaluationResult]) -> EvaluationResult:
    """Joins the results of one model on consecutive parts of a dataset: equal to the last digit, only counts add up.

    `seconds` are summed, `wall_seconds` is the slowest part's.

    Raises:
        ValueError: without parts, or if they count different units.
    """
    units = {part.unit for part in parts}
    if len(units) != 1:
        raise ValueError(f"merge_results: expected parts that count the same unit, got {sorted(units) or 'no part'}.")
    errors = RowErrors([pair for part in parts for pair in part.row_errors])
    walls = [part.wall_seconds for part in parts if part.wall_seconds is not None]
    rows = [row for part in parts for row in part.rows]
    return _sum_rows(rows, sum(part.seconds for part in parts), errors, units.pop(), max(walls, default=None))


def _score_row(row: TranscribedRow, normalize: Callable[[str], str], spaceless: bool) -> dict:
    """The columns of `ROW_FEATURES`. Texts are aligned twice: normalised, and as they were written."""
    reference, prediction = row.reference or "", row.prediction or ""
    spoken, recognised = normalize(reference).strip(), normalize(prediction).strip()
    counts: dict[str, int | None] = {prefix + kind: None for prefix in COUNTS for kind in KINDS}
    rate = None
    if spoken:  # an error rate per word of nothing does not exist
        for prefix, pair in (("", (spoken, recognised)), ("orthographic_", (reference, prediction))):
            if spaceless:  # white space is layout there, in the transcript as in the reference
                pair = ("".join(pair[0].split()), "".join(pair[1].split()))
            characters = character_errors(*pair)
            words = characters if spaceless else word_errors(*pair)
            for columns, errors in ((prefix, words), (f"{prefix}character_", characters)):
                counts |= {columns + kind: count for kind, count in asdict(errors).items()}
            rate = words.wer if rate is None else rate
    return {
        "id": row.id,
        "reference": row.reference,
        "prediction": row.prediction,
        "normalized_reference": spoken,
        "normalized_prediction": recognised,
        "wer": rate,
        **counts,
        # With characters as words, since a loop without spaces would be a single word.
        "repeated_5grams": repeated_ngrams(" ".join("".join(recognised.split())) if spaceless else recognised),
        "duration": row.duration,
        "truncated": row.truncated,
    }


def _sum_rows(
    rows: list[dict], seconds: float, row_errors: RowErrors, unit: str, wall_seconds: float | None
) -> EvaluationResult:
    scored = [row for row in rows if row["wer"] is not None]
    silent = [row for row in rows if row["reference"] is not None and not row["reference"].strip()]
    written = [
        len(
            "".join(row["normalized_prediction"].split())
            if unit == "character"
            else row["normalized_prediction"].split()
        )
        for row in silent
    ]
    sums = {
        name: WordErrors(*(sum(row[prefix + kind] for row in scored) for kind in KINDS))
        for prefix, name in COUNTS.items()
    }
    return EvaluationResult(
        rows=rows,
        seconds=seconds,
        # Over rows, not over parts: the order of a float sum decides its last digit.
        audio_seconds=sum(row["duration"] for row in rows),
        empty_references=len(rows) - len(scored) - len(silent),
        non_speech=NonSpeech(
            len(silent), sum(row["duration"] for row in silent), sum(written), sum(map(bool, written))
        ),
        row_errors=row_errors,
        unit=unit,
        wall_seconds=wall_seconds,
        **sums,
    )


_TIMEOUT = timedelta(days=7)
"""Of a collective: torch's default of 30 minutes would end an evaluation of long recordings."""


def evaluate_shared(dataset: Dataset, evaluate: Callable[[Dataset], EvaluationResult]) -> EvaluationResult:
    """Splits a dataset among the processes that torchrun or accelerate started, and joins their results.

    Texts, counts and rows are those of a single process, in its order: nothing is padded or transcribed twice.
    `seconds`, and with them the real-time factor, sum up the work of all processes; `wall_seconds` is the time of the
    slowest. Call `PartialState().destroy_process_group()` at the end: a process that exits without may abort.

    Args:
        dataset (`Dataset`): rows; the same in every process.
        evaluate (`Callable[[Dataset], EvaluationResult]`): [`evaluate_model`] or another, with all arguments but the
            rows; not called in a process that has no rows.

    Returns:
        `EvaluationResult`: for the whole set, in every process, with `wall_seconds`.

    Raises:
        ValueError: as `evaluate`: a wrong option, or 0 rows, is refused by every process.
        NothingReadError: if no process could read a row.
    """
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    if processes == 1 or not len(dataset):
        return _timed(dataset, evaluate)
    # Without `cpu`, accelerate takes processes without an accelerator for separate runs of one process each.
    state = PartialState(cpu=not torch.accelerator.is_available(), timeout=_TIMEOUT)
    if state.num_processes != processes:
        raise RuntimeError(
            f"{processes} processes were started (WORLD_SIZE), accelerate knows of {state.num_processes}: each would "
            "transcribe all rows. Create no PartialState or Accelerator of one process before."
        )
    rank = state.process_index
    # Shares of consecutive rows: joined in the order of the ranks they are in the order of the dataset.
    first, last = len(dataset) * rank // processes, len(dataset) * (rank + 1) // processes
    result, unread = None, RowErrors()
    if first < last:
        try:
            result = _timed(_with_ids(dataset).select(range(first, last)), evaluate)
            unread = result.row_errors
        except NothingReadError as error:
            unread = error.row_errors
            logger.warning_once(unread.summary())
    # Results travel as objects, and rows differ in number: unlike tensors they need no padding and no duplicates.
    parts = gather_object([(result, unread)])
    results = [part for part, _ in parts if part is not None]
    all_unread = RowErrors([pair for _, errors in parts for pair in errors])
    if not results:
        raise NothingReadError(all_unread)
    if len(all_unread) > len(unread):  # each process has logged those of its part only
        logger.warning_once(f"In all processes together, {all_unread.summary()}")
    return replace(merge_results(results), row_errors=all_unread)


def _timed(dataset: Dataset, evaluate: Callable[[Dataset], EvaluationResult]) -> EvaluationResult:
    start = time.perf_counter()
    return replace(evaluate(dataset), wall_seconds=time.perf_counter() - start)


def _with_ids(dataset: Dataset) -> Dataset:
    """Names rows without an id by their index in the whole set, not in the part of one process."""
    if "id" not in dataset.column_names:
        return dataset.add_column("id", [str(index) for index in range(len(dataset))])
    ids = list(dataset["id"])
    if None not in ids:
        return dataset
    names = [row_id({"id": name}, index) for index, name in enumerate(ids)]
    return dataset.remove_columns("id").add_column("id", names)


def evaluate_model(
    model: WhisperForConditionalGeneration,
    dataset: Dataset | Sequence[Mapping],
    processor: WhisperProcessor,
    *,
    settings: GenerationSettings | None = None,
    normalizer: Callable[[str], str] | None = None,
    unit: str | None = None,
    text_column: str = "text",
    load: Callable[..., np.ndarray] = load_audio,
    generate: Callable[..., list[TokenSequence]] | None = None,
    **keywords: Any,
) -> EvaluationResult:
    """Scores a model on recordings of up to one window: greedy, without timestamps, as in the paper.

    Args:
        model (`WhisperForConditionalGeneration`): student or teacher, in eval mode.
        dataset (`Dataset` or `Sequence[Mapping]`): rows with `audio` and a reference, optionally `id` and `language`.
            A reference of `""` means that nothing is spoken, null that it is not known.
        processor (`WhisperProcessor`): the model's processor.
        settings ([`GenerationSettings`], *optional*): beams, lengths, batch size and the language of rows that name
            none. A multilingual model needs one of them, or a `normalizer`, with which it detects the language.
        normalizer (`Callable[[str], str]`, *optional*, defaults to the language's): from [`get_normalizer`]. A
            normaliser that is passed counts words in any language; `get_normalizer("basic")` suits digit strings.
        unit (`str`, *optional*): "word" or "character"; by default that of the language ([`counting_unit`]).
        text_column (`str`, *optional*, defaults to `"text"`): column of the references.
        load (`Callable[..., np.ndarray]`, *optional*, defaults to [`load_audio`]): decodes the `audio` of a row, whose
            id is passed as `name`, to samples at 16 kHz; [`evaluate_in_noise`] adds noise here.
        generate (`Callable[..., list[TokenSequence]]`, *optional*): generation in another runtime: features (batch,
            mel bins, frames) to tokens. Beams and lengths are its own.
        keywords: fields of [`GenerationSettings`], such as `language` and `batch_size`.

    Returns:
        [`EvaluationResult`]: its rows are in the order of the dataset.

    Raises:
        ValueError: for another model's processor, 0 rows, a missing column or language, or if no row could be read.

    Example:
        ```python
        >>> result = evaluate_model(student, load_source("corpus", split="test"), processor)
        >>> f"{result.errors.wer:.1%} of {result.errors.num_words} words, real-time factor {result.rtf:.3f}"
        ```
    """
    check_compatible(model, None, processor)
    dataset = readable_rows(dataset, text_column)
    errors = RowErrors()
    settings = replace(settings or GenerationSettings(), **keywords)
    languages = spoken_languages(model, dataset, errors, settings.language, normalizer)
    if generate is None:
        in_languages: Callable[..., list[TokenSequence]] = partial(generate_tokens, model, settings=settings)
        _warm_up(model, processor, settings.language)
    else:

        def in_languages(input_features: Tensor, languages: Sequence[str | None]) -> list[TokenSequence]:
            return generate(input_features=input_features)  # whose language is its own

    outputs = generate_rows(
        model, processor, dataset, errors, in_languages, load=load, languages=languages, batch_size=settings.batch_size
    )
    transcribed = []
    for index, sequence in outputs.sequences.items():
        row = dataset[index]
        text = plain_text(sequence.tokens, processor.tokenizer, timestamp_begin(model))
        transcribed.append(
            TranscribedRow(
                row_id(row, index),
                row[text_column],
                text,
                outputs.durations[index],
                sequence.truncated,
                languages[index],
            )
        )
    return score(transcribed, errors, outputs.seconds, normalizer=normalizer, unit=unit)


def spoken_languages(
    model: WhisperForConditionalGeneration,
    dataset: Dataset | Sequence[Mapping],
    errors: RowErrors,
    language: str | None,
    normalizer: Callable[[str], str] | None,
) -> dict[int, str | None]:
    """The language that each row is transcribed and scored in; as [`row_languages`], "en" for English-only models.

    Raises:
        ValueError: if a multilingual model gets no language, nor a normaliser: error rates depend on the language.
    """
    if not is_multilingual(model):
        return dict.fromkeys(row_languages(model, dataset, errors, language), "en")
    if normalizer is None and language is None and "language" not in column_names(dataset):
        raise ValueError(
            "`language` is missing: a multilingual model would detect it in every window, and error rates depend on "
            "it. Pass the language of the recordings, 'en' for example, name the column that has it with "
            "`language_column` when loading them, or pass a `normalizer`."
        )
    codes = row_languages(model, dataset, errors, language)
    for index in [index for index, code in codes.items() if code is None and normalizer is None]:
        del codes[index]
        reason = "no language is named, expected one since error rates depend on it"
        errors.add(row_id(dataset[index], index), f"column 'language': {reason}")
    return codes


def readable_rows(dataset: Dataset | Sequence[Mapping], text_column: str) -> Dataset | Sequence[Mapping]:
    """Refuses a dataset of 0 rows or without the columns `audio` and `text_column`; disables the `Audio` decoding."""
    if len(dataset) == 0:
        raise ValueError("The data set to evaluate has 0 rows. Check the source and its split.")
    if isinstance(dataset, Dataset):
        dataset = without_decoder(dataset)
    columns = column_names(dataset)
    for column in ("audio", text_column):
        if column not in columns:
            raise ValueError(
                f"The data set to evaluate has no column {column!r}; it has {', '.join(columns)}. Name the right one "
                "with `audio_column` or `text_column` when loading it."
            )
    return dataset


def _warm_up(model: WhisperForConditionalGeneration, processor: WhisperProcessor, language: str | None) -> None:
    """Generates one token of silence, so that the set-up of the runtime is not timed with the first batch."""
    silence = window_features(model, processor, [np.zeros(1_600, dtype=np.float32)])
    generate_tokens(model, silence, max_new_tokens=1, language=language)
