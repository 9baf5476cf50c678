"""Teacher, student and assisted teacher on one recording: their texts, and the words that differ."""

import numpy as np
import pytest

from hf_distil_whisper.evaluation import side_by_side
from hf_distil_whisper.evaluation.side_by_side import (
    ASSISTED,
    STUDENT,
    TEACHER,
    Attempt,
    contenders,
    mark_words,
    transcribe_side_by_side,
    warm_up,
)
from hf_distil_whisper.inference.sequential import StuckTranscriptionError
from hf_distil_whisper.inference.transcribe import transcribe
from hf_distil_whisper.student import create_student
from talking_models import multilingual_whisper, talking_whisper
from toy_models import toy_audio, toy_processor


def test_words_are_marked_as_written() -> None:
    """A mark on the normalised text would show the reader another text than the model wrote."""
    marked = mark_words("The cat sat, down.", "the bat Sat", "en")
    assert marked == [("the", "same", ""), ("bat", "other", "cat"), ("Sat", "same", ""), ("down.", "missing", "")]


@pytest.mark.parametrize(
    ("teacher", "text", "language"),
    [
        ("It's Mr. Smith's colour!", "it is mister smith is COLOR", "en"),
        ("Um, hello -- there", "hello there", "en"),
        ("你好世界。", "你 好世界", "zh"),
        ("", "", "en"),
    ],
)
def test_case_punctuation_and_spelling_are_no_difference(teacher: str, text: str, language: str) -> None:
    """A page full of marked commas hides the one word that is wrong."""
    assert all(word.mark == "same" for word in mark_words(teacher, text, language))


def test_missing_words_stand_where_the_teacher_has_them() -> None:
    marked = mark_words("one two three four five six", "two four five seven six", "basic")
    assert [(word.text, word.mark) for word in marked] == [
        ("one", "missing"),
        ("two", "same"),
        ("three", "missing"),
        ("four", "same"),
        ("five", "same"),
        ("seven", "other"),
        ("six", "same"),
    ]


def test_one_side_without_words() -> None:
    """An alignment with an empty side is where libraries differ."""
    assert [word.mark for word in mark_words("hello there", "", "en")] == ["missing", "missing"]
    assert [word.mark for word in mark_words("", "hello there", "en")] == ["other", "other"]


def test_a_language_without_spaces_is_compared_by_characters() -> None:
    """By words, one wrong character would mark the whole sentence."""
    marked = mark_words("今日は良い", "今日わ良い", "ja")
    assert [word.text for word in marked if word.mark != "same"] == ["わ"]
    assert next(word for word in marked if word.mark == "other").teacher == "は"


def test_rates_of_an_attempt() -> None:
    """3 s of work on 12 s of audio are 0.25."""
    one = Attempt(STUDENT, "a c", 3.0, 12.0, mark_words("a b", "a c", "en"))
    assert (one.rtf, one.num_differences) == (0.25, 1)


def test_the_three_texts_are_those_of_transcribe() -> None:
    """A comparison with settings of its own shows texts that nobody else gets; the assisted one is the teacher's."""
    teacher, processor = talking_whisper(4), toy_processor()
    student = create_student(teacher, decoder_layers=2).eval()
    models, why = contenders(student, teacher, processor)
    warm_up(models)
    samples = toy_audio(5.0)
    found = transcribe_side_by_side(models, samples)
    assert why is None
    assert [one.role for one in found] == [TEACHER, STUDENT, ASSISTED]
    expected = [transcribe(model, processor, samples)[0].text for model in (teacher, student, teacher)]
    assert [one.text for one in found] == expected
    assert expected[0]
    assert found[2].num_differences == 0
    assert all(one.seconds > 0 and one.duration == 5.0 for one in found)


def test_a_student_of_another_teacher_is_shown_without_the_third_column() -> None:
    """A student with its own encoder is worth comparing; it ended the page with a traceback."""
    models, why = contenders(talking_whisper(1), talking_whisper(4), toy_processor())
    assert [one.role for one in models] == [TEACHER, STUDENT]
    assert "encoder" in (why or "")


def test_a_language_is_not_asked_of_an_english_model() -> None:
    """A multilingual model's text, language unknown, must not go through the English normaliser."""
    teacher = multilingual_whisper()
    models, _ = contenders(create_student(teacher, decoder_layers=2).eval(), teacher, toy_processor())
    assert len(transcribe_side_by_side(models, toy_audio(1.0), language="de")) == len(models)
    assert len(transcribe_side_by_side(models[:1], toy_audio(1.0))) == 1


@pytest.mark.parametrize("stuck", [0, 1])
def test_a_model_without_an_end_costs_its_own_column(stuck: int, monkeypatch: pytest.MonkeyPatch) -> None:
    teacher = talking_whisper(4)
    models, _ = contenders(create_student(teacher, decoder_layers=2).eval(), teacher, toy_processor())
    whole = side_by_side.transcribe

    def some(model: object, *args: object, **options: object) -> object:
        if model is models[stuck].model:
            raise StuckTranscriptionError("does not move on")
        return whole(model, *args, **options)

    monkeypatch.setattr(side_by_side, "transcribe", some)
    found = transcribe_side_by_side(models[:2], np.asarray(toy_audio(2.0)))
    assert found[stuck].problem == "does not move on"
    assert found[1 - stuck].problem is None
    assert found[1 - stuck].text
