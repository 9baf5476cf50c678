"""Sequential long-form transcription by transformers' `generate`, window after window (paper, section 5)."""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass, replace
from itertools import chain
from types import TracebackType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import WhisperForConditionalGeneration, WhisperProcessor

from hf_distil_whisper.checkpoints import check_compatible, complete_generation_config
from hf_distil_whisper.data.audio import SAMPLING_RATE, audio_blocks
from hf_distil_whisper.data.features import recording_features
from hf_distil_whisper.inference.decoder import Assistant
from hf_distil_whisper.inference.encoder import window_features, window_seconds
from hf_distil_whisper.inference.generation import GenerationSettings, strip_end
from hf_distil_whisper.inference.output import (
    Transcription,
    TranscriptionStatistics,
    Word,
    compression_ratio,
    plain_text,
    segments_of,
)
from hf_distil_whisper.inference.prompt import (
    initial_prompt,
    is_multilingual,
    resolve_language,
    timestamp_begin,
    unused_tokens,
)
from hf_distil_whisper.inference.speculative import DraftCounts, decode_in_generate
from hf_distil_whisper.inference.word_timestamps import (
    alignment_heads,
    in_order,
    join_words,
    num_positions,
    prefix_language,
    time_tokens,
)


class WindowRecorder:
    """Times the words of each window while `generate` runs inside the block, and drops the window's scores.

    transformers keeps in every segment all that its search returned: with temperature fallback that includes the
    scores of the whole vocabulary for every token, 20 MB a window and gigabytes an hour. `_retrieve_segment` is where
    it makes segments of a window's tokens. `num_samples` is the length of the recording at 16 kHz.
    """

    def __init__(
        self, model: WhisperForConditionalGeneration, processor: WhisperProcessor, num_samples: int, with_words: bool
    ):
        self._model, self._processor, self._num_samples = model, processor, num_samples
        self._with_words = with_words
        self._words: list[Word] = []
        self._encoder_hidden_states: Tensor | None = None

    def __enter__(self) -> "WindowRecorder":
        self._retrieve_segment = self._model._retrieve_segment
        self._model._retrieve_segment = self._record_segments
        self._handle = None
        if self._with_words:
            self._handle = self._model.get_encoder().register_forward_hook(self._record_encoder)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        del self._model._retrieve_segment  # the instance's attribute; the method of the class is visible again
        if self._handle is not None:
            self._handle.remove()

    @property
    def words(self) -> list[Word]:
        """Words of all segments, without tokens that a window generated behind its last segment."""
        return in_order(self._words)

    def _record_encoder(self, module: nn.Module, inputs: Any, output: Any) -> None:
        # Of the current window only; temperature fallback encodes a window several times.
        self._encoder_hidden_states = output.last_hidden_state

    def _record_segments(
        self, *, seek_outputs: list[Any], time_offset: Tensor, prev_idx: int, **rest: Any
    ) -> tuple[list, int]:
        # A window is its tokens, or with temperature fallback a dictionary of tokens and scores.
        rows = [row if isinstance(row, Tensor) else row["sequences"] for row in seek_outputs]
        segments, frames = self._retrieve_segment(
            seek_outputs=rows, time_offset=time_offset, prev_idx=prev_idx, **rest
        )
        if self._encoder_hidden_states is not None and segments:
            self._words += self._words_of(segments, self._encoder_hidden_states, float(time_offset[prev_idx]))
        return segments, frames

    def _words_of(self, segments: list[dict], encoder_hidden_states: Tensor, offset: float) -> list[Word]:
        """Words of the segments of the window at `offset` seconds."""
        eos_token_id = self._model.generation_config.eos_token_id
        row = segments[0]["result"].tolist()
        # All segments of a window share its row: prefix, tokens, `<|endoftext|>`; `idxs` are theirs in that row.
        first = segments[0]["idxs"][0]
        tokens, _ = strip_end(row[first:], eos_token_id)
        positions = num_positions(self._processor, self._num_samples - round(offset * SAMPLING_RATE))
        timed = time_tokens(self._model, encoder_hidden_states, row[:first], tokens, positions)
        timed = [one for part in segments for one in timed[part["idxs"][0] - first : part["idxs"][1] - first]]
        language = prefix_language(self._model, row[:first])
        return join_words(timed, self._processor.tokenizer, timestamp_begin(self._model), language, offset)


class StuckTranscriptionError(RuntimeError):
    """The model's timestamps hardly advance, so that the transcription would not end."""


@dataclass(frozen=True)
class TemperatureFallback:
    """When a window is transcribed again at a higher temperature, and when it is skipped.

    The defaults are those of Distil-Whisper's model cards: OpenAI's, except for the compression ratio, which
    transformers takes of tokens rather than letters.

    Args:
        temperatures (`tuple[float, ...]`, *optional*, defaults to 0 to 1 in steps of 0.2): tried in turn.
        compression_ratio_threshold (`float`, *optional*, defaults to 1.35): transcribe again if zlib compresses the
            tokens by more than this factor, a sign of repetition. None: never.
        logprob_threshold (`float`, *optional*, defaults to -1.0): transcribe again if the mean log-probability of the
            tokens is below this. None: never.
        no_speech_threshold (`float`, *optional*, defaults to 0.6): skip a window below `logprob_threshold` whose
            probability of `<|nospeech|>` is above this. None: never.

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


@torch.inference_mode()
def transcribe_sequential(
    model: WhisperForConditionalGeneration,
    processor: WhisperProcessor,
    audio: object,
    *,
    assistant: Assistant | None = None,
    temperature_fallback: bool | TemperatureFallback = False,
    condition_on_prev_tokens: bool = False,
    word_timestamps: bool = False,
    prompt: str | None = None,
    settings: GenerationSettings | None = None,
    **keywords: Any,
) -> Transcription:
    """Transcribes a recording of any length window after window, each starting at the last predicted timestamp.

    More accurate than [`transcribe_chunked`] for a model that predicts good timestamps, and slower, since windows wait
    for one another. One recording at a time: transformers' loop fails on batches of unequal length. Files are decoded
    in blocks and their features stored in a temporary file (115 MB an hour for 80 mel bins): on a CPU, three hours
    take the memory of five minutes; an accelerator holds the features.

    Args:
        model (`WhisperForConditionalGeneration`): student or teacher, in eval mode.
        processor (`WhisperProcessor`): of the model.
        audio: path, bytes, float array at 16 kHz, (array, rate), or an iterator over blocks of samples, as
            [`audio_blocks`] is.
        assistant (`WhisperForCausalLM` or `WhisperForConditionalGeneration`, *optional*): drafts for the model, see
            [`create_assistant`]; the text does not change.
        temperature_fallback (`bool` or [`TemperatureFallback`], *optional*, defaults to `False`): transcribe windows
            that come out repetitive or unlikely again at temperatures up to 1, and skip those without speech; True:
            with the settings of Distil-Whisper's model cards. It samples, so seed it to repeat a text.
        condition_on_prev_tokens (`bool`, *optional*, defaults to `False`): prompt each window with the text before it.
        word_timestamps (`bool`, *optional*, defaults to `False`): also fill `words`, as `return_timestamps="word"`
            does (`docs/word_timestamps.md`).
        prompt (`str`, *optional*): text before every window, see [`transcribe`]. With `condition_on_prev_tokens` it
            comes before the first window, as OpenAI's `initial_prompt`, and moves out as text follows it.
        settings ([`GenerationSettings`], *optional*): of its fields, `language`, `task`, `num_beams`, `draft_length`
            and `return_timestamps="word"` apply; segments are always returned.
        keywords: fields of [`GenerationSettings`], which replace those of `settings`.

    Returns:
        `Transcription`: with segments; its statistics have no log-probabilities.

    Raises:
        ValueError: for another model's processor, an assistant together with beams or temperature fallback, an unknown
            language, or word timestamps of a model without alignment heads.
        AudioError: if the recording cannot be read.
        StuckTranscriptionError: if the windows advance by less than a second on average, as those of an untrained
            student may: the loop has no other end.

    Example:
        ```python
        >>> transcribe_sequential(model, processor, "talk.mp3", temperature_fallback=True).segments[0]
        ```
    """
    settings = replace(settings or GenerationSettings(), **keywords)
    check_compatible(model, None, processor)
    word_timestamps = word_timestamps or settings.return_timestamps == "word"
    if assistant is not None and (settings.num_beams > 1 or temperature_fallback):
        raise ValueError(
            "An assistant drafts for greedy decoding only, but num_beams > 1 or temperature_fallback=True came with "
            "it: leave out one or the other."
        )
    if word_timestamps:
        alignment_heads(model)  # missing or wrong ones fail before the work
    features, num_samples = _features(model, processor, audio)
    language = resolve_language(model, settings.language, settings.task)
    options: dict[str, Any] = {"language": language, "task": settings.task} if is_multilingual(model) else {}
    prompt_ids = initial_prompt(model, processor, prompt)
    if prompt_ids:
        options["prompt_ids"] = torch.tensor(prompt_ids, device=model.device)
    if temperature_fallback:
        thresholds = asdict(TemperatureFallback() if temperature_fallback is True else temperature_fallback)
        options |= {"temperature": thresholds.pop("temperatures"), **thresholds}
    # A copy: `generate` writes lengths and thresholds into it.
    config = complete_generation_config(model.generation_config, model.config)
    config.suppress_tokens = [*(config.suppress_tokens or []), *unused_tokens(model)]
    config.num_beams = settings.num_beams
    config.prev_sot_token_id = processor.tokenizer.convert_tokens_to_ids("<|startofprev|>")
    config.use_cache = True
    drafts: list[DraftCounts] = []
    if settings.num_beams == 1 and not temperature_fallback:
        # Fallback needs the scores of `generate`'s own search; without it, the search here returns bare tokens.
        config.return_dict_in_generate = False
        options["custom_generate"] = decode_in_generate(assistant, settings.draft_length, drafts.extend)
    seconds = num_samples / SAMPLING_RATE
    recorder = WindowRecorder(model, processor, num_samples, word_timestamps)
    with recorder if word_timestamps or temperature_fallback else nullcontext(), _without_warning():
        output = model.generate(
            features,
            generation_config=config,
            return_timestamps=True,
            return_segments=True,
            condition_on_prev_tokens=condition_on_prev_tokens,
            monitor_progress=_limit_windows(seconds),
            **options,
        )
    counts = sum(drafts, start=DraftCounts()) if assistant is not None else None
    result = _transcription(output["segments"][0], processor, timestamp_begin(model), seconds, counts)
    return replace(result, words=recorder.words) if word_timestamps else result


def _features(
    model: WhisperForConditionalGeneration, processor: WhisperProcessor, audio: object
) -> tuple[Tensor, int]:
    """Features (1, mel bins, frames) of the whole recording, of one window at least, and its number of samples."""
    blocks = audio if isinstance(audio, Iterator) else audio_blocks(audio)
    read, num_samples = [], 0
    # `generate` takes a recording of up to a window padded to it, and a longer one unpadded: it seeks through that.
    for block in blocks:
        read.append(block)
        num_samples += len(block)
        if num_samples > window_seconds(processor) * SAMPLING_RATE:
            features, num_samples = recording_features(processor.feature_extractor, chain(read, blocks))
            return features.to(model.device, model.dtype), num_samples
    return window_features(model, processor, [np.concatenate(read)]), num_samples


@contextmanager
def _without_warning() -> Iterator[None]:
    """Drops a warning of transformers about how its own loop calls `generate`: nobody can follow it."""

    def is_shown(record: logging.LogRecord) -> bool:
        return not record.getMessage().startswith("Passing `generation_config` together with")

    logger = logging.getLogger("transformers.generation.utils")
    logger.addFilter(is_shown)
    try:
        yield
    finally:
        logger.removeFilter(is_shown)


def _limit_windows(seconds: float) -> Callable[[Tensor], None]:
    """Callback before every window that raises after `10 + seconds` of them; 30 s of speech take one or two."""
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
    segments: list[dict],
    processor: WhisperProcessor,
    timestamp_begin: int,
    seconds: float,
    drafts: DraftCounts | None,
) -> Transcription:
    """The transcription of `generate`'s segments; times in the last window's padding are cut to the recording."""
    tokens = [segment["tokens"].tolist() for segment in segments]  # with the timestamps around each segment
    text = plain_text([token for row in tokens for token in row], processor.tokenizer, timestamp_begin)
    times = [(min(float(part["start"]), seconds), min(float(part["end"]), seconds)) for part in segments]
    stretches = [
        (*time, [token for token in row if token < timestamp_begin]) for time, row in zip(times, tokens, strict=True)
    ]
    statistics = TranscriptionStatistics(
        num_tokens=sum(len(row) for row in tokens),
        num_windows=len({id(segment["result"]) for segment in segments}),  # shared by a window's segments
        truncated=False,
        compression_ratio=compression_ratio(text),
        drafts=drafts,
    )
    return Transcription(text, segments_of(stretches, processor.tokenizer, timestamp_begin), statistics)
