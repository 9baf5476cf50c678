"""Aligned words: the errors that were counted, where they were made, and the worst rows first."""

import pytest

from hf_distil_whisper.data.sources import RowErrors
from hf_distil_whisper.evaluation.evaluate import (
    EvaluationResult,
    Heard,
    score,
)
from hf_distil_whisper.evaluation.results import (
    align_words,
    alignment_text,
    worst_utterances,
)
from hf_distil_whisper.metrics import (
    WordErrors,
    character_errors,
    word_errors,
)


def scored(pairs: list[tuple[str | None, str]], language: str = "en") -> EvaluationResult:
    heard = [Heard(f"row-{n}", *pair, duration=1.0, truncated=False) for n, pair in enumerate(pairs)]
    return score(heard, RowErrors(), 1.0, language=language)


def test_words_are_aligned_as_worked_out_by_hand() -> None:
    assert align_words("the cat sat on the mat", "oh the bat sat on mat") == [
        ("insertion", None, "oh"),
        ("hit", "the", "the"),
        ("substitution", "cat", "bat"),
        ("hit", "sat", "sat"),
        ("hit", "on", "on"),
        ("deletion", "the", None),
        ("hit", "mat", "mat"),
    ]


@pytest.mark.parametrize(("reference", "hypothesis"), [("", ""), ("", "a b"), ("a b", ""), ("a b c d", "x b y z d e")])
@pytest.mark.parametrize("characters", [False, True])
def test_operations_are_those_that_were_counted(reference: str, hypothesis: str, characters: bool) -> None:
    """A picture of other errors than those in the table explains nothing."""
    words = align_words(reference, hypothesis, characters=characters)
    names = [word.operation for word in words]
    kinds = ("hit", "substitution", "deletion", "insertion")
    if characters:
        expected = character_errors(reference.replace(" ", ""), hypothesis.replace(" ", ""))
    else:
        expected = word_errors(reference, hypothesis)
    assert WordErrors(*(names.count(kind) for kind in kinds)) == expected


def test_text_marks_errors_by_capitals_stars_and_letters() -> None:
    words = align_words("the cat sat", "a cat sat down")
    assert alignment_text(words).splitlines() == [
        "REF: THE cat sat ***",
        "HYP: A   cat sat DOWN",
        "     S           I",
    ]
    assert alignment_text([]) == "REF:\nHYP:\n"


def test_long_texts_go_on_in_further_blocks() -> None:
    """A recording of an hour in one line cannot be read."""
    text = alignment_text(align_words("one two three four five " * 4, "one two tree four five " * 4), width=30)
    assert max(map(len, text.splitlines())) <= 30
    lines = [line[5:] for line in text.splitlines() if line.startswith("REF:")]
    assert " ".join(lines).split() == ["one", "two", "THREE", "four", "five"] * 4


def test_worst_utterances_cost_the_most_errors() -> None:
    """By the rate alone, every "yes" heard as "yeah" would stand before a lost paragraph."""
    pairs = [
        ("yes", "yeah"),
        ("the cat sat on the mat", "the"),
        ("a b", "a b"),
        (None, "uh"),
        ("a b c d e f", "a x c"),
    ]
    worst = worst_utterances(scored(pairs))
    assert [(one.id, one.num_errors) for one in worst] == [("row-1", 5), ("row-4", 4), ("row-0", 1)]
    assert worst[2].text() == "row-0: 1 error, WER 100.0%\nREF: YES\nHYP: YEAH\n     S"
    assert len(worst_utterances(scored(pairs), k=1)) == 1
    with pytest.raises(ValueError, match="k >= 1, got 0"):
        worst_utterances(scored(pairs), k=0)


def test_without_spaces_characters_are_aligned() -> None:
    """The whole sentence would be one wrong word. Wide characters take two places of a terminal."""
    (one,) = worst_utterances(scored([("今天天气", "今天汽")], "zh"))
    assert one.num_errors == 2
    assert (
        len({len(line) for line in alignment_text(align_words("天a", "天bb", characters=True)).splitlines()[:2]}) == 1
    )
