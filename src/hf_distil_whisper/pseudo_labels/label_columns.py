"""What labelling adds to a row: the teacher's transcript, how sure it was, and what was said before.

Knows rows whose tokens are known; `labeller.py` makes the teacher write them.
"""

from collections.abc import Sequence

from datasets import Dataset, Features, Value, concatenate_datasets
from transformers import WhisperProcessor

from hf_distil_whisper.inference.results import compression_ratio, plain_text, timestamped_text
from hf_distil_whisper.inference.rows import RowTokens
from hf_distil_whisper.metrics import get_normalizer
from hf_distil_whisper.pseudo_labels.filtering import row_errors

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
"""The columns that labelling adds to every row."""

ERROR_FEATURES = Features(
    {"wer": Value("float64")} | {name: Value("int64") for name in ("hits", "substitutions", "deletions", "insertions")}
)
"""Those that it adds where there is a `text` column; null without text, and where nothing of it is spoken."""


def with_labels(dataset: Dataset, found: RowTokens, processor: WhisperProcessor, begin: int, language: str) -> Dataset:
    """The labelled rows, in order, with their new columns; labels of an earlier run are replaced.

    Args:
        dataset (`Dataset`): rows that were given to the teacher.
        found (`RowTokens`): what it wrote.
        processor (`WhisperProcessor`): of the teacher.
        begin (`int`): the first timestamp token.
        language (`str`): whose normaliser scores the rows whose column `language` says none.
    """
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
        known = dataset.select_columns([name for name in ("text", "language") if name in dataset.column_names])
        told = known.select(rows)[:]
        languages = [own or language for own in told.get("language", [None] * len(rows))]
        columns |= _errors(told["text"], [texts[row] for row in rows], languages)
        features |= ERROR_FEATURES
    labels = Dataset.from_dict(columns, features=Features(features))
    source = dataset.remove_columns([name for name in columns if name in dataset.column_names])
    return concatenate_datasets([source.select(rows), labels], axis=1)


def _errors(references: Sequence[str | None], predictions: Sequence[str], languages: Sequence[str]) -> dict[str, list]:
    """Rate and counts by row; a reference of nothing but punctuation has none."""
    spoken = [
        reference if reference and get_normalizer(language)(reference) else None
        for reference, language in zip(references, languages, strict=True)
    ]
    found = row_errors(spoken, predictions, languages)
    return {name: [None if errors is None else getattr(errors, name) for errors in found] for name in ERROR_FEATURES}


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
