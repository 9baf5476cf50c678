"""Averages of Table 16, from its figures for each set."""

import pytest

from averages import set_averages
from hf_distil_whisper import WordErrors

TABLE_16 = {
    "AMI IHM": (16.9, 14.7),
    "AMI SDM": (36.5, 33.9),
    "Call Home": (17.5, 13.5),
    "Common Voice 13": (10.4, 12.9),
    "GigaSpeech": (10.7, 10.5),
    "LibriSpeech clean": (3.2, 3.6),
    "LibriSpeech other": (5.6, 6.9),
    "People's Speech": (18.6, 16.5),
    "SwitchBoard": (14.2, 11.2),
    "TED-LIUM": (12.0, 9.6),
    "Voxpopuli": (7.3, 8.0),
    "CHIME-4": (11.8, 14.0),
    "Earnings-22": (16.6, 16.9),
    "FLEURS": (4.2, 6.3),
    "SPGISpeech": (3.8, 3.3),
}
"""WER of large-v2 and distil-large-v2 in %; the last four are out of distribution."""


def counts(percent: float, words: int = 1_000) -> WordErrors:
    wrong = round(percent * words / 100)
    return WordErrors(hits=words - wrong, substitutions=wrong)


@pytest.mark.parametrize(("column", "expected"), [(0, (13.9, 9.1, 12.6)), (1, (12.8, 10.1, 12.1))])
def test_averages_of_table_16(column: int, expected: tuple[float, ...]) -> None:
    """In the order of the table's last three lines."""
    means = set_averages({name: counts(rates[column]) for name, rates in TABLE_16.items()}, list(TABLE_16)[11:])
    assert list(means) == ["ID Average", "OOD Average", "Average"]
    assert [100 * macro for macro, _ in means.values()] == pytest.approx(expected, abs=0.0501)
    assert means["ID Average"][1] == pytest.approx(means["ID Average"][0])


def test_a_line_without_sets_is_left_out() -> None:
    """A mean over nothing is no 0 %."""
    errors = {"a": counts(10), "b": counts(30, words=3_000)}
    assert set_averages(errors, ["a", "b"]) == {"OOD Average": (0.2, 0.25), "Average": (0.2, 0.25)}
    assert set_averages(errors, []) == {"ID Average": (0.2, 0.25), "Average": (0.2, 0.25)}
