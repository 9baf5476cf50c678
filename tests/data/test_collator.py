"""Shapes and padding of a batch."""

import numpy as np
import pytest
import torch

from hf_distil_whisper.data.collator import DataCollatorSpeechSeq2SeqWithPadding
from hf_distil_whisper.data.labels import IGNORE_INDEX, make_labels
from toy_models import toy_processor


def item(text: str, previous: str | None = None, **entries: object) -> dict:
    labels = make_labels(toy_processor().tokenizer, text, timestamps=False, previous=previous)
    return {"input_features": torch.zeros(80, 3000), **labels._asdict(), **entries}


collate = DataCollatorSpeechSeq2SeqWithPadding(toy_processor())
ITEMS = [item("One."), item("A good deal longer than that.", previous="Before.")]


def test_tokens_are_padded_to_the_longest_of_the_batch():
    """Padded to 448, three quarters of the decoder's work is padding; padded with 0, the loss learns a token."""
    batch = collate(ITEMS)
    lengths = [len(each["labels"]) for each in ITEMS]
    assert set(batch) == {"input_features", "decoder_input_ids", "labels"}
    assert batch["input_features"].shape == (2, 80, 3000)
    assert batch["labels"].shape == batch["decoder_input_ids"].shape == (2, max(lengths))
    assert batch["labels"].dtype == batch["decoder_input_ids"].dtype == torch.long
    for name, pad in (("labels", IGNORE_INDEX), ("decoder_input_ids", toy_processor().tokenizer.pad_token_id)):
        assert batch[name][0].tolist() == ITEMS[0][name] + [pad] * (lengths[1] - lengths[0])
        assert batch[name][1].tolist() == ITEMS[1][name]


def test_lengths_are_rounded_up_to_the_multiple():
    """The reference declares this option and never uses it."""
    rounding = DataCollatorSpeechSeq2SeqWithPadding(toy_processor(), pad_to_multiple_of=64)
    assert rounding([item("One."), item("Two.")])["labels"].shape == (2, 64)
    for multiple in (0, 100, 512):
        with pytest.raises(ValueError, match="`pad_to_multiple_of`: expected a divisor of 448"):
            DataCollatorSpeechSeq2SeqWithPadding(toy_processor(), pad_to_multiple_of=multiple)


def test_encoder_states_replace_features():
    """Runs that keep the encoder's output have no features to stack."""
    states = [torch.full((1500, 16), float(row), dtype=torch.bfloat16) for row in range(2)]
    batch = collate([item(f"{row}.", encoder_states=state) for row, state in enumerate(states)])
    assert set(batch) == {"encoder_states", "decoder_input_ids", "labels"}
    assert torch.equal(batch["encoder_states"], torch.stack(states))


def test_labels_straight_from_a_tokenizer_are_shifted_once():
    """They start with `<|startoftranscript|>`: shifted again by the model, the decoder would read it twice."""
    tokenizer = toy_processor().tokenizer
    ids = tokenizer(" One.").input_ids
    prompt = tokenizer("<|startofprev|> Before.", add_special_tokens=False).input_ids
    for labels, previous in ((ids, None), (ids[1:], None), (prompt + ids, "Before.")):
        batch = collate([{"input_features": np.zeros((80, 3000), dtype=np.float32), "labels": labels}])
        for name, expected in collate([item(" One.", previous)]).items():
            assert torch.equal(batch[name], expected)
