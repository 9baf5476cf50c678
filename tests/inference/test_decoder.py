"""The decoder with its KV cache: the tokens of `generate`, and the rules of transformers at any position."""

from types import SimpleNamespace

import pytest
import torch
from torch import Tensor
from transformers import (
    GenerationConfig,
    LogitsProcessorList,
    SuppressTokensLogitsProcessor,
    WhisperTimeStampLogitsProcessor,
)
from transformers.generation import GenerationMixin
from transformers.modeling_outputs import BaseModelOutput

from hf_distil_whisper.inference.decoder import TimestampRules, WhisperLogitsRules, greedy_decode
from talking_models import talking_whisper

BATCH = 8


def decode(max_new_tokens: int = 40, dtype: torch.dtype = torch.float32, rules=None, **settings):
    """Greedy tokens of a toy model for random encoder hidden states, with what `generate` needs for the same."""
    model = talking_whisper(4, end_gain=1.0).to(dtype)
    model.set_attn_implementation(settings.pop("attention", "sdpa"))
    sizes: list[int] = []
    hook = model.get_decoder().layers[0].fc1.register_forward_pre_hook(lambda _, args: sizes.append(len(args[0])))
    states = torch.randn(BATCH, 1500, model.config.d_model, generator=torch.Generator().manual_seed(1)).to(dtype)
    end = model.generation_config.eos_token_id
    prefix = torch.tensor([[model.generation_config.decoder_start_token_id, 5]]).repeat(BATCH, 1)
    rules = rules or LogitsProcessorList()
    tokens = greedy_decode(model, states, prefix, rules, eos_token_id=end, max_new_tokens=max_new_tokens, **settings)
    hook.remove()
    return SimpleNamespace(model=model, states=states, prefix=prefix, end=end, tokens=tokens, batch_sizes=sizes)


@pytest.mark.parametrize(
    ("dtype", "attention"), [(torch.float32, "sdpa"), (torch.float32, "eager"), (torch.bfloat16, "sdpa")]
)
def test_tokens_are_those_of_generate_when_rows_end_one_by_one(dtype: torch.dtype, attention: str) -> None:
    """A cache that drops the wrong rows, or attends to unused positions, gives a window other words."""
    rules = LogitsProcessorList([SuppressTokensLogitsProcessor([3, 4])])
    ours = decode(dtype=dtype, attention=attention, rules=rules)
    config = GenerationConfig(
        max_length=42, eos_token_id=ours.end, pad_token_id=ours.end, decoder_start_token_id=int(ours.prefix[0, 0]),
        use_cache=True,
    )  # fmt: skip
    theirs = GenerationMixin.generate(
        ours.model, encoder_outputs=BaseModelOutput(last_hidden_state=ours.states), decoder_input_ids=ours.prefix,
        attention_mask=torch.ones(BATCH, 1500, dtype=torch.long), generation_config=config, logits_processor=rules,
    )  # fmt: skip
    assert ours.tokens.tolist() == theirs.tolist()
    lengths = {row.index(ours.end, 2) if ours.end in row[2:] else 42 for row in theirs.tolist()}
    assert len(lengths) > 2


def test_finished_rows_leave_the_batch() -> None:
    """Otherwise a batch of unequal windows costs as much as its longest one for every row."""
    sizes = decode().batch_sizes
    assert (sizes[0], sizes[-1]) == (8, 4)


def test_no_end_comes_before_min_new_tokens() -> None:
    """Latency is measured on a fixed number of tokens: one window that ends early would look fast."""
    ours = decode(max_new_tokens=30, min_new_tokens=30)
    assert ours.tokens.shape == (BATCH, 32)
    assert ours.end not in ours.tokens[:, 2:].tolist()[0]


VOCAB, END, FIRST_TIMESTAMP, PREFIX = 40, 20, 25, 2


def rules(latest_start: int | None = None, timestamps: bool = True) -> WhisperLogitsRules:
    grammar = TimestampRules(FIRST_TIMESTAMP, END, latest_start) if timestamps else None
    return WhisperLogitsRules([3], [5, END], PREFIX, VOCAB, torch.device("cpu"), grammar)


def by_transformers(latest_start: int | None, row: Tensor, logits: Tensor) -> Tensor:
    """One row and one position through the processor of `generate`, behind the suppressed tokens."""
    config = SimpleNamespace(
        no_timestamps_token_id=FIRST_TIMESTAMP - 1, eos_token_id=END, bos_token_id=END,
        max_initial_timestamp_index=latest_start,
    )  # fmt: skip
    logits = logits.clone()
    logits[3] = float("-inf")
    if len(row) == PREFIX:
        logits[[5, END]] = float("-inf")
    return WhisperTimeStampLogitsProcessor(config, begin_index=PREFIX)(row[None], logits[None])[0]


def random_sequences(rows: int, length: int) -> Tensor:
    """Text and timestamps in any order, including those that the grammar would not have allowed."""
    text = torch.randint(0, END, (rows, length))
    timestamps = torch.randint(FIRST_TIMESTAMP, VOCAB, (rows, length))
    return torch.where(torch.rand(rows, length) < 0.5, text, timestamps)


@pytest.mark.parametrize("latest_start", [None, 4])
def test_timestamps_follow_the_grammar_of_transformers(latest_start: int | None) -> None:
    """A grammar that differs in one case gives other segments, and other text behind them."""
    for length in range(PREFIX, 9):
        sequences, logits = random_sequences(64, length), 3 * torch.randn(64, VOCAB)
        expected = [by_transformers(latest_start, *pair) for pair in zip(sequences, logits, strict=True)]
        assert torch.equal(rules(latest_start)(sequences, logits), torch.stack(expected))


def test_each_row_is_judged_at_its_length() -> None:
    """Speculative decoding: what one row has generated must not decide what another may generate."""
    sequences, lengths = random_sequences(32, 12), torch.randint(PREFIX, 9, (32,))
    logits = 3 * torch.randn(32, 4, VOCAB)
    before = logits.clone()
    applied = rules(4).apply(sequences, lengths, logits)
    for row in range(32):
        for position in range(4):
            generated = sequences[row, : lengths[row] + position]
            assert torch.equal(applied[row, position], by_transformers(4, generated, logits[row, position]))
    assert torch.equal(logits, before)  # confidence is computed from them too


def test_without_timestamps_only_suppressed_tokens_are_forbidden() -> None:
    """By hand: token 3 everywhere, tokens 5 and 20 at the first position only."""
    applied = rules(timestamps=False).apply(random_sequences(2, 5), torch.tensor([2, 4]), torch.zeros(2, 2, VOCAB))
    forbidden = [[sorted(torch.nonzero(one.isinf()).flatten().tolist()) for one in row] for row in applied]
    assert forbidden == [[[3, 5, END], [3]], [[3], [3]]]
