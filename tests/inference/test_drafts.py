"""Draft lengths: the formula, and what is learnt from the drafts before."""

import pytest

from hf_distil_whisper.inference.speculative import (
    DraftCounts,
    DraftLength,
    best_draft_length,
    tokens_per_check,
)


def test_tokens_per_check_by_hand() -> None:
    """1 + 0.5 + 0.25 for two drafted tokens of even chance; all of them and one more where all are right."""
    assert tokens_per_check(0.5, 2) == 1.75
    assert tokens_per_check(1.0, 5) == 6
    assert tokens_per_check(0.0, 5) == 1


def test_best_length_grows_with_acceptance_and_falls_with_cost() -> None:
    """At α = 0.5 and c = 0.25: 1.5 / 1.25 = 1.2 for one token, 1.75 / 1.5 = 1.17 for two."""
    assert best_draft_length(0.5, 0.25) == 1
    lengths = [best_draft_length(share / 100, 0.1) for share in range(0, 101, 5)]
    assert lengths == sorted(lengths)
    assert (lengths[0], lengths[-1]) == (1, 16)
    assert best_draft_length(0.9, 0.05) > best_draft_length(0.9, 0.3) > best_draft_length(0.9, 0.9)


def test_length_follows_the_drafts_before() -> None:
    """A length that stays what it was at the start wastes either drafts or passes of the main model."""
    length = DraftLength(relative_cost=0.1)
    begin = length.choose()
    for _ in range(30):
        length.update(0, 1)
    assert length.choose() < begin
    for _ in range(500):
        length.update(8, 8)
    assert length.choose() > begin
    assert DraftLength(relative_cost=0.1, fixed=5).choose() == 5
    with pytest.raises(ValueError, match="`draft_length` is -1"):
        DraftLength(relative_cost=0.1, fixed=-1)


def test_counts_add_up() -> None:
    """Rates of a set come from its counts, not from the mean of the rates of its recordings."""
    both = DraftCounts(10, 8, 6, 7, 4) + DraftCounts(5, 2, 0, 1, 5)
    assert both == DraftCounts(15, 10, 6, 8, 9)
    assert (both.acceptance_rate, both.checks_saved) == (0.6, pytest.approx(0.4))
    assert DraftCounts().acceptance_rate != DraftCounts().acceptance_rate
