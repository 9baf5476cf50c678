"""What precedes a transcript in the decoder: a prompt, and the language, task and timestamp tokens."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import WhisperForConditionalGeneration, WhisperProcessor

from hf_distil_whisper.checkpoints import NUM_TIMESTAMPS
from hf_distil_whisper.data.labels import prompt_tokens
from hf_distil_whisper.metrics import language_code


def is_multilingual(model: WhisperForConditionalGeneration) -> bool:
    """Whether the model's prefix names a language and a task (the English-only checkpoints have neither)."""
    # The number of tokens decides where there is no entry, as in OpenAI's Whisper.
    return bool(model.generation_config.to_dict().get("is_multilingual", model.config.vocab_size > 51_864))


def timestamp_begin(model: WhisperForConditionalGeneration) -> int:
    """The id of `<|0.00|>`: every id from there on is a timestamp, in steps of 0.02 s."""
    return generation_entry(model, "no_timestamps_token_id") + 1


def unused_tokens(model: WhisperForConditionalGeneration) -> range:
    """Ids behind `<|30.00|>`, of embeddings that were padded to a round number: no transcript may hold them."""
    return range(timestamp_begin(model) + NUM_TIMESTAMPS, model.config.vocab_size)


def generation_entry(model: WhisperForConditionalGeneration, name: str) -> Any:
    """An entry of the generation config that Whisper cannot generate without; a `ValueError` if it is missing."""
    entries = model.generation_config.to_dict()
    if entries.get(name) is None:
        raise ValueError(
            f"The model's generation_config has no `{name}`, which Whisper needs to generate. Take "
            "generation_config.json from the checkpoint that the model was made from (`model.generation_config = "
            "GenerationConfig.from_pretrained(...)`); `load_model` completes those of official vocabularies."
        )
    return entries[name]


def resolve_language(
    model: WhisperForConditionalGeneration, language: str | None, task: str = "transcribe"
) -> str | None:
    """The code of `GenerationSettings.language` that the model's prefix takes.

    None for English-only models, whose prefix has no language, and where the language is to be detected.

    Raises:
        ValueError: for a language or a task that the model does not know.
    """
    if task not in ("transcribe", "translate"):
        raise ValueError(f"`task` is {task!r}, expected 'transcribe' or 'translate'.")
    code = None if language is None else language_code(language)
    if not is_multilingual(model):
        if code not in (None, "en") or task != "transcribe":
            raise ValueError(
                f"The model is English-only and does not support language={language!r} with task={task!r}. Leave both "
                "out, or take a multilingual checkpoint."
            )
        return None
    languages = generation_entry(model, "lang_to_id")
    if code is not None and f"<|{code}|>" not in languages:
        known = ", ".join(token.strip("<|>") for token in languages)
        raise ValueError(f"`language` is {language!r}, expected one of those that the model was trained on: {known}.")
    return code


def resolve_languages(
    model: WhisperForConditionalGeneration, language: str | Sequence[str | None] | None, task: str, count: int
) -> list[str | None]:
    """[`resolve_language`] for each of `count` windows, given one language for all or one for each."""
    if language is None or isinstance(language, str):
        return [resolve_language(model, language, task)] * count
    if len(language) != count:
        raise ValueError(f"`languages`: expected one for each of {count} windows, got {len(language)}.")
    return [resolve_language(model, entry, task) for entry in language]


def languages_of(model: WhisperForConditionalGeneration, decoder_input_ids: Tensor) -> list[str | None]:
    """The language codes in decoder inputs of shape (batch, length); None for rows without one."""
    start = generation_entry(model, "decoder_start_token_id")
    codes = {}
    if is_multilingual(model):
        codes = {token: name.strip("<|>") for name, token in generation_entry(model, "lang_to_id").items()}
    rows = decoder_input_ids.tolist()
    # A prompt of previous text may come first: the language follows <|startoftranscript|>, wherever that is.
    return [codes.get(row[row.index(start) + 1]) if start in row[:-1] else None for row in rows]


def scoring_language(model: WhisperForConditionalGeneration, language: str | None) -> str:
    """The language whose text normaliser scores the model's transcripts: "basic" if it is detected per window."""
    return resolve_language(model, language) or ("basic" if is_multilingual(model) else "en")


def prefix_length(model: WhisperForConditionalGeneration, return_timestamps: bool) -> int:
    """Tokens before the transcript: `<|startoftranscript|>`, language and task, `<|notimestamps|>`."""
    return 1 + 2 * is_multilingual(model) + (not return_timestamps)


def max_generated_tokens(
    model: WhisperForConditionalGeneration, return_timestamps: bool, prompt_length: int = 0
) -> int:
    """The most tokens that can be generated for a window: the generation config's `max_length` minus the prefix.

    A prompt takes nothing of `max_length`, but prompt, prefix and transcript together never exceed the decoder's
    `max_target_positions` (448 in all published models).
    """
    positions = model.config.max_target_positions
    longest = model.generation_config.max_length or positions
    return min(longest, positions - prompt_length) - prefix_length(model, return_timestamps)


def initial_prompt(
    model: WhisperForConditionalGeneration, processor: WhisperProcessor, prompt: str | None
) -> list[int]:
    """The tokens of a prompt, as of previous text in training: at most half of the decoder's positions, its end."""
    if prompt is not None and not isinstance(prompt, str):
        raise ValueError(
            f"`prompt`: expected one text for all recordings, such as 'Kubernetes, HuBERT', got {prompt!r}."
        )
    return prompt_tokens(processor.tokenizer, prompt or "", model.config.max_target_positions // 2 - 1)


def decoder_prefix(
    model: WhisperForConditionalGeneration, language: str | None, task: str, return_timestamps: bool
) -> list[int]:
    """The decoder's first [`prefix_length`] tokens; `language` is a code, None for English-only models."""
    prefix = [generation_entry(model, "decoder_start_token_id")]
    if language is not None:
        language_id = generation_entry(model, "lang_to_id")[f"<|{language}|>"]
        prefix += [language_id, generation_entry(model, "task_to_id")[task]]
    if not return_timestamps:
        prefix.append(generation_entry(model, "no_timestamps_token_id"))
    return prefix


class WindowLanguage(NamedTuple):
    """The language of one window: its code, None for English-only models, and how probable it is if detected."""

    code: str | None
    probability: float | None = None


def window_languages(
    model: WhisperForConditionalGeneration,
    codes: Sequence[str | None],
    detect: Callable[[], list[WindowLanguage]],
) -> list[WindowLanguage]:
    """The languages of a batch of windows; `detect` is called if a code of [`resolve_languages`] is missing."""
    if not is_multilingual(model) or None not in codes:
        return [WindowLanguage(code) for code in codes]
    return [detected if code is None else WindowLanguage(code) for code, detected in zip(codes, detect(), strict=True)]


def detect_languages(model: WhisperForConditionalGeneration, encoder_hidden_states: Tensor) -> list[WindowLanguage]:
    """The likeliest language of each window, given its encoder hidden states (batch, frames, d_model)."""
    start = generation_entry(model, "decoder_start_token_id")
    inputs = torch.full((len(encoder_hidden_states), 1), start, device=encoder_hidden_states.device)
    hidden = model.get_decoder()(
        input_ids=inputs, encoder_hidden_states=encoder_hidden_states, use_cache=False
    ).last_hidden_state
    return likeliest_languages(model, model.proj_out(hidden[:, -1]))


def likeliest_languages(model: WhisperForConditionalGeneration, logits: Tensor) -> list[WindowLanguage]:
    """The likeliest language of each window, by its logits (batch, vocab) behind `<|startoftranscript|>`."""
    tokens = generation_entry(model, "lang_to_id")
    names = [name.strip("<|>") for name in tokens]
    best = logits[:, list(tokens.values())].float().softmax(dim=1).max(dim=1)
    return [WindowLanguage(names[i], p) for i, p in zip(best.indices.tolist(), best.values.tolist(), strict=True)]
