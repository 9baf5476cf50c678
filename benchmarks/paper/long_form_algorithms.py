"""The two algorithms of long-form transcription side by side: word error rate and relative latency (Table 7).

Knows which model is heard with which algorithm, in turn, and how the table is laid out; measuring is `long_form.py`'s.
"""

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product

from datasets import Dataset
from transformers import WhisperForConditionalGeneration, WhisperProcessor

from hf_distil_whisper.data.audio import (
    SAMPLING_RATE,
    AudioError,
    audio_blocks,
)
from hf_distil_whisper.evaluation.evaluate import readable_rows
from hf_distil_whisper.evaluation.long_form import evaluate_long_form
from hf_distil_whisper.evaluation.significance import macro_average
from hf_distil_whisper.metrics import WordErrors

ALGORITHMS = ("sequential", "chunked")
"""In the order of Table 7: latencies are relative to the first."""


@dataclass(frozen=True)
class AlgorithmRow:
    """A model on one set with one algorithm.

    Args:
        model (`str`): its name in the table.
        algorithm (`str`): "sequential" or "chunked".
        errors (`WordErrors`): over all recordings with a reference.
        seconds (`tuple[float, ...]`): of work on all recordings, one entry per repetition.
        audio_seconds (`float`): length of the recordings.
        unreadable_rows (`int`): left out.
    """

    model: str
    algorithm: str
    errors: WordErrors
    seconds: tuple[float, ...]
    audio_seconds: float
    unreadable_rows: int

    @property
    def median(self) -> float:
        """Seconds of work, median over the repetitions."""
        return statistics.median(self.seconds)

    @property
    def rtf(self) -> float:
        """Real-time factor: seconds of work per second of audio; smaller is faster."""
        return self.median / self.audio_seconds


def compare_algorithms(
    models: Mapping[str, WhisperForConditionalGeneration],
    dataset: Dataset | Sequence[Mapping],
    processors: Mapping[str, WhisperProcessor],
    *,
    batch_size: int = 16,
    repeats: int = 3,
    language: str | None = None,
    normalizer: Callable[[str], str] | None = None,
    text_column: str = "text",
) -> list[AlgorithmRow]:
    """Hears long recordings with every model in both algorithms, greedily.

    All hear half a minute unmeasured, so that none pays for setting up, and then take turns in every repetition, so
    that a slow minute of the machine falls on all of them.

    Args:
        models (`Mapping[str, WhisperForConditionalGeneration]`): by name, in eval mode, all on one device.
        dataset (`Dataset` or `Sequence[Mapping]`): as for [`evaluate_long_form`].
        processors (`Mapping[str, WhisperProcessor]`): of the models.
        batch_size (`int`, *optional*, defaults to 16): chunks per pass, as in the paper; the sequential algorithm
            hears one window after the other.
        repeats (`int`, *optional*, defaults to 3): over all recordings.
        language (`str`, *optional*): see [`evaluate_model`].
        normalizer (`Callable[[str], str]`, *optional*): see [`evaluate_model`].
        text_column (`str`, *optional*, defaults to `"text"`): holds the references.

    Returns:
        `list[AlgorithmRow]`: by algorithm, then in the order of `models`; errors of the first repetition, which the
            others repeat.

    Raises:
        ValueError: without models or repetitions; else as [`evaluate_long_form`].
    """
    if not models or repeats < 1:
        raise ValueError(f"Expected at least one model and repetition, got {len(models)} and {repeats}.")
    pairs = list(product(ALGORITHMS, models))
    beginning = _beginning(readable_rows(dataset, text_column))
    for algorithm, name in pairs if beginning else []:
        evaluate_long_form(
            models[name], beginning, processors[name], method=algorithm, batch_size=batch_size, language=language
        )
    rounds = []
    for _ in range(repeats):
        results = {
            (algorithm, name): evaluate_long_form(
                models[name],
                dataset,
                processors[name],
                method=algorithm,
                batch_size=batch_size,
                language=language,
                normalizer=normalizer,
                text_column=text_column,
            )
            for algorithm, name in pairs
        }
        rounds.append(results)
    rows = []
    for algorithm, name in pairs:
        first = rounds[0][algorithm, name]
        seconds = tuple(results[algorithm, name].seconds for results in rounds)
        unreadable = len(first.row_errors)
        rows.append(AlgorithmRow(name, algorithm, first.errors, seconds, first.audio_seconds, unreadable))
    return rows


def _beginning(dataset: Dataset | Sequence[Mapping]) -> list[dict]:
    """The first half minute of the first recording that begins at all, as a data set to warm up on."""
    for index in range(len(dataset)):
        try:
            samples = next(audio_blocks(dataset[index]["audio"]))
        except AudioError:
            continue  # told of where it is measured
        return [{"id": "warm-up", "audio": samples[: 30 * SAMPLING_RATE], "text": None}]
    return []


def algorithm_table(rows: Mapping[str, Sequence[AlgorithmRow]], baseline: str) -> str:
    """Table 7: how many times as fast as the baseline's sequential algorithm, and the WER averaged over the sets.

    Args:
        rows (`Mapping[str, Sequence[AlgorithmRow]]`): of [`compare_algorithms`], by set.
        baseline (`str`): name of a model, usually the teacher.

    Returns:
        `str`: Markdown; the WER in %, "-" where a set has no references.
    """
    by_pair: dict[tuple[str, str], dict[str, AlgorithmRow]] = {}
    for name, of_set in rows.items():
        for row in of_set:
            by_pair.setdefault((row.model, row.algorithm), {})[name] = row
    seconds = {pair: sum(row.median for row in of_pair.values()) for pair, of_pair in by_pair.items()}
    lines = ["| Model | Decoding | RTF | Rel. Latency | WER |", "|---|---|---:|---:|---:|"]
    for (model, algorithm), of_pair in by_pair.items():
        speed = seconds[baseline, ALGORITHMS[0]] / seconds[model, algorithm]
        factor = seconds[model, algorithm] / sum(row.audio_seconds for row in of_pair.values())
        wer = _shown_average({name: row.errors for name, row in of_pair.items()})
        lines.append(f"| {model} | {algorithm} | {factor:.4f} | {speed:.2f} | {wer} |")
    return "\n".join(lines)


def algorithms_by_set(rows: Mapping[str, Sequence[AlgorithmRow]]) -> str:
    """Table 18: the WER of every set by model and algorithm, and the macro average.

    Args:
        rows (`Mapping[str, Sequence[AlgorithmRow]]`): of [`compare_algorithms`], by set.

    Returns:
        `str`: Markdown; in %, "-" where a set, or one of the average, has no references.
    """
    errors = {name: {f"{row.model} {row.algorithm}": row.errors for row in of_set} for name, of_set in rows.items()}
    columns = list(next(iter(errors.values())))
    lines = [f"| Dataset | {' | '.join(columns)} |", "|---|" + "---:|" * len(columns)]
    for line, sets in [*((name, [name]) for name in errors), ("Average", list(errors))]:
        cells = [_shown_average({name: errors[name][column] for name in sets}) for column in columns]
        lines.append(f"| {line} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _shown_average(errors: Mapping[str, WordErrors]) -> str:
    """Macro average of sets in %; "-" where one has no references."""
    return f"{100 * macro_average(errors):.1f}" if all(one.num_words for one in errors.values()) else "-"
