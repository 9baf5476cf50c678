"""When each word was said: the decoder's cross-attention, made monotone by dynamic time warping.

The method is that of OpenAI's Whisper and of transformers: the attention weights of a few heads, the alignment heads
of the generation config, are normalised over the tokens, smoothed by a median filter, averaged, and the cheapest
monotone path through them gives each token its time. Unlike `generate(return_token_timestamps=True)` it leaves the
model's attention as it is, and needs the weights of no other head. Which heads to take: `alignment_heads.py`.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import groupby

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import WhisperForConditionalGeneration, WhisperProcessor, WhisperTokenizer
from transformers.models.whisper.tokenization_whisper import LANGUAGES

# Private, but which tokens make up a word has to be what the pipeline says, punctuation and scripts without spaces
# included; `tests/inference/test_word_timestamps.py` holds both side by side.
from transformers.models.whisper.tokenization_whisper import _combine_tokens_into_words as combine_tokens_into_words

from hf_distil_whisper.inference.output import (
    TIME_PRECISION,
    Word,
)
from hf_distil_whisper.inference.prompt import (
    languages_of,
    prefix_tokens,
    resolve_languages,
)

Heads = Sequence[tuple[int, int]]


@dataclass(frozen=True)
class TimedToken:
    """A token with its times.

    Args:
        token (`int`): id; timestamp tokens included.
        start (`float`): seconds from the start of the window.
        end (`float`): seconds from the start of the window.
        probability (`float`): under the model's own distribution, before any token is suppressed.
    """

    token: int
    start: float
    end: float
    probability: float


def alignment_heads(model: WhisperForConditionalGeneration) -> list[tuple[int, int]]:
    """The alignment heads of a model's generation config.

    Args:
        model (`WhisperForConditionalGeneration`): student or teacher.

    Returns:
        `list[tuple[int, int]]`: (decoder layer, head), both counted from 0.

    Raises:
        ValueError: if there are none, or none such in the decoder.
    """
    heads = model.generation_config.to_dict().get("alignment_heads") or []
    if not heads:
        raise ValueError(
            "The model's generation_config has no `alignment_heads`, which word timestamps are read from. Find and "
            "store them with `hf-distil-whisper align-heads`, or set known ones with set_alignment_heads."
        )
    check_heads(model, heads)
    return [(layer, head) for layer, head in heads]


def set_alignment_heads(model: WhisperForConditionalGeneration, heads: Sequence[Sequence[int]]) -> None:
    """Stores alignment heads in a model's generation config, where transformers and converters look for them.

    Args:
        model (`WhisperForConditionalGeneration`): its generation config is changed; [`save_checkpoint`] keeps them.
        heads (`Sequence[Sequence[int]]`): (decoder layer, head), both counted from 0.

    Raises:
        ValueError: for none, or for heads that the decoder does not have.
    """
    check_heads(model, heads)
    model.generation_config.alignment_heads = [[int(layer), int(head)] for layer, head in heads]


def check_heads(model: WhisperForConditionalGeneration, heads: Sequence[Sequence[int]]) -> None:
    """Raises a `ValueError` unless all heads are cross-attention heads of the model's decoder, and there is one.

    Args:
        model (`WhisperForConditionalGeneration`): student or teacher.
        heads (`Sequence[Sequence[int]]`): (decoder layer, head), both counted from 0.
    """
    layers, width = model.config.decoder_layers, model.config.decoder_attention_heads
    if not heads:
        raise ValueError("`alignment_heads`: expected at least one pair of decoder layer and head, got none.")
    for pair in heads:
        if len(pair) != 2 or not (0 <= pair[0] < layers and 0 <= pair[1] < width):
            raise ValueError(
                f"`alignment_heads` holds {list(pair)}, expected [layer, head] with layers 0 to {layers - 1} and "
                f"heads 0 to {width - 1} of the model's decoder: they belong to another model. Find the model's own "
                "with `hf-distil-whisper align-heads`."
            )


def num_positions(processor: WhisperProcessor, num_samples: int) -> int:
    """Encoder positions of 20 ms that hear a recording, at least 1; those behind it hear padding only.

    Args:
        processor (`WhisperProcessor`): of the model.
        num_samples (`int`): at 16 kHz.
    """
    extractor = processor.feature_extractor
    frames = -(-num_samples // extractor.hop_length)
    return min(max(frames // 2, 1), extractor.nb_max_frames // 2)


def time_tokens(
    model: WhisperForConditionalGeneration,
    encoder_states: Tensor,
    prefix: Sequence[int],
    tokens: Sequence[int],
    positions: int,
    *,
    heads: Heads | None = None,
) -> list[TimedToken]:
    """Times of a finished sequence, by one pass of the decoder over it.

    As in OpenAI's Whisper, what the decoder looks at when it reads a token is where the next token is said. So the
    first token always starts at 0, and a token ends where the next one starts.

    Args:
        model (`WhisperForConditionalGeneration`): the model that wrote the tokens, with alignment heads.
        encoder_states (`Tensor`): (1, frames, width) of the window.
        prefix (`Sequence[int]`): the decoder's first tokens; a prompt may stand before `<|startoftranscript|>`.
        tokens (`Sequence[int]`): behind the prefix, without `<|endoftext|>`.
        positions (`int`): of the recording, from [`num_positions`]; no time goes beyond it.
        heads (`Sequence[tuple[int, int]]`, *optional*): others than those of the generation config.

    Returns:
        `list[TimedToken]`: one per token; empty where none was written.

    Raises:
        ValueError: if the model has no alignment heads.
    """
    chosen = alignment_heads(model) if heads is None else heads
    if not tokens:
        return []
    weights, probabilities = forced_attention(model, encoder_states, prefix, tokens, chosen)
    maps = alignment_maps(weights[..., :positions], model.config.median_filter_width)
    ends = TIME_PRECISION * first_positions(maps.mean(axis=0, keepdims=True))[0]
    starts = [0.0, *ends[:-1]]
    return [
        TimedToken(int(token), float(start), float(end), probability)
        for token, start, end, probability in zip(tokens, starts, ends, probabilities, strict=True)
    ]


@torch.inference_mode()
def forced_attention(
    model: WhisperForConditionalGeneration,
    encoder_states: Tensor,
    prefix: Sequence[int],
    tokens: Sequence[int],
    heads: Heads,
) -> tuple[Tensor, list[float]]:
    """Where some heads look while the decoder reads known tokens.

    The weights are worked out from the heads' queries and keys, whatever implementation of attention the model runs.

    Args:
        model (`WhisperForConditionalGeneration`): in eval mode.
        encoder_states (`Tensor`): (1, frames, width) of the window.
        prefix (`Sequence[int]`): the decoder's first tokens.
        tokens (`Sequence[int]`): behind the prefix, at least one.
        heads (`Sequence[tuple[int, int]]`): (decoder layer, head).

    Returns:
        `tuple[Tensor, list[float]]`: weights (heads, tokens, frames) in float32, each row a distribution; and the
        probability of each token.
    """
    inputs = torch.tensor([[*prefix, *tokens]], device=encoder_states.device)
    with _projections(model, {layer for layer, _ in heads}) as seen:
        hidden = model.get_decoder()(
            input_ids=inputs, encoder_hidden_states=encoder_states, use_cache=False
        ).last_hidden_state[0]
    width = model.config.d_model // model.config.decoder_attention_heads
    rows = []
    for layer, head in heads:
        part = slice(head * width, (head + 1) * width)
        query, key = (seen[layer, name][0, :, part].float() for name in ("q_proj", "k_proj"))
        rows.append((query[len(prefix) :] @ key.T * width**-0.5).softmax(dim=-1))
    before = hidden[len(prefix) - 1 : -1]
    targets = inputs[0, len(prefix) :].unsqueeze(1)
    probabilities = model.proj_out(before).float().softmax(dim=-1).gather(1, targets).squeeze(1)
    return torch.stack(rows), probabilities.tolist()


@contextmanager
def _projections(model: WhisperForConditionalGeneration, layers: set[int]) -> Iterator[dict[tuple[int, str], Tensor]]:
    """Collects queries and keys of the cross-attention of some layers, as long as it is entered."""
    seen: dict[tuple[int, str], Tensor] = {}

    def keep(place: tuple[int, str]) -> torch.utils.hooks.RemovableHandle:
        module = model.get_decoder().layers[place[0]].encoder_attn.get_submodule(place[1])
        return module.register_forward_hook(lambda _, inputs, output: seen.__setitem__(place, output))

    handles = [keep((layer, name)) for layer in layers for name in ("q_proj", "k_proj")]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


def alignment_maps(weights: Tensor, filter_width: int) -> np.ndarray:
    """Attention made comparable between frames and heads: z-scores over the tokens, smoothed over time.

    Args:
        weights (`Tensor`): (heads, tokens, frames).
        filter_width (`int`): of the median filter, odd; 7 in all published models (`median_filter_width`).

    Returns:
        `np.ndarray`: (heads, tokens, frames) in float64.
    """
    deviation = weights.std(dim=-2, keepdim=True, unbiased=False)
    scores = (weights - weights.mean(dim=-2, keepdim=True)) / deviation
    scores = scores.nan_to_num(0.0, 0.0, 0.0)  # a frame that all tokens look at alike says nothing: a single token's
    half = filter_width // 2
    if scores.shape[-1] > half:
        padded = F.pad(scores, (half, half), mode="reflect")
        scores = padded.unfold(-1, filter_width, 1).sort(dim=-1).values[..., half]
    return scores.cpu().double().numpy()


def first_positions(maps: np.ndarray) -> np.ndarray:
    """The position at which the best monotone path reaches each token, by dynamic time warping.

    The path goes from the first token and frame to the last ones, by a token, a frame or both at a time, and adds up
    the least of `-maps`. Costs of an anti-diagonal depend on the two before it only, so that one step works out all
    of it, for all maps. Ties go the way of transformers' `_dynamic_time_warping`.

    Args:
        maps (`np.ndarray`): (maps, tokens, frames).

    Returns:
        `np.ndarray`: (maps, tokens), integers; the first of each row is 0.
    """
    count, tokens, frames = maps.shape
    steps = np.zeros((count, tokens + 1, frames + 1), dtype=np.int8)
    infinite = np.full((count, tokens + 1), np.inf, dtype=np.float32)
    older, old = infinite.copy(), infinite.copy()  # costs of the two diagonals before, by token
    older[:, 0] = 0.0
    for diagonal in range(2, tokens + frames + 1):
        row = np.arange(max(1, diagonal - frames), min(tokens, diagonal - 1) + 1)
        column = diagonal - row
        both, token, frame = older[:, row - 1], old[:, row - 1], old[:, row]
        step = np.where((both < token) & (both < frame), 0, np.where((token < both) & (token < frame), 1, 2))
        steps[:, row, column] = step
        least = np.choose(step, [both, token, frame])
        new = infinite.copy()
        new[:, row] = least - maps[:, row - 1, column - 1]
        older, old = old, new
    found = np.zeros((count, tokens), dtype=np.int64)
    for number in range(count):
        row, column = tokens, frames
        while row > 1:
            step = steps[number, row, column]
            if step != 2:
                found[number, row - 1] = column - 1
                row -= 1
            column -= step != 1
    return found


def time_windows(
    model: WhisperForConditionalGeneration,
    processor: WhisperProcessor,
    encoder_states: Tensor,
    tokens: Sequence[Sequence[int]],
    num_samples: Sequence[int],
    *,
    language: str | None = None,
    task: str = "transcribe",
) -> list[tuple[list[TimedToken], str | None]]:
    """Times of the tokens of a batch of windows that [`generate_tokens`] wrote with timestamps.

    Args:
        model (`WhisperForConditionalGeneration`): the model that wrote the tokens, with alignment heads.
        processor (`WhisperProcessor`): of the model.
        encoder_states (`Tensor`): (batch, frames, width).
        tokens (`Sequence[Sequence[int]]`): of each window.
        num_samples (`Sequence[int]`): of each window's recording, at 16 kHz.
        language (`str`, *optional*): as given to [`generate_tokens`].
        task (`str`, *optional*, defaults to `"transcribe"`): the same.

    Returns:
        `list[tuple[list[TimedToken], str | None]]`: per window, with the language that [`join_words`] takes.
    """
    codes = resolve_languages(model, language, task, len(tokens))
    prefixes = prefix_tokens(model, encoder_states, codes, task, True).tolist()
    return [
        (
            time_tokens(model, states.unsqueeze(0), prefix, own, num_positions(processor, samples)),
            prefix_language(model, prefix),
        )
        for states, prefix, own, samples in zip(encoder_states, prefixes, tokens, num_samples, strict=True)
    ]


def prefix_language(model: WhisperForConditionalGeneration, prefix: Sequence[int]) -> str | None:
    """English name of the language that a prefix names, by which words are told apart; None where it names none."""
    (code,) = languages_of(model, torch.tensor([list(prefix)]))
    return None if code is None else LANGUAGES[code]


def join_words(
    timed: Sequence[TimedToken], tokenizer: WhisperTokenizer, begin: int, language: str | None, offset: float = 0.0
) -> list[Word]:
    """Words out of tokens: split where transformers' pipeline splits, punctuation with the word it stands at.

    Args:
        timed (`Sequence[TimedToken]`): in order; no word goes across a timestamp token.
        tokenizer (`WhisperTokenizer`): of the model.
        begin (`int`): id of `<|0.00|>`.
        language (`str`, *optional*): English name; Chinese, Japanese, Thai, Lao, Burmese and Cantonese are split into
            characters.
        offset (`float`, *optional*, defaults to 0.0): seconds before the first token's window.
    """
    words = []
    for text, places in word_places([one.token for one in timed], tokenizer, begin, language):
        start, end = timed[places[0]].start, timed[places[-1]].end
        probability = sum(timed[place].probability for place in places) / len(places)
        words.append(Word(round(offset + start, 2), round(offset + end, 2), text, probability))
    return words


def word_places(
    tokens: Sequence[int], tokenizer: WhisperTokenizer, begin: int, language: str | None
) -> list[tuple[str, list[int]]]:
    """The words of tokens, each with the places of its tokens; see [`join_words`]."""
    special = set(tokenizer.all_special_ids)
    words = []
    for is_text, stretch in groupby(range(len(tokens)), key=lambda place: tokens[place] < begin):
        run = [place for place in stretch if tokens[place] not in special]
        if is_text and run:
            texts, _, parts = combine_tokens_into_words(tokenizer, [tokens[place] for place in run], language)
            words += [
                (text.strip(), [run[index] for index in part])
                for text, part in zip(texts, parts, strict=True)
                if text.strip()
            ]
    return words


def in_order(words: Sequence[Word]) -> list[Word]:
    """The same words, none of which starts before the one before it ends: they come from windows that overlap."""
    found: list[Word] = []
    for word in words:
        earliest = found[-1].end if found else 0.0
        found.append(replace(word, start=max(word.start, earliest), end=max(word.end, earliest)))
    return found
