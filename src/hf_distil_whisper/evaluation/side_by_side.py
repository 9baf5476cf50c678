"""One recording heard by a teacher, its student, and the teacher with the student's drafts: texts, times, differences.

Knows models and words; how it looks on a page is `demo`'s. For measurements over a data set there are `short_form` and
`latency`: here every model hears the recording once.
"""

import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Literal, NamedTuple

import numpy as np
from transformers import PreTrainedModel, WhisperForConditionalGeneration, WhisperProcessor

from hf_distil_whisper.data.audio import SAMPLING_RATE
from hf_distil_whisper.evaluation.latency import synchronise
from hf_distil_whisper.evaluation.results import align_words
from hf_distil_whisper.inference.prompt import is_multilingual
from hf_distil_whisper.inference.sequential import StuckTranscriptionError
from hf_distil_whisper.inference.speculative import create_assistant
from hf_distil_whisper.inference.transcribe import transcribe
from hf_distil_whisper.metrics import (
    get_normalizer,
    is_written_without_spaces,
)

TEACHER, STUDENT, ASSISTED = "Teacher", "Student", "Teacher, assisted by the student"


class MarkedWord(NamedTuple):
    """A word of a text beside the teacher's.

    Args:
        text (`str`): as it was written, with case and punctuation.
        mark (`str`): "same"; "other", which the teacher has not; or "missing", which only the teacher has.
        teacher (`str`): what the teacher has in its place; empty where that is the same or nothing.
    """

    text: str
    mark: Literal["same", "other", "missing"]
    teacher: str = ""


@dataclass(frozen=True)
class Contender:
    """A model that transcribes.

    Args:
        role (`str`): heading of its column.
        model (`WhisperForConditionalGeneration`): in eval mode.
        processor (`WhisperProcessor`): of the model.
        assistant (`PreTrainedModel`, *optional*): from [`create_assistant`].
    """

    role: str
    model: WhisperForConditionalGeneration
    processor: WhisperProcessor
    assistant: PreTrainedModel | None = None


@dataclass(frozen=True)
class Attempt:
    """What one model made of the recording.

    Args:
        role (`str`): of the [`Contender`].
        text (`str`): as it was written.
        seconds (`float`): from samples to text; decoding of the file is not counted.
        duration (`float`): of the recording, seconds.
        words (`list[MarkedWord]`): the text beside the teacher's.
        problem (`str`, *optional*): why there is no text.
    """

    role: str
    text: str
    seconds: float
    duration: float
    words: list[MarkedWord] = field(default_factory=list)
    problem: str | None = None

    @property
    def rtf(self) -> float:
        """Real-time factor: seconds of work per second of audio."""
        return self.seconds / self.duration

    @property
    def num_differences(self) -> int:
        """Words that are not the teacher's, and words of the teacher's that are missing."""
        return sum(word.mark != "same" for word in self.words)


def contenders(
    student: WhisperForConditionalGeneration,
    teacher: WhisperForConditionalGeneration,
    processor: WhisperProcessor,
    student_processor: WhisperProcessor | None = None,
) -> tuple[list[Contender], str | None]:
    """Teacher, student and, where the student can draft for it, the assisted teacher.

    Args:
        student (`WhisperForConditionalGeneration`): in eval mode.
        teacher (`WhisperForConditionalGeneration`): in eval mode.
        processor (`WhisperProcessor`): of the teacher.
        student_processor (`WhisperProcessor`, *optional*): where the student has another one.

    Returns:
        `tuple[list[Contender], str | None]`: two or three, the teacher first; why there are only two.
    """
    found = [Contender(TEACHER, teacher, processor), Contender(STUDENT, student, student_processor or processor)]
    try:
        assistant = create_assistant(student, teacher)
    except ValueError as error:
        return found, str(error)
    return [*found, Contender(ASSISTED, teacher, processor, assistant)], None


def transcribe_side_by_side(
    models: Sequence[Contender], samples: np.ndarray, *, language: str | None = None
) -> list[Attempt]:
    """Lets every model transcribe the recording, one after another, and marks where the words differ.

    Words are compared after the language's normaliser, one by one: case, punctuation and spelling are no difference.
    A model that finds no end of the recording costs its own column only.

    Args:
        models (`Sequence[Contender]`): the first one is what the others are compared with.
        samples (`np.ndarray`): shape (samples,), from [`load_audio`].
        language (`str`, *optional*): for multilingual models; detected where left out.

    Returns:
        `list[Attempt]`: in the order of `models`.
    """
    heard = [_attempt(one, samples, language) for one in models]
    first = heard[0]
    if first.problem is not None:
        return heard
    spoken = language or ("basic" if is_multilingual(models[0].model) else "en")
    return [
        replace(one, words=mark_words(first.text, one.text, spoken)) if one.problem is None else one for one in heard
    ]


def _attempt(one: Contender, samples: np.ndarray, language: str | None) -> Attempt:
    synchronise(one.model.device)
    start, text, problem = time.perf_counter(), "", None
    try:
        found = transcribe(one.model, one.processor, samples, assistant=one.assistant, language=language)
        text = found[0].text
    except StuckTranscriptionError as error:
        problem = str(error)
    synchronise(one.model.device)
    return Attempt(one.role, text, time.perf_counter() - start, len(samples) / SAMPLING_RATE, problem=problem)


def warm_up(models: Sequence[Contender], language: str | None = None) -> None:
    """Runs every model once on a second of faint noise, so that the first recording finds libraries and memory ready.

    Args:
        models (`Sequence[Contender]`): from [`contenders`].
        language (`str`, *optional*): for multilingual models.
    """
    noise = np.random.default_rng(0).normal(0, 0.01, SAMPLING_RATE).astype(np.float32)
    for one in models:
        transcribe(one.model, one.processor, noise, assistant=one.assistant, language=language, max_new_tokens=16)


def mark_words(teacher: str, text: str, language: str) -> list[MarkedWord]:
    """The words of a text, each marked as the teacher's or not, and the teacher's words that it lacks.

    Every word is normalised by itself, so that it can be shown as it was written: "Mr." is "mister", while "twenty
    one" is not "21".

    Args:
        teacher (`str`): the teacher's text.
        text (`str`): another model's.
        language (`str`): as for [`get_normalizer`]; characters are compared where it puts no space between words.

    Returns:
        `list[MarkedWord]`: in order.

    Example:
        ```python
        >>> mark_words("The cat sat down.", "the bat sat", "en")
        [('the', 'same', ''), ('bat', 'other', 'cat'), ('sat', 'same', ''), ('down.', 'missing', '')]
        ```
    """
    ours, our_tokens = _tokens(text, language)
    theirs, their_tokens = _tokens(teacher, language)
    shown = [
        theirs[word] if sum(other == word for _, other in their_tokens) == 1 else token for token, word in their_tokens
    ]
    instead: dict[int, list[str]] = {}
    missing: dict[int, list[str]] = defaultdict(list)
    reference, word = iter(shown), -1
    hypothesis = iter(our_tokens)
    for pair in align_words(" ".join(token for token, _ in their_tokens), " ".join(token for token, _ in our_tokens)):
        expected = next(reference) if pair.reference is not None else ""
        if pair.hypothesis is None:
            missing[word + 1].append(expected)
            continue
        _, word = next(hypothesis)
        if pair.operation != "hit":
            instead.setdefault(word, []).append(expected)
    marked = []
    for index in range(len(ours) + 1):
        marked += [MarkedWord(absent, "missing") for absent in missing[index]]
        if index < len(ours):
            other = index in instead
            marked.append(MarkedWord(ours[index], "other" if other else "same", " ".join(instead.get(index, []))))
    return marked


def _tokens(text: str, language: str) -> tuple[list[str], list[tuple[str, int]]]:
    """Words as written, and what the normaliser makes of them: none, one or several tokens, with the word's number."""
    normalize = get_normalizer(language)
    words = list(text) if is_written_without_spaces(language) else text.split()
    return words, [(token, index) for index, word in enumerate(words) for token in normalize(word).split()]
