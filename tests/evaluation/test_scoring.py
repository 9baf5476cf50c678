"""Scoring: counts that are jiwer's, row by row and in sum, whatever stands in the rows."""

from pathlib import Path

import jiwer
import pytest
from datasets import Dataset
from pyarrow.parquet import write_table
from whisper_normalizer.english import EnglishTextNormalizer

from hf_distil_whisper.data.sources import RowErrors
from hf_distil_whisper.evaluation.evaluate import (
    COUNTS,
    KINDS,
    ROW_FEATURES,
    EvaluationResult,
    Heard,
    NothingReadError,
    merge_results,
    score,
)
from hf_distil_whisper.metrics import WordErrors

CASES = [
    ("The cat sat on the mat.", "the cat sat on mat"),
    ("Mr. Quilter's colour, isn't it?", "mister quilters color is not it"),
    ("It costs twenty-one dollars", "it costs $21"),
    ("She said: hello hello", "she said hello"),
    ("one two three", "1 2 3"),
    ("nothing was heard", ""),
    ("Naïve café", "naive cafe au lait"),
    ("  spaces   everywhere ", "spaces everywhere"),
    ("yes", "no no no no"),
]


def heard(reference: str | None, prediction: str | None, name: str = "a", duration: float = 2.0) -> Heard:
    return Heard(name, reference, prediction, duration=duration, truncated=False)


def counted(output: jiwer.WordOutput | jiwer.CharacterOutput) -> WordErrors:
    return WordErrors(output.hits, output.substitutions, output.deletions, output.insertions)


def test_counts_are_those_of_jiwer_behind_the_published_normaliser() -> None:
    """A slip in what is aligned with what shifts every table by some tenths, and nobody sees it."""
    result = score([heard(*pair) for pair in CASES], RowErrors(), 1.0, language="en")
    plain = tuple(list(side) for side in zip(*CASES, strict=True))
    published = EnglishTextNormalizer()
    normalized = tuple([published(text).strip() for text in side] for side in plain)
    assert [row["normalized_reference"] for row in result.rows] == normalized[0]
    assert [row["normalized_prediction"] for row in result.rows] == normalized[1]
    assert result.errors == counted(jiwer.process_words(*normalized))
    assert result.character_errors == counted(jiwer.process_characters(*normalized))
    assert result.orthographic_errors == counted(jiwer.process_words(*plain))
    assert result.orthographic_character_errors == counted(jiwer.process_characters(*plain))
    for row, reference, prediction in zip(result.rows, *normalized, strict=True):
        assert row["wer"] == pytest.approx(jiwer.wer(reference, prediction))


def test_four_counts_of_one_row_are_as_worked_out_by_hand() -> None:
    """Case and the full stop are errors as written, and none after normalising."""
    result = score([heard("The cat sat.", "the cat sad down")], RowErrors(), 1.0, language="en")
    assert result.errors == WordErrors(hits=2, substitutions=1, insertions=1)
    assert result.orthographic_errors == WordErrors(hits=1, substitutions=2, insertions=1)
    assert result.character_errors == WordErrors(hits=10, substitutions=1, insertions=5)
    assert result.cer == 6 / 11
    assert result.orthographic_character_errors.num_words == len("The cat sat.")


def test_rows_add_up_to_the_result() -> None:
    """A table whose columns do not sum to the printed rate is worth nothing."""
    pairs = [*CASES, ("", "uh"), (None, None), ("?!", "what")]
    result = score([heard(*pair) for pair in pairs], RowErrors(), 1.0, language="en")
    for prefix, name in COUNTS.items():
        rows = [[row[prefix + kind] for kind in KINDS] for row in result.rows if row["wer"] is not None]
        assert WordErrors(*map(sum, zip(*rows, strict=True))) == getattr(result, name)
    assert result.empty_references == 3
    assert [errors for _, errors in result.utterance_errors()] == [
        WordErrors(*(row[kind] for kind in KINDS)) for row in result.rows[: len(CASES)]
    ]
    assert {row[prefix + kind] for row in result.rows[len(CASES) :] for prefix in COUNTS for kind in KINDS} == {None}


def test_a_missing_hypothesis_lacks_every_word() -> None:
    """Left out, the rows on which a recogniser gave up would improve its rate."""
    result = score([heard("the fox", None), heard("jumps", "")], RowErrors(), 1.0, language="en")
    assert result.errors == result.orthographic_errors == WordErrors(deletions=3)
    assert (result.rows[0]["prediction"], result.rows[0]["normalized_prediction"]) == (None, "")


def test_without_spaces_all_counts_are_of_characters() -> None:
    """One wrong character would be a WER of 100 %, and a space that nobody hears an error."""
    result = score([heard("今天 天气很好。", "今天天汽很好")], RowErrors(), 1.0, language="zh")
    assert result.unit == "character"
    assert result.errors == result.character_errors == WordErrors(hits=5, substitutions=1)
    assert result.orthographic_errors == WordErrors(hits=5, substitutions=1, deletions=1)


def test_without_spaces_repeated_runs_are_of_characters() -> None:
    """Split at white space, a loop of a whole minute is one word, and 5-Dup. says that nothing was made up."""
    loop = "今天天气很好。" * 4
    for language, expected in (("zh", 20 - 6), ("en", 0)):  # 24 characters hold 20 runs of five, 6 of them distinct
        result = score([heard("今天", loop), heard(None, "今天天气 很好")], RowErrors(), 1.0, language=language)
        assert [row["repeated_5grams"] for row in result.rows] == [expected, 0]
        assert result.repeated_5grams == expected


def test_parts_of_a_set_merge_into_its_result() -> None:
    """Rates averaged over processes weigh a short share like a long one; floats added in another order differ."""
    rows = [heard(*pair, name=str(n), duration=0.1 * (n + 1)) for n, pair in enumerate([*CASES, ("", "uh")])]
    errors = RowErrors([("x", "gone"), ("y", "gone too")])
    whole = score(rows, errors, 3.0, language="en")
    parts = [
        score(rows[:3], RowErrors(errors.rows[:1]), 1.0, language="en"),
        score(rows[3:], RowErrors(errors.rows[1:]), 2.0, language="en"),
    ]
    assert merge_results(parts) == whole
    with pytest.raises(ValueError, match="got no part"):
        merge_results([])
    with pytest.raises(ValueError, match="same unit"):
        merge_results([whole, score([heard("今天", "今天")], RowErrors(), 1.0, language="zh")])


def test_the_table_has_the_same_columns_and_types_for_every_set(tmp_path: Path) -> None:
    """A set without references would give columns of nulls, which no reader joins with those of another set."""
    for name, pairs in (("scored", CASES), ("silent", [(None, None), ("", "uh")])):
        result = score([heard(*pair) for pair in pairs], RowErrors(), 1.0, language="en")
        write_table(result.table().data.table, tmp_path / f"{name}.parquet")
        read = Dataset.from_parquet(str(tmp_path / f"{name}.parquet"), cache_dir=str(tmp_path / "cache"))
        assert read.features == ROW_FEATURES
        assert read.to_list() == result.rows


def test_a_set_of_which_nothing_could_be_read_says_why() -> None:
    with pytest.raises(NothingReadError, match=r"No row could be read[\s\S]*a: broken") as caught:
        score([], RowErrors([("a", "broken")]), 0.0, language="en")
    assert list(caught.value.row_errors) == [("a", "broken")]


def test_a_result_needs_only_what_a_rate_needs() -> None:
    """Reports and cards build results of their own from stored counts."""
    result = EvaluationResult(WordErrors(hits=9, substitutions=1), [], seconds=1.0, audio_seconds=4.0)
    assert (result.wer, result.cer, result.rtf, result.unit) == (0.1, 0.0, 0.25, "word")
