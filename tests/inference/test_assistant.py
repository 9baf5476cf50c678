"""Speculative decoding: the teacher's text with the student's help, and no assistant that cannot help."""

import copy

import pytest
import torch
from transformers import WhisperForConditionalGeneration, pipeline

from hf_distil_whisper.inference.speculative import (
    added_parameters,
    assistant_arguments,
    create_assistant,
)
from hf_distil_whisper.inference.transcribe import (
    transcribe,
    transcribe_chunked,
)
from talking_models import count_encoder_windows, talking_whisper
from toy_models import toy_audio, toy_processor, toy_whisper


def student_of(teacher: WhisperForConditionalGeneration) -> WhisperForConditionalGeneration:
    """Two of the teacher's layers, slightly off, with the teacher's encoder."""
    student = copy.deepcopy(teacher)
    student.config.decoder_layers = 2
    student.model.decoder.layers = student.model.decoder.layers[:2]
    return student


@pytest.mark.parametrize("seed", [0, 4])
@pytest.mark.parametrize("return_timestamps", [False, True])
def test_assisted_text_is_the_teachers_greedy_text(seed: int, return_timestamps: bool) -> None:
    """Speculative decoding that changes the text is a bug that no one sees: the text still reads well."""
    teacher = talking_whisper(seed)
    assistant = create_assistant(student_of(teacher), teacher)
    audio = [toy_audio(1 + index, seed=index) for index in range(4)]
    options = {"return_timestamps": return_timestamps, "max_new_tokens": 60}
    alone = transcribe(teacher, toy_processor(), audio, **options)
    assisted = transcribe(teacher, toy_processor(), audio, assistant=assistant, **options)
    assert [(one.text, one.segments) for one in assisted] == [(one.text, one.segments) for one in alone]
    assert len({one.text for one in alone}) > 1


def test_assisted_text_keeps_suppressed_first_tokens_out() -> None:
    """Transformers drops `begin_suppress_tokens` in assisted mode, and the text is no longer the teacher's."""
    teacher = talking_whisper(4)
    audio = toy_audio(2, seed=1)
    first = transcribe(teacher, toy_processor(), audio)[0].text
    token = toy_processor().tokenizer(first, add_special_tokens=False).input_ids[0]
    tokens = toy_processor().tokenizer(" " + first, add_special_tokens=False).input_ids[:1]
    teacher.generation_config.begin_suppress_tokens = [token, *tokens]
    alone = transcribe(teacher, toy_processor(), audio)[0]
    assistant = create_assistant(student_of(teacher), teacher)
    assert transcribe(teacher, toy_processor(), audio, assistant=assistant)[0].text == alone.text != first


def test_long_recording_is_assisted_to_the_same_text() -> None:
    """Long-form goes through another loop of transformers, with rules of its own for assistants."""
    teacher = talking_whisper(4)
    teacher.generation_config.begin_suppress_tokens = [teacher.generation_config.eos_token_id]
    assistant = create_assistant(student_of(teacher), teacher)
    audio = toy_audio(40, seed=2)
    alone = transcribe(teacher, toy_processor(), audio)[0]
    assert transcribe(teacher, toy_processor(), audio, assistant=assistant)[0].segments == alone.segments
    assert alone.text


def test_drafts_are_made_without_a_warning_each(caplog: pytest.LogCaptureFixture) -> None:
    """The student's own lengths in the assistant bring one warning per draft: dozens for a minute of speech."""
    teacher = talking_whisper(4)
    assistant = create_assistant(student_of(teacher), teacher)
    with caplog.at_level("WARNING"):
        transcribe(teacher, toy_processor(), toy_audio(40, seed=2), assistant=assistant)
    assert "Both `max_new_tokens`" not in caplog.text


def test_assistant_shares_the_students_decoder_and_runs_no_encoder() -> None:
    """A copy would cost the memory, and a second encoder the time, that the assistant is to save."""
    teacher = talking_whisper()
    student = student_of(teacher)
    assistant = create_assistant(student, teacher)
    own = {id(parameter) for parameter in student.parameters()}
    assert all(id(parameter) in own for parameter in assistant.parameters())
    assert not any(parameter.is_meta for parameter in assistant.parameters())
    by_teacher, by_student = count_encoder_windows(teacher), count_encoder_windows(student)
    transcribe(teacher, toy_processor(), toy_audio(1), assistant=assistant, max_new_tokens=5)
    assert (by_teacher(), by_student()) == (1, 0)


def test_student_is_as_before_after_assisting() -> None:
    """Assisted generation writes into the assistant's generation config: it must be a copy."""
    teacher = talking_whisper()
    student = student_of(teacher)
    before = student.generation_config.to_dict(), student.config.to_dict()
    assistant = create_assistant(student, teacher)
    transcribe(teacher, toy_processor(), toy_audio(32), assistant=assistant)
    assert (student.generation_config.to_dict(), student.config.to_dict()) == before
    assert student.config.is_encoder_decoder


def test_assistant_of_another_encoder_is_refused() -> None:
    """Its drafts would be noise: correct text, and slower than without."""
    teacher = talking_whisper()
    trained = student_of(teacher)
    with torch.no_grad():
        trained.model.encoder.layers[0].fc1.weight[0, 0] += 1e-3
    with pytest.raises(ValueError, match="encoder is not the teacher's"):
        create_assistant(trained, teacher)
    with pytest.raises(ValueError, match="encoder is not the teacher's"):
        create_assistant(toy_whisper(encoder_layers=1), teacher)


def test_assistant_of_another_vocabulary_or_dtype_is_refused() -> None:
    """Another vocabulary drafts other words; another dtype fails inside the first matrix product."""
    teacher = talking_whisper()
    with pytest.raises(ValueError, match="tokens"):
        create_assistant(toy_whisper(vocab_size=teacher.config.vocab_size + 1), teacher)
    with pytest.raises(ValueError, match="one dtype"):
        create_assistant(student_of(teacher).to(torch.bfloat16), teacher)


def test_assistant_with_beams_is_refused() -> None:
    """Transformers ignores the assistant with beams: no error, no warning, and no speed."""
    teacher = talking_whisper()
    assistant = create_assistant(student_of(teacher), teacher)
    with pytest.raises(ValueError, match="greedy decoding"):
        transcribe(teacher, toy_processor(), toy_audio(1), assistant=assistant, num_beams=2)
    with pytest.raises(ValueError, match="greedy decoding"):
        transcribe(teacher, toy_processor(), toy_audio(40), assistant=assistant, num_beams=2)


@pytest.mark.parametrize("return_timestamps", [False, True])
def test_batch_of_unequal_recordings_is_assisted_to_the_same_texts(return_timestamps: bool) -> None:
    """One rejected draft must not touch another row: rows differ in length, in acceptance and in when they end."""
    teacher = talking_whisper(4)
    assistant = create_assistant(student_of(teacher), teacher)
    audio = [toy_audio(seconds, seed=index) for index, seconds in enumerate([0.1, 29, 3, 30, 1, 12, 7])]
    options = {"return_timestamps": return_timestamps, "max_new_tokens": 60}
    alone = transcribe(teacher, toy_processor(), audio, **options)
    assisted = transcribe(teacher, toy_processor(), audio, assistant=assistant, batch_size=4, **options)
    assert [(one.text, one.segments) for one in assisted] == [(one.text, one.segments) for one in alone]


def test_empty_batch_gives_nothing() -> None:
    """A folder without recordings is no reason to fail in a matrix product."""
    teacher = talking_whisper()
    assistant = create_assistant(student_of(teacher), teacher)
    assert transcribe(teacher, toy_processor(), [], assistant=assistant, batch_size=4) == []


def test_chunks_are_assisted_to_the_same_text() -> None:
    """Chunks come in batches, where transformers' assistants stop."""
    teacher = talking_whisper(4)
    assistant = create_assistant(student_of(teacher), teacher)
    audio = toy_audio(70, seed=2)
    alone = transcribe_chunked(teacher, toy_processor(), audio, batch_size=3, return_timestamps=True)
    assisted = transcribe_chunked(
        teacher, toy_processor(), audio, batch_size=3, return_timestamps=True, assistant=assistant
    )
    assert (assisted.text, assisted.segments) == (alone.text, alone.segments)
    assert assisted.statistics.drafts.tokens >= alone.statistics.num_tokens


def test_whole_whisper_assists_with_its_own_ears() -> None:
    """Table 9: a small Whisper drafts too, and hears by itself; the main model's states are not its own."""
    teacher, other = talking_whisper(4), talking_whisper(1, encoder_layers=1)
    audio = [toy_audio(1 + index, seed=index) for index in range(3)]
    alone = transcribe(teacher, toy_processor(), audio, max_new_tokens=40)
    heard = count_encoder_windows(other)
    assisted = transcribe(teacher, toy_processor(), audio, assistant=other, batch_size=3, max_new_tokens=40)
    assert [one.text for one in assisted] == [one.text for one in alone]
    assert heard() == 3
    with pytest.raises(ValueError, match="mel bins"):
        transcribe(teacher, toy_processor(), audio, assistant=talking_whisper(num_mel_bins=128))


def test_draft_counts_come_with_the_transcription() -> None:
    """Nobody sees from a text whether the assistant helped."""
    teacher = talking_whisper(4)
    found = transcribe(
        teacher, toy_processor(), toy_audio(2, seed=1), assistant=create_assistant(teacher, teacher), draft_length=3
    )[0].statistics
    drafts = found.drafts
    assert drafts.acceptance_rate == 1.0
    assert drafts.tokens == found.num_tokens + (not found.truncated)
    assert drafts.checks == -(-drafts.tokens // 4)
    long = transcribe(teacher, toy_processor(), toy_audio(40), assistant=create_assistant(teacher, teacher))[0]
    assert long.statistics.drafts.acceptance_rate == 1.0
    assert transcribe(teacher, toy_processor(), toy_audio(1))[0].statistics.drafts is None


def test_added_parameters_are_decoder_and_head_only() -> None:
    """Table 9 counts what has to be loaded beside the teacher: 8 % for 2 of 32 layers, not a second model."""
    teacher = talking_whisper()
    student = student_of(teacher)
    decoder = sum(weight.numel() for weight in student.model.decoder.parameters())
    assert added_parameters(create_assistant(student, teacher), teacher) == decoder
    assert added_parameters(create_assistant(teacher, teacher), teacher) == 0


def test_pipeline_is_assisted_to_the_same_texts() -> None:
    """The pipeline's five beams would switch the assistant off, and its own kind takes no batches."""
    teacher = talking_whisper(4)
    processor = toy_processor()
    assistant = create_assistant(student_of(teacher), teacher)
    parts = {"model": teacher, "tokenizer": processor.tokenizer, "feature_extractor": processor.feature_extractor}
    plain = pipeline("automatic-speech-recognition", **parts)
    assisted = pipeline("automatic-speech-recognition", **parts, **assistant_arguments(assistant))
    audio = [toy_audio(seconds, seed=index) for index, seconds in enumerate([2, 5, 1])]
    passes = []
    hook = assistant.model.decoder.layers[0].fc1.register_forward_pre_hook(lambda *_: passes.append(1))
    options = {"max_new_tokens": 40}
    expected = [one["text"] for one in plain(audio, generate_kwargs={"num_beams": 1, **options})]
    assert not passes
    kept = {**assistant_arguments(assistant)["generate_kwargs"], **options}
    assert [one["text"] for one in assisted(audio, batch_size=3, generate_kwargs=kept)] == expected
    assert passes
    hook.remove()
