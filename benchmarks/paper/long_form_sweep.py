"""How long chunks should be and how far they should overlap: WER over both (paper, appendix D.4, Table 23).

Knows which settings to try and how to lay out what comes; measuring is `long_form.py`'s.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from datasets import Dataset
from transformers import WhisperForConditionalGeneration, WhisperProcessor

from hf_distil_whisper.evaluation.long_form import evaluate_long_form
from hf_distil_whisper.inference.chunked import check_chunks
from hf_distil_whisper.inference.encoder import window_seconds
from hf_distil_whisper.metrics import WordErrors

CHUNK_LENGTHS = (30.0, 25.0, 20.0, 15.0, 10.0)
"""Seconds, as in Table 23."""

_LENGTH, _STRIDE = "chunk length / s", "stride, shared with each neighbour / s"

Panels = dict[str, dict[str, dict[str, list[tuple[float, float]]]]]
"""x axis → model → label of a line → points."""


@dataclass(frozen=True)
class ChunkRow:
    """A model on a set in chunks of one length and overlap.

    Args:
        model (`str`): its name in the table.
        chunk_length (`float`): seconds.
        stride (`float`): seconds at either side that a neighbour covers too: chunks overlap by twice as much.
        errors (`WordErrors`): over all recordings with a reference.
        repeated_5grams (`int`): of all predictions (Table 8).
        seconds (`float`): spent on features and generation.
        audio_seconds (`float`): length of the recordings.
        unreadable_rows (`int`): left out.
    """

    model: str
    chunk_length: float
    stride: float
    errors: WordErrors
    repeated_5grams: int
    seconds: float
    audio_seconds: float
    unreadable_rows: int

    @property
    def wer(self) -> float:
        """Word error rate, a fraction; NaN where no recording has a reference."""
        return self.errors.wer if self.errors.num_words else math.nan

    @property
    def rtf(self) -> float:
        """Real-time factor: seconds of work per second of audio; smaller is faster."""
        return self.seconds / self.audio_seconds


def sweep_chunks(
    models: Mapping[str, WhisperForConditionalGeneration],
    dataset: Dataset | Sequence[Mapping],
    processor: WhisperProcessor,
    *,
    chunk_lengths: Sequence[float] = CHUNK_LENGTHS,
    strides: Sequence[float] | None = None,
    batch_size: int = 16,
    language: str | None = None,
    normalizer: Callable[[str], str] | None = None,
    text_column: str = "text",
) -> list[ChunkRow]:
    """Scores models on long recordings in chunks of every length with every overlap.

    Args:
        models (`Mapping[str, WhisperForConditionalGeneration]`): by name, in eval mode.
        dataset (`Dataset` or `Sequence[Mapping]`): as for [`evaluate_long_form`]; a validation set, since the best
            setting on a test set says too much of that set.
        processor (`WhisperProcessor`): of all the models.
        chunk_lengths (`Sequence[float]`, *optional*, defaults to those of Table 23): seconds.
        strides (`Sequence[float]`, *optional*): seconds at either side, each tried with each chunk length, for example
            0, 0.5, 1 and 2. By default a sixth of the chunk, as in the paper.
        batch_size (`int`, *optional*, defaults to 16): chunks per pass.
        language (`str`, *optional*): see [`evaluate_model`].
        normalizer (`Callable[[str], str]`, *optional*): see [`evaluate_model`].
        text_column (`str`, *optional*, defaults to `"text"`): holds the references.

    Returns:
        `list[ChunkRow]`: by model, then in the order of `chunk_lengths` and `strides`.

    Raises:
        ValueError: for no model or setting, and before anything is computed for a chunk that is longer than the window
            or that an overlap leaves nothing of; else as [`evaluate_long_form`].
    """
    settings = chunk_settings(chunk_lengths, strides, window_seconds(processor))
    if not models:
        raise ValueError("`models` is empty, expected at least one model by its name.")
    rows = []
    for name, model in models.items():
        for chunk_length, stride in settings:
            result = evaluate_long_form(
                model,
                dataset,
                processor,
                chunk_length=chunk_length,
                stride=stride,
                batch_size=batch_size,
                language=language,
                normalizer=normalizer,
                text_column=text_column,
            )
            rows.append(
                ChunkRow(
                    model=name,
                    chunk_length=chunk_length,
                    stride=stride,
                    errors=result.errors,
                    repeated_5grams=result.repeated_5grams,
                    seconds=result.seconds,
                    audio_seconds=result.audio_seconds,
                    unreadable_rows=len(result.row_errors),
                )
            )
    return rows


def chunk_settings(
    chunk_lengths: Sequence[float], strides: Sequence[float] | None, window: float
) -> list[tuple[float, float]]:
    """Pairs of chunk length and stride to try, each once.

    Args:
        chunk_lengths (`Sequence[float]`): seconds.
        strides (`Sequence[float]`, *optional*): seconds; a sixth of each chunk where None.
        window (`float`): seconds that the encoder sees.

    Raises:
        ValueError: for none, and for a pair that does not fit.
    """
    settings = list(
        dict.fromkeys(
            (float(length), float(stride))
            for length in chunk_lengths
            for stride in ([length / 6] if strides is None else strides)
        )
    )
    if not settings:
        raise ValueError("`chunk_lengths` or `strides` is empty, expected at least one number of seconds in each.")
    for length, stride in settings:
        check_chunks(length, stride, window)
    return settings


def chunk_table(rows: Sequence[ChunkRow]) -> str:
    """Table 23: WER in % by chunk length and model; with a column of strides where they are not a sixth of the chunk.

    Args:
        rows (`Sequence[ChunkRow]`): from [`sweep_chunks`].

    Returns:
        `str`: Markdown; "-" where a model was not tried, or no recording has a reference.
    """
    models = list(dict.fromkeys(row.model for row in rows))
    cells = {
        (row.chunk_length, row.stride, row.model): "-" if math.isnan(row.wer) else f"{100 * row.wer:.1f}"
        for row in rows
    }
    with_stride = any(row.stride != row.chunk_length / 6 for row in rows)
    heads = ["Chunk length / s", *["Stride / s"] * with_stride]
    lines = [f"| {' | '.join([*heads, *models])} |", "|" + "---:|" * (len(heads) + len(models))]
    for length, stride in dict.fromkeys((row.chunk_length, row.stride) for row in rows):
        setting = [f"{length:g}", *[f"{stride:.3g}"] * with_stride]
        lines.append(f"| {' | '.join([*setting, *(cells.get((length, stride, model), '-') for model in models)])} |")
    return "\n".join(lines)


def chunk_panels(rows: Sequence[ChunkRow]) -> Panels:
    """What [`wer_over_chunks`] draws: over the length, and over the overlap where strides were chosen.

    Args:
        rows (`Sequence[ChunkRow]`): from [`sweep_chunks`].

    Returns:
        `dict[str, dict[str, dict[str, list[tuple[float, float]]]]]`: x axis → model → what is held → seconds and WER;
            models are the lines of one panel where nothing is held. An axis along which only one value was tried is
            left out, if another is there.
    """
    if all(row.stride == row.chunk_length / 6 for row in rows):
        return {_LENGTH: _curves(("", row.model, row.chunk_length, row.wer) for row in rows)}
    panels = {}
    if len({row.chunk_length for row in rows}) > 1 or len({row.stride for row in rows}) == 1:
        held = ((row.model, f"stride {row.stride:.3g} s", row.chunk_length, row.wer) for row in rows)
        panels[_LENGTH] = _curves(held)
    if len({row.stride for row in rows}) > 1:
        held = ((row.model, f"chunks of {row.chunk_length:g} s", row.stride, row.wer) for row in rows)
        panels[_STRIDE] = _curves(held)
    return panels


def _curves(points: Iterable[tuple[str, str, float, float]]) -> dict[str, dict[str, list[tuple[float, float]]]]:
    curves: dict[str, dict[str, list[tuple[float, float]]]] = {}
    for model, label, seconds, wer in points:
        curves.setdefault(model, {}).setdefault(label, []).append((seconds, wer))
    return curves
