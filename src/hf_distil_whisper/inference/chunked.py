"""Chunked long-form transcription: overlapping chunks in parallel, joined on their words (paper, section 5)."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import groupby, islice
from typing import Any

import numpy as np
from transformers import WhisperForConditionalGeneration, WhisperProcessor

from hf_distil_whisper.checkpoints import check_compatible
from hf_distil_whisper.data.audio import SAMPLING_RATE, AudioError, audio_blocks
from hf_distil_whisper.inference.decoder import Assistant
from hf_distil_whisper.inference.encoder import encode, window_features, window_seconds
from hf_distil_whisper.inference.generation import GenerationSettings, TokenSequence, generate_tokens
from hf_distil_whisper.inference.output import (
    Transcription,
    TranscriptionStatistics,
    Word,
    compression_ratio,
    plain_text,
    segments_of,
    timed_tokens,
)
from hf_distil_whisper.inference.prompt import decoder_prefix, initial_prompt, timestamp_begin
from hf_distil_whisper.inference.speculative import DraftCounts
from hf_distil_whisper.inference.word_timestamps import (
    TimedToken,
    alignment_heads,
    in_order,
    join_words,
    num_positions,
    prefix_language,
    time_tokens,
)

CHUNK_LENGTH_ENTRY = "chunk_length_s"
"""Entry of a student's generation config, in seconds; the speech recognition pipeline has an argument of this name,
but does not read the entry."""

LONG_CHUNK, SHORT_CHUNK = 30.0, 15.0
"""Seconds that are best in Table 23 for Whisper, trained on 30 s, and Distil-Whisper, trained on 7.1 s on average."""


def chunk_length_after(mean_duration: float) -> float:
    """Chunk length for a model trained on recordings of this mean duration.

    The paper (appendix D.4, Table 23) has two points: a model trained on windows of 30 s is best with chunks of 30 s,
    one trained on utterances of 7.1 s with chunks of 15 s. The rule changes at 15 s: with a longer mean, chunks of
    15 s would be shorter than most of the training data.
    """
    return SHORT_CHUNK if mean_duration <= SHORT_CHUNK else LONG_CHUNK


def default_chunk_length(model: WhisperForConditionalGeneration, processor: WhisperProcessor) -> float:
    """Chunk length of a model: `chunk_length_s` of its generation config, which a training here writes, or 30 s."""
    seconds = model.generation_config.to_dict().get(CHUNK_LENGTH_ENTRY)
    if seconds is None:
        seconds = LONG_CHUNK
    if isinstance(seconds, bool) or not isinstance(seconds, int | float) or not seconds > 0:
        raise ValueError(
            f"`{CHUNK_LENGTH_ENTRY}` in the model's generation_config is {seconds!r}, expected seconds above 0. "
            "Correct it, or pass `chunk_length`."
        )
    return min(float(seconds), window_seconds(processor))


@dataclass(frozen=True)
class Chunk:
    """Samples `start` to `stop` of a recording."""

    start: int
    stop: int


def cut_chunks(blocks: Iterable[np.ndarray], chunk_length: float, stride: float) -> Iterator[tuple[Chunk, np.ndarray]]:
    """Cuts blocks of samples into chunks that overlap by two strides, as the transformers pipeline does.

    A word that is cut at the edge of one chunk is complete in its neighbour. The last chunk may be shorter.
    """
    length, margin = round(chunk_length * SAMPLING_RATE), round(stride * SAMPLING_RATE)
    start, buffer = 0, np.zeros(0, dtype=np.float32)
    for block in blocks:
        buffer = np.concatenate([buffer, block]) if len(buffer) else block
        # Not `>=`: the chunk that ends the recording has no neighbour behind it, and must not be followed by a rest
        # that lies in its overlap only.
        while len(buffer) > length:
            yield Chunk(start, start + length), buffer[:length]
            start += length - 2 * margin
            buffer = buffer[length - 2 * margin :]
    if len(buffer):
        yield Chunk(start, start + len(buffer)), buffer


def check_chunks(chunk_length: float, stride: float, window: float) -> None:
    """Raises a `ValueError` for chunks longer than the encoder's window, or that would never advance; in seconds."""
    if not 0 < chunk_length <= window:
        raise ValueError(
            f"`chunk_length` is {chunk_length} s, expected more than 0 and at most the {window:g} s that the model's "
            "encoder sees at once."
        )
    if stride < 0 or round(chunk_length * SAMPLING_RATE) <= 2 * round(stride * SAMPLING_RATE):
        raise ValueError(
            f"`stride` is {stride} s at either side of a chunk of {chunk_length} s, expected 0 or more and less than "
            "half of `chunk_length`: the chunks would never advance."
        )


def join_spans(sequences: Sequence[Sequence[int]]) -> list[tuple[int, int, int]]:
    """Spans (chunk, start, stop) of the chunks' text tokens that make up the joined text; empty ones are left out.

    The choice is that of transformers' `_find_longest_common_sequence`; spans instead of tokens let times follow the
    words.
    """
    spans, start = [], 0
    for index in range(1, len(sequences)):
        left, right = np.asarray(sequences[index - 1][start:]), np.asarray(sequences[index])
        left_middle, right_middle = _best_overlap(left, right)
        spans.append((index - 1, start, start + left_middle))
        start = right_middle
    if sequences:
        spans.append((len(sequences) - 1, start, len(sequences[-1])))
    return [span for span in spans if span[1] < span[2]]


def _best_overlap(left: np.ndarray, right: np.ndarray) -> tuple[int, int]:
    """Positions at which to leave the left sequence and to enter the right one."""
    best, middles = 0.0, (len(left), 0)
    # Every alignment of the end of the left chunk with the start of the right one: a shift of n compares n tokens, up
    # to the length of the shorter chunk. The largest share of equal tokens wins, of equal shares the longer overlap.
    for shift in range(1, len(left) + len(right)):
        left_start, left_stop = max(0, len(left) - shift), min(len(left), len(left) + len(right) - shift)
        right_start, right_stop = max(0, shift - len(left)), min(len(right), shift)
        equal = int(np.sum(left[left_start:left_stop] == right[right_start:right_stop]))
        score = equal / shift + shift / 10_000.0
        # A single equal token is no overlap. Each side is cut in the middle of the match, away from either edge.
        if equal > 1 and score > best:
            best, middles = score, ((left_start + left_stop) // 2, (right_start + right_stop) // 2)
    return middles


@dataclass(frozen=True)
class WindowTokens:
    """Generated tokens of one window."""

    sequence: TokenSequence
    timed: list[TimedToken]  # the same tokens with their times, for word timestamps; else empty
    language: str | None = None  # English name, by which tokens are split into words


def transcribe_windows(
    model: WhisperForConditionalGeneration,
    processor: WhisperProcessor,
    recordings: Sequence[np.ndarray],
    settings: GenerationSettings,
    assistant: Assistant | None = None,
    prompt: Sequence[int] = (),
) -> list[WindowTokens]:
    """Generates tokens for one batch of recordings of up to one window, float32 mono at 16 kHz."""
    features = window_features(model, processor, recordings)
    hidden = encode(model, features)  # (batch, frames, d_model), shared by generation, statistics and word times
    sequences = generate_tokens(
        model, features, encoder_hidden_states=hidden, settings=settings, prompt=prompt, assistant=assistant,
        statistics=True,
    )  # fmt: skip
    if settings.return_timestamps != "word":
        return [WindowTokens(sequence, []) for sequence in sequences]
    windows = []
    for states, sequence, samples in zip(hidden, sequences, recordings, strict=True):
        prefix = [*prompt, *decoder_prefix(model, sequence.language, settings.task, True)]
        positions = num_positions(processor, len(samples))
        timed = time_tokens(model, states.unsqueeze(0), prefix, sequence.tokens, positions)
        windows.append(WindowTokens(sequence, timed, prefix_language(model, prefix)))
    return windows


def transcribe_chunked(
    model: WhisperForConditionalGeneration,
    processor: WhisperProcessor,
    audio: object,
    *,
    chunk_length: float | None = None,
    stride: float | None = None,
    assistant: Assistant | None = None,
    prompt: str | None = None,
    settings: GenerationSettings | None = None,
    **keywords: Any,
) -> Transcription:
    """Transcribes a recording of any length in overlapping chunks, several at a time.

    Up to nine times faster than [`transcribe_sequential`] for the same model. A chunk is transcribed without the text
    before it, so that a hallucination ends with its chunk (section 8.4). The text does not depend on `batch_size`.
    Files are decoded while they are transcribed: three hours take the memory of five minutes.

    Silence is transcribed like speech; `no_speech_prob` of the statistics tells a hallucination there.

    Args:
        model (`WhisperForConditionalGeneration`): student or teacher, in eval mode.
        processor (`WhisperProcessor`): of the model.
        audio: path, bytes, float array at 16 kHz, (array, rate), or an iterator over blocks of samples at 16 kHz, as
            [`audio_blocks`] is.
        chunk_length (`float`, *optional*, defaults to [`default_chunk_length`]): seconds, at most the encoder's
            window. 30 is best for Whisper and 15 for Distil-Whisper (Table 23): the default follows the recordings
            that the model was trained on.
        stride (`float`, *optional*, defaults to `chunk_length / 6`): seconds of overlap at either side, as in the
            pipeline.
        assistant (`WhisperForCausalLM` or `WhisperForConditionalGeneration`, *optional*): drafts for the model, see
            [`create_assistant`]; the text does not change.
        prompt (`str`, *optional*): text before every chunk, see [`transcribe`].
        settings ([`GenerationSettings`], *optional*): language, task, beams, lengths; 16 chunks per pass by default,
            as in the paper. `return_timestamps` fills `segments`, `"word"` also `words`: where chunks overlap, each
            word has the times of the chunk that it is taken from.
        keywords: fields of [`GenerationSettings`], which replace those of `settings`.

    Returns:
        `Transcription`: text, segments and statistics over all chunks.

    Raises:
        ValueError: for another model's processor, or if chunk and stride do not fit the model's window.
        AudioError: if the recording cannot be read or is empty; for a file damaged further on, when the transcription
            has come there.

    Example:
        ```python
        >>> transcribe_chunked(model, processor, "talk.mp3", batch_size=8, return_timestamps=True).segments[0]
        ```
    """
    settings = replace(settings or GenerationSettings(), **keywords)
    check_compatible(model, None, processor)
    prompt_ids = initial_prompt(model, processor, prompt)
    length = default_chunk_length(model, processor) if chunk_length is None else chunk_length
    # The pipeline's default overlap: a third of a chunk is transcribed twice, and joined by its words.
    stride = length / 6 if stride is None else stride
    if settings.return_timestamps == "word":
        alignment_heads(model)  # missing or wrong ones fail before the work
    check_chunks(length, stride, window_seconds(processor))
    blocks = audio if isinstance(audio, Iterator) else audio_blocks(audio)
    cut = cut_chunks(blocks, length, stride)
    chunks: list[Chunk] = []
    windows: list[WindowTokens] = []
    while batch := list(islice(cut, settings.batch_size)):
        chunks += [chunk for chunk, _ in batch]
        recordings = [samples for _, samples in batch]
        windows += transcribe_windows(model, processor, recordings, settings, assistant, prompt_ids)
    if not windows:
        raise AudioError("audio: expected blocks of samples, got none.")
    sequences = [window.sequence for window in windows]
    joined, spans = _join(chunks, sequences, processor, timestamp_begin(model), bool(settings.return_timestamps))
    if settings.return_timestamps != "word":
        return joined
    return replace(joined, words=_joined_words(chunks, windows, spans, processor, timestamp_begin(model)))


def _join(
    chunks: Sequence[Chunk],
    sequences: Sequence[TokenSequence],
    processor: WhisperProcessor,
    timestamp_begin: int,
    return_timestamps: bool,
) -> tuple[Transcription, list[tuple[int, int, int]]]:
    """The joined transcription, and the spans of [`join_spans`]; each word has the times of its chunk's stretch."""
    # A model forgets its timestamps, or does not predict any: then the whole chunk is one stretch.
    stretches = [
        timed_tokens(sequence.tokens, timestamp_begin, chunk.start / SAMPLING_RATE, chunk.stop / SAMPLING_RATE)
        for chunk, sequence in zip(chunks, sequences, strict=True)
    ]
    text_tokens = [[token for _, _, tokens in of_chunk for token in tokens] for of_chunk in stretches]
    # Index of the stretch that each text token of a chunk belongs to.
    stretch_of = [[index for index, stretch in enumerate(of_chunk) for _ in stretch[2]] for of_chunk in stretches]
    joined: list[tuple[float, float, list[int]]] = []
    spans = join_spans(text_tokens)
    for chunk, first, stop in spans:
        for index, run in groupby(range(first, stop), key=stretch_of[chunk].__getitem__):
            start, end, _ = stretches[chunk][index]
            tokens = [text_tokens[chunk][position] for position in run]
            # The rest of a stretch that the previous chunk started: the chunks overlap there in time.
            if joined and index == stretch_of[chunk][first] and start < joined[-1][1]:
                start, previous_end, earlier = joined.pop()
                earlier.extend(tokens)  # the same list: without timestamps a whole recording is one stretch
                end, tokens = max(end, previous_end), earlier
            joined.append((start, end, tokens))
    text = plain_text([token for _, _, tokens in joined for token in tokens], processor.tokenizer, timestamp_begin)
    segments = segments_of(joined, processor.tokenizer, timestamp_begin) if return_timestamps else []
    return Transcription(text, segments, window_statistics(sequences, text)), spans


def _joined_words(
    chunks: Sequence[Chunk],
    windows: Sequence[WindowTokens],
    spans: Sequence[tuple[int, int, int]],
    processor: WhisperProcessor,
    timestamp_begin: int,
) -> list[Word]:
    """Words of the joined text. Tokens are joined first, since a word may continue in the next chunk."""
    joined: list[TimedToken] = []
    for index, first, stop in spans:
        offset = chunks[index].start / SAMPLING_RATE
        text_tokens = [one for one in windows[index].timed if one.token < timestamp_begin][first:stop]
        joined += [replace(one, start=one.start + offset, end=one.end + offset) for one in text_tokens]
    language = next((window.language for window in windows if window.language is not None), None)
    return in_order(join_words(joined, processor.tokenizer, timestamp_begin, language))


def window_statistics(sequences: Sequence[TokenSequence], text: str) -> TranscriptionStatistics:
    """Sums up the windows of one recording, weighted by their tokens."""
    weights = [len(sequence.tokens) + (not sequence.truncated) for sequence in sequences]
    log_probs = [sequence.mean_log_prob or 0.0 for sequence in sequences]
    drafts = [sequence.drafts for sequence in sequences if sequence.drafts is not None]
    return TranscriptionStatistics(
        num_tokens=sum(len(sequence.tokens) for sequence in sequences),
        num_windows=len(sequences),
        truncated=any(sequence.truncated for sequence in sequences),
        compression_ratio=compression_ratio(text),
        mean_log_prob=sum(w * p for w, p in zip(weights, log_probs, strict=True)) / sum(weights),
        no_speech_prob=min(sequence.no_speech_prob or 0.0 for sequence in sequences),
        drafts=sum(drafts, start=DraftCounts()) if drafts else None,
    )
