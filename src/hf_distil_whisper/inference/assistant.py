"""The student as the teacher's assistant: it drafts, the teacher checks, and the text is the teacher's own.

Knows how to make a decoder-only assistant of a student in memory (paper, section 8.5); `speculative` is the search.
"""

import copy
from pathlib import Path
from typing import Any

import torch
from transformers import WhisperForCausalLM, WhisperForConditionalGeneration

from hf_distil_whisper.checkpoints import load_model
from hf_distil_whisper.inference.cached_decoder import Assistant
from hf_distil_whisper.inference.speculative import check_assistant
from hf_distil_whisper.inference.window_search import window_search


def create_assistant(
    student: WhisperForConditionalGeneration | str | Path, teacher: WhisperForConditionalGeneration
) -> WhisperForCausalLM:
    """Makes the assistant with which `teacher` transcribes faster and word for word the same.

    The assistant shares the student's decoder and head in memory and reads the teacher's encoder states, so it costs
    no weights and no second pass of an encoder. It also shares their mode: both are in eval mode afterwards.

    Args:
        student (`WhisperForConditionalGeneration`, `str` or `Path`): distilled from `teacher` with the encoder frozen;
            by name on the Hub or folder it is loaded beside the teacher, in its dtype, and its own encoder let go.
        teacher (`WhisperForConditionalGeneration`): the model to speed up.

    Returns:
        `WhisperForCausalLM`: for `transcribe(..., assistant=...)`, for the pipeline by [`assistant_arguments`], or for
        `teacher.generate(..., assistant_model=...)` of transformers, which takes one recording at a time.

    Raises:
        FileNotFoundError: if there is no student of this name.
        ValueError: if the student's encoder is not the teacher's, or the vocabularies, dtypes or devices differ.

    Example:
        ```python
        >>> assistant = create_assistant("me/distil-small", teacher)
        >>> transcribe(teacher, processor, "speech.wav", assistant=assistant)[0].text
        ```
    """
    if isinstance(student, str | Path):
        student = load_model(student, dtype=teacher.dtype).to(teacher.device)
    _check_pair(student, teacher)
    config = copy.deepcopy(student.config)
    with torch.device("meta"):  # no memory is spent on weights that are replaced right away
        assistant = WhisperForCausalLM(config)
    assistant.model.decoder = student.model.decoder
    assistant.proj_out = student.proj_out
    # A copy, since assisted generation writes into it for good. Lengths and suppressed tokens come from the teacher
    # with every draft: those of the student would be applied on top, at wrong positions, with a warning per draft.
    settings = copy.deepcopy(student.generation_config)
    settings.max_length = settings.suppress_tokens = settings.begin_suppress_tokens = None
    assistant.generation_config = settings
    return assistant.eval()


def _check_pair(student: WhisperForConditionalGeneration, teacher: WhisperForConditionalGeneration) -> None:
    check_assistant(student, teacher)
    ours, theirs = student.get_encoder().state_dict(), teacher.get_encoder().state_dict()
    same = ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)
    if not same:
        raise ValueError(
            "The student's encoder is not the teacher's, so its decoder cannot read the teacher's encoder states and "
            "its drafts would be noise. Only a student distilled from this teacher with `freeze_encoder=True` and all "
            "encoder layers can share it. A whole smaller Whisper of the same vocabulary may assist too, with its own "
            "encoder: pass the model itself, `transcribe(..., assistant=model)`."
        )


def added_parameters(assistant: Assistant, model: WhisperForConditionalGeneration) -> int:
    """Weights that an assistant brings along: its decoder and head, and an encoder of its own (Table 9).

    Args:
        assistant (`WhisperForCausalLM` or `WhisperForConditionalGeneration`): what drafts.
        model (`WhisperForConditionalGeneration`): what checks; weights that both hold in memory count nothing.
    """
    own = {id(weight) for weight in model.parameters()}
    return sum(weight.numel() for weight in assistant.parameters() if id(weight) not in own)


def assistant_arguments(assistant: Assistant) -> dict[str, Any]:
    """Arguments for `pipeline("automatic-speech-recognition", ...)` with which an assistant drafts in it.

    The pipeline's own `assistant_model` takes one recording at a time, and its default of five beams switches the
    assistant off without a word; these work in batches, and keep the search greedy.

    Args:
        assistant (`WhisperForCausalLM` or `WhisperForConditionalGeneration`): see [`create_assistant`].

    Example:
        ```python
        >>> recognise = pipeline("automatic-speech-recognition", model=teacher, **assistant_arguments(assistant))
        ```
    """
    return {"generate_kwargs": {"num_beams": 1, "custom_generate": window_search(assistant)}}
