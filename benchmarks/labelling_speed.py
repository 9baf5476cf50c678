"""How fast a teacher labels: this library's way in each runtime beside plain `generate`, on the same recordings.

Knows rows and the ways to transcribe them; commands choose the rows and print the table.
"""

import random
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import Any

import torch
from datasets import Dataset
from transformers import WhisperForConditionalGeneration, WhisperProcessor

from hf_distil_whisper.data.audio import (
    SAMPLING_RATE,
    load_audio,
)
from hf_distil_whisper.data.packing import pack_utterances
from hf_distil_whisper.data.sources import RowErrors
from hf_distil_whisper.inference.ctranslate2 import Ctranslate2Generator
from hf_distil_whisper.inference.dataset import AudioProgress, generate_rows
from hf_distil_whisper.inference.generation import (
    TokenSequence,
    generate_tokens,
)
from hf_distil_whisper.inference.output import plain_text
from hf_distil_whisper.inference.prompt import timestamp_begin
from hf_distil_whisper.metrics import (
    WordErrors,
    errors_in_language,
)

PLAIN = "generate"
"""The baseline: the model's own `generate`, batch after batch in the order of the rows."""


@dataclass(frozen=True)
class LabellingSpeed:
    """One way of labelling, over all rounds.

    Args:
        seconds (`list[float]`): of features and search, one entry a round; reading and decoding of files not counted.
        texts (`list[str]`): what was written, without timestamps.
        errors (`WordErrors`): against the references, where there are any.
    """

    seconds: list[float]
    texts: list[str]
    errors: WordErrors

    @property
    def median(self) -> float:
        """Seconds of the middle round."""
        return statistics.median(self.seconds)


def mixed_recordings(rows: Dataset, count: int, seed: int = 0) -> list[dict[str, Any]]:
    """Recordings of all lengths up to 30 s in random order: half are rows as they are, the others are joined ones.

    Args:
        rows (`Dataset`): utterances with `speaker`, neighbours of one speaker.
        count (`int`): recordings wanted.
        seed (`int`, *optional*, defaults to 0): of the order.

    Raises:
        ValueError: if there are too few rows.
    """
    single = min(count // 2, len(rows))
    mixed: list[dict[str, Any]] = list(rows.select(range(single)))
    third, joined = (len(rows) - single) // 3, -(-(count - count // 2) // 3)
    for number, longest in enumerate((10.0, 20.0, 30.0) if third else ()):
        part = rows.select(range(single + number * third, single + (number + 1) * third))
        mixed += islice(pack_utterances(part, max_duration=longest, gap=0.3), joined)
    if len(mixed) < count:
        raise ValueError(
            f"The {len(rows)} utterances make {len(mixed)} recordings of up to 30 s, {count} were asked for: lower "
            "--rows, or name a larger --dataset."
        )
    random.Random(seed).shuffle(mixed)
    return mixed[:count]


def measure_labelling(
    teacher: WhisperForConditionalGeneration,
    processor: WhisperProcessor,
    rows: Sequence[Mapping[str, Any]],
    *,
    compute_types: Sequence[str] = (),
    num_beams: Sequence[int] = (),
    batch_size: int = 16,
    rounds: int = 3,
    language: str = "en",
) -> dict[str, LabellingSpeed]:
    """Labels the same rows in every way, in turn within every round.

    Args:
        teacher (`WhisperForConditionalGeneration`): in eval mode.
        processor (`WhisperProcessor`): of the teacher.
        rows (`Sequence[Mapping]`): with `audio` of at most 30 s, and `text`.
        compute_types (`Sequence[str]`, *optional*): of CTranslate2, one more way each.
        num_beams (`Sequence[int]`, *optional*): of beam search, one more way each in every runtime.
        batch_size (`int`, *optional*, defaults to 16): rows a pass.
        rounds (`int`, *optional*, defaults to 3): how often everything is labelled.
        language (`str`, *optional*, defaults to `"en"`): whose normaliser scores.

    Returns:
        `dict[str, LabellingSpeed]`: "generate", "transformers", and "ctranslate2 <type>" for each compute type, all
        greedy; with beams the same again, as "transformers, 5 beams" and so on.
    """
    generators: dict[str, Callable[..., list[TokenSequence]]] = {}
    for beams in (1, *num_beams):
        settings: dict[str, Any] = {"return_timestamps": True, "num_beams": beams}
        search = "" if beams == 1 else f", {beams} beams"
        generators[f"transformers{search}"] = partial(generate_tokens, teacher, statistics=True, **settings)
        for compute_type in compute_types:
            generators[f"ctranslate2 {compute_type}{search}"] = Ctranslate2Generator(
                teacher, processor, compute_type=compute_type, **settings
            )
    ways: dict[str, Callable[[], tuple[list[list[int]], float]]] = {
        PLAIN: partial(_generate_in_order, teacher, processor, rows, batch_size)
    }
    for name, generate in generators.items():
        ways[name] = partial(_generate_by_length, teacher, processor, rows, generate, batch_size)
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    tokens: dict[str, list[list[int]]] = {}
    for _ in range(rounds):
        for name, way in ways.items():
            tokens[name], spent = way()
            seconds[name].append(spent)
    found = {}
    for name in ways:
        texts = [plain_text(row, processor.tokenizer, timestamp_begin(teacher)) for row in tokens[name]]
        errors = errors_in_language([str(row["text"]) for row in rows], texts, language)
        found[name] = LabellingSpeed(seconds[name], texts, errors)
    return found


def _generate_by_length(
    teacher: WhisperForConditionalGeneration,
    processor: WhisperProcessor,
    rows: Sequence[Mapping[str, Any]],
    generate: Callable[..., list[TokenSequence]],
    batch_size: int,
) -> tuple[list[list[int]], float]:
    found = generate_rows(teacher, processor, rows, RowErrors(), generate, batch_size=batch_size)
    return [sequence.tokens for sequence in found.sequences.values()], found.seconds


@torch.inference_mode()
def _generate_in_order(
    teacher: WhisperForConditionalGeneration,
    processor: WhisperProcessor,
    rows: Sequence[Mapping[str, Any]],
    batch_size: int,
) -> tuple[list[list[int]], float]:
    progress = AudioProgress(len(rows), PLAIN)
    tokens: list[list[int]] = []
    seconds, end = 0.0, teacher.generation_config.eos_token_id
    for start in range(0, len(rows), batch_size):
        recordings = [load_audio(row["audio"]) for row in rows[start : start + batch_size]]
        begin = time.perf_counter()
        features = processor.feature_extractor(recordings, sampling_rate=SAMPLING_RATE, return_tensors="pt")
        windows = features.input_features.to(teacher.device, teacher.dtype)
        found = teacher.generate(windows, return_timestamps=True).tolist()
        seconds += time.perf_counter() - begin
        tokens += [row[: row.index(end)] if end in row else row for row in found]
        progress.update(len(recordings), sum(map(len, recordings)) / SAMPLING_RATE)
    progress.close()
    return tokens, seconds
