"""Batches of similar length, and progress over rows and hours of audio."""

import pytest
from transformers.utils import logging

from hf_distil_whisper.inference.dataset import AudioProgress, batches_by_length


def test_batches_hold_every_row_once_and_go_from_long_to_short() -> None:
    """A lost last batch is a lost label for every row in it."""
    assert batches_by_length([1.0, 5.0, 3.0, 5.0, 2.0], batch_size=2) == [[1, 3], [2, 4], [0]]
    with pytest.raises(ValueError, match="batch_size"):
        batches_by_length([1.0], batch_size=0)


def test_a_token_budget_makes_large_batches_of_short_recordings() -> None:
    """Worked by hand: 186 tokens are expected in 30 s, 18 in 2 s."""
    lengths = [2.0] * 30 + [30.0] * 4
    batches = batches_by_length(lengths, batch_size=20, token_budget=400)
    assert [len(batch) for batch in batches] == [2, 2, 20, 10]
    assert sorted(index for batch in batches for index in batch) == list(range(34))
    assert [len(batch) for batch in batches_by_length([30.0, 30.0], 20, token_budget=1)] == [1, 1]
    with pytest.raises(ValueError, match="`token_budget` is 0"):
        batches_by_length([1.0], batch_size=2, token_budget=0)


def advance(progress: AudioProgress) -> AudioProgress:
    progress.update(2, 10.0)
    progress.complete(4)
    progress.update(9, 1.0)
    progress.close()
    return progress


def test_rows_are_counted_once_and_never_beyond_the_last() -> None:
    bar = advance(AudioProgress(10, "toys", initial=3)).bar
    assert (bar.n, bar.initial) == (10, 3)


def test_work_goes_on_where_progress_bars_are_switched_off(monkeypatch: pytest.MonkeyPatch) -> None:
    """`disable_progress_bar()` of transformers would end every evaluation."""
    monkeypatch.setattr(logging, "_tqdm_active", False)
    advance(AudioProgress(10, "toys", initial=3))
    advance(AudioProgress(None, "toys"))
