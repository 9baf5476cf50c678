"""Two models on the same utterances: paired by id, however the rows lie and whatever is missing."""

import numpy as np
import pytest

from hf_distil_whisper.data.sources import RowErrors
from hf_distil_whisper.evaluation.evaluate import (
    EvaluationResult,
    Heard,
    score,
)
from hf_distil_whisper.evaluation.significance import (
    compare_results,
    confidence_interval,
)
from hf_distil_whisper.metrics import (
    WordErrors,
    bootstrap_interval,
)


def scored(wrong: dict[str, int], words: int = 10) -> EvaluationResult:
    """A row for every id, with so many wrong words of ten."""
    heard = [
        Heard(name, "word " * words, "word " * (words - count) + "wrong " * count, 1.0, False)
        for name, count in wrong.items()
    ]
    return score(heard, RowErrors(), 1.0, language="en")


def test_rows_are_paired_by_id_and_the_others_counted() -> None:
    """Paired by place, one unreadable row sets every utterance beside another one."""
    ours = scored({"a": 1, "b": 0, "only ours": 10})
    theirs = scored({"only theirs": 10, "b": 2, "a": 3})
    found = compare_results(ours, theirs)
    assert (found.paired, found.unpaired) == (2, 2)
    assert (found.errors, found.baseline_errors) == (WordErrors(19, 1), WordErrors(15, 5))
    assert found.difference == pytest.approx(-0.2)


def test_a_difference_on_all_rows_is_significant_and_one_by_chance_is_not() -> None:
    rng = np.random.default_rng(1)
    counts = {str(row): int(count) for row, count in enumerate(rng.integers(0, 5, size=100))}
    worse = compare_results(scored({name: count + 1 for name, count in counts.items()}), scored(counts))
    assert worse.difference == pytest.approx(0.1)
    assert worse.interval == pytest.approx((0.1, 0.1))
    assert worse.p_value < 0.01
    other = dict(zip(counts, rng.permutation(list(counts.values())).tolist(), strict=True))
    chance = compare_results(scored(other), scored(counts))
    assert chance.difference == pytest.approx(0.0)
    assert chance.interval[0] < 0 < chance.interval[1]
    assert chance.p_value == 1.0


def test_other_references_are_no_pairs() -> None:
    """Two normalisers, or two corpora with the same row numbers, have nothing to compare."""
    assert compare_results(scored({"a": 1}), scored({"a": 1}, words=9)) is None
    assert compare_results(scored({"a": 1}), scored({"b": 1})) is None


def test_a_set_without_references_has_no_interval() -> None:
    silent = score([Heard("a", "", "uh", 1.0, False)], RowErrors(), 1.0, language="en")
    assert confidence_interval(silent) is None
    assert compare_results(silent, silent) is None
    result = scored({"a": 1, "b": 4})
    assert confidence_interval(result) == bootstrap_interval([WordErrors(9, 1), WordErrors(6, 4)])
