"""Long recordings in overlapping chunks that are transcribed in parallel and joined on their words (paper, section 5).

Knows where to cut and how to join; each chunk is transcribed by `generation.py`. Of the audio it holds one batch of
chunks at a time.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import groupby, islice
from typing import Literal

import numpy as np
from transformers import WhisperForConditionalGeneration, WhisperProcessor

from hf_distil_whisper.data.audio import (
    SAMPLING_RATE,
    AudioError,
    audio_blocks,
)
from hf_distil_whisper.inference.decoder import Assistant
from hf_distil_whisper.inference.encoder import (
    encode,
    window_features,
    window_seconds,
)
from hf_distil_whisper.inference.generation import (
    TokenSequence,
    generate_tokens,
)
from hf_distil_whisper.inference.output import (
    Transcription,
    TranscriptionStatistics,
    Word,
    compression_ratio,
    plain_text,
    segments_of,
    timed_tokens,
)
from hf_distil_whisper.inference.prompt import timestamp_begin
from hf_distil_whisper.inference.speculative import DraftCounts
from hf_distil_whisper.inference.word_timestamps import (
    TimedToken,
    alignment_heads,
    in_order,
    join_words,
    time_windows,
)

CHUNK_LENGTH_ENTRY = "chunk_length_s"
"""Entry of a student's generation config, in seconds; named after the argument of the speech recognition pipeline,
which does not read it."""

LONG_CHUNK, SHORT_CHUNK = 30.0, 15.0
"""Seconds that Table 23 found best for Whisper, trained on 30 s, and Distil-Whisper, trained on 7.1 s in the mean."""


def chunk_length_after(mean_duration: float) -> float:
    """The chunk length for a model that was trained on recordings of this mean duration.

    The paper (appendix D.4, Table 23) has two points: a model trained on windows of 30 s is best with chunks of 30 s,
    one trained on utterances of 7.1 s with chunks of 15 s. A chunk of 15 s is no longer than most of what the model
    knows once the mean is above 15 s, so that is where the rule changes.

    Args:
        mean_duration (`float`): seconds, over the rows of the training.

    Returns:
        `float`: 15.0 up to a mean of 15 s (corpora of single utterances), else 30.0 (utterances packed to windows).
    """
    return SHORT_CHUNK if mean_duration <= SHORT_CHUNK else LONG_CHUNK


def default_chunk_length(model: WhisperForConditionalGeneration, processor: WhisperProcessor) -> float:
    """The chunk length of a model where none is asked for.

    Args:
        model (`WhisperForConditionalGeneration`): its generation config says `chunk_length_s`, where a training with
            this library has written it.
        processor (`WhisperProcessor`): of the model; no chunk is longer than its window.

    Returns:
        `float`: seconds; 30.0 for a model that does not say, as every Whisper of OpenAI.

    Raises:
        ValueError: if the entry is no length.
    """
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
    """Cuts a recording into chunks that overlap by two strides, as the transformers pipeline does.

    Args:
        blocks (`Iterable[np.ndarray]`): the recording piece by piece, as [`audio_blocks`] gives it; read on as chunks
            are asked for.
        chunk_length (`float`): seconds.
        stride (`float`): seconds at either side of a chunk that its neighbour covers too, so that a word cut in one
            chunk is whole in the other.

    Yields:
        `tuple[Chunk, np.ndarray]`: place and samples, in order; the last one reaches the end. Nothing for a recording
            without a sample.
    """
    length, margin = round(chunk_length * SAMPLING_RATE), round(stride * SAMPLING_RATE)
    start, held = 0, np.zeros(0, dtype=np.float32)
    for block in blocks:
        held = np.concatenate([held, block]) if len(held) else block
        while len(held) > length:
            yield Chunk(start, start + length), held[:length]
            start += length - 2 * margin
            held = held[length - 2 * margin :]
    if len(held):
        yield Chunk(start, start + len(held)), held


def check_chunks(chunk_length: float, stride: float, window: float) -> None:
    """Raises a `ValueError` for chunks that a model cannot hear whole, or that would never move on.

    Args:
        chunk_length (`float`): seconds.
        stride (`float`): seconds.
        window (`float`): seconds that the encoder sees.
    """
    if not 0 < chunk_length <= window:
        raise ValueError(
            f"`chunk_length` is {chunk_length} s, expected more than 0 and at most the {window:g} s that the model's "
            "encoder sees at once."
        )
    if stride < 0 or round(chunk_length * SAMPLING_RATE) <= 2 * round(stride * SAMPLING_RATE):
        raise ValueError(
            f"`stride` is {stride} s at either side of a chunk of {chunk_length} s, expected 0 or more and less than "
            "half of `chunk_length`: the chunks would never move on."
        )


def join_spans(sequences: Sequence[Sequence[int]]) -> list[tuple[int, int, int]]:
    """Finds which part of each chunk's tokens to keep, by the longest common sequence of neighbours.

    Every alignment of the end of one chunk with the start of the next is tried; the best has the largest share of
    equal tokens, where longer ones win ties and fewer than two equal tokens count for nothing. The left chunk is
    trusted up to the middle of the match, the right one from there on. The choice is that of transformers'
    `_find_longest_common_sequence`; spans instead of tokens let times follow the words.

    Args:
        sequences (`Sequence[Sequence[int]]`): text tokens per chunk, in order.

    Returns:
        `list[tuple[int, int, int]]`: (chunk, start, stop), in order; empty spans are left out.
    """
    spans = []
    begin = 0
    for index in range(1, len(sequences)):
        left, right = np.asarray(sequences[index - 1][begin:]), np.asarray(sequences[index])
        left_middle, right_middle = _best_overlap(left, right)
        spans.append((index - 1, begin, begin + left_middle))
        begin = right_middle
    if sequences:
        spans.append((len(sequences) - 1, begin, len(sequences[-1])))
    return [span for span in spans if span[1] < span[2]]


def _best_overlap(left: np.ndarray, right: np.ndarray) -> tuple[int, int]:
    """Where to leave the left sequence and to enter the right one."""
    best, middles = 0.0, (len(left), 0)
    for shift in range(1, len(left) + len(right)):
        left_start, left_stop = max(0, len(left) - shift), min(len(left), len(left) + len(right) - shift)
        right_start, right_stop = max(0, shift - len(left)), min(len(right), shift)
        equal = int(np.sum(left[left_start:left_stop] == right[right_start:right_stop]))
        score = equal / shift + shift / 10_000.0
        if equal > 1 and score > best:
            best, middles = score, ((left_start + left_stop) // 2, (right_start + right_stop) // 2)
    return middles


def transcribe_chunked(
    model: WhisperForConditionalGeneration,
    processor: WhisperProcessor,
    audio: object,
    *,
    chunk_length: float | None = None,
    stride: float | None = None,
    assistant: Assistant | None = None,
    batch_size: int = 16,
    return_timestamps: bool | Literal["word"] = False,
    language: str | None = None,
    task: str = "transcribe",
    num_beams: int = 1,
    max_new_tokens: int | None = None,
) -> Transcription:
    """Transcribes a recording of any length in overlapping chunks, several at a time.

    Up to nine times faster than [`transcribe_sequential`] for the same model, and blind to what came before a chunk,
    which also keeps it from carrying a hallucination on (section 8.4). The text does not depend on `batch_size`. Files
    are decoded as they are transcribed, so that three hours take the memory of five minutes.

    Silence goes through the model like speech: what it writes there is its hallucination, told by `no_speech_prob`. A
    recording of a few milliseconds is one chunk; one without a sample is an error.

    Args:
        model (`WhisperForConditionalGeneration`): student or teacher, in eval mode.
        processor (`WhisperProcessor`): of the model.
        audio: path, bytes, float array at 16 kHz, (array, rate), or an iterator over blocks of samples at 16 kHz, as
            [`audio_blocks`] is.
        chunk_length (`float`, *optional*, defaults to [`default_chunk_length`]): seconds, at most the encoder's
            window. The paper found 30 best for Whisper and 15 for Distil-Whisper (Table 23): the default follows the
            recordings that the model was trained on.
        stride (`float`, *optional*, defaults to `chunk_length / 6`): seconds of overlap at either side, as in the
            pipeline.
        assistant (`WhisperForCausalLM` or `WhisperForConditionalGeneration`, *optional*): drafts for the model, see
            [`create_assistant`]; the text stays the model's own.
        batch_size (`int`, *optional*, defaults to 16): chunks per pass, as in the paper.
        return_timestamps (`bool` or `"word"`, *optional*, defaults to `False`): also predict times and fill
            `segments`; `"word"` fills `words` too: where chunks overlap, each word has the times of the chunk that it
            is taken from.
        language (`str`, *optional*): None: English, or detected chunk by chunk by a multilingual model.
        task (`str`, *optional*, defaults to `"transcribe"`): or "translate".
        num_beams (`int`, *optional*, defaults to 1): greedy, which the paper found enough here.
        max_new_tokens (`int`, *optional*): per chunk; by default as many as the decoder has room for.

    Returns:
        `Transcription`: text, segments and statistics over all chunks.

    Raises:
        ValueError: if chunk and stride do not fit the model's window.
        AudioError: if the recording cannot be read or is empty; of a file that is damaged further on, when its
            transcription has come there.
    """
    if batch_size < 1:
        raise ValueError(f"`batch_size` is {batch_size}, expected at least 1.")
    length = default_chunk_length(model, processor) if chunk_length is None else chunk_length
    overlap = length / 6 if stride is None else stride
    if return_timestamps == "word":
        alignment_heads(model)  # none, or wrong ones, fail before the work
    check_chunks(length, overlap, window_seconds(processor))
    blocks = audio if isinstance(audio, Iterator) else audio_blocks(audio)
    cut = cut_chunks(blocks, length, overlap)
    chunks: list[Chunk] = []
    found: list[TokenSequence] = []
    timed: list[tuple[list[TimedToken], str | None]] = []
    while batch := list(islice(cut, batch_size)):
        chunks += [chunk for chunk, _ in batch]
        features = window_features(model, processor, [samples for _, samples in batch])
        states = encode(model, features)
        found += generate_tokens(
            model,
            features,
            encoder_hidden_states=states,
            num_beams=num_beams,
            max_new_tokens=max_new_tokens,
            return_timestamps=bool(return_timestamps),
            language=language,
            task=task,
            assistant=assistant,
            statistics=True,
        )
        if return_timestamps == "word":
            tokens = [sequence.tokens for sequence in found[-len(batch) :]]
            samples = [len(samples) for _, samples in batch]
            timed += time_windows(model, processor, states, tokens, samples, language=language, task=task)
    if not found:
        raise AudioError("audio: expected blocks of samples, got none.")
    joined, spans = _join(chunks, found, processor, timestamp_begin(model), bool(return_timestamps))
    if return_timestamps != "word":
        return joined
    return replace(joined, words=_joined_words(chunks, timed, spans, processor, timestamp_begin(model)))


def _join(
    chunks: Sequence[Chunk],
    found: Sequence[TokenSequence],
    processor: WhisperProcessor,
    begin: int,
    return_timestamps: bool,
) -> tuple[Transcription, list[tuple[int, int, int]]]:
    """Joins the chunks' words; each word brings the times of the stretch that it was spoken in.

    The spans of [`join_spans`] come with the transcription.
    """
    parts = [
        timed_tokens(sequence.tokens, begin, chunk.start / SAMPLING_RATE, chunk.stop / SAMPLING_RATE)
        for chunk, sequence in zip(chunks, found, strict=True)
    ]
    words = [[token for _, _, tokens in of_chunk for token in tokens] for of_chunk in parts]
    stretch_of = [[number for number, part in enumerate(of_chunk) for _ in part[2]] for of_chunk in parts]
    stretches: list[tuple[float, float, list[int]]] = []
    spans = join_spans(words)
    for index, start, stop in spans:
        for number, run in groupby(range(start, stop), key=stretch_of[index].__getitem__):
            begins, ends, _ = parts[index][number]
            tokens = [words[index][position] for position in run]
            # The rest of a stretch that the chunk before had begun: neighbours overlap there in time.
            if stretches and number == stretch_of[index][start] and begins < stretches[-1][1]:
                begins, before, earlier = stretches.pop()
                earlier.extend(tokens)  # in place: without times, all of a recording is one stretch
                ends, tokens = max(ends, before), earlier
            stretches.append((begins, ends, tokens))
    text = plain_text([token for _, _, tokens in stretches for token in tokens], processor.tokenizer, begin)
    segments = segments_of(stretches, processor.tokenizer, begin) if return_timestamps else []
    return Transcription(text, segments, chunk_statistics(found, text)), spans


def _joined_words(
    chunks: Sequence[Chunk],
    timed: Sequence[tuple[list[TimedToken], str | None]],
    spans: Sequence[tuple[int, int, int]],
    processor: WhisperProcessor,
    begin: int,
) -> list[Word]:
    """Words of the joined text: their tokens are joined first, since a word may go on in the next chunk."""
    kept: list[TimedToken] = []
    for index, start, stop in spans:
        shift = chunks[index].start / SAMPLING_RATE
        spoken = [one for one in timed[index][0] if one.token < begin][start:stop]
        kept += [replace(one, start=one.start + shift, end=one.end + shift) for one in spoken]
    language = next((spoken for _, spoken in timed if spoken is not None), None)
    return in_order(join_words(kept, processor.tokenizer, begin, language))


def chunk_statistics(found: Sequence[TokenSequence], text: str) -> TranscriptionStatistics:
    """Sums up the windows of one recording, weighted by their tokens.

    Args:
        found (`Sequence[TokenSequence]`): per window, with statistics.
        text (`str`): the joined text.
    """
    weights = [len(sequence.tokens) + (not sequence.truncated) for sequence in found]
    log_probs = [sequence.mean_log_prob or 0.0 for sequence in found]
    drafts = [sequence.drafts for sequence in found if sequence.drafts is not None]
    return TranscriptionStatistics(
        num_tokens=sum(len(sequence.tokens) for sequence in found),
        num_windows=len(found),
        truncated=any(sequence.truncated for sequence in found),
        compression_ratio=compression_ratio(text),
        mean_log_prob=sum(w * p for w, p in zip(weights, log_probs, strict=True)) / sum(weights),
        no_speech_prob=min(sequence.no_speech_prob or 0.0 for sequence in found),
        drafts=sum(drafts, start=DraftCounts()) if drafts else None,
    )
