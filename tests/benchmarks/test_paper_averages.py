"""Averages of Table 16, from its figures for each set."""

import pytest

from averages import set_averages
from toy_results import counts

IN_DISTRIBUTION = [
    [16.9, 36.5, 17.5, 10.4, 10.7, 3.2, 5.6, 18.6, 14.2, 12.0, 7.3],
    [14.7, 33.9, 13.5, 12.9, 10.5, 3.6, 6.9, 16.5, 11.2, 9.6, 8.0],
]
OUT_OF_DISTRIBUTION = [[11.8, 16.6, 4.2, 3.8], [14.0, 16.9, 6.3, 3.3]]
"""WER of large-v2 and of distil-large-v2 in %, set by set."""


@pytest.mark.parametrize(("model", "expected"), [(0, (13.9, 9.1, 12.6)), (1, (12.8, 10.1, 12.1))])
def test_averages_of_table_16(model: int, expected: tuple[float, ...]) -> None:
    """In the order of the table's last three lines."""
    rates = dict(enumerate(map(counts, IN_DISTRIBUTION[model] + OUT_OF_DISTRIBUTION[model])))
    means = set_averages(rates, range(11, 15))
    assert list(means) == ["ID Average", "OOD Average", "Average"]
    assert [100 * macro for macro, _ in means.values()] == pytest.approx(expected, abs=0.0501)
    assert means["ID Average"][1] == pytest.approx(means["ID Average"][0])


def test_a_line_without_sets_is_left_out() -> None:
    """A mean over nothing is no 0 %."""
    errors = {"a": counts(10), "b": counts(30, words=3_000)}
    assert set_averages(errors, ["a", "b"]) == {"OOD Average": (0.2, 0.25), "Average": (0.2, 0.25)}
    assert set_averages(errors, []) == {"ID Average": (0.2, 0.25), "Average": (0.2, 0.25)}
