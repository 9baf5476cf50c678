"""Results of an evaluation from texts, without a model."""

from collections.abc import Callable, Mapping, Sequence

from hf_distil_whisper.data.sources import RowErrors
from hf_distil_whisper.evaluation.evaluate import EvaluationResult, TranscribedRow, score
from hf_distil_whisper.metrics import WordErrors

Pair = tuple[str | None, str | None]
"""Reference and transcript."""


def transcribed(pairs: Sequence[Pair] | Mapping[str, Pair]) -> list[TranscribedRow]:
    """Rows of 2 s named "row-0", "row-1", ..., or by the keys."""
    named = pairs if isinstance(pairs, Mapping) else {f"row-{index}": pair for index, pair in enumerate(pairs)}
    return [TranscribedRow(name, *pair, duration=2.0, truncated=False) for name, pair in named.items()]


def scored(
    pairs: Sequence[Pair] | Mapping[str, Pair],
    language: str = "en",
    unread: int = 0,
    normalizer: Callable[[str], str] | None = None,
) -> EvaluationResult:
    """The score of the rows, in 1 s, beside so many rows that could not be read."""
    errors = RowErrors([(f"bad-{index}", "broken") for index in range(unread)])
    return score(transcribed(pairs), errors, 1.0, language=language, normalizer=normalizer)


def counts(percent: float, words: int = 1_000) -> WordErrors:
    """Errors that make such a rate."""
    wrong = round(percent * words / 100)
    return WordErrors(hits=words - wrong, substitutions=wrong)
