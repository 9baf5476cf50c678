"""Each source as often as its weight says, and every draw the same after a stop."""

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from datasets import Dataset

from hf_distil_whisper.data.mixture import Mixture, check_same_sources, join_sources, weights_by

SIZES = {"read": 60, "spoken": 20}


def mixture(strategy: str = "all_exhausted", weights: tuple[float, float] = (1.0, 1.0), seed: int = 42) -> Mixture:
    return Mixture(tuple(SIZES), tuple(SIZES.values()), weights, strategy, seed)


def test_the_strategies_decide_how_long_an_epoch_is() -> None:
    """Worked by hand: 60 and 20 rows."""
    assert mixture("first_exhausted").draws == (20, 20)
    assert mixture("all_exhausted").draws == (60, 60)
    assert mixture("all_exhausted_without_replacement").draws == (60, 20)
    assert mixture("first_exhausted", (1.0, 3.0)).draws == (7, 20)
    for strategy in ("first_exhausted", "all_exhausted"):  # weights in the ratio of the rows give every row once
        assert sorted(mixture(strategy, weights_by([60, 20])).rows(3)) == list(range(80))


def test_rows_of_a_source_come_equally_often_over_the_epochs() -> None:
    """Drawn by chance, a third of a large source would not have been seen after as many draws as it has rows."""
    plan = mixture("first_exhausted")
    seen = Counter(int(row) for epoch in range(3) for row in plan.rows(epoch))
    assert [seen[row] for row in range(60)] == [1] * 60
    assert [seen[row] for row in range(60, 80)] == [3] * 20


def test_a_repeated_source_comes_in_whole_passes_mixed_throughout_the_epoch() -> None:
    """A source that comes as a block teaches one domain after the other."""
    rows = mixture("all_exhausted").rows(1)
    assert Counter(row for row in rows if row >= 60) == dict.fromkeys(range(60, 80), 3)
    share = np.add.reduceat(rows < 60, range(0, 120, 30)) / 30
    assert np.all((0.2 < share) & (share < 0.8))


def test_without_replacement_the_weights_decide_what_comes_early() -> None:
    early = mixture("all_exhausted_without_replacement", (1.0, 4.0)).rows(0)
    assert sorted(early) == list(range(80))
    assert np.mean(early[:20] >= 60) > 0.5
    assert np.all(early[-30:] < 60)


def test_seed_and_epoch_alone_decide_the_order() -> None:
    rows = mixture().rows(2)
    assert np.array_equal(rows, mixture().rows(2))
    for other in (mixture().rows(3), mixture(seed=1).rows(2)):
        assert not np.array_equal(rows, other)


def test_other_sources_than_before_the_stop_are_refused() -> None:
    """The same row numbers would name rows of another source."""
    state = mixture().state()
    check_same_sources(mixture().state(), state)
    turned = Mixture(("spoken", "read"), (20, 60), (1.0, 1.0))
    with pytest.raises(ValueError, match=r"names were \['read', 'spoken'\] .* are \['spoken', 'read'\] now"):
        check_same_sources(turned.state(), state)
    with pytest.raises(ValueError, match="weights were"):
        check_same_sources(mixture(weights=(1.0, 2.0)).state(), state)


def test_what_makes_no_mixture_is_refused() -> None:
    for changes, message in (
        ({"weights": (1.0, 0.0)}, r"weight above 0 for each, got \{'read': 1\.0, 'spoken': 0\.0\}"),
        ({"stopping_strategy": "never"}, "`stopping_strategy` is 'never', expected one of first_exhausted"),
        ({"sizes": (3, 0)}, "at least one row of each of read, spoken"),
    ):
        with pytest.raises(ValueError, match=message):
            replace(mixture(), **changes)


def test_sources_are_joined_by_the_columns_that_count_and_of_one_kind() -> None:
    """`concatenate_datasets` fills what a source lacks in silence, and refuses other columns that nobody needs."""
    read = Dataset.from_dict({"text": ["a", "b"], "page": [1, 2], "audio": [{"path": "a"}, {"path": "b"}]})
    spoken = Dataset.from_dict(
        {"truncated": [True], "text": ["c"], "page": ["i"], "audio": [{"path": "c", "offset": 1.5}]}
    )
    rows = join_sources({"read": read, "spoken": spoken}, ("id", "text", "truncated", "audio"))
    assert rows.to_dict() == {
        "audio": [{"path": "a", "offset": None}, {"path": "b", "offset": None}, {"path": "c", "offset": 1.5}],
        "text": ["a", "b", "c"],
        "truncated": [None, None, True],
        "source": ["read", "read", "spoken"],
    }
    with pytest.raises(ValueError, match="spoken: its columns do not go with those of the other sources"):
        join_sources({"read": read, "spoken": spoken}, ("page",))
