"""Which cross-attention heads tell best when a word is said: found by measurement, on the teacher's transcripts.

A student's layers are not where the teacher's were, and learn anew, so the teacher's alignment heads say little about
its own. Each head is tried alone on text that the decoder is led through, and its times are held against those that
are known; then heads are added to the best one as long as the error falls. What is measured is what transformers and
CTranslate2 compute later with these heads. Knows heads and errors; `word_timestamps.py` turns attention into times.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise, product

import numpy as np
from datasets import Dataset
from torch import Tensor
from transformers import WhisperForConditionalGeneration, WhisperProcessor

from hf_distil_whisper.checkpoints import check_compatible
from hf_distil_whisper.data.audio import (
    SAMPLING_RATE,
    load_audio,
)
from hf_distil_whisper.data.sources import RowErrors
from hf_distil_whisper.inference.dataset import feature_batches
from hf_distil_whisper.inference.encoder import encode, window_features
from hf_distil_whisper.inference.generation import generate_tokens
from hf_distil_whisper.inference.output import TIME_PRECISION
from hf_distil_whisper.inference.prompt import (
    prefix_tokens,
    resolve_languages,
    timestamp_begin,
)
from hf_distil_whisper.inference.word_timestamps import (
    alignment_heads,
    alignment_maps,
    first_positions,
    forced_attention,
    num_positions,
    prefix_language,
    time_tokens,
    word_places,
)

MAX_CANDIDATES = 16
"""Heads, best first, among which sets are tried: OpenAI's own sets have 6 to 23."""

LEAST_MASS = 0.9
"""Of the share of attention that the most monotone head has on its own path: a head with less is not taken."""

NEAR_SECONDS = 0.1
"""Word times as close as that count as right, and attention as close to a path as on it."""

_NO_WORDS = (
    "No alignment heads can be found: in none of the recordings the teacher wrote words with times. Take recordings "
    "with speech that it transcribes, of at least two words each."
)


@dataclass(frozen=True)
class Reading:
    """What a model wrote for a recording, with timestamps, and all that is needed to time it again.

    Args:
        states (`Tensor`): (1, frames, width), of the encoder.
        prefix (`list[int]`): the decoder's first tokens.
        tokens (`list[int]`): behind the prefix.
        positions (`int`): of the recording; see [`num_positions`].
    """

    states: Tensor
    prefix: list[int]
    tokens: list[int]
    positions: int


@dataclass(frozen=True)
class HeadSearch:
    """Alignment heads, and how they were found.

    Args:
        heads (`list[tuple[int, int]]`): (decoder layer, head), best first.
        median_error (`float`): seconds between their times and the known ones.
        single (`list[tuple[tuple[int, int], float]]`): every head with its median error alone, best first.
        num_times (`int`): known times that the errors are over.
        num_recordings (`int`): that these times are in.
    """

    heads: list[tuple[int, int]]
    median_error: float
    single: list[tuple[tuple[int, int], float]]
    num_times: int
    num_recordings: int


def read_rows(
    model: WhisperForConditionalGeneration,
    processor: WhisperProcessor,
    dataset: Dataset | Sequence[Mapping],
    errors: RowErrors,
    *,
    language: str | None = None,
    batch_size: int = 16,
) -> dict[int, Reading]:
    """Transcribes rows with timestamps, and keeps what it takes to time their words.

    Args:
        model (`WhisperForConditionalGeneration`): in eval mode.
        processor (`WhisperProcessor`): of the model.
        dataset (`Dataset` or `Sequence[Mapping]`): rows with `audio`, up to a window each.
        errors (`RowErrors`): takes the rows that cannot be read or are longer.
        language (`str`, *optional*): of multilingual models; detected where left out.
        batch_size (`int`, *optional*, defaults to 16): recordings in one pass.

    Returns:
        `dict[int, Reading]`: by row number, those included in which nothing was said.
    """
    readings = {}
    for batch in feature_batches(model, processor, dataset, errors, batch_size=batch_size):
        states = encode(model, batch.input_features)
        codes = resolve_languages(model, language, "transcribe", len(states))
        prefixes = prefix_tokens(model, states, codes, "transcribe", True).tolist()
        sequences = generate_tokens(model, encoder_hidden_states=states, return_timestamps=True, language=language)
        for index, row in enumerate(batch.rows):
            positions = num_positions(processor, round(batch.durations[index] * SAMPLING_RATE))
            tokens = sequences[index].tokens
            readings[row] = Reading(states[index].unsqueeze(0), prefixes[index], tokens, positions)
    return dict(sorted(readings.items()))


def find_alignment_heads(
    student: WhisperForConditionalGeneration,
    teacher: WhisperForConditionalGeneration,
    processor: WhisperProcessor,
    dataset: Dataset | Sequence[Mapping],
    errors: RowErrors,
    *,
    language: str | None = None,
    batch_size: int = 16,
) -> HeadSearch:
    """Finds the student's heads whose word times are closest to the teacher's on a sample.

    The student is led through the teacher's transcripts, so that every word counts, whatever the student would have
    written. Heads are ranked by the median distance of starts and ends of words, the mean where medians, which come in
    steps of 0.02 s, are equal; then of the best 16 those are added one by one that lower it most.

    A teacher without alignment heads gets its own from [`find_own_heads`] first, for the measurement only.

    Args:
        student (`WhisperForConditionalGeneration`): in eval mode; left as it is. [`set_alignment_heads`] stores them.
        teacher (`WhisperForConditionalGeneration`): of the same vocabulary, in eval mode; left as it is.
        processor (`WhisperProcessor`): of both.
        dataset (`Dataset` or `Sequence[Mapping]`): rows with `audio`, up to a window each; a few dozen are enough.
        errors (`RowErrors`): takes the rows that cannot be read or are longer.
        language (`str`, *optional*): of multilingual models; detected where left out.
        batch_size (`int`, *optional*, defaults to 16): recordings in one pass.

    Raises:
        ValueError: for a teacher of another vocabulary, or if it writes no words.

    Example:
        ```python
        search = find_alignment_heads(student, teacher, processor, rows, RowErrors())
        set_alignment_heads(student, search.heads)
        ```
    """
    check_compatible(student, teacher, processor)
    readings = read_rows(teacher, processor, dataset, errors, language=language, batch_size=batch_size)
    heads = teacher_heads(teacher, list(readings.values()))
    samples = []
    for row, reading in readings.items():
        known = _word_bounds(teacher, processor, reading, heads)
        features = window_features(student, processor, [load_audio(dataset[row]["audio"])])
        samples.append((replace(reading, states=encode(student, features)), known))
    return _search(student, samples, _all_heads(student))


def teacher_heads(teacher: WhisperForConditionalGeneration, readings: Sequence[Reading]) -> list[tuple[int, int]]:
    """The alignment heads of a teacher's generation config; from [`find_own_heads`] where it has none."""
    if teacher.generation_config.to_dict().get("alignment_heads"):
        return alignment_heads(teacher)
    return find_own_heads(teacher, readings)


def find_own_heads(model: WhisperForConditionalGeneration, readings: Sequence[Reading]) -> list[tuple[int, int]]:
    """Finds a model's heads without word times to hold them against, as for a teacher that names none.

    Two things are known of a good head. Its attention lies on a monotone path through the recording: heads are ranked
    by the share of it that does, and those within a tenth of the best are taken. And it looks at the word to come, as
    the method expects; one that looks at the word just read is as monotone, but late by a word. The model's own
    timestamp tokens, at the ends of segments, tell these: heads that miss them by 0.1 s more than the best one in the
    median are left out. Alone they could not choose, being few, and right for heads that wander inside a segment. A
    recording of one sentence has one such time only, at which every head may be right: a dozen of several sentences
    tell more than a hundred of those.

    Args:
        model (`WhisperForConditionalGeneration`): in eval mode; left as it is.
        readings (`Sequence[Reading]`): from [`read_rows`].

    Returns:
        `list[tuple[int, int]]`: (decoder layer, head), the most monotone first.

    Raises:
        ValueError: if the model wrote no text with timestamps.
    """
    heads, begin = _all_heads(model), timestamp_begin(model)
    samples = [(reading, known) for reading in readings if (known := _segment_bounds(reading.tokens, begin))]
    if not samples:
        raise ValueError(_NO_WORDS)
    misses, mass = [], np.zeros(len(heads))
    for reading, known in samples:
        weights, maps = _attention(model, reading, heads)
        misses.append(_errors(maps, known))
        mass += _path_mass(weights, first_positions(maps)) / len(samples)
    median = np.median(np.concatenate(misses, axis=1), axis=1)
    timely = np.flatnonzero(median <= median.min() + NEAR_SECONDS + 1e-6)
    enough = LEAST_MASS * mass[timely].max()
    return [heads[number] for number in sorted(timely, key=lambda number: -mass[number]) if mass[number] >= enough]


Known = dict[int, list[float]]
"""Place of a token → times, seconds, at which its end is known to be."""


def _search(
    model: WhisperForConditionalGeneration, samples: Sequence[tuple[Reading, Known]], heads: Sequence[tuple[int, int]]
) -> HeadSearch:
    samples = [(reading, known) for reading, known in samples if known]
    if not samples:
        raise ValueError(_NO_WORDS)
    alone = [_errors(_attention(model, reading, heads)[1], known) for reading, known in samples]
    scores = [_score(np.concatenate([errors[number] for errors in alone])) for number in range(len(heads))]
    order = sorted(range(len(heads)), key=lambda number: scores[number])
    single = [(heads[number], scores[number][0]) for number in order]
    best = [heads[number] for number in order[:MAX_CANDIDATES]]
    maps = [_attention(model, reading, best)[1] for reading, _ in samples]
    chosen, score = [0], scores[order[0]]
    while rest := [number for number in range(len(best)) if number not in chosen]:
        sums = [own[chosen].sum(axis=0) + own[rest] for own in maps]
        tried = [_errors(own / (len(chosen) + 1), known) for own, (_, known) in zip(sums, samples, strict=True)]
        found = [_score(np.concatenate([errors[place] for errors in tried])) for place in range(len(rest))]
        place = min(range(len(rest)), key=found.__getitem__)
        if found[place] >= score:
            break
        chosen, score = [*chosen, rest[place]], found[place]
    num_times = sum(len(times) for _, known in samples for times in known.values())
    return HeadSearch([best[number] for number in chosen], score[0], single, num_times, len(samples))


def _all_heads(model: WhisperForConditionalGeneration) -> list[tuple[int, int]]:
    return list(product(range(model.config.decoder_layers), range(model.config.decoder_attention_heads)))


def _attention(
    model: WhisperForConditionalGeneration, reading: Reading, heads: Sequence[tuple[int, int]]
) -> tuple[np.ndarray, np.ndarray]:
    """Attention of each head to the recording, (heads, tokens, frames), as it is and made comparable."""
    weights, _ = forced_attention(model, reading.states, reading.prefix, reading.tokens, heads)
    heard = weights[..., : reading.positions]
    return heard.cpu().numpy(), alignment_maps(heard, model.config.median_filter_width)


def _errors(maps: np.ndarray, known: Known) -> np.ndarray:
    """Seconds between each map's times and the known ones, (maps, times)."""
    ends = TIME_PRECISION * first_positions(maps)
    places = [place for place, times in known.items() for _ in times]
    return np.abs(ends[:, places] - np.array([time for times in known.values() for time in times]))


def _score(errors: np.ndarray) -> tuple[float, float]:
    """Median and mean, to compare by; rounded, so that sums of steps of 0.02 s that are equal compare so."""
    return round(float(np.median(errors)), 6), round(float(errors.mean()), 6)


def _path_mass(weights: np.ndarray, first: np.ndarray) -> np.ndarray:
    """Share of each head's attention (heads, tokens, frames) that lies within 0.1 s of its own path, (heads,)."""
    place, near = np.arange(weights.shape[-1]), round(NEAR_SECONDS / TIME_PRECISION)
    last = np.concatenate([first[:, 1:], np.full((len(first), 1), len(place) - 1)], axis=1)
    inside = (place >= first[..., None] - near) & (place <= last[..., None] + near)
    return (weights * inside).sum(axis=-1).mean(axis=1)


def _segment_bounds(tokens: Sequence[int], begin: int) -> Known:
    """Ends of segments by their timestamp tokens, and starts of those behind another one."""
    known: Known = {}
    for place, (token, following) in enumerate(pairwise(tokens)):
        if token < begin <= following:
            known.setdefault(place, []).append((following - begin) * TIME_PRECISION)
        elif following < begin <= token and place > 0:
            known.setdefault(place, []).append((token - begin) * TIME_PRECISION)
    return known


def _word_bounds(
    teacher: WhisperForConditionalGeneration,
    processor: WhisperProcessor,
    reading: Reading,
    heads: Sequence[tuple[int, int]],
) -> Known:
    """Starts and ends of words by the teacher's heads; not the start of the first one, which is 0 for every head."""
    if not reading.tokens:
        return {}
    timed = time_tokens(teacher, reading.states, reading.prefix, reading.tokens, reading.positions, heads=heads)
    language = prefix_language(teacher, reading.prefix)
    known: Known = {}
    for _, places in word_places(reading.tokens, processor.tokenizer, timestamp_begin(teacher), language):
        for place in (places[0] - 1, places[-1]):
            if place > 0:
                known.setdefault(place, []).append(timed[place].end)
    return known
