"""Token generation for windows of at most 30 s: one encoder pass per batch, greedy or beam search, bounded length.

Knows Whisper's prefix, languages, suppressed tokens and the statistics of a finished sequence. Knows neither audio
files nor text: `results.py` turns tokens into text. The model's own generation config is never touched, always copied.
"""

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig, LogitsProcessorList, WhisperForConditionalGeneration
from transformers.generation import GenerationMixin
from transformers.modeling_outputs import BaseModelOutput

from hf_distil_whisper.inference.decoder import (
    Assistant,
    TimestampRules,
    TokenRules,
    greedy_search,
)
from hf_distil_whisper.inference.encoder import (
    EncoderCache,
    encode,
    encode_once,
)
from hf_distil_whisper.inference.prompt import (
    _generation_entry,
    max_generated_tokens,
    prefix_tokens,
    resolve_languages,
    timestamp_begin,
)
from hf_distil_whisper.inference.speculative import (
    DraftCounts,
    speculative_search,
)


@dataclass(frozen=True)
class TokenSequence:
    """What the decoder wrote for one window.

    Args:
        tokens (`list[int]`): without the prefix and without `<|endoftext|>`; timestamp tokens included where asked
            for.
        truncated (`bool`): whether the length ran out before `<|endoftext|>` came: the transcript stops mid-sentence.
        mean_log_prob (`float`, *optional*): see [`score_tokens`].
        no_speech_prob (`float`, *optional*): see [`score_tokens`].
        drafts ([`DraftCounts`], *optional*): what came of the assistant's drafts, where there was one.
    """

    tokens: list[int]
    truncated: bool
    mean_log_prob: float | None = None
    no_speech_prob: float | None = None
    drafts: DraftCounts | None = None


@torch.inference_mode()
def generate_tokens(
    model: WhisperForConditionalGeneration,
    input_features: Tensor | None = None,
    *,
    encoder_states: Tensor | None = None,
    num_beams: int = 1,
    max_new_tokens: int | None = None,
    min_new_tokens: int | None = None,
    return_timestamps: bool = False,
    language: str | Sequence[str | None] | None = None,
    task: str = "transcribe",
    assistant: Assistant | None = None,
    draft_length: int | None = None,
    statistics: bool = False,
    search: Callable[..., Tensor] = greedy_search,
) -> list[TokenSequence]:
    """Transcribes a batch of windows, each of which passes the encoder once, in one search.

    Unlike `model.generate`, it never starts a second window: that loop over-runs its length on models that are not
    trained yet, and can go on for ever. Without timestamps their tokens are suppressed. The model and its generation
    config are left as they are.

    Args:
        model (`WhisperForConditionalGeneration`): in eval mode.
        input_features (`Tensor`, *optional*): log-mel of shape (batch, mel bins, frames), padded to the window; may be
            None where `encoder_states` are given.
        encoder_states (`Tensor`, *optional*): (batch, frames, width), where the encoder has run already.
        num_beams (`int`, *optional*, defaults to 1): greedy search, as the paper labels and evaluates.
        max_new_tokens (`int`, *optional*, defaults to what [`max_generated_tokens`] allows): bound on the tokens.
        min_new_tokens (`int`, *optional*): no `<|endoftext|>` before; equal to `max_new_tokens` it fixes the work, to
            measure time.
        return_timestamps (`bool`, *optional*, defaults to `False`): ask for and keep timestamp tokens.
        language (`str` or `Sequence[str | None]`, *optional*): of all windows or of each, see [`resolve_language`];
            None detects it from the encoder's states.
        task (`str`, *optional*, defaults to `"transcribe"`): or "translate".
        assistant (`WhisperForCausalLM` or `WhisperForConditionalGeneration`, *optional*): drafts for the model, greedy
            only: see [`create_assistant`]. A whole Whisper hears by itself and needs `input_features`.
        draft_length (`int`, *optional*): tokens of each draft; by default chosen by how many are accepted.
        statistics (`bool`, *optional*, defaults to `False`): also fill `mean_log_prob` and `no_speech_prob`.
        search (`Callable[..., Tensor]`, *optional*, defaults to [`greedy_search`]): another greedy search with its
            arguments, to measure it.

    Returns:
        `list[TokenSequence]`: one per window, in order.

    Raises:
        ValueError: for lengths beyond the decoder, unknown languages, an assistant with beams or a whole one without
            features, or a search beside either.
    """
    allowed = max_generated_tokens(model, return_timestamps)
    new_tokens = allowed if max_new_tokens is None else max_new_tokens
    if not 1 <= new_tokens <= allowed:
        raise ValueError(
            f"`max_new_tokens` is {new_tokens}, expected 1 to {allowed}: the decoder's positions and the generation "
            "config's `max_length` leave no more behind the prefix."
        )
    windows = input_features if encoder_states is None else encoder_states
    if windows is None:
        raise ValueError("generate_tokens: expected `input_features` or `encoder_states`, got neither.")
    if assistant is not None and num_beams > 1:
        raise ValueError(
            f"`num_beams` is {num_beams}, but an assistant drafts for greedy decoding: pass num_beams=1, or leave out "
            "`assistant`."
        )
    if search is not greedy_search and (num_beams > 1 or assistant is not None):
        raise ValueError(
            f"`search` is greedy, expected num_beams=1 and no assistant beside it, got {num_beams} beams."
        )
    codes = resolve_languages(model, language, task, len(windows))
    states = encode(model, windows) if encoder_states is None else encoder_states
    prefix = prefix_tokens(model, states, codes, task, return_timestamps)
    config = _generation_settings(model, prefix.shape[1], new_tokens, min_new_tokens, num_beams)
    rules = token_rules(model, prefix.shape[1], return_timestamps)
    limits = {"end": config.eos_token_id, "max_new_tokens": new_tokens, "min_new_tokens": min_new_tokens or 0}
    drafts: list[DraftCounts | None] = [None] * len(windows)
    if assistant is not None:
        sequences, drafts[:] = speculative_search(
            model, assistant, states, prefix, rules, input_features=input_features, draft_length=draft_length, **limits
        )
    elif num_beams == 1:
        sequences = search(model, states, prefix, rules, **limits)
    else:
        # GenerationMixin.generate is the single search that Whisper's own generate wraps into its loop over windows.
        sequences = GenerationMixin.generate(
            model,
            encoder_outputs=BaseModelOutput(last_hidden_state=states),
            attention_mask=torch.ones(states.shape[:2], dtype=torch.long, device=states.device),
            decoder_input_ids=prefix,
            generation_config=config,
            logits_processor=LogitsProcessorList([rules]),
        )
    found = [cut_at_end(row, config.eos_token_id) for row in sequences[:, prefix.shape[1] :].tolist()]
    if not statistics:
        return [TokenSequence(*row, drafts=own) for row, own in zip(found, drafts, strict=True)]
    scores = score_tokens(
        model, states, prefix, [tokens for tokens, _ in found], [truncated for _, truncated in found]
    )
    return [TokenSequence(*row, *score, own) for row, score, own in zip(found, scores, drafts, strict=True)]


def generate_once(
    model: WhisperForConditionalGeneration, input_features: Tensor, cache: EncoderCache, **settings: Any
) -> list[TokenSequence]:
    """As [`generate_tokens`], but windows that `cache` knows are not heard again.

    Args:
        model (`WhisperForConditionalGeneration`): with the cache's encoder and of its dtype.
        input_features (`Tensor`): log-mel of shape (batch, mel bins, frames).
        cache ([`EncoderCache`]): gets the states of the other windows.
        settings: of [`generate_tokens`].
    """
    return generate_tokens(model, encoder_states=encode_once(model, input_features, cache), **settings)


def _generation_settings(
    model: WhisperForConditionalGeneration, prefix: int, new_tokens: int, min_new_tokens: int | None, num_beams: int
) -> GenerationConfig:
    config = copy.deepcopy(model.generation_config)
    config.max_length = prefix + new_tokens
    config.max_new_tokens = None
    config.min_new_tokens = min_new_tokens
    config.num_beams = num_beams
    config.do_sample = False
    config.use_cache = True  # the Trainer leaves it off in the config of a trained model
    config.return_dict_in_generate = False
    # Empty, not None, which would be filled from the model's config again: `TokenRules` does this work.
    config.suppress_tokens = []
    config.begin_suppress_tokens = []
    return config


def token_rules(model: WhisperForConditionalGeneration, begin: int, return_timestamps: bool) -> TokenRules:
    """What the model's generation config allows to be written behind a prefix of `begin` tokens.

    Args:
        model (`WhisperForConditionalGeneration`): names suppressed tokens in its generation config.
        begin (`int`): tokens of the prefix, a prompt included.
        return_timestamps (`bool`): their grammar; else they are suppressed.
    """
    settings, first = model.generation_config, timestamp_begin(model)
    always, timestamps = list(settings.suppress_tokens or []), None
    if return_timestamps:
        latest_start = settings.to_dict().get("max_initial_timestamp_index")
        timestamps = TimestampRules(first, _generation_entry(model, "eos_token_id"), latest_start)
    else:
        always += range(first, model.config.vocab_size)
    at_begin = settings.begin_suppress_tokens or []
    return TokenRules(always, at_begin, begin, model.config.vocab_size, model.device, timestamps)


def cut_at_end(row: list[int], end: int) -> tuple[list[int], bool]:
    """The tokens before `<|endoftext|>`, and whether it is missing."""
    return (row[: row.index(end)], False) if end in row else (row, True)


@torch.inference_mode()
def score_tokens(
    model: WhisperForConditionalGeneration,
    encoder_states: Tensor,
    prefix: Tensor,
    tokens: Sequence[Sequence[int]],
    truncated: Sequence[bool],
) -> list[tuple[float, float]]:
    """How sure the model is of finished sequences, and of there being speech at all.

    One more pass of the decoder over known tokens, beside the encoder's states: about the cost of one step of the
    search, where keeping the scores of every step would hold (batch, length, vocabulary) numbers, 1.5 GB for 16 full
    windows. The vocabulary is only ever spread out for one window at a time.

    Args:
        model (`WhisperForConditionalGeneration`): the model that wrote the tokens.
        encoder_states (`Tensor`): (batch, frames, width).
        prefix (`Tensor`): (batch, prefix) token ids, `<|startoftranscript|>` first.
        tokens (`Sequence[Sequence[int]]`): per window, without `<|endoftext|>`.
        truncated (`Sequence[bool]`): where true, no `<|endoftext|>` was written and none is scored.

    Returns:
        `list[tuple[float, float]]`: per window the mean log-probability per token, `<|endoftext|>` counted as a token
        as in OpenAI's Whisper, and the probability of `<|nospeech|>` behind `<|startoftranscript|>`. Both under the
        model's own distribution, before any token is suppressed.
    """
    end = _generation_entry(model, "eos_token_id")
    # `<|nospeech|>` stands right before `<|notimestamps|>` in every Whisper vocabulary, under changing names.
    no_speech = _generation_entry(model, "no_timestamps_token_id") - 1
    targets = [list(row) + ([] if cut else [end]) for row, cut in zip(tokens, truncated, strict=True)]
    longest = max(len(row) for row in targets)
    padded = torch.tensor([row + [end] * (longest - len(row)) for row in targets], device=prefix.device)
    inputs = torch.cat([prefix, padded[:, :-1]], dim=1)
    hidden = model.get_decoder()(
        input_ids=inputs, encoder_hidden_states=encoder_states, use_cache=False
    ).last_hidden_state
    start = prefix.shape[1] - 1
    scores = []
    for states, row in zip(hidden, targets, strict=True):
        logits = model.proj_out(states[start : start + len(row)]).float()
        target = torch.tensor(row, device=logits.device).unsqueeze(1)
        log_probs = logits.gather(1, target).squeeze(1) - logits.logsumexp(dim=1)
        first = model.proj_out(states[0]).float().softmax(dim=0)
        scores.append((log_probs.mean().item(), first[no_speech].item()))
    return scores
