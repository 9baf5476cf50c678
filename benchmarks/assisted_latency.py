"""What an assistant gains: every way to the same text, timed in turn, beside the model alone (Tables 9 and 22).

Knows ways from samples to texts and their times; `inference` holds the searches.
"""

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from transformers import WhisperForCausalLM, WhisperForConditionalGeneration, WhisperProcessor, pipeline

from hf_distil_whisper.data.audio import SAMPLING_RATE
from hf_distil_whisper.inference.ctranslate2 import Ctranslate2Generator
from hf_distil_whisper.inference.decoder import Assistant
from hf_distil_whisper.inference.encoder import window_features
from hf_distil_whisper.inference.generation import generate_tokens
from hf_distil_whisper.inference.output import plain_text
from hf_distil_whisper.inference.prompt import (
    is_multilingual,
    timestamp_begin,
)
from hf_distil_whisper.inference.speculative import (
    DraftCounts,
    added_parameters,
    assistant_arguments,
)
from hf_distil_whisper.inference.transcribe import (
    transcribe_chunked,
    transcribe_sequential,
)

ALONE = "alone"
"""The way that others are compared with: the model without an assistant, by this library's greedy search."""


@dataclass(frozen=True)
class Heard:
    """What a way made of a batch of recordings.

    Args:
        texts (`list[str]`): one for each recording.
        drafts ([`DraftCounts`]): of an assistant, where the way tells.
    """

    texts: list[str]
    drafts: DraftCounts = field(default_factory=DraftCounts)


Way = Callable[[Sequence[np.ndarray]], Heard]
"""From samples at 16 kHz of up to one window each, a batch at a time, to texts."""


@dataclass(frozen=True)
class WayTimes:
    """One way at one batch size.

    Args:
        seconds (`tuple[float, ...]`): over all recordings, one entry per repetition.
        num_same (`int`): recordings whose text is that of the model alone.
        num_recordings (`int`): in all.
        drafts ([`DraftCounts`]): over all recordings.
    """

    seconds: tuple[float, ...]
    num_same: int
    num_recordings: int
    drafts: DraftCounts

    @property
    def median(self) -> float:
        """Seconds over all recordings, median of the repetitions."""
        return statistics.median(self.seconds)


def library_way(
    model: WhisperForConditionalGeneration,
    processor: WhisperProcessor,
    *,
    assistant: Assistant | None = None,
    draft_length: int | None = None,
    language: str | None = None,
) -> Way:
    """This library's search, with or without an assistant.

    Args:
        model (`WhisperForConditionalGeneration`): whose text it is.
        processor (`WhisperProcessor`): of the model.
        assistant (`WhisperForCausalLM` or `WhisperForConditionalGeneration`, *optional*): drafts.
        draft_length (`int`, *optional*): see [`generate_tokens`].
        language (`str`, *optional*): for multilingual models.
    """
    begin = timestamp_begin(model)

    def hear(recordings: Sequence[np.ndarray]) -> Heard:
        features = window_features(model, processor, recordings)
        found = generate_tokens(model, features, assistant=assistant, draft_length=draft_length, language=language)
        texts = [plain_text(one.tokens, processor.tokenizer, begin) for one in found]
        return Heard(texts, sum((one.drafts for one in found if one.drafts is not None), start=DraftCounts()))

    return hear


def generate_way(
    model: WhisperForConditionalGeneration, processor: WhisperProcessor, *, language: str | None = None
) -> Way:
    """`model.generate` as it comes with transformers, greedy.

    Args:
        model (`WhisperForConditionalGeneration`): alone.
        processor (`WhisperProcessor`): of the model.
        language (`str`, *optional*): for multilingual models.
    """
    options = _stock_options(model, language)

    def hear(recordings: Sequence[np.ndarray]) -> Heard:
        features = window_features(model, processor, recordings)
        # All of the window is heard, which `generate` cannot tell from features, and says so for every batch.
        mask = torch.ones(len(features), features.shape[-1], dtype=torch.long, device=features.device)
        sequences = model.generate(features, attention_mask=mask, **options)
        texts = processor.batch_decode(sequences, skip_special_tokens=True)
        return Heard([str(text).strip() for text in texts])

    return hear


def runtime_way(
    model: WhisperForConditionalGeneration,
    processor: WhisperProcessor,
    compute_type: str,
    *,
    language: str | None = None,
) -> Way:
    """CTranslate2, greedy; the model is converted on first use.

    Args:
        model (`WhisperForConditionalGeneration`): alone.
        processor (`WhisperProcessor`): of the model.
        compute_type (`str`): type of the weights and products, for example `"int8"`.
        language (`str`, *optional*): for multilingual models.

    Raises:
        ImportError: without the extra `ct2`.
    """
    generate, begin = (
        Ctranslate2Generator(model, processor, compute_type=compute_type, language=language),
        timestamp_begin(model),
    )

    def hear(recordings: Sequence[np.ndarray]) -> Heard:
        found = generate(window_features(model, processor, recordings))
        return Heard([plain_text(one.tokens, processor.tokenizer, begin) for one in found])

    return hear


def pipeline_way(
    model: WhisperForConditionalGeneration,
    processor: WhisperProcessor,
    *,
    language: str | None = None,
    stock_assistant: WhisperForCausalLM | None = None,
    assistant: Assistant | None = None,
) -> Way:
    """`pipeline("automatic-speech-recognition")`, greedy.

    Args:
        model (`WhisperForConditionalGeneration`): whose text it is.
        processor (`WhisperProcessor`): of the model.
        language (`str`, *optional*): for multilingual models.
        stock_assistant (`WhisperForCausalLM`, *optional*): by the pipeline's own `assistant_model`, one recording at
            a time.
        assistant (`WhisperForCausalLM` or `WhisperForConditionalGeneration`, *optional*): by [`assistant_arguments`].
    """
    recognise = pipeline(
        "automatic-speech-recognition",
        model=model,
        tokenizer=processor.tokenizer,
        feature_extractor=processor.feature_extractor,
        assistant_model=stock_assistant,
    )
    options = _stock_options(model, language)
    if assistant is not None:
        options |= assistant_arguments(assistant)["generate_kwargs"]

    def hear(recordings: Sequence[np.ndarray]) -> Heard:
        inputs = [{"raw": samples, "sampling_rate": SAMPLING_RATE} for samples in recordings]
        found = recognise(inputs, batch_size=len(inputs), generate_kwargs=options)
        return Heard([one["text"].strip() for one in found])

    return hear


def _stock_options(model: WhisperForConditionalGeneration, language: str | None) -> dict[str, object]:
    options: dict[str, object] = {"num_beams": 1}
    if is_multilingual(model):
        options |= {"language": language, "task": "transcribe"}
    return options


def measure_ways(
    ways: Mapping[str, Way], recordings: Sequence[np.ndarray], *, batch_size: int = 1, repeats: int = 3
) -> dict[str, WayTimes]:
    """Times ways to the same texts: each once unmeasured, then all in turn in every repetition.

    Args:
        ways (`Mapping[str, Way]`): by name; [`ALONE`] is the one that texts are compared with.
        recordings (`Sequence[np.ndarray]`): samples at 16 kHz, up to one window each.
        batch_size (`int`, *optional*, defaults to 1): recordings per pass.
        repeats (`int`, *optional*, defaults to 3): repetitions over all recordings.

    Raises:
        ValueError: without recordings.
    """
    if not recordings:
        raise ValueError("`recordings`: expected at least one to measure, got none.")
    batches = [recordings[start : start + batch_size] for start in range(0, len(recordings), batch_size)]
    for way in ways.values():
        way(batches[0])
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    heard: dict[str, Heard] = {}
    for _ in range(repeats):
        for name, way in ways.items():
            start = time.perf_counter()
            found = [way(batch) for batch in batches]
            seconds[name].append(time.perf_counter() - start)
            heard[name] = Heard(
                [text for one in found for text in one.texts], sum((one.drafts for one in found), start=DraftCounts())
            )
    expected = heard[ALONE].texts
    return {
        name: WayTimes(
            tuple(seconds[name]),
            sum(ours == theirs for ours, theirs in zip(heard[name].texts, expected, strict=True)),
            len(recordings),
            heard[name].drafts,
        )
        for name in ways
    }


def assisted_parameters(model: WhisperForConditionalGeneration, assistants: Mapping[str, Assistant]) -> dict[str, int]:
    """Parameters of the model alone, and with each assistant (Table 9).

    Args:
        model (`WhisperForConditionalGeneration`): whose text it is.
        assistants (`Mapping[str, Assistant]`): by name.
    """
    alone = model.num_parameters()
    return {ALONE: alone} | {name: alone + added_parameters(one, model) for name, one in assistants.items()}


def long_form_way(
    model: WhisperForConditionalGeneration,
    processor: WhisperProcessor,
    *,
    assistant: Assistant | None = None,
    chunked: bool = False,
    language: str | None = None,
) -> Way:
    """Recordings of any length, one after another.

    Args:
        model (`WhisperForConditionalGeneration`): whose text it is.
        processor (`WhisperProcessor`): of the model.
        assistant (`WhisperForCausalLM` or `WhisperForConditionalGeneration`, *optional*): drafts.
        chunked (`bool`, *optional*, defaults to `False`): by [`transcribe_chunked`], 16 chunks a pass; else by
            [`transcribe_sequential`].
        language (`str`, *optional*): for multilingual models.
    """
    transcribe_one = transcribe_chunked if chunked else transcribe_sequential

    def hear(recordings: Sequence[np.ndarray]) -> Heard:
        found = [transcribe_one(model, processor, one, assistant=assistant, language=language) for one in recordings]
        drafts = [one.statistics.drafts for one in found if one.statistics is not None]
        return Heard([one.text for one in found], sum((one for one in drafts if one is not None), start=DraftCounts()))

    return hear


def ways_table(
    times: Mapping[int, Mapping[str, WayTimes]], parameters: Mapping[str, int], baselines: Sequence[str]
) -> str:
    """Relative latencies of ways by batch size, as Markdown: Tables 9 and 22.

    Args:
        times (`Mapping[int, Mapping[str, WayTimes]]`): by batch size, from [`measure_ways`].
        parameters (`Mapping[str, int]`): by way, where they are to be shown.
        baselines (`Sequence[str]`): ways of the model alone; the fastest at each batch size is 1.0.
    """
    sizes = list(times)
    heads = ["", "parameters", *(f"batch size {size}" for size in sizes), "same text", "accepted", "passes saved"]
    lines = ["| " + " | ".join(heads) + " |", "|" + "---|" * len(heads)]
    for name in dict.fromkeys(name for ways in times.values() for name in ways):
        measured = {size: ways[name] for size, ways in times.items() if name in ways}
        cells = [name, f"{parameters[name] / 1e6:.2f} M" if name in parameters else ""]
        for size in sizes:
            best = min(times[size][way].median for way in baselines if way in times[size])
            cells.append(f"{best / measured[size].median:.2f}" if size in measured else "")
        same = min(one.num_same for one in measured.values())
        drafts = sum((one.drafts for one in measured.values()), start=DraftCounts())
        cells.append(f"{same} of {next(iter(measured.values())).num_recordings}")
        cells += [f"{drafts.acceptance_rate:.0%}", f"{drafts.checks_saved:.0%}"] if drafts.drafted else ["", ""]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)
