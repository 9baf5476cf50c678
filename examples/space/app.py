"""A page that shows a student beside its teacher: record, upload or take the sample, read the texts side by side.

As a Space, or started by `python app.py`, it takes the models from the variables `STUDENT_MODEL` and `TEACHER_MODEL`
(names on the Hub or folders) and the language of multilingual models from `SPEECH_LANGUAGE`; `hf-distil-whisper demo`
starts the same page with flags. It loads nothing from other hosts, keeps no history and sends no statistics.
"""

import html
import os
import time
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import gradio
import jiwer
import numpy as np
import torch
from transformers import PreTrainedModel, WhisperForConditionalGeneration, WhisperProcessor

from hf_distil_whisper import (
    AudioError,
    create_assistant,
    get_normalizer,
    load_audio,
    load_model,
    load_processor,
    transcribe,
)
from hf_distil_whisper.metrics import is_written_without_spaces

SAMPLE = Path(__file__).with_name("sample.ogg")
TEACHER, STUDENT, ASSISTED = "Teacher", "Student", "Teacher, assisted by the student"

SILENCE = 1e-3
"""Peak of a recording without sound, of a full scale of 1: -60 dB, below the noise of any microphone."""

UPLOAD_SECONDS = 3600
"""How long uploaded recordings stay on the server's disk."""

# Colours and lines both mark a word, and all eyes tell blue from orange; system fonts need no other host.
STYLE = """
.page {font-family: system-ui, sans-serif; color: var(--body-text-color); overflow-wrap: anywhere}
.page .transcripts {display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 17rem), 1fr)); gap: 1rem}
.page .transcript, .page .message {border: 1px solid var(--border-color-primary); border-radius: 8px; padding: 1rem; margin: 0}
.page .transcript {min-width: 0; display: flex; flex-direction: column}
.page .message {border-left: 4px solid #d55e00}
.page h2 {margin: 0 0 .5rem; font: 600 1rem system-ui, sans-serif}
.page .text {margin: 0 0 1rem; flex: 1; font-size: 1.05rem; line-height: 1.7}
.page mark, .page del {padding: .05em .15em .15em; border-radius: 3px; text-decoration-thickness: 2px}
.page mark {background: #ffe3c2; color: #5c2600; font-weight: 600; text-decoration-line: underline; text-underline-offset: .2em}
.page del {background: #d9ecf9; color: #003b5c; text-decoration-line: line-through}
.page dl {display: grid; grid-template-columns: auto 1fr; gap: .15rem .75rem; margin: 0; font-size: .9rem}
.page dd {margin: 0; text-align: right; font-variant-numeric: tabular-nums}
.page .note {margin: .75rem 0 0; font-size: .9rem; opacity: .85}
"""  # noqa: E501


class MarkedWord(NamedTuple):
    """A word as written, whether it is "same", "other" or "missing" beside the teacher's, and the teacher's word."""

    text: str
    mark: str
    teacher: str = ""


@dataclass
class Column:
    """A model on the page and its transcription; times are in seconds, `problem` says why there is no text."""

    role: str
    model: WhisperForConditionalGeneration
    processor: WhisperProcessor
    assistant: PreTrainedModel | None = None
    text: str = ""
    seconds: float = 0.0
    duration: float = 0.0
    words: list[MarkedWord] = field(default_factory=list)
    problem: str | None = None


def mark_words(teacher: str, text: str, language: str) -> list[MarkedWord]:
    """Marks the words of a text that are not the teacher's, and adds the teacher's words that it lacks.

    Words are compared after the language's normaliser, each by itself, so that they can be shown as written.

    Args:
        teacher (`str`): text of the teacher.
        text (`str`): text of another model.
        language (`str`): as for [`get_normalizer`]; characters are compared where it puts no space between words.
    """
    words, tokens = _tokens(text, language)
    teacher_words, teacher_tokens = _tokens(teacher, language)
    # Several tokens of one word ("it's": it is) are shown as they are, single ones as the word was written.
    counts = Counter(index for _, index in teacher_tokens)
    shown = [teacher_words[index] if counts[index] == 1 else token for token, index in teacher_tokens]
    other, missing = defaultdict(list), defaultdict(list)
    joined = (" ".join(token for token, _ in side) for side in (teacher_tokens, tokens))
    for part in jiwer.process_words(*joined).alignments[0]:
        expected = shown[part.ref_start_idx : part.ref_end_idx]
        if part.type == "delete":
            missing[tokens[part.hyp_start_idx - 1][1] + 1 if part.hyp_start_idx else 0] += expected
        elif part.type != "equal":
            for step, (_, index) in enumerate(tokens[part.hyp_start_idx : part.hyp_end_idx]):
                other[index].append(expected[step] if expected else "")
    marked = [MarkedWord(word, "missing") for word in missing[0]]
    for index, word in enumerate(words):
        marked.append(MarkedWord(word, "other" if index in other else "same", " ".join(other.get(index, []))))
        marked += [MarkedWord(absent, "missing") for absent in missing[index + 1]]
    return marked


def _tokens(text: str, language: str) -> tuple[list[str], list[tuple[str, int]]]:
    """Words as written, and the normaliser's tokens (none, one or several of a word) with the word's index."""
    normalize = get_normalizer(language)
    words = list(text) if is_written_without_spaces(language) else text.split()
    return words, [(token, index) for index, word in enumerate(words) for token in normalize(word).split()]


def make_columns(
    student: WhisperForConditionalGeneration,
    teacher: WhisperForConditionalGeneration,
    processor: WhisperProcessor,
    student_processor: WhisperProcessor | None = None,
) -> tuple[list[Column], str | None]:
    """Columns for teacher, student and, if the student can draft for it, the assisted teacher; else why not."""
    columns = [Column(TEACHER, teacher, processor), Column(STUDENT, student, student_processor or processor)]
    try:
        return [*columns, Column(ASSISTED, teacher, processor, create_assistant(student, teacher))], None
    except ValueError as error:
        return columns, str(error)


def transcribe_columns(columns: Sequence[Column], samples: np.ndarray, language: str | None = None) -> list[Column]:
    """Transcribes float32 samples at 16 kHz with one model after another and compares the texts with the first."""
    results = [Column(one.role, one.model, one.processor, one.assistant) for one in columns]
    for one in results:
        start = time.perf_counter()
        try:
            options = {"assistant": one.assistant, "language": language}
            one.text = transcribe(one.model, one.processor, samples, **options)[0].text
        except RuntimeError as error:  # a student that predicts no timestamps may never reach the end
            one.problem = str(error)
        one.seconds, one.duration = time.perf_counter() - start, len(samples) / 16_000
    multilingual = getattr(columns[0].model.generation_config, "is_multilingual", False)
    for one in results:
        if one.problem is None and results[0].problem is None:
            one.words = mark_words(results[0].text, one.text, language or ("basic" if multilingual else "en"))
    return results


def read_recording(path: str | None) -> np.ndarray:
    """Samples of an upload, float32 at 16 kHz; an [`AudioError`] if it is missing, unreadable or silent."""
    if path is None:
        raise AudioError("There is nothing to transcribe yet: record something or upload a file first.")
    name = Path(path).name
    try:
        samples = load_audio(path, name=name)
    except AudioError as error:
        raise AudioError(str(error).replace(path, name)) from error  # the server's path is not for visitors
    if np.abs(samples).max() < SILENCE:
        raise AudioError(
            f"{name}: there is no sound in it, and a model would make up words. Is the right microphone switched on?"
        )
    return samples


def show_message(text: str) -> str:
    """HTML of a message in place of the columns."""
    return f'<div class="page"><p class="message" role="alert">{_escape(text)}</p></div>'


def show_columns(columns: Sequence[Column], separator: str = " ", note: str | None = None) -> str:
    """HTML of the results side by side, one below another on a narrow screen; all texts are escaped."""
    parts = [f'<div class="transcripts">{"".join(_show(one, columns[0], separator) for one in columns)}</div>']
    if any(word.mark != "same" for one in columns for word in one.words):
        parts.append(
            '<p class="note">Beside the teacher\'s text, case and punctuation aside: <mark>another word</mark> '
            "<del>a word that is missing</del></p>"
        )
    if note is not None:
        parts.append(f'<p class="note">The student cannot assist this teacher. {_escape(note)}</p>')
    parts.append(
        f'<p class="note">{columns[0].duration:.1f} s of audio, transcribed once by each model, one after another. '
        "Real-time factor: seconds of work per second of audio, lower is faster.</p>"
    )
    return f'<div class="page" aria-live="polite">{"".join(parts)}</div>'


def _show(one: Column, teacher: Column, separator: str) -> str:
    body = separator.join(map(_show_word, one.words)) or _escape(one.problem or one.text) or "<i>no words</i>"
    facts = {"Time": f"{one.seconds:.2f} s", "Real-time factor": f"{one.seconds / one.duration:.3f}"}
    if one is not teacher:
        facts["Speed"] = f"{teacher.seconds / one.seconds:.2f} × the teacher's"
        if one.problem is None and teacher.problem is None:
            differing = sum(word.mark != "same" for word in one.words)
            same = "none, the same text" if one.text == teacher.text else "none"
            facts["Words that differ"] = f"{differing} of {len(teacher.words)}" if differing else same
    rows = "".join(f"<dt>{name}</dt><dd>{value}</dd>" for name, value in facts.items())
    return (
        f'<section class="transcript" data-role="{one.role}"><h2>{one.role}</h2><p class="text" dir="auto">{body}</p>'
        f"<dl>{rows}</dl></section>"
    )


def _show_word(word: MarkedWord) -> str:
    text = _escape(word.text)
    if word.mark == "missing":
        return f'<del title="only the teacher has it">{text}</del>'
    if word.mark == "other":
        title = f"teacher: {_escape(word.teacher)}" if word.teacher else "the teacher has no word here"
        return f'<mark title="{title}">{text}</mark>'
    return text


def _escape(text: str) -> str:
    """For HTML, and for Gradio's templates, which would run `${…}` and `{{…}}` as code."""
    return html.escape(text).replace("$", "&#36;").replace("{", "&#123;").replace("}", "&#125;")


def build_demo(
    student: WhisperForConditionalGeneration,
    teacher: WhisperForConditionalGeneration,
    processor: WhisperProcessor,
    *,
    student_processor: WhisperProcessor | None = None,
    language: str | None = None,
    names: tuple[str, str] = ("student", "teacher"),
) -> gradio.Blocks:
    """Builds the page, and runs every model once so that the first recording is timed as fairly as the second.

    Args:
        student (`WhisperForConditionalGeneration`): in eval mode.
        teacher (`WhisperForConditionalGeneration`): in eval mode, on the student's device and of its dtype.
        processor (`WhisperProcessor`): of the teacher.
        student_processor (`WhisperProcessor`, *optional*): where the student has another one.
        language (`str`, *optional*): for multilingual models; detected where left out.
        names (`tuple[str, str]`, *optional*): of student and teacher on the page.

    Returns:
        `gradio.Blocks`: start it with `launch()`.
    """
    columns, why_two = make_columns(student, teacher, processor, student_processor)
    noise = np.random.default_rng(0).normal(0, 0.01, 16_000).astype(np.float32)
    for one in columns:
        options = {"assistant": one.assistant, "language": language}
        transcribe(one.model, one.processor, noise, max_new_tokens=16, **options)
    separator = "" if is_written_without_spaces(language or "en") else " "

    def answer(path: str | None) -> str:
        try:
            return show_columns(transcribe_columns(columns, read_recording(path), language), separator, why_two)
        except AudioError as error:
            return show_message(str(error))

    models = "<br>".join(
        f"{role}: <b>{_escape(name)}</b>, {model.num_parameters() / 1e6:,.1f} M parameters, "
        f"{model.config.decoder_layers} decoder layers"
        for role, name, model in ((TEACHER, names[1], teacher), (STUDENT, names[0], student))
    )
    with gradio.Blocks(
        title="Teacher and student", analytics_enabled=False, delete_cache=(UPLOAD_SECONDS, UPLOAD_SECONDS)
    ) as page:
        gradio.HTML(f'<div class="page"><h1>Teacher and student</h1>{models}</div>', css_template=STYLE, padding=True)
        audio = gradio.Audio(
            sources=["upload", "microphone"],
            type="filepath",
            label="WAV, FLAC, MP3, Ogg, M4A, MP4, WebM or AMR, or record",
            elem_id="audio",
            buttons=[],
        )
        gradio.Examples([str(SAMPLE)], audio, label="Sample", cache_examples=False)
        button = gradio.Button("Transcribe", variant="primary", elem_id="transcribe")
        result = gradio.HTML(css_template=STYLE, elem_id="result")
        # One recording at a time (Gradio's default): two at once would spoil each other's times.
        button.click(answer, audio, result, api_name="transcribe", show_progress_on=result)
    return page


def main() -> None:
    """Starts the page with the models of the environment."""
    student = os.environ.get("STUDENT_MODEL", "distil-whisper/distil-small.en")
    teacher = os.environ.get("TEACHER_MODEL", "openai/whisper-small.en")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    page = build_demo(
        load_model(student).to(device),
        load_model(teacher).to(device),
        load_processor(teacher),
        student_processor=load_processor(student),
        language=os.environ.get("SPEECH_LANGUAGE"),
        names=(student, teacher),
    )
    page.launch()


if __name__ == "__main__":
    main()
