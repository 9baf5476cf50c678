"""Two models on the same utterances: paired by id, however the rows lie and whatever is missing."""

import math

import numpy as np
import pytest

from hf_distil_whisper.evaluation.evaluate import EvaluationResult
from hf_distil_whisper.evaluation.significance import (
    compare_results,
    confidence_interval,
    effective_robustness,
    macro_average,
    micro_average,
    relative_error_rate,
)
from hf_distil_whisper.metrics import WordErrors, bootstrap_interval
from toy_results import counts, scored


def wrong(counts: dict[str, int], words: int = 10) -> EvaluationResult:
    """A row for every id, with so many wrong words of ten."""
    return scored(
        {name: ("word " * words, "word " * (words - count) + "wrong " * count) for name, count in counts.items()}
    )


def test_rows_are_paired_by_id_and_the_others_counted() -> None:
    """Paired by position, one unreadable row sets every utterance beside another one."""
    comparison = compare_results(wrong({"a": 1, "b": 0, "ours": 10}), wrong({"theirs": 10, "b": 2, "a": 3}))
    assert (comparison.paired, comparison.unpaired) == (2, 2)
    assert (comparison.errors, comparison.baseline_errors) == (WordErrors(19, 1), WordErrors(15, 5))
    assert comparison.difference == pytest.approx(-0.2)
    # Two normalisers, or two corpora with the same row numbers, have nothing to compare.
    assert compare_results(wrong({"a": 1}), wrong({"a": 1}, words=9)) is None
    assert compare_results(wrong({"a": 1}), wrong({"b": 1})) is None


def test_a_difference_on_all_rows_is_significant_and_one_by_chance_is_not() -> None:
    rng = np.random.default_rng(1)
    counts = {str(row): int(count) for row, count in enumerate(rng.integers(0, 5, size=100))}
    worse = compare_results(wrong({name: count + 1 for name, count in counts.items()}), wrong(counts))
    assert worse.difference == pytest.approx(0.1)
    assert worse.interval == pytest.approx((0.1, 0.1))
    assert worse.p_value < 0.01
    other = dict(zip(counts, rng.permutation(list(counts.values())).tolist(), strict=True))
    chance = compare_results(wrong(other), wrong(counts))
    assert chance.difference == pytest.approx(0.0)
    assert chance.interval[0] < 0 < chance.interval[1]
    assert chance.p_value == 1.0


def test_a_set_without_references_has_no_interval() -> None:
    silent = scored([("", "uh")])
    assert confidence_interval(silent) is None
    assert compare_results(silent, silent) is None
    result = wrong({"a": 1, "b": 4})
    assert confidence_interval(result) == bootstrap_interval([WordErrors(9, 1), WordErrors(6, 4)])


TABLE_6 = {
    "GigaSpeech": (10.7, 10.5, -2.0),
    "CHIME-4": (11.8, 14.0, 18.4),
    "Earnings-22": (16.6, 16.9, 1.6),
    "FLEURS": (4.2, 6.3, 48.2),
    "SPGISpeech": (3.8, 3.3, -12.8),
}
"""WER of large-v2 and distil-large-v2 and relative error rate, all in %."""


def table_6() -> tuple[dict[str, WordErrors], dict[str, WordErrors]]:
    baseline, model = ({name: counts(row[column]) for name, row in TABLE_6.items()} for column in (0, 1))
    return baseline, model


def test_relative_error_rate_by_hand() -> None:
    """Relative to the model instead of the baseline, a doubling reads as 50 %."""
    for wer, baseline, expected in (
        (0.2, 0.1, 1.0),
        (0.05, 0.1, -0.5),
        (1.5, 1.0, 0.5),
        (0, 0, 0),
        (0.1, 0, math.inf),
    ):
        assert relative_error_rate(wer, baseline) == pytest.approx(expected)
    for rates in ((-0.1, 0.1), (0.1, -0.1), (math.nan, 0.1), (0.1, math.nan)):
        with pytest.raises(ValueError, match="expected a word error rate of at least 0"):
            relative_error_rate(*rates)


def test_table_6_of_the_paper() -> None:
    """The paper worked from unrounded rates: each of its figures lies within what the rounding of both permits."""
    result = effective_robustness(*table_6(), reference="GigaSpeech")
    for name, (baseline, model, rate) in TABLE_6.items():
        assert result.baseline[name].wer == pytest.approx(baseline / 100)
        assert result.model[name].wer == pytest.approx(model / 100)
        low = (model - 0.05) / (baseline + 0.05) - 1
        high = (model + 0.05) / (baseline - 0.05) - 1
        assert low < result.relative_error_rates[name] < high
        assert low - 0.0005 < rate / 100 < high + 0.0005
    assert macro_average(result.baseline) == pytest.approx(0.094, abs=0.0005)
    assert macro_average(result.model) == pytest.approx(0.102, abs=0.0005)
    # The last line, 10.7 %, is the mean of the five rates; the average WERs differ by 8 %.
    assert sum(row[2] for row in TABLE_6.values()) / 5 == pytest.approx(10.7, abs=0.05)
    assert result.mean_relative_error_rate == pytest.approx(0.107, abs=0.005)
    assert result.relative_error_rate_of_averages == pytest.approx((51.0 - 47.1) / 47.1)
    # By hand: large-v2 loses -1.6 points out of distribution, distil-large-v2 -0.375: it keeps less of its rate.
    assert (11.8 + 16.6 + 4.2 + 3.8) / 400 - 0.107 == pytest.approx(-0.016)
    assert result.effective_robustness == pytest.approx(-0.01225)


def test_a_model_that_is_worse_everywhere_alike_is_as_robust() -> None:
    """Overall robustness counts every point; effective robustness only what the reference does not foretell."""
    teacher = {"seen": counts(5), "far": counts(9), "farther": counts(13)}
    student = {"seen": counts(7), "far": counts(11), "farther": counts(15)}
    result = effective_robustness(teacher, student, reference="seen")
    assert result.effective_robustness == pytest.approx(0.0)
    assert effective_robustness(teacher, teacher, reference="seen").mean_relative_error_rate == 0.0
    better = effective_robustness(teacher, {**student, "far": counts(9)}, reference="seen")
    assert better.effective_robustness == pytest.approx(0.01)


def test_table_has_the_layout_of_table_6() -> None:
    """The reference comes first, whatever the order of the sets, and the averages last."""
    baseline, model = table_6()
    result = effective_robustness(dict(reversed(baseline.items())), model, reference="GigaSpeech")
    lines = result.table("large-v2", "distil-large-v2").splitlines()
    assert lines[0] == "| Dataset | large-v2 | distil-large-v2 | RER |"
    assert lines[2] == "| GigaSpeech | 10.7 | 10.5 | -1.9 |"
    assert lines[-1] == "| Average | 9.4 | 10.2 | 11.1 |"
    assert len(lines) == 8
    # A set without a teacher error must not end an evaluation of hours.
    table = effective_robustness({"a": counts(0), "b": counts(2)}, {"a": counts(1), "b": counts(2)}, "b").table()
    assert "| a | 0.0 | 1.0 | ∞ |" in table
    assert table.endswith("| Average | 1.0 | 1.5 | ∞ |")


def test_sets_that_cannot_be_compared_are_named() -> None:
    """An average over different sets compares test sets, not models."""
    baseline, model = table_6()
    others = {name: errors for name, errors in model.items() if name != "FLEURS"} | {"TED": counts(1)}
    one, silent = {"a": counts(1)}, {"FLEURS": WordErrors(insertions=3)}
    for ours, theirs, reference, message in (
        (model, baseline, "LibriSpeech", r"`reference`: 'LibriSpeech' is not among the sets.*GigaSpeech, CHIME-4"),
        (others, baseline, "GigaSpeech", "same sets, but baseline has FLEURS alone and model has TED alone"),
        (one, one, "a", "'a' is the only set; expected at least one more"),
        ({}, baseline, "GigaSpeech", "`model`: expected error counts by set, got none"),
        (model | silent, baseline, "GigaSpeech", "`model`: the references of 'FLEURS' hold no words"),
    ):
        with pytest.raises(ValueError, match=message):
            effective_robustness(theirs, ours, reference=reference)


def test_macro_counts_sets_and_micro_counts_words() -> None:
    """A set of 10 words and one of 1,000 weigh alike in the one, not in the other."""
    errors = {"small": WordErrors(hits=5, deletions=5), "large": WordErrors(hits=900, substitutions=100, insertions=9)}
    assert macro_average(errors) == pytest.approx((0.5 + 0.109) / 2)
    assert micro_average(errors) == pytest.approx(114 / 1010)
    for average in (macro_average, micro_average):
        with pytest.raises(ValueError, match="got none"):
            average({})
