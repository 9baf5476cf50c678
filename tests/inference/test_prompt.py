"""Languages and tasks in the decoder's prefix, and prompts before it."""

from collections.abc import Callable

import numpy as np
import pytest
import torch

from hf_distil_whisper.data.labels import make_labels
from hf_distil_whisper.inference.generation import generate_tokens
from hf_distil_whisper.inference.prompt import initial_prompt, languages_of, resolve_language, scoring_language
from hf_distil_whisper.inference.speculative import create_assistant
from hf_distil_whisper.inference.transcribe import transcribe, transcribe_chunked, transcribe_sequential
from hf_distil_whisper.student import create_student
from talking_models import multilingual_whisper, talking_whisper, toy_windows
from toy_models import toy_audio, toy_processor


def test_labels_name_the_language_that_they_are_in() -> None:
    """Validation generates in it, whatever prompt precedes it."""
    model = multilingual_whisper()
    entries = model.generation_config.to_dict()
    start, german = entries["decoder_start_token_id"], entries["lang_to_id"]["<|de|>"]
    inputs = torch.tensor([[start, german, 5], [7, start, german], [start, 5, german], [5, 6, 7]])
    assert languages_of(model, inputs) == ["de", "de", None, None]
    assert languages_of(talking_whisper(), inputs) == [None] * 4


def test_english_only_model_takes_english_and_nothing_else() -> None:
    """Transformers raises on any language here, so a script with `language: en` would fail on the .en checkpoints."""
    model = talking_whisper()
    assert resolve_language(model, "English") is None
    assert scoring_language(model, None) == scoring_language(model, "en") == "en"
    for language, task in (("de", "transcribe"), (None, "translate")):
        with pytest.raises(ValueError, match="English-only"):
            resolve_language(model, language, task)


def test_language_is_a_code_a_name_or_a_token() -> None:
    """A name that is taken for an unknown code would fail after hours, or be detected instead."""
    model = multilingual_whisper()
    assert [resolve_language(model, name) for name in ("de", "German", "<|de|>", None)] == ["de", "de", "de", None]
    assert scoring_language(model, None) == "basic"
    with pytest.raises(ValueError, match="'xx', expected one of"):
        resolve_language(model, "xx")
    with pytest.raises(ValueError, match="'sing'"):
        resolve_language(model, "de", task="sing")


PROMPT = "The quick brown fox"
METHODS: dict[str, Callable] = {
    "one window": lambda *parts, **more: transcribe(*parts, toy_audio(2), **more)[0],
    "beams": lambda *parts, **more: transcribe(*parts, toy_audio(2), num_beams=2, **more)[0],
    "words": lambda *parts, **more: transcribe(*parts, toy_audio(2), return_timestamps="word", **more)[0],
    "chunked": lambda *parts, **more: transcribe_chunked(*parts, toy_audio(12), chunk_length=8, **more),
    "long": lambda *parts, **more: transcribe(*parts, toy_audio(32), **more)[0],
    "long, words": lambda *parts, **more: transcribe_sequential(*parts, toy_audio(32), word_timestamps=True, **more),
    "fallback": lambda *parts, **more: transcribe_sequential(*parts, toy_audio(2), temperature_fallback=True, **more),
    "conditioned": lambda *parts, **more: transcribe_sequential(
        *parts, toy_audio(32), condition_on_prev_tokens=True, **more
    ),
}


@pytest.mark.parametrize("method", METHODS)
def test_a_prompt_is_read_as_in_training_before_every_window_and_not_written(method: str) -> None:
    """A student trained with previous text could not be given any; in another layout it would not know it.

    With `condition_on_prev_tokens`, later windows are prompted with the text before them, the prompt given or not.
    """
    model, processor = talking_whisper(4), toy_processor()
    model.generation_config.alignment_heads = [[1, 0]]
    read: list[list[int]] = []
    model.get_decoder().embed_tokens.register_forward_pre_hook(lambda _, args: read.append(args[0][0].tolist()))
    plain = METHODS[method](model, processor)
    previous = model.generation_config.prev_sot_token_id
    assert any(row[0] == previous for row in read) == (method == "conditioned")
    read.clear()
    prompted = METHODS[method](model, processor, prompt=PROMPT)
    label = make_labels(processor.tokenizer, "", timestamps=False, previous=PROMPT).decoder_input_ids
    layout = label[: label.index(model.generation_config.decoder_start_token_id) + 1]
    starts = [row for row in read if row[0] == layout[0]]
    assert starts[0][: len(layout)] == layout
    same = [row[: len(layout)] == layout for row in starts]
    assert not all(same) if method == "conditioned" else all(same)
    assert prompted.text != plain.text != ""
    assert not prompted.text.startswith(PROMPT)
    assert 0 < prompted.statistics.num_tokens < 448 * prompted.statistics.num_windows
    assert METHODS[method](model, processor, prompt="  ") == plain


def test_prompted_tokens_are_those_of_transformers_and_of_an_assisted_model() -> None:
    """Begin-suppressed tokens, timestamp rules and cache positions all count from behind the prompt."""
    model, processor = multilingual_whisper(3), toy_processor()
    prompt, features = initial_prompt(model, processor, PROMPT), toy_windows(model, 2)
    assert prompt == processor.get_prompt_ids(PROMPT).tolist()
    options = {"language": "de", "return_timestamps": True, "max_new_tokens": 12}
    expected = model.generate(
        features, prompt_ids=torch.tensor(prompt), task="transcribe", force_unique_generate_call=True, **options
    )
    assistant = create_assistant(create_student(model, decoder_layers=2), model)
    for more in ({}, {"assistant": assistant}):
        result = generate_tokens(model, features, prompt=prompt, statistics=True, **options, **more)
        prefix = len(prompt) + 3
        rows = [row[prefix : prefix + len(one.tokens)] for row, one in zip(expected.tolist(), result, strict=True)]
        assert [one.tokens for one in result] == rows
        with torch.no_grad():
            start = torch.tensor([[*prompt, model.generation_config.decoder_start_token_id]])
            logits = model(input_features=features[:1], decoder_input_ids=start).logits[0, -1]
        no_speech = logits.softmax(dim=0)[model.generation_config.no_timestamps_token_id - 1].item()
        assert result[0].no_speech_prob == pytest.approx(no_speech, rel=1e-3)


def test_a_long_prompt_keeps_its_end_and_leaves_half_of_the_decoder() -> None:
    """OpenAI's Whisper takes 223 tokens and <|startofprev|>; a prompt of 448 would leave no transcript."""
    model, processor = talking_whisper(4), toy_processor()
    long = "lazy dog " * 300 + PROMPT
    tokens = initial_prompt(model, processor, long)
    assert len(tokens) == 224
    assert processor.tokenizer.decode(tokens[1:]).endswith(PROMPT)
    assert transcribe(model, processor, toy_audio(2), prompt=long)[0].text
    assert initial_prompt(model, processor, f"<|startofprev|> {PROMPT}<|endoftext|>") == initial_prompt(
        model, processor, PROMPT
    )
    with pytest.raises(ValueError, match=r"`max_new_tokens` is 300, expected 1 to 222.*behind prompt and prefix"):
        transcribe(model, processor, toy_audio(1), prompt=long, max_new_tokens=300)
    with pytest.raises(ValueError, match=r"`prompt`: expected one text .*got \['fox'\]"):
        transcribe(model, processor, np.zeros(16_000, dtype=np.float32), prompt=["fox"])
