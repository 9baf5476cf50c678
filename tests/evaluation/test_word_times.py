"""Word times of two transcripts held side by side: what is compared, counted and left out."""

import pytest

from hf_distil_whisper.data.sources import RowErrors
from hf_distil_whisper.evaluation.word_times import (
    WordTimeErrors,
    compare_word_times,
    pair_words,
)
from hf_distil_whisper.inference.output import Word
from hf_distil_whisper.inference.word_timestamps import set_alignment_heads
from talking_models import talking_whisper
from toy_models import toy_processor, toy_rows


def words(*spoken: tuple[float, float, str]) -> list[Word]:
    return [Word(start, end, text, 1.0) for start, end, text in spoken]


def test_differences_worked_by_hand() -> None:
    """The start of the first word is 0 by construction: counted, it would make every model look better."""
    teacher = words((0.0, 0.5, "The"), (0.5, 1.0, "cat,"), (1.0, 2.0, "sat"), (2.0, 2.5, "there."))
    student = words((0.0, 0.4, "the"), (0.4, 1.0, "cat"), (1.0, 1.5, "was"), (1.5, 2.5, "There"))
    errors = pair_words(teacher, student)
    assert errors.differences == pytest.approx((0.1, 0.1, 0.0, 0.5, 0.0))
    assert (errors.num_common, errors.within, errors.num_words) == (3, 2, 4)
    assert errors.percentile(50) == pytest.approx(0.1)
    assert errors.share_within == pytest.approx(2 / 3)


def test_counts_add_up() -> None:
    one = pair_words(words((0, 1, "a"), (1, 2, "b")), words((0, 1, "a"), (1, 2, "b")))
    other = pair_words(words((0, 1, "a")), words((0, 1, "c")))
    total = one + other
    assert (total.num_common, total.num_words, total.num_recordings, total.num_without_common) == (2, 3, 2, 1)
    assert total.differences == (0.0, 0.0, 0.0)


def test_no_word_in_common_has_no_median() -> None:
    """A median of nothing is NaN, and NaN is below no bound and above none."""
    for errors in (WordTimeErrors(), pair_words([], []), pair_words(words((0, 1, "a")), words((0, 1, "b")))):
        assert errors.share_within == 0
        with pytest.raises(ValueError, match="0 words in common"):
            errors.percentile(50)


def test_a_model_is_0_from_itself_and_bad_rows_are_counted_once() -> None:
    model, errors = talking_whisper(4), RowErrors()
    set_alignment_heads(model, [[2, 1], [3, 0]])
    rows = [*toy_rows(2, 6.0), {"id": "broken", "audio": b"no audio"}]
    found = compare_word_times(model, model, toy_processor(), rows, errors)
    assert (found.percentile(90), found.share_within) == (0.0, 1.0)
    assert (found.num_recordings, len(errors)) == (2, 1)
    with pytest.raises(ValueError, match="align-heads"):
        compare_word_times(talking_whisper(4), model, toy_processor(), rows, errors)
