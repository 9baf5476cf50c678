"""Speculative decoding: the student drafts, the teacher checks, and the text is the teacher's own.

Knows how to make a decoder-only assistant of a student in memory; the search itself is transformers' (paper,
section 8.5).
"""

import copy

import torch
from transformers import WhisperForCausalLM, WhisperForConditionalGeneration


def create_assistant(
    student: WhisperForConditionalGeneration, teacher: WhisperForConditionalGeneration
) -> WhisperForCausalLM:
    """Makes the assistant with which `teacher` transcribes faster and word for word the same.

    The assistant shares the student's decoder and head in memory and reads the teacher's encoder states, so it costs
    no weights and no second pass of an encoder. It also shares their mode: both are in eval mode afterwards.

    Args:
        student (`WhisperForConditionalGeneration`): distilled from `teacher` with the encoder frozen.
        teacher (`WhisperForConditionalGeneration`): the model to speed up.

    Returns:
        `WhisperForCausalLM`: for `transcribe(..., assistant=...)` or `teacher.generate(..., assistant_model=...)`;
        batch size 1 and greedy.

    Raises:
        ValueError: if the student's encoder is not the teacher's, or the vocabularies, dtypes or devices differ.

    Example:
        ```python
        >>> assistant = create_assistant(student, teacher)
        >>> transcribe(teacher, processor, "speech.wav", assistant=assistant)[0].text
        ```
    """
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
    if student.config.vocab_size != teacher.config.vocab_size:
        raise ValueError(
            f"The student has {student.config.vocab_size} tokens, the teacher {teacher.config.vocab_size}: the "
            "assistant's draft would mean other words. Take a student of this very teacher."
        )
    if (student.dtype, student.device) != (teacher.dtype, teacher.device):
        raise ValueError(
            f"The student is {student.dtype} on {student.device}, the teacher {teacher.dtype} on {teacher.device}; "
            "the assistant reads the teacher's encoder states, so load both in one dtype and move both to one device."
        )
    ours, theirs = student.get_encoder().state_dict(), teacher.get_encoder().state_dict()
    same = ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)
    if not same:
        raise ValueError(
            "The student's encoder is not the teacher's, so its decoder cannot read the teacher's encoder states and "
            "its drafts would be noise. Only a student distilled from this teacher with `freeze_encoder=True` and all "
            "encoder layers can assist it."
        )
