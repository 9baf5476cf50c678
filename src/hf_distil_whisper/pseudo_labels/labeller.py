"""The teacher's transcripts as a column of a data set: pseudo-labels (paper, section 4.2), greedy by default.

Knows what belongs into a labelled row; `filtering.py` decides which rows are good enough.
"""

from collections.abc import Sequence
from functools import partial
from pathlib import Path

from datasets import Dataset, Features, Value, concatenate_datasets
from transformers import WhisperForConditionalGeneration, WhisperProcessor
from transformers.utils import logging

from hf_distil_whisper.data.sources import RowErrors, without_decoder
from hf_distil_whisper.inference.generation import generate_tokens, scoring_language, timestamp_begin
from hf_distil_whisper.inference.results import compression_ratio, plain_text, timestamped_text
from hf_distil_whisper.inference.rows import RowTokens, generate_rows
from hf_distil_whisper.metrics import get_normalizer
from hf_distil_whisper.pseudo_labels.filtering import row_error_rates

logger = logging.get_logger(__name__)

BACKENDS = ("transformers",)

LABEL_FEATURES = Features(
    {
        "whisper_transcript": Value("string"),
        "duration": Value("float64"),
        "truncated": Value("bool"),
        "mean_log_prob": Value("float64"),
        "no_speech_prob": Value("float64"),
        "compression_ratio": Value("float64"),
        "previous_transcript": Value("string"),
    }
)
"""The columns that labelling adds, `wer` (float64) aside, which needs a `text` column."""


def pseudo_label_dataset(
    dataset: Dataset,
    teacher: WhisperForConditionalGeneration,
    processor: WhisperProcessor,
    *,
    output_dir: str | Path,
    language: str | None = None,
    batch_size: int = 16,
    num_beams: int = 1,
    backend: str = "transformers",
    task: str = "transcribe",
    return_timestamps: bool = True,
    max_new_tokens: int | None = None,
    errors: RowErrors | None = None,
) -> Dataset:
    """Transcribes every row with the teacher and writes the labelled data set to `output_dir`.

    Rows go through the teacher in batches of like length and come out in their order. A row that cannot be read, or is
    longer than the teacher's window, is left out and listed in `errors`; it never ends the run.

    Args:
        dataset (`Dataset`): rows with `audio` as [`load_source`] gives it, optionally `id`, `text` and
            `condition_on_prev`.
        teacher (`WhisperForConditionalGeneration`): in eval mode; left as it is.
        processor (`WhisperProcessor`): of the teacher.
        output_dir (`str` or `Path`): new or empty folder for `save_to_disk`.
        language (`str`, *optional*): None: English, or detected row by row by a multilingual teacher.
        batch_size (`int`, *optional*, defaults to 16): rows per pass.
        num_beams (`int`, *optional*, defaults to 1): greedy; what beam search would gain, the filter makes up for
            (9.1).
        backend (`str`, *optional*, defaults to `"transformers"`): the runtime; so far the only one.
        task (`str`, *optional*, defaults to `"transcribe"`): or "translate".
        return_timestamps (`bool`, *optional*, defaults to `True`): label with timestamp tokens, so that the student
            can learn them; training leaves them out as often as it likes.
        max_new_tokens (`int`, *optional*): by default as many as the teacher's decoder has room for.
        errors (`RowErrors`, *optional*): takes the rows left out; they are logged in any case.

    Returns:
        `Dataset`: read back from `output_dir`. All columns of the source and:
            - `whisper_transcript`: "<|0.00|> Hello.<|1.20|>", or plain text without timestamps; no other special
              tokens;
            - `duration`: seconds;
            - `truncated`: whether the length ran out before the end, so that the transcript stops mid-sentence;
            - `mean_log_prob`, `no_speech_prob`: see [`score_tokens`]; `compression_ratio`: see [`compression_ratio`];
            - `previous_transcript`: plain text of the row before, where `condition_on_prev` is true and that row was
              labelled to its end; else null;
            - `wer`, if there is a `text` column: normalised, a fraction; null without text.

    Raises:
        FileExistsError: if `output_dir` holds something already.
        ValueError: for 0 rows, a missing `audio` column, an unknown backend or language, or if no row could be
            labelled.

    Example:
        ```python
        >>> rows = load_source("recordings/", split="train")
        >>> labelled = pseudo_label_dataset(rows, teacher, processor, output_dir="labelled")
        >>> kept, report = filter_by_wer(labelled)
        ```
    """
    _check_request(dataset, Path(output_dir), backend)
    scored_as = scoring_language(teacher, language)
    dataset = without_decoder(dataset)
    errors = RowErrors() if errors is None else errors
    columns = [name for name in ("id", "audio") if name in dataset.column_names]
    generate = partial(
        generate_tokens,
        teacher,
        num_beams=num_beams,
        max_new_tokens=max_new_tokens,
        return_timestamps=return_timestamps,
        language=language,
        task=task,
        statistics=True,
    )
    readable = dataset.select_columns(columns)
    found = generate_rows(teacher, processor, readable, errors, generate, batch_size=batch_size)
    if len(errors):
        logger.warning(errors.summary())
    if not found.sequences:
        raise ValueError(f"None of {len(dataset)} rows could be labelled, so nothing was written.\n{errors.summary()}")
    labelled = _with_labels(dataset, found, processor, timestamp_begin(teacher), scored_as)
    labelled.save_to_disk(str(output_dir))
    return Dataset.load_from_disk(str(output_dir))


def _check_request(dataset: Dataset, output_dir: Path, backend: str) -> None:
    if backend not in BACKENDS:
        raise ValueError(f"`backend` is {backend!r}, expected one of {', '.join(BACKENDS)}.")
    if output_dir.exists() and (not output_dir.is_dir() or any(output_dir.iterdir())):
        raise FileExistsError(
            f"`output_dir` {output_dir} holds something already, expected a new or empty folder: labels of two runs "
            "must not mix. Name another folder, or remove this one if it is not needed."
        )
    if "audio" not in dataset.column_names:
        raise ValueError(
            "The data set has no column 'audio' to transcribe; it has "
            f"{', '.join(dataset.column_names) or 'no columns'}. Name the right one with `audio_column` when loading "
            "it."
        )
    if len(dataset) == 0:
        raise ValueError("The data set has 0 rows, so there is nothing to label. Check the source and its split.")


def _with_labels(
    dataset: Dataset, found: RowTokens, processor: WhisperProcessor, begin: int, language: str
) -> Dataset:
    """The labelled rows, in order, with their new columns; labels of an earlier run are replaced."""
    rows = list(found.sequences)
    texts = {row: plain_text(found.sequences[row].tokens, processor.tokenizer, begin) for row in rows}
    columns: dict[str, list] = {
        "whisper_transcript": [
            timestamped_text(found.sequences[row].tokens, processor.tokenizer, begin) for row in rows
        ],
        "duration": [found.durations[row] for row in rows],
        "truncated": [found.sequences[row].truncated for row in rows],
        "mean_log_prob": [found.sequences[row].mean_log_prob for row in rows],
        "no_speech_prob": [found.sequences[row].no_speech_prob for row in rows],
        "compression_ratio": [compression_ratio(texts[row]) for row in rows],
        "previous_transcript": _previous_transcripts(dataset, found, texts),
    }
    features = dict(LABEL_FEATURES)
    if "text" in dataset.column_names:
        references = dataset.select_columns(["text"]).select(rows)["text"]
        columns["wer"] = _error_rates(list(references), [texts[row] for row in rows], language)
        features["wer"] = Value("float64")
    labels = Dataset.from_dict(columns, features=Features(features))
    source = dataset.remove_columns([name for name in columns if name in dataset.column_names])
    return concatenate_datasets([source.select(rows), labels], axis=1)


def _error_rates(references: Sequence[str | None], predictions: Sequence[str], language: str) -> list[float | None]:
    """Per row; a reference of nothing but punctuation has no rate."""
    normalizer = get_normalizer(language)
    spoken = [reference if reference and normalizer(reference) else None for reference in references]
    return row_error_rates(spoken, predictions, language)


def _previous_transcripts(dataset: Dataset, found: RowTokens, texts: dict[int, str]) -> list[str | None]:
    """The prompt of each labelled row: what was said right before it, and nothing where that is not known."""
    if "condition_on_prev" not in dataset.column_names:
        return [None] * len(texts)
    continues = dataset.select_columns(["condition_on_prev"])["condition_on_prev"]
    previous = []
    for row in texts:
        before = row - 1
        known = before in texts and not found.sequences[before].truncated
        # Packing writes booleans, the reference scripts the prompt's token ids, or null where nothing came before.
        previous.append(texts[before] or None if continues[row] and known else None)
    return previous
