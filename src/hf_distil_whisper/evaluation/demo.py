"""A page to try a student: record or upload, and read teacher, student and assisted teacher side by side.

Knows Gradio and HTML; what is heard and compared is `side_by_side`'s. The page asks nothing of other hosts: it has
system fonts, no analytics, and keeps no history.
"""

import html
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

import numpy as np
from transformers import WhisperForConditionalGeneration, WhisperProcessor

from hf_distil_whisper.data.audio import (
    READABLE,
    AudioError,
    load_audio,
)
from hf_distil_whisper.evaluation.side_by_side import (
    STUDENT,
    TEACHER,
    Attempt,
    MarkedWord,
    contenders,
    transcribe_side_by_side,
    warm_up,
)
from hf_distil_whisper.metrics import is_written_without_spaces

if TYPE_CHECKING:
    import gradio

SILENCE = 1e-3
"""Loudest sample of a recording without sound, of a full scale of 1: -60 dB, below the noise of any microphone."""

KEPT_SECONDS = 3600
"""How long uploaded recordings stay on the server's disk."""

_FONT = "system-ui, sans-serif"
"""Gradio's own font comes without most of its semi-bold letters."""

_STYLE = f"""
.page {{font-family: {_FONT}; color: var(--body-text-color); overflow-wrap: anywhere;}}
.page .attempts {{display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 17rem), 1fr)); gap: 1rem;}}
.page .attempt {{border: 1px solid var(--border-color-primary); border-radius: 8px; padding: 1rem; min-width: 0;
  display: flex; flex-direction: column;}}
.page h2 {{margin: 0 0 .5rem; font: 600 1rem {_FONT};}}
.page .text {{margin: 0 0 1rem; flex: 1; font-size: 1.05rem; line-height: 1.7;}}
.page mark, .page del {{padding: .05em .15em .15em; border-radius: 3px; text-decoration-thickness: 2px;}}
.page mark {{background: #ffe3c2; color: #5c2600; font-weight: 600; text-decoration-line: underline;
  text-underline-offset: .2em;}}
.page del {{background: #d9ecf9; color: #003b5c; text-decoration-line: line-through;}}
.page dl {{display: grid; grid-template-columns: auto 1fr; gap: .15rem .75rem; margin: 0; font-size: .9rem;}}
.page dt {{opacity: .75; white-space: nowrap;}}
.page dd {{margin: 0; text-align: right; font-variant-numeric: tabular-nums;}}
.page .note {{margin: .75rem 0 0; font-size: .9rem; opacity: .85;}}
.page .message {{margin: 0; padding: .75rem 1rem; border: 1px solid var(--border-color-primary); border-radius: 8px;
  border-left: 4px solid #d55e00;}}
"""
"""Marks are told apart by line and colour; the tints are of blue and orange, which all eyes tell apart."""


def import_gradio() -> ModuleType:
    """The package, or an error that says how to get it.

    Raises:
        ImportError: if it is not installed.
    """
    try:
        import gradio
    except ImportError as error:
        raise ImportError(
            "The page needs a package that is not installed: pip install 'hf-distil-whisper[demo]'."
        ) from error
    return gradio


def build_demo(
    student: WhisperForConditionalGeneration,
    teacher: WhisperForConditionalGeneration,
    processor: WhisperProcessor,
    *,
    student_processor: WhisperProcessor | None = None,
    language: str | None = None,
    names: tuple[str, str] = ("student", "teacher"),
) -> "gradio.Blocks":
    """Builds the page and runs every model once, so that the first recording is timed as fairly as the second.

    Recordings are taken one at a time: two at once would slow each other down and spoil the times.

    Args:
        student (`WhisperForConditionalGeneration`): in eval mode.
        teacher (`WhisperForConditionalGeneration`): in eval mode, on the student's device and of its dtype.
        processor (`WhisperProcessor`): of the teacher.
        student_processor (`WhisperProcessor`, *optional*): where the student has another one.
        language (`str`, *optional*): for multilingual models; detected where left out.
        names (`tuple[str, str]`, *optional*): of student and teacher on the page.

    Returns:
        `gradio.Blocks`: to be started with `launch()`.

    Raises:
        ImportError: without the extra `demo`.

    Example:
        ```python
        >>> build_demo(student, teacher, processor).launch()
        ```
    """
    gradio = import_gradio()
    models, why_two = contenders(student, teacher, processor, student_processor)
    warm_up(models, language)

    def answer(path: str | None) -> str:
        try:
            samples = heard_samples(path)
        except AudioError as error:
            return message(str(error))
        attempts = transcribe_side_by_side(models, samples, language=language)
        return columns(attempts, separator="" if is_written_without_spaces(language or "en") else " ", note=why_two)

    with gradio.Blocks(title="Teacher and student", analytics_enabled=False, delete_cache=(KEPT_SECONDS,) * 2) as page:
        gradio.HTML(heading({TEACHER: (names[1], teacher), STUDENT: (names[0], student)}), padding=True)
        audio = gradio.Audio(
            sources=["upload", "microphone"],
            type="filepath",
            label=f"{READABLE}, or record",
            elem_id="audio",
            buttons=[],
        )
        button = gradio.Button("Transcribe", variant="primary", elem_id="transcribe")
        found = gradio.HTML(css_template=_STYLE, elem_id="found")
        button.click(answer, audio, found, api_name="transcribe", show_progress_on=found)
    return page


def heard_samples(path: str | None) -> np.ndarray:
    """Decodes what was recorded or uploaded.

    Args:
        path (`str`, *optional*): file; None where there is none yet.

    Returns:
        `np.ndarray`: shape (samples,), float32, 16 kHz.

    Raises:
        AudioError: without a file, for one that cannot be read, and for silence.
    """
    if path is None:
        raise AudioError("There is nothing to transcribe yet: record something or upload a file first.")
    name = Path(path).name
    try:
        samples = load_audio(path, name=name)
    except AudioError as error:
        raise AudioError(str(error).replace(path, name)) from error  # where uploads lie is of no use to a visitor
    if np.abs(samples).max() < SILENCE:
        raise AudioError(
            f"{name}: there is no sound in it, and a model would make up words. Is the right microphone switched on?"
        )
    return samples


def heading(models: Mapping[str, tuple[str, WhisperForConditionalGeneration]]) -> str:
    """The page's title, with the models' names and sizes.

    Args:
        models (`Mapping[str, tuple[str, WhisperForConditionalGeneration]]`): name and model by role.
    """
    lines = "<br>".join(
        f"{role}: <b>{_escape(name)}</b>, {model.num_parameters() / 1e6:,.1f} M parameters, "
        f"{model.config.decoder_layers} decoder layers"
        for role, (name, model) in models.items()
    )
    style = f"font-family: {_FONT}; overflow-wrap: anywhere"
    return (
        f'<div style="{style}"><h1 style="margin: 0; font: 600 1.5rem {_FONT}">Teacher and student</h1>{lines}</div>'
    )


def message(text: str) -> str:
    """What stands in the place of the columns where there are none.

    Args:
        text (`str`): plain text.
    """
    return f'<div class="page"><p class="message" role="alert">{_escape(text)}</p></div>'


def columns(attempts: Sequence[Attempt], *, separator: str = " ", note: str | None = None) -> str:
    """Attempts side by side, below one another on a narrow screen.

    Args:
        attempts (`Sequence[Attempt]`): from [`transcribe_side_by_side`], the teacher's first.
        separator (`str`, *optional*, defaults to a space): between words.
        note (`str`, *optional*): why there is no assisted teacher.

    Returns:
        `str`: HTML; what the models wrote is escaped.
    """
    teacher = attempts[0]
    parts = [f'<div class="attempts">{"".join(_column(one, teacher, separator) for one in attempts)}</div>']
    if any(one.num_differences for one in attempts):
        parts.append(
            '<p class="note">Beside the teacher\'s text, case and punctuation aside: <mark>another word</mark> '
            "<del>a word that is missing</del></p>"
        )
    if note is not None:
        parts.append(f'<p class="note">The student cannot assist this teacher. {_escape(note)}</p>')
    parts.append(
        f'<p class="note">{teacher.duration:.1f} s of audio, heard once by each model, one after another. Real-time '
        "factor: seconds of work per second of audio, lower is faster.</p>"
    )
    return f'<div class="page" aria-live="polite">{"".join(parts)}</div>'


def _column(one: Attempt, teacher: Attempt, separator: str) -> str:
    if one.problem is not None:
        body = _escape(one.problem)
    elif one.words:
        body = separator.join(_marked(word) for word in one.words)
    else:
        body = _escape(one.text) or "<i>no words</i>"
    rows = {"Time": f"{one.seconds:.2f} s", "Real-time factor": f"{one.rtf:.3f}"}
    if one is not teacher:
        rows["Speed"] = f"{teacher.seconds / one.seconds:.2f} × the teacher's"
        if one.problem is None and teacher.problem is None:
            rows["Words that differ"] = _differences(one, teacher)
    facts = "".join(f"<dt>{name}</dt><dd>{value}</dd>" for name, value in rows.items())
    return (
        f'<section class="attempt" data-role="{one.role}"><h2>{one.role}</h2><p class="text" dir="auto">{body}</p>'
        f"<dl>{facts}</dl></section>"
    )


def _differences(one: Attempt, teacher: Attempt) -> str:
    if one.num_differences:
        return f"{one.num_differences} of {len(teacher.words)}"
    return "none, the same text" if one.text == teacher.text else "none"


def _marked(word: MarkedWord) -> str:
    text = _escape(word.text)
    if word.mark == "missing":
        return f'<del title="only the teacher has it">{text}</del>'
    if word.mark == "other":
        title = f"teacher: {_escape(word.teacher)}" if word.teacher else "the teacher has no word here"
        return f'<mark title="{title}">{text}</mark>'
    return text


def _escape(text: str) -> str:
    """For HTML, and for Gradio's templates, which would read `${…}` and `{{…}}` as code."""
    return html.escape(text).replace("$", "&#36;").replace("{", "&#123;").replace("}", "&#125;")
