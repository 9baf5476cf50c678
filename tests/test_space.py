"""The page of examples/space: its metadata, the words that it marks, its HTML, and what its button answers."""

import re
from collections.abc import Callable
from pathlib import Path

import gradio
import numpy as np
import pytest
import soundfile
from huggingface_hub import SpaceCard

from hf_distil_whisper.cli.demo import load_app
from hf_distil_whisper.data.audio import READABLE, load_audio
from hf_distil_whisper.inference.sequential import StuckTranscriptionError
from hf_distil_whisper.inference.transcribe import transcribe
from hf_distil_whisper.student import create_student
from talking_models import multilingual_whisper, talking_whisper
from toy_models import toy_audio, toy_processor

ROOT = Path(__file__).parents[1]
SPACE = ROOT / "examples" / "space"
app = load_app()
TEACHER, STUDENT, ASSISTED = app.TEACHER, app.STUDENT, app.ASSISTED


def test_the_metadata_is_what_the_hub_reads() -> None:
    """A Space whose header does not parse is shown as a text file; a model that it does not name is fetched late."""
    data = SpaceCard.load(SPACE / "README.md").data
    assert (data.sdk, data.app_file, data.license) == ("gradio", "app.py", "apache-2.0")
    assert (SPACE / data.app_file).is_file()
    assert f"gradio=={data.sdk_version}\n" in (ROOT / "constraints.txt").read_text()
    assert data.python_version == "3.11"
    assert len(data.short_description) <= 60
    defaults = re.findall(r'_MODEL", "(.*?)"', (SPACE / "app.py").read_text())
    assert data.models == data.preload_from_hub == defaults
    lines = (SPACE / "requirements.txt").read_text().splitlines()
    assert [line for line in lines if not line.startswith("#")] == ["hf-distil-whisper[demo]"]


def test_the_page_has_a_sample_with_credit_and_names_the_formats(page: gradio.Blocks) -> None:
    (audio,) = [block for block in page.blocks.values() if isinstance(block, gradio.Audio)]
    assert READABLE in audio.label
    assert 2 < len(load_audio(app.SAMPLE)) / 16_000 < 4
    assert app.SAMPLE.stat().st_size < 20_000
    assert "CC0" in (SPACE / "README.md").read_text()


def test_the_app_starts_with_the_models_of_the_environment(toys: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STUDENT_MODEL", str(toys / "student"))
    monkeypatch.setenv("TEACHER_MODEL", str(toys / "teacher"))
    launched: list[gradio.Blocks] = []
    monkeypatch.setattr(gradio.Blocks, "launch", lambda page: launched.append(page))
    app.main()
    assert len(launched) == 1


@pytest.mark.parametrize(
    ("teacher", "text", "language", "expected"),
    [
        ("The cat sat, down.", "the bat Sat", "en", [("bat", "other", "cat"), ("down.", "missing", "")]),
        # Case, punctuation and spelling are no difference.
        ("It's Mr. Smith's colour!", "it is mister smith is COLOR", "en", []),
        ("Um, hello -- there", "hello there", "en", []),
        ("你好世界。", "你 好世界", "zh", []),
        ("", "", "en", []),
        # An alignment with an empty side is where libraries differ.
        ("hello there", "", "en", [("hello", "missing", ""), ("there", "missing", "")]),
        ("", "hello there", "en", [("hello", "other", ""), ("there", "other", "")]),
        # By words, one wrong character of a language without spaces would mark the whole sentence.
        ("今日は良い", "今日わ良い", "ja", [("わ", "other", "は")]),
    ],
)
def test_words_that_differ_are_marked_and_no_others(
    teacher: str, text: str, language: str, expected: list[tuple[str, str, str]]
) -> None:
    """A page full of marked commas hides the one word that is wrong."""
    assert [word for word in app.mark_words(teacher, text, language) if word.mark != "same"] == expected


def test_missing_words_appear_where_the_teacher_has_them_and_the_others_as_written() -> None:
    """A mark on the normalised text would show the reader another text than the model wrote."""
    words = app.mark_words("The cat sat, down.", "the bat Sat", "en")
    assert [word.text for word in words] == "the bat Sat down.".split()
    marked = app.mark_words("one two three four five six", "two four five seven six", "basic")
    texts = "one two three four five seven six".split()
    kinds = ["missing", "same", "missing", "same", "same", "other", "same"]
    assert [(word.text, word.mark) for word in marked] == list(zip(texts, kinds, strict=True))


def pair(seed: int = 4) -> tuple:
    """Student and teacher that speak, and their processor."""
    teacher = talking_whisper(seed)
    return create_student(teacher, decoder_layers=2).eval(), teacher, toy_processor()


def test_the_three_texts_are_those_of_transcribe() -> None:
    """A comparison with settings of its own shows texts that nobody else gets; the assisted one is the teacher's."""
    student, teacher, processor = pair()
    columns, why = app.make_columns(student, teacher, processor)
    samples = toy_audio(5.0)
    results = app.transcribe_columns(columns, samples)
    assert why is None
    assert [one.role for one in results] == [TEACHER, STUDENT, ASSISTED]
    expected = [transcribe(model, processor, samples)[0].text for model in (teacher, student, teacher)]
    assert [one.text for one in results] == expected
    assert expected[0]
    assert all(word.mark == "same" for word in results[2].words)
    assert all(one.seconds > 0 and one.duration == 5.0 for one in results)


def test_a_student_of_another_teacher_is_shown_without_the_third_column() -> None:
    """A student with its own encoder is worth comparing; it ended the page with a traceback."""
    columns, why = app.make_columns(talking_whisper(1), talking_whisper(4), toy_processor())
    assert [one.role for one in columns] == [TEACHER, STUDENT]
    assert "encoder" in (why or "")


def test_a_language_is_not_asked_of_an_english_model() -> None:
    """A multilingual model's text, language unknown, must not go through the English normaliser."""
    teacher = multilingual_whisper()
    columns, _ = app.make_columns(create_student(teacher, decoder_layers=2).eval(), teacher, toy_processor())
    assert len(app.transcribe_columns(columns, toy_audio(1.0), language="de")) == len(columns)
    assert len(app.transcribe_columns(columns[:1], toy_audio(1.0))) == 1


@pytest.mark.parametrize("stuck", [0, 1])
def test_a_model_without_an_end_costs_its_own_column(stuck: int, monkeypatch: pytest.MonkeyPatch) -> None:
    columns, _ = app.make_columns(*pair())

    def some(model: object, *args: object, **options: object) -> object:
        if model is columns[stuck].model:
            raise StuckTranscriptionError("does not move on")
        return transcribe(model, *args, **options)

    monkeypatch.setattr(app, "transcribe", some)
    results = app.transcribe_columns(columns[:2], toy_audio(2.0))
    assert results[stuck].problem == "does not move on"
    assert results[1 - stuck].problem is None
    assert results[1 - stuck].text


def column(role: str, text: str, seconds: float = 1.0, teacher: str | None = "the cat sat", **facts: object) -> object:
    words = [] if teacher is None else app.mark_words(teacher, text, "en")
    return app.Column(role, None, None, text=text, seconds=seconds, duration=10.0, words=words, **facts)


def rows(html: str) -> list[dict[str, str]]:
    """The facts of each column."""
    parts = re.findall("<dl>(.*?)</dl>", html, re.DOTALL)
    return [dict(re.findall("<dt>(.*?)</dt><dd>(.*?)</dd>", part)) for part in parts]


def test_times_rates_and_differences_of_three_columns() -> None:
    """2 s of work on 10 s of audio: 0.2; half the time is twice the speed."""
    texts = [(TEACHER, "the cat sat", 2.0), (STUDENT, "a cat", 1.0), (ASSISTED, "the cat sat", 0.5)]
    html = app.show_columns([column(*one) for one in texts])
    times = [("2.00 s", "0.200"), ("1.00 s", "0.100"), ("0.50 s", "0.050")]
    expected = [{"Time": time, "Real-time factor": factor} for time, factor in times]
    expected[1] |= {"Speed": "2.00 × the teacher's", "Words that differ": "2 of 3"}
    expected[2] |= {"Speed": "4.00 × the teacher's", "Words that differ": "none, the same text"}
    assert rows(html) == expected
    assert '<mark title="teacher: the">a</mark> cat <del title="only the teacher has it">sat</del>' in html
    assert "another word" in html


def test_case_alone_marks_nothing_nor_does_a_model_that_reached_no_end_or_wrote_no_words() -> None:
    """It says so instead."""
    html = app.show_columns([column(TEACHER, "the cat sat"), column(STUDENT, "The cat sat.")])
    assert rows(html)[1]["Words that differ"] == "none"
    assert "<mark" not in html
    stuck = {"text": "", "teacher": None, "problem": "does not move on"}
    html = app.show_columns([column(TEACHER, **stuck), column(STUDENT, "a cat", teacher=None)])
    assert "a cat" in html
    assert "<mark" not in html
    empty = column(TEACHER, "", teacher="")
    html = app.show_columns([empty, column(STUDENT, **stuck)], note="its encoder is another")
    assert "Words that differ" not in html
    for said in ("no words", "does not move on", "The student cannot assist this teacher. its encoder is another"):
        assert said in html


@pytest.mark.parametrize("text", ['<script>alert("1")</script>', "${1 + 1}", "{{value}}", "a & b"])
def test_what_a_model_wrote_is_text_on_the_page(text: str) -> None:
    """A model trained on web pages writes tags; Gradio's templates run what is in braces."""
    texts = [app.show_columns([column(TEACHER, text, teacher=text), column(STUDENT, text)]), app.show_message(text)]
    page = app.build_demo(*pair(), names=(text, text))
    texts.append(next(block.value for block in page.blocks.values() if isinstance(block, gradio.HTML)))
    for html in texts:
        assert text not in html
        assert "<script" not in html
        assert not set("${}") & set(html)


@pytest.fixture(scope="module")
def page() -> gradio.Blocks:
    return app.build_demo(*pair())


@pytest.fixture
def answer(page: gradio.Blocks) -> Callable[[str | None], str]:
    """What the page's button calls."""
    return next(one.fn for one in page.fns.values() if one.api_name == "transcribe")


@pytest.mark.parametrize(
    ("name", "said"),
    [(None, "nothing to transcribe yet"), ("silence.wav", "no sound"), ("empty.wav", "0 samples"),
     ("notes.mp3", "notes.mp3"), ("gone.wav", "gone.wav")],
)  # fmt: skip
def test_the_button_answers_bad_recordings_with_a_message(
    name: str | None, said: str, answer: Callable[[str | None], str], tmp_path: Path
) -> None:
    """Whisper writes "Thank you." to silence; a traceback in the log and "Error" on the page help nobody."""
    soundfile.write(tmp_path / "silence.wav", np.zeros(16_000), 16_000)
    soundfile.write(tmp_path / "empty.wav", np.zeros(0), 16_000)
    (tmp_path / "notes.mp3").write_text("no audio at all")
    html = answer(name and str(tmp_path / name))
    assert said in html
    assert str(tmp_path) not in html  # the server's paths are not for visitors
    assert 'class="message"' in html


@pytest.mark.parametrize("seconds", [3.0, 32.0])
def test_the_button_answers_with_three_columns(answer: Callable, tmp_path: Path, seconds: float) -> None:
    """A recording of more than a window too, to its end."""
    soundfile.write(tmp_path / "speech.flac", toy_audio(seconds), 16_000)
    html = answer(str(tmp_path / "speech.flac"))
    assert re.findall('data-role="(.*?)"', html) == [TEACHER, STUDENT, ASSISTED]
    assert f"{seconds} s of audio" in html
    assert "none, the same text" in html
