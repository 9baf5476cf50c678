"""The searches inside transformers' loop: its rules are taken over whole, or the search refuses."""

import pytest
import torch
from transformers import (
    LogitsProcessorList,
    NoRepeatNGramLogitsProcessor,
    SuppressTokensAtBeginLogitsProcessor,
    SuppressTokensLogitsProcessor,
)

from hf_distil_whisper.inference.speculative import (
    decode_in_generate,
    rules_from_processors,
)
from talking_models import talking_whisper
from toy_models import toy_audio, toy_processor


def whole_features(seconds: float) -> torch.Tensor:
    extractor, samples = toy_processor().feature_extractor, toy_audio(seconds, seed=3)
    options = {"truncation": False, "padding": "longest"} if seconds > 30 else {}
    return extractor(samples, sampling_rate=16_000, return_tensors="pt", **options).input_features


def test_long_form_tokens_are_those_of_generate() -> None:
    """Transformers' loop with our search inside: the same windows, the same tokens."""
    model = talking_whisper(4)
    features = whole_features(70)
    options = {"return_timestamps": True, "return_segments": True, "num_beams": 1}
    expected = model.generate(features, **options)["segments"][0]
    found = model.generate(features, custom_generate=decode_in_generate(), **options)["segments"][0]
    assert [one["tokens"].tolist() for one in found] == [one["tokens"].tolist() for one in expected]
    assert [(float(one["start"]), float(one["end"])) for one in found] == [
        (float(one["start"]), float(one["end"])) for one in expected
    ]


def test_suppressed_tokens_are_taken_over() -> None:
    """By hand: 3 everywhere, 5 at the first position behind a prefix of two."""
    processors = LogitsProcessorList(
        [SuppressTokensLogitsProcessor([3]), SuppressTokensAtBeginLogitsProcessor([5], begin_index=2)]
    )
    rules = rules_from_processors(processors, 2, 8, torch.device("cpu"))
    for length in (2, 3):
        ids, scores = torch.zeros(1, length, dtype=torch.long), torch.zeros(1, 8)
        assert torch.equal(rules(ids, scores), processors(ids, scores))


def test_rules_that_it_does_not_know_are_refused() -> None:
    """A setting of `generate` that is dropped without a word changes the text."""
    processors = LogitsProcessorList([NoRepeatNGramLogitsProcessor(3)])
    with pytest.raises(ValueError, match="NoRepeatNGramLogitsProcessor"):
        rules_from_processors(processors, 2, 8, torch.device("cpu"))
    with pytest.raises(ValueError, match="num_beams=2"):
        talking_whisper().generate(whole_features(1), num_beams=2, custom_generate=decode_in_generate())
