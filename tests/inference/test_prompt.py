"""Languages and tasks in the decoder's prefix."""

import pytest
import torch

from hf_distil_whisper.inference.prompt import languages_of, resolve_language, scoring_language
from talking_models import multilingual_whisper, talking_whisper


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
