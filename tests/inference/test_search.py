"""Greedy search: the tokens of `generate`, whichever window ends first, and in every precision."""

import pytest
import torch
from torch import Tensor
from transformers import GenerationConfig, LogitsProcessorList, SuppressTokensLogitsProcessor
from transformers.generation import GenerationMixin
from transformers.modeling_outputs import BaseModelOutput

from hf_distil_whisper.inference.decoder import greedy_decode
from talking_models import talking_whisper


def encoder_states(count: int, width: int) -> Tensor:
    return torch.randn(count, 1500, width, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_tokens_are_those_of_generate_when_windows_end_one_by_one(dtype: torch.dtype) -> None:
    """A cache that is cut at the wrong rows, or whose empty room is looked at, gives a window other words."""
    model = talking_whisper(4, end_gain=1.0).to(dtype)
    states = encoder_states(8, model.config.d_model).to(dtype)
    end = model.generation_config.eos_token_id
    prefix = torch.tensor([[model.generation_config.decoder_start_token_id, 5]]).repeat(8, 1)
    rules = LogitsProcessorList([SuppressTokensLogitsProcessor([3, 4])])
    ours = greedy_decode(model, states, prefix, rules, eos_token_id=end, max_new_tokens=40)
    config = GenerationConfig(
        max_length=42, eos_token_id=end, pad_token_id=end, decoder_start_token_id=int(prefix[0, 0]), use_cache=True
    )
    theirs = GenerationMixin.generate(
        model, encoder_outputs=BaseModelOutput(last_hidden_state=states), decoder_input_ids=prefix,
        attention_mask=torch.ones(8, 1500, dtype=torch.long), generation_config=config, logits_processor=rules,
    )  # fmt: skip
    assert ours.tolist() == theirs.tolist()
    lengths = {row.index(end, 2) if end in row[2:] else 42 for row in ours.tolist()}
    assert len(lengths) > 2


def test_windows_that_have_ended_leave_the_batch() -> None:
    """Carried along, a batch of unequal windows costs as much as its longest one for every row."""
    model = talking_whisper(4, end_gain=1.0)
    sizes: list[int] = []
    model.get_decoder().layers[0].fc1.register_forward_pre_hook(lambda _, args: sizes.append(len(args[0])))
    prefix = torch.tensor([[model.generation_config.decoder_start_token_id, 5]]).repeat(8, 1)
    states = encoder_states(8, model.config.d_model)
    end = model.generation_config.eos_token_id
    greedy_decode(model, states, prefix, LogitsProcessorList(), eos_token_id=end, max_new_tokens=40)
    assert sizes[0] == 8
    assert sizes[-1] == 4


def test_no_end_comes_before_the_fewest_tokens() -> None:
    """Latency is measured on a fixed number of tokens: one window that ends early would look fast."""
    model = talking_whisper(4, end_gain=1.0)
    end = model.generation_config.eos_token_id
    prefix = torch.tensor([[model.generation_config.decoder_start_token_id, 5]]).repeat(4, 1)
    states = encoder_states(4, model.config.d_model)
    found = greedy_decode(
        model, states, prefix, LogitsProcessorList(), eos_token_id=end, max_new_tokens=30, min_new_tokens=30
    )
    assert found.shape == (4, 32)
    assert end not in found[:, 2:].tolist()[0]
