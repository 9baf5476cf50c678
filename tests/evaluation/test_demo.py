"""The page without a browser: what it says to bad recordings, how texts and marks become HTML."""

import re
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile

from hf_distil_whisper.data.audio import AudioError
from hf_distil_whisper.evaluation.demo import (
    build_demo,
    columns,
    heading,
    heard_samples,
    message,
)
from hf_distil_whisper.evaluation.side_by_side import (
    ASSISTED,
    STUDENT,
    TEACHER,
    Attempt,
    mark_words,
)
from hf_distil_whisper.student import create_student
from talking_models import talking_whisper
from toy_models import toy_audio, toy_processor


def attempt(role: str, text: str, seconds: float, teacher: str = "the cat sat") -> Attempt:
    return Attempt(role, text, seconds, 10.0, mark_words(teacher, text, "en"))


def rows(html: str) -> list[dict[str, str]]:
    """The facts of each column."""
    return [
        dict(re.findall("<dt>(.*?)</dt><dd>(.*?)</dd>", part))
        for part in re.findall("<dl>(.*?)</dl>", html, re.DOTALL)
    ]


def test_times_rates_and_differences_of_three_columns() -> None:
    """2 s of work on 10 s of audio: 0.2; half the time is twice the speed."""
    html = columns(
        [
            attempt(TEACHER, "the cat sat", 2.0),
            attempt(STUDENT, "a cat", 1.0),
            attempt(ASSISTED, "the cat sat", 0.5),
        ]
    )
    assert rows(html) == [
        {"Time": "2.00 s", "Real-time factor": "0.200"},
        {
            "Time": "1.00 s",
            "Real-time factor": "0.100",
            "Speed": "2.00 × the teacher's",
            "Words that differ": "2 of 3",
        },
        {
            "Time": "0.50 s",
            "Real-time factor": "0.050",
            "Speed": "4.00 × the teacher's",
            "Words that differ": "none, the same text",
        },
    ]
    assert '<mark title="teacher: the">a</mark> cat <del title="only the teacher has it">sat</del>' in html
    assert "another word" in html


def test_case_alone_is_not_called_the_same_text() -> None:
    html = columns([attempt(TEACHER, "the cat sat", 1.0), attempt(STUDENT, "The cat sat.", 1.0)])
    assert rows(html)[1]["Words that differ"] == "none"
    assert "<mark" not in html


@pytest.mark.parametrize("text", ['<script>alert("1")</script>', "${1 + 1}", "{{value}}", "a & b"])
def test_what_a_model_wrote_is_text_on_the_page(text: str) -> None:
    """A model trained on web pages writes tags; Gradio's templates run what stands in braces."""
    pages = [columns([attempt(TEACHER, text, 1.0, teacher=text), attempt(STUDENT, text, 1.0)]), message(text)]
    pages.append(heading({TEACHER: (text, talking_whisper())}))
    for html in pages:
        assert text not in html
        assert "<script" not in html
        assert not set("${}") & set(html)


def test_a_model_that_found_no_end_or_no_words_says_so() -> None:
    stuck = Attempt(STUDENT, "", 1.0, 10.0, problem="does not move on")
    html = columns([attempt(TEACHER, "", 1.0, teacher=""), stuck], note="its encoder is another")
    assert "no words" in html
    assert "does not move on" in html
    assert "Words that differ" not in html
    assert "The student cannot assist this teacher. its encoder is another" in html


def test_a_teacher_without_end_leaves_the_student_unmarked() -> None:
    html = columns([Attempt(TEACHER, "", 1.0, 10.0, problem="stuck"), Attempt(STUDENT, "a cat", 1.0, 10.0)])
    assert "a cat" in html
    assert "<mark" not in html


@pytest.fixture
def files(tmp_path: Path) -> Path:
    soundfile.write(tmp_path / "speech.flac", toy_audio(3.0), 16_000)
    soundfile.write(tmp_path / "silence.wav", np.zeros(16_000), 16_000)
    soundfile.write(tmp_path / "empty.wav", np.zeros(0), 16_000)
    (tmp_path / "notes.mp3").write_text("no audio at all")
    return tmp_path


BAD = [("silence.wav", "no sound"), ("empty.wav", "0 samples"), ("notes.mp3", "notes.mp3"), ("gone.wav", "gone.wav")]


@pytest.mark.parametrize(("name", "said"), BAD)
def test_a_recording_that_is_none_is_said_to_be_so(name: str, said: str, files: Path) -> None:
    """Whisper writes "Thank you." to silence; a server's path is nobody's business."""
    with pytest.raises(AudioError, match=said) as raised:
        heard_samples(str(files / name))
    assert str(files) not in str(raised.value)


def test_no_recording_at_all_is_said_to_be_so() -> None:
    with pytest.raises(AudioError, match="nothing to transcribe yet"):
        heard_samples(None)


@pytest.fixture(scope="module")
def answer() -> Callable[[str | None], str]:
    """What the page's button calls."""
    teacher = talking_whisper(4)
    page = build_demo(create_student(teacher, decoder_layers=2).eval(), teacher, toy_processor())
    (button,) = page.fns.values()
    return button.fn


def test_the_button_answers_with_three_columns(answer: Callable[[str | None], str], files: Path) -> None:
    html = answer(str(files / "speech.flac"))
    assert re.findall('data-role="(.*?)"', html) == [TEACHER, STUDENT, ASSISTED]
    assert "3.0 s of audio" in html
    assert "none, the same text" in html


@pytest.mark.parametrize("name", [None, *(name for name, _ in BAD)])
def test_the_button_answers_bad_recordings_with_a_message(
    name: str | None, answer: Callable[[str | None], str], files: Path
) -> None:
    """A traceback in the log and "Error" on the page help nobody."""
    assert 'class="message"' in answer(name and str(files / name))


def test_a_recording_of_more_than_a_window_is_heard_whole(answer: Callable[[str | None], str], tmp_path: Path) -> None:
    soundfile.write(tmp_path / "long.wav", toy_audio(32.0), 16_000)
    assert "32.0 s of audio" in answer(str(tmp_path / "long.wav"))


def test_without_the_extra_the_error_names_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gradio", None)
    with pytest.raises(ImportError, match=r"pip install 'hf-distil-whisper\[demo\]'"):
        build_demo(talking_whisper(1), talking_whisper(1), toy_processor())
