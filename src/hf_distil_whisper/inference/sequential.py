"""Long recordings window by window, each starting where the last timestamp of the one before stood (paper, section 5).

The algorithm is transformers' own long-form `generate`; this module feeds it and reads its segments.
"""

import copy
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass, replace
from itertools import chain
from types import TracebackType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import WhisperForConditionalGeneration, WhisperProcessor

from hf_distil_whisper.data.audio import (
    SAMPLING_RATE,
    audio_blocks,
)
from hf_distil_whisper.data.features import recording_features
from hf_distil_whisper.inference.decoder import Assistant
from hf_distil_whisper.inference.encoder import (
    window_features,
    window_seconds,
)
from hf_distil_whisper.inference.output import (
    Transcription,
    TranscriptionStatistics,
    Word,
    compression_ratio,
    plain_text,
    segments_of,
)
from hf_distil_whisper.inference.prompt import (
    is_multilingual,
    resolve_language,
    timestamp_begin,
)
from hf_distil_whisper.inference.speculative import (
    DraftCounts,
    decode_in_generate,
)
from hf_distil_whisper.inference.word_timestamps import (
    alignment_heads,
    in_order,
    join_words,
    num_positions,
    prefix_language,
    time_tokens,
)


class HeardWindows:
    """Times the words of each window while `generate` runs inside it, and lets go of the window's scores.

    transformers keeps in every segment all that its search returned, with temperature fallback the scores of the whole
    vocabulary for every token: 20 MB a window, gigabytes an hour. `_retrieve_segment` is where segments are made.

    Args:
        model (`WhisperForConditionalGeneration`): that generates; left as it is.
        processor (`WhisperProcessor`): of the model.
        num_samples (`int`): of the recording, at 16 kHz.
        with_words (`bool`): whether words are wanted; without them nothing of the encoder is kept.
    """

    def __init__(
        self, model: WhisperForConditionalGeneration, processor: WhisperProcessor, num_samples: int, with_words: bool
    ):
        self._model, self._processor, self._num_samples = model, processor, num_samples
        self._with_words = with_words
        self._words: list[Word] = []
        self._states: Tensor | None = None

    def __enter__(self) -> "HeardWindows":
        self._retrieve = self._model._retrieve_segment
        self._model._retrieve_segment = self._take
        self._handle = self._model.get_encoder().register_forward_hook(self._keep) if self._with_words else None
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        del self._model._retrieve_segment  # of this model; the class keeps its own
        if self._handle is not None:
            self._handle.remove()

    @property
    def words(self) -> list[Word]:
        """The words of all segments; what a window wrote behind its last segment is left out."""
        return in_order(self._words)

    def _keep(self, module: nn.Module, inputs: Any, output: Any) -> None:
        """The states of the window at hand, which is encoded again with temperature fallback."""
        self._states = output.last_hidden_state

    def _take(self, *, seek_outputs: list[Any], time_offset: Tensor, prev_idx: int, **rest: Any) -> tuple[list, int]:
        rows = [row if isinstance(row, Tensor) else row["sequences"] for row in seek_outputs]
        segments, frames = self._retrieve(seek_outputs=rows, time_offset=time_offset, prev_idx=prev_idx, **rest)
        if self._states is not None and segments:
            self._words += self._words_of(segments, self._states, float(time_offset[prev_idx]))
        return segments, frames

    def _words_of(self, segments: list[dict], states: Tensor, start: float) -> list[Word]:
        """The words of the segments of a window that begins at `start` seconds."""
        begin, end = timestamp_begin(self._model), self._model.generation_config.eos_token_id
        row = segments[0]["result"].tolist()
        first = segments[0]["idxs"][0]
        tokens = row[first : row.index(end, first)] if end in row[first:] else row[first:]
        samples = self._num_samples - round(start * SAMPLING_RATE)
        timed = time_tokens(self._model, states, row[:first], tokens, num_positions(self._processor, samples))
        kept = [one for part in segments for one in timed[part["idxs"][0] - first : part["idxs"][1] - first]]
        language = prefix_language(self._model, row[:first])
        return join_words(kept, self._processor.tokenizer, begin, language, start)


class StuckTranscriptionError(RuntimeError):
    """The model's timestamps hardly move on, so that the recording would never end."""


@dataclass(frozen=True)
class TemperatureFallback:
    """When a window is transcribed again at a higher temperature, and when it is skipped.

    The defaults are those of Distil-Whisper's model cards: OpenAI's, but for a compression that transformers takes of
    tokens, not of letters.

    Args:
        temperatures (`tuple[float, ...]`, *optional*, defaults to 0 to 1 in steps of 0.2): tried in turn.
        compression_ratio_threshold (`float`, *optional*, defaults to 1.35): tokens that zlib makes smaller by more
            than this repeat themselves: again. None: never.
        logprob_threshold (`float`, *optional*, defaults to -1.0): a mean log-probability of the tokens below this is
            unlikely: again. None: never.
        no_speech_threshold (`float`, *optional*, defaults to 0.6): an unlikely window with a higher probability of
            holding no speech is skipped. None: never.

    Raises:
        ValueError: for no temperature, one below 0, and a `no_speech_threshold` without a `logprob_threshold`.
    """

    temperatures: tuple[float, ...] = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)
    compression_ratio_threshold: float | None = 1.35
    logprob_threshold: float | None = -1.0
    no_speech_threshold: float | None = 0.6

    def __post_init__(self) -> None:
        if not self.temperatures or min(self.temperatures) < 0:
            raise ValueError(f"`temperatures`: expected numbers of at least 0, got {self.temperatures}.")
        if self.no_speech_threshold is not None and self.logprob_threshold is None:
            raise ValueError(
                "`no_speech_threshold` skips windows that are unlikely, which `logprob_threshold` decides: give it "
                "too, or set both to None."
            )

    def options(self) -> dict[str, object]:
        """What `generate` takes."""
        return {
            "temperature": self.temperatures,
            "compression_ratio_threshold": self.compression_ratio_threshold,
            "logprob_threshold": self.logprob_threshold,
            "no_speech_threshold": self.no_speech_threshold,
        }


@torch.inference_mode()
def transcribe_sequential(
    model: WhisperForConditionalGeneration,
    processor: WhisperProcessor,
    audio: object,
    *,
    assistant: Assistant | None = None,
    draft_length: int | None = None,
    language: str | None = None,
    task: str = "transcribe",
    num_beams: int = 1,
    temperature_fallback: bool | TemperatureFallback = False,
    condition_on_prev_tokens: bool = False,
    word_timestamps: bool = False,
) -> Transcription:
    """Transcribes a recording of any length window after window, moving on to the last predicted timestamp.

    More exact than [`transcribe_chunked`] where the model predicts good timestamps, and slower, since windows wait for
    one another. Recordings are taken one at a time: transformers' loop fails on batches of unequal length. Files are
    decoded block by block and their features kept in a temporary file (115 MB an hour for 80 mel bins), so that three
    hours take the memory of five minutes on a CPU; an accelerator holds the features.

    Args:
        model (`WhisperForConditionalGeneration`): student or teacher, in eval mode.
        processor (`WhisperProcessor`): of the model.
        audio: path, bytes, float array at 16 kHz, (array, rate), or an iterator over blocks of samples, as
            [`audio_blocks`] is.
        assistant (`WhisperForCausalLM` or `WhisperForConditionalGeneration`, *optional*): drafts for the model, see
            [`create_assistant`]; the text stays the model's own.
        draft_length (`int`, *optional*): tokens that it drafts at a time; by default chosen by how many are accepted.
        language (`str`, *optional*): None: English, or detected on the first window by a multilingual model.
        task (`str`, *optional*, defaults to `"transcribe"`): or "translate".
        num_beams (`int`, *optional*, defaults to 1): greedy.
        temperature_fallback (`bool` or [`TemperatureFallback`], *optional*, defaults to `False`): repeat windows that
            come out repetitive or unlikely at temperatures up to 1, and skip those without speech; True: with the
            settings of Distil-Whisper's model cards. Sampled, so not repeatable without a seed.
        condition_on_prev_tokens (`bool`, *optional*, defaults to `False`): prompt each window with the text before it.
        word_timestamps (`bool`, *optional*, defaults to `False`): fill `words` too, by the model's alignment heads
            (`docs/word_timestamps.md`).

    Returns:
        `Transcription`: with segments; its statistics hold no log-probabilities.

    Raises:
        ValueError: for an assistant together with beams or temperature fallback, an unknown language, or words of a
            model without alignment heads.
        AudioError: if the recording cannot be read.
        StuckTranscriptionError: if the windows advance by less than a second in the mean, as those of a student that
            is not trained yet may do: the loop has no other end.
    """
    if assistant is not None and (num_beams > 1 or temperature_fallback):
        raise ValueError(
            "An assistant drafts for greedy decoding only, but num_beams > 1 or temperature_fallback=True came with "
            "it: leave out one or the other."
        )
    if word_timestamps:
        alignment_heads(model)  # none, or wrong ones, fail before the work
    features, samples = _features(model, processor, audio)
    options: dict[str, object] = {}
    if is_multilingual(model):
        options |= {"language": resolve_language(model, language, task), "task": task}
    else:
        resolve_language(model, language, task)
    if temperature_fallback:
        fallback = TemperatureFallback() if temperature_fallback is True else temperature_fallback
        options |= fallback.options()
    config = copy.deepcopy(model.generation_config)
    config.num_beams = num_beams
    config.use_cache = True
    drafts: list[DraftCounts] = []
    if num_beams == 1 and not temperature_fallback:
        config.return_dict_in_generate = False
        options["custom_generate"] = decode_in_generate(assistant, draft_length, drafts.extend)
    seconds = samples / SAMPLING_RATE
    heard = HeardWindows(model, processor, samples, word_timestamps)
    with heard if word_timestamps or temperature_fallback else nullcontext():
        output = model.generate(
            features,
            generation_config=config,
            return_timestamps=True,
            return_segments=True,
            condition_on_prev_tokens=condition_on_prev_tokens,
            monitor_progress=_limit_windows(seconds),
            **options,
        )
    segments = output["segments"][0]
    counts = sum(drafts, start=DraftCounts()) if assistant is not None else None
    found = _transcription(segments, processor, timestamp_begin(model), seconds, counts)
    return replace(found, words=heard.words) if word_timestamps else found


def _features(
    model: WhisperForConditionalGeneration, processor: WhisperProcessor, audio: object
) -> tuple[Tensor, int]:
    """Features of the whole recording, and its samples; one that fits into a window is padded with silence to it."""
    blocks = audio if isinstance(audio, Iterator) else audio_blocks(audio)
    beginning, samples = [], 0
    for block in blocks:
        beginning.append(block)
        samples += len(block)
        if samples > window_seconds(processor) * SAMPLING_RATE:
            features, samples = recording_features(processor.feature_extractor, chain(beginning, blocks))
            return features.to(model.device, model.dtype), samples
    return window_features(model, processor, [np.concatenate(beginning)]), samples


def _limit_windows(seconds: float) -> Callable[[Tensor], None]:
    """Called before every window; 30 s that are said in one go take one or two."""
    limit, windows = 10 + int(seconds), 0

    def count(progress: Tensor) -> None:
        nonlocal windows
        windows += 1
        if windows > limit:
            reached = progress[0, 0].item() / 100
            raise StuckTranscriptionError(
                f"After {limit} windows the model's timestamps have reached {reached:.1f} s of {seconds:.1f} s: it "
                "does not know where a sentence ends and would go on for hours. Use the chunked algorithm, or train "
                "it on timestamps."
            )

    return count


def _transcription(
    segments: list[dict], processor: WhisperProcessor, begin: int, seconds: float, drafts: DraftCounts | None
) -> Transcription:
    tokens = [segment["tokens"].tolist() for segment in segments]
    text = plain_text([token for row in tokens for token in row], processor.tokenizer, begin)
    times = [(min(float(part["start"]), seconds), min(float(part["end"]), seconds)) for part in segments]
    parts = [(*time, [token for token in row if token < begin]) for time, row in zip(times, tokens, strict=True)]
    statistics = TranscriptionStatistics(
        num_tokens=sum(len(row) for row in tokens),
        num_windows=len({id(segment["result"]) for segment in segments}),
        truncated=False,
        compression_ratio=compression_ratio(text),
        drafts=drafts,
    )
    return Transcription(text, segments_of(parts, processor.tokenizer, begin), statistics)
