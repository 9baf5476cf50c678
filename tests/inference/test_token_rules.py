"""The rules of the next token: those of transformers, for rows of different length and several positions at once."""

from types import SimpleNamespace

import pytest
import torch
from transformers import WhisperTimeStampLogitsProcessor

from hf_distil_whisper.inference.decoder import (
    TimestampRules,
    WhisperLogitsRules,
)

VOCAB, END, FIRST, BEGIN = 40, 20, 25, 2


def rules(latest_start: int | None = None, **changes: object) -> WhisperLogitsRules:
    options = {
        "suppress_tokens": [3],
        "begin_suppress_tokens": [5, END],
        "prefix_length": BEGIN,
        "vocab_size": VOCAB,
        "device": torch.device("cpu"),
    }
    return WhisperLogitsRules(**{**options, "timestamps": TimestampRules(FIRST, END, latest_start), **changes})


def by_transformers(latest_start: int | None, row: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
    """One row and one position, through the processor of `generate`, behind the suppressed tokens."""
    config = SimpleNamespace(
        no_timestamps_token_id=FIRST - 1, eos_token_id=END, bos_token_id=END, max_initial_timestamp_index=latest_start
    )
    scores = scores.clone()
    scores[3] = float("-inf")
    if len(row) == BEGIN:
        scores[[5, END]] = float("-inf")
    return WhisperTimeStampLogitsProcessor(config, begin_index=BEGIN)(row[None], scores[None])[0]


def random_sequences(rows: int, length: int) -> torch.Tensor:
    """Text and times in any order, those included that the grammar would not have let through."""
    text = torch.randint(0, END, (rows, length))
    times = torch.randint(FIRST, VOCAB, (rows, length))
    return torch.where(torch.rand(rows, length) < 0.5, text, times)


@pytest.mark.parametrize("latest_start", [None, 4])
def test_timestamps_follow_the_grammar_of_transformers(latest_start: int | None) -> None:
    """A grammar of our own that differs in one case gives other segments, and other text behind them."""
    torch.manual_seed(0)
    for length in range(BEGIN, 9):
        sequences, scores = random_sequences(64, length), 3 * torch.randn(64, VOCAB)
        found = rules(latest_start)(sequences, scores)
        expected = [by_transformers(latest_start, *pair) for pair in zip(sequences, scores, strict=True)]
        assert torch.equal(found, torch.stack(expected))


def test_each_row_is_judged_at_its_own_length() -> None:
    """Speculative decoding: what one row has written must not decide what another may write."""
    torch.manual_seed(1)
    sequences, lengths = random_sequences(32, 12), torch.randint(BEGIN, 9, (32,))
    scores = 3 * torch.randn(32, 4, VOCAB)
    found = rules(4).apply(sequences, lengths, scores)
    for row in range(32):
        for position in range(4):
            before = sequences[row, : lengths[row] + position]
            assert torch.equal(found[row, position], by_transformers(4, before, scores[row, position]))


def test_scores_come_back_as_they_were() -> None:
    """Scores are also what confidence is read from: a rule that writes into them would change it."""
    scores = torch.randn(2, 3, VOCAB)
    before = scores.clone()
    rules(4).apply(random_sequences(2, 8), torch.tensor([2, 4]), scores)
    assert torch.equal(scores, before)


def test_without_timestamps_only_suppressed_tokens_are_forbidden() -> None:
    """By hand: token 3 everywhere, tokens 5 and 20 at the first position only."""
    found = rules(timestamps=None).apply(random_sequences(2, 5), torch.tensor([2, 4]), torch.zeros(2, 2, VOCAB))
    forbidden = [[sorted(torch.nonzero(one.isinf()).flatten().tolist()) for one in row] for row in found]
    assert forbidden == [[[3, 5, END], [3]], [[3], [3]]]
