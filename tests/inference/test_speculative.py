"""The search itself: token by token that of the main model alone, whatever is drafted."""

import copy

import pytest
import torch
from torch import Tensor
from transformers import WhisperForConditionalGeneration

from hf_distil_whisper.inference.decoder import greedy_decode
from hf_distil_whisper.inference.encoder import encode, window_features
from hf_distil_whisper.inference.generation import logits_rules
from hf_distil_whisper.inference.speculative import create_assistant, speculative_decode
from talking_models import talking_whisper
from toy_models import toy_audio, toy_processor


def windows(model: WhisperForConditionalGeneration, count: int) -> Tensor:
    recordings = [toy_audio(1 + 4 * index, seed=index) for index in range(count)]
    return encode(model, window_features(model, toy_processor(), recordings))


def settings(model: WhisperForConditionalGeneration, **changes: int) -> dict:
    return {"eos_token_id": model.generation_config.eos_token_id, "max_new_tokens": 50, **changes}


def drafting(teacher: WhisperForConditionalGeneration, noise: float) -> WhisperForConditionalGeneration:
    """The teacher's decoder with noise on its weights: from drafts that are all right to drafts that are all wrong."""
    student = copy.deepcopy(teacher)
    torch.manual_seed(0)
    with torch.no_grad():
        for layer in student.model.decoder.layers:
            for weight in layer.parameters():
                weight += noise * weight.std() * torch.randn_like(weight) if weight.numel() > 1 else 0
    return student


@pytest.mark.parametrize("return_timestamps", [False, True])
@pytest.mark.parametrize("noise", [0.0, 0.1, 3.0])
@pytest.mark.parametrize("draft_length", [1, 4, None])
def test_tokens_are_those_of_the_main_model(return_timestamps: bool, noise: float, draft_length: int | None) -> None:
    """Rows accept different numbers of tokens in every round: a position off by one gives another text."""
    teacher = talking_whisper(4)
    states = windows(teacher, 6)
    prefix = torch.tensor([[teacher.config.decoder_start_token_id]] * 6)
    rules = logits_rules(teacher, 1, return_timestamps)
    expected = greedy_decode(teacher, states, prefix, rules, **settings(teacher))
    assistant = create_assistant(drafting(teacher, noise), teacher)
    found, counts = speculative_decode(
        teacher, assistant, states, prefix, rules, draft_length=draft_length, **settings(teacher)
    )
    assert torch.equal(found, expected)
    written = (expected[:, 1:] != teacher.generation_config.eos_token_id).sum(dim=1)
    ends = written < 50
    assert [one.tokens for one in counts] == (written + ends).tolist()
    assert all(one.accepted <= one.tested <= one.drafted and one.checks <= one.tokens for one in counts)
    if noise == 0.0:
        assert all(one.accepted == one.drafted for one in counts)
    assert len({one.checks for one in counts}) > 1


def test_fixed_number_of_tokens_is_written() -> None:
    """Latency is compared over one number of tokens: `end` must not come before, nor the room be left."""
    teacher = talking_whisper(4)
    states, prefix = windows(teacher, 3), torch.tensor([[teacher.config.decoder_start_token_id]] * 3)
    rules, fixed = logits_rules(teacher, 1, False), settings(teacher, max_new_tokens=17, min_new_tokens=17)
    assistant = create_assistant(drafting(teacher, 0.1), teacher)
    found, counts = speculative_decode(teacher, assistant, states, prefix, rules, **fixed)
    assert torch.equal(found, greedy_decode(teacher, states, prefix, rules, **fixed))
    assert found.shape == (3, 18)
    assert [one.tokens for one in counts] == [17] * 3


def test_whole_context_is_used_up_to_its_last_position() -> None:
    """Near the end of the decoder's context a draft would reach beyond its position embeddings."""
    teacher = talking_whisper(4, end_gain=-10.0)
    states, prefix = windows(teacher, 2), torch.tensor([[teacher.config.decoder_start_token_id]] * 2)
    limits = settings(teacher, max_new_tokens=teacher.config.max_target_positions - 1)
    rules = logits_rules(teacher, 1, False)
    assistant = create_assistant(drafting(teacher, 0.1), teacher)
    found, _ = speculative_decode(teacher, assistant, states, prefix, rules, **limits)
    assert torch.equal(found, greedy_decode(teacher, states, prefix, rules, **limits))
    assert found.shape[1] == teacher.config.max_target_positions


def test_flash_attention_and_foolish_lengths_are_refused() -> None:
    """flash-attn takes no mask: rows would read what they had rejected, and write other text."""
    teacher = talking_whisper(4)
    states, prefix = windows(teacher, 2), torch.tensor([[teacher.config.decoder_start_token_id]] * 2)
    rules, assistant = logits_rules(teacher, 1, False), create_assistant(talking_whisper(4), teacher)
    with pytest.raises(ValueError, match="`draft_length` is 0"):
        speculative_decode(teacher, assistant, states, prefix, rules, draft_length=0, **settings(teacher))
    teacher.config._attn_implementation = "flash_attention_2"
    with pytest.raises(ValueError, match="sdpa"):
        speculative_decode(teacher, assistant, states, prefix, rules, **settings(teacher))
