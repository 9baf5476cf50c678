"""`generate_tokens`: tokens for a batch of windows of up to 30 s, by greedy, beam or speculative search."""

import copy
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor
from transformers import GenerationConfig, LogitsProcessorList, WhisperForConditionalGeneration
from transformers.generation import GenerationMixin
from transformers.modeling_outputs import BaseModelOutput

from hf_distil_whisper.inference.decoder import Assistant, TimestampRules, WhisperLogitsRules, greedy_decode
from hf_distil_whisper.inference.encoder import EncoderCache, encode, encode_cached
from hf_distil_whisper.inference.prompt import (
    decoder_prefix,
    detect_languages,
    generation_entry,
    max_generated_tokens,
    resolve_languages,
    timestamp_begin,
    unused_tokens,
    window_languages,
)
from hf_distil_whisper.inference.speculative import DraftCounts, speculative_decode


@dataclass(frozen=True)
class GenerationSettings:
    """How transcripts are generated, in all functions that generate some.

    Functions that take an instance also take its fields as keywords, which replace those of the instance.

    Args:
        language (`str`, *optional*): code ("de"), name ("german") or token ("<|de|>"). None: English for an
            English-only model, else detected in every window.
        task (`str`, *optional*, defaults to `"transcribe"`): or "translate" (into English).
        num_beams (`int`, *optional*, defaults to 1): beams of the search; 1 is greedy, as the paper labels and
            evaluates (section 9.1).
        max_new_tokens (`int`, *optional*): tokens per window at most; by default as many as the decoder has positions
            for, see [`max_generated_tokens`].
        min_new_tokens (`int`, *optional*): tokens per window at least; equal to `max_new_tokens`, the work of every
            window is the same, for latency measurements.
        return_timestamps (`bool` or `"word"`, *optional*, defaults to `False`): predict timestamp tokens; "word": also
            times of words, where a function offers them.
        batch_size (`int`, *optional*, defaults to 16): windows per forward pass at most.
        token_budget (`int`, *optional*): expected tokens per forward pass at most, so that short recordings come in
            larger batches; see [`batches_by_length`].
        draft_length (`int`, *optional*): tokens that an assistant drafts at a time; by default chosen by how many of
            its tokens are accepted.

    Raises:
        ValueError: for a number below 1.

    Example:
        ```python
        >>> settings = GenerationSettings(language="de", num_beams=5)
        >>> transcribe(model, processor, "rede.wav", settings=settings, return_timestamps=True)
        ```
    """

    language: str | None = None
    task: str = "transcribe"
    num_beams: int = 1
    max_new_tokens: int | None = None
    min_new_tokens: int | None = None
    return_timestamps: bool | Literal["word"] = False
    batch_size: int = 16
    token_budget: int | None = None
    draft_length: int | None = None

    def __post_init__(self) -> None:
        for name in ("num_beams", "batch_size", "token_budget", "draft_length"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"`{name}` is {value}, expected at least 1.")


@dataclass(frozen=True)
class TokenSequence:
    """The tokens generated for one window."""

    tokens: list[int]  # without prefix and <|endoftext|>; with timestamp tokens if they were requested
    truncated: bool  # `max_new_tokens` was reached before <|endoftext|>: the transcript stops mid-sentence
    mean_log_prob: float | None = None  # as `no_speech_prob` from `score_tokens`
    no_speech_prob: float | None = None
    language: str | None = None  # code that the window was decoded in; None for English-only models
    language_prob: float | None = None  # of a detected language
    drafts: DraftCounts | None = None  # with an assistant


@torch.inference_mode()
def generate_tokens(
    model: WhisperForConditionalGeneration,
    input_features: Tensor | None = None,
    *,
    encoder_hidden_states: Tensor | None = None,
    settings: GenerationSettings | None = None,
    languages: Sequence[str | None] | None = None,
    prompt: Sequence[int] = (),
    assistant: Assistant | None = None,
    statistics: bool = False,
    **keywords: Any,
) -> list[TokenSequence]:
    """Generates tokens for a batch of windows, each of which passes the encoder once.

    Unlike `model.generate`, it never starts a second window: that loop exceeds its length on models that are not
    trained yet, and may never end. Timestamp tokens are suppressed unless they are requested. The model and its
    generation config are not modified.

    Takes log-mel features (batch, mel bins, frames), padded to the window, or `encoder_hidden_states` (batch, frames,
    d_model) in their stead: only an assistant with its own encoder needs both. `languages` has one for each window, in
    place of `settings.language`; `prompt` has the tokens of [`initial_prompt`], which precede the prefix; `statistics`
    also fills `mean_log_prob` and `no_speech_prob`; `keywords` are fields of [`GenerationSettings`].

    Raises:
        ValueError: for lengths beyond the decoder's positions, unknown languages, an assistant with beams, or an
            assistant with its own encoder and no features.
    """
    settings = replace(settings or GenerationSettings(), **keywords)
    windows = input_features if encoder_hidden_states is None else encoder_hidden_states
    if windows is None:
        raise ValueError("generate_tokens: expected `input_features` or `encoder_hidden_states`, got neither.")
    if assistant is not None and settings.num_beams > 1:
        raise ValueError(
            f"`num_beams` is {settings.num_beams}, but an assistant drafts for greedy decoding: pass num_beams=1, or "
            "leave out `assistant`."
        )
    return_timestamps = bool(settings.return_timestamps)
    allowed = max_generated_tokens(model, return_timestamps, len(prompt))
    max_new_tokens = allowed if settings.max_new_tokens is None else settings.max_new_tokens
    if not 1 <= max_new_tokens <= allowed:
        raise ValueError(
            f"`max_new_tokens` is {max_new_tokens}, expected 1 to {allowed}: the decoder's positions and the "
            "generation config's `max_length` leave no more behind prompt and prefix."
        )
    codes = resolve_languages(model, languages or settings.language, settings.task, len(windows))
    if encoder_hidden_states is None:
        encoder_hidden_states = encode(model, windows)  # (batch, frames, d_model)
    decoded_in = window_languages(model, codes, partial(detect_languages, model, encoder_hidden_states))
    rows = [[*prompt, *decoder_prefix(model, one.code, settings.task, return_timestamps)] for one in decoded_in]
    prefix = torch.tensor(rows, device=encoder_hidden_states.device)  # (batch, prefix)
    rules = logits_rules(model, prefix.shape[1], return_timestamps)
    eos_token_id = generation_entry(model, "eos_token_id")
    min_new_tokens = settings.min_new_tokens or 0
    limits = {"eos_token_id": eos_token_id, "max_new_tokens": max_new_tokens, "min_new_tokens": min_new_tokens}
    drafts: list[DraftCounts | None] = [None] * len(windows)
    if assistant is not None:
        sequences, drafts[:] = speculative_decode(
            model, assistant, encoder_hidden_states, prefix, rules, input_features=input_features,
            draft_length=settings.draft_length, **limits,
        )  # fmt: skip
    elif settings.num_beams == 1:
        sequences = greedy_decode(model, encoder_hidden_states, prefix, rules, **limits)
    else:
        # GenerationMixin.generate is the search over one window that Whisper's own `generate` wraps into its loop.
        # Its inputs are encoder outputs, of which it needs a mask (batch, frames) to expand them to the beams.
        sequences = GenerationMixin.generate(
            model,
            encoder_outputs=BaseModelOutput(last_hidden_state=encoder_hidden_states),
            attention_mask=prefix.new_ones(encoder_hidden_states.shape[:2]),
            decoder_input_ids=prefix,
            generation_config=_beam_search_config(model, settings, prefix.shape[1] + max_new_tokens),
            logits_processor=LogitsProcessorList([rules]),
        )
    ended = [strip_end(row, eos_token_id) for row in sequences[:, prefix.shape[1] :].tolist()]
    generated = [
        TokenSequence(*row, language=language.code, language_prob=language.probability, drafts=counts)
        for row, language, counts in zip(ended, decoded_in, drafts, strict=True)
    ]
    if not statistics:
        return generated
    scores = score_tokens(model, encoder_hidden_states, prefix, [row for row, _ in ended], [cut for _, cut in ended])
    return [
        replace(sequence, mean_log_prob=mean_log_prob, no_speech_prob=no_speech_prob)
        for sequence, (mean_log_prob, no_speech_prob) in zip(generated, scores, strict=True)
    ]


def generate_tokens_cached(
    model: WhisperForConditionalGeneration, input_features: Tensor, cache: EncoderCache, **keywords: Any
) -> list[TokenSequence]:
    """[`generate_tokens`], with encoder hidden states from `cache`, which gets those of new windows."""
    states = encode_cached(model, input_features, cache)
    return generate_tokens(model, encoder_hidden_states=states, **keywords)


def _beam_search_config(
    model: WhisperForConditionalGeneration, settings: GenerationSettings, max_length: int
) -> GenerationConfig:
    config = copy.deepcopy(model.generation_config)
    config.max_length = max_length
    config.max_new_tokens = None
    config.min_new_tokens = settings.min_new_tokens
    config.num_beams = settings.num_beams
    config.do_sample = False
    config.use_cache = True  # the Trainer leaves it off in the config of a trained model
    config.return_dict_in_generate = False
    # Empty, not None, which `generate` would fill from the model's config again: WhisperLogitsRules suppresses them.
    config.suppress_tokens = []
    config.begin_suppress_tokens = []
    return config


def logits_rules(
    model: WhisperForConditionalGeneration, prefix_length: int, return_timestamps: bool
) -> WhisperLogitsRules:
    """The rules of the model's generation config, for a prefix (and prompt) of `prefix_length` tokens."""
    config, first_timestamp = model.generation_config, timestamp_begin(model)
    suppress_tokens, timestamps = [*(config.suppress_tokens or []), *unused_tokens(model)], None
    if return_timestamps:
        max_initial = config.to_dict().get("max_initial_timestamp_index")
        timestamps = TimestampRules(first_timestamp, generation_entry(model, "eos_token_id"), max_initial)
    else:
        suppress_tokens += range(first_timestamp, model.config.vocab_size)
    begin_suppress_tokens, vocab_size = config.begin_suppress_tokens or [], model.config.vocab_size
    return WhisperLogitsRules(
        suppress_tokens, begin_suppress_tokens, prefix_length, vocab_size, model.device, timestamps
    )


def strip_end(tokens: list[int], eos_token_id: int) -> tuple[list[int], bool]:
    """The tokens before `<|endoftext|>`, and whether there is none (truncated)."""
    return (tokens[: tokens.index(eos_token_id)], False) if eos_token_id in tokens else (tokens, True)


@torch.inference_mode()
def score_tokens(
    model: WhisperForConditionalGeneration,
    encoder_hidden_states: Tensor,
    prefix: Tensor,
    tokens: Sequence[Sequence[int]],
    truncated: Sequence[bool],
) -> list[tuple[float, float]]:
    """Mean log-probability per token, and probability of `<|nospeech|>`, of each window before tokens are suppressed.

    `tokens` come without `<|endoftext|>`, which counts as a token, as in OpenAI's Whisper, unless the window is
    `truncated`.
    """
    eos_token_id = generation_entry(model, "eos_token_id")
    # `<|nospeech|>` precedes `<|notimestamps|>` in every Whisper vocabulary, under changing names.
    no_speech_id = generation_entry(model, "no_timestamps_token_id") - 1
    targets = [list(row) + ([] if cut else [eos_token_id]) for row, cut in zip(tokens, truncated, strict=True)]
    longest = max(len(row) for row in targets)
    padded = torch.tensor([row + [eos_token_id] * (longest - len(row)) for row in targets], device=prefix.device)
    # One more pass over known tokens, which costs about one step of the search. Keeping the logits of every step
    # instead would take (batch, length, vocab) floats: 1.5 GB for 16 full windows.
    hidden = model.get_decoder()(
        input_ids=torch.cat([prefix, padded[:, :-1]], dim=1),
        encoder_hidden_states=encoder_hidden_states,
        use_cache=False,
    ).last_hidden_state  # (batch, prefix + longest - 1, d_model)
    start = prefix.shape[1] - 1
    start_position = prefix[0].tolist().index(generation_entry(model, "decoder_start_token_id"))  # behind a prompt
    scores = []
    for states, row in zip(hidden, targets, strict=True):  # one window at a time, for the same reason
        logits = model.proj_out(states[start : start + len(row)]).float()  # (tokens, vocab)
        target = torch.tensor(row, device=logits.device).unsqueeze(1)
        log_probs = logits.gather(1, target).squeeze(1) - logits.logsumexp(dim=1)
        first = model.proj_out(states[start_position]).float().softmax(dim=0)
        scores.append((log_probs.mean().item(), first[no_speech_id].item()))
    return scores
